//! Edges on their way back. An edge that DNS names again gets its clients in steps: all at once they would find cold
//! caches and a fleet of reconnecting devices, and might take it down again.

use std::{collections::BTreeMap, time::Duration};

use topology::{EdgeId, EdgeState, Moment, Snapshot};

use crate::compile::Memory;

/// Percent of its weight that an edge has in each step of its way back.
const STEPS: [u32; 5] = [1, 5, 25, 50, 100];

/// The edges that returned, as the sequence of plans tells. Every name server that saw the same plans knows the same.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Returning {
    /// The states of the plan before.
    states: BTreeMap<EdgeId, EdgeState>,
    /// The time of the plan that named the edge again.
    since: BTreeMap<EdgeId, Moment>,
}

impl Returning {
    /// The edges as a name server remembered them before its restart. A clock that was ahead then must not hold an edge on its way
    /// back for hours.
    pub(crate) fn remembered(memory: &Memory, now: Moment) -> Self {
        let since = memory
            .since
            .iter()
            .map(|(edge, since)| (edge.clone(), (*since).min(now)));
        Self {
            states: memory.states.clone(),
            since: since.collect(),
        }
    }

    /// The part that has to outlive a restart.
    pub(crate) fn memory(&self) -> (BTreeMap<EdgeId, EdgeState>, BTreeMap<EdgeId, Moment>) {
        (self.states.clone(), self.since.clone())
    }

    /// Takes note of the next plan, which came at `came_at`.
    pub(crate) fn follow(&mut self, snapshot: &Snapshot, came_at: Moment) {
        let plan = &snapshot.plan;
        for (edge, state) in &plan.edges {
            match (self.states.get(edge), state) {
                (Some(EdgeState::Drained), EdgeState::Serving) => {
                    self.since.insert(edge.clone(), came_at);
                }
                (_, EdgeState::Drained) => {
                    self.since.remove(edge);
                }
                (_, EdgeState::Serving) => {}
            }
        }
        self.since.retain(|edge, _| plan.edges.contains_key(edge));
        self.states.clone_from(&plan.edges);
    }

    /// The part of its weight that an edge has, in percent, and when that changes.
    pub(crate) fn percent(&self, edge: &EdgeId, step: Duration, now: Moment) -> (u32, Option<Moment>) {
        let full = STEPS[STEPS.len() - 1];
        let Some(since) = self.since.get(edge).filter(|_| !step.is_zero()) else {
            return (full, None);
        };
        let steps = now.since(*since).as_millis() / step.as_millis().max(1);
        let nth = usize::try_from(steps).unwrap_or(usize::MAX);
        match STEPS.get(nth) {
            Some(percent) if nth + 1 < STEPS.len() => (*percent, Some(*since + step * (nth as u32 + 1))),
            _ => (full, None),
        }
    }
}

#[cfg(test)]
mod tests {
    use topology::fixtures::three_primaries;

    use super::*;

    #[test]
    fn an_edge_that_returns_gets_its_clients_in_steps_and_one_that_was_never_away_has_all() {
        let (dublin, ashburn) = (EdgeId::new("edge-dub").unwrap(), EdgeId::new("edge-iad").unwrap());
        let mut returning = Returning::default();
        let mut snapshot = three_primaries();
        let mut tell = |generation: u64, state| {
            snapshot.plan.generation = generation;
            snapshot.plan.edges.insert(dublin.clone(), state);
            returning.follow(&snapshot, Moment(generation * 1000));
        };
        tell(1, EdgeState::Serving);
        tell(2, EdgeState::Drained);
        tell(3, EdgeState::Serving);
        // Plans about other things do not begin the way back anew.
        tell(4, EdgeState::Serving);
        let step = Duration::from_secs(30);
        let after = |seconds| Moment(3000) + Duration::from_secs(seconds);
        for (seconds, percent, next) in [
            (0, 1, Some(30)),
            (29, 1, Some(30)),
            (30, 5, Some(60)),
            (60, 25, Some(90)),
            (119, 50, Some(120)),
            (120, 100, None),
            (9999, 100, None),
        ] {
            let found = returning.percent(&dublin, step, after(seconds));
            assert_eq!(found, (percent, next.map(after)), "after {seconds} s");
        }
        assert_eq!(returning.percent(&ashburn, step, after(0)), (100, None));
        assert_eq!(returning.percent(&dublin, Duration::ZERO, after(0)), (100, None));
    }

    #[test]
    fn an_edge_that_leaves_again_begins_anew() {
        let dublin = EdgeId::new("edge-dub").unwrap();
        let mut returning = Returning::default();
        let mut snapshot = three_primaries();
        for (at, state) in [
            (0, EdgeState::Drained),
            (10, EdgeState::Serving),
            (40, EdgeState::Drained),
            (50, EdgeState::Serving),
        ] {
            snapshot.plan.edges.insert(dublin.clone(), state);
            returning.follow(&snapshot, Moment(at * 1000));
        }
        let percent = |at: u64| returning.percent(&dublin, Duration::from_secs(30), Moment(at * 1000)).0;
        assert_eq!((percent(50), percent(81)), (1, 5));
    }

    #[test]
    fn a_restart_forgets_no_step_and_no_plan_that_came_meanwhile() {
        let [dublin, ashburn] = ["edge-dub", "edge-iad"].map(|id| EdgeId::new(id).unwrap());
        let mut snapshot = three_primaries();
        let mut steering = crate::Steering::default();
        let mut tell = |steering: &mut crate::Steering, at: u64, edge: &EdgeId, state| {
            snapshot.plan.generation += 1;
            snapshot.plan.created_at = Moment(at * 1000);
            snapshot.plan.edges.insert(edge.clone(), state);
            steering.compile(&snapshot, Moment(at * 1000));
        };
        tell(&mut steering, 0, &dublin, EdgeState::Drained);
        tell(&mut steering, 10, &dublin, EdgeState::Serving);
        tell(&mut steering, 11, &ashburn, EdgeState::Drained);
        let memory = steering.memory();
        let mut again = crate::Steering::default();
        again.remember(&memory, Moment(20_000));
        assert_eq!(again.memory(), memory);
        // While it was down, a plan named the other edge again.
        tell(&mut again, 45, &ashburn, EdgeState::Serving);
        let step = Duration::from_secs(30);
        let percent = |edge: &EdgeId| again.returning().percent(edge, step, Moment(45_000)).0;
        assert_eq!((percent(&dublin), percent(&ashburn)), (5, 1));
        // Without its memory it takes both for edges that serve all along.
        let mut new = crate::Steering::default();
        tell(&mut new, 46, &ashburn, EdgeState::Serving);
        assert_eq!(new.returning().percent(&ashburn, step, Moment(46_000)).0, 100);
        // The clock was an hour ahead when it remembered.
        let ahead = Memory {
            since: BTreeMap::from([(dublin.clone(), Moment(3_600_000))]),
            ..memory
        };
        again.remember(&ahead, Moment(50_000));
        assert_eq!(again.returning().percent(&dublin, step, Moment(80_000)).0, 5);
    }
}
