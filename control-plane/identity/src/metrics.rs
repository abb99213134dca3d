//! Ends of certificates' lives, as metrics of every process that has an identity.

use std::sync::Arc;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

use crate::Identity;

/// Shows the end of life of the certificate that this process shows, of the issuers above it, and of every root that it trusts;
/// and how often it believed a peer after that end. No series without an identity.
#[derive(Debug)]
pub struct Expiry(pub Option<Arc<Identity>>);

impl Collector for Expiry {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Some(identity) = &self.0 else { return Ok(()) };
        let help =
            "Unix time at which a certificate of this process's identity expires: its own, an issuer's, or a root's";
        let mut family = encoder.encode_descriptor(
            "meridian_identity_expires_timestamp_seconds",
            help,
            None,
            MetricType::Gauge,
        )?;
        for (kind, until) in identity.expiry() {
            let labels = [("certificate", kind)];
            ConstGauge::new(until.0 as f64 / 1_000.0).encode(family.encode_family(&labels)?)?;
        }
        let help = "Links between edges, other probers and stacks that this process opened or accepted although the certificate of the \
                    peer had ended";
        let links = encoder.encode_descriptor("meridian_identity_expired_peers", help, None, MetricType::Counter)?;
        ConstCounter::new(identity.expired_peers()).encode(links)
    }
}
