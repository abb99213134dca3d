//! Names of things. One grammar for all: a DNS label (RFC 1035 §2.3.1), because ids appear in DNS names, metric labels,
//! store keys and file names.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

/// Longest id, in bytes: the limit of a DNS label.
pub const ID_LENGTH_MAX: usize = 63;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not an id: use 1 to 63 of a-z, 0-9 and '-', beginning with a letter and not ending with '-'")]
pub struct IdError(pub String);

fn check(text: &str) -> Result<(), IdError> {
    let bytes = text.as_bytes();
    let well_formed = (1..=ID_LENGTH_MAX).contains(&bytes.len())
        && bytes[0].is_ascii_lowercase()
        && bytes[bytes.len() - 1] != b'-'
        && bytes
            .iter()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-');
    // What is echoed back in an error is bounded: it may come from a peer.
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
            /// Checks and takes a name.
            pub fn new(text: &str) -> Result<Self, IdError> {
                check(text)?;
                Ok(Self(text.into()))
            }

            /// The name as text.
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
    /// A place with a full regional stack.
    RegionId
);
id!(
    /// A point of presence.
    EdgeId
);
id!(
    /// A process that observes or applies plans: an edge, a DNS responder or a control plane. As the origin of
    /// observations it is a *vantage*.
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
