//! Questions to the provider, over HTTPS. They block: call them where that is allowed.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, de::DeserializeOwned};
use tokio_rustls::rustls::crypto::ring;
use ureq::{
    Agent,
    tls::{RootCerts, TlsConfig},
};

/// Deadline for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Longest answer, in bytes: sets of keys have ten kilobytes.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// The provider was not asked, or did not answer.
#[derive(Debug, thiserror::Error)]
pub enum Unasked {
    /// A URL that would show tokens to everybody on the network path.
    #[error("{0} is not https://; tokens and keys travel over TLS only")]
    Plain(String),
    /// The network, TLS, or HTTP.
    #[error("{url}: {why}")]
    Http {
        /// The address.
        url: String,
        /// The error.
        why: String,
    },
    /// The answer is not what the specifications promise.
    #[error("{url} answered with something else than {what}: {why}")]
    Malformed {
        /// The address.
        url: String,
        /// The missing kind of content.
        what: &'static str,
        /// The error.
        why: String,
    },
    /// It calls itself otherwise.
    #[error("{asked} calls itself {found}; write that as the issuer, or another address")]
    OtherIssuer {
        /// The issuer of the configuration.
        asked: String,
        /// The one in its answer.
        found: String,
    },
    /// It has no device flow.
    #[error("{0} offers no device flow (device_authorization_endpoint); turn it on for this client at the provider")]
    NoDeviceFlow(String),
}

/// The metadata of a provider (OpenID Connect Discovery 1.0, §3).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Metadata {
    pub(crate) issuer: String,
    pub(crate) jwks_uri: String,
    #[serde(default)]
    pub(crate) device_authorization_endpoint: Option<String>,
    pub(crate) token_endpoint: String,
}

impl Metadata {
    /// Asks a provider. Blocks.
    ///
    /// # Errors
    ///
    /// It does not answer, or not as this issuer.
    pub fn of(issuer: &str) -> Result<Self, Unasked> {
        let url = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
        let found: Self = get_json(&url, "metadata")?;
        // §4.3: or one provider could speak for another.
        match found.issuer == issuer {
            true => Ok(found),
            false => Err(Unasked::OtherIssuer {
                asked: issuer.to_owned(),
                found: found.issuer,
            }),
        }
    }
}

/// True for `https://`, and for `http://` on this machine, where nobody listens in.
pub(crate) fn is_private(url: &str) -> bool {
    let local = ["http://127.0.0.1:", "http://[::1]:", "http://localhost:"];
    url.starts_with("https://") || local.iter().any(|begin| url.starts_with(begin))
}

fn agent() -> Agent {
    let tls = TlsConfig::builder()
        .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()))
        .root_certs(RootCerts::PlatformVerifier)
        .build();
    let config = Agent::config_builder()
        .tls_config(tls)
        .timeout_global(Some(ANSWER_MAX))
        // An answer that sends elsewhere would take the form with it.
        .max_redirects(0)
        .http_status_as_error(false)
        .user_agent(concat!("meridian/", env!("CARGO_PKG_VERSION")));
    config.build().into()
}

/// The text at a URL, if the status is good.
pub(crate) fn get(url: &str) -> Result<String, Unasked> {
    let (status, text) = answer(url, || agent().get(url).header("accept", "application/json").call())?;
    match status {
        200..=299 => Ok(text),
        status => Err(Unasked::Http {
            url: url.to_owned(),
            why: format!("status {status}"),
        }),
    }
}

pub(crate) fn get_json<T: DeserializeOwned>(url: &str, what: &'static str) -> Result<T, Unasked> {
    parsed(url, what, &get(url)?)
}

/// The answer to a form, with its status: errors of OAuth 2.0 are answers too.
pub(crate) fn post(url: &str, form: &[(&str, &str)]) -> Result<(u16, String), Unasked> {
    answer(url, || {
        agent()
            .post(url)
            .header("accept", "application/json")
            .send_form(form.iter().copied())
    })
}

pub(crate) fn parsed<T: DeserializeOwned>(url: &str, what: &'static str, text: &str) -> Result<T, Unasked> {
    serde_json::from_str(text).map_err(|error| Unasked::Malformed {
        url: url.to_owned(),
        what,
        why: error.to_string(),
    })
}

fn answer(
    url: &str,
    ask: impl FnOnce() -> Result<ureq::http::Response<ureq::Body>, ureq::Error>,
) -> Result<(u16, String), Unasked> {
    if !is_private(url) {
        return Err(Unasked::Plain(url.to_owned()));
    }
    let failed = |error: ureq::Error| Unasked::Http {
        url: url.to_owned(),
        why: error.to_string(),
    };
    let mut response = ask().map_err(failed)?;
    let status = response.status().as_u16();
    let body = response.body_mut().with_config().limit(ANSWER_BYTES_MAX);
    Ok((status, body.read_to_string().map_err(failed)?))
}
