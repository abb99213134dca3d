//! The address at which an issuer of tokens publishes its keys, and how the edge asks there: one request of HTTP/1.1, mostly by TLS.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use http::{Request, Uri, header, uri::Scheme};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, task::JoinSet};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, RootCertStore, crypto::ring, pki_types::ServerName},
};

use crate::device::Io;

pub(super) struct IssuerUrl {
    url: Uri,
    host: String,
    port: u16,
    /// For `https`; its roots are those that this machine trusts.
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl IssuerUrl {
    pub(super) fn new(url: &str) -> anyhow::Result<Self> {
        Self::trusting(url, machine_roots)
    }

    fn trusting(url: &str, roots: impl FnOnce() -> anyhow::Result<RootCertStore>) -> anyhow::Result<Self> {
        let url: Uri = url.parse()?;
        let authority = url.authority().context("the address names no host")?;
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let is_https = url.scheme() == Some(&Scheme::HTTPS);
        let port = authority.port_u16().unwrap_or(if is_https { 443 } else { 80 });
        let tls = match is_https {
            false => None,
            true => Some((connector(roots()?)?, ServerName::try_from(host.clone())?)),
        };
        Ok(Self { url, host, port, tls })
    }

    /// The body of its answer, at most so long.
    pub(super) async fn get(&self, bytes_max: usize) -> anyhow::Result<Vec<u8>> {
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await?;
        let io: Box<dyn Io> = match &self.tls {
            None => Box::new(tcp),
            Some((connector, name)) => Box::new(connector.connect(name.clone(), tcp).await?),
        };
        let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await?;
        // It ends with this function.
        let mut driving = JoinSet::new();
        driving.spawn(connection);
        let host = self.url.authority().map_or("", http::uri::Authority::as_str);
        let path = self.url.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        let request = Request::get(path)
            .header(header::HOST, host)
            .header(header::ACCEPT, "application/json")
            .body(Empty::<Bytes>::new())?;
        let answer = sender.send_request(request).await?;
        ensure!(answer.status().is_success(), "the issuer answered {}", answer.status());
        let body = Limited::new(answer.into_body(), bytes_max).collect().await;
        let body =
            body.map_err(|error| anyhow::anyhow!("its answer broke off or is longer than {bytes_max} bytes: {error}"))?;
        Ok(body.to_bytes().to_vec())
    }
}

fn machine_roots() -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    let (known, _) = roots.add_parsable_certificates(found.certs);
    ensure!(
        known > 0,
        "this machine trusts no authority; install its package of CA certificates"
    );
    Ok(roots)
}

fn connector(roots: RootCertStore) -> anyhow::Result<TlsConnector> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
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

    use super::*;

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
        let trusting = || {
            let mut roots = RootCertStore::empty();
            roots.add(cert.der().clone())?;
            Ok(roots)
        };
        let url = format!("https://localhost:{port}/keys?v=1");
        let body = IssuerUrl::trusting(&url, trusting).unwrap().get(1000).await.unwrap();
        assert_eq!(String::from_utf8(body).unwrap(), "GET /keys?v=1 HTTP/1.1");
        let error = IssuerUrl::trusting(&url, trusting).unwrap().get(10).await.unwrap_err();
        assert!(error.to_string().contains("longer than 10 bytes"), "{error}");
        let other = format!("https://127.0.0.1:{port}/keys");
        assert!(
            IssuerUrl::trusting(&other, trusting).unwrap().get(1000).await.is_err(),
            "another name"
        );
        let stranger = IssuerUrl::trusting(&url, || Ok(RootCertStore::empty()));
        assert!(stranger.unwrap().get(1000).await.is_err(), "nobody vouches for it");
    }
}
