//! The reports of two edges to one control plane, which moves everybody out of a region when both see it fail.

use std::collections::BTreeMap;

use crate::{
    load::{be_given_up, connect},
    support::{DIE, Fate, Stack, World, planned, region},
};
use futures_util::future::join_all;
use topology::{NodeId, Tick, policy::HealthPolicy};
use verdict::{Before, Health, Observation, TickReport, Windows, judge};

const REGIONS: [&str; 2] = ["eu-west", "eu-central"];
/// Longer than the default policy needs to call a region down.
const TICKS: u64 = 4;

/// The health of both regions after some ticks in which two edges observe the same, by the default policy.
fn judged(observed: &[Vec<Observation>; 2]) -> Vec<Health> {
    let (mut windows, policy, mut before) = (Windows::default(), HealthPolicy::default(), BTreeMap::new());
    let regions = REGIONS.map(region);
    let mut healths = Vec::new();
    for tick in (1..=TICKS).map(Tick) {
        for (name, observations) in ["edge-a", "edge-b"].into_iter().zip(observed) {
            let report = TickReport::new(NodeId::new(name).unwrap(), tick, observations.clone());
            windows.take(report, tick, &policy).unwrap();
        }
        windows.forget(&policy, tick, |_| true);
        let verdicts = judge(&regions, &windows, &policy, tick, &before);
        healths = regions.iter().map(|region| verdicts[region].health).collect();
        before = verdicts
            .iter()
            .map(|(region, verdict)| (region.clone(), Before::from(verdict)))
            .collect();
    }
    healths
}

/// Thirty-two phones of one address, at two edges, that stopped reading once evacuated a healthy region: their stack gave them up, both
/// edges reported lost sessions, and the control plane made plan 2. Then the sessions took the next region along. A plan follows only
/// a region that is judged down.
#[tokio::test]
async fn devices_that_do_not_read_move_nobody_out_of_a_region_by_what_two_edges_report() {
    let lives = Stack::Serves(Fate::Lives);
    let snapshot = planned(&REGIONS.map(|name| (name, lives))).await;
    let changes = "timeouts.device = '2s'\nlimits.device_bytes_per_s_min = 1000";
    let edges = [World::of(changes, &snapshot), World::of(changes, &snapshot)];
    let devices = (0..32).map(|n| {
        let address = edges[n % 2].address;
        async move { be_given_up(connect("127.0.0.1:0", address).await, DIE).await }
    });
    join_all(devices).await;

    let observed = [&edges[0], &edges[1]].map(|edge| edge.edge.passive().observations);
    let of_home = observed.each_ref().map(|seen| {
        let home = seen.iter().filter(|seen| seen.region == region("eu-west"));
        home.map(|seen| (seen.succeeded, seen.failed)).collect::<Vec<_>>()
    });
    assert_eq!(of_home, [vec![(16, 0)], vec![(16, 0)]], "each edge opened its sessions");
    for edge in &edges {
        let name = "meridian_edge_faults_total{region=\"eu-west\",fault=\"device\"}";
        assert_eq!(edge.metric(name), Some(16.0), "all sessions were lost in eu-west");
        assert_eq!(edge.explain("session=another").await["ejected"], serde_json::json!([]));
    }
    let healths = judged(&observed);
    assert!(healths.iter().all(|health| *health != Health::Down), "{healths:?}");

    // Counted against the region, as many sessions are enough to move its devices.
    let mut blamed = observed;
    for seen in blamed.iter_mut().flatten() {
        seen.failed = std::mem::take(&mut seen.succeeded);
    }
    assert_eq!(judged(&blamed)[0], Health::Down);
}
