//! The decision, from end to end: documents, nodes' refusals, the operator's request, every region, routes, edges, levels,
//! rollout. Each step may change the next plan and always says why.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use topology::{
    EdgeId, EdgeState, Intent, IntentKind, Level, Moment, NodeId, Plan, Reason, ReasonCode, RegionId, RegionPlan,
    RegionState, Rule, Share, Snapshot, policy::TwoPerson, snapshot::SNAPSHOT_SCHEMA,
};
use verdict::Health;

use crate::{
    Action, Check, Input, Memory, Outcome, PLANNER, Phase, Refusal, Report,
    actions::TakenBack,
    believed::is_unseen,
    capacity::Headroom,
    input::{REFUSALS_QUOTED, quoted},
    regions::total_at,
    rollout::{Judged, judge},
};

/// Longest wait of a request for its approval: after this the world has changed too much to act on it. What then stands
/// for a time, like an override, does so from its approval on.
pub const REQUEST_LIFE: Duration = Duration::from_secs(600);

/// What `--force` passes, with a second person's agreement: rules that judge by what is believed, and whoever orders a
/// failover may know better. Nobody forces what would lose data; a loss is named instead.
const FORCIBLE: [ReasonCode; 3] = [
    ReasonCode::NoFitBackup,
    ReasonCode::NoHeadroom,
    ReasonCode::RegionsServingMin,
];

/// Decides. What comes of it can always be applied: a plan that could not be is refused here, and all stays as it was.
pub fn plan(input: &Input, now: Moment) -> Outcome {
    let outcome = decide(input, now);
    let Some(problem) = what_is_invalid(input, &outcome) else {
        return outcome;
    };
    let refused = Reason {
        code: ReasonCode::InvalidPlan,
        region: None,
        text: format!("not committed, because no node could apply it: {problem}"),
        evidence: vec![],
        until: None,
    };
    // Where a request makes it so, the world goes on without the request.
    let mut outcome = match input.request {
        Some(_) => plan(&without_request(input), now),
        None => Outcome {
            plan: None,
            memory: input.memory.clone(),
            report: Report {
                changed: vec![],
                ..outcome.report
            },
        },
    };
    outcome.report.refused.push(refused);
    outcome
}

fn without_request(input: &Input) -> Input {
    Input {
        request: None,
        ..input.clone()
    }
}

fn what_is_invalid(input: &Input, outcome: &Outcome) -> Option<String> {
    let snapshot = Snapshot {
        schema: SNAPSHOT_SCHEMA,
        plan: outcome.plan.clone()?,
        topology: input.topology.clone(),
        dns_ttl_s: input.policy.dns.ttl_s(),
        probe: input.policy.probe.clone(),
    };
    snapshot.validate().err().map(|error| error.to_string())
}

fn decide(input: &Input, now: Moment) -> Outcome {
    let mut planner = Planner::new(input, now);
    planner.follow_clock();
    planner.recover();
    planner.follow_topology();
    planner.adopt_and_expire();
    planner.note_verdicts();
    planner.take_back_refused();
    planner.settle();
    planner.tie_correlated();
    planner.take_request();
    for region in primaries(input) {
        planner.decide(&region);
    }
    planner.repair_routes();
    planner.say_where_data_is_written();
    planner.find_lost_edges();
    planner.set_edges();
    planner.set_stacks();
    planner.set_levels();
    planner.advance_rollout();
    planner.finish()
}

/// What keeps automation from changing anything now, if something does.
pub fn automation(input: &Input, now: Moment) -> Option<Reason> {
    Planner::new(input, now).automation()
}

/// When, after `now`, the decision may change with no new fact: the end of a step, of a standing order, of a wait for
/// approval. `None` when only facts matter.
pub fn next_wake(input: &Input, now: Moment) -> Option<Moment> {
    let regions = input.current.iter().flat_map(|plan| &plan.regions);
    let steps = regions.filter_map(|(id, region)| match region.state {
        RegionState::Restoring(_) => Some(restore_step_end(input, id, region.since)),
        RegionState::Draining(_) => Some(drain_step_end(input, id, region.since)),
        RegionState::Serving | RegionState::Evacuated => None,
    });
    let actions = input.memory.actions.values();
    let expiries = actions.filter_map(expiry);
    let arrivals = &input.memory.arrivals;
    let arrivals = arrivals.iter().filter_map(|(region, it)| {
        let per_second = input.topology.regions.get(region)?.connects_per_s_max?;
        Some(it.end(per_second, input.policy.failover.reconnect_window))
    });
    let rollout = input.current.iter().filter_map(|plan| rollout_step_end(input, plan));
    let rest = input.memory.taken_back.iter().map(|it| it.until);
    steps
        .chain(expiries)
        .chain(arrivals)
        .chain(rollout)
        .chain(rest)
        .filter(|wake| *wake > now)
        .min()
}

/// When an action ends by its own time, if it does.
fn expiry(action: &Action) -> Option<Moment> {
    match action.phase {
        Phase::AwaitingApproval => Some(approval_end(&action.intent)),
        Phase::Running if action.intent.kind.stands() => Some(action.intent.expires_at),
        _ => None,
    }
}

/// Until when a request waits for its approval.
pub(crate) fn approval_end(intent: &Intent) -> Moment {
    intent.expires_at.min(intent.created_at + REQUEST_LIFE)
}

/// A restore step ends when it was in force, and the region healthy, for as long as the policy holds it.
pub(crate) fn restore_step_end(input: &Input, region: &RegionId, since: Moment) -> Moment {
    let healthy_since = input.verdicts.get(region).and_then(|verdict| verdict.healthy_since);
    healthy_since.unwrap_or(since).max(since) + input.policy.restore.step_hold
}

/// A planned drain takes its time; in an emergency the next part goes as soon as the targets accept connections again.
pub(crate) fn drain_step_end(input: &Input, region: &RegionId, since: Moment) -> Moment {
    let planned = matches!(
        input.memory.moving(region).map(|action| &action.intent.kind),
        Some(IntentKind::Switchover { .. })
    );
    since
        + if planned {
            input.policy.drain.step_hold
        } else {
            input.policy.failover.reconnect_window
        }
}

/// The current step of a rollout and its end; none when it is at its last.
fn rollout_step_end(input: &Input, plan: &Plan) -> Option<Moment> {
    let rollout = plan.rollout.as_ref().filter(|rollout| rollout.percent < 100)?;
    let steps = &input.policy.rollout.steps;
    let step = steps.iter().rfind(|step| step.percent <= rollout.percent);
    Some(rollout.since + step.map_or(Duration::ZERO, |step| step.hold))
}

/// Whether an operator ordered what goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ordered {
    Yes,
    No,
}

/// Fewest edges whose refusal takes a plan back: one alone may be broken itself.
const REFUSING_EDGES_MIN: usize = 2;

fn is_edge(edges: &BTreeMap<EdgeId, topology::Edge>, node: &NodeId) -> bool {
    edges.keys().any(|edge| edge.as_str() == node.as_str())
}

/// Who refuses a plan, in words.
fn who_refuses(refusal: &Refusal) -> String {
    let named: Vec<&str> = refusal.nodes.keys().take(REFUSALS_QUOTED).map(NodeId::as_str).collect();
    let more = match refusal.nodes.len() - named.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let verb = if refusal.nodes.len() == 1 { "refuses" } else { "refuse" };
    format!("{}{more} {verb} plan {}", named.join(", "), refusal.number.generation)
}

/// Whether a region has this stack.
pub(crate) fn has_stack(input: &Input, stack: &SocketAddr) -> bool {
    let mut stacks = input.topology.regions.values().flat_map(|region| &region.stacks);
    stacks.any(|it| it.address == *stack)
}

pub(crate) fn primaries(input: &Input) -> Vec<RegionId> {
    input.topology.primaries().map(|region| region.id.clone()).collect()
}

pub(crate) struct Planner<'i> {
    pub(crate) input: &'i Input,
    pub(crate) now: Moment,
    pub(crate) next: Plan,
    pub(crate) memory: Memory,
    /// Primaries that turned bad together: each with all of those that did, itself included.
    pub(crate) correlated: BTreeMap<RegionId, BTreeSet<RegionId>>,
    /// Regions that this decision moved already; each moves once at most.
    pub(crate) moved: BTreeSet<RegionId>,
    /// Whether what is decided at the moment was ordered by a person, who may know what nobody sees.
    pub(crate) by: Ordered,
    /// Whether that person insists: what speaks against the order is passed over, and noted in `passed`.
    pub(crate) forced: bool,
    /// What was passed over by force, rule by rule.
    pub(crate) passed: BTreeMap<ReasonCode, String>,
    /// Why the request at hand needs a second person, and what such a person was shown of one that waits: by what it is, in
    /// words.
    pub(crate) asks: BTreeMap<String, String>,
    pub(crate) shown: BTreeMap<String, String>,
    pub(crate) report: Report,
}

impl<'i> Planner<'i> {
    fn new(input: &'i Input, now: Moment) -> Self {
        let current = input.current.as_ref();
        let newest = input.recovered.iter().chain(current).max_by_key(|plan| plan.number());
        let next = newest.cloned().unwrap_or_else(|| Plan {
            generation: 0,
            epoch: 0,
            created_at: now,
            documents: String::new(),
            regions: BTreeMap::new(),
            routes: BTreeMap::new(),
            edges: BTreeMap::new(),
            drained_stacks: BTreeSet::new(),
            writers: BTreeMap::new(),
            rollout: None,
            reasons: Vec::new(),
        });
        Self {
            input,
            now,
            next,
            memory: input.memory.clone(),
            correlated: BTreeMap::new(),
            moved: BTreeSet::new(),
            by: Ordered::No,
            forced: false,
            passed: BTreeMap::new(),
            asks: BTreeMap::new(),
            shown: BTreeMap::new(),
            report: Report::default(),
        }
    }

    /// A clock that went back leaves moments in the future, from which no step would ever be over: they become now.
    fn follow_clock(&mut self) {
        let now = self.now;
        let regions = self.next.regions.values_mut().map(|it| &mut it.since);
        let rollout = self.next.rollout.as_mut().map(|it| &mut it.since);
        let penalties = self.memory.penalties.values_mut().map(|it| &mut it.at);
        let arrivals = self.memory.arrivals.values_mut().map(|it| &mut it.since);
        let mut ahead = Duration::ZERO;
        for moment in regions.chain(rollout).chain(penalties).chain(arrivals) {
            ahead = ahead.max(moment.since(now));
            *moment = now.min(*moment);
        }
        // What lasts for a time lasts no longer than that from now on.
        for action in self.memory.actions.values_mut().filter(|it| !it.phase.is_final()) {
            let Intent {
                created_at, expires_at, ..
            } = &mut action.intent;
            ahead = ahead.max(created_at.since(now));
            let life = expires_at.since(*created_at);
            *expires_at = (*expires_at).min(now + life);
            *created_at = now.min(*created_at);
        }
        if let Some(rest) = &mut self.memory.taken_back {
            rest.until = rest.until.min(now + self.input.policy.publish.hold);
        }
        if !ahead.is_zero() {
            let text = format!(
                "the clock went back by {} s or more; what is under way is held from now on",
                ahead.as_secs_f64()
            );
            self.report.changed.push(Reason {
                code: ReasonCode::ClockWentBack,
                region: None,
                text,
                evidence: vec![],
                until: None,
            });
        }
    }

    /// What nodes serve is the truth when the store has forgotten it; the next plan follows it.
    fn recover(&mut self) {
        let Some(recovered) = &self.input.recovered else { return };
        let ours = self.input.current.as_ref().map(Plan::number).unwrap_or_default();
        if recovered.number() <= ours {
            return;
        }
        let text = format!(
            "nodes serve plan {}, the store knows only {ours}: it was lost, or restored from an old copy; theirs goes on",
            recovered.number()
        );
        self.report.changed.push(Reason {
            code: ReasonCode::PlanRecovered,
            region: None,
            text,
            evidence: vec![],
            until: None,
        });
    }

    /// What an earlier leader left unfinished is ours now; what had its time is over.
    fn adopt_and_expire(&mut self) {
        let (now, epoch) = (self.now, self.input.epoch);
        let mut expired = Vec::new();
        for action in self
            .memory
            .actions
            .values_mut()
            .filter(|action| !action.phase.is_final())
        {
            action.owner = epoch;
            if expiry(action).is_some_and(|end| end <= now) {
                (action.phase, action.changed_at) = (Phase::Expired, now);
                expired.push(action.intent.clone());
            }
        }
        for intent in expired {
            let text = format!(
                "{} of {} by {} ended by its time",
                intent.kind.as_str(),
                intent.kind.subject(),
                intent.author
            );
            self.report.changed.push(Reason {
                code: ReasonCode::Expired,
                region: intent.kind.region().cloned(),
                text,
                evidence: vec![],
                until: None,
            });
        }
        if self.memory.taken_back.as_ref().is_some_and(|it| it.until <= now) {
            self.memory.taken_back = None;
        }
        self.memory.forget(now);
    }

    /// Nodes that refuse the plan in force. Each keeps its last good plan, so a refusal is first of all that node's own
    /// trouble, and is shown. Only when a majority of the edges refuses does the last plan that those all had come back, whole
    /// and under a new number; and never in place of one that a person ordered or that leaves a region that is down.
    fn take_back_refused(&mut self) {
        let (Some(refusal), Some(current)) = (&self.input.refusal, &self.input.current) else {
            return;
        };
        if refusal.number != current.number() || refusal.nodes.is_empty() {
            return;
        }
        let evidence: Vec<String> = refusal
            .nodes
            .iter()
            .take(REFUSALS_QUOTED)
            .map(|(node, why)| format!("{node}: {}", quoted(why)))
            .collect();
        let general = |code, text, until| Reason {
            code,
            region: None,
            text,
            evidence,
            until,
        };
        let who = who_refuses(refusal);
        let policy = &self.input.policy.publish;
        // A name server routes nothing, so its word does not count against a plan.
        let edges = &self.input.topology.edges;
        let refusing = refusal.nodes.keys().filter(|node| is_edge(edges, node)).count();
        let share = refusing as f64 / edges.len().max(1) as f64;
        let is_majority = refusing >= REFUSING_EDGES_MIN && share > policy.refusals_max.max(0.5);
        let usable = refusal.acknowledged.as_ref();
        let usable = usable.filter(|it| it.documents == self.next.documents && it.generation < current.generation);
        // Who refuses what it had applied before is broken itself; taking that back again would change nothing.
        let usable = usable.filter(|good| !routes_alike(good, current));
        // One refusal is answered once, also when the answer came out as the plan that is in force.
        let answered = self.memory.taken_back.as_ref().map(|it| it.generation);
        let usable = usable.filter(|_| answered != Some(current.generation));
        let Some(good) = usable.filter(|_| is_majority) else {
            let all = edges.len();
            let text = format!(
                "{who}. A node that refuses a plan goes on with the last one it applied. {refusing} of {all} edges refuse this \
                 one, so it stays in force. Look at the nodes that refuse it: `meridian status` names them"
            );
            return self
                .report
                .waiting
                .push(general(ReasonCode::RefusedByNodes, text, None));
        };
        if let Some(why) = self.must_stand(good, current) {
            let text = format!(
                "{who}. It stays in force all the same, because {why}. Look at the nodes that refuse it: `meridian status` names \
                 them"
            );
            return self
                .report
                .waiting
                .push(general(ReasonCode::RefusedByNodes, text, None));
        }
        // What was rolled back or aborted stays so: nobody goes back to a version that was found bad.
        let ended = |id: &str| matches!(self.memory.actions.get(id), Some(it) if it.phase == Phase::Aborted);
        self.next = Plan {
            generation: self.next.generation,
            epoch: self.next.epoch,
            created_at: self.next.created_at,
            rollout: good.rollout.clone().filter(|it| !ended(&it.action)),
            ..good.clone()
        };
        // An edge that the good plan names is not lost for the plan: else this decision would leave it out again, and the next
        // one would take that back again.
        let is_out = |edge: &EdgeId| good.edges.get(edge) == Some(&EdgeState::Drained);
        self.memory.lost_edges.retain(|edge, _| is_out(edge));
        let until = self.now + policy.hold;
        let first = refusal.nodes.values().next().map(|why| quoted(why).to_owned());
        self.memory.taken_back = Some(TakenBack {
            generation: current.generation,
            until,
            why: first.unwrap_or_default(),
        });
        let text = format!(
            "{who}; what plan {} said is in force again, and automation rests until {until}; `meridian unfreeze` ends that",
            good.generation
        );
        self.report
            .changed
            .push(general(ReasonCode::PlanTakenBack, text, Some(until)));
    }

    /// Why a plan is not taken back for an earlier one, whoever refuses it.
    fn must_stand(&self, good: &Plan, current: &Plan) -> Option<String> {
        let percent = |plan: &Plan, primary: &RegionId, target: &RegionId| {
            let shares = plan.routes.get(primary).map(Vec::as_slice).unwrap_or_default();
            total_at(shares, target)
        };
        for (primary, shares) in &good.routes {
            let back = shares
                .iter()
                .map(|share| &share.region)
                .filter(|it| percent(good, primary, it) > percent(current, primary, it));
            for target in back {
                if self.last_known(target) == Some(Health::Down) {
                    return Some(format!(
                        "it moves sessions of {primary} away from {target}, which is down"
                    ));
                }
            }
        }
        let differs = |region: &RegionId| {
            let state = |plan: &Plan| plan.regions.get(region).map(|it| it.state);
            state(good) != state(current)
        };
        let carries = |action: &Action| match &action.intent.kind {
            IntentKind::Failover { region, .. }
            | IntentKind::Switchover { region, .. }
            | IntentKind::Restore { region, .. } => differs(region),
            IntentKind::Rollout { .. } => good.rollout != current.rollout,
            IntentKind::DrainEdge { .. } | IntentKind::DrainStack { .. } | IntentKind::Abort { .. } => true,
            IntentKind::Freeze
            | IntentKind::Unfreeze
            | IntentKind::Override { .. }
            | IntentKind::Ack { .. }
            | IntentKind::Approve { .. } => false,
        };
        let ordered = self.memory.actions.values().find(|action| {
            let is_new = action.changed_at >= good.created_at && matches!(action.phase, Phase::Done | Phase::Aborted);
            let goes_on = action.phase == Phase::Running
                && (action.changed_at >= good.created_at || !action.intent.kind.stands());
            action.intent.author != PLANNER && (is_new || goes_on) && carries(action)
        })?;
        let intent = &ordered.intent;
        let (kind, subject, author) = (intent.kind.as_str(), intent.kind.subject(), &intent.author);
        Some(format!("{author} ordered it: {kind} of {subject}"))
    }

    /// Stacks are drained while somebody wants it, but never the last one of a region.
    fn set_stacks(&mut self) {
        let asked: BTreeMap<_, _> = self
            .memory
            .running(|kind| matches!(kind, IntentKind::DrainStack { .. }))
            .filter_map(|action| match &action.intent.kind {
                IntentKind::DrainStack { stack } => Some((*stack, action.intent.clone())),
                _ => None,
            })
            .collect();
        // As with edges.
        let rests = self.memory.taken_back.is_some() && !self.is_asked();
        let mut drained = BTreeSet::new();
        let mut changed = Vec::new();
        for region in self.input.topology.regions.values() {
            let stacks = region.stacks.iter().map(|stack| stack.address);
            let is_drained =
                |stack: &SocketAddr| asked.contains_key(stack) || (rests && self.next.drained_stacks.contains(stack));
            let of_region: BTreeSet<SocketAddr> = stacks.filter(is_drained).collect();
            if of_region.len() < region.stacks.len() {
                drained.extend(of_region);
            }
            for stack in &region.stacks {
                let address = stack.address;
                let (was, is) = (self.next.drained_stacks.contains(&address), drained.contains(&address));
                if was != is {
                    changed.push((region.id.clone(), address, is));
                }
            }
        }
        self.next.drained_stacks = drained;
        for (region, stack, is_drained) in changed {
            let (code, text) = if is_drained {
                let by = asked.get(&stack).map(|it| {
                    let (author, reason, until) = (&it.author, &it.reason, it.expires_at);
                    format!("drain by {author}: {reason}; {stack} gets no sessions until {until}")
                });
                (ReasonCode::StackDrained, by.unwrap_or_default())
            } else {
                (ReasonCode::StackRestored, format!("{stack} gets sessions again"))
            };
            self.report.changed.push(Reason {
                code,
                region: Some(region),
                text,
                evidence: vec![],
                until: None,
            });
        }
    }

    /// Edges are left out of DNS answers while somebody wants it, but never the last one, and while they are lost.
    fn set_edges(&mut self) {
        let drained: BTreeMap<_, _> = self
            .memory
            .running(|kind| matches!(kind, IntentKind::DrainEdge { .. }))
            .filter_map(|action| match &action.intent.kind {
                IntentKind::DrainEdge { edge } => Some((edge.clone(), action.intent.clone())),
                _ => None,
            })
            .collect();
        let lost = &self.memory.lost_edges;
        let is_left = |edge: &EdgeId| drained.contains_key(edge) || lost.contains_key(edge);
        let none_left = self.next.edges.keys().all(is_left);
        let mut changed = Vec::new();
        // An edge that came back by itself and was refused with its plan comes back when automation does.
        let rests = self.memory.taken_back.is_some() && !self.is_asked();
        for (edge, state) in &mut self.next.edges {
            let is_back = self.input.memory.lost_edges.contains_key(edge) && !lost.contains_key(edge);
            if rests && *state == EdgeState::Drained && !is_back {
                continue;
            }
            // The topology may have lost the edges that were not drained.
            let wanted = if lost.contains_key(edge) || (drained.contains_key(edge) && !none_left) {
                EdgeState::Drained
            } else {
                EdgeState::Serving
            };
            if *state != wanted {
                *state = wanted;
                changed.push((edge.clone(), wanted));
            }
        }
        for (edge, state) in changed {
            let was_lost = self.input.memory.lost_edges.contains_key(&edge);
            let (code, text) = match state {
                EdgeState::Drained if self.memory.lost_edges.contains_key(&edge) => {
                    let silence = self.silence(&edge);
                    let text = format!("{silence}; DNS names it no more until it is heard again. Its sessions stay");
                    (ReasonCode::EdgeLost, text)
                }
                EdgeState::Serving if was_lost => {
                    let text = format!("{edge} is heard again, and DNS names it again");
                    (ReasonCode::EdgeReturned, text)
                }
                EdgeState::Drained => {
                    let by = drained.get(&edge).map(|it| {
                        let (author, reason, until) = (&it.author, &it.reason, it.expires_at);
                        format!("drain by {author}: {reason}; {edge} is left out of DNS answers until {until}")
                    });
                    (ReasonCode::EdgeDrained, by.unwrap_or_default())
                }
                EdgeState::Serving => (
                    ReasonCode::EdgeRestored,
                    format!("{edge} is named in DNS answers again"),
                ),
            };
            self.report.changed.push(Reason {
                code,
                region: None,
                text,
                evidence: vec![],
                until: None,
            });
        }
    }

    /// A region serves at the level its health asks for, or the one at which it can hold what is planned for it.
    fn set_levels(&mut self) {
        let headroom = Headroom::beside(&self.input.topology, &self.next.routes);
        let levels: Vec<(RegionId, Level, Level)> = self
            .next
            .regions
            .iter()
            .map(|(id, it)| (id.clone(), it.level, headroom.level(id)))
            .collect();
        for (region, level, crowded) in levels {
            let Some(verdict) = self.input.verdicts.get(&region) else {
                continue;
            };
            // A level is believed only while the region is seen; what nobody sees keeps its level.
            let unseen = is_unseen(self.seen(&region));
            let believed = if unseen { level } else { verdict.level };
            let to = believed.max(crowded);
            if to == level {
                continue;
            }
            let why = match (to > level, to == crowded && crowded > verdict.level) {
                (true, true) => "it takes more sessions than its components can serve at full quality".to_owned(),
                (true, false) => {
                    let asks = verdict.levels().find(|(level, _)| *level == to);
                    asks.map_or_else(|| self.summary(&region), |(_, fired)| fired.why.clone())
                }
                (false, _) => "what was slow or broken was well for long enough".to_owned(),
            };
            // Room made for sessions that are already planned is part of moving them, not a change of its own.
            let to = if to != crowded && self.is_gated(&region) {
                level.max(crowded)
            } else {
                to
            };
            if to == level {
                continue;
            }
            if let Some(plan) = self.next.regions.get_mut(&region) {
                plan.level = to;
            }
            self.change(
                ReasonCode::LevelChanged,
                &region,
                format!("level {level} to {to}: {why}"),
            );
        }
    }

    fn advance_rollout(&mut self) {
        let Some(rollout) = self.next.rollout.clone() else {
            return;
        };
        let running = self.memory.actions.get(&rollout.action);
        if !running.is_some_and(|action| action.phase == Phase::Running) {
            return;
        }
        let policy = &self.input.policy.rollout;
        let seen = self
            .input
            .rollout
            .as_ref()
            .filter(|seen| seen.version == rollout.version);
        let judged = seen.map_or(Judged::TooFew, |seen| judge(seen, policy));
        let general = |code, text, until| Reason {
            code,
            region: None,
            text,
            evidence: vec![],
            until,
        };
        if let Judged::Bad(why) = judged {
            let text = format!("{} rolled back from {} %: {why}", rollout.version, rollout.percent);
            self.next.rollout = None;
            self.end_action(&rollout.action, Phase::Aborted, &text);
            self.report.changed.push(general(ReasonCode::RolledBack, text, None));
            return;
        }
        let Some(end) = rollout_step_end(self.input, &self.next) else {
            return;
        };
        let held = |text: String, until| general(ReasonCode::RolloutHold, text, until);
        if self.now < end {
            let text = format!("{} held at {} % until {end:#}", rollout.version, rollout.percent);
            return self.report.waiting.push(held(text, Some(end)));
        }
        if judged == Judged::TooFew {
            let (min, sessions) = (policy.sessions_min, seen.map_or(0, |seen| seen.sessions));
            let text = format!(
                "{} held: {sessions} sessions seen, {min} are needed to judge it",
                rollout.version
            );
            return self.report.waiting.push(held(text, None));
        }
        if let Some((code, text, until)) = self.gate(Ordered::Yes) {
            return self.report.waiting.push(general(code, text, until));
        }
        let steps = &policy.steps;
        let percent = steps
            .iter()
            .map(|step| step.percent)
            .find(|percent| *percent > rollout.percent)
            .unwrap_or(100);
        self.next.rollout = Some(topology::Rollout {
            percent,
            since: self.now,
            ..rollout.clone()
        });
        let text = format!(
            "{} goes from {} to {percent} % of users",
            rollout.version, rollout.percent
        );
        let code = if percent == 100 {
            ReasonCode::RolloutDone
        } else {
            ReasonCode::RolloutStep
        };
        if percent == 100 {
            self.end_action(&rollout.action, Phase::Done, &text);
        }
        self.report.changed.push(general(code, text, None));
    }

    fn finish(mut self) -> Outcome {
        let recovers = self
            .input
            .current
            .as_ref()
            .is_some_and(|it| it.generation < self.next.generation);
        let current = self.input.current.as_ref();
        let same = !recovers && current.is_some_and(|current| routes_alike(current, &self.next));
        let plan = (!same).then(|| {
            self.next.generation += 1;
            self.next.epoch = self.input.epoch;
            self.next.created_at = self.now;
            self.next.reasons.clone_from(&self.report.changed);
            self.next
        });
        Outcome {
            plan,
            memory: self.memory,
            report: self.report,
        }
    }

    // Safety rules.

    /// See [`automation`].
    pub(crate) fn automation(&self) -> Option<Reason> {
        let (code, text, until) = self.gate(Ordered::No)?;
        Some(Reason {
            code,
            region: None,
            text,
            evidence: vec![],
            until,
        })
    }

    /// Whether anything stops changes that nobody asks for now: the rule, in words, and until when. A policy without
    /// automation lets an operator's orders be carried through; a freeze stops them where they are.
    fn gate(&self, ordered: Ordered) -> Option<(ReasonCode, String, Option<Moment>)> {
        if !self.input.policy.safety.automation && ordered == Ordered::No {
            return Some((
                ReasonCode::AutomationOff,
                "the policy turns automation off".to_owned(),
                None,
            ));
        }
        if let Some(freeze) = self.memory.freeze(self.now) {
            let until = freeze.expires_at;
            let text = format!(
                "automation is frozen by {} until {until}: {}",
                freeze.author, freeze.reason
            );
            return Some((ReasonCode::Frozen, text, Some(until)));
        }
        let rest = self.memory.taken_back.as_ref()?;
        let text = format!(
            "automation rests until {}, because nodes refused plan {}: {}; `meridian unfreeze` ends it",
            rest.until, rest.generation, rest.why
        );
        Some((ReasonCode::RefusedByNodes, text, Some(rest.until)))
    }

    /// Whether something stops automatic changes; says so about `region`.
    pub(crate) fn is_gated(&mut self, region: &RegionId) -> bool {
        self.is_stopped(region, Ordered::No)
    }

    /// Whether something stops the next step of what moves `region`.
    pub(crate) fn is_step_gated(&mut self, region: &RegionId) -> bool {
        let ordered = if self.is_ordered(region) {
            Ordered::Yes
        } else {
            Ordered::No
        };
        self.is_stopped(region, ordered)
    }

    /// Whether an operator ordered what moves `region` now.
    pub(crate) fn is_ordered(&self, region: &RegionId) -> bool {
        let moving = self.memory.moving(region);
        moving.is_some_and(|action| action.intent.author != PLANNER)
    }

    /// Whether the order that moves `region` now is one by force.
    pub(crate) fn is_forced(&self, region: &RegionId) -> bool {
        let moving = self.memory.moving(region).map(|action| &action.intent.kind);
        matches!(moving, Some(IntentKind::Failover { force: true, .. }))
    }

    fn is_stopped(&mut self, region: &RegionId, ordered: Ordered) -> bool {
        let gate = self.gate(ordered);
        let (code, text) = match &gate {
            Some((code, text, _)) => (*code, text.clone()),
            None if ordered == Ordered::Yes => (ReasonCode::Frozen, "an operator ordered it".to_owned()),
            None => (ReasonCode::Frozen, "automation is on".to_owned()),
        };
        self.check(code, region, gate.is_none(), text);
        let Some((code, text, until)) = gate else {
            return false;
        };
        let reason = Reason {
            until,
            ..self.reason(code, region, text, vec![])
        };
        self.report.refused.push(reason);
        true
    }

    /// Notes what a rule says, and returns it; a rule that is overridden agrees.
    pub(crate) fn check(&mut self, rule: ReasonCode, region: &RegionId, passed: bool, text: String) -> bool {
        let overridden = !passed && self.is_overridden(rule);
        let forced = !passed && !overridden && self.forced && FORCIBLE.contains(&rule);
        let text = match (overridden, forced) {
            (true, _) => format!("{text} (overridden)"),
            (_, true) => {
                self.passed.insert(rule, text.clone());
                format!("{text} (passed by force)")
            }
            _ => text,
        };
        let passed = passed || overridden || forced;
        self.report.checks.push(Check {
            rule,
            region: Some(region.clone()),
            passed,
            text,
        });
        passed
    }

    /// Whether the request of this decision is carried out by it.
    fn is_asked(&self) -> bool {
        let is_new = |id: &str| !self.input.memory.actions.contains_key(id) && self.memory.actions.contains_key(id);
        self.input.request.as_ref().is_some_and(|intent| is_new(&intent.id))
    }

    fn is_overridden(&self, rule: ReasonCode) -> bool {
        let rule = Rule::ALL.into_iter().find(|it| it.code() == rule);
        rule.is_some_and(|rule| self.memory.overrides(rule, self.now))
    }

    /// Assertion: enough regions serve when `region` does not.
    pub(crate) fn leaves_enough(&mut self, region: &RegionId) -> Result<(), Reason> {
        // A region that nobody sees counts as serving: silence is no failure, and a control plane that is blind must not
        // keep a person from an order. Automation moves no session to such a region, so it loses nothing by it.
        let left = self.next.regions.iter().filter(|(id, it)| {
            *id != region && it.state == RegionState::Serving && self.health_for_this(id) != Some(Health::Down)
        });
        let (left, min) = (left.count(), self.input.policy.safety.regions_serving_min as usize);
        let text = format!("{left} regions would be left serving, and {min} is the least");
        if self.check(ReasonCode::RegionsServingMin, region, left >= min, text.clone()) {
            Ok(())
        } else {
            Err(self.reason(ReasonCode::RegionsServingMin, region, text, vec![]))
        }
    }

    /// Regions that are not where they belong, other than `region`.
    pub(crate) fn others_away(&self, region: &RegionId) -> Vec<&str> {
        let away = |(id, it): &(&RegionId, &RegionPlan)| *id != region && it.state != RegionState::Serving;
        let away = self.next.regions.iter().filter(away);
        away.map(|(id, _)| id.as_str()).collect()
    }

    /// Regions other than `region` that automation waits for before it leaves another one, each with why: those that it
    /// left and that are not well again, and those whose sessions move at the moment, whoever ordered that. A region that is
    /// well and waits for its way back, or that a person emptied while it was well, keeps nobody from being helped.
    pub(crate) fn bad_or_moving(&self, region: &RegionId) -> Vec<String> {
        let window = self.input.policy.failover.reconnect_window;
        let others = self.next.regions.iter().filter(|(id, _)| *id != region);
        let counted = others
            .filter(|(_, it)| it.state != RegionState::Serving)
            .filter_map(|(id, it)| {
                let health = self.health(id);
                let is_well = matches!(health, Health::Healthy | Health::Degraded);
                if !is_well && !self.memory.on_purpose.contains(id) {
                    return Some(format!("{id} is {} and {health}", it.state));
                }
                let moves = self.now < it.since + window;
                moves.then(|| format!("{id} is {}, and its sessions moved a moment ago", it.state))
            });
        counted.collect()
    }

    pub(crate) fn needs_two(&self, what: TwoPerson) -> bool {
        self.input.policy.safety.two_person.contains(&what)
    }

    // What is known, and what is said.

    /// What was seen of a region, unless that is too old.
    pub(crate) fn seen(&self, region: &RegionId) -> Health {
        let Some(verdict) = self.input.verdicts.get(region) else {
            return Health::NoData;
        };
        if self.is_stale(region) {
            Health::Blind
        } else {
            verdict.health
        }
    }

    /// What automation goes by: after a tick without data the verdict before it stands.
    pub(crate) fn health(&self, region: &RegionId) -> Health {
        match self.seen(region) {
            Health::NoData if self.input.verdicts.contains_key(region) => {
                self.last_known(region).unwrap_or(Health::NoData)
            }
            seen => seen,
        }
    }

    /// What a decision goes by: a person's order by what was last known, whatever is seen now.
    pub(crate) fn health_for_this(&self, region: &RegionId) -> Option<Health> {
        match self.by {
            Ordered::Yes => self.last_known(region),
            Ordered::No => Some(self.health(region)),
        }
    }

    /// Freshness: nothing older than the policy allows is acted on.
    pub(crate) fn is_stale(&self, region: &RegionId) -> bool {
        let age = |verdict: &verdict::Verdict| self.now.tick().0.saturating_sub(verdict.tick.0);
        let newest = self.input.verdicts.get(region).map(age);
        newest.is_some_and(|age| age > u64::from(self.input.policy.health.freshness_ticks))
    }

    pub(crate) fn is_failing(&self, region: &RegionId) -> bool {
        self.input.verdicts.get(region).is_some_and(|verdict| verdict.failing)
    }

    pub(crate) fn summary(&self, region: &RegionId) -> String {
        match self.input.verdicts.get(region) {
            None => "it has not been seen yet".to_owned(),
            Some(_) if self.is_stale(region) => "what is known of it is too old to act on".to_owned(),
            Some(verdict) => verdict.summary.clone(),
        }
    }

    pub(crate) fn reason(
        &self,
        code: ReasonCode,
        region: &RegionId,
        text: String,
        mut evidence: Vec<String>,
    ) -> Reason {
        if let Some(verdict) = self.input.verdicts.get(region) {
            evidence.extend(verdict.evidence.iter().cloned());
        }
        Reason {
            code,
            region: Some(region.clone()),
            text,
            evidence,
            until: None,
        }
    }

    pub(crate) fn change(&mut self, code: ReasonCode, region: &RegionId, text: String) {
        self.change_because_of(&region.clone(), code, region, text);
    }

    /// A change about `region` that another one caused: the evidence is that of the cause.
    pub(crate) fn change_because_of(&mut self, cause: &RegionId, code: ReasonCode, region: &RegionId, text: String) {
        if matches!(code, ReasonCode::RestoreStep | ReasonCode::DrainStep) {
            self.get_on(region, &text);
        }
        let evidence = self.reason(code, cause, String::new(), vec![]).evidence;
        self.report.changed.push(Reason {
            code,
            region: Some(region.clone()),
            text,
            evidence,
            until: None,
        });
    }

    /// What moves a region got on: whoever looks at the action sees how far it is.
    fn get_on(&mut self, region: &RegionId, text: &str) {
        let id = self.memory.moving(region).map(|action| action.intent.id.clone());
        if let Some(action) = id.and_then(|id| self.memory.actions.get_mut(&id)) {
            text.clone_into(&mut action.text);
        }
    }

    pub(crate) fn refuse(&mut self, code: ReasonCode, region: &RegionId, text: String) {
        let reason = self.reason(code, region, text, vec![]);
        self.report.refused.push(reason);
    }

    pub(crate) fn wait(&mut self, code: ReasonCode, region: &RegionId, text: String, until: Option<Moment>) {
        let reason = Reason {
            until,
            ..self.reason(code, region, text, vec![])
        };
        self.report.waiting.push(reason);
    }

    pub(crate) fn end_action(&mut self, id: &str, phase: Phase, text: &str) {
        if let Some(action) = self.memory.actions.get_mut(id) {
            (action.phase, action.changed_at, action.owner) = (phase, self.now, self.input.epoch);
            text.clone_into(&mut action.text);
        }
    }
}

/// Whether two plans say the same, but for their numbers and reasons.
fn routes_alike(one: &Plan, other: &Plan) -> bool {
    let said = |plan: &Plan| {
        let Plan {
            generation: _,
            epoch: _,
            created_at: _,
            documents,
            regions,
            routes,
            edges,
            drained_stacks,
            writers,
            rollout,
            reasons: _,
        } = plan.clone();
        (documents, regions, routes, edges, drained_stacks, writers, rollout)
    };
    said(one) == said(other)
}

pub(crate) fn home(region: &RegionId) -> Share {
    Share {
        region: region.clone(),
        percent: 100,
    }
}

pub(crate) fn describe(shares: &[Share]) -> String {
    let shares: Vec<String> = shares
        .iter()
        .map(|share| format!("{} ({} %)", share.region, share.percent))
        .collect();
    shares.join(", ")
}
