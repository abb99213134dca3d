//! The sentences of the control plane itself that an operator reads, in one place, so that a reviewer reads them side by side:
//! answers to orders and objections to documents here, refused [`calls`], [`joining`], the [`store`] with its leader, and the warnings of the [`log`]. The sentences about
//! decisions are planning's.
//!
//! A sentence begins with its subject, says what the system does, and has no full stop. A refusal says what to type.

pub(crate) mod calls;
pub(crate) mod joining;
pub(crate) mod log;
pub(crate) mod store;

use std::fmt::Display;

use topology::{Moment, PlanNumber, Problem, Rule};

// Lines of `meridian status` beside the decisions.

/// A document that an older version took in force breaks this version's limits.
pub(crate) fn outdated_document(kind: &str, problem: &Problem) -> String {
    format!(
        "an older version of Meridian accepted the {kind} in force, and this version would refuse it ({problem}). Decisions \
         continue with it. Apply a corrected one: `meridian {kind} apply FILE --reason WHY`"
    )
}

/// `ahead` are the nodes with their plans, and `why_not` is one of the three reasons that follow.
pub(crate) fn plan_unproven(ours: PlanNumber, ahead: &[String], why_not: &str) -> String {
    format!(
        "nodes say that they apply newer plans than plan {ours} of the store ({}): {why_not}. Plan {ours} stays in force. \
         If the store was restored from an old copy, connect the other nodes. If not, these nodes have state of another \
         deployment: stop them, delete their state_dir, start them. `meridian status` names them",
        ahead.join(", ")
    )
}

pub(crate) fn claim_is_refuted() -> String {
    "the audit log has another plan under that number, so it is not taken over".to_owned()
}

pub(crate) fn too_few_hold_it(held: usize, all: usize) -> String {
    format!(
        "{held} of the {all} nodes of the topology hold the same one, and more than half must before it is taken over"
    )
}

pub(crate) fn not_shown() -> String {
    "they have not shown it".to_owned()
}

pub(crate) fn plan_unconfirmed(number: PlanNumber, ours: PlanNumber, why: impl Display) -> String {
    format!(
        "most nodes hold plan {number}, which is newer than plan {ours} of the store, and the audit log cannot confirm it: \
         {why}. Until then plan {ours} stays in force. `meridian audit replay` reads the log"
    )
}

// Objections to documents.

pub(crate) fn name_is_taken(name: &str) -> String {
    format!("\"{name}\" is a control plane; give the other one a name of its own")
}

/// A danger that a second person may allow.
pub(crate) fn rule_forbids(danger: &str, rule: Rule) -> String {
    format!("{danger}; `meridian override {rule} --for 30m --reason WHY` allows it, with a second person")
}

pub(crate) fn document_too_long(kind: &str, bytes: usize, bytes_max: usize) -> String {
    format!("text: the {kind} document is {bytes} bytes, the limit is {bytes_max}; nothing was changed")
}

pub(crate) fn document_changed_meanwhile(kind: &str, in_force: &str) -> String {
    format!(
        "another operator applied version {in_force:.12} meanwhile; fetch it (`meridian {kind} get`) and apply again"
    )
}

// Answers about orders.

pub(crate) fn token_used(token: &str, at: Moment) -> String {
    format!("token: \"{token:.64}\" was used for another request at {at}")
}

pub(crate) fn asked_before(at: Moment, text: &str) -> String {
    format!("the same request was made at {at}; {text}")
}

pub(crate) fn no_such_action(id: &str) -> String {
    format!("there is no action \"{id:.64}\"; one that is over and older than a day is in `meridian history`")
}

pub(crate) fn action_is_forgotten(id: &str) -> String {
    format!("action {id:.64} is over and older than a day; see `meridian history`")
}

/// The text of an order whose plan edges still fetch.
pub(crate) fn spreads(text: &str, plan: u64, have: usize, named: usize) -> String {
    format!("{text}; plan {plan} is decided, and {have} of {named} edges that DNS names apply it so far")
}

pub(crate) fn plan_stays() -> String {
    "the plan stays as it is".to_owned()
}

pub(crate) fn applied_by(text: &str, author: &str, because: &str) -> String {
    format!("{text}; applied by {author}: {because}")
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// Texts that no operator reads as a sentence: names, labels, and the causes that the sentences above are given.
    const NO_SENTENCES: [&str; 5] = ["config.rs", "metrics.rs", "store", "records", "main.rs"];

    /// The sentences of `[identity]`, `[store]` and the like are those of the configuration, and stand beside its fields.
    #[test]
    fn no_other_file_of_this_crate_makes_sentences() {
        fn check(folder: &Path) {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                if name == "texts" || NO_SENTENCES.contains(&name.as_str()) {
                    continue;
                }
                if path.is_dir() {
                    check(&path);
                    continue;
                }
                let source = fs::read_to_string(&path).unwrap();
                let source = source.split("#[cfg(test)]").next().unwrap();
                for line in source.lines() {
                    // A sentence has blanks, and an argument of `Status` or of an error is one.
                    // Nobody reads the end of a stream that its reader left.
                    let makes =
                        ["Status::", "#[error(\""].iter().any(|it| line.contains(it)) && !line.contains("cancelled(");
                    let quoted = line.split('"').nth(1).is_some_and(|text| text.trim().contains(' '));
                    assert!(
                        !makes || !quoted,
                        "{}: a sentence belongs in src/texts: {line}",
                        path.display()
                    );
                }
            }
        }
        check(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    }

    #[test]
    fn every_sentence_begins_with_its_subject_and_a_refusal_says_what_to_do() {
        let (at, number) = (Moment(0), PlanNumber::default());
        let problem = topology::Topology::parse("topology.toml", "").unwrap_err().0.remove(0);
        let refusals = [
            outdated_document("topology", &problem),
            plan_unproven(number, &["dub-1 plan 7".to_owned()], &too_few_hold_it(1, 3)),
            plan_unproven(number, &[], &claim_is_refuted()),
            plan_unproven(number, &[], &not_shown()),
            plan_unconfirmed(number, number, "no entry"),
            rule_forbids("the zone would change", Rule::RiskyTopology),
            document_changed_meanwhile("policy", "0123456789abcdef"),
            no_such_action("a1"),
            action_is_forgotten("a1"),
        ];
        for text in &refusals {
            assert!(text.contains("\u{60}meridian "), "says no command: {text}");
        }
        let others = [
            name_is_taken("cp-1"),
            document_too_long("policy", 2, 1),
            token_used("t1", at),
            asked_before(at, "us-east is evacuated"),
            spreads("us-east is evacuated", 7, 1, 3),
            plan_stays(),
            applied_by("the plan stays as it is", "alice", "a test"),
        ];
        for text in refusals.iter().chain(&others) {
            let begins = text.split(' ').next().unwrap();
            assert!(
                !["what", "who", "which", "whatever", "whoever", "not"].contains(&begins),
                "{text}"
            );
            assert!(!text.ends_with(['.', ';', ':']), "{text}");
        }
    }
}
