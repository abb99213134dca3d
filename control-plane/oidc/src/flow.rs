//! The device flow of OAuth 2.0 (RFC 8628): a person opens a page on any device, types a code, and signs in there.

use std::time::Duration;

use serde::Deserialize;

use crate::{
    http::{self, Client, Metadata, Unasked},
    texts,
};

/// RFC 8628 §3.2: the interval if the provider names none, and §3.5: how much slower it may ask for.
const INTERVAL_DEFAULT: u64 = 5;
const SLOWER: Duration = Duration::from_secs(5);
/// Bounds on what a provider may make this command wait.
const INTERVAL_MAX: Duration = Duration::from_secs(60);
const FLOW_MAX: Duration = Duration::from_secs(1_800);
/// Answers that did not come while the person signs in: networks fail for moments.
const BROKEN_MAX: u32 = 5;
const GRANT: &str = "urn:ietf:params:oauth:grant-type:device_code";

/// A flow that waits for the person.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Begun {
    device_code: String,
    /// The code to type.
    pub user_code: String,
    /// The page to open.
    pub verification_uri: String,
    /// The same with the code in it, if the provider has one.
    #[serde(default)]
    pub verification_uri_complete: Option<String>,
    expires_in: u64,
    #[serde(default)]
    interval: Option<u64>,
}

/// Nobody signed in.
#[derive(Debug, thiserror::Error)]
pub enum NotSignedIn {
    /// The provider.
    #[error(transparent)]
    Unasked(#[from] Unasked),
    /// The person, or a rule of the provider, said no.
    #[error("{}", texts::DENIED)]
    Denied,
    /// The code has ended.
    #[error("{}", texts::ENDED)]
    Ended,
    /// Another error of OAuth 2.0.
    #[error("{}", texts::provider_refuses(.0))]
    Refused(String),
    /// There is no id token in the answer.
    #[error("{}", texts::NO_ID_TOKEN)]
    NoIdToken,
}

/// The answer to one question whether the person has signed in.
#[derive(Debug, Default, Deserialize)]
struct Answer {
    id_token: Option<String>,
    error: Option<String>,
    error_description: Option<String>,
}

/// The next step.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Ask,
    Done(String),
}

/// The time of the questions: how long to wait, and until when.
#[derive(Debug, PartialEq, Eq)]
struct Pace {
    interval: Duration,
    left: Duration,
}

impl Pace {
    fn of(begun: &Begun) -> Self {
        let interval = Duration::from_secs(begun.interval.unwrap_or(INTERVAL_DEFAULT).max(1));
        Self {
            interval: interval.min(INTERVAL_MAX),
            left: Duration::from_secs(begun.expires_in).min(FLOW_MAX),
        }
    }

    /// The wait before the next question; `None` when the code has ended.
    fn wait(&mut self) -> Option<Duration> {
        self.left = self.left.checked_sub(self.interval)?;
        Some(self.interval)
    }

    fn after(&mut self, answer: Answer) -> Result<Next, NotSignedIn> {
        match answer.error.as_deref() {
            None => answer.id_token.map(Next::Done).ok_or(NotSignedIn::NoIdToken),
            Some("authorization_pending") => Ok(Next::Ask),
            Some("slow_down") => {
                self.interval = (self.interval + SLOWER).min(INTERVAL_MAX);
                Ok(Next::Ask)
            }
            Some("access_denied") => Err(NotSignedIn::Denied),
            Some("expired_token") => Err(NotSignedIn::Ended),
            Some(other) => {
                let said = answer.error_description.unwrap_or_default();
                let visible = |text: &str| text.replace(topology::text::is_hidden, "?");
                Err(NotSignedIn::Refused(visible(&format!("{other:.100} {said:.200}"))))
            }
        }
    }
}

/// Lets a person sign in, and returns the id token. `show` tells the person what to do; `sleep` waits. Blocks.
///
/// # Errors
///
/// Nobody signed in.
pub fn sign_in(
    client: &Client,
    metadata: &Metadata,
    (client_id, scope): (&str, &str),
    show: impl FnOnce(&Begun),
    mut sleep: impl FnMut(Duration),
) -> Result<String, NotSignedIn> {
    let at = metadata.device_authorization_endpoint.as_ref();
    let at = at.ok_or_else(|| Unasked::NoDeviceFlow(metadata.issuer.clone()))?;
    let (_, text) = client.post(at, &[("client_id", client_id), ("scope", scope)])?;
    let refused: Answer = http::parsed(at, texts::OAUTH_ANSWER, &text)?;
    if refused.error.is_some() {
        Pace::of(&Begun::default()).after(refused)?;
        return Err(NotSignedIn::Refused(texts::BEGAN_NONE.to_owned()));
    }
    let begun: Begun = http::parsed(at, texts::DEVICE_CODE, &text)?;
    show(&begun);
    let (mut pace, mut broken) = (Pace::of(&begun), 0);
    while let Some(wait) = pace.wait() {
        sleep(wait);
        let form = [
            ("grant_type", GRANT),
            ("device_code", &*begun.device_code),
            ("client_id", client_id),
        ];
        let at = &metadata.token_endpoint;
        let answer = client
            .post(at, &form)
            .and_then(|(_, text)| http::parsed(at, texts::OAUTH_ANSWER, &text));
        match answer {
            Ok(answer) => {
                broken = 0;
                if let Next::Done(token) = pace.after(answer)? {
                    return Ok(token);
                }
            }
            Err(error) if broken == BROKEN_MAX => return Err(error.into()),
            Err(_) => broken += 1,
        }
    }
    Err(NotSignedIn::Ended)
}

/// Reads one body as every answer of the flow, for the fuzzer: no provider makes the command wait for longer than the limits here.
pub(crate) fn read_answer(text: &str) {
    let begun: Begun = http::parsed("", texts::DEVICE_CODE, text).unwrap_or_default();
    let mut pace = Pace::of(&begun);
    assert!(pace.left <= FLOW_MAX, "{:?}", pace.left);
    if let Ok(answer) = http::parsed::<Answer>("", texts::OAUTH_ANSWER, text) {
        let has_token = answer.id_token.is_some() && answer.error.is_none();
        let next = pace.after(answer);
        assert_eq!(matches!(next, Ok(Next::Done(_))), has_token, "an error is no login");
    }
    assert!(pace.interval >= Duration::from_secs(1) && pace.interval <= INTERVAL_MAX);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun(interval: Option<u64>, expires_in: u64) -> Begun {
        Begun {
            interval,
            expires_in,
            ..Begun::default()
        }
    }

    fn error(code: &str) -> Answer {
        Answer {
            error: Some(code.to_owned()),
            ..Answer::default()
        }
    }

    #[test]
    fn the_provider_is_asked_at_its_pace_until_its_code_ends() {
        let mut pace = Pace::of(&begun(None, 12));
        assert_eq!(pace.wait(), Some(Duration::from_secs(5)));
        assert_eq!(pace.after(error("authorization_pending")).unwrap(), Next::Ask);
        assert_eq!(pace.wait(), Some(Duration::from_secs(5)));
        assert_eq!(pace.wait(), None, "the third question would come after the end");

        let mut pace = Pace::of(&begun(Some(2), 600));
        assert_eq!(pace.after(error("slow_down")).unwrap(), Next::Ask);
        assert_eq!(pace.wait(), Some(Duration::from_secs(7)));
        for _ in 0..100 {
            pace.after(error("slow_down")).unwrap();
        }
        assert_eq!(pace.wait(), Some(INTERVAL_MAX), "no provider makes it wait for ever");
        assert_eq!(Pace::of(&begun(Some(0), 600)).wait(), Some(Duration::from_secs(1)));
    }

    #[test]
    fn every_other_answer_ends_it() {
        let mut pace = Pace::of(&begun(None, 600));
        assert!(matches!(pace.after(error("access_denied")), Err(NotSignedIn::Denied)));
        assert!(matches!(pace.after(error("expired_token")), Err(NotSignedIn::Ended)));
        let Err(NotSignedIn::Refused(why)) = pace.after(error("invalid_client\u{1b}[2J")) else {
            panic!("it goes on");
        };
        assert!(why.starts_with("invalid_client?[2J"), "{why}");
        assert!(matches!(pace.after(Answer::default()), Err(NotSignedIn::NoIdToken)));
        let done = Answer {
            id_token: Some("token".to_owned()),
            ..Answer::default()
        };
        assert_eq!(pace.after(done).unwrap(), Next::Done("token".to_owned()));
    }
}
