//! The sentences about the store, and about the replica that leads it: what is wrong, and what to do. The line that shows an error
//! of the store says what the control plane does meanwhile: decisions cannot be written, and nodes keep their plan.

use std::{fmt::Display, path::Path, time::Duration};

use topology::Moment;

// The problem.

pub(crate) fn conflict(key: &str, found: Option<u64>, expected: Option<u64>) -> String {
    let (found, expected) = (value_at(found), value_at(expected));
    format!("another control plane wrote {key} first (found {found}, expected {expected}); nothing was written")
}

fn value_at(revision: Option<u64>) -> String {
    revision.map_or_else(|| "no value".to_owned(), |revision| format!("revision {revision}"))
}

pub(crate) fn value_too_large(key: &str, bytes: usize, bytes_max: usize) -> String {
    format!("the value of {key} is {bytes} bytes, the limit is {bytes_max}; nothing was written")
}

/// `limits` are those of operations and bytes.
pub(crate) fn transaction_too_large(operations: usize, bytes: usize, limits: (usize, usize)) -> String {
    format!(
        "the transaction has {operations} operations and {bytes} bytes, the limits are {} and {}; nothing was written",
        limits.0, limits.1
    )
}

pub(crate) fn unreachable(reason: &str, may_be_written: bool) -> String {
    let outcome = match may_be_written {
        true => "; whether it was written is unknown",
        false => "",
    };
    format!("the store cannot be reached: {reason}{outcome}")
}

pub(crate) fn full(why: &str) -> String {
    format!("the store is full: {why}")
}

pub(crate) fn etcd_is_full(why: &str) -> String {
    format!(
        "{why}; compact it (etcdctl compact REVISION), defragment every member (etcdctl defrag --cluster), then etcdctl alarm disarm"
    )
}

pub(crate) fn disk_is_full(why: impl Display) -> String {
    format!("{why}; make room on its disk and restart the control plane")
}

pub(crate) fn unreadable(key: &str, problem: &str) -> String {
    format!("{key}: cannot read the document: {problem}; start the version that wrote it, or a later one")
}

pub(crate) fn failed(why: &str) -> String {
    format!("the store failed: {why}")
}

pub(crate) fn file_is_held(file: &Path) -> String {
    format!("{} is held by another control plane; stop it first", file.display())
}

pub(crate) fn no_certificate(url: &str) -> String {
    format!("{url}: there is no certificate to show; write certificate, key and trust in [store]")
}

pub(crate) fn no_endpoints() -> &'static str {
    "no etcd endpoints are configured; write etcd in [store]"
}

// The cause, behind one of the problems above.

pub(crate) fn at(place: impl Display, why: impl Display) -> String {
    format!("{place}: {why}")
}

pub(crate) fn no_answer(waited: Duration) -> String {
    format!("no answer within {:.1} s", waited.as_secs_f64())
}

pub(crate) fn alarm_rings() -> &'static str {
    "a member raised the alarm NOSPACE"
}

pub(crate) fn revision_is_gone() -> &'static str {
    "the revision is no longer kept"
}

pub(crate) fn no_number(key: &str, why: impl Display) -> String {
    format!("{key} holds no number: {why}")
}

pub(crate) fn no_leader_record(key: &str, why: impl Display) -> String {
    format!("{key} holds no leader: {why}")
}

pub(crate) fn written_twice(key: &str) -> String {
    format!("{key} is written twice in one transaction")
}

pub(crate) fn refused_for_nothing() -> &'static str {
    "etcd refused a transaction whose expectations are met"
}

pub(crate) fn no_revision() -> &'static str {
    "etcd answered without a revision"
}

pub(crate) fn key_is_no_text() -> &'static str {
    "a key is no text"
}

pub(crate) fn event_without_key() -> &'static str {
    "an event has no key"
}

pub(crate) fn lease_too_short(ttl: Duration) -> String {
    format!("a lease of {ttl:?} is too short to lead")
}

// The reason for which a leadership ended.

pub(crate) fn lease_unanswered() -> &'static str {
    "the store did not answer in time"
}

pub(crate) fn lease_renewed_late() -> &'static str {
    "the lease was renewed too late"
}

pub(crate) fn another_leads(key: &str, found: Option<u64>, expected: u64) -> String {
    let found = found.map_or_else(|| "no value".to_owned(), |epoch| format!("epoch {epoch}"));
    format!("{key} has {found}, expected {expected}")
}

// The remedy. It follows "To do:" or a semicolon.

pub(crate) fn make_room() -> &'static str {
    "make room in the store as the error says; decisions continue by themselves then: `meridian status`"
}

pub(crate) fn check_members() -> &'static str {
    "check the members of the store (`etcdctl endpoint health --cluster`) and the network to them; decisions continue by themselves \
     when a quorum answers"
}

pub(crate) fn shorten_document() -> &'static str {
    "apply a smaller document: `meridian topology apply FILE --reason WHY`, or `meridian policy apply FILE --reason WHY`"
}

pub(crate) fn other_version() -> &'static str {
    "another control plane that can read it leads meanwhile: `meridian status` names it"
}

pub(crate) fn look_at_store() -> &'static str {
    "look at the log of this control plane and at the disk of the store (`df`); `meridian status` shows when decisions continue"
}

pub(crate) fn with_remedy(error: impl Display, remedy: &str) -> String {
    format!("{error}; {remedy}")
}

pub(crate) fn cannot_write(since: Moment, error: impl Display, remedy: &str) -> String {
    format!("decisions cannot be written since {since:#} UTC: {error}; {remedy}")
}

// The leader, as a replica knows it that does not lead.

pub(crate) fn leads(node: impl Display, url: &str) -> String {
    format!("{node} leads, at {url}")
}

pub(crate) fn nobody_leads_now() -> &'static str {
    "no control plane leads right now"
}

pub(crate) fn leader_unknown_now(error: impl Display) -> String {
    format!("no control plane is known to lead: {error}")
}

pub(crate) fn unfit_now(error: impl Display) -> String {
    format!("no control plane leads right now, and this one does not stand for election: {error}")
}

pub(crate) fn nobody_leads(since: Moment) -> String {
    format!("no control plane leads since {since:#} UTC")
}

pub(crate) fn leader_unknown(since: Moment, error: impl Display) -> String {
    format!("no control plane is known to lead since {since:#} UTC: {error}")
}

pub(crate) fn nobody_leads_and_this_one_is_unfit(since: Moment, error: impl Display) -> String {
    format!("no control plane leads since {since:#} UTC, and this one does not stand for election: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sentence_begins_with_its_subject_and_every_remedy_names_a_command() {
        let at = Moment(0);
        let remedies = [
            make_room(),
            check_members(),
            shorten_document(),
            other_version(),
            look_at_store(),
        ];
        for remedy in remedies {
            assert!(remedy.contains('\u{60}'), "names no command: {remedy}");
        }
        let errors = [
            conflict("/plan", None, Some(7)),
            value_too_large("/plan", 2, 1),
            transaction_too_large(2, 2, (1, 1)),
            unreachable("no answer", true),
            full(&etcd_is_full("mvcc: database space exceeded")),
            full(&disk_is_full("no space left on device")),
            full(alarm_rings()),
            unreadable("/plan", "missing field"),
            failed("a page is damaged"),
            failed(&file_is_held(Path::new("meridian.redb"))),
            failed(&no_certificate("https://etcd-1:2379")),
            failed(no_endpoints()),
            failed(revision_is_gone()),
            failed(&no_number("/epoch", "no digit")),
            failed(&no_leader_record("/leader", "missing field")),
            failed(&written_twice("/plan")),
            failed(refused_for_nothing()),
            failed(no_revision()),
            failed(key_is_no_text()),
            failed(event_without_key()),
            failed(&lease_too_short(Duration::from_secs(1))),
            unreachable(
                &super::at("https://etcd-1:2379", no_answer(Duration::from_secs(2))),
                false,
            ),
        ];
        let mut texts: Vec<String> = errors.iter().map(|error| with_remedy(error, make_room())).collect();
        texts.extend(errors);
        texts.extend([
            cannot_write(at, "the store is full", make_room()),
            leads("cp-1", "https://cp-1:7100"),
            lease_unanswered().to_owned(),
            lease_renewed_late().to_owned(),
            another_leads("/leader", None, 7),
            nobody_leads_now().to_owned(),
            leader_unknown_now("no answer"),
            unfit_now("no answer"),
            nobody_leads(at),
            leader_unknown(at, "no answer"),
            nobody_leads_and_this_one_is_unfit(at, "no answer"),
        ]);
        for text in texts {
            assert!(!text.ends_with(['.', ';', ':']), "{text}");
        }
    }
}
