//! Keeps the certificate of a process fresh: once a third of its life is over, it is renewed over the connection that it still proves.

use std::{sync::Arc, time::Duration};

use api::{
    connect,
    v1::{self, certificates_client::CertificatesClient},
};
use identity::{
    Identity,
    ca::{self, Credential},
};
use topology::Moment;

use crate::texts;

/// The longest time between two looks at the certificate's age, and between two attempts.
const LOOK_MAX: Duration = Duration::from_secs(60);
/// Deadline for one control plane to sign.
const SIGNED_WITHIN: Duration = Duration::from_secs(5);

/// Keeps the identity of a process until it is dropped: takes files that others change, and renews the certificate at the control planes at
/// these URLs. Without URLs others renew it.
pub async fn keep_identity(identity: Arc<Identity>, endpoints: Vec<String>, now: fn() -> Moment) {
    let looking = identity.keep_current();
    if endpoints.is_empty() {
        return looking.await;
    }
    tokio::join!(looking, keep_renewed_by(identity.clone(), endpoints, now));
}

/// Renews the certificate at the control planes at these URLs, until it is dropped. While none of them signs, the certificate stays and
/// the next attempt follows within a minute: from a third of its life on there are hours for it.
async fn keep_renewed_by(identity: Arc<Identity>, endpoints: Vec<String>, now: fn() -> Moment) {
    let asking = identity.clone();
    let ask = move |request: String| {
        let (identity, endpoints) = (asking.clone(), endpoints.clone());
        async move {
            let mut why = texts::no_https_url();
            for endpoint in endpoints.iter().filter(|endpoint| endpoint.starts_with("https://")) {
                let asked = async {
                    let channel = connect::connect(endpoint, Some(&identity)).await?;
                    let request = request.clone();
                    CertificatesClient::new(channel)
                        .renew(v1::RenewRequest { request })
                        .await
                };
                match tokio::time::timeout(SIGNED_WITHIN, asked).await {
                    Ok(Ok(reply)) => return Ok(reply.into_inner().certificate),
                    Ok(Err(status)) => why = texts::says(endpoint, status.message()),
                    Err(_) => why = texts::late(endpoint, SIGNED_WITHIN),
                }
            }
            Err(why)
        }
    };
    keep_renewed(&identity, now, ask).await;
}

/// Renews the certificate with `sign`, which takes a request (PKCS #10, PEM), until it is dropped.
pub async fn keep_renewed<F>(identity: &Identity, now: fn() -> Moment, sign: impl Fn(String) -> F)
where
    F: Future<Output = Result<String, String>>,
{
    let mut said = false;
    loop {
        let own = identity.own();
        if own.is_due(now()) {
            match renew(identity, &sign).await {
                Ok(()) => {
                    let until = identity.own().until;
                    tracing::info!(id = %own.id, %until, "the certificate of this process is renewed");
                    said = false;
                }
                Err(why) if !said => {
                    tracing::warn!(id = %own.id, until = %own.until, %why, "{}", texts::CANNOT_RENEW);
                    said = true;
                }
                Err(why) => tracing::debug!(%why, "still cannot renew the certificate of this process"),
            }
        }
        // Twenty looks in a life, so that a certificate for minutes is renewed in time too.
        let look = own.until.since(own.from) / 20;
        tokio::time::sleep(look.clamp(Duration::from_secs(1), LOOK_MAX)).await;
    }
}

async fn renew<F>(identity: &Identity, sign: &impl Fn(String) -> F) -> Result<(), String>
where
    F: Future<Output = Result<String, String>>,
{
    let (key, request) = ca::request().map_err(|error| error.to_string())?;
    let certificate = sign(request).await?;
    identity
        .adopt(&Credential { certificate, key })
        .map_err(|error| error.to_string())
}
