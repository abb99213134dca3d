//! Looks at the certificates of etcd's members, so that their ends are a metric: connections stay open for longer than a certificate lives,
//! and a member that was given a new one shows it to new connections only.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, timeout};
use tonic::transport::Uri;

use super::{Settings, client::open};

/// Interval of looks. Certificates of members live for a day or longer, and a handshake costs a member a millisecond.
const LOOK_EVERY: Duration = Duration::from_secs(600);

/// Opens a connection to each member every few minutes, until it is dropped.
pub async fn look_at_members(settings: Settings) {
    let Some(tls) = settings.tls else { return };
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        for endpoint in &settings.endpoints {
            let Ok(uri) = endpoint.parse::<Uri>() else { continue };
            // A member that does not answer has shown its certificate before, or shows it at the next look.
            if let Ok(Err(error)) = timeout(settings.connect_timeout, open(&tls, &uri)).await {
                tracing::debug!(%endpoint, %error, "a member of etcd shows no certificate");
            }
        }
    }
}
