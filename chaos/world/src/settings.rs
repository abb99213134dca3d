//! What a world is told before it starts.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// Everything a world needs to know.
#[derive(Clone)]
pub struct Settings {
    /// Where configuration, state and logs of all processes go. Made when absent.
    pub state_dir: PathBuf,
    /// Where the programs are.
    pub binaries_dir: PathBuf,
    /// Where the speech models are.
    pub models_dir: PathBuf,
    /// What the stacks hear and speak with.
    pub engine: Engine,
    /// The policy document.
    pub policy: String,
    /// Where decisions are kept; with it, how many control planes there are.
    pub store: StoreKind,
    /// Longest wait for one process to become ready.
    pub ready_timeout: Duration,
    /// Told about each step of starting and stopping.
    pub progress: Arc<dyn Fn(&Progress) + Send + Sync>,
}

/// What the stacks of a world hear and speak with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Engine {
    /// The speech models.
    #[default]
    Torch,
    /// Sounds that carry their text, as a modem's do (`speech::scripted`): hundreds of callers at once fit on two cores.
    Scripted,
}

/// Where the decisions of a world are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StoreKind {
    /// In a file of the one control plane.
    #[default]
    Embedded,
    /// In three members of etcd, shared by three control planes.
    Etcd,
}

/// A step of starting or stopping.
#[derive(Debug, Clone, PartialEq)]
pub enum Progress {
    /// A process was started.
    Started(String),
    /// It takes work, after this long.
    Ready(String, Duration),
    /// What is waited for now; told once each time it changes.
    Waiting(String),
    /// Processes are being stopped.
    Stopping(String),
    /// A process did not stop when asked and was killed.
    Killed(String),
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started(name) => write!(f, "{name} started"),
            Self::Ready(name, took) => write!(f, "{name} ready after {:.1} s", took.as_secs_f64()),
            Self::Waiting(what) => write!(f, "waiting for {what}"),
            Self::Stopping(what) => write!(f, "stopping {what}"),
            Self::Killed(name) => write!(f, "{name} did not stop when asked and was killed"),
        }
    }
}

/// The policy every deployment starts with.
pub const DEFAULT_POLICY: &str = include_str!("../../../configs/policy.toml");

/// Loading the models takes a second of a free core; six stacks on two busy cores take a minute at worst.
const READY_TIMEOUT: Duration = Duration::from_secs(90);

impl Settings {
    /// The usual settings: programs from the folder this program is in, models from `MERIDIAN_MODELS_DIR` or else the
    /// source tree around it.
    pub fn new(state_dir: PathBuf) -> Self {
        let binaries_dir = default_binaries_dir();
        let models_dir = std::env::var_os("MERIDIAN_MODELS_DIR")
            .map(PathBuf::from)
            .or_else(|| find_upwards(&binaries_dir, MODELS))
            .unwrap_or_else(|| PathBuf::from(MODELS));
        Self {
            state_dir,
            binaries_dir,
            models_dir,
            engine: Engine::default(),
            policy: DEFAULT_POLICY.to_owned(),
            store: StoreKind::default(),
            ready_timeout: READY_TIMEOUT,
            progress: Arc::new(|_| {}),
        }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("state_dir", &self.state_dir)
            .field("binaries_dir", &self.binaries_dir)
            .field("models_dir", &self.models_dir)
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

const MODELS: &str = "regional-stack/models";

/// The folder of the running program; tests and examples lie one folder below the programs.
pub fn default_binaries_dir() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    let folder = program.parent().unwrap_or(Path::new("."));
    match folder.file_name().and_then(|name| name.to_str()) {
        Some("deps" | "examples") => folder.parent().unwrap_or(folder).to_owned(),
        _ => folder.to_owned(),
    }
}

/// Looks for `what` in `folder`, in the folders around it, and around the current folder.
pub fn find_upwards(folder: &Path, what: &str) -> Option<PathBuf> {
    let current = std::env::current_dir().unwrap_or_default();
    folder
        .ancestors()
        .chain(current.ancestors())
        .map(|ancestor| ancestor.join(what))
        .find(|candidate| candidate.exists())
}

/// Where `meridian up` keeps its world: `$XDG_STATE_HOME/meridian/up`, else `~/.local/state/meridian/up`.
pub fn default_state_dir() -> PathBuf {
    let base = match (std::env::var_os("XDG_STATE_HOME"), std::env::var_os("HOME")) {
        (Some(state), _) if !state.is_empty() => PathBuf::from(state),
        (_, Some(home)) if !home.is_empty() => PathBuf::from(home).join(".local/state"),
        _ => std::env::temp_dir(),
    };
    base.join("meridian/up")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_found_from_the_target_folder() {
        let binaries_dir = default_binaries_dir();
        assert!(!binaries_dir.ends_with("deps"));
        let models_dir = find_upwards(&binaries_dir, MODELS).unwrap();
        assert!(models_dir.is_absolute(), "{}", models_dir.display());
    }
}
