//! Who a user is, as far as a rollout goes: the same user has to be on the same version today and tomorrow, on every edge.

use std::net::IpAddr;

use sha2::{Digest as _, Sha256};

use crate::admit::network;

/// Longest name kept as it is given, in bytes; of a longer one its hash is kept, because every live session keeps one.
pub const NAME_BYTES_MAX: usize = 64;

/// Whose session it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct User<'a> {
    /// The same name, the same version: see [`name`].
    pub name: &'a str,
    /// The version that a session was on which lost its region: it stays on it if it can.
    pub version: Option<&'a str>,
}

/// The name of a user: what the device says it is, else its access token's hash, else where it connects from.
pub fn name(given: Option<&str>, token: Option<&str>, client: IpAddr) -> String {
    match (given.filter(|given| !given.is_empty()), token) {
        (Some(given), _) if given.len() <= NAME_BYTES_MAX => given.to_owned(),
        (Some(given), _) => hash(given),
        // A hash, so that no live session holds a secret that it does not need.
        (None, Some(token)) => hash(token),
        (None, None) => network(client).to_string(),
    }
}

/// What an affinity token is issued to: whoever shows the same credentials, else calls itself by the same name, else comes from
/// the same place. Nobody can have another's by asking for it, but the name and the place are only as good as they are.
pub fn holder(authorization: Option<&str>, given: Option<&str>, client: IpAddr) -> String {
    match (authorization, given.filter(|given| !given.is_empty())) {
        // Half of the hash is enough; a live session keeps it.
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
