//! Affinity tokens: "this session was in that region", signed so that a device cannot choose its region.
//!
//! `v1.<region>.<issued_ms>.<hex HMAC-SHA256>`. Any edge with the same key verifies a token without a lookup; a token that
//! does not verify is ignored, never an error for the device.

use std::time::Duration;

use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use topology::{Moment, RegionId};

/// Shortest key accepted, in bytes: the output length of the hash (RFC 2104 §3).
pub const KEY_BYTES_MIN: usize = 32;
/// Longest token looked at, in bytes: version, region (63), a 20-digit number, 64 hex digits and dots.
pub const TOKEN_BYTES_MAX: usize = 2 + 1 + 63 + 1 + 20 + 1 + 64;
/// How far in the future a token may be issued: clocks of edges differ, but not by more.
const SKEW_MAX: Duration = Duration::from_secs(300);

/// The secret all edges share. It has no `Debug`, so it cannot slip into a log.
#[derive(Clone)]
pub struct Key(Hmac<Sha256>);

/// What a valid token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Affinity {
    /// Where the session was.
    pub region: RegionId,
    /// When an edge said so.
    pub issued_at: Moment,
}

/// Why a token, or a key, is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AffinityError {
    /// The key is guessable.
    #[error("an affinity key needs at least {KEY_BYTES_MIN} bytes")]
    ShortKey,
    /// Not the form of a token.
    #[error("not an affinity token")]
    Malformed,
    /// Not signed with this key.
    #[error("the affinity token is not signed with this key")]
    Forged,
    /// Too old, or from the future.
    #[error("the affinity token is out of date")]
    OutOfDate,
}

impl Key {
    /// Takes the secret's bytes.
    pub fn new(secret: &[u8]) -> Result<Self, AffinityError> {
        if secret.len() < KEY_BYTES_MIN {
            return Err(AffinityError::ShortKey);
        }
        Hmac::new_from_slice(secret)
            .map(Self)
            .map_err(|_| AffinityError::ShortKey)
    }

    /// A token for a session in `region`.
    pub fn issue(&self, region: &RegionId, now: Moment) -> String {
        let claim = format!("v1.{region}.{}", now.0);
        let mac = self.0.clone().chain_update(claim.as_bytes()).finalize().into_bytes();
        format!("{claim}.{}", hex::encode(mac))
    }

    /// What a token says, if it was issued with this key no longer than `age_max` ago.
    pub fn verify(&self, token: &str, now: Moment, age_max: Duration) -> Result<Affinity, AffinityError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(AffinityError::Malformed);
        }
        let (claim, mac) = token.rsplit_once('.').ok_or(AffinityError::Malformed)?;
        let mac = hex::decode(mac).map_err(|_| AffinityError::Malformed)?;
        // The comparison takes the same time wherever the first difference is.
        self.0
            .clone()
            .chain_update(claim.as_bytes())
            .verify_slice(&mac)
            .map_err(|_| AffinityError::Forged)?;
        // From here on one of our edges wrote the text, possibly of another version.
        let mut parts = claim.split('.');
        let (Some("v1"), Some(region), Some(issued_ms), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(AffinityError::Malformed);
        };
        let region = RegionId::new(region).map_err(|_| AffinityError::Malformed)?;
        let issued_at = Moment(issued_ms.parse().map_err(|_| AffinityError::Malformed)?);
        if now.since(issued_at) > age_max || issued_at.since(now) > SKEW_MAX {
            return Err(AffinityError::OutOfDate);
        }
        Ok(Affinity { region, issued_at })
    }
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
        let verify = |now| key(1).verify(&token, now, DAY);
        let region = us_east;
        assert_eq!(verify(issued_at + DAY), Ok(Affinity { region, issued_at }));
        assert_eq!(
            verify(issued_at + DAY + Duration::from_millis(1)),
            Err(AffinityError::OutOfDate)
        );
        assert_eq!(verify(Moment(0)), Err(AffinityError::OutOfDate), "from the future");
    }

    #[test]
    fn only_holders_of_the_key_can_write_one() {
        let token = key(1).issue(&RegionId::new("us-east").unwrap(), Moment(5));
        assert_eq!(key(2).verify(&token, Moment(5), DAY), Err(AffinityError::Forged));
        let elsewhere = token.replace("us-east", "eu-west");
        assert_eq!(key(1).verify(&elsewhere, Moment(5), DAY), Err(AffinityError::Forged));
        assert_eq!(Key::new(&[0; 31]).err(), Some(AffinityError::ShortKey));
    }

    proptest! {
        #[test]
        fn nonsense_is_refused_and_never_panics(token in "\\PC{0,200}") {
            prop_assert!(key(1).verify(&token, Moment(5), DAY).is_err());
        }
    }
}
