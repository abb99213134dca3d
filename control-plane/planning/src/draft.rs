//! The draft of a decision: the next plan and the memory, as the steps before left them.

use std::collections::{BTreeMap, BTreeSet};

use topology::{IntentKind, Moment, Plan, ReasonCode, RegionId, RegionPlan, RegionState, Share};

use crate::{
    Input, Memory, PLANNER, Penalty, Phase,
    actions::Arrivals,
    capacity::{Headroom, percent_by_rate, strengths},
    facts::Facts,
    gate::Gate,
    shares::total_at,
};

/// The plan and the memory that a decision is to make.
#[derive(Debug, Clone)]
pub(crate) struct Draft {
    pub(crate) next: Plan,
    pub(crate) memory: Memory,
    /// Regions that this decision moved already; each moves once at most.
    pub(crate) moved: BTreeSet<RegionId>,
    /// The rules that the order at hand passed by force, each with its comparison.
    pub(crate) passed_by_force: BTreeMap<ReasonCode, String>,
}

impl Draft {
    /// The newest plan there is, unchanged; an empty one before the first.
    pub(crate) fn of(input: &Input, now: Moment) -> Self {
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
            next,
            memory: input.memory.clone(),
            moved: BTreeSet::new(),
            passed_by_force: BTreeMap::new(),
        }
    }

    // Questions.

    pub(crate) fn state(&self, region: &RegionId) -> Option<RegionState> {
        self.next.regions.get(region).map(|it| it.state)
    }

    pub(crate) fn is_serving(&self, region: &RegionId) -> bool {
        self.state(region) == Some(RegionState::Serving)
    }

    /// The share of a primary's sessions at `target`, in percent.
    pub(crate) fn percent_at(&self, primary: &RegionId, target: &RegionId) -> u8 {
        let shares = self.next.routes.get(primary);
        shares.map_or(0, |shares| total_at(shares, target))
    }

    /// The source of the action that moves `region` now.
    pub(crate) fn mover(&self, region: &RegionId) -> Gate {
        match self.memory.moving(region).map(|action| &action.intent) {
            Some(intent) if intent.author != PLANNER => {
                Gate::order(matches!(intent.kind, IntentKind::Failover { force: true, .. }))
            }
            _ => Gate::Automation,
        }
    }

    /// Regions other than `region` whose sessions are not all at home.
    pub(crate) fn others_away(&self, region: &RegionId) -> Vec<&str> {
        let away = |(id, it): &(&RegionId, &RegionPlan)| *id != region && it.state != RegionState::Serving;
        let away = self.next.regions.iter().filter(away);
        away.map(|(id, _)| id.as_str()).collect()
    }

    /// Whether this decision carries out its request.
    pub(crate) fn carries_request(&self, input: &Input) -> bool {
        let is_new = |id: &str| !input.memory.actions.contains_key(id) && self.memory.actions.contains_key(id);
        input.request.as_ref().is_some_and(|intent| is_new(&intent.id))
    }

    /// The room that `routes` leave in the stacks that work.
    pub(crate) fn headroom<'i>(&self, facts: &Facts<'i>, routes: &BTreeMap<RegionId, Vec<Share>>) -> Headroom<'i> {
        let topology = &facts.input.topology;
        Headroom::beside(topology, strengths(topology, &self.next, &facts.input.verdicts), routes)
    }

    /// Percent of a primary's sessions for which `target` accepts connections now.
    pub(crate) fn rate(&self, facts: &Facts<'_>, primary: &RegionId, target: &RegionId) -> u8 {
        let window = facts.input.policy.failover.reconnect_window;
        percent_by_rate(&facts.input.topology, &self.memory, primary, target, window, facts.now)
    }

    // Changes.

    /// Moves a primary's sessions.
    pub(crate) fn set(&mut self, facts: &Facts<'_>, region: &RegionId, state: RegionState, shares: Vec<Share>) {
        if let Some(plan) = self.next.regions.get_mut(region) {
            (plan.state, plan.since) = (state, facts.now);
        }
        self.moved.insert(region.clone());
        self.set_routes(facts, region, shares);
    }

    /// Sends a primary's sessions to these regions and leaves its state as it is.
    pub(crate) fn set_routes(&mut self, facts: &Facts<'_>, primary: &RegionId, shares: Vec<Share>) {
        self.count_arrivals(facts, primary, &shares);
        self.next.routes.insert(primary.clone(), shares);
    }

    /// Remembers the number of sessions that a move sends to each region that limits its connection rate.
    fn count_arrivals(&mut self, facts: &Facts<'_>, primary: &RegionId, shares: &[Share]) {
        let now = facts.now;
        let window = facts.input.policy.failover.reconnect_window;
        let demand = facts
            .input
            .topology
            .regions
            .get(primary)
            .map_or(0, |it| it.sessions_max);
        for share in shares {
            let limited = facts.input.topology.regions.get(&share.region);
            let more = share.percent.saturating_sub(self.percent_at(primary, &share.region));
            let Some(per_second) = limited.and_then(|it| it.connects_per_s_max).filter(|_| more > 0) else {
                continue;
            };
            let fresh = || Arrivals {
                since: now,
                sessions: 0,
            };
            let arrivals = self.memory.arrivals.entry(share.region.clone()).or_insert_with(fresh);
            if arrivals.end(per_second, window) <= now {
                *arrivals = fresh();
            }
            // Counted from the last of them: two windows that meet would let twice as many come within one.
            arrivals.since = now;
            let more = (u64::from(demand) * u64::from(more)).div_ceil(100) as u32;
            arrivals.sessions = arrivals.sessions.saturating_add(more);
        }
    }

    /// Sets the state of a primary after sessions came back to it, so that `percent` of them are at home.
    pub(crate) fn stay(&mut self, facts: &Facts<'_>, primary: &RegionId, percent: u8, text: &str) {
        let Some(plan) = self.next.regions.get_mut(primary) else {
            return;
        };
        let state = match (plan.state, percent) {
            (_, 0) => RegionState::Evacuated,
            (_, 100) => RegionState::Serving,
            (RegionState::Restoring(_), percent) => RegionState::Restoring(percent),
            (_, percent) => RegionState::Draining(percent),
        };
        if state == plan.state {
            return;
        }
        (plan.state, plan.since) = (state, facts.now);
        if state == RegionState::Serving {
            self.end_moves(facts, primary, Phase::Aborted, text);
        }
    }

    /// Adds a move to the penalty of a region. A move is not flapping when a person emptied the region while it was
    /// healthy: neither the way out nor the way back.
    pub(crate) fn penalise(&mut self, facts: &Facts<'_>, region: &RegionId) {
        if self.memory.on_purpose.contains(region) {
            return;
        }
        let penalty = self.memory.penalties.entry(region.clone());
        penalty
            .or_insert_with(|| Penalty::none(facts.now))
            .add(&facts.input.policy.damping, facts.now);
    }

    /// Writes the newest step of a move into its action, where operators read how far it is.
    pub(crate) fn note_progress(&mut self, region: &RegionId, text: &str) {
        let id = self.memory.moving(region).map(|action| action.intent.id.clone());
        if let Some(action) = id.and_then(|id| self.memory.actions.get_mut(&id)) {
            text.clone_into(&mut action.text);
        }
    }

    /// Ends every action that moves the region.
    pub(crate) fn end_moves(&mut self, facts: &Facts<'_>, region: &RegionId, phase: Phase, text: &str) {
        let ids: Vec<String> = self
            .memory
            .running(|kind| kind.region() == Some(region))
            .map(|action| action.intent.id.clone())
            .collect();
        for id in ids {
            self.end_action(facts, &id, phase, text);
        }
    }

    pub(crate) fn end_action(&mut self, facts: &Facts<'_>, id: &str, phase: Phase, text: &str) {
        if let Some(action) = self.memory.actions.get_mut(id) {
            (action.phase, action.changed_at, action.owner) = (phase, facts.now, facts.input.epoch);
            text.clone_into(&mut action.text);
        }
    }
}

/// Whether two plans are the same but for their numbers, times and reasons.
pub(crate) fn differ_only_in_number(one: &Plan, other: &Plan) -> bool {
    let content = |plan: &Plan| {
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
    content(one) == content(other)
}
