//! The identity of a user for a rollout. The same user must get the same version today and tomorrow, on every edge.
//!
//! Why it is so: docs/decisions/18-rollouts.md.

use std::net::IpAddr;

use sha2::{Digest as _, Sha256};

use crate::admit::network;

/// Longest name stored as it was given, in bytes. A longer name is stored as its hash, because every live session
/// stores one.
pub const NAME_BYTES_MAX: usize = 64;

/// The user of a session.
#[derive(Debug, Clone, Copy, Default)]
pub struct User<'a> {
    /// Users with the same name get the same version; see [`name`].
    pub name: &'a str,
    /// The version that the session had in the region that it lost. The session keeps this version if it can.
    pub version: Option<&'a str>,
}

/// The name of a user: the name that the device gives, otherwise the hash of its access token, otherwise its network
/// address.
pub fn name(given: Option<&str>, token: Option<&str>, client: IpAddr) -> String {
    match (given.filter(|given| !given.is_empty()), token) {
        (Some(given), _) if given.len() <= NAME_BYTES_MAX => given.to_owned(),
        (Some(given), _) => hash(given),
        // A hash, so that no live session stores a secret that it does not need.
        (None, Some(token)) => hash(token),
        (None, None) => network(client).to_string(),
    }
}

/// The holder of an affinity token: the requester's credentials, otherwise the name that it gives, otherwise its
/// network. Nobody gets another holder's token by asking for it. Names and networks are weak proof, however: a
/// requester can claim another's name or share its network.
pub fn holder(authorization: Option<&str>, given: Option<&str>, client: IpAddr) -> String {
    match (authorization, given.filter(|given| !given.is_empty())) {
        // Half of the hash is long enough. A live session stores it.
        (Some(authorization), _) => format!("a{}", &hash(authorization)[..32]),
        (None, Some(given)) => format!("u{}", &hash(given)[..32]),
        (None, None) => format!("n{}", network(client)),
    }
}

fn hash(text: &str) -> String {
    hex::encode(Sha256::digest(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_who_the_device_says_else_whose_token_it_has_else_where_it_is() {
        let client: IpAddr = "198.51.100.7".parse().unwrap();
        assert_eq!(name(Some("anna"), Some("secret"), client), "anna");
        let by_token = name(None, Some("secret"), client);
        assert!(by_token.len() == 64 && !by_token.contains("secret"));
        assert_eq!(by_token, name(Some(""), Some("secret"), "203.0.113.9".parse().unwrap()));
        assert_eq!(name(None, None, client), "198.51.100.7");
        assert_eq!(name(None, None, "::ffff:198.51.100.7".parse().unwrap()), "198.51.100.7");
        let morning = name(None, None, "2001:db8:1:2:aaaa::1".parse().unwrap());
        let evening = name(None, None, "2001:db8:1:2:bbbb::2".parse().unwrap());
        assert_eq!((morning.as_str(), &morning), ("2001:db8:1:2::", &evening));
        let holders = [
            holder(Some("Bearer secret"), Some("anna"), client),
            holder(Some("Bearer other"), Some("anna"), client),
            holder(None, Some("anna"), client),
            holder(None, Some(""), client),
        ];
        assert_eq!(holders.iter().collect::<std::collections::BTreeSet<_>>().len(), 4);
        assert!(
            holders
                .iter()
                .all(|holder| holder.len() <= 33 && !holder.contains("secret"))
        );
        assert_eq!(holders[3], "n198.51.100.7");
        let long = "x".repeat(10_000);
        assert_eq!(name(Some(&long), None, client).len(), 64);
    }
}
