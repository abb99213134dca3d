//! An identity provider as a control plane knows it: whose id tokens count, and whom they name.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use auth::{Denied, Issuer, Tokens};
use parking_lot::Mutex;
use topology::Moment;

use crate::{
    http::{self, Metadata, Unasked},
    person::{Nobody, Person, Rules},
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
    asked: Option<Instant>,
}

/// The token lets nobody in.
#[derive(Debug, thiserror::Error)]
pub enum Unrecognised {
    /// The keys of the provider are not known.
    #[error("the keys of the identity provider cannot be read: {0}")]
    NoKeys(String),
    /// The token itself.
    #[error("the id token is refused: {0}")]
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

    /// The person whom an id token names. May ask the provider for its keys: blocks.
    ///
    /// # Errors
    ///
    /// The token is not the provider's, not for this deployment, out of date, or names no operator.
    pub fn recognise(&self, token: &str, now: Moment) -> Result<Person, Unrecognised> {
        let claims = match self.keys(FRESH)?.claims(token, now) {
            // The provider may have a new key.
            Err(Denied::UnknownSigner) => self.keys(ASK_EVERY)?.claims(token, now)?,
            claims => claims?,
        };
        Ok(self.settings.rules.person(&claims)?)
    }

    /// The keys, asked for anew if they are older than this. The old ones stay while the provider is away.
    fn keys(&self, age_max: Duration) -> Result<Arc<Tokens>, Unrecognised> {
        let now = Instant::now();
        let (known, is_due) = {
            let mut kept = self.kept.lock();
            // Without any keys it is asked again as soon as it may be.
            let age_max = if kept.tokens.is_none() { ASK_EVERY } else { age_max };
            let is_due = kept.asked.is_none_or(|asked| now.duration_since(asked) >= age_max);
            if is_due {
                kept.asked = Some(now);
            }
            (kept.tokens.clone(), is_due)
        };
        if !is_due {
            return known.ok_or_else(|| {
                Unrecognised::NoKeys("it did not answer a moment ago; try again in a minute".to_owned())
            });
        }
        match self.ask() {
            Ok(tokens) => {
                let tokens = Arc::new(tokens);
                self.kept.lock().tokens = Some(tokens.clone());
                Ok(tokens)
            }
            Err(why) => known.ok_or(Unrecognised::NoKeys(why)),
        }
    }

    fn ask(&self) -> Result<Tokens, String> {
        let Settings { issuer, client_id, .. } = &self.settings;
        let text = |error: Unasked| error.to_string();
        let metadata = Metadata::of(issuer).map_err(text)?;
        let set = http::get(&metadata.jwks_uri).map_err(text)?;
        let issuer = Issuer {
            issuer: issuer.clone(),
            audience: vec![client_id.clone()],
            tenant_claim: String::new(),
            leeway: LEEWAY,
        };
        Tokens::parse(issuer, &set).map_err(|error| error.to_string())
    }
}
