//! Affinity tokens: "this session was in that region", signed, so that a device cannot choose its region.
//!
//! `v2.<region>.<issued_ms>.<holder>.<hex HMAC-SHA256>`. Any edge with the same key verifies a token without a lookup.
//! An edge ignores a token that does not verify; it never fails a request because of one. Any valid token steers a
//! device to its region. Only the holder of a session's token is admitted before other devices: see [`Proof`].

use std::time::Duration;

use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use topology::{Moment, RegionId};

use crate::texts;

/// Shortest key, in bytes: the output length of the hash (RFC 2104 §3).
pub const KEY_BYTES_MIN: usize = 32;
/// Length of the holder's hash in a token, in bytes: too long for anybody to find another holder with the same hash.
const HOLDER_BYTES: usize = 8;
/// Longest token, in bytes: version, region (63), a 20-digit number, the holder, 64 hex digits, and dots.
pub const TOKEN_BYTES_MAX: usize = 2 + 1 + 63 + 1 + 20 + 1 + 2 * HOLDER_BYTES + 1 + 64;
/// Greatest time by which the issue of a token may lie in the future. The clocks of edges differ by less than this.
pub(crate) const SKEW_MAX: Duration = Duration::from_secs(300);

/// The secret that all edges share and, during a change of keys, a second one. The first signs; both verify. The type
/// has no `Debug`, so that the secret cannot slip into a log.
#[derive(Clone)]
pub struct Key {
    pub(crate) signs: Hmac<Sha256>,
    pub(crate) also_verifies: Option<Hmac<Sha256>>,
}

/// The content of a valid token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Affinity {
    /// The region in which the session was.
    pub region: RegionId,
    /// Issue time of the token.
    pub issued_at: Moment,
    /// The proof that the token gives about the requester.
    pub proof: Proof,
}

/// The proof that a token gives about the requester.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// A requester got an answer from the region, or another holder had a session there. The token steers the requester
    /// to the region and gives no precedence.
    Steers,
    /// The requester had a session in the region.
    HadSession,
    /// The session is in the region now. An edge knows this itself; no token proves it.
    IsThere,
    /// A stack of the region remembers the session of a device that returns, by a session token. The session is fetched
    /// from there even if the region is evacuated, and leaves again at once.
    Remembers,
}

/// The reason for which an edge does not accept a token or a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AffinityError {
    /// The key is short enough to guess.
    #[error("{}", texts::key_too_short(KEY_BYTES_MIN))]
    ShortKey,
    /// The text does not have the form of a token.
    #[error("{}", texts::NOT_AFFINITY)]
    Malformed,
    /// The token is not signed with this key.
    #[error("{}", texts::AFFINITY_FORGED)]
    Forged,
    /// The token is too old, or its time lies in the future.
    #[error("{}", texts::AFFINITY_OLD)]
    OutOfDate,
}

impl Key {
    /// Makes a key from the bytes of the secret, at least [`KEY_BYTES_MIN`].
    pub fn new(secret: &[u8]) -> Result<Self, AffinityError> {
        let signs = hmac(secret)?;
        let also_verifies = None;
        Ok(Self { signs, also_verifies })
    }

    /// Accepts tokens of this second secret too.
    pub fn also_accepting(self, secret: &[u8]) -> Result<Self, AffinityError> {
        let also_verifies = Some(hmac(secret)?);
        Ok(Self { also_verifies, ..self })
    }

    /// A token for a requester that got an answer from `region`.
    pub fn issue(&self, region: &RegionId, now: Moment) -> String {
        self.sign(&format!("v2.{region}.{}.", now.0))
    }

    /// A token for the holder of a session in `region`. `holder` is everything that the edge knows about the requester;
    /// the token contains only a hash of it.
    pub fn issue_to(&self, holder: &str, region: &RegionId, now: Moment) -> String {
        let holder = self.holder(&self.signs, holder);
        self.sign(&format!("v2.{region}.{}.{holder}", now.0))
    }

    fn sign(&self, claim: &str) -> String {
        let mac = self
            .signs
            .clone()
            .chain_update(claim.as_bytes())
            .finalize()
            .into_bytes();
        format!("{claim}.{}", hex::encode(mac))
    }

    /// A hash with the key in it, so that nobody without the key can find the holder by trial.
    fn holder(&self, key: &Hmac<Sha256>, holder: &str) -> String {
        let keyed = key.clone().chain_update(b"holder\0").chain_update(holder.as_bytes());
        hex::encode(&keyed.finalize().into_bytes()[..HOLDER_BYTES])
    }

    /// Verifies a token that `holder` sent. The token must be signed with this key and at most `age_max` old.
    pub fn verify(
        &self,
        token: &str,
        holder: Option<&str>,
        now: Moment,
        age_max: Duration,
    ) -> Result<Affinity, AffinityError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(AffinityError::Malformed);
        }
        let (claim, mac) = token.rsplit_once('.').ok_or(AffinityError::Malformed)?;
        let mac = hex::decode(mac).map_err(|_| AffinityError::Malformed)?;
        // The comparison takes the same time wherever the first difference is.
        let signed = |key: &&Hmac<Sha256>| (*key).clone().chain_update(claim.as_bytes()).verify_slice(&mac).is_ok();
        let mut keys = std::iter::once(&self.signs).chain(&self.also_verifies);
        let key = keys.find(signed).ok_or(AffinityError::Forged)?;
        // The signature proves that an edge of this deployment wrote the text, possibly in another version.
        let mut parts = claim.split('.');
        let (Some(version), Some(region), Some(issued_ms), issued_to, None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(AffinityError::Malformed);
        };
        let issued_to = match (version, issued_to) {
            // From an older edge, whose tokens have no holder.
            ("v1", None) => "",
            ("v2", Some(issued_to)) => issued_to,
            _ => return Err(AffinityError::Malformed),
        };
        let region = RegionId::new(region).map_err(|_| AffinityError::Malformed)?;
        let issued_at = Moment(issued_ms.parse().map_err(|_| AffinityError::Malformed)?);
        if now.since(issued_at) > age_max || issued_at.since(now) > SKEW_MAX {
            return Err(AffinityError::OutOfDate);
        }
        let is_holder = holder.is_some_and(|holder| self.holder(key, holder) == issued_to);
        Ok(Affinity {
            region,
            issued_at,
            proof: if is_holder { Proof::HadSession } else { Proof::Steers },
        })
    }
}

fn hmac(secret: &[u8]) -> Result<Hmac<Sha256>, AffinityError> {
    if secret.len() < KEY_BYTES_MIN {
        return Err(AffinityError::ShortKey);
    }
    Hmac::new_from_slice(secret).map_err(|_| AffinityError::ShortKey)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn key(byte: u8) -> Key {
        Key::new(&[byte; 32]).ok().unwrap()
    }

    #[test]
    fn a_token_says_where_a_session_was_until_it_is_old() {
        let us_east = RegionId::new("us-east").unwrap();
        let issued_at = Moment(1_000_000_000);
        let token = key(1).issue(&us_east, issued_at);
        let verify = |now| key(1).verify(&token, Some("anna"), now, DAY);
        let affinity = Affinity {
            region: us_east,
            issued_at,
            proof: Proof::Steers,
        };
        assert_eq!(verify(issued_at + DAY), Ok(affinity), "whoever has it");
        assert_eq!(
            verify(issued_at + DAY + Duration::from_millis(1)),
            Err(AffinityError::OutOfDate)
        );
        assert_eq!(verify(Moment(0)), Err(AffinityError::OutOfDate), "from the future");
    }

    #[test]
    fn only_holders_of_the_key_can_write_one() {
        let token = key(1).issue(&RegionId::new("us-east").unwrap(), Moment(5));
        assert_eq!(key(2).verify(&token, None, Moment(5), DAY), Err(AffinityError::Forged));
        let elsewhere = token.replace("us-east", "eu-west");
        assert_eq!(
            key(1).verify(&elsewhere, None, Moment(5), DAY),
            Err(AffinityError::Forged)
        );
        assert_eq!(Key::new(&[0; 31]).err(), Some(AffinityError::ShortKey));
    }

    /// Regression: a token from `GET /health`, and a token of another holder, were admitted before those who had a
    /// session.
    #[test]
    fn only_the_holder_of_a_session_is_let_in_before_others() {
        let us_east = RegionId::new("us-east").unwrap();
        let token = key(1).issue_to("anna", &us_east, Moment(5));
        let proof = |token: &str, holder| key(1).verify(token, holder, Moment(5), DAY).map(|it| it.proof);
        assert_eq!(proof(&token, Some("anna")), Ok(Proof::HadSession));
        assert_eq!(proof(&token, Some("eve")), Ok(Proof::Steers));
        assert_eq!(proof(&token, None), Ok(Proof::Steers));
        assert!(!token.contains("anna"));
        assert_eq!(proof(&key(1).issue(&us_east, Moment(5)), Some("")), Ok(Proof::Steers));
        // From an edge of the version before.
        let old = key(1).sign("v1.us-east.5");
        assert_eq!(proof(&old, Some("anna")), Ok(Proof::Steers));
        assert!(token.len() <= TOKEN_BYTES_MAX && old.len() <= TOKEN_BYTES_MAX);
    }

    /// During a change of keys, edges with the old key, with both, and with the new one run side by side.
    #[test]
    fn a_key_is_exchanged_without_forgetting_anybody() {
        let us_east = RegionId::new("us-east").unwrap();
        let secret = |byte| [byte; 32];
        let (old, new) = (key(1), key(2));
        let both = |first, second| key(first).also_accepting(&secret(second)).ok().unwrap();
        for (issuer, verifier) in [
            // Every edge first gets the new key as its second one. Then the new key signs and the old one is second.
            // Then the old one goes.
            (&old, &both(1, 2)),
            (&both(1, 2), &old),
            (&both(1, 2), &both(2, 1)),
            (&both(2, 1), &both(1, 2)),
            (&both(2, 1), &new),
            (&new, &both(2, 1)),
        ] {
            let token = issuer.issue_to("anna", &us_east, Moment(5));
            let proof = verifier.verify(&token, Some("anna"), Moment(5), DAY).map(|it| it.proof);
            assert_eq!(proof, Ok(Proof::HadSession));
        }
        assert!(key(1).also_accepting(&[0; 31]).is_err());
    }

    proptest! {
        #[test]
        fn nonsense_is_refused_and_never_panics(token in "\\PC{0,200}") {
            prop_assert!(key(1).verify(&token, None, Moment(5), DAY).is_err());
        }
    }
}
