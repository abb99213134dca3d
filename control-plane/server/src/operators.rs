//! The operators whom this control plane gives certificates: programs with a token of operators.toml, and people of an identity provider.

use std::{fmt, path::PathBuf, sync::Arc};

use identity::{files, operators::OperatorTokens};
use oidc::Provider;
use parking_lot::Mutex;

use crate::texts::log;

/// The known operators. The file is read at each login, and one that is no good never replaces one that is.
pub(crate) struct Operators {
    /// operators.toml, if there is one.
    file: Option<PathBuf>,
    /// The newest text that was good, and what it says.
    good: Mutex<(String, Arc<OperatorTokens>)>,
    /// The identity provider of people, if there is one.
    provider: Option<Arc<Provider>>,
}

impl fmt::Debug for Operators {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operators")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

impl Operators {
    /// Reads the file.
    ///
    /// # Errors
    ///
    /// It cannot be read, or has mistakes.
    pub(crate) fn load(file: Option<PathBuf>, provider: Option<oidc::Settings>) -> anyhow::Result<Self> {
        let operators = Self {
            file,
            good: Mutex::default(),
            provider: provider.map(|settings| Arc::new(Provider::new(settings))),
        };
        operators.read()?;
        if let Some(provider) = &operators.provider {
            provider.trust()?;
        }
        Ok(operators)
    }

    /// The identity provider.
    pub(crate) fn provider(&self) -> Option<Arc<Provider>> {
        self.provider.clone()
    }

    /// The tokens that are known now.
    pub(crate) fn tokens(&self) -> Arc<OperatorTokens> {
        if let Err(error) = self.read() {
            tracing::error!(%error, "{}", log::TOKENS_REFUSED);
        }
        self.good.lock().1.clone()
    }

    fn read(&self) -> anyhow::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let text = files::read(file)?;
        let mut good = self.good.lock();
        if good.0 != text {
            let tokens = OperatorTokens::parse(&file.display().to_string(), &text)?;
            *good = (text, Arc::new(tokens));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use topology::Moment;

    use super::*;

    #[test]
    fn a_file_that_is_no_good_never_replaces_one_that_is() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("operators.toml");
        let token = "[[token]]\nname = \"ci\"\nroles = \"viewer\"\nexpires = \"2030-01-01T00:00:00Z\"\n";
        let good = format!("{token}sha256 = \"{}\"\n", "ab".repeat(32));
        std::fs::write(&file, &good).unwrap();
        let operators = Operators::load(Some(file.clone()), None).unwrap();
        let knows = || operators.tokens().recognise(&"ab".repeat(32), "ci", Moment(1)).is_ok();
        assert!(knows());
        std::fs::write(&file, token).unwrap();
        assert!(knows(), "half of a file");
        assert!(
            Operators::load(Some(file.clone()), None).is_err(),
            "a process does not start with it"
        );
        std::fs::write(&file, "").unwrap();
        assert!(!knows(), "the token was removed");
    }
}
