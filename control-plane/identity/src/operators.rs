//! The tokens of programs that order as operators (operators.toml): each has a name, roles and an end, and is known by its hash. A token
//! does nothing by itself: it is exchanged for a certificate, so that control planes verify one thing only.

use std::collections::HashSet;

use serde::{Deserialize, Deserializer, de::Error as _};
use topology::{
    Moment, Problems,
    document::{self, Guide},
};

use crate::{Grant, PeerId, Role, texts};

/// A token of operators.toml.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperatorToken {
    /// The operator that it is for, as in the audit log.
    pub name: String,
    /// The roles that it gives.
    #[serde(deserialize_with = "grants")]
    pub roles: Vec<Grant>,
    /// SHA-256 of its secret, in hex.
    pub sha256: String,
    /// Its end.
    #[serde(deserialize_with = "moment")]
    pub expires: Moment,
}

/// The tokens that are known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperatorTokens {
    #[serde(default)]
    token: Vec<OperatorToken>,
}

/// A token lets nobody in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unrecognised {
    /// No such token, or another name than its own.
    #[error("{}", texts::unknown_token())]
    Unknown,
    /// It has ended.
    #[error("{}", texts::token_ended())]
    Ended,
}

impl OperatorTokens {
    /// Reads the document. Problems mention `file`, with the line of each.
    ///
    /// # Errors
    ///
    /// The text is no TOML, has unknown keys, or a token lacks a name, roles or an end.
    pub fn parse(file: &str, text: &str) -> Result<Self, Problems> {
        document::parse(file, text, Guide::default(), problems)
    }

    /// The token with this hash and name.
    ///
    /// # Errors
    ///
    /// There is none, or it has ended.
    pub fn recognise(&self, sha256: &str, name: &str, now: Moment) -> Result<&OperatorToken, Unrecognised> {
        let is_it = |token: &&OperatorToken| token.sha256 == sha256 && token.name == name;
        let found = self.token.iter().find(is_it).ok_or(Unrecognised::Unknown)?;
        match found.expires > now {
            true => Ok(found),
            false => Err(Unrecognised::Ended),
        }
    }
}

fn problems(read: &OperatorTokens) -> Vec<(String, String)> {
    let mut problems = Vec::new();
    let (mut names, mut hashes) = (HashSet::new(), HashSet::new());
    for (at, token) in read.token.iter().enumerate() {
        let key = |field: &str| format!("token[{at}].{field}");
        if PeerId::new("zone", Role::Operator(token.name.clone())).is_err() {
            let text = "write a name of letters, digits, '.', '-' and '_', at most 64";
            problems.push((key("name"), text.to_owned()));
        } else if !names.insert(&token.name) {
            let text = format!("token {} is there twice; give one another name", token.name);
            problems.push((key("name"), text));
        }
        let is_hash = token.sha256.len() == 64 && token.sha256.bytes().all(|it| b"0123456789abcdef".contains(&it));
        if !is_hash {
            let text = "write the 64 hexadecimal digits that `meridian operator-token NAME --roles ROLE --for TIME --root FILE` printed";
            problems.push((key("sha256"), text.to_owned()));
        } else if !hashes.insert(&token.sha256) {
            let text = "it is the hash of another token too; make a new one";
            problems.push((key("sha256"), text.to_owned()));
        }
    }
    problems
}

fn grants<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Grant>, D::Error> {
    let text = String::deserialize(deserializer)?;
    match Grant::list_to_log_in(&text).map_err(D::Error::custom)? {
        grants if grants.is_empty() => Err(D::Error::custom("the list is empty; write at least \"viewer\"")),
        grants => Ok(grants),
    }
}

fn moment<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Moment, D::Error> {
    let text = String::deserialize(deserializer)?;
    let at: jiff::Timestamp = text
        .parse()
        .map_err(|_| D::Error::custom("not a time; write one as in \"2027-03-01T00:00:00Z\""))?;
    Ok(Moment(u64::try_from(at.as_millisecond()).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::join;

    fn token(name: &str, roles: &str, secret: &str, expires: &str) -> String {
        let sha256 = join::hash(secret.as_bytes());
        format!("[[token]]\nname = \"{name}\"\nroles = \"{roles}\"\nsha256 = \"{sha256}\"\nexpires = \"{expires}\"\n")
    }

    const END: &str = "2027-03-01T00:00:00Z";

    #[test]
    fn a_token_is_recognised_by_hash_and_name_until_its_end() {
        let text = token("ci", "operator@us-*", "sesame", END) + &token("bot", "viewer", "open", END);
        let tokens = OperatorTokens::parse("operators.toml", &text).unwrap();
        let end = Moment(u64::try_from(END.parse::<jiff::Timestamp>().unwrap().as_millisecond()).unwrap());
        let before = Moment(end.0 - 1);
        let ci = tokens.recognise(&join::hash(b"sesame"), "ci", before).unwrap();
        assert_eq!(ci.roles, Grant::list("operator@us-*").unwrap());
        for (secret, name) in [("sesame", "bot"), ("Sesame", "ci"), ("open", "ci")] {
            let found = tokens.recognise(&join::hash(secret.as_bytes()), name, before);
            assert_eq!(found, Err(Unrecognised::Unknown), "{secret} as {name}");
        }
        assert_eq!(
            tokens.recognise("sesame", "ci", before),
            Err(Unrecognised::Unknown),
            "the hash counts"
        );
        assert_eq!(
            tokens.recognise(&join::hash(b"sesame"), "ci", end),
            Err(Unrecognised::Ended)
        );
    }

    #[test]
    fn a_token_without_name_roles_or_end_is_none() {
        let good = token("ci", "viewer", "sesame", END);
        let without = |key: &str| -> String {
            let lines = good.lines().filter(|line| !line.starts_with(key));
            lines.map(|line| line.to_owned() + "\n").collect()
        };
        for (text, complaint) in [
            (without("name"), "name"),
            (without("roles"), "roles"),
            (without("expires"), "expires"),
            (without("sha256"), "sha256"),
            (good.replace("viewer", "king"), "is no role"),
            (good.replace("viewer", ""), "the list is empty"),
            (good.replace("viewer", "break-glass"), "a sealed credential alone"),
            (good.replace(END, "soon"), "not a time; write one as in"),
            (good.replace("\"ci\"", "\"c i\""), "write a name of letters"),
            (good.replace("sha256 = \"", "sha256 = \"zz"), "64 hexadecimal digits"),
            (good.clone() + &good, "is there twice"),
            (good.clone() + "secret = \"sesame\"\n", "secret"),
        ] {
            let error = OperatorTokens::parse("operators.toml", &text).unwrap_err().to_string();
            assert!(
                error.contains(complaint) && error.contains("operators.toml"),
                "{text}: {error}"
            );
        }
        assert!(OperatorTokens::parse("operators.toml", "").is_ok(), "nobody has one");
        let example = include_str!("../../../configs/operators.toml");
        assert_eq!(OperatorTokens::parse("operators.toml", example).unwrap().token.len(), 1);
    }
}
