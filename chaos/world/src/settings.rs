//! The settings of a world, and the steps that it reports.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// The settings of a world.
#[derive(Clone)]
pub struct Settings {
    /// Folder of configuration, state and logs of all processes; created if missing.
    pub state_dir: PathBuf,
    /// Folder of the programs.
    pub binaries_dir: PathBuf,
    /// Folder of the speech models.
    pub models_dir: PathBuf,
    /// The speech engine of the stacks.
    pub engine: Engine,
    /// The policy document.
    pub policy: String,
    /// The store of decisions, which also sets the number of control planes.
    pub store: StoreKind,
    /// Origins of web pages that may call the edges from a browser, as in `https://app.example`; `*` means every
    /// origin.
    pub origins: Vec<String>,
    /// The callers that the stacks let in. Benches that talk to a stack themselves, or through a proxy without a certificate, need
    /// `Permissive`; edges prove who they are in both. With `Off`, edges and control planes talk to stacks in plain text.
    pub stacks_admit: identity::Mode,
    /// Deadline for one process to become ready.
    pub ready_timeout: Duration,
    /// Called at each step of starting and stopping.
    pub progress: Arc<dyn Fn(&Progress) + Send + Sync>,
}

/// The speech engine of a world's stacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Engine {
    /// The speech models.
    #[default]
    Torch,
    /// Sounds that carry their text, as a modem's do (`speech::scripted`). Hundreds of callers fit on two cores.
    Scripted,
}

/// The store of a world's decisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StoreKind {
    /// A file of the one control plane.
    #[default]
    Embedded,
    /// Three members of etcd, shared by three control planes.
    Etcd,
}

/// A step of starting or stopping.
#[derive(Debug, Clone, PartialEq)]
pub enum Progress {
    /// A process was started.
    Started(String),
    /// A process takes work, after this long.
    Ready(String, Duration),
    /// The condition that starting waits for; sent once each time it changes.
    Waiting(String),
    /// All processes of one kind were asked to stop.
    Stopping(String),
    /// A process missed its deadline for stopping and was killed.
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

/// The policy that every deployment starts with.
pub const DEFAULT_POLICY: &str = include_str!("../../../configs/policy.toml");

/// Loading the models takes a second of a free core. Six stacks on two busy cores take a minute at worst.
const READY_TIMEOUT: Duration = Duration::from_secs(90);

impl Settings {
    /// Default settings: programs from the folder of the running program; models from `MERIDIAN_MODELS_DIR`, or else
    /// from the source tree around it.
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
            origins: Vec::new(),
            stacks_admit: identity::Mode::default(),
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

/// The folder of the running program. Tests and examples lie one folder below the programs.
pub fn default_binaries_dir() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    let folder = program.parent().unwrap_or(Path::new("."));
    match folder.file_name().and_then(|name| name.to_str()) {
        Some("deps" | "examples") => folder.parent().unwrap_or(folder).to_owned(),
        _ => folder.to_owned(),
    }
}

/// Looks for `what` in `folder` and its parents, then in the current folder and its parents.
pub fn find_upwards(folder: &Path, what: &str) -> Option<PathBuf> {
    let current = std::env::current_dir().unwrap_or_default();
    folder
        .ancestors()
        .chain(current.ancestors())
        .map(|ancestor| ancestor.join(what))
        .find(|candidate| candidate.exists())
}

/// Default folder of `meridian up`: `$XDG_STATE_HOME/meridian/up`, else `~/.local/state/meridian/up`.
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
