//! What one edge knows of the stacks: round trips, failures, load, and what it has running there.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use topology::{Moment, words::Load};

use crate::{
    Policy,
    eject::{Ejection, Record},
    latency::PeakEwma,
};

/// Differences below a millisecond are noise of one room, not a reason to prefer a stack.
const ROUND_TRIP_MS_MIN: f64 = 1.0;
/// A failure costs as much as a round trip this long, the time a connection is waited for: or a dead stack, which never has
/// anything running, would look like the one with the most room.
const FAILURE_MS: f64 = 1_000.0;

/// What one edge knows of one stack.
#[derive(Debug, Clone, Default)]
pub struct Stack {
    rtt: Option<PeakEwma>,
    in_flight: u32,
    load: Option<(Load, Moment)>,
    record: Record,
}

/// What one edge knows of all stacks. One that was never seen is taken for a good one.
#[derive(Debug, Clone, Default)]
pub struct Stacks {
    known: BTreeMap<SocketAddr, Stack>,
    /// How many there are, known or not.
    count: usize,
}

impl Stack {
    /// Its ejections and its return.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Smoothed round trip in milliseconds, once there was one.
    pub fn rtt_ms(&self, now: Moment) -> Option<f64> {
        self.rtt.map(|rtt| rtt.faded_ms(now))
    }

    /// Sessions and requests this edge has there.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// What it last said of its load, unless that is too old to count.
    pub fn load(&self, now: Moment, policy: &Policy) -> Option<Load> {
        let (load, at) = self.load?;
        (now.since(at) <= policy.load_age_max).then_some(load)
    }

    /// Whether it said that it is full.
    pub fn is_full(&self, now: Moment, policy: &Policy) -> bool {
        self.load(now, policy)
            .is_some_and(|load| load.is_full(policy.full_percent))
    }

    /// What it costs to send a session there: the round trip, but no less than `floor_ms`, times what this edge has there,
    /// times what waits for its speech engines; in microseconds. The product needs no weights between its parts, and every
    /// session that follows a low cost raises it.
    pub fn cost(&self, floor_ms: f64, now: Moment, policy: &Policy) -> u64 {
        let rtt_ms = self.rtt_ms(now).unwrap_or(0.0).max(floor_ms).max(ROUND_TRIP_MS_MIN);
        let waiting = self.load(now, policy).map_or(0, |load| load.waiting);
        // As a float it saturates.
        (rtt_ms * 1000.0 * (f64::from(self.in_flight) + 1.0) * (f64::from(waiting) + 1.0)) as u64
    }
}

impl Stacks {
    /// What is known of a stack.
    pub fn get(&self, stack: SocketAddr) -> Option<&Stack> {
        self.known.get(&stack)
    }

    /// All of which anything is known.
    pub fn iter(&self) -> impl Iterator<Item = (SocketAddr, &Stack)> {
        self.known.iter().map(|(address, stack)| (*address, stack))
    }

    /// Whether to stay away from a stack.
    pub fn is_ejected(&self, stack: SocketAddr, now: Moment) -> bool {
        self.get(stack).is_some_and(|stack| stack.record.is_ejected(now))
    }

    fn at(&mut self, stack: SocketAddr) -> &mut Stack {
        self.known.entry(stack).or_default()
    }

    /// It accepted a connection after `ms`.
    pub fn reached(&mut self, stack: SocketAddr, ms: f64, now: Moment) {
        let rtt = self.at(stack).rtt.get_or_insert(PeakEwma::new(ms, now));
        rtt.observe(ms, now);
    }

    /// It took a session or a request.
    pub fn succeeded(&mut self, stack: SocketAddr, now: Moment, policy: &Policy) {
        self.at(stack).record.succeed(now, policy);
    }

    /// It took neither, or lost what it had taken.
    pub fn failed(&mut self, stack: SocketAddr, now: Moment, policy: &Policy) -> Option<Ejection> {
        self.reached(stack, FAILURE_MS, now);
        let others = |(address, known): &(SocketAddr, &Stack)| *address != stack && known.record.is_ejected(now);
        let ejected = self.iter().filter(others).count();
        let may_eject_ill = ejected == 0 || (ejected + 1) * 100 <= self.count * usize::from(policy.ejected_percent_max);
        self.at(stack).record.fail(now, policy, may_eject_ill)
    }

    /// It said how loaded it is.
    pub fn loaded(&mut self, stack: SocketAddr, load: Load, now: Moment) {
        self.at(stack).load = Some((load, now));
    }

    /// A session or request of this edge begins there.
    pub fn began(&mut self, stack: SocketAddr) {
        let stack = self.at(stack);
        stack.in_flight = stack.in_flight.saturating_add(1);
    }

    /// It is over.
    pub fn ended(&mut self, stack: SocketAddr) {
        if let Some(stack) = self.known.get_mut(&stack) {
            stack.in_flight = stack.in_flight.saturating_sub(1);
        }
    }

    /// Forgets stacks that are no more, so that what is kept is bounded by the plan and what still runs.
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
        // Of six, 30 % is one; the second would be too many, the gone ones are counted too.
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
