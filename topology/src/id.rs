//! Ids of regions, edges and nodes. All follow one grammar, that of a DNS label (RFC 1035 §2.3.1), because ids appear
//! in DNS names, metric labels, store keys and file names.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::texts;

/// Longest id, in bytes: the limit of a DNS label (RFC 1035 §2.3.4).
pub const ID_LENGTH_MAX: usize = 63;

/// A text that is not an id. The text is cut to one character more than the longest id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", texts::not_an_id(.0, ID_LENGTH_MAX))]
pub struct IdError(pub String);

fn check(text: &str) -> Result<(), IdError> {
    let bytes = text.as_bytes();
    let well_formed = (1..=ID_LENGTH_MAX).contains(&bytes.len())
        && bytes[0].is_ascii_lowercase()
        && bytes[bytes.len() - 1] != b'-'
        && bytes
            .iter()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-');
    // The text may come from a peer, so the error repeats only a bounded part of it.
    if well_formed {
        Ok(())
    } else {
        Err(IdError(text.chars().take(ID_LENGTH_MAX + 1).collect()))
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Reads an id; fails unless the text is a DNS label that begins with a letter.
            pub fn new(text: &str) -> Result<Self, IdError> {
                check(text)?;
                Ok(Self(text.into()))
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                Self::new(&text)
            }
        }

        impl std::str::FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.as_ref().to_owned()
            }
        }
    };
}

id!(
    /// Id of a region: a location with a full regional stack.
    RegionId
);
id!(
    /// Id of an edge: a point of presence that devices connect to.
    EdgeId
);
id!(
    /// Id of a process that observes the regions or applies plans: an edge, a DNS responder or a control plane. As the
    /// origin of observations a node is called a *vantage*.
    NodeId
);

impl From<&EdgeId> for NodeId {
    fn from(edge: &EdgeId) -> Self {
        Self(edge.0.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_dns_labels() {
        for good in ["a", "us-east", "edge-1", "x9", &"a".repeat(63)] {
            assert!(RegionId::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "US", "1a", "a_b", "a.b", "é", &"a".repeat(64)] {
            assert!(RegionId::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_id_in_a_document_is_checked_too() {
        assert!(serde_json::from_str::<RegionId>("\"us-east\"").is_ok());
        let error = serde_json::from_str::<RegionId>("\"US East\"").unwrap_err().to_string();
        assert!(error.contains("\"US East\" is not an id"), "{error}");
    }
}
