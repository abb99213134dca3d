//! The devices that may use this edge: [`auth`] with this edge's documents, key set and counts.
//!
//! A document or a set of keys that is no good never replaces one that is. When the issuer of tokens is gone, its last keys go on
//! verifying, also after a restart of the edge.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use auth::{Denied, Device, Devices, Exceeded, Issuer, Standing, Tenants, Tokens};
use daemon::config::Problems;
use parking_lot::Mutex;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::sync::Notify;
use topology::{Moment, document::Span};

use super::issuer_url::IssuerUrl;
use crate::{Edge, answer::Answer, metrics::Metrics};

/// The subprotocol by which a browser's page shows its key: pages cannot set headers of a WebSocket.
const KEY_SUBPROTOCOL: &str = "openai-insecure-api-key.";
/// Longest difference of clocks that is allowed for.
const LEEWAY_MAX: Duration = Duration::from_secs(600);
/// Tokens that were verified and are not verified again. One takes some 250 bytes.
const VERIFIED_MAX: usize = 20_000;
/// Somebody who writes a file has written it after this time.
const HOLDS_STILL_FOR: Duration = Duration::from_millis(200);
/// The issuer is asked for its keys this often.
const FETCH_EVERY: Duration = Duration::from_secs(300);
/// And at most this often because of tokens that are signed with unknown keys: anybody can make those up.
const FETCH_AGAIN_AFTER: Duration = Duration::from_secs(60);
/// The issuer has so long to send them.
const FETCH_MAX: Duration = Duration::from_secs(10);
/// And this often while the edge has none.
const FETCH_FIRST_EVERY: Duration = Duration::from_secs(2);

/// Section `[auth]`: which devices may use this edge.
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
    /// Its faults, each with its key.
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

    fn issuer(&self) -> Issuer {
        Issuer {
            issuer: self.issuer.clone(),
            audience: self.audience.clone(),
            tenant_claim: self.tenant_claim.clone(),
            leeway: self.leeway.0,
        }
    }
}

/// Recognises devices and counts what their tenants use.
#[derive(Debug)]
pub struct Access {
    auth: Auth,
    /// Keeps the issuer's last keys.
    last_set: PathBuf,
    known: ArcSwap<Known>,
    tenants: Mutex<Tenants>,
    /// Tokens that were verified, by their hash.
    verified: Mutex<HashMap<[u8; 32], Arc<Device>>>,
    /// A token is signed with a key that the set does not have.
    unknown_signer: Notify,
    /// The content of the files at the last look, so that each change is judged and logged once.
    looked_at: Mutex<Looked>,
    metrics: Metrics,
}

#[derive(Debug, Clone)]
struct Known {
    devices: Arc<Devices>,
    /// None in mode `keys`, and until the issuer's keys came.
    tokens: Option<Arc<Tokens>>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Looked {
    devices: Option<String>,
    set: Option<String>,
}

/// A device that may use this edge.
#[derive(Debug, Clone)]
pub struct Admitted {
    pub device: Arc<Device>,
    pub standing: Arc<Standing>,
}

/// A request that names no device, or one that may not use this edge now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    Denied(Denied),
    Exceeded(Exceeded),
}

impl Access {
    /// Reads the documents; `None` when everybody may use this edge.
    ///
    /// # Errors
    ///
    /// One cannot be read or is no good: an edge that starts without knowing whom to let in would refuse everybody.
    pub fn load(auth: &Auth, state_dir: &Path, metrics: Metrics) -> anyhow::Result<Option<Arc<Self>>> {
        if auth.mode == Mode::Off {
            return Ok(None);
        }
        let text = read(auth.devices.as_deref())?;
        let devices = parse(auth, &text)?;
        // Keys of one issuer are no keys of another.
        let of = hex::encode(&Sha256::digest(&auth.issuer)[..8]);
        let last_set = state_dir.join(format!("jwks-{of}.json"));
        let mut set = None;
        let mut tokens = None;
        if let Some(file) = &auth.jwks_file {
            let text = read(Some(file))?;
            tokens = Some(Tokens::parse(auth.issuer(), &text).with_context(|| file.display().to_string())?);
            set = Some(text);
        } else if let Ok(text) = std::fs::read_to_string(&last_set) {
            // It was good when it was written; the issuer may be away now.
            tokens = Tokens::parse(auth.issuer(), &text).ok();
        }
        let mut tenants = Tenants::default();
        tenants.follow(&devices);
        Ok(Some(Arc::new(Self {
            auth: auth.clone(),
            last_set,
            known: ArcSwap::from_pointee(Known {
                devices: Arc::new(devices),
                tokens: tokens.map(Arc::new),
            }),
            tenants: Mutex::new(tenants),
            verified: Mutex::default(),
            unknown_signer: Notify::new(),
            looked_at: Mutex::new(Looked {
                devices: Some(text),
                set,
            }),
            metrics,
        })))
    }

    /// Recognises the device that shows this credential. Whoever lets it in counts its request.
    pub fn admit(&self, credential: Option<&str>, now: Moment) -> Result<Admitted, Refused> {
        let device = self.recognise(credential, now)?;
        let standing = self.tenants.lock().get(&device.tenant).cloned();
        let standing = standing.ok_or(Denied::UnknownTenant)?;
        Ok(Admitted { device, standing })
    }

    fn recognise(&self, credential: Option<&str>, now: Moment) -> Result<Arc<Device>, Denied> {
        let credential = credential.ok_or(Denied::NoCredential)?;
        let known = self.known.load();
        if self.auth.mode == Mode::Keys {
            return known.devices.recognise(credential, now).map(Arc::new);
        }
        let hash: [u8; 32] = Sha256::digest(credential).into();
        let verified = self.verified.lock().get(&hash).cloned();
        let verified = verified.filter(|device| device.until.is_none_or(|until| now < until));
        let device = match verified {
            Some(device) => device,
            None => {
                let tokens = known.tokens.as_ref().ok_or(Denied::NoKeys)?;
                let device = tokens.recognise(credential, now).inspect_err(|denied| {
                    if *denied == Denied::UnknownSigner {
                        self.unknown_signer.notify_one();
                    }
                });
                let device = Arc::new(device?);
                let mut verified = self.verified.lock();
                let newest = self.known.load();
                // The set may have been exchanged meanwhile, and what was verified by the old one forgotten.
                if newest.tokens.as_ref().is_some_and(|newest| Arc::ptr_eq(newest, tokens)) {
                    // Rare, and a token costs 80 µs to verify again.
                    if verified.len() >= VERIFIED_MAX {
                        verified.clear();
                    }
                    verified.insert(hash, device.clone());
                }
                device
            }
        };
        known.devices.permits(&device)?;
        Ok(device)
    }

    /// Reads the files.
    fn read_files(&self) -> Looked {
        let set = self.auth.jwks_file.as_deref();
        Looked {
            devices: read(self.auth.devices.as_deref()).ok(),
            // Without the file the keys come from elsewhere, and this is always none.
            set: set.and_then(|file| read(Some(file)).ok()),
        }
    }

    /// Looks at the files, and takes what is new and good. Half of a file would lock devices out, so a file is taken once it holds still.
    async fn look(&self) {
        let now = self.read_files();
        if *self.looked_at.lock() == now {
            return;
        }
        tokio::time::sleep(HOLDS_STILL_FOR).await;
        if self.read_files() == now {
            self.take(now);
        }
    }

    fn take(&self, now: Looked) {
        let mut looked_at = self.looked_at.lock();
        let last = std::mem::replace(&mut *looked_at, now);
        if last.devices != looked_at.devices {
            match looked_at.devices.as_ref().map(|text| parse(&self.auth, text)) {
                Some(Ok(devices)) => {
                    self.tenants.lock().follow(&devices);
                    let in_vain = devices.revoked_in_vain();
                    if !in_vain.is_empty() {
                        tracing::warn!(
                            ?in_vain,
                            "the document of devices revokes what it does not name; check the spelling"
                        );
                    }
                    tracing::info!(keys = devices.len(), "a new document of devices is in force");
                    self.replace(|known| known.devices = Arc::new(devices));
                }
                Some(Err(error)) => self.keeps("devices", &format!("{error:#}")),
                None => self.keeps("devices", "the file cannot be read"),
            }
        }
        if last.set != looked_at.set {
            match &looked_at.set {
                Some(set) => drop(self.take_set(set)),
                None => self.keeps("jwks", "the file cannot be read"),
            }
        }
    }

    /// Takes another set of keys of the issuer, if it is good.
    fn take_set(&self, set: &str) -> bool {
        match Tokens::parse(self.auth.issuer(), set) {
            Ok(tokens) => {
                self.replace(|known| known.tokens = Some(Arc::new(tokens)));
                // A key may have been taken back.
                self.verified.lock().clear();
                true
            }
            Err(error) => {
                self.keeps("jwks", &error.to_string());
                false
            }
        }
    }

    fn replace(&self, change: impl FnOnce(&mut Known)) {
        // Only the task that looks at the files and asks the issuer comes here, so nothing is lost between.
        let mut known = Known::clone(&self.known.load());
        change(&mut known);
        self.known.store(Arc::new(known));
    }

    fn keeps(&self, document: &str, why: &str) {
        self.metrics.auth_document_refused();
        tracing::error!(
            document,
            why,
            "this edge keeps what it knows of devices; correct the document"
        );
    }

    /// Whether a device that was let in is still welcome.
    pub fn permits(&self, device: &Device) -> bool {
        self.known.load().devices.permits(device).is_ok()
    }

    /// Asks the issuer for its keys. `last` are those that came last.
    async fn fetch(&self, issuer: &IssuerUrl, last: &mut String) -> anyhow::Result<()> {
        let set = tokio::time::timeout(FETCH_MAX, issuer.get(auth::SET_BYTES_MAX)).await;
        let set = set.with_context(|| format!("no answer within {FETCH_MAX:?}"))??;
        let set = String::from_utf8(set).context("the set of keys is no text")?;
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

/// Follows the documents and the issuer's keys, and ends the sessions of devices that were revoked. Never returns.
pub async fn follow(edge: Arc<Edge>) {
    let Some(access) = edge.access.clone() else {
        return std::future::pending().await;
    };
    let look = async {
        let mut ticks = tokio::time::interval(access.auth.reload.0);
        loop {
            ticks.tick().await;
            access.look().await;
            // Each time: a session may have begun by the document before while the new one came.
            let revoked = edge.sessions.revoke(|device| !access.permits(device));
            if revoked > 0 {
                tracing::info!(revoked, "sessions of revoked devices end with their turn");
            }
            edge.metrics.forget_tenants();
            for (tenant, standing) in access.tenants.lock().iter() {
                edge.metrics.tenant(tenant, standing.sessions());
            }
        }
    };
    tokio::join!(look, fetch_keys(&access));
}

async fn fetch_keys(access: &Access) {
    let (Mode::Jwt, Some(url)) = (access.auth.mode, &access.auth.jwks_url) else {
        return;
    };
    let issuer = match IssuerUrl::new(url) {
        Ok(issuer) => issuer,
        Err(error) => {
            let error = format!("{error:#}");
            return tracing::error!(
                url,
                error,
                "this edge cannot ask for the issuer's keys; those that are known stay in force"
            );
        }
    };
    let mut last = String::new();
    loop {
        if let Err(error) = access.fetch(&issuer, &mut last).await {
            tracing::warn!(
                url,
                error = format!("{error:#}"),
                "the issuer's keys did not come; those that are known stay in force"
            );
            access.metrics.auth_document_refused();
        }
        if access.known.load().tokens.is_none() {
            tokio::time::sleep(FETCH_FIRST_EVERY).await;
            continue;
        }
        tokio::time::sleep(FETCH_AGAIN_AFTER).await;
        let _ = tokio::time::timeout(FETCH_EVERY - FETCH_AGAIN_AFTER, access.unknown_signer.notified()).await;
    }
}

/// The credential of a request: that of its `Authorization`, or that among the subprotocols of an upgrade.
pub fn credential<'h>(authorization: Option<&'h str>, subprotocols: impl Iterator<Item = &'h str>) -> Option<&'h str> {
    let bearer = authorization.and_then(crate::http1::request::bearer);
    bearer.or_else(|| {
        let mut offered = subprotocols.flat_map(|list| list.split(',')).map(str::trim);
        offered.find_map(|offered| offered.strip_prefix(KEY_SUBPROTOCOL))
    })
}

/// The subprotocols that a stack may see: all but the key.
pub fn without_key(subprotocols: &str) -> String {
    let offered = subprotocols.split(',').map(str::trim);
    let shown: Vec<&str> = offered.filter(|it| !it.starts_with(KEY_SUBPROTOCOL)).collect();
    shown.join(", ")
}

impl From<Denied> for Refused {
    fn from(denied: Denied) -> Self {
        Self::Denied(denied)
    }
}

impl From<Exceeded> for Refused {
    fn from(exceeded: Exceeded) -> Self {
        Self::Exceeded(exceeded)
    }
}

impl Refused {
    /// The reason's name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Denied(denied) => denied.as_str(),
            Self::Exceeded(exceeded) => exceeded.as_str(),
        }
    }

    /// The answer, in the words and headers of the OpenAI API.
    pub fn answer(self) -> Answer {
        match self {
            Self::Denied(denied @ Denied::NoKeys) => Answer::unavailable("no_issuer_keys", denied.to_string(), 5),
            Self::Denied(denied) => Answer::unauthorized(denied.to_string()),
            Self::Exceeded(Exceeded::Sessions { max }) => {
                let message = format!("this tenant has its {max} sessions at this edge; end one");
                Answer::too_many("too_many_sessions", message, 5)
            }
            Self::Exceeded(Exceeded::Rate {
                per_minute,
                wait,
                reset,
            }) => {
                let message = format!("this tenant may ask {per_minute} times a minute at this edge; slow down");
                let mut answer = Answer::too_many("rate_limit_exceeded", message, wait.as_secs() + 1);
                answer.headers.extend([
                    ("x-ratelimit-limit-requests", per_minute.to_string()),
                    ("x-ratelimit-remaining-requests", "0".to_owned()),
                    ("x-ratelimit-reset-requests", format!("{}ms", reset.as_millis())),
                ]);
                answer
            }
            Self::Exceeded(Exceeded::Bytes { per_day, wait }) => {
                let message = format!(
                    "the devices of this tenant sent the {per_day} bytes of this day (UTC) to this edge; come back tomorrow"
                );
                Answer::too_many("insufficient_quota", message, wait.as_secs() + 1)
            }
        }
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
