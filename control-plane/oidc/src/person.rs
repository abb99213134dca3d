//! The operator whom the claims of an id token name, and what the groups in it allow.

use std::collections::BTreeMap;

use identity::{Grant, PeerId, Role};
use serde_json::Value;

use crate::texts;

/// Longest name that is looked at, in bytes.
const GROUPS_MAX: usize = 1_000;

/// The mapping of claims to an operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// The claim with the operator's name. It must be one that nobody can choose or inherit, as `sub` is.
    pub name_claim: String,
    /// The claim with the list of groups.
    pub groups_claim: String,
    /// The roles of each group.
    pub roles: BTreeMap<String, Vec<Grant>>,
}

/// An operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person {
    /// The name, as in certificates.
    pub name: String,
    /// The roles of all groups together; never empty.
    pub grants: Vec<Grant>,
}

/// The token is good, and names no operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Nobody {
    /// The name.
    #[error("{}", texts::no_operator_name(claim, found))]
    Name {
        /// The claim.
        claim: String,
        /// Its content, shortened.
        found: String,
    },
    /// The groups.
    #[error("{}", texts::no_role(name))]
    NoRole {
        /// The person.
        name: String,
    },
}

impl Rules {
    /// The operator whom these claims name.
    ///
    /// # Errors
    ///
    /// They name none, or one who may do nothing.
    pub fn person(&self, claims: &BTreeMap<String, Value>) -> Result<Person, Nobody> {
        let claim = claims.get(&self.name_claim);
        let name = claim.and_then(Value::as_str).filter(|name| {
            let role = Role::Operator((*name).to_owned());
            PeerId::new("zone", role).is_ok()
        });
        let name = name.ok_or_else(|| Nobody::Name {
            claim: self.name_claim.clone(),
            found: claim.map_or_else(
                || texts::MISSING.to_owned(),
                |found| format!("{:.80}", found.to_string()),
            ),
        })?;
        let groups: Vec<&str> = match claims.get(&self.groups_claim) {
            Some(Value::Array(groups)) => groups.iter().take(GROUPS_MAX).filter_map(Value::as_str).collect(),
            Some(Value::String(group)) => vec![group],
            _ => Vec::new(),
        };
        let mut grants: Vec<Grant> = groups
            .iter()
            .filter_map(|group| self.roles.get(*group))
            .flatten()
            .cloned()
            .collect();
        grants.sort();
        grants.dedup();
        match grants.is_empty() {
            true => Err(Nobody::NoRole { name: name.to_owned() }),
            false => Ok(Person {
                name: name.to_owned(),
                grants,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rules() -> Rules {
        let roles = [
            ("sre", "operator,approver@us-*"),
            ("leads", "approver"),
            ("everybody", "viewer"),
        ];
        Rules {
            name_claim: "sub".to_owned(),
            groups_claim: "groups".to_owned(),
            roles: roles
                .map(|(group, grants)| (group.to_owned(), Grant::list(grants).unwrap()))
                .into(),
        }
    }

    fn person(claims: &Value) -> Result<Person, Nobody> {
        rules().person(&serde_json::from_value(claims.clone()).unwrap())
    }

    #[test]
    fn groups_become_roles_and_others_count_for_nothing() {
        let ada = person(&json!({ "sub": "ada", "groups": ["sre", "sre", "everybody", "chess"] })).unwrap();
        let grants: Vec<String> = ada.grants.iter().map(ToString::to_string).collect();
        assert_eq!(
            (&*ada.name, grants.join(",")),
            ("ada", "viewer,operator,approver@us-*".to_owned())
        );
        // Some providers write one group as a text.
        assert!(person(&json!({ "sub": "ada", "groups": "leads" })).is_ok());
        for groups in [
            json!(["chess"]),
            json!([]),
            json!([["sre"]]),
            json!({ "sre": true }),
            Value::Null,
        ] {
            let nobody = person(&json!({ "sub": "ada", "groups": groups }));
            assert!(matches!(nobody, Err(Nobody::NoRole { .. })), "{groups}");
        }
    }

    #[test]
    fn a_name_that_could_be_read_in_two_ways_is_none() {
        for sub in [
            json!("a/b"),
            json!("ada@example.com"),
            json!(""),
            json!(7),
            Value::Null,
            json!("x".repeat(65)),
        ] {
            let nobody = person(&json!({ "sub": sub, "groups": ["sre"] }));
            assert!(matches!(nobody, Err(Nobody::Name { .. })), "{sub}");
        }
    }
}
