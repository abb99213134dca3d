//! The rights in an operator's certificate: roles, each everywhere or for some regions.

use std::{fmt, str::FromStr};

use strum::{Display, EnumString, IntoStaticStr, VariantArray};

use crate::texts;

/// The roles of operators. Every role may look.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Display, EnumString, IntoStaticStr, VariantArray,
)]
#[strum(serialize_all = "kebab-case")]
pub enum OperatorRole {
    /// Looks: status, why, history, dry runs, documents, the audit log.
    Viewer,
    /// Gives orders: failover, switchover, restore, drain, rollout, freeze, unfreeze, ack, abort.
    Operator,
    /// Agrees to orders of others.
    Approver,
    /// Everything, and alone: documents, overrides of safety rules.
    Admin,
    /// The same, with a credential that lies sealed for emergencies. Each use is an alarm.
    BreakGlass,
}

/// A role, everywhere or in the regions whose names fit a pattern: `approver`, `operator@us-*`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Grant {
    /// The role.
    pub role: OperatorRole,
    /// A region's name, or its beginning and `*`; none: everywhere.
    pub regions: Option<String>,
}

impl Grant {
    /// A role everywhere.
    pub fn everywhere(role: OperatorRole) -> Self {
        Self { role, regions: None }
    }

    /// True if it holds for something in this region; `None` stands for what concerns more than one region.
    pub fn covers(&self, region: Option<&str>) -> bool {
        match (&self.regions, region) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(pattern), Some(region)) => match pattern.strip_suffix('*') {
                Some(beginning) => region.starts_with(beginning),
                None => region == pattern,
            },
        }
    }

    /// Reads grants as a certificate has them, separated by commas.
    ///
    /// # Errors
    ///
    /// The first one that cannot be read.
    pub fn list(text: &str) -> Result<Vec<Self>, String> {
        text.split(',')
            .map(str::trim)
            .filter(|grant| !grant.is_empty())
            .map(str::parse)
            .collect()
    }
}

impl Grant {
    /// As [`Grant::list`], for those who log in: the emergency's role is not among theirs.
    ///
    /// # Errors
    ///
    /// The first one that cannot be read, or that a login does not give.
    pub fn list_to_log_in(text: &str) -> Result<Vec<Self>, String> {
        let grants = Self::list(text)?;
        match grants.iter().any(|grant| grant.role == OperatorRole::BreakGlass) {
            true => Err(texts::BREAK_GLASS_IS_SEALED.to_owned()),
            false => Ok(grants),
        }
    }
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.regions {
            None => write!(f, "{}", self.role),
            Some(regions) => write!(f, "{}@{regions}", self.role),
        }
    }
}

impl FromStr for Grant {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (role, regions) = match text.split_once('@') {
            None => (text, None),
            Some((role, regions)) => (role, Some(regions.to_owned())),
        };
        let bad = || {
            let roles: Vec<&str> = OperatorRole::VARIANTS.iter().map(Into::into).collect();
            texts::not_a_role(text, &roles)
        };
        let role = role.parse().map_err(|_| bad())?;
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if let Some(pattern) = &regions {
            let stem = pattern.strip_suffix('*').unwrap_or(pattern);
            if pattern.is_empty() || !stem.chars().all(allowed) {
                return Err(bad());
            }
        }
        Ok(Self { role, regions })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_holds_everywhere_or_where_it_says() {
        let grant: Grant = "operator@us-*".parse().unwrap();
        assert!(grant.covers(Some("us-east")) && !grant.covers(Some("eu-west")));
        assert!(!grant.covers(None), "what concerns all regions is not for some");
        let one: Grant = "operator@us-east".parse().unwrap();
        assert!(one.covers(Some("us-east")) && !one.covers(Some("us-east-2")));
        assert!(Grant::everywhere(OperatorRole::Admin).covers(None));
    }

    #[test]
    fn grants_are_written_as_they_are_read() {
        let text = "viewer, operator@us-*,approver@eu-west";
        let grants = Grant::list(text).unwrap();
        let written: Vec<String> = grants.iter().map(ToString::to_string).collect();
        assert_eq!(written.join(", ").replace(", ", ","), text.replace(", ", ","));
        for bad in ["king", "operator@", "operator@us east", "operator@*-east", "Operator"] {
            assert!(
                Grant::list(bad).unwrap_err().contains("; write viewer, operator"),
                "{bad}"
            );
        }
        assert_eq!(Grant::list(" "), Ok(vec![]));
    }
}
