//! Ends of certificates' lives, as metrics of every process that has an identity.

use std::sync::Arc;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::gauge::ConstGauge,
};

use crate::Identity;

/// Shows the end of life of the certificate that this process shows, of the issuers above it, and of every root that it trusts. No
/// series without an identity.
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
            prometheus_client::metrics::MetricType::Gauge,
        )?;
        for (kind, until) in identity.expiry() {
            let labels = [("certificate", kind)];
            ConstGauge::new(until.0 as f64 / 1_000.0).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
