//! Keeps what an edge knows of devices up to date: it looks at the documents, asks the issuer of tokens for its keys, and ends
//! the sessions of devices that were revoked.
//!
//! A document or a set of keys that is not valid never replaces one that is. While the issuer does not answer, its last keys
//! go on verifying, also after a restart of the edge.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use auth::{Devices, Tokens};
use sha2::{Digest as _, Sha256};

use super::issuer_url::IssuerUrl;
use crate::{
    Edge,
    accept::access::Access,
    accept::auth_config::{Auth, Mode},
    metrics::Metrics,
    texts,
};

/// A file that does not change for this long is written to its end. Half of one would lock devices out.
const STILL_FOR: Duration = Duration::from_millis(200);
/// The edge asks the issuer for its keys this often,
const FETCH_EVERY: Duration = Duration::from_secs(300);
/// and at most this often because of tokens that are signed with unknown keys: anybody can make those up.
const FETCH_AGAIN_AFTER: Duration = Duration::from_secs(60);
/// The edge asks this often while it has no keys.
const FETCH_FIRST_EVERY: Duration = Duration::from_secs(2);
/// Longest wait for the issuer's answer.
const FETCH_MAX: Duration = Duration::from_secs(10);

/// The documents that an edge follows, and [`Access`], where it puts them in force.
#[derive(Debug)]
pub struct Documents {
    auth: Auth,
    access: Arc<Access>,
    /// The file with the issuer's last keys.
    last_set: PathBuf,
    /// The content of the files at the last look, so that each change is judged and logged once.
    seen: Files,
    metrics: Metrics,
}

/// The content of the files; none of a file that is not configured or cannot be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Files {
    devices: Option<String>,
    set: Option<String>,
}

impl Documents {
    /// Reads the documents; `None` when everybody may use this edge.
    ///
    /// # Errors
    ///
    /// A document cannot be read or is not valid: an edge that starts without knowing its devices would refuse all of them.
    pub fn load(auth: &Auth, state_dir: &Path, metrics: Metrics) -> anyhow::Result<Option<Self>> {
        if auth.mode == Mode::Off {
            return Ok(None);
        }
        let text = read(auth.devices.as_deref())?;
        let devices = parse(auth, &text)?;
        // The keys of one issuer must not verify the tokens of another.
        let of = hex::encode(&Sha256::digest(&auth.issuer)[..8]);
        let last_set = state_dir.join(format!("jwks-{of}.json"));
        let mut set = None;
        let mut tokens = None;
        if let Some(file) = &auth.jwks_file {
            let text = read(Some(file))?;
            tokens = Some(Tokens::parse(auth.issuer(), &text).with_context(|| file.display().to_string())?);
            set = Some(text);
        } else if let Ok(text) = std::fs::read_to_string(&last_set) {
            // It was valid when it was written, and the issuer may not answer now.
            tokens = Tokens::parse(auth.issuer(), &text).ok();
        }
        Ok(Some(Self {
            access: Arc::new(Access::new(auth.mode, devices, tokens)),
            auth: auth.clone(),
            last_set,
            seen: Files {
                devices: Some(text),
                set,
            },
            metrics,
        }))
    }

    /// Recognises devices by these documents.
    pub fn access(&self) -> Arc<Access> {
        self.access.clone()
    }

    /// Follows the documents and the issuer's keys, and ends the sessions of devices that were revoked. Never returns.
    pub async fn follow(self, edge: Arc<Edge>) {
        let look = async {
            let mut seen = self.seen.clone();
            let mut ticks = tokio::time::interval(self.auth.reload.0);
            loop {
                ticks.tick().await;
                self.look(&mut seen).await;
                // Each time: a session may have begun by the document before while the new one came.
                let revoked = edge.sessions.revoke(|device| !self.access.permits(device));
                if revoked > 0 {
                    tracing::info!(revoked, "sessions of revoked devices end after their turn");
                }
                edge.metrics.forget_tenants();
                self.access
                    .for_each_tenant(|tenant, sessions| edge.metrics.tenant(tenant, sessions));
            }
        };
        tokio::join!(look, self.fetch_keys());
    }

    fn read_files(&self) -> Files {
        let set = self.auth.jwks_file.as_deref();
        Files {
            devices: read(self.auth.devices.as_deref()).ok(),
            set: set.and_then(|file| read(Some(file)).ok()),
        }
    }

    /// Looks at the files, and takes those that changed and are written to their end.
    async fn look(&self, seen: &mut Files) {
        let now = self.read_files();
        if *seen == now {
            return;
        }
        tokio::time::sleep(STILL_FOR).await;
        if self.read_files() == now {
            let last = std::mem::replace(seen, now);
            self.take(&last, seen);
        }
    }

    /// Puts the files that changed in force, if they are valid.
    fn take(&self, last: &Files, now: &Files) {
        if last.devices != now.devices {
            match now.devices.as_ref().map(|text| parse(&self.auth, text)) {
                Some(Ok(devices)) => {
                    let in_vain = devices.revoked_in_vain();
                    if !in_vain.is_empty() {
                        tracing::warn!(?in_vain, "{}", texts::REVOKED_IN_VAIN);
                    }
                    tracing::info!(keys = devices.len(), "a new document of devices is in force");
                    self.access.put_devices(devices);
                }
                Some(Err(error)) => self.keeps("devices", &format!("{error:#}")),
                None => self.keeps("devices", "the file cannot be read"),
            }
        }
        if last.set != now.set {
            match &now.set {
                Some(set) => drop(self.take_set(set)),
                None => self.keeps("jwks", "the file cannot be read"),
            }
        }
    }

    /// Puts another set of keys of the issuer in force, if it is valid. Returns whether it is.
    fn take_set(&self, set: &str) -> bool {
        match Tokens::parse(self.auth.issuer(), set) {
            Ok(tokens) => {
                self.access.put_tokens(tokens);
                true
            }
            Err(error) => {
                self.keeps("jwks", &error.to_string());
                false
            }
        }
    }

    /// Counts and logs a document that the edge does not take.
    fn keeps(&self, document: &str, why: &str) {
        self.metrics.auth_document_refused();
        tracing::error!(document, why, "{}", texts::DOCUMENT_REFUSED);
    }

    /// Asks the issuer for its keys, again and again.
    async fn fetch_keys(&self) {
        let (Mode::Jwt, Some(url)) = (self.auth.mode, &self.auth.jwks_url) else {
            return;
        };
        let issuer = match IssuerUrl::new(url, FETCH_MAX) {
            Ok(issuer) => issuer,
            Err(error) => {
                let error = format!("{error:#}");
                return tracing::error!(url, error, "{}", texts::ISSUER_URL_UNUSABLE);
            }
        };
        let mut last = String::new();
        loop {
            if let Err(error) = self.fetch(&issuer, &mut last).await {
                tracing::warn!(url, error = format!("{error:#}"), "{}", texts::ISSUER_SENT_NO_KEYS);
                self.metrics.auth_document_refused();
            }
            if !self.access.has_keys() {
                tokio::time::sleep(FETCH_FIRST_EVERY).await;
                continue;
            }
            tokio::time::sleep(FETCH_AGAIN_AFTER).await;
            let _ = tokio::time::timeout(FETCH_EVERY - FETCH_AGAIN_AFTER, self.access.unknown_signer()).await;
        }
    }

    /// Asks the issuer for its keys once. `last` is the set that came last.
    async fn fetch(&self, issuer: &IssuerUrl, last: &mut String) -> anyhow::Result<()> {
        let set = issuer.get(auth::SET_BYTES_MAX).await?;
        let set = String::from_utf8(set).context("the set of keys is not text")?;
        if *last == set {
            return Ok(());
        }
        if self.take_set(&set) {
            tracing::info!("the issuer's keys are in force");
            let beside = self.last_set.with_extension("new");
            let written = std::fs::write(&beside, &set).and_then(|()| std::fs::rename(&beside, &self.last_set));
            written.with_context(|| format!("cannot write {}", self.last_set.display()))?;
        }
        *last = set;
        Ok(())
    }
}

fn read(file: Option<&Path>) -> anyhow::Result<String> {
    let file = file.context("auth.devices names no file")?;
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

fn parse(auth: &Auth, text: &str) -> anyhow::Result<Devices> {
    let name = auth.devices.as_deref().unwrap_or(Path::new("")).display().to_string();
    Ok(Devices::parse(&name, text)?)
}
