//! An identity provider as a control plane knows it: whose id tokens count, and whom they name.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use auth::{Denied, Issuer, Kind, Tokens};
use identity::files;
use parking_lot::Mutex;
use serde_json::Value;
use topology::Moment;

use crate::{
    http::{Client, Metadata, Unasked},
    person::{Nobody, Person, Rules},
    texts,
};

/// The provider's keys are asked for again after this time, and no more often than every minute: a token with an unknown key is no
/// reason to ask for each of thousands.
const FRESH: Duration = Duration::from_secs(300);
const ASK_EVERY: Duration = Duration::from_secs(60);
/// The clocks of provider and control plane may differ by this.
const LEEWAY: Duration = Duration::from_secs(30);

/// A provider, and how its people become operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `iss` of its tokens, which is also its address.
    pub issuer: String,
    /// The name of this deployment at the provider: `aud` of its tokens.
    pub client_id: String,
    /// The scope that the command asks for.
    pub scope: String,
    /// The roots under which it proves its name, in PEM; `None` are those of the machine.
    pub trust: Option<PathBuf>,
    /// The mapping of claims to an operator.
    pub rules: Rules,
}

/// The provider, with the keys that it published.
#[derive(Debug)]
pub struct Provider {
    settings: Settings,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    tokens: Option<Arc<Tokens>>,
    /// The time of the newest question for keys, and the reason for which it brought none.
    asked: Option<Moment>,
    failed: Option<String>,
}

/// The token lets nobody in.
#[derive(Debug, thiserror::Error)]
pub enum Unrecognised {
    /// The keys of the provider are not known now, which says nothing about the person: a later attempt may succeed.
    #[error("{}", texts::no_keys(.0))]
    NoKeys(String),
    /// The token itself.
    #[error("{}", texts::token_refused(.0))]
    Token(#[from] Denied),
    /// The person.
    #[error(transparent)]
    Nobody(#[from] Nobody),
}

impl Provider {
    /// A provider that was not asked yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            kept: Mutex::default(),
        }
    }

    /// The settings of this provider.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The roots under which the provider proves its name, in PEM, as the file says now; `None` are those of the machine.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or holds no certificates.
    pub fn trust(&self) -> Result<Option<String>, Unasked> {
        let Some(file) = &self.settings.trust else {
            return Ok(None);
        };
        let pem = files::read(file).map_err(|error| Unasked::Roots(error.to_string()))?;
        Client::new(Some(&pem)).map(|_| Some(pem))
    }

    /// The person whom an id token names. May ask the provider for its keys: blocks.
    ///
    /// # Errors
    ///
    /// The token is not the provider's, not for this deployment, out of date, or names no operator.
    pub fn recognise(&self, token: &str, now: Moment) -> Result<Person, Unrecognised> {
        let claims = match self.keys(FRESH, now)?.claims(token, now) {
            // The provider may have a new key.
            Err(Denied::UnknownSigner) => {
                let claims = self.keys(ASK_EVERY, now)?.claims(token, now);
                match (claims, self.kept.lock().failed.clone()) {
                    // Its keys of today are not known, so the token may well be signed with one.
                    (Err(Denied::UnknownSigner), Some(why)) => return Err(Unrecognised::NoKeys(why)),
                    (claims, _) => claims?,
                }
            }
            claims => claims?,
        };
        is_for(&claims, &self.settings.client_id)?;
        Ok(self.settings.rules.person(&claims)?)
    }

    /// The keys, asked for anew if they are older than this. The old ones stay while the provider is away.
    fn keys(&self, age_max: Duration, now: Moment) -> Result<Arc<Tokens>, Unrecognised> {
        let (known, is_due) = {
            let mut kept = self.kept.lock();
            // Without any keys it is asked again as soon as it may be.
            let age_max = if kept.tokens.is_none() { ASK_EVERY } else { age_max };
            // A clock that was set back must not hold the next question up.
            let is_due = |asked: Moment| now.since(asked) >= age_max || asked.since(now) > ASK_EVERY;
            let is_due = kept.asked.is_none_or(is_due);
            if is_due {
                kept.asked = Some(now);
            }
            (kept.tokens.clone(), is_due)
        };
        if !is_due {
            let why = || {
                self.kept
                    .lock()
                    .failed
                    .clone()
                    .unwrap_or_else(|| texts::IS_ASKED.to_owned())
            };
            return known.ok_or_else(|| Unrecognised::NoKeys(why()));
        }
        let asked = self.ask();
        let mut kept = self.kept.lock();
        match asked {
            Ok(tokens) => {
                let tokens = Arc::new(tokens);
                (kept.tokens, kept.failed) = (Some(tokens.clone()), None);
                Ok(tokens)
            }
            Err(why) => {
                kept.failed = Some(why.clone());
                known.ok_or(Unrecognised::NoKeys(why))
            }
        }
    }

    fn ask(&self) -> Result<Tokens, String> {
        let Settings { issuer, client_id, .. } = &self.settings;
        let text = |error: Unasked| error.to_string();
        let client = Client::new(self.trust().map_err(text)?.as_deref()).map_err(text)?;
        let metadata = Metadata::of(&client, issuer).map_err(text)?;
        let set = client.get(&metadata.jwks_uri).map_err(text)?;
        let issuer = Issuer {
            issuer: issuer.clone(),
            audience: vec![client_id.clone()],
            kind: Kind::Id,
            tenant_claim: String::new(),
            leeway: LEEWAY,
        };
        Tokens::parse(issuer, &set).map_err(|error| error.to_string())
    }
}

/// OpenID Connect Core 1.0 §3.1.3.7: of several audiences, `azp` says for which one the token was issued. `aud` itself is verified.
fn is_for(claims: &BTreeMap<String, Value>, client_id: &str) -> Result<(), Denied> {
    let has_several = matches!(claims.get("aud"), Some(Value::Array(audiences)) if audiences.len() > 1);
    match claims.get("azp") {
        None if !has_several => Ok(()),
        Some(Value::String(party)) if party == client_id => Ok(()),
        _ => Err(Denied::WrongAudience),
    }
}
