//! The transaction that writes one decision, made without the store.

use planning::{
    Input, Outcome,
    audit::{self, Principal},
};
use topology::{Moment, Reason, ReasonCode};

use super::{
    AUDIT_HEAD, AuditHead, Document, DocumentKind, MEMORY, PLAN, Revisions, SHELF, Shelf, audit_key, document_key,
    encode,
};
use crate::store::Transaction;

/// The topology and the policy document in force.
#[derive(Debug, Clone, PartialEq)]
pub struct Documents {
    pub topology: Document,
    pub policy: Document,
}

impl Documents {
    /// The document of a kind.
    pub fn of(&self, kind: DocumentKind) -> &Document {
        match kind {
            DocumentKind::Topology => &self.topology,
            DocumentKind::Policy => &self.policy,
        }
    }

    fn replace(&mut self, document: Document) {
        match document.kind {
            DocumentKind::Topology => self.topology = document,
            DocumentKind::Policy => self.policy = document,
        }
    }
}

/// The records that a decision is made from, as this replica last read or wrote them.
#[derive(Debug, Clone, PartialEq)]
pub struct Known {
    /// A commit expects them unchanged.
    pub revisions: Revisions,
    pub documents: Documents,
    pub audit: AuditHead,
    /// Written only together with an audit entry, so the audit head's revision guards it too.
    pub shelf: Shelf,
    /// Size of the newest audit entry in bytes. Most of an entry is its input, which changes little, so it is a good
    /// estimate for the next one.
    pub entry_bytes: usize,
}

/// The maker of a decision.
#[derive(Debug, Clone, PartialEq)]
pub struct Actor {
    name: String,
    principal: Option<Principal>,
}

impl Actor {
    /// The planner by itself.
    pub fn planner() -> Self {
        Self::operator(planning::PLANNER, None)
    }

    /// An operator, with the credential that proved the name.
    pub fn operator(name: &str, principal: Option<Principal>) -> Self {
        Self {
            name: name.to_owned(),
            principal,
        }
    }
}

/// A decision to be written.
#[derive(Debug, Clone, Copy)]
pub struct Decision<'d> {
    /// The planner, or the operator whose request or document it is.
    pub actor: &'d Actor,
    pub now: Moment,
    pub input: &'d Input,
    pub outcome: &'d Outcome,
    /// The reasons for the audit log: [`reasons_to_record`].
    pub reasons: &'d [Reason],
    /// False for a refusal that is one of too many, so that refusals do not push decisions out of the audit log.
    pub is_recorded: bool,
    /// The document that the decision puts in force.
    pub document: Option<&'d Document>,
}

/// The records after a commit. Only the store knows the revision of the commit.
#[derive(Debug, Clone, PartialEq)]
pub struct After {
    known: Known,
    writes_plan: bool,
    writes_memory: bool,
    writes_audit: bool,
}

impl After {
    /// The records after a commit of this revision; `None` if there was nothing to write.
    pub fn committed(self, revision: Option<u64>) -> Known {
        let mut known = self.known;
        for (is_written, known) in [
            (self.writes_plan, &mut known.revisions.plan),
            (self.writes_memory, &mut known.revisions.memory),
            (self.writes_audit, &mut known.revisions.audit),
        ] {
            if is_written {
                *known = revision;
            }
        }
        known
    }
}

/// The transaction that writes a decision, and the records after it. A decision that changes nothing has nothing to
/// `put`. The transaction expects every record that the decision was made from: a commit that was given up and arrives
/// late then fails.
pub fn transaction(known: &Known, decision: &Decision<'_>) -> (Transaction, After) {
    let Outcome { plan, memory, .. } = decision.outcome;
    let revisions = known.revisions;
    let mut transaction = Transaction {
        expect: vec![
            (PLAN.to_owned(), revisions.plan),
            (MEMORY.to_owned(), revisions.memory),
            (AUDIT_HEAD.to_owned(), revisions.audit),
        ],
        ..Transaction::default()
    };
    // A new store has nothing. A store that lost its data gets the plan and the documents in force again.
    let is_first = revisions.plan.is_none();
    let mut after = After {
        known: known.clone(),
        writes_plan: false,
        writes_memory: is_first || *memory != decision.input.memory,
        writes_audit: false,
    };
    if let Some(document) = decision.document {
        let replaced = known.documents.of(document.kind);
        if !is_first && replaced.version != document.version {
            let last = known.audit.number;
            after.known.shelf.put(&replaced.version, last, replaced.text.len());
        }
        after.known.shelf.take(&document.version);
        after.known.documents.replace(document.clone());
    }
    let Documents { topology, policy } = &after.known.documents;
    let documents: Vec<&Document> = match decision.document {
        _ if is_first => vec![topology, policy],
        document => document.into_iter().collect(),
    };
    for document in &documents {
        let text = document.text.clone().into_bytes();
        transaction.put.extend([
            (document.kind.key().to_owned(), encode(document)),
            (document_key(&document.version), text),
        ]);
    }
    if (decision.is_recorded && !decision.reasons.is_empty()) || !documents.is_empty() {
        let head = with_room(known, &mut after.known.shelf, known.entry_bytes, &mut transaction);
        let because = decision.document.map(|document| document.reason.clone());
        let entry = audit::Entry {
            version: audit::VERSION.to_owned(),
            oldest: head.oldest(),
            number: known.audit.number + 1,
            previous: known.audit.hash.clone(),
            at: decision.now,
            actor: decision.actor.name.clone(),
            principal: decision.actor.principal.clone(),
            because: because.filter(|because| !because.is_empty()),
            input: audit::Recorded::of(decision.input, &topology.version, &policy.version),
            plan: plan.clone(),
            memory: memory.clone(),
            reasons: decision.reasons.to_vec(),
        };
        let bytes = entry.encode();
        after.writes_audit = true;
        after.known.entry_bytes = bytes.len();
        after.known.audit = head.with(&bytes);
        transaction.put.extend([
            (AUDIT_HEAD.to_owned(), encode(&after.known.audit)),
            (audit_key(after.known.audit.number), bytes),
        ]);
    }
    if after.writes_memory {
        transaction.put.push((MEMORY.to_owned(), encode(memory)));
    }
    if let Some(plan) = plan.as_ref().or(decision.input.current.as_ref().filter(|_| is_first)) {
        after.writes_plan = true;
        transaction.put.push((PLAN.to_owned(), encode(plan)));
    }
    (transaction, after)
}

/// The head of the audit log once there is room for another entry of about `bytes`. Removes the oldest entries, and documents that no
/// entry names any more, for it.
pub(super) fn with_room(known: &Known, shelf: &mut Shelf, bytes: usize, transaction: &mut Transaction) -> AuditHead {
    let mut head = known.audit.clone();
    let removed = head.make_room(bytes, shelf);
    transaction.delete.extend(removed.map(audit_key));
    let unnamed = shelf.prune(head.oldest());
    transaction
        .delete
        .extend(unnamed.iter().map(|version| document_key(version)));
    if *shelf != known.shelf {
        transaction.put.push((SHELF.to_owned(), encode(shelf)));
    }
    head
}

/// The reasons of a decision for the audit log. A request gets its refusals every time. The planner's own refusals are
/// recorded once, not in every tick: `refused_before` are those of the last decision.
pub fn reasons_to_record(input: &Input, outcome: &Outcome, refused_before: &[Reason]) -> Vec<Reason> {
    let Outcome { memory, report, .. } = outcome;
    let is_same = |a: &Reason, b: &Reason| (a.code, &a.region) == (b.code, &b.region);
    let is_new = |new: &&Reason| input.request.is_some() || !refused_before.iter().any(|old| is_same(old, new));
    let needs_approval = |reason: &&Reason| reason.code == ReasonCode::NeedsApproval && *memory != input.memory;
    let refused = report.refused.iter().filter(is_new);
    let waiting = report.waiting.iter().filter(needs_approval);
    report.changed.iter().chain(refused).chain(waiting).cloned().collect()
}

#[cfg(test)]
mod tests {
    use planning::{Report, plan};
    use topology::{Plan, Policy, RegionId, Topology};

    use super::*;

    const NOW: Moment = Moment(1_700_000_000_000);
    const TOPOLOGY: &str = include_str!("../../../../configs/topology.toml");

    fn document(kind: DocumentKind, text: &str) -> Document {
        Document::new(kind, text.to_owned(), "tester", NOW)
    }

    fn new_store() -> (Known, Input) {
        let known = Known {
            revisions: Revisions::default(),
            documents: Documents {
                topology: document(DocumentKind::Topology, TOPOLOGY),
                policy: document(DocumentKind::Policy, ""),
            },
            audit: AuditHead::default(),
            shelf: Shelf::default(),
            entry_bytes: 0,
        };
        let topology = Topology::parse("topology.toml", TOPOLOGY).unwrap();
        let policy = Policy::parse("policy.toml", "").unwrap();
        (known, Input::new(topology, policy, 1))
    }

    fn planner() -> &'static Actor {
        static PLANNER: std::sync::LazyLock<Actor> = std::sync::LazyLock::new(Actor::planner);
        &PLANNER
    }

    /// A decision of the planner.
    fn decided<'d>(input: &'d Input, outcome: &'d Outcome, reasons: &'d [Reason]) -> Decision<'d> {
        Decision {
            actor: planner(),
            now: NOW,
            input,
            outcome,
            reasons,
            is_recorded: true,
            document: None,
        }
    }

    /// The records and the input after the first plan, which revision 7 wrote.
    fn with_a_plan() -> (Known, Input) {
        let (known, mut input) = new_store();
        let outcome = plan(&input, NOW);
        let (_, after) = transaction(&known, &decided(&input, &outcome, &outcome.report.changed));
        (input.current, input.memory) = (outcome.plan, outcome.memory);
        (after.committed(Some(7)), input)
    }

    fn keys(transaction: &Transaction) -> Vec<&str> {
        let mut keys: Vec<&str> = transaction.put.iter().map(|(key, _)| key.as_str()).collect();
        keys.sort_unstable();
        keys
    }

    fn value<'t>(transaction: &'t Transaction, key: &str) -> &'t [u8] {
        let found = transaction.put.iter().find(|(written, _)| written == key);
        &found.unwrap_or_else(|| panic!("{key} is written")).1
    }

    fn expected(transaction: &Transaction) -> Vec<Option<u64>> {
        transaction.expect.iter().map(|(_, revision)| *revision).collect()
    }

    fn reason(code: ReasonCode, region: &str) -> Reason {
        Reason {
            code,
            region: Some(RegionId::new(region).unwrap()),
            text: String::new(),
            evidence: vec![],
            until: None,
        }
    }

    #[test]
    fn the_first_decision_of_a_store_writes_all_records() {
        let (known, input) = new_store();
        let outcome = plan(&input, NOW);
        let reasons = reasons_to_record(&input, &outcome, &[]);
        let (first, after) = transaction(&known, &decided(&input, &outcome, &reasons));
        assert_eq!(expected(&first), [None, None, None], "no other replica has written");
        let Documents { topology, policy } = &known.documents;
        let mut all = [
            PLAN.to_owned(),
            MEMORY.to_owned(),
            AUDIT_HEAD.to_owned(),
            audit_key(1),
            topology.kind.key().to_owned(),
            policy.kind.key().to_owned(),
            document_key(&topology.version),
            document_key(&policy.version),
        ];
        all.sort_unstable();
        assert_eq!(keys(&first), all);
        let entry = value(&first, &audit_key(1));
        let known = after.committed(Some(7));
        assert_eq!((known.audit.number, &known.audit.hash), (1, &audit::hash(entry)));
        assert_eq!(known.entry_bytes, entry.len());
        let Revisions { plan, memory, audit } = known.revisions;
        assert_eq!([plan, memory, audit], [Some(7); 3]);
    }

    #[test]
    fn a_decision_that_changes_nothing_writes_nothing() {
        let (known, input) = with_a_plan();
        let outcome = Outcome {
            plan: None,
            memory: input.memory.clone(),
            report: Report::default(),
        };
        let (nothing, after) = transaction(&known, &decided(&input, &outcome, &[]));
        assert!(nothing.put.is_empty() && nothing.delete.is_empty(), "{nothing:?}");
        assert_eq!(after.committed(None), known);
    }

    #[test]
    fn a_refusal_beyond_the_limit_is_not_recorded() {
        let (known, input) = with_a_plan();
        let outcome = Outcome {
            plan: None,
            memory: input.memory.clone(),
            report: Report::default(),
        };
        let reasons = [reason(ReasonCode::HoldDown, "us-east")];
        let refused = decided(&input, &outcome, &reasons);
        let (recorded, _) = transaction(&known, &refused);
        assert_eq!(keys(&recorded), [AUDIT_HEAD, &audit_key(2)]);
        let too_many = Decision {
            is_recorded: false,
            ..refused
        };
        assert!(transaction(&known, &too_many).0.put.is_empty());
    }

    #[test]
    fn an_audit_entry_names_the_one_before_and_only_the_written_revisions_move() {
        let (known, input) = with_a_plan();
        let outcome = Outcome {
            plan: None,
            memory: input.memory.clone(),
            report: Report::default(),
        };
        let reasons = [reason(ReasonCode::HoldDown, "us-east")];
        let (second, after) = transaction(&known, &decided(&input, &outcome, &reasons));
        assert_eq!(expected(&second), [Some(7); 3]);
        let entry: audit::Entry = serde_json::from_slice(value(&second, &audit_key(2))).unwrap();
        assert_eq!((entry.number, &entry.previous), (2, &known.audit.hash));
        let Revisions { plan, memory, audit } = after.committed(Some(9)).revisions;
        assert_eq!([plan, memory, audit], [Some(7), Some(7), Some(9)]);
    }

    #[test]
    fn a_document_is_recorded_although_it_changes_no_plan() {
        let (known, input) = with_a_plan();
        let outcome = Outcome {
            plan: None,
            memory: input.memory.clone(),
            report: Report::default(),
        };
        let policy = document(DocumentKind::Policy, "# calmer").because("fewer moves".to_owned());
        let applied = Decision {
            actor: &Actor::operator("alice", None),
            document: Some(&policy),
            ..decided(&input, &outcome, &[])
        };
        let (written, after) = transaction(&known, &applied);
        let text = value(&written, &document_key(&policy.version));
        assert_eq!(text, policy.text.as_bytes());
        let entry: audit::Entry = serde_json::from_slice(value(&written, &audit_key(2))).unwrap();
        assert_eq!(
            (entry.actor.as_str(), entry.because.as_deref()),
            ("alice", Some("fewer moves"))
        );
        assert_eq!(entry.input.policy, policy.version);
        let known = after.committed(Some(9));
        assert_eq!(known.documents.policy, policy);
        assert_eq!(known.revisions.plan, Some(7), "the plan is not written again");
    }

    /// Each key at most once, although a document is applied at the same time: a store refuses a transaction that writes
    /// a key twice.
    #[test]
    fn a_store_that_lost_its_data_gets_all_of_it_again() {
        let (mut known, input) = with_a_plan();
        known.revisions = Revisions::default();
        let outcome = Outcome {
            plan: None,
            memory: input.memory.clone(),
            report: Report::default(),
        };
        let policy = document(DocumentKind::Policy, "# calmer");
        let applied = Decision {
            document: Some(&policy),
            ..decided(&input, &outcome, &[])
        };
        let (again, _) = transaction(&known, &applied);
        let in_force: Plan = serde_json::from_slice(value(&again, PLAN)).unwrap();
        assert_eq!(Some(in_force), input.current);
        let stored: Document = serde_json::from_slice(value(&again, policy.kind.key())).unwrap();
        assert_eq!(stored, policy);
        let all = keys(&again);
        let mut once = all.clone();
        once.dedup();
        assert_eq!(all, once);
    }

    #[test]
    fn a_refusal_of_the_planner_is_recorded_once_and_one_of_a_request_each_time() {
        let (_, mut input) = with_a_plan();
        let refused = vec![reason(ReasonCode::HoldDown, "us-east")];
        let outcome = Outcome {
            plan: None,
            memory: input.memory.clone(),
            report: Report {
                refused: refused.clone(),
                ..Report::default()
            },
        };
        assert_eq!(reasons_to_record(&input, &outcome, &[]), refused);
        assert_eq!(reasons_to_record(&input, &outcome, &refused), []);
        let elsewhere = [reason(ReasonCode::HoldDown, "us-west")];
        assert_eq!(reasons_to_record(&input, &outcome, &elsewhere), refused);
        input.request = Some(topology::Intent {
            id: "t1".to_owned(),
            kind: topology::IntentKind::Freeze,
            author: "alice".to_owned(),
            reason: "maintenance".to_owned(),
            created_at: NOW,
            expires_at: NOW,
        });
        assert_eq!(reasons_to_record(&input, &outcome, &refused), refused);
    }
}
