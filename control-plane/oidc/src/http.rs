//! Questions to the provider, over HTTPS. They block: call them where that is allowed.
//!
//! The edge's question for keys (`router/edge/src/accept/issuer_url.rs`) and the downloads of models
//! (`regional-stack/registry/src/download.rs`) have agents of their own, as they differ in all but TLS: only people and control planes may
//! sit behind a proxy of the environment (an edge goes by its configuration alone), and only downloads follow redirects and take longer
//! than a deadline. The edge follows keys in a loop and keeps them on disk, because devices come without a pause; a control plane asks
//! when somebody logs in.

use std::{fmt, sync::Arc, time::Duration};

use serde::{Deserialize, de::DeserializeOwned};
use tokio_rustls::rustls::{
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use ureq::{
    Agent,
    tls::{Certificate, RootCerts, TlsConfig},
};
use url::{Host, Url};

use crate::texts;

/// Deadline for an answer. A control plane may need two of them before it answers somebody who logs in, within ten seconds.
const ANSWER_MAX: Duration = Duration::from_secs(4);
/// Longest answer, in bytes: sets of keys have ten kilobytes.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// The provider was not asked, or did not answer.
#[derive(Debug, thiserror::Error)]
pub enum Unasked {
    /// A URL that would show tokens to everybody on the network path, or that hides where it leads.
    #[error("{}", texts::not_private(.0))]
    Plain(String),
    /// The roots in the configuration.
    #[error("{}", texts::bad_roots(.0))]
    Roots(String),
    /// The network, TLS, or HTTP.
    #[error("{}", texts::no_answer(url, why))]
    Http {
        /// The address.
        url: String,
        /// The error.
        why: String,
    },
    /// The answer is not what the specifications promise.
    #[error("{}", texts::malformed(url, what, why))]
    Malformed {
        /// The address.
        url: String,
        /// The missing kind of content.
        what: &'static str,
        /// The error.
        why: String,
    },
    /// It calls itself otherwise.
    #[error("{}", texts::other_issuer(asked, found))]
    OtherIssuer {
        /// The issuer of the configuration.
        asked: String,
        /// The one in its answer.
        found: String,
    },
    /// It has no device flow.
    #[error("{}", texts::no_device_flow(.0))]
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
    pub fn of(client: &Client, issuer: &str) -> Result<Self, Unasked> {
        let url = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
        let found: Self = parsed(&url, texts::METADATA, &client.get(&url)?)?;
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

/// True for `https://`, and for `http://` on this machine, where nobody listens in. Names and passwords in a URL are refused: they are
/// there to make one host look like another.
pub fn is_private(url: &str) -> bool {
    private(url).is_some()
}

/// The URL as it is asked for: one reading of it decides both whether it is private and where it leads.
fn private(url: &str) -> Option<Url> {
    let url = Url::parse(url).ok()?;
    let is_local = match url.host()? {
        Host::Ipv4(ip) => ip.is_loopback(),
        Host::Ipv6(ip) => ip.is_loopback(),
        Host::Domain(name) => name == "localhost",
    };
    let is_private = match url.scheme() {
        "https" => true,
        "http" => is_local,
        _ => false,
    };
    (is_private && url.username().is_empty() && url.password().is_none()).then_some(url)
}

/// Asks a provider, which proves its name under the roots that this machine trusts or that the configuration names.
#[derive(Clone)]
pub struct Client(Agent);

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl Client {
    /// `trust` are the roots in PEM; `None` are those of this machine.
    ///
    /// # Errors
    ///
    /// `trust` is no PEM, or has no certificate.
    pub fn new(trust: Option<&str>) -> Result<Self, Unasked> {
        let roots = match trust {
            None => RootCerts::PlatformVerifier,
            Some(pem) => {
                let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
                let read = read.map_err(|error| Unasked::Roots(error.to_string()))?;
                if read.is_empty() {
                    return Err(Unasked::Roots(texts::NO_ROOT.to_owned()));
                }
                let roots: Vec<_> = read.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
                RootCerts::new_with_certs(&roots)
            }
        };
        let tls = TlsConfig::builder()
            .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()))
            .root_certs(roots)
            .build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .timeout_global(Some(ANSWER_MAX))
            // An answer that sends elsewhere would take the form with it.
            .max_redirects(0)
            .http_status_as_error(false)
            .user_agent(concat!("meridian/", env!("CARGO_PKG_VERSION")));
        Ok(Self(config.build().into()))
    }

    /// The text at a URL, if the status is good.
    pub(crate) fn get(&self, url: &str) -> Result<String, Unasked> {
        let ask = |at: &Url| self.0.get(at.as_str()).header("accept", "application/json").call();
        match answer(url, ask)? {
            (200..=299, text) => Ok(text),
            (status, _) => Err(Unasked::Http {
                url: url.to_owned(),
                why: texts::bad_status(status),
            }),
        }
    }

    /// The answer to a form, with its status: errors of OAuth 2.0 are answers too.
    pub(crate) fn post(&self, url: &str, form: &[(&str, &str)]) -> Result<(u16, String), Unasked> {
        answer(url, |at| {
            let request = self.0.post(at.as_str()).header("accept", "application/json");
            request.send_form(form.iter().copied())
        })
    }
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
    ask: impl FnOnce(&Url) -> Result<ureq::http::Response<ureq::Body>, ureq::Error>,
) -> Result<(u16, String), Unasked> {
    let at = private(url).ok_or_else(|| Unasked::Plain(url.to_owned()))?;
    let failed = |error: ureq::Error| Unasked::Http {
        url: url.to_owned(),
        why: error.to_string(),
    };
    let mut response = ask(&at).map_err(failed)?;
    let status = response.status().as_u16();
    let body = response.body_mut().with_config().limit(ANSWER_BYTES_MAX);
    Ok((status, body.read_to_string().map_err(failed)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_private_by_the_host_to_which_it_leads() {
        for url in [
            "https://id.example",
            "https://id.example:8443/realms/voice",
            "HTTPS://ID.example",
            "http://127.0.0.1:8080",
            "http://127.0.0.1",
            "http://127.8.9.1:1/keys?v=1",
            "http://[::1]:8080/",
            "http://localhost:8080",
            "http://LOCALHOST",
        ] {
            assert!(is_private(url), "{url}");
        }
        for url in [
            "http://127.0.0.1:x@evil",
            "http://127.0.0.1:80@evil.example/",
            "http://localhost:80@evil.example",
            "http://localhost:@evil.example",
            "http://[::1]:80@evil.example",
            "http://user:secret@127.0.0.1/",
            "https://user@id.example",
            "https://:secret@id.example",
            "http://127.0.0.1.evil.example",
            "http://localhost.evil.example",
            "http://localhost.",
            "http://127.0.0.1:99999",
            "http://[::ffff:10.0.0.1]/",
            "http://0.0.0.0/",
            "http://10.0.0.1/",
            "http://id.example",
            "http://evil.example\\@127.0.0.1/",
            "http://evil.example#@127.0.0.1",
            "http://evil.example?@localhost",
            "ftp://localhost/",
            "file:///etc/passwd",
            "https://",
            "id.example",
            "",
        ] {
            assert!(!is_private(url), "{url}");
        }
        // Other spellings of this machine lead to this machine: the spelling that is judged is the one that is asked.
        for url in [
            "http://127.1:80/",
            "http://0x7f000001/",
            "http:\\\\127.0.0.1/",
            "http://2130706433",
        ] {
            assert_eq!(private(url).unwrap().host_str(), Some("127.0.0.1"), "{url}");
        }
    }

    #[test]
    fn roots_that_are_none_are_refused() {
        for (text, why) in [("", "there is none"), ("-----BEGIN CERTIFICATE-----\n", "")] {
            let error = Client::new(Some(text)).unwrap_err().to_string();
            assert!(
                error.contains("the provider's roots cannot be read") && error.contains(why),
                "{error}"
            );
        }
    }
}
