//! The requests that can need a second person.

use serde::{Deserialize, Serialize};

/// A kind of request that can need a second person.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[derive(strum::Display)]
#[strum(serialize_all = "kebab-case")]
pub enum TwoPerson {
    /// Evacuating a region while another region is evacuated.
    SecondEvacuation,
    /// Losing more data than the RPO of a class allows.
    DataLoss,
    /// Overriding a safety rule.
    Override,
}
