//! The id of a request or session: the same at the device, at the edge, in the region and in all logs.

use std::fmt;

/// The header of the id, in requests and answers.
pub const REQUEST_ID: &str = "x-request-id";
/// Longest id: every line of the log has it.
const ID_BYTES_MAX: usize = 128;

/// The name of one request or session, the same at the device, at the edge and in the region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestId(Box<str>);

impl RequestId {
    /// The id that the device sent, if it is valid, otherwise a new one.
    pub fn of(given: Option<&[u8]>) -> Self {
        let given = given
            .filter(|given| is_id(given))
            .and_then(|given| std::str::from_utf8(given).ok());
        given.map_or_else(Self::random, |given| Self(given.into()))
    }

    /// A unique id.
    pub fn random() -> Self {
        Self(format!("req_{:032x}", rand::random::<u128>()).into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Letters, digits and the signs of UUIDs, Base64 and traces: no character could end a line or a field of a log.
fn is_id(given: &[u8]) -> bool {
    let is_of_id = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:=+/@".contains(byte);
    (1..=ID_BYTES_MAX).contains(&given.len()) && given.iter().all(is_of_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_of_the_device_is_kept_and_what_is_none_gets_a_new_one() {
        let long = "x".repeat(ID_BYTES_MAX);
        for given in [
            "a",
            "550e8400-e29b-41d4-a716-446655440000",
            "Root=1-67891233:ab+/==",
            &long,
        ] {
            assert_eq!(RequestId::of(Some(given.as_bytes())).as_str(), given);
        }
        let longer = "x".repeat(ID_BYTES_MAX + 1);
        let mut made = std::collections::BTreeSet::new();
        for given in ["", "a b", "a\"b", "a\u{1b}[31m", "\u{e9}", &longer] {
            made.insert(RequestId::of(Some(given.as_bytes())).to_string());
        }
        made.insert(RequestId::of(None).to_string());
        assert_eq!(made.len(), 7, "{made:?}");
        assert!(
            made.iter().all(|id| id.len() == 36 && id.starts_with("req_")),
            "{made:?}"
        );
    }
}
