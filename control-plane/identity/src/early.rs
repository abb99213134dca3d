//! The time before the end of a certificate at which a connection ends in order.
//!
//! A connection outlives the renewal of its certificates, and ends with those of its handshake. A fleet that started together has
//! certificates that end together: without this, all its streams would break and all its nodes connect again in one second.

use std::time::Duration;

use crate::{Peer, PeerId};

/// The connections of a fleet end within this part of a certificate's life, at its end. By then it was due for renewal for long.
const PART: u32 = 10;

/// The time before the end of the peer's certificate at which a connection ends that begins with `left` of it: different for each pair of names,
/// and the same at both ends' clocks and after a restart. A peer that shows the same certificate again keeps its connection to the end.
pub(crate) fn early(own: &PeerId, peer: &Peer, left: Duration) -> Duration {
    let life = Duration::from_millis(peer.until.0.saturating_sub(peer.from.0));
    let early = (life / PART).mul_f64(share(own, &peer.id));
    if left > early { early } else { Duration::ZERO }
}

/// A number in 0..1 that depends on both names alone (FNV-1a, then splitmix64).
fn share(own: &PeerId, peer: &PeerId) -> f64 {
    let text = format!("{own} {peer}");
    let mut z = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    // 53 bits are what a double holds exactly.
    ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use topology::Moment;

    use super::*;
    use crate::Role;

    const DAY: Duration = Duration::from_secs(86_400);

    fn id(role: Role) -> PeerId {
        PeerId::new("voice.example", role).unwrap()
    }

    fn peer(role: Role) -> Peer {
        Peer {
            id: id(role),
            grants: Vec::new(),
            serial: String::new(),
            from: Moment(0),
            until: Moment(0) + DAY,
            root: String::new(),
        }
    }

    #[test]
    fn the_streams_of_a_fleet_end_one_by_one_at_either_end() {
        let control_plane = Role::ControlPlane("cp-1".to_owned());
        let edge = |number| Role::Edge(format!("edge-{number}"));
        let at_edges: Vec<Duration> = (0..1_000)
            .map(|number| early(&id(edge(number)), &peer(control_plane.clone()), DAY))
            .collect();
        let at_control_plane: Vec<Duration> = (0..1_000)
            .map(|number| early(&id(control_plane.clone()), &peer(edge(number)), DAY))
            .collect();
        for all in [at_edges, at_control_plane] {
            assert!(
                all.iter().all(|early| *early < DAY / 10),
                "the tenth of a life that is its last"
            );
            let mut seconds: BTreeMap<u64, usize> = BTreeMap::new();
            all.iter()
                .for_each(|early| *seconds.entry(early.as_secs()).or_default() += 1);
            let most = seconds.values().max().unwrap();
            assert!(*most <= 4, "{most} of a thousand in one second of 8,640");
        }
    }

    #[test]
    fn a_certificate_that_was_not_renewed_is_used_to_its_end() {
        let (own, peer) = (
            id(Role::Edge("edge-1".to_owned())),
            peer(Role::ControlPlane("cp-1".to_owned())),
        );
        let first = early(&own, &peer, DAY);
        assert!(first > Duration::ZERO);
        // It connects again with the same certificate.
        assert_eq!(early(&own, &peer, first), Duration::ZERO);
    }
}
