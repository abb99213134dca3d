//! The address at which an issuer of tokens publishes its keys, and the request to it: mostly by TLS.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use tokio_rustls::rustls::crypto::ring;
use ureq::{
    Agent, Error,
    http::{Uri, header},
    tls::{RootCerts, TlsConfig},
};

pub(super) struct IssuerUrl {
    url: Uri,
    agent: Agent,
}

impl IssuerUrl {
    /// An issuer that has so long to answer. For `https` it must prove its name under a root that this machine trusts.
    pub(super) fn new(url: &str, limit: Duration) -> anyhow::Result<Self> {
        Self::trusting(url, limit, RootCerts::PlatformVerifier)
    }

    fn trusting(url: &str, limit: Duration, roots: RootCerts) -> anyhow::Result<Self> {
        let url: Uri = url.parse()?;
        url.authority().context("the address names no host")?;
        let tls = TlsConfig::builder()
            .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()))
            .root_certs(roots)
            .build();
        // The operator names the address of the keys: nothing in the environment or in an answer leads elsewhere.
        let config = Agent::config_builder()
            .tls_config(tls)
            .timeout_global(Some(limit))
            .max_redirects(0)
            .proxy(None)
            .max_idle_connections(0);
        let agent = config.build().into();
        Ok(Self { url, agent })
    }

    /// The body of its answer, at most so long.
    pub(super) async fn get(&self, bytes_max: usize) -> anyhow::Result<Vec<u8>> {
        let (agent, url) = (self.agent.clone(), self.url.clone());
        let asked = tokio::task::spawn_blocking(move || {
            let mut answer = agent.get(url).header(header::ACCEPT, "application/json").call()?;
            ensure!(answer.status().is_success(), "the issuer answered {}", answer.status());
            let body = answer.body_mut().with_config().limit(bytes_max as u64).read_to_vec();
            body.map_err(|error| match error {
                Error::BodyExceedsLimit(_) => anyhow::anyhow!("its answer is longer than {bytes_max} bytes"),
                error => error.into(),
            })
        });
        asked.await?
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertifiedKey, generate_simple_self_signed};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };
    use tokio_rustls::{
        TlsAcceptor,
        rustls::{ServerConfig, pki_types::PrivateKeyDer},
    };
    use ureq::tls::Certificate;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn an_issuer_is_asked_by_tls_and_has_to_be_the_one_that_is_named() {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(signing_key.serialize_der().into());
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let acceptor = TlsAcceptor::from(Arc::new(config));
            while let Ok((tcp, _)) = listener.accept().await {
                // A peer that does not believe this certificate leaves.
                let Ok(mut tls) = acceptor.accept(tcp).await else {
                    continue;
                };
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") && tls.read_buf(&mut head).await.is_ok_and(|count| count > 0) {}
                let asked = String::from_utf8(head).unwrap();
                let line = asked.lines().next().unwrap_or_default().to_owned();
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{line}", line.len());
                tls.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let root = Certificate::from_der(cert.der()).to_owned();
        let trusting = || RootCerts::new_with_certs(std::slice::from_ref(&root));
        let url = format!("https://localhost:{port}/keys?v=1");
        let issuer = IssuerUrl::trusting(&url, LIMIT, trusting()).unwrap();
        let body = issuer.get(1000).await.unwrap();
        assert_eq!(String::from_utf8(body).unwrap(), "GET /keys?v=1 HTTP/1.1");
        let error = issuer.get(10).await.unwrap_err();
        assert!(error.to_string().contains("longer than 10 bytes"), "{error}");
        let other = format!("https://127.0.0.1:{port}/keys");
        let other = IssuerUrl::trusting(&other, LIMIT, trusting()).unwrap();
        assert!(other.get(1000).await.is_err(), "another name");
        let stranger = IssuerUrl::trusting(&url, LIMIT, RootCerts::new_with_certs(&[]));
        assert!(stranger.unwrap().get(1000).await.is_err(), "nobody vouches for it");
    }
}
