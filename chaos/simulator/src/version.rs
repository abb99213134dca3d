//! The devices' experience of a version that is rolled out.

use planning::RolloutSeen;

use crate::scenario::VersionChange;

/// Sessions on a version that is rolled out, where a scenario does not say.
const SESSIONS_SEEN: u32 = 1_000;

/// Turns of each session on a version that is rolled out.
const TURNS: u64 = 10;

/// P95 latency of the old version, in milliseconds.
const OLD_P95_MS: f64 = 200.0;

/// The observations of devices about a version that is rolled out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Version {
    sessions: u32,
    fails_percent: u32,
    slower_percent: u32,
    underruns: u32,
    gpu_memory_errors: u32,
}

impl Default for Version {
    fn default() -> Self {
        Self {
            sessions: SESSIONS_SEEN,
            fails_percent: 0,
            slower_percent: 0,
            underruns: 0,
            gpu_memory_errors: 0,
        }
    }
}

impl Version {
    pub(crate) fn change(&mut self, change: VersionChange) {
        match change {
            VersionChange::Sessions(sessions) => self.sessions = sessions,
            VersionChange::Fails(percent) => self.fails_percent = percent,
            VersionChange::Slower(percent) => self.slower_percent = percent,
            VersionChange::Underruns(each) => self.underruns = each,
            VersionChange::GpuMemoryErrors(count) => self.gpu_memory_errors = count,
        }
    }

    pub(crate) fn seen(self, version: &str) -> RolloutSeen {
        let turns = u64::from(self.sessions) * TURNS;
        let turns_failed = turns * u64::from(self.fails_percent.min(100)) / 100;
        RolloutSeen {
            version: version.to_owned(),
            sessions: self.sessions,
            turns_succeeded: turns - turns_failed,
            turns_failed,
            p95_ms: Some(OLD_P95_MS * (1.0 + f64::from(self.slower_percent) / 100.0)),
            old_p95_ms: Some(OLD_P95_MS),
            underruns: u64::from(self.underruns) * u64::from(self.sessions),
            gpu_memory_errors: u64::from(self.gpu_memory_errors),
            recent: None,
        }
    }
}
