//! Requests of operators: dry runs, orders and documents.

use std::time::Duration;

use planning::{Input, audit::Principal, plan};
use tokio::time::Instant;
use topology::{EdgeId, Moment, NodeId, Policy, RegionId, Rule, Topology};

use super::{
    deciding::{is_refused, is_so_already},
    messages::{Applied, Request, Unanswered},
    reconciler::Reconciler,
    term::{Ended, Term, is_fenced_off},
};
use crate::{
    records::{Actor, Document, DocumentKind},
    store::{Leadership, StoreError},
    texts,
    view::Leader,
};

impl Reconciler {
    /// Carries out a request and answers it. The inner error is the store's.
    pub(super) async fn handle_request(
        &mut self,
        term: &mut Term<'_>,
        request: Request,
    ) -> Result<Result<(), StoreError>, Ended> {
        let now = daemon::clock::now();
        match self.answer_without_store(request, now) {
            None | Some(Request::Observe(_) | Request::Rehearse(_)) => {}
            Some(Request::Ask { intent, by, reply, .. }) => {
                let id = intent.id.clone();
                let author = intent.author.clone();
                let input = self.input_with(intent, now);
                if let Some(wait) = self.wait(&id, &author, &input, now) {
                    drop(reply.send(Err(Unanswered::TooMany { author, wait })));
                    return Ok(Ok(()));
                }
                let outcome = self
                    .decide_and_commit(term, &Actor::operator(&author, by), now, input, None)
                    .await?;
                let failed = outcome.as_ref().err().cloned();
                let answer = outcome.map(|it| self.answer(Some(&id), it, self.input.topology.clone()));
                drop(reply.send(answer.map_err(|error| unanswered(term.lead, error))));
                return Ok(failed.map_or(Ok(()), Err));
            }
            Some(Request::Apply {
                document,
                by,
                replaces,
                dry_run,
                reply,
            }) => {
                let author = document.author.clone();
                if let Some(wait) = self.pace.wait_to_apply(&author, Instant::now()).filter(|_| !dry_run) {
                    drop(reply.send(Err(Unanswered::TooManyDocuments { author, wait })));
                    return Ok(Ok(()));
                }
                let applied = self.apply(term, (document, by), &replaces, dry_run, now).await?;
                let failed = applied.as_ref().err().cloned();
                drop(reply.send(applied.map_err(|error| unanswered(term.lead, error))));
                return Ok(failed.map_or(Ok(()), Err));
            }
        }
        Ok(Ok(()))
    }

    /// Time that a request has to wait, because too many lately changed nothing. Only a request that would change nothing
    /// either waits: a loop under an operator's name must not keep that operator from a failover.
    fn wait(&self, id: &str, author: &str, input: &Input, now: Moment) -> Option<Duration> {
        let at = Instant::now();
        let (own, log) = (self.pace.wait(author, at), self.pace.wait_to_record(at));
        let wait = own.max(log)?;
        let outcome = plan(input, now);
        // A refusal needs no entry in the log, and so no room there.
        if is_refused(id, &outcome) {
            return own;
        }
        is_so_already(id, &outcome).then_some(wait)
    }

    pub(super) async fn apply(
        &mut self,
        term: &mut Term<'_>,
        (document, by): (Document, Option<Principal>),
        replaces: &str,
        dry_run: bool,
        now: Moment,
    ) -> Result<Result<Applied, StoreError>, Ended> {
        let (kind, file) = (document.kind, document.kind.as_str());
        let in_force = &self.known.documents.of(kind).version;
        if *in_force != replaces && *in_force != document.version {
            return Ok(Ok(Applied::Changed(in_force.clone())));
        }
        // A document that is in force already is not written a second time, for any author.
        let is_in_force = *in_force == document.version && self.known.revisions.plan.is_some();
        let mut input = self.fresh_input();
        let parsed = match kind {
            DocumentKind::Topology => Topology::parse(file, &document.text).map(|it| input.topology = it),
            DocumentKind::Policy => Policy::parse(file, &document.text).map(|it| input.policy = it),
        };
        if let Err(problems) = parsed {
            return Ok(Ok(Applied::Problems(
                problems.0.iter().map(ToString::to_string).collect(),
            )));
        }
        let problems = self.dangers(&input, now);
        if !problems.is_empty() {
            return Ok(Ok(Applied::Problems(problems)));
        }
        let before = (&self.input.topology, &self.input.policy);
        input.differences = planning::differences(before, (&input.topology, &input.policy));
        let topology = input.topology.clone();
        let outcome = if dry_run || is_in_force {
            plan(&input, now)
        } else {
            let author = document.author.clone();
            match self
                .decide_and_commit(term, &Actor::operator(&author, by), now, input, Some(document))
                .await?
            {
                Ok(outcome) => outcome,
                Err(error) => return Ok(Err(error)),
            }
        };
        Ok(Ok(Applied::InForce(Box::new(self.answer(None, outcome, topology)))))
    }

    /// The dangers of well-formed documents, one per line.
    pub(super) fn dangers(&self, input: &Input, now: Moment) -> Vec<String> {
        let Input { topology, policy, .. } = input;
        let mut problems = planning::problems(topology, policy);
        if *topology != self.input.topology {
            problems.extend(planning::refuses_topology(&self.input, topology, now));
            // The control plane's own name cannot name a node: that node's reports would count as the control plane's
            // own.
            let own = self.settings.candidate.node.as_str();
            let regions = topology.regions.keys().map(RegionId::as_str);
            let edges = topology.edges.keys().map(EdgeId::as_str);
            let mut names = regions
                .chain(edges)
                .chain(topology.name_servers.keys().map(NodeId::as_str));
            if names.any(|name| name == own) {
                problems.push(texts::name_is_taken(own));
            }
        }
        if !self.input.memory.overrides(Rule::RiskyTopology, now) {
            let risks = planning::risks(&self.input, topology);
            let forbidden = risks.iter().map(|risk| texts::rule_forbids(risk, Rule::RiskyTopology));
            problems.extend(forbidden);
        }
        if !self.input.memory.overrides(Rule::LooserPolicy, now) {
            let loosened = self.input.policy.loosened_by(policy);
            let forbidden = loosened.iter().map(|it| texts::rule_forbids(it, Rule::LooserPolicy));
            problems.extend(forbidden);
        }
        problems
    }
}

/// A replica that lost the leadership wrote nothing, so it sends the requester to the new leader.
fn unanswered(lead: &Leadership, error: StoreError) -> Unanswered {
    if is_fenced_off(lead, &error) {
        Unanswered::NotLeading(Leader::Nobody)
    } else {
        Unanswered::Store(error)
    }
}
