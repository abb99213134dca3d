//! Shares of a primary's sessions, in percent.

use topology::{RegionId, Share};

/// All sessions of a primary at home.
pub(crate) fn home(region: &RegionId) -> Share {
    share(region, 100)
}

pub(crate) fn share(region: &RegionId, percent: u8) -> Share {
    Share {
        region: region.clone(),
        percent,
    }
}

/// The sum of all shares, in percent.
pub(crate) fn total(shares: &[Share]) -> u8 {
    shares.iter().map(|share| share.percent).sum()
}

/// The share of `target`, in percent.
pub(crate) fn total_at(shares: &[Share], target: &RegionId) -> u8 {
    let there = shares.iter().filter(|share| share.region == *target);
    there.map(|share| share.percent).sum()
}
