//! Seals on checkpoints: an edge carries the state of a session from one region to another, and the other region must know
//! that a stack of this deployment wrote it, and not long ago.

use std::time::Duration;

use daemon::secrets::Secrets;
use hmac::{Hmac, Mac as _};
use serde::{Deserialize, Deserializer};
use sha2::Sha256;
use topology::Moment;

/// Shortest key accepted, in bytes: the output length of the hash (RFC 2104 §3).
const KEY_BYTES_MIN: usize = 32;
const MAC_BYTES: usize = 32;
/// Bytes that a seal adds to a state: the code and the time of sealing.
pub(crate) const SEAL_BYTES: usize = MAC_BYTES + size_of::<u64>();
/// Longest age of a state. A silent session keeps its last checkpoint, so it may be silent this long and still move. A session
/// with an alarm is sealed anew every hour.
const AGE_MAX: Duration = Duration::from_secs(86_400);
/// Largest difference of the clocks of two regions.
const SKEW_MAX: Duration = Duration::from_secs(300);

/// The secret that all regions share, in hex, or two while operators exchange it: the first seals, both open. `Debug` output never
/// shows it.
#[derive(Clone)]
pub struct CheckpointKey {
    seals: Hmac<Sha256>,
    also_opens: Option<Hmac<Sha256>>,
}

/// The reason why a stack refuses a sealed state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SealError {
    #[error("the checkpoint is not sealed with this deployment's key")]
    Forged,
    #[error("the checkpoint is out of date")]
    OutOfDate,
}

/// A state whose seal is broken.
pub(crate) struct Opened<'a> {
    pub(crate) state: &'a [u8],
    pub(crate) sealed_at: Moment,
    /// The second of two keys sealed it.
    pub(crate) is_of_old_key: bool,
}

impl CheckpointKey {
    /// The state, sealed.
    pub(crate) fn seal(&self, state: &[u8], now: Moment) -> Vec<u8> {
        let sealed_at = now.0.to_be_bytes();
        let code = self
            .seals
            .clone()
            .chain_update(sealed_at)
            .chain_update(state)
            .finalize();
        [&code.into_bytes()[..], &sealed_at, state].concat()
    }

    /// Opens a sealed state.
    pub(crate) fn open<'a>(&self, sealed: &'a [u8], now: Moment) -> Result<&'a [u8], SealError> {
        let Opened { state, sealed_at, .. } = self.open_of_any_age(sealed)?;
        if now.since(sealed_at) > AGE_MAX || sealed_at.since(now) > SKEW_MAX {
            return Err(SealError::OutOfDate);
        }
        Ok(state)
    }

    /// Opens a state of any age, for the folder of this stack: an alarm may be set for next week.
    pub(crate) fn open_of_any_age<'a>(&self, sealed: &'a [u8]) -> Result<Opened<'a>, SealError> {
        let (code, rest) = sealed.split_at_checked(MAC_BYTES).ok_or(SealError::Forged)?;
        let (sealed_at, state) = rest.split_first_chunk().ok_or(SealError::Forged)?;
        // The comparison takes the same time wherever the first difference is.
        let is_sealed = |key: &Hmac<Sha256>| key.clone().chain_update(rest).verify_slice(code).is_ok();
        let is_of_old_key = !is_sealed(&self.seals);
        if is_of_old_key && !self.also_opens.as_ref().is_some_and(is_sealed) {
            return Err(SealError::Forged);
        }
        Ok(Opened {
            state,
            sealed_at: Moment(u64::from_be_bytes(*sealed_at)),
            is_of_old_key,
        })
    }
}

impl<'de> Deserialize<'de> for CheckpointKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let secrets = Secrets::deserialize(deserializer)?;
        let hmac = |secret: &Vec<u8>| match Hmac::new_from_slice(secret) {
            Ok(hmac) if secret.len() >= KEY_BYTES_MIN => Ok(hmac),
            _ => Err(serde::de::Error::custom(format_args!(
                "the key needs at least {KEY_BYTES_MIN} bytes; make one with `openssl rand -hex 32`"
            ))),
        };
        Ok(Self {
            seals: hmac(&secrets.signs)?,
            also_opens: secrets.also_accepted.as_ref().map(hmac).transpose()?,
        })
    }
}

impl std::fmt::Debug for CheckpointKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CheckpointKey(secret)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Moment = Moment(1_795_257_300_000);

    fn key(hex: &str) -> Result<CheckpointKey, serde_json::Error> {
        serde_json::from_value(hex.into())
    }

    #[test]
    fn a_seal_holds_for_a_day_and_for_its_own_state_and_key_only() {
        let ours = key(&"ab".repeat(32)).unwrap();
        let sealed = ours.seal(b"state", NOW);
        assert_eq!(sealed.len(), SEAL_BYTES + b"state".len());
        assert_eq!(ours.open(&sealed, NOW + AGE_MAX), Ok(&b"state"[..]));
        let late = NOW + AGE_MAX + Duration::from_millis(1);
        assert_eq!(ours.open(&sealed, late), Err(SealError::OutOfDate));
        let theirs = key(&"cd".repeat(32)).unwrap();
        assert_eq!(theirs.open(&sealed, NOW), Err(SealError::Forged));
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(ours.open(&changed, NOW), Err(SealError::Forged));
            assert_eq!(ours.open(&sealed[..at], NOW), Err(SealError::Forged));
        }
    }

    /// Sessions move while one region has the new key and the other has not.
    #[test]
    fn a_key_is_exchanged_without_losing_a_session() {
        let two = |first: &str, second: &str| {
            let keys = vec![first.repeat(32), second.repeat(32)];
            serde_json::from_value::<CheckpointKey>(serde_json::to_value(keys).unwrap()).unwrap()
        };
        let (old, new) = (key(&"ab".repeat(32)).unwrap(), key(&"cd".repeat(32)).unwrap());
        for (from, to) in [
            (&old, &two("ab", "cd")),
            (&two("ab", "cd"), &old),
            (&two("ab", "cd"), &two("cd", "ab")),
            (&two("cd", "ab"), &two("ab", "cd")),
            (&two("cd", "ab"), &new),
            (&new, &two("cd", "ab")),
        ] {
            assert_eq!(to.open(&from.seal(b"state", NOW), NOW), Ok(&b"state"[..]));
        }
        for keys in [0, 3] {
            let keys = vec!["ab".repeat(32); keys];
            let error = serde_json::from_value::<CheckpointKey>(serde_json::to_value(keys).unwrap()).unwrap_err();
            assert!(error.to_string().contains("the new and the old key"), "{error}");
        }
    }

    #[test]
    fn a_key_is_long_and_secret() {
        let error = key("abcd").unwrap_err().to_string();
        assert!(
            error.contains("at least 32 bytes") && !error.contains("abcd"),
            "{error}"
        );
        assert_eq!(format!("{:?}", key(&"ab".repeat(32)).unwrap()), "CheckpointKey(secret)");
    }
}
