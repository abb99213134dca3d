//! Recognises devices: [`auth`] with the documents and the key set that are in force at this edge, and with its counts.

use std::{collections::HashMap, sync::Arc};

use arc_swap::ArcSwap;
use auth::{Denied, Device, Devices, Exceeded, TenantUsage, Tenants, Tokens};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio::sync::Notify;
use topology::Moment;

use crate::{accept::auth_config::Mode, answer::Answer, texts};

/// Tokens that were verified and are not verified again. One takes some 250 bytes.
const VERIFIED_MAX: usize = 20_000;

/// Recognises devices and counts what their tenants use.
#[derive(Debug)]
pub struct Access {
    mode: Mode,
    in_force: ArcSwap<InForce>,
    tenants: Mutex<Tenants>,
    /// Tokens that were verified, by their hash.
    verified: Mutex<HashMap<[u8; 32], Arc<Device>>>,
    /// Notified when a token is signed with a key that the set does not have.
    unknown_signer: Notify,
}

#[derive(Debug, Clone)]
struct InForce {
    devices: Arc<Devices>,
    /// None in mode `keys`, and until the issuer's keys came.
    tokens: Option<Arc<Tokens>>,
}

/// A device that may use this edge.
#[derive(Debug, Clone)]
pub struct Admitted {
    pub device: Arc<Device>,
    pub usage: Arc<TenantUsage>,
}

/// A request that names no device, or one that may not use this edge now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    Denied(Denied),
    Exceeded(Exceeded),
}

impl Access {
    pub(super) fn new(mode: Mode, devices: Devices, tokens: Option<Tokens>) -> Self {
        let mut tenants = Tenants::default();
        tenants.follow(&devices);
        Self {
            mode,
            in_force: ArcSwap::from_pointee(InForce {
                devices: Arc::new(devices),
                tokens: tokens.map(Arc::new),
            }),
            tenants: Mutex::new(tenants),
            verified: Mutex::default(),
            unknown_signer: Notify::new(),
        }
    }

    /// Recognises the device that shows this credential. The caller counts its request.
    pub fn admit(&self, credential: Option<&str>, now: Moment) -> Result<Admitted, Refused> {
        let device = self.recognise(credential, now)?;
        let usage = self.tenants.lock().get(&device.tenant).cloned();
        let usage = usage.ok_or(Denied::UnknownTenant)?;
        Ok(Admitted { device, usage })
    }

    fn recognise(&self, credential: Option<&str>, now: Moment) -> Result<Arc<Device>, Denied> {
        let credential = credential.ok_or(Denied::NoCredential)?;
        let in_force = self.in_force.load();
        if self.mode == Mode::Keys {
            return in_force.devices.recognise(credential, now).map(Arc::new);
        }
        let hash: [u8; 32] = Sha256::digest(credential).into();
        let verified = self.verified.lock().get(&hash).cloned();
        let verified = verified.filter(|device| device.until.is_none_or(|until| now < until));
        let device = match verified {
            Some(device) => device,
            None => {
                let tokens = in_force.tokens.as_ref().ok_or(Denied::NoKeys)?;
                let device = tokens.recognise(credential, now).inspect_err(|denied| {
                    if *denied == Denied::UnknownSigner {
                        self.unknown_signer.notify_one();
                    }
                });
                let device = Arc::new(device?);
                let mut verified = self.verified.lock();
                let newest = self.in_force.load();
                // A new set may have come meanwhile, and then nothing that the old one verified may be remembered.
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
        in_force.devices.permits(&device)?;
        Ok(device)
    }

    /// Whether a device that was let in may go on.
    pub fn permits(&self, device: &Device) -> bool {
        self.in_force.load().devices.permits(device).is_ok()
    }

    /// Whether a key of the issuer is known.
    pub(super) fn has_keys(&self) -> bool {
        self.in_force.load().tokens.is_some()
    }

    /// Resolves when a token came that no known key signed.
    pub(super) async fn unknown_signer(&self) {
        self.unknown_signer.notified().await;
    }

    /// The number of sessions of each tenant.
    pub(super) fn for_each_tenant(&self, mut tell: impl FnMut(&str, u32)) {
        for (tenant, usage) in self.tenants.lock().iter() {
            tell(tenant, usage.sessions());
        }
    }

    /// Puts a document of devices in force.
    pub(super) fn put_devices(&self, devices: Devices) {
        self.tenants.lock().follow(&devices);
        self.replace(|in_force| in_force.devices = Arc::new(devices));
    }

    /// Puts a set of keys of the issuer in force.
    pub(super) fn put_tokens(&self, tokens: Tokens) {
        self.replace(|in_force| in_force.tokens = Some(Arc::new(tokens)));
        // The issuer may have withdrawn a key.
        self.verified.lock().clear();
    }

    fn replace(&self, change: impl FnOnce(&mut InForce)) {
        // Only the task that follows the documents comes here, so no change between the two steps is lost.
        let mut in_force = InForce::clone(&self.in_force.load());
        change(&mut in_force);
        self.in_force.store(Arc::new(in_force));
    }
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

    /// The answer, with the codes and headers of the OpenAI API.
    pub fn answer(self) -> Answer {
        match self {
            Self::Denied(denied @ Denied::NoKeys) => Answer::unavailable("no_issuer_keys", denied.to_string(), 5),
            Self::Denied(denied) => Answer::unauthorized(denied.to_string()),
            Self::Exceeded(Exceeded::Sessions { max }) => {
                Answer::too_many("too_many_sessions", texts::tenant_sessions(max), 5)
            }
            Self::Exceeded(Exceeded::Rate {
                per_minute,
                wait,
                reset,
            }) => {
                let message = texts::tenant_rate(per_minute);
                let mut answer = Answer::too_many("rate_limit_exceeded", message, wait.as_secs() + 1);
                answer.headers.extend([
                    ("x-ratelimit-limit-requests", per_minute.to_string()),
                    ("x-ratelimit-remaining-requests", "0".to_owned()),
                    ("x-ratelimit-reset-requests", format!("{}ms", reset.as_millis())),
                ]);
                answer
            }
            Self::Exceeded(Exceeded::Bytes { per_day, wait }) => {
                Answer::too_many("insufficient_quota", texts::tenant_bytes(per_day), wait.as_secs() + 1)
            }
        }
    }
}
