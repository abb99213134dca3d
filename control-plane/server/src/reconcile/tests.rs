//! A control plane whose clock is set back while it observes.

use std::{collections::BTreeMap, path::Path};

use topology::{Component, EdgeId, NodeId, RegionId, Tick};
use verdict::{EdgeProbe, Health, Observation, ReplicationLag, Source, TickReport};

use super::*;
use crate::{
    metrics::Metrics,
    nodes::Nodes,
    records::{Document, DocumentKind},
    store::{Candidate, Embedded},
};

/// The clock is ahead by this until it is set right.
const AHEAD: Duration = Duration::from_secs(3600);
/// The true time of the repair.
const REPAIRED: Moment = Moment(1_700_000_000_000);
/// Lag of the copies once the region of the writer is dead.
const LAG: Duration = Duration::from_secs(48 * 3600);

fn watcher(folder: &Path) -> Reconciler {
    let document = |kind: DocumentKind, text: &str| Document::new(kind, text.to_owned(), "tester", Moment(0));
    let settings = Settings {
        candidate: Candidate {
            node: NodeId::new("control-plane").unwrap(),
            url: "http://control-plane:7100".into(),
            lease_ttl: Duration::MAX,
        },
        topology: document(
            DocumentKind::Topology,
            include_str!("../../../../topology/testdata/three-primaries.toml"),
        ),
        policy: document(DocumentKind::Policy, ""),
    };
    let store = Arc::new(Embedded::open(folder).unwrap());
    let mut watcher = Reconciler::new(settings, store, Nodes::default(), Metrics::default()).unwrap();
    // The control plane started when its clock was ahead.
    watcher.evidence.heard = planning::signs_of_life::SignsOfLife::since(REPAIRED + AHEAD);
    watcher
}

fn us_east() -> RegionId {
    RegionId::new("us-east").unwrap()
}

fn edge(name: &str) -> EdgeId {
    EdgeId::new(name).unwrap()
}

/// Every vantage reports on the newest closed tick, with us-east and edge-dub healthy or dead, and the round is judged.
fn a_tick_ends(watcher: &mut Reconciler, now: Moment, are_well: bool) {
    let tick = now.tick().back(1);
    for vantage in ["control-plane", "edge-iad", "edge-dub"] {
        let observation = |region: &str, is_well: bool| {
            let mut seen = Observation::new(RegionId::new(region).unwrap(), Component::Gateway, Source::Probe);
            match is_well {
                true => seen.succeed(20.0),
                false => (0..20).for_each(|_| seen.fail("connection refused")),
            }
            seen
        };
        let observations = vec![observation("us-east", are_well), observation("us-west", true)];
        let report = TickReport {
            edges: vec![EdgeProbe {
                edge: edge("edge-dub"),
                reached: are_well,
                failure: String::new(),
            }],
            replication: vec![ReplicationLag {
                region: us_east(),
                class: "profiles".to_owned(),
                behind: if are_well { Duration::ZERO } else { LAG },
            }],
            ..TickReport::new(NodeId::new(vantage).unwrap(), tick, observations)
        };
        let Reconciler { evidence, input, .. } = &mut *watcher;
        evidence.take_report(input, report, None, now).unwrap();
    }
    assert!(watcher.judge_if_due(now), "everybody has reported");
}

#[test]
fn when_the_clock_was_set_back_what_is_seen_now_counts_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut watcher = watcher(&folder.path().join("store"));
    for ticks in 0..6 {
        a_tick_ends(&mut watcher, REPAIRED + AHEAD + Tick::LENGTH * ticks, true);
    }
    assert_eq!(watcher.input.verdicts[&us_east()].health, Health::Healthy);
    assert_eq!(
        watcher.fresh_input().replication[&us_east()]["profiles"].behind,
        Duration::ZERO
    );

    assert!(
        !watcher.judge_if_due(REPAIRED),
        "no vantage has reported on a tick of this time"
    );
    // A lag dated an hour ahead would count as measured now.
    assert_eq!(watcher.evidence.sightings.lags(), BTreeMap::new());
    let silent = watcher.evidence.signs_of_life(&watcher.input, REPAIRED)[&edge("edge-iad")];
    assert_eq!(silent.heard_at, REPAIRED, "of one that is never heard again");

    for ticks in 0..2 {
        a_tick_ends(&mut watcher, REPAIRED + Tick::LENGTH * ticks, false);
    }
    let verdict = &watcher.input.verdicts[&us_east()];
    assert_eq!((verdict.health, verdict.tick), (Health::Down, REPAIRED.tick()));
    let now = REPAIRED + Tick::LENGTH;
    let unreached = watcher.evidence.signs_of_life(&watcher.input, now)[&edge("edge-dub")]
        .unreached
        .unwrap();
    assert_eq!(
        (unreached.since, unreached.until),
        (REPAIRED.tick().back(1).start(), REPAIRED.tick().end())
    );
    let lag = watcher.fresh_input().replication[&us_east()]["profiles"];
    assert_eq!((lag.behind, lag.at), (LAG, REPAIRED.tick().end()));
}
