//! Section `[auth]` of the configuration: which devices may use this edge.

use std::{path::PathBuf, time::Duration};

use auth::{Issuer, Kind};
use daemon::config::Problems;
use serde::Deserialize;
use topology::document::Span;

/// Longest difference of clocks that an operator may allow.
const LEEWAY_MAX: Duration = Duration::from_secs(600);

/// The devices that may use this edge.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Auth {
    /// The kind of credential that devices show.
    pub mode: Mode,
    /// The document of tenants, keys and revocations; relative to the configuration file.
    pub devices: Option<PathBuf>,
    /// `iss` of tokens.
    pub issuer: String,
    /// `aud` of tokens names one of these.
    pub audience: Vec<String>,
    /// The issuer publishes its keys there (JSON Web Key Set),
    pub jwks_url: Option<String>,
    /// or somebody puts them into this file; relative to the configuration file.
    pub jwks_file: Option<PathBuf>,
    /// The claim that names the tenant.
    pub tenant_claim: String,
    /// The clocks of issuer and edge may differ by this.
    pub leeway: Span,
    /// The files are looked at this often, so a revocation is in force after this time at most.
    pub reload: Span,
}

/// The kind of credential that devices show.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// None: everybody may use this edge.
    #[default]
    Off,
    /// A key of the document.
    Keys,
    /// A JSON Web Token.
    Jwt,
}

impl Default for Auth {
    fn default() -> Self {
        Self {
            mode: Mode::Off,
            devices: None,
            issuer: String::new(),
            audience: Vec::new(),
            jwks_url: None,
            jwks_file: None,
            tenant_claim: "tenant".to_owned(),
            leeway: Span(Duration::from_secs(30)),
            reload: Span(Duration::from_secs(5)),
        }
    }
}

impl Auth {
    /// The faults, each with its key.
    pub fn problems(&self) -> Problems {
        let mut problems = Problems::default();
        if self.mode == Mode::Off {
            return problems;
        }
        if self.devices.is_none() {
            problems.add(
                "auth.devices",
                "missing; name the document of tenants, as in \"devices.toml\"",
            );
        }
        problems.add_if_instant("auth.reload", self.reload.0);
        if self.mode != Mode::Jwt {
            return problems;
        }
        if self.issuer.is_empty() {
            problems.add("auth.issuer", "missing; write the `iss` of your tokens");
        }
        if self.audience.is_empty() {
            problems.add(
                "auth.audience",
                "missing; write the `aud` of tokens for this service, as in [\"voice\"]",
            );
        }
        if self.jwks_url.is_some() == self.jwks_file.is_some() {
            problems.add(
                "auth.jwks_url",
                "write jwks_url or jwks_file, and not both: the keys come from one place",
            );
        }
        // Anybody on the way of plain text could issue tokens.
        let is_safe = |url: &String| url.starts_with("https://") || url.starts_with("http://127.0.0.1:");
        if self.jwks_url.as_ref().is_some_and(|url| !is_safe(url)) {
            problems.add(
                "auth.jwks_url",
                "not an address of HTTPS; write one as in \"https://id.example/jwks.json\"",
            );
        }
        if self.leeway.0 > LEEWAY_MAX {
            problems.add(
                "auth.leeway",
                "tokens would outlive their end by more than 10 minutes; write at most \"10m\"",
            );
        }
        problems
    }

    /// The paths that are relative to the configuration file.
    pub fn paths(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        self.devices.iter_mut().chain(&mut self.jwks_file)
    }

    /// The issuer as [`auth`] takes it.
    pub(super) fn issuer(&self) -> Issuer {
        Issuer {
            issuer: self.issuer.clone(),
            audience: self.audience.clone(),
            kind: Kind::Access,
            tenant_claim: self.tenant_claim.clone(),
            leeway: self.leeway.0,
        }
    }
}
