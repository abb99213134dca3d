//! Properties of a pick, over many topologies and sessions.

use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;
use routing::{Tried, pick::StackWhy};
use topology::RegionId;

use super::{
    ALL,
    support::{Ask, NOW, ask, measured, region, with_stacks, world},
};

/// Percentages of three regions, which sum to 100.
fn percentages() -> impl Strategy<Value = [u8; 3]> {
    (0..=100_u8, 0..=100_u8).prop_map(|(a, b)| {
        let (low, high) = (a.min(b), a.max(b));
        [low, high - low, 100 - high]
    })
}

const REGIONS: [&str; 3] = ["us-east", "us-west", "eu-central"];

fn shares(percentages: [u8; 3]) -> Vec<(&'static str, u8)> {
    REGIONS.into_iter().zip(percentages).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn percentages_are_respected(percentages in percentages(), salt: u32) {
        const SESSIONS: u32 = 1_000;
        let table = world(&shares(percentages));
        let mut counts = BTreeMap::<RegionId, u32>::new();
        for n in 0..SESSIONS {
            *counts.entry(ask(&table, &format!("{salt}-{n}")).pick().unwrap().region).or_default() += 1;
        }
        for (name, percent) in shares(percentages) {
            let share = f64::from(counts.get(&region(name)).copied().unwrap_or(0)) / f64::from(SESSIONS);
            // Five standard deviations of the worst case, 50 %, so that chance alone does not fail this.
            let error = (share - f64::from(percent) / 100.0).abs();
            prop_assert!(error < 5.0 * (0.25_f64 / f64::from(SESSIONS)).sqrt(), "{name}: {share} for {percent} %");
        }
    }

    #[test]
    fn a_change_moves_only_its_share(before in percentages(), after in percentages(), salt: u32) {
        let (table_before, table_after) = (world(&shares(before)), world(&shares(after)));
        let percent = |of: [u8; 3], name: &RegionId| {
            shares(of).iter().find(|(known, _)| *known == name.as_str()).map_or(0, |(_, percent)| *percent)
        };
        for n in 0..500 {
            let key = format!("{salt}-{n}");
            let from = ask(&table_before, &key).pick().unwrap().region;
            let to = ask(&table_after, &key).pick().unwrap().region;
            if from != to {
                // Compared relatively: a region that loses a session to another lost weight relative to that other one.
                let (from_before, from_after) = (percent(before, &from), percent(after, &from));
                let (to_before, to_after) = (percent(before, &to), percent(after, &to));
                prop_assert!(
                    u32::from(to_after) * u32::from(from_before) > u32::from(to_before) * u32::from(from_after),
                    "{key} moved from {from} to {to}"
                );
            }
        }
    }

    #[test]
    fn a_region_without_a_share_is_picked_only_when_all_shares_are_out(
        percentages in percentages(),
        tried in proptest::sample::subsequence(REGIONS.to_vec(), 0..=3),
        ejected in proptest::sample::subsequence(REGIONS.to_vec(), 0..=3),
        key in "[a-z]{1,12}",
    ) {
        let table = world(&shares(percentages));
        // One more region is in use than is ejected here, so that there is no panic.
        let measured = measured(&table).ejected(&ejected[..ejected.len().min(1)]);
        let decision = Ask { tried: &tried, measured, ..ask(&table, &key) }.pick().unwrap();
        let ejected = &ejected[..ejected.len().min(1)];
        let has_share = |name: &str| shares(percentages).iter().any(|(known, percent)| *known == name && *percent > 0);
        if !has_share(decision.region.as_str()) {
            for name in REGIONS.into_iter().filter(|name| has_share(name)) {
                prop_assert!(tried.contains(&name) || ejected.contains(&name), "{name} could have taken it: {decision:?}");
            }
        }
        prop_assert!(!tried.contains(&decision.region.as_str()));
    }

    #[test]
    fn whatever_was_seen_and_tried_a_session_has_a_place_until_all_regions_were_tried(
        tried in proptest::sample::subsequence(ALL.to_vec(), 0..=6),
        ejected in proptest::sample::subsequence(ALL.to_vec(), 0..=6),
        full in proptest::sample::subsequence(ALL.to_vec(), 0..=6),
        later_s in 0..60_u64,
        key in "[a-z]{1,12}",
    ) {
        let table = world(&[("us-east", 60), ("eu-central", 40)]);
        let known = || full.iter().fold(measured(&table).ejected(&ejected), |measured, name| measured.waiting(name, 31));
        let asked = || Ask { tried: &tried, measured: known(), now: NOW + Duration::from_secs(later_s), ..ask(&table, &key) };
        let decision = asked().pick();
        prop_assert_eq!(decision.is_none(), tried.len() == ALL.len());
        prop_assert_eq!(&asked().pick(), &decision, "the same question, the same answer");
        if let Some(decision) = decision {
            prop_assert!(!tried.contains(&decision.region.as_str()));
            let is_ready = |name: &&str| !ejected.contains(name) && !full.contains(name) && !tried.contains(name);
            if let Some(ready) = ALL.iter().find(|name| is_ready(name)) {
                let region = decision.region.as_str();
                let avoidable = full.contains(&region) && later_s <= 30;
                prop_assert!(!avoidable, "{region} is full and {ready} is ready: {decision:?}");
                prop_assert_eq!(decision.ejection_ignored, None, "{} was left", ready);
            }
        }
    }

    /// Working regions come first: whatever is ejected, returning, full or silent, a session that tries the default
    /// number of regions reaches a healthy one if there is one.
    #[test]
    fn if_any_region_is_healthy_one_is_asked_before_the_attempts_are_over(
        ejected in proptest::sample::subsequence(ALL.to_vec(), 0..=6),
        full in proptest::sample::subsequence(ALL.to_vec(), 0..=6),
        silent in proptest::sample::subsequence(ALL.to_vec(), 0..=6),
        later_s in 0..40_u64,
        key in "[a-z]{1,12}",
    ) {
        let regions_tried_max = 3;
        let table = world(&[("us-east", 60), ("eu-central", 40)]);
        let known = full.iter().fold(measured(&table).ejected(&ejected), |measured, name| measured.waiting(name, 32));
        let now = NOW + Duration::from_secs(later_s);
        let asked = Ask { silent: &silent, measured: known, now, ..ask(&table, &key) };
        // A region that is neither ejected nor silent works. It may be returning or full, and takes the session anyway.
        let works = |name: &str| {
            let stacks = asked.measured.stacks_of(name);
            !silent.contains(&name) && stacks.iter().any(|stack| !asked.measured.stacks.is_ejected(*stack, now))
        };
        let mut tried = Tried::up_to(regions_tried_max);
        let mut is_found = false;
        while !is_found && let Some(decision) = asked.pick_after(&tried) {
            is_found = works(decision.region.as_str());
            tried.stack(&decision.region, decision.stack);
        }
        prop_assert_eq!(is_found, ALL.iter().any(|name| works(name)));
    }

    #[test]
    fn of_the_two_stacks_a_session_draws_the_less_loaded_is_taken(
        waiting in proptest::collection::vec(0..20_u32, 2..6),
        salt: u32,
    ) {
        let table = with_stacks(u16::try_from(waiting.len()).unwrap());
        let most = waiting.iter().max().copied().unwrap();
        for n in 0..50 {
            let key = format!("{salt}-{n}");
            let mut asked = ask(&table, &key);
            let stacks = asked.measured.stacks_of("us-east");
            for (stack, waiting) in stacks.iter().zip(&waiting) {
                asked.measured.stack_says(*stack, *waiting);
            }
            let of = |stack| waiting[stacks.iter().position(|known| *known == stack).unwrap()];
            let decision = asked.pick().unwrap();
            let StackWhy::BetterOfTwo { other, .. } = decision.stack_why else { panic!("{decision:?}") };
            prop_assert!(of(decision.stack) <= of(other), "{decision:?}");
            prop_assert!(of(decision.stack) < most || of(other) == most, "the busiest only against its equal");
        }
    }
}
