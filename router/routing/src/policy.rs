//! The numbers by which an edge chooses, with their reasons (`[picking]` in configs/edge.toml).

use std::time::Duration;

use serde::{Deserialize, Deserializer};
use topology::document::Span;

/// The limits by which an edge chooses among regions and stacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Consecutive failures that eject a stack, at least 1.
    pub failures_in_a_row: u32,
    /// Length of the window over which successes are counted.
    #[serde(deserialize_with = "duration")]
    pub window: Duration,
    /// A stack is ejected when a smaller percentage of its attempts in the window succeeds.
    pub success_percent_min: u8,
    /// With fewer attempts in the window, the success rate is not judged.
    pub volume_min: u32,
    /// At most this percentage of all stacks, but at least one stack, is ejected for its success rate at the same time.
    pub ejected_percent_max: u8,
    /// Length of a first ejection. The second in a row takes twice as long, the third three times.
    #[serde(deserialize_with = "duration")]
    pub ejection: Duration,
    /// Longest ejection.
    #[serde(deserialize_with = "duration")]
    pub ejection_max: Duration,
    /// If more than this percentage of the regions in use, or of the stacks of a region, is ejected, the edge ignores
    /// the ejections: the fault is then probably at this edge.
    pub panic_percent: u8,
    /// Time over which an ejected stack gets its sessions back.
    #[serde(deserialize_with = "duration")]
    pub slow_start: Duration,
    /// Percentage of its sessions that a stack gets first after an ejection.
    pub slow_start_percent: u8,
    /// A stack counts as full from this percentage of its limits.
    pub full_percent: u8,
    /// Longest age of a load report that counts.
    #[serde(deserialize_with = "duration")]
    pub load_age_max: Duration,
}

impl Policy {
    /// The defaults, with a reason for each.
    pub const DEFAULT: Self = Self {
        // One failure may be chance and two a rolling restart; three are a pattern.
        failures_in_a_row: 3,
        // Three ticks: about as long as the leader needs for a verdict of its own.
        window: Duration::from_secs(30),
        // A device tries three regions before it gives up, so a stack that fails one session in five is still worth
        // trying.
        success_percent_min: 80,
        // With fewer attempts, a few chance failures already make a fifth.
        volume_min: 20,
        // If over 30 % of the fleet look degraded, the fault is probably this edge.
        ejected_percent_max: 30,
        // One tick; after it, probes of other vantages have reported too.
        ejection: Duration::from_secs(10),
        // Even without help, a stack that works again is found within five minutes.
        ejection_max: Duration::from_secs(300),
        // Half of all regions do not fail at once.
        panic_percent: 50,
        // A stack that just started has cold caches and models. It warms up in seconds, not in minutes.
        slow_start: Duration::from_secs(30),
        slow_start_percent: 10,
        // Reports are some seconds old, and other edges send sessions too.
        full_percent: 95,
        // Three ticks without a session that would report the load. The next session then learns the load from the
        // answer.
        load_age_max: Duration::from_secs(30),
    };
}

impl Default for Policy {
    fn default() -> Self {
        Self::DEFAULT
    }
}

fn duration<'de, D: Deserializer<'de>>(written: D) -> Result<Duration, D::Error> {
    Span::deserialize(written).map(|span| span.0)
}
