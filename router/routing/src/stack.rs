//! The measurements of one edge for each stack: round trips, failures, load, and the edge's own requests in flight.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use topology::Moment;
use wire::Load;

use crate::{
    Policy,
    eject::{Ejection, Record},
    latency::PeakEwma,
};

/// Shortest round trip that counts. Differences below a millisecond are noise within one site, no reason to prefer a
/// stack.
const ROUND_TRIP_MS_MIN: f64 = 1.0;
/// A failure counts as a round trip of this length, the deadline for a connection. Otherwise a dead stack, which never
/// has a request in flight, would look like the one with the most capacity.
const FAILURE_MS: f64 = 1_000.0;

/// The measurements of one edge for one stack.
#[derive(Debug, Clone, Default)]
pub struct Stack {
    rtt: Option<PeakEwma>,
    in_flight: u32,
    load: Option<(Load, Moment)>,
    /// Successes and failures of connections and sessions.
    record: Record,
    /// Successes and failures of turns, as the stack reports them.
    turns: Record,
}

/// The measurements of one edge for all stacks. A stack without measurements counts as working.
#[derive(Debug, Clone, Default)]
pub struct Stacks {
    known: BTreeMap<SocketAddr, Stack>,
    /// The number of stacks in the plan, measured or not.
    count: usize,
}

impl Stack {
    /// Whether this edge avoids the stack now.
    pub fn is_ejected(&self, now: Moment) -> bool {
        self.record.is_ejected(now) || self.turns.is_ejected(now)
    }

    /// The end of the ejection, if the stack is ejected.
    pub fn ejected_until(&self, now: Moment) -> Option<Moment> {
        self.record.ejected_until(now).max(self.turns.ejected_until(now))
    }

    /// The share of its sessions that the stack gets back so far, 0 to 1.
    pub fn returned(&self, now: Moment, policy: &Policy) -> f64 {
        let turns = self.turns.returned(now, policy);
        self.record.returned(now, policy).min(turns)
    }

    /// Smoothed round trip in milliseconds, once one was measured.
    pub fn rtt_ms(&self, now: Moment) -> Option<f64> {
        self.rtt.map(|rtt| rtt.faded_ms(now))
    }

    /// Sessions and requests of this edge in flight at the stack.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// The last load report of the stack, unless it is too old to count.
    pub fn load(&self, now: Moment, policy: &Policy) -> Option<Load> {
        let (load, at) = self.load?;
        (now.since(at) <= policy.load_age_max).then_some(load)
    }

    /// Whether the last load report says that the stack is full.
    pub fn is_full(&self, now: Moment, policy: &Policy) -> bool {
        self.load(now, policy)
            .is_some_and(|load| load.is_full(policy.full_percent))
    }

    /// The cost of sending a session there, in microseconds: the round trip, but at least `floor_ms`, times this edge's
    /// requests in flight there plus one, times the jobs that wait for its speech engines plus one. A product needs no
    /// weights between its factors, and every session that follows a low cost raises it.
    pub fn cost(&self, floor_ms: f64, now: Moment, policy: &Policy) -> u64 {
        let rtt_ms = self.rtt_ms(now).unwrap_or(0.0).max(floor_ms).max(ROUND_TRIP_MS_MIN);
        let waiting = self.load(now, policy).map_or(0, |load| load.waiting);
        // A float saturates when it is converted to an integer.
        (rtt_ms * 1000.0 * (f64::from(self.in_flight) + 1.0) * (f64::from(waiting) + 1.0)) as u64
    }
}

impl Stacks {
    /// The measurements of a stack, if there are any.
    pub fn get(&self, stack: SocketAddr) -> Option<&Stack> {
        self.known.get(&stack)
    }

    /// All stacks with measurements.
    pub fn iter(&self) -> impl Iterator<Item = (SocketAddr, &Stack)> {
        self.known.iter().map(|(address, stack)| (*address, stack))
    }

    /// Whether this edge avoids a stack now.
    pub fn is_ejected(&self, stack: SocketAddr, now: Moment) -> bool {
        self.get(stack).is_some_and(|stack| stack.is_ejected(now))
    }

    fn at(&mut self, stack: SocketAddr) -> &mut Stack {
        self.known.entry(stack).or_default()
    }

    /// Records that a stack accepted a connection after `ms` milliseconds.
    pub fn reached(&mut self, stack: SocketAddr, ms: f64, now: Moment) {
        let rtt = self.at(stack).rtt.get_or_insert(PeakEwma::new(ms, now));
        rtt.observe(ms, now);
    }

    /// Records that a stack accepted a session or a request.
    pub fn succeeded(&mut self, stack: SocketAddr, now: Moment, policy: &Policy) {
        self.at(stack).record.succeed(now, policy);
    }

    /// Records that a stack accepted neither, or lost one that it had. Returns the ejection that this causes, if any.
    pub fn failed(&mut self, stack: SocketAddr, now: Moment, policy: &Policy) -> Option<Ejection> {
        self.reached(stack, FAILURE_MS, now);
        let may_eject_ill = self.may_eject_ill(stack, now, policy);
        self.at(stack).record.fail(now, policy, may_eject_ill)
    }

    fn may_eject_ill(&self, stack: SocketAddr, now: Moment, policy: &Policy) -> bool {
        let others = |(address, known): &(SocketAddr, &Stack)| *address != stack && known.is_ejected(now);
        let ejected = self.iter().filter(others).count();
        ejected == 0 || (ejected + 1) * 100 <= self.count * usize::from(policy.ejected_percent_max)
    }

    /// Records the end of a turn, and whether the stack itself failed it. Failed turns eject a stack only while the
    /// other stacks of its region (`others`) succeed with theirs. A fault at all stacks lies with the region or the
    /// requesters.
    pub fn turn_ended(
        &mut self,
        stack: SocketAddr,
        has_failed: bool,
        others: impl Iterator<Item = SocketAddr>,
        now: Moment,
        policy: &Policy,
    ) -> Option<Ejection> {
        if !has_failed {
            self.at(stack).turns.succeed(now, policy);
            return None;
        }
        let working = others.filter(|other| *other != stack && !self.is_ejected(*other, now));
        let counts = working.filter_map(|other| Some(self.get(other)?.turns.counts(now, policy)));
        let (succeeded, failed) = counts.fold((0, 0), |sum, more| (sum.0 + more.0, sum.1 + more.1));
        let volume = succeeded + failed;
        let others_do_well = volume > 0
            && volume >= u64::from(policy.volume_min)
            && succeeded * 100 >= volume * u64::from(policy.success_percent_min);
        let may_eject = others_do_well && self.may_eject_ill(stack, now, policy);
        self.at(stack).turns.fail_in_part(now, policy, may_eject)
    }

    /// Records a load report of a stack.
    pub fn loaded(&mut self, stack: SocketAddr, load: Load, now: Moment) {
        self.at(stack).load = Some((load, now));
    }

    /// Counts a session or request of this edge that begins at a stack.
    pub fn began(&mut self, stack: SocketAddr) {
        let stack = self.at(stack);
        stack.in_flight = stack.in_flight.saturating_add(1);
    }

    /// Counts the end of a session or request.
    pub fn ended(&mut self, stack: SocketAddr) {
        if let Some(stack) = self.known.get_mut(&stack) {
            stack.in_flight = stack.in_flight.saturating_sub(1);
        }
    }

    /// Forgets stacks that are not in `stacks`, except those with requests in flight. This bounds the number of stored
    /// stacks.
    pub fn retain(&mut self, stacks: &BTreeSet<SocketAddr>) {
        self.known
            .retain(|address, stack| stacks.contains(address) || stack.in_flight > 0);
        self.count = stacks.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy::DEFAULT;

    fn stack(n: u8) -> SocketAddr {
        ([10, 0, 0, n], 80).into()
    }

    fn world(count: u8) -> Stacks {
        let mut stacks = Stacks::default();
        stacks.retain(&(0..count).map(stack).collect());
        stacks
    }

    #[test]
    fn only_a_part_of_all_stacks_is_ejected_for_being_ill() {
        // 30 % of six stacks is one. A second would be too many; stacks ejected as dead are counted too.
        let mut stacks = world(6);
        let mut ill = |n: u8| {
            (0..30).find_map(|_| {
                stacks.succeeded(stack(n), Moment(0), &POLICY);
                stacks.failed(stack(n), Moment(0), &POLICY)
            })
        };
        assert!(ill(0).is_some());
        assert!(ill(1).is_none());
        let gone = (0..3).find_map(|_| stacks.failed(stack(2), Moment(0), &POLICY));
        assert!(gone.is_some(), "what is gone is gone, however many are");
    }

    #[test]
    fn a_stack_that_fails_its_turns_is_ejected_while_others_of_its_region_do_well() {
        let others = || [stack(0), stack(1)].into_iter();
        let fails = |stacks: &mut Stacks, n: u8, times: u32| {
            (0..times).find_map(|_| stacks.turn_ended(stack(n), true, others(), Moment(0), &POLICY))
        };
        let mut stacks = world(6);
        assert_eq!(fails(&mut stacks, 0, 100), None, "nothing is known of the others");
        for _ in 1..POLICY.volume_min {
            stacks.turn_ended(stack(1), false, others(), Moment(0), &POLICY);
        }
        assert_eq!(fails(&mut stacks, 0, 1), None, "too little is");
        stacks.turn_ended(stack(1), false, others(), Moment(0), &POLICY);
        assert!(fails(&mut stacks, 0, 1).is_some());
        assert!(stacks.is_ejected(stack(0), Moment(0)) && !stacks.is_ejected(stack(1), Moment(0)));
        // A session that the stack accepts or keeps does not improve its record of turns.
        stacks.succeeded(stack(0), Moment(0), &POLICY);
        let known = stacks.get(stack(0)).unwrap();
        assert_eq!(known.ejected_until(Moment(0)), Some(Moment(0) + POLICY.ejection));
        assert_eq!(known.returned(Moment(0), &POLICY), 0.0);
        assert_eq!(known.returned(Moment(0) + POLICY.ejection, &POLICY), 0.1);
        // The last working stack of the region stays.
        for _ in 0..100 {
            stacks.turn_ended(stack(0), false, others(), Moment(0), &POLICY);
        }
        assert_eq!(fails(&mut stacks, 1, 300), None);

        // All stacks of the region fail.
        let mut stacks = world(6);
        for n in [0, 1].repeat(100) {
            assert_eq!(fails(&mut stacks, n, 1), None);
        }
    }

    #[test]
    fn what_is_busy_far_or_failing_costs_more() {
        let mut stacks = world(2);
        let now = Moment(1_000_000);
        stacks.reached(stack(0), 5.0, now);
        let cost = |stacks: &Stacks| stacks.get(stack(0)).unwrap().cost(0.0, now, &POLICY);
        assert_eq!(cost(&stacks), 5_000);
        stacks.began(stack(0));
        assert_eq!(cost(&stacks), 10_000);
        let load = Load {
            sessions: 1,
            sessions_max: 100,
            waiting: 2,
            waiting_max: 32,
            ..Load::default()
        };
        stacks.loaded(stack(0), load, now);
        assert_eq!(cost(&stacks), 30_000);
        stacks.failed(stack(0), now, &POLICY);
        assert_eq!(cost(&stacks), 6_000_000);
        assert_eq!(
            stacks.get(stack(0)).unwrap().cost(20_000.0, now, &POLICY),
            120_000_000,
            "no round trip is shorter than light takes"
        );
    }

    #[test]
    fn a_report_of_load_grows_old() {
        let mut stacks = world(1);
        let full = Load {
            sessions: 95,
            sessions_max: 100,
            waiting: 0,
            waiting_max: 32,
            ..Load::default()
        };
        stacks.loaded(stack(0), full, Moment(0));
        let is_full = |ms| stacks.get(stack(0)).unwrap().is_full(Moment(ms), &POLICY);
        assert!(is_full(30_000));
        assert!(!is_full(30_001));
    }

    #[test]
    fn a_stack_that_left_the_plan_is_remembered_while_sessions_run_there() {
        let mut stacks = world(1);
        stacks.began(stack(9));
        stacks.retain(&BTreeSet::new());
        assert_eq!(stacks.get(stack(9)).unwrap().in_flight(), 1);
        stacks.ended(stack(9));
        stacks.retain(&BTreeSet::new());
        assert!(stacks.get(stack(9)).is_none());
    }
}
