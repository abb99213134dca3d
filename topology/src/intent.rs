//! What operators asked for.

use serde::{Deserialize, Serialize};

use crate::{Moment, RegionId};

/// One standing request of an operator. It ends at `expires_at`, or earlier when it is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Intent {
    /// Unique name; also the idempotency token of the request that made it.
    pub id: String,
    /// What is asked for.
    pub kind: IntentKind,
    /// Who asks.
    pub author: String,
    /// Why.
    pub reason: String,
    /// When it was accepted.
    pub created_at: Moment,
    /// When it stops counting.
    pub expires_at: Moment,
}

/// What an operator can ask for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum IntentKind {
    /// Move a primary's sessions to its backups now.
    Failover {
        /// The primary to leave.
        region: RegionId,
    },
    /// Bring an evacuated primary back, in the steps of the policy.
    Restore {
        /// The primary to return to.
        region: RegionId,
    },
    /// No automatic change of plan while it lasts.
    Freeze,
}

impl Intent {
    /// Whether it still counts.
    pub fn is_live(&self, now: Moment) -> bool {
        now < self.expires_at
    }
}
