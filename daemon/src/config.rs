//! Configuration of a process: one TOML file. [`topology::document`] reads it, with all problems at once; here are the
//! rules of a process and its paths. Give every configuration struct `#[serde(deny_unknown_fields)]`, so
//! that a misspelt key is an error and not a silent default.

use std::{
    fmt,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use serde::de::DeserializeOwned;
use topology::document::{self, Guide};

use crate::{secrets, texts};

/// Knowledge of a process about its configuration beside the types of its values.
pub trait Rules {
    /// The shipped example, which shows every required key. Problems advise its values.
    const EXAMPLE: &'static str = "";
    /// See [`Guide::once_seconds`].
    const ONCE_SECONDS: &'static [(&'static str, &'static str)] = &[];
    /// See [`Guide::renamed`].
    const RENAMED: &'static [(&'static str, &'static str)] = &[];

    /// Every value that breaks a rule.
    fn problems(&self) -> Problems;

    /// The paths that are relative to the folder of the file.
    fn paths(&mut self) -> Vec<&mut PathBuf> {
        Vec::new()
    }
}

/// Values of a configuration that break a rule, each with its key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problems(Vec<(String, String)>);

impl Problems {
    /// Adds a problem. `key` is the path of the value, such as `limits.sessions_max` or `upstream[1].path`. `text` names
    /// the value, its range, and what to write instead: "0 is out of range; write 1 or more".
    pub fn add(&mut self, key: impl Into<String>, text: impl Into<String>) {
        self.0.push((key.into(), text.into()));
    }

    /// Adds the problem that a number is 0, if it is.
    pub fn add_if_zero(&mut self, key: &str, value: u64) {
        if value == 0 {
            self.add(key, "0 is out of range; write 1 or more");
        }
    }

    /// Adds the problem that a number does not lie in a range, if it does not.
    pub fn add_unless_within<N: PartialOrd + fmt::Display>(&mut self, key: &str, value: &N, range: RangeInclusive<N>) {
        if !range.contains(value) {
            let [value, from, to] = [value, range.start(), range.end()].map(N::to_string);
            self.add(key, document::out_of_range(&value, &from, &to));
        }
    }

    /// Adds the problem that a duration is zero, if it is.
    pub fn add_if_instant(&mut self, key: &str, value: Duration) {
        if value.is_zero() {
            self.add(key, "must be greater than zero; write a duration, such as \"10s\"");
        }
    }

    /// Whether no rule is broken.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds the problems of a part of the configuration.
    pub fn extend(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    /// Fails with the problems, if there are any.
    pub fn into_result(self) -> Result<(), Self> {
        if self.is_empty() { Ok(()) } else { Err(self) }
    }
}

/// The problems without lines, for configurations that no file contains.
impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (key, problem)) in self.0.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            write!(f, "{newline}{key}: {problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Reads the configuration file of a process. Errors name the file, the line and the key, all together. Paths in the
/// configuration become relative to the folder of the file, or lie below `$CREDENTIALS_DIRECTORY`. Published example keys are
/// refused here, and only here.
pub fn load<C: DeserializeOwned + Rules>(path: &Path) -> anyhow::Result<C> {
    let text = std::fs::read_to_string(path).with_context(|| texts::cannot_read_configuration(path))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let (config, has_keys) = secrets::of_a_process(folder, || read(&path.display().to_string(), &text));
    let mut config: C = config?;
    for inside in config.paths() {
        *inside = secrets::place(folder, inside).with_context(|| path.display().to_string())?;
    }
    if has_keys && let Err(error) = secrets::refuse_readable_by_all(path) {
        // A folder that is closed to others protects it as well, so this is no refusal.
        tracing::warn!(%error, "{}", texts::KEY_IN_CONFIGURATION);
    }
    Ok(config)
}

/// Reads the text of a configuration. Problems mention `name` as the file.
pub fn read<C: DeserializeOwned + Rules>(name: &str, text: &str) -> Result<C, topology::Problems> {
    let guide = Guide {
        example: C::EXAMPLE,
        once_seconds: C::ONCE_SECONDS,
        renamed: C::RENAMED,
    };
    document::parse(name, text, guide, |config: &C| config.problems().0)
}

/// Reads the text of a configuration without its [`Rules`]. Problems mention `name` as the file.
pub fn parse<C: DeserializeOwned>(name: &str, text: &str) -> Result<C, topology::Problems> {
    document::parse(name, text, Guide::default(), |_| Vec::new())
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use topology::document::Span;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Config {
        port: u16,
        #[serde(default)]
        state_dir: PathBuf,
        #[serde(default)]
        timeout: Option<Span>,
    }

    impl Rules for Config {
        const EXAMPLE: &'static str = "port = 7100\ntimeout = \"20s\"\n";
        const ONCE_SECONDS: &'static [(&'static str, &'static str)] = &[("timeout_seconds", "timeout")];

        fn problems(&self) -> Problems {
            let mut problems = Problems::default();
            problems.add_unless_within("port", &self.port, 1024..=65_535);
            problems.add_if_instant("timeout", self.timeout.map_or(Duration::MAX, |it| it.0));
            problems
        }

        fn paths(&mut self) -> Vec<&mut PathBuf> {
            vec![&mut self.state_dir]
        }
    }

    #[test]
    fn a_file_is_read_with_all_problems_and_paths_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.toml");
        let load = |text: &str| {
            std::fs::write(&file, text).unwrap();
            super::load::<Config>(&file).map_err(|error| error.to_string())
        };
        let config = load("port = 7100\nstate_dir = \"state\"\n").unwrap();
        assert_eq!(config.state_dir, folder.path().join("state"));
        let name = file.display();
        assert_eq!(
            load("port = 1\ntimeout = \"0s\"\ntimeout_seconds = 7\nstate_dir = 7\n").unwrap_err(),
            format!(
                "{name}:1: port: 1 is out of range; write 1024 to 65535\n\
                 {name}:2: timeout: must be greater than zero; write a duration, such as \"10s\"\n\
                 {name}:3: timeout_seconds: whole seconds are now written as a duration; write timeout = \"7s\"\n\
                 {name}:4: state_dir: invalid type: integer `7`, expected path string"
            )
        );
        assert_eq!(load("prot = 1").unwrap_err().lines().count(), 2);
        let error = super::load::<Config>(Path::new("/nowhere/x.toml"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("cannot read configuration /nowhere/x.toml"), "{error}");
    }

    #[test]
    fn problems_without_a_file_name_the_key() {
        let mut problems = Problems::default();
        problems.add_if_zero("limits.sessions_max", 0);
        problems.add_if_zero("limits.connections_max", 1);
        let error = problems.into_result().unwrap_err().to_string();
        assert_eq!(error, "limits.sessions_max: 0 is out of range; write 1 or more");
        Problems::default().into_result().unwrap();
    }
}
