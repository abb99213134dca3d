//! Session tokens: "the memory of this session is at that stack of that region", signed. Every edge can bring a device
//! that lost its connection back to its session, and no device can choose its region.
//!
//! `sess_<name>.<region>.<stack>.<issued_ms>.<hex HMAC-SHA256, half>`. A device gets the token as the id of its
//! session, in `session.created`, and sends it as `?resume=`. The part before the first dot is the session's own name,
//! which stays the same in every region. Anybody who knows the name can resume the session, so the name is random. The
//! address of the stack is hashed with the key, so that devices learn nothing about the network behind an edge.

use std::{net::SocketAddr, time::Duration};

use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use topology::{Moment, RegionId};

use crate::{
    affinity::{Key, SKEW_MAX},
    pick::hash,
    table::Table,
    texts,
};

/// The beginning of every session name, as in the OpenAI API.
pub const PREFIX: &str = "sess_";
/// Random bytes in a name: too many to guess.
const NAME_BYTES: usize = 16;
/// Length of a stack's hash, in bytes: enough to tell the stacks of one region apart.
const STACK_BYTES: usize = 4;
/// Half of the code is as hard to forge as the name is to guess (RFC 2104 §5).
const MAC_BYTES: usize = 16;
/// Longest token, in bytes.
pub const TOKEN_BYTES_MAX: usize =
    PREFIX.len() + 2 * NAME_BYTES + 1 + 63 + 1 + 2 * STACK_BYTES + 1 + 20 + 1 + 2 * MAC_BYTES;

/// The reason for which a text is not a valid session token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The text is the bare id of a session, as stacks give it without an edge.
    #[error("{}", texts::NOT_SESSION)]
    Bare,
    /// The token is not signed with this key.
    #[error("{}", texts::SESSION_FORGED)]
    Forged,
    /// The token is too old, or its time lies in the future.
    #[error("{}", texts::SESSION_OLD)]
    OutOfDate,
}

/// The content of a valid token.
#[derive(Clone)]
pub struct Token {
    /// The session's own name.
    pub name: String,
    /// The region with the memory of the session.
    pub region: RegionId,
    /// Issue time of the token.
    pub issued_at: Moment,
    stack: String,
    key: Hmac<Sha256>,
}

impl Token {
    /// Whether the memory of the session is at this stack.
    pub fn is_at(&self, stack: SocketAddr) -> bool {
        hashed(&self.key, stack) == self.stack
    }
}

impl std::fmt::Debug for Token {
    /// Leaves the name out: anybody who knows it can resume the session, and this text may be logged.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token")
            .field("region", &self.region)
            .field("issued_at", &self.issued_at)
            .finish_non_exhaustive()
    }
}

/// The name of a new session, from 16 random bytes.
pub fn name(random: [u8; NAME_BYTES]) -> String {
    format!("{PREFIX}{}", hex::encode(random))
}

impl Key {
    /// A token that brings the device of the session `name` back to its stack. It is worth nothing to anybody but its `owner`; an
    /// empty one is everybody who has the token.
    pub fn issue_session(&self, name: &str, owner: &str, region: &RegionId, stack: SocketAddr, now: Moment) -> String {
        let claim = format!("{name}.{region}.{}.{}", hashed(&self.signs, stack), now.0);
        let mac = code(&self.signs, owner, &claim).finalize().into_bytes();
        format!("{claim}.{}", hex::encode(&mac[..MAC_BYTES]))
    }

    /// Verifies a token that `owner` sent. It must be signed with this key for that owner, and at most `age_max` old.
    pub fn verify_session(
        &self,
        token: &str,
        owner: &str,
        now: Moment,
        age_max: Duration,
    ) -> Result<Token, TokenError> {
        let (claim, mac) = token.rsplit_once('.').ok_or(TokenError::Bare)?;
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::Forged);
        }
        let mac = hex::decode(mac).map_err(|_| TokenError::Forged)?;
        if mac.len() != MAC_BYTES {
            return Err(TokenError::Forged);
        }
        // The comparison takes the same time wherever the first difference is.
        let signed = |key: &&Hmac<Sha256>| code(key, owner, claim).verify_truncated_left(&mac).is_ok();
        let mut keys = std::iter::once(&self.signs).chain(&self.also_verifies);
        let key = keys.find(signed).ok_or(TokenError::Forged)?;
        // The signature proves that an edge of this deployment wrote the text, possibly in another version.
        let mut parts = claim.split('.');
        let (Some(name), Some(region), Some(stack), Some(issued_ms), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError::Forged);
        };
        let region = RegionId::new(region).map_err(|_| TokenError::Forged)?;
        let issued_at = Moment(issued_ms.parse().map_err(|_| TokenError::Forged)?);
        if now.since(issued_at) > age_max || issued_at.since(now) > SKEW_MAX {
            return Err(TokenError::OutOfDate);
        }
        Ok(Token {
            name: name.to_owned(),
            region,
            issued_at,
            stack: stack.to_owned(),
            key: key.clone(),
        })
    }
}

/// The place of a session: whose it is by the plan, and the stack that has it.
#[derive(Debug, Clone, Copy)]
pub struct Whereabouts<'t> {
    /// The home of its device.
    pub home: &'t RegionId,
    /// The region of its stack.
    pub region: &'t RegionId,
    /// The stack.
    pub stack: SocketAddr,
}

/// The stacks that keep copies of a session: another one of its region, and one of the first other region that may serve its home.
/// All edges choose the same ones while they see the same stacks, so that a later copy takes the place of an earlier one.
/// `is_out`: whether this edge takes a stack for lost.
pub fn keepers_of_copies<'t>(
    table: &'t Table,
    session: &str,
    at: Whereabouts<'t>,
    is_out: impl Fn(&RegionId, SocketAddr) -> bool,
) -> Vec<(&'t RegionId, SocketAddr)> {
    let keeper = |region: &'t RegionId| {
        let stacks = table.stacks_of(region).iter().map(|stack| stack.address);
        let there = stacks.filter(|stack| *stack != at.stack && !is_out(region, *stack));
        let chosen = there.max_by_key(|stack| hash(session, &stack.to_string()))?;
        Some((region, chosen))
    };
    let mut others = table.may_serve(at.home).filter(|region| *region != at.region);
    let elsewhere = others.find_map(keeper);
    keeper(at.region).into_iter().chain(elsewhere).collect()
}

/// Prefixed, so that no session token can pass as an affinity token, which the same key signs.
fn code(key: &Hmac<Sha256>, owner: &str, claim: &str) -> Hmac<Sha256> {
    let keyed = key.clone().chain_update(b"session\0").chain_update(claim.as_bytes());
    match owner {
        "" => keyed,
        owner => keyed.chain_update(b"\0").chain_update(owner.as_bytes()),
    }
}

fn hashed(key: &Hmac<Sha256>, stack: SocketAddr) -> String {
    let hash = key.clone().chain_update(b"stack\0").chain_update(stack.to_string());
    hex::encode(&hash.finalize().into_bytes()[..STACK_BYTES])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use topology::EdgeId;

    const MONTH: Duration = Duration::from_secs(30 * 86_400);
    const NOW: Moment = Moment(1_795_257_300_000);

    fn key(byte: u8) -> Key {
        Key::new(&[byte; 32]).ok().unwrap()
    }

    fn stack(port: u16) -> SocketAddr {
        SocketAddr::new([10, 0, 0, 7].into(), port)
    }

    fn issue(key: &Key) -> String {
        key.issue_session(&name([7; 16]), "", &RegionId::new("us-east").unwrap(), stack(1), NOW)
    }

    #[test]
    fn a_token_leads_back_to_its_stack_until_it_is_old() {
        let token = issue(&key(1));
        let read = key(1).verify_session(&token, "", NOW + MONTH, MONTH).unwrap();
        assert_eq!((read.name.as_str(), read.region.as_str()), (&*name([7; 16]), "us-east"));
        assert!(read.is_at(stack(1)) && !read.is_at(stack(2)));
        assert!(token.len() <= TOKEN_BYTES_MAX && token.starts_with(&read.name));
        assert!(!token.contains("10.0.0.7"), "{token}");
        let verify = |now| key(1).verify_session(&token, "", now, MONTH).map(|read| read.region);
        let late = NOW + MONTH + Duration::from_millis(1);
        assert_eq!(verify(late).unwrap_err(), TokenError::OutOfDate);
        assert_eq!(verify(Moment(0)).unwrap_err(), TokenError::OutOfDate, "from the future");
    }

    #[test]
    fn all_edges_give_the_copies_of_a_session_to_the_same_stacks_here_and_in_the_next_region() {
        let mut snapshot = topology::fixtures::three_primaries();
        let [region, next] = ["eu-west", "eu-central"].map(|region| RegionId::new(region).unwrap());
        let mut stacks = |region: &RegionId, ports: std::ops::Range<u16>| {
            let known = snapshot.topology.regions.get_mut(region).unwrap();
            known.stacks = ports.map(|port| stack(port).into()).collect();
        };
        stacks(&region, 1..5);
        stacks(&next, 11..14);
        let compiled = |snapshot: &topology::Snapshot, edge| Table::compile(snapshot, &EdgeId::new(edge).unwrap());
        let [here, there] = ["edge-1", "edge-2"].map(|edge| compiled(&snapshot, edge));
        let keepers = |table: &Table, n: u8, at: u16, lost: &[u16]| {
            let at = Whereabouts {
                home: &region,
                region: if at < 10 { &region } else { &next },
                stack: stack(at),
            };
            let lost = |_: &RegionId, at: SocketAddr| lost.contains(&at.port());
            let chosen = keepers_of_copies(table, &name([n; 16]), at, lost);
            chosen.iter().map(|(_, at)| at.port()).collect::<Vec<_>>()
        };
        let mut all = std::collections::BTreeSet::new();
        for n in 0..50 {
            let chosen = keepers(&here, n, 1, &[]);
            assert_eq!(keepers(&there, n, 1, &[]), chosen);
            assert!((2..5).contains(&chosen[0]), "the session is at 1");
            assert!((11..14).contains(&chosen[1]), "all of the region may be lost");
            assert!(!keepers(&here, n, 1, &[3, 12]).iter().any(|port| [3, 12].contains(port)));
            all.extend(chosen);
        }
        assert_eq!(all.len(), 6);
        assert!(
            (1..5).contains(&keepers(&here, 0, 11, &[])[1]),
            "a session that is away has a copy at home"
        );
        assert_eq!(keepers(&here, 0, 1, &[2, 3, 4]).len(), 1, "no other stack is up there");
        let us_west = 9004;
        assert_eq!(keepers(&here, 0, 1, &[2, 3, 4, 11, 12, 13]), [us_west]);
        let none = keepers(&here, 0, 1, &[2, 3, 4, 11, 12, 13, us_west]);
        assert_eq!(none, Vec::<u16>::new());
        let planned = snapshot.plan.regions.get_mut(&next).unwrap();
        planned.state = topology::RegionState::Evacuated;
        let chosen = keepers(&compiled(&snapshot, "edge-1"), 0, 1, &[]);
        assert_eq!(chosen[1], us_west, "an evacuated region takes nobody");
    }

    #[test]
    fn only_edges_write_tokens_and_every_byte_counts() {
        let token = issue(&key(1));
        let verify = |key: &Key, token: &str| key.verify_session(token, "", NOW, MONTH).map(|read| read.region);
        assert_eq!(verify(&key(2), &token).unwrap_err(), TokenError::Forged);
        for at in 0..token.len() {
            let mut changed = token.clone().into_bytes();
            changed[at] ^= 1;
            if let Ok(changed) = String::from_utf8(changed) {
                assert!(verify(&key(1), &changed).is_err(), "{changed}");
            }
            assert!(verify(&key(1), &token[..at]).is_err());
        }
        assert_eq!(verify(&key(1), &name([7; 16])).unwrap_err(), TokenError::Bare);
        // An affinity token names no session.
        let affinity = key(1).issue(&RegionId::new("us-east").unwrap(), NOW);
        assert_eq!(verify(&key(1), &affinity).unwrap_err(), TokenError::Forged);
    }

    #[test]
    fn a_key_is_exchanged_while_sessions_last() {
        let both = |first, second: u8| key(first).also_accepting(&[second; 32]).ok().unwrap();
        for (issuer, verifier) in [
            (key(1), both(1, 2)),
            (both(1, 2), key(1)),
            (both(2, 1), both(1, 2)),
            (both(1, 2), both(2, 1)),
            (key(2), both(2, 1)),
        ] {
            let read = verifier.verify_session(&issue(&issuer), "", NOW, MONTH).unwrap();
            assert!(read.is_at(stack(1)), "its stack is found with the key that signed");
        }
    }

    proptest! {
        #[test]
        fn nonsense_is_refused_and_never_panics(token in "\\PC{0,200}") {
            prop_assert!(key(1).verify_session(&token, "", NOW, MONTH).is_err());
        }
    }
}
