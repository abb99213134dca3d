//! The numbers by which an edge chooses, and why they are what they are (`[picking]` in configs/edge.toml).

use std::time::Duration;

/// How an edge chooses among regions and stacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Failures in a row that eject a stack, at least 1.
    pub failures_in_a_row: u32,
    /// Length of the window in which successes are counted.
    pub window: Duration,
    /// A stack of which a smaller percentage succeeds in the window is ejected.
    pub success_percent_min: u8,
    /// Fewer than this many in the window say nothing about it.
    pub volume_min: u32,
    /// No more than this percentage of all stacks, but at least one, is ejected for its success rate at once.
    pub ejected_percent_max: u8,
    /// Length of a first ejection; the second in a row takes twice as long, the third three times.
    pub ejection: Duration,
    /// The longest ejection.
    pub ejection_max: Duration,
    /// When more than this percentage of the regions in use, or of the stacks of a region, is ejected, none is: then it is
    /// this edge that is ill.
    pub panic_percent: u8,
    /// What was ejected gets its sessions back over this time.
    pub slow_start: Duration,
    /// Beginning with this percentage.
    pub slow_start_percent: u8,
    /// A stack counts as full when it uses this percentage of what it can hold.
    pub full_percent: u8,
    /// A report of a stack's load counts this long.
    pub load_age_max: Duration,
}

impl Policy {
    /// The defaults.
    pub const DEFAULT: Self = Self {
        // One may be chance, two a rolling restart, three is a pattern.
        failures_in_a_row: 3,
        // Three ticks: about as long as the leader needs for a verdict of its own.
        window: Duration::from_secs(30),
        // A device asks three regions before it gives up, so a stack that fails one session in five is still worth asking.
        success_percent_min: 80,
        // Of fewer, a few chance failures are already a fifth.
        volume_min: 20,
        // What fails more than a third of the fleet a little is more likely on this side.
        ejected_percent_max: 30,
        // One tick, after which probes of other vantages will have spoken too.
        ejection: Duration::from_secs(10),
        // What is healthy again is found within five minutes even without help.
        ejection_max: Duration::from_secs(300),
        // Half of the world does not fail at once.
        panic_percent: 50,
        // A stack that just started has cold caches and models; it warms up in seconds, not in minutes.
        slow_start: Duration::from_secs(30),
        slow_start_percent: 10,
        // Reports are some seconds old, and other edges send sessions too.
        full_percent: 95,
        // Three ticks without a session that tells: whoever asks then learns it from the answer.
        load_age_max: Duration::from_secs(30),
    };
}

impl Default for Policy {
    fn default() -> Self {
        Self::DEFAULT
    }
}
