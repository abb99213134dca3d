//! Where a primary's sessions go when it does not take all of them itself.

use std::collections::BTreeMap;

use topology::{RegionId, Share, Topology};

/// Percent of their capacity that regions have left, while shares are handed out.
pub(crate) struct Headroom<'t> {
    topology: &'t Topology,
    sessions: BTreeMap<RegionId, f64>,
}

/// A primary's backups cannot take what it would move.
#[derive(Debug, PartialEq)]
pub(crate) struct Short {
    /// Percent of the primary's sessions that found a place.
    pub(crate) placed_percent: u8,
}

impl<'t> Headroom<'t> {
    /// What is left beside the routes already planned. A primary's demand is its own capacity: it is sized for its peak,
    /// and a failover must hold at the peak.
    pub(crate) fn beside<'r>(
        topology: &'t Topology,
        routes: impl IntoIterator<Item = (&'r RegionId, &'r Vec<Share>)>,
    ) -> Self {
        let sessions = topology
            .regions
            .values()
            .map(|region| (region.id.clone(), f64::from(region.sessions_max)));
        let mut headroom = Self {
            topology,
            sessions: sessions.collect(),
        };
        for (primary, shares) in routes {
            for share in shares {
                headroom.take(primary, &share.region, share.percent);
            }
        }
        headroom
    }

    fn demand(&self, primary: &RegionId) -> f64 {
        self.topology
            .regions
            .get(primary)
            .map_or(0.0, |region| f64::from(region.sessions_max))
    }

    fn take(&mut self, primary: &RegionId, target: &RegionId, percent: u8) {
        let sessions = self.demand(primary) * f64::from(percent) / 100.0;
        if let Some(left) = self.sessions.get_mut(target) {
            *left -= sessions;
        }
    }

    /// Whether more is planned for `target` than it can hold.
    pub(crate) fn is_over(&self, target: &RegionId) -> bool {
        self.sessions.get(target).is_some_and(|left| *left < -1e-6)
    }

    /// Percent of `primary`'s sessions that `target` can still take.
    fn percent(&self, primary: &RegionId, target: &RegionId) -> u8 {
        let left = self.sessions.get(target).copied().unwrap_or(0.0).max(0.0);
        // The small addition forgives the rounding of fractions, not real sessions.
        (left * 100.0 / self.demand(primary).max(1.0) + 1e-6).min(100.0) as u8
    }

    /// Hands `percent` of `primary`'s sessions to `targets`, filling the first before the second.
    pub(crate) fn place<'r>(
        &mut self,
        primary: &RegionId,
        percent: u8,
        targets: impl IntoIterator<Item = &'r RegionId>,
    ) -> Result<Vec<Share>, Short> {
        let mut shares = Vec::new();
        let mut left = percent;
        for target in targets {
            let taken = left.min(self.percent(primary, target));
            if taken > 0 {
                self.take(primary, target, taken);
                shares.push(Share {
                    region: target.clone(),
                    percent: taken,
                });
                left -= taken;
            }
        }
        if left == 0 {
            Ok(shares)
        } else {
            Err(Short {
                placed_percent: percent - left,
            })
        }
    }
}

/// The same shares with only `percent` of the sessions left in them, taken from the last ones: no session goes anywhere
/// new.
pub(crate) fn shrink(shares: &[Share], percent: u8) -> Vec<Share> {
    let mut left = percent;
    let mut shrunk = Vec::new();
    for share in shares {
        let percent = share.percent.min(left);
        left -= percent;
        if percent > 0 {
            shrunk.push(Share {
                region: share.region.clone(),
                percent,
            });
        }
    }
    shrunk
}

#[cfg(test)]
mod tests {
    use super::*;
    use topology::fixtures::three_primaries;

    fn id(name: &str) -> RegionId {
        RegionId::new(name).unwrap()
    }

    fn share(name: &str, percent: u8) -> Share {
        Share {
            region: id(name),
            percent,
        }
    }

    #[test]
    fn the_first_backup_is_filled_before_the_second() {
        let mut world = three_primaries();
        world.topology.regions.get_mut(&id("us-west")).unwrap().sessions_max = 120;
        let mut headroom = Headroom::beside(&world.topology, []);
        let placed = headroom.place(&id("us-east"), 100, [&id("us-west"), &id("eu-central")]);
        assert_eq!(placed, Ok(vec![share("us-west", 60), share("eu-central", 40)]));
        // Nothing is left in us-west, and 120 sessions in eu-central: 60 % of the next primary.
        let short = headroom.place(&id("eu-west"), 100, [&id("eu-central"), &id("us-west")]);
        assert_eq!(short, Err(Short { placed_percent: 60 }));
    }

    #[test]
    fn shrinking_takes_from_the_last() {
        let shares = [share("us-west", 60), share("eu-central", 40)];
        assert_eq!(shrink(&shares, 95), [share("us-west", 60), share("eu-central", 35)]);
        assert_eq!(shrink(&shares, 50), [share("us-west", 50)]);
        assert_eq!(shrink(&shares, 0), []);
    }

    #[test]
    fn what_is_planned_already_counts() {
        let world = three_primaries();
        let planned = BTreeMap::from([(id("ap-south"), vec![share("us-west", 50)])]);
        let mut headroom = Headroom::beside(&world.topology, &planned);
        assert_eq!(
            headroom.place(&id("us-east"), 100, [&id("us-west")]),
            Err(Short { placed_percent: 50 })
        );
    }
}
