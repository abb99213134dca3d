//! Regions that are bad by the evidence of the same vantages. Then the vantages may be at fault, and people decide
//! (invariant 4).

use std::collections::{BTreeMap, BTreeSet};

use topology::{NodeId, RegionId, policy::HealthPolicy};

use crate::Verdict;

/// Groups of two or more of the given bad regions whose evidence has one source.
///
/// Two regions are bad by themselves if enough vantages (`vantages_min`) accuse each of them without accusing the other
/// one; otherwise their evidence has one source. Evidence without named vantages could have any source. A group holds
/// every region that is tied to another one of the group. Two regions that every vantage sees dead have one source,
/// too: both may be dead, or the network that all vantages share may be broken.
pub fn correlated<'v>(bad: impl IntoIterator<Item = &'v Verdict>, policy: &HealthPolicy) -> Vec<BTreeSet<RegionId>> {
    let sources: BTreeMap<&RegionId, BTreeSet<&NodeId>> = bad
        .into_iter()
        .map(|verdict| (&verdict.region, verdict.bad_from.iter().collect()))
        .collect();
    let own = |of: &BTreeSet<&NodeId>, besides: &BTreeSet<&NodeId>| of.difference(besides).count();
    let enough = policy.vantages_min as usize;
    let mut groups: Vec<BTreeSet<RegionId>> = Vec::new();
    for (region, source) in &sources {
        let is_tied = |other: &RegionId| {
            let other = &sources[other];
            own(source, other) < enough || own(other, source) < enough
        };
        let (tied, apart): (Vec<_>, Vec<_>) = groups.into_iter().partition(|group| group.iter().any(is_tied));
        let mut group: BTreeSet<RegionId> = tied.into_iter().flatten().collect();
        group.insert((*region).clone());
        groups = apart;
        groups.push(group);
    }
    groups.retain(|group| group.len() > 1);
    groups.sort();
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Health;
    use topology::{Level, Tick};

    fn bad(region: &str, vantages: &str) -> Verdict {
        Verdict {
            region: RegionId::new(region).unwrap(),
            health: Health::Down,
            level: Level::L0,
            trigger: None,
            failing: true,
            fired: vec![],
            bad_from: vantages.split_whitespace().map(|it| NodeId::new(it).unwrap()).collect(),
            healthy_since: None,
            dead_stacks: [].into(),
            ailing_stacks: [].into(),
            broken: None,
            tick: Tick(1),
            summary: String::new(),
            evidence: vec![],
        }
    }

    #[test]
    fn regions_bad_by_the_word_of_the_same_vantages_are_one_group() {
        let cases: &[(&[(&str, &str)], &str)] = &[
            (&[("us", "a b c")], ""),
            (&[("us", "a b"), ("eu", "a b")], "eu us"),
            (&[("us", "a b c d"), ("eu", "a b c d")], "eu us"),
            (&[("us", "a b"), ("eu", "c d")], ""),
            // Without the two vantages that accuse both, one is left for each: not enough to be bad by itself.
            (&[("us", "a b c"), ("eu", "b c d")], "eu us"),
            (&[("us", "a b c d"), ("eu", "c d e f")], ""),
            // One region has evidence enough of its own, the other has not.
            (&[("us", "a b c d"), ("eu", "c d")], "eu us"),
            // Two pairs, and one region that stands alone.
            (
                &[("a", "p q"), ("b", "p q"), ("c", "r s"), ("d", "r s"), ("e", "t u")],
                "a b|c d",
            ),
            // Two regions tied by a third.
            (&[("a", "p q"), ("b", "q r s"), ("c", "r s")], "a b c"),
            // The second region fell before this process saw it.
            (&[("us", "a b"), ("eu", "")], "eu us"),
        ];
        for (regions, expected) in cases {
            let verdicts: Vec<Verdict> = regions.iter().map(|(region, vantages)| bad(region, vantages)).collect();
            let groups: Vec<String> = correlated(&verdicts, &HealthPolicy::default())
                .iter()
                .map(|group| group.iter().map(RegionId::as_str).collect::<Vec<_>>().join(" "))
                .collect();
            assert_eq!(groups.join("|"), *expected, "{regions:?}");
        }
    }
}
