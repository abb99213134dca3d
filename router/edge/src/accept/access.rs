//! Recognises devices: [`auth`] with the documents and the key set that are in force at this edge, and with its counts.

use std::{collections::HashMap, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use auth::{Denied, Device, Devices, Exceeded, TenantUsage, Tenants, Tokens};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio::sync::Notify;
use topology::Moment;

use crate::{accept::auth_config::Mode, answer::Answer, texts};

/// Tokens that were verified and are not verified again. One takes some 250 bytes.
const VERIFIED_MAX: usize = 20_000;

/// A device may ask this much later whether a session of its tenant has ended. Nobody knows when one does.
const SESSION_RETRY_S: u64 = 5;

/// The headers of a used-up limit, as clients of the OpenAI API read them: its limit, the rest of it and its renewal. The API counts
/// requests and tokens. Sessions begin with a request; bytes, which are the volume of what a device sends, stand where tokens would.
const REQUESTS: [&str; 3] = [
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
];
const TOKENS: [&str; 3] = [
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-tokens",
];

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
                let mut answer = Answer::too_many("too_many_sessions", texts::tenant_sessions(max), SESSION_RETRY_S);
                let reset = Duration::from_secs(SESSION_RETRY_S);
                answer.headers.extend(used_up(&REQUESTS, u64::from(max), reset));
                answer
            }
            Self::Exceeded(Exceeded::Rate {
                per_minute,
                wait,
                reset,
            }) => {
                let message = texts::tenant_rate(per_minute);
                let mut answer = Answer::too_many("rate_limit_exceeded", message, wait.as_secs() + 1);
                answer.headers.extend(used_up(&REQUESTS, u64::from(per_minute), reset));
                answer
            }
            Self::Exceeded(Exceeded::Bytes { per_day, wait }) => {
                let message = texts::tenant_bytes(per_day);
                let mut answer = Answer::too_many("insufficient_quota", message, wait.as_secs() + 1);
                answer.headers.extend(used_up(&TOKENS, per_day, wait));
                answer
            }
        }
    }
}

fn used_up(names: &[&'static str; 3], limit: u64, reset: Duration) -> [(&'static str, String); 3] {
    let [limits, remaining, resets] = *names;
    [
        (limits, limit.to_string()),
        (remaining, "0".to_owned()),
        (resets, format!("{}ms", reset.as_millis())),
    ]
}

#[cfg(test)]
mod tests {
    use auth::{Issuer, Kind, fixtures::Provider};
    use serde_json::json;

    use super::*;

    const NOW: Moment = Moment(1_796_000_000_000);
    /// Those of a second of the flood that an edge has to stand.
    const WRONG: usize = 10_000;

    fn access(mode: Mode, tokens: Option<Tokens>) -> Access {
        let document = format!(
            "[[tenant]]\nname = \"acme\"\n[[key]]\nname = \"kitchen\"\ntenant = \"acme\"\nsha256 = \"{}\"\n",
            hex::encode(Sha256::digest("mk_kitchen"))
        );
        Access::new(mode, Devices::parse("devices.toml", &document).unwrap(), tokens)
    }

    fn denied(access: &Access, credential: &str) -> Denied {
        match access.admit(Some(credential), NOW) {
            Err(Refused::Denied(denied)) => denied,
            other => panic!("{other:?}"),
        }
    }

    /// Nothing is remembered of a wrong token, and none pushes a good one out.
    #[test]
    fn ten_thousand_wrong_tokens_cost_a_good_device_nothing() {
        let (provider, other) = (Provider::new(), Provider::new());
        let issuer = Issuer {
            issuer: "https://id.example".to_owned(),
            audience: vec!["voice".to_owned()],
            kind: Kind::Access,
            tenant_claim: "tenant".to_owned(),
            leeway: Duration::from_secs(30),
        };
        let tokens = Tokens::parse(issuer, &provider.set().to_string()).unwrap();
        let access = access(Mode::Jwt, Some(tokens));
        let claims = |jti: usize| {
            let exp = NOW.0 / 1000 + 600;
            json!({ "iss": "https://id.example", "aud": "voice", "sub": "ada", "tenant": "acme", "jti": jti.to_string(), "exp": exp })
        };
        let good = provider.sign(&json!({ "alg": "ES256", "kid": "p" }), &claims(0));
        assert!(access.admit(Some(&good), NOW).is_ok());
        let forged = other.sign(&json!({ "alg": "ES256", "kid": "p" }), &claims(1));
        let (head, signature) = forged.rsplit_once('.').unwrap();
        for n in 0..WRONG {
            // Each is another text; a signature of its own would only make this test slower.
            let wrong = match n % 4 {
                0 => forged.clone() + &format!("{n}"),
                1 => format!("{head}{n}.{signature}"),
                2 => other.sign(&json!({ "alg": "ES256", "kid": format!("k{n}") }), &claims(n)),
                _ => format!("nonsense {n}"),
            };
            let expected = if n % 4 == 2 {
                Denied::UnknownSigner
            } else {
                Denied::BadToken
            };
            assert_eq!(denied(&access, &wrong), expected, "{wrong}");
        }
        assert_eq!(denied(&access, &forged), Denied::BadToken);
        assert!(access.admit(Some(&good), NOW).is_ok());
        assert_eq!(access.verified.lock().len(), 1, "the good one alone");
    }

    #[test]
    fn ten_thousand_wrong_keys_cost_a_good_device_nothing() {
        let access = access(Mode::Keys, None);
        for n in 0..WRONG {
            assert_eq!(denied(&access, &format!("mk_{n}")), Denied::UnknownKey);
        }
        assert!(access.admit(Some("mk_kitchen"), NOW).is_ok());
        assert!(access.verified.lock().is_empty());
    }

    #[test]
    fn every_used_up_limit_is_told_in_the_headers_of_the_api() {
        let wait = Duration::from_secs(90);
        let headers = |exceeded| Refused::from(exceeded).answer().headers;
        let sessions = headers(Exceeded::Sessions { max: 7 });
        let rate = headers(Exceeded::Rate {
            per_minute: 8,
            wait,
            reset: wait,
        });
        let bytes = headers(Exceeded::Bytes { per_day: 9, wait });
        for (answered, unit, limit, reset) in [
            (sessions, "requests", "7", "5000ms"),
            (rate, "requests", "8", "90000ms"),
            (bytes, "tokens", "9", "90000ms"),
        ] {
            for (name, value) in [("limit", limit), ("remaining", "0"), ("reset", reset)] {
                let name = format!("x-ratelimit-{name}-{unit}");
                let said: Vec<&str> = (answered.iter())
                    .filter(|(known, _)| *known == name)
                    .map(|(_, value)| value.as_str())
                    .collect();
                assert_eq!(said, [value], "{name}");
            }
        }
    }
}
