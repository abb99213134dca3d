//! One stack of a region: its address and the version of its software.

use std::{fmt, net::SocketAddr};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, MapAccess, Visitor, value::MapAccessDeserializer},
};

use crate::texts;

/// The version of every stack whose document names no version.
pub const CURRENT: &str = "current";
/// Longest version, in characters. A name and the hash of a commit fit.
pub const VERSION_CHARS_MAX: usize = 64;

/// One stack (gateway) of a region.
///
/// A document writes a stack either as its address or as `{ address, version }`. A stack without a version is always
/// written as its address, so that documents from before there were versions keep the same bytes (and the same digest).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stack {
    /// The address at which the stack accepts sessions from edges.
    pub address: SocketAddr,
    version: Option<String>,
}

/// A text that is not a version. The text is cut to [`VERSION_CHARS_MAX`] characters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", texts::not_a_version(.0, VERSION_CHARS_MAX))]
pub struct VersionError(String);

impl Stack {
    /// A stack with a version: 1 to [`VERSION_CHARS_MAX`] visible ASCII characters. [`CURRENT`] counts as no version.
    pub fn of_version(address: SocketAddr, version: &str) -> Result<Self, VersionError> {
        let is_version =
            (1..=VERSION_CHARS_MAX).contains(&version.len()) && version.bytes().all(|b| b.is_ascii_graphic());
        if !is_version {
            return Err(VersionError(version.chars().take(VERSION_CHARS_MAX).collect()));
        }
        Ok(Self {
            address,
            version: (version != CURRENT).then(|| version.to_owned()),
        })
    }

    /// The version of the software, or [`CURRENT`] when the document names none.
    pub fn version(&self) -> &str {
        self.version.as_deref().unwrap_or(CURRENT)
    }
}

impl From<SocketAddr> for Stack {
    fn from(address: SocketAddr) -> Self {
        Self { address, version: None }
    }
}

/// The TOML of a topology document.
impl fmt::Display for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            None => write!(f, "\"{}\"", self.address),
            Some(version) => write!(f, "{{ address = \"{}\", version = {version:?} }}", self.address),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    #[serde(deserialize_with = "read_address")]
    address: SocketAddr,
    version: String,
}

fn read_address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    parse_address(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

fn parse_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| texts::not_a_stack(text))
}

impl Serialize for Stack {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let address = self.address;
        match self.version.clone() {
            None => address.serialize(serializer),
            Some(version) => Table { address, version }.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Stack {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Stack;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"IP:PORT\" or { address, version }")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Stack, E> {
                let address = parse_address(text).map_err(E::custom)?;
                Ok(address.into())
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Stack, A::Error> {
                let Table { address, version } = Table::deserialize(MapAccessDeserializer::new(map))?;
                Stack::of_version(address, &version).map_err(A::Error::custom)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn stacks_are_read_as_they_were_written(port in any::<u16>(), version in "[!-~]{1,64}") {
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            for stack in [Stack::from(address), Stack::of_version(address, &version).unwrap()] {
                let json = serde_json::to_string(&stack).unwrap();
                prop_assert_eq!(&serde_json::from_str::<Stack>(&json).unwrap(), &stack);
                let table: toml::Table = toml::from_str(&format!("stacks = [{stack}]")).unwrap();
                let read: Vec<Stack> = table["stacks"].clone().try_into().unwrap();
                prop_assert_eq!(read, vec![stack]);
            }
        }

        #[test]
        fn nonsense_is_no_version(version in "\\PC{0,80}") {
            let address = SocketAddr::from(([127, 0, 0, 1], 1));
            let is_read = Stack::of_version(address, &version).is_ok();
            prop_assert_eq!(is_read, (1..=64).contains(&version.len()) && version.bytes().all(|b| b.is_ascii_graphic()));
        }
    }

    #[test]
    fn a_stack_without_a_version_is_written_as_ever() {
        let stack = Stack::from("127.0.0.1:9001".parse::<SocketAddr>().unwrap());
        assert_eq!(serde_json::to_string(&stack).unwrap(), "\"127.0.0.1:9001\"");
        assert_eq!(Stack::of_version(stack.address, CURRENT), Ok(stack));
    }
}
