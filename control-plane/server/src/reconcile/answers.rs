//! Answers without a write: reports, dry runs, and requests that another replica has to take.

use planning::{Outcome, plan};
use topology::{IntentKind, Moment, Topology};

use super::{
    messages::{Answer, Request, Unanswered},
    reconciler::Reconciler,
};
use crate::view::{Leader, Role};

impl Reconciler {
    /// Handles requests that need no write: reports and dry runs. Returns those that need one.
    pub(super) fn answer_without_store(&mut self, request: Request, now: Moment) -> Option<Request> {
        match request {
            Request::Observe(report) => self.evidence.observe(&self.input, report),
            Request::Rehearse(reply) if self.standing.leads() => {
                let outcome = plan(&self.fresh_input(), now);
                drop(reply.send(Ok(self.answer(None, outcome, self.input.topology.clone()))));
            }
            Request::Ask {
                intent,
                dry_run: true,
                reply,
                ..
            } if self.standing.leads() => {
                let id = intent.id.clone();
                let outcome = plan(&self.input_with(intent, now), now);
                drop(reply.send(Ok(self.answer(Some(&id), outcome, self.input.topology.clone()))));
            }
            other => return Some(other),
        }
        None
    }

    /// A follower takes reports as a leader does. Every other request is answered with the leader's address.
    pub(super) fn decline(&mut self, request: Request) {
        let not_leading = match (&self.standing.role, &self.standing.progress.unwritten) {
            (Role::Following(leader), _) => Unanswered::NotLeading(leader.clone()),
            (Role::Leading, Some(unwritten)) => Unanswered::Store(unwritten.error.clone().with_nothing_written()),
            (Role::Leading, None) => Unanswered::NotLeading(Leader::Nobody),
        };
        // Sending the answer fails if the requester is gone, which is fine.
        match request {
            Request::Observe(report) => self.evidence.observe(&self.input, report),
            Request::Ask { reply, .. } | Request::Rehearse(reply) => drop(reply.send(Err(not_leading))),
            Request::Apply { reply, .. } => drop(reply.send(Err(not_leading))),
        }
    }

    pub(super) fn answer(&self, id: Option<&str>, outcome: Outcome, topology: Topology) -> Answer {
        let actions = &outcome.memory.actions;
        let asked = id.and_then(|id| actions.get(id));
        // The answer to an approval is about the approved action.
        let approved = asked.and_then(|action| match &action.intent.kind {
            IntentKind::Approve { action, .. } => actions.get(action),
            _ => None,
        });
        Answer {
            action: approved.or(asked).cloned(),
            outcome,
            topology,
            view: self.publisher.views.borrow().clone(),
        }
    }
}
