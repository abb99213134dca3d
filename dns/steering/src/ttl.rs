//! The time for which resolvers may cache an answer. A lost edge is named until the plan leaves it out and the last cache
//! forgets it, so the TTL is a part of the bound that we promise, and it is shorter while a change is likely.

use std::time::Duration;

use topology::{EdgeState, Moment, Plan, Topology};

use crate::{draw::client_hash, prefix::Key};

/// Longest TTL while nothing changes, in seconds, also if the policy allows more: the bound for a lost edge rests on it.
pub const STEADY_MAX_S: u32 = 30;
/// TTLs while a change is likely, in seconds.
const CHANGING_S: (u32, u32) = (5, 7);
/// Time after a plan for which another one is likely. A fault that moves one part often moves the next.
pub const CALM_AFTER: Duration = Duration::from_secs(120);
/// Time from a decision to the answers of every name server. A plan reaches a thousand nodes within a second.
pub const PUBLISH: Duration = Duration::from_secs(1);

/// Whether answers are likely to change soon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Every edge serves, and there was no plan for [`CALM_AFTER`].
    Steady,
    /// An edge is out or on its way back, or a plan is recent.
    Changing,
}

impl Pace {
    /// The pace at `now` of a plan that came at `came_at`, and when it may change without a new plan.
    pub fn of(plan: &Plan, topology: &Topology, came_at: Moment, now: Moment) -> (Self, Option<Moment>) {
        let edges = &plan.edges;
        let all_serve = topology
            .edges
            .keys()
            .all(|edge| edges.get(edge) == Some(&EdgeState::Serving));
        let calm_at = came_at + CALM_AFTER;
        match (all_serve, now >= calm_at) {
            (true, true) => (Self::Steady, None),
            (true, false) => (Self::Changing, Some(calm_at)),
            // Its return is the change that is likely, and it comes with a plan.
            (false, _) => (Self::Changing, None),
        }
    }

    /// The pace in words for labels and pages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Changing => "changing",
        }
    }
}

/// The TTLs of answers for the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ttl {
    /// The shortest, in seconds.
    pub low_s: u32,
    /// The longest, in seconds.
    pub high_s: u32,
}

impl Ttl {
    /// The TTLs for a policy's TTL.
    pub fn of(policy_s: u32, pace: Pace) -> Self {
        let steady = policy_s.clamp(1, STEADY_MAX_S);
        match pace {
            Pace::Steady => Self {
                low_s: steady - steady / 5,
                high_s: steady,
            },
            Pace::Changing => Self {
                low_s: steady.min(CHANGING_S.0),
                high_s: steady.min(CHANGING_S.1),
            },
        }
    }

    /// The TTL of one client: always the same one, so that caches behind one resolver agree, and another one for its
    /// neighbours, so that they do not all ask again in the same second.
    pub(crate) fn for_client(self, client: Key) -> u32 {
        let span = u64::from(self.high_s - self.low_s) + 1;
        self.low_s + (client_hash(client) % span) as u32
    }
}

/// Longest time for which some answer still names an edge after its death: until it counts as lost, until the decision
/// in the next tick, until name servers have the plan, and until the last cache forgets the old answer.
pub fn lost_edge_bound(lost_after: Duration, tick: Duration, ttl: Ttl) -> Duration {
    lost_after + tick + PUBLISH + Duration::from_secs(ttl.high_s.into())
}

#[cfg(test)]
mod tests {
    use topology::{EdgeId, fixtures::three_primaries};

    use super::*;

    #[test]
    fn a_ttl_is_short_while_a_change_is_likely() {
        let mut snapshot = three_primaries();
        let came_at = Moment(1_000_000);
        let after = |seconds| came_at + Duration::from_secs(seconds);
        assert_eq!(
            Pace::of(&snapshot.plan, &snapshot.topology, came_at, after(0)),
            (Pace::Changing, Some(after(120)))
        );
        assert_eq!(
            Pace::of(&snapshot.plan, &snapshot.topology, came_at, after(120)),
            (Pace::Steady, None)
        );
        let dublin = EdgeId::new("edge-dub").unwrap();
        snapshot.plan.edges.insert(dublin, EdgeState::Drained);
        assert_eq!(
            Pace::of(&snapshot.plan, &snapshot.topology, came_at, after(9999)),
            (Pace::Changing, None)
        );
    }

    #[test]
    fn ttls_keep_the_bound_and_differ_between_clients() {
        for (policy_s, pace, low_s, high_s) in [
            (15, Pace::Steady, 12, 15),
            (3600, Pace::Steady, 24, 30),
            (1, Pace::Steady, 1, 1),
            (15, Pace::Changing, 5, 7),
            (6, Pace::Changing, 5, 6),
            (2, Pace::Changing, 2, 2),
        ] {
            let ttl = Ttl::of(policy_s, pace);
            assert_eq!((ttl.low_s, ttl.high_s), (low_s, high_s), "{policy_s} {pace:?}");
            let key = |number: u32| Key::of(std::net::Ipv4Addr::from_bits(number << 8).into());
            let given: std::collections::BTreeSet<u32> = (0..500).map(|number| ttl.for_client(key(number))).collect();
            assert_eq!(given, (low_s..=high_s).collect());
        }
        let bound = lost_edge_bound(
            Duration::from_secs(30),
            Duration::from_secs(10),
            Ttl::of(15, Pace::Steady),
        );
        assert_eq!(bound, Duration::from_secs(56));
    }
}
