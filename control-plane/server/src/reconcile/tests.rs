//! A control plane that observes: a vantage that lies, and a clock that is set back.

use std::{collections::BTreeMap, path::Path};

use topology::{Component, EdgeId, NodeId, ReasonCode, RegionId, Tick};
use verdict::{EdgeProbe, Health, Observation, ReplicationLag, Source, TickReport};

use super::*;
use crate::{
    metrics::{Metrics, Vantage},
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

/// Every vantage reports on the newest closed tick; edge-iad alone claims a million failures in us-east.
fn edge_iad_lies(watcher: &mut Reconciler, now: Moment) {
    for vantage in ["control-plane", "edge-dub", "edge-iad"] {
        let seen = Observation {
            succeeded: if vantage == "edge-iad" { 0 } else { 2 },
            failed: if vantage == "edge-iad" { 1_000_000 } else { 0 },
            ..Observation::new(us_east(), Component::Gateway, Source::Probe)
        };
        let report = TickReport::new(NodeId::new(vantage).unwrap(), now.tick().back(1), vec![seen]);
        let Reconciler { evidence, input, .. } = &mut *watcher;
        evidence.take_report(input, report, None, now).unwrap();
    }
    assert!(watcher.judge_if_due(now), "everybody has reported");
}

#[test]
fn a_report_that_does_not_count_makes_no_room_for_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let mut watcher = watcher(&folder.path().join("store"));
    let iad = NodeId::new("edge-iad").unwrap();
    let mut report = |ahead: u64| {
        let seen = Observation {
            failed: 1_000_000,
            ..Observation::new(us_east(), Component::Gateway, Source::Traffic)
        };
        let report = TickReport::new(iad.clone(), Tick(REPAIRED.tick().0 + ahead), vec![seen]);
        let Reconciler { evidence, input, .. } = &mut watcher;
        let taken = evidence.take_report(input, report, None, REPAIRED);
        (taken.is_ok(), evidence.bounds.before(&iad))
    };
    let nothing = verdict::bounds::Before::default();
    for ahead in 100..110 {
        assert_eq!(report(ahead), (false, nothing.clone()), "{ahead} ticks ahead");
    }
}

#[test]
fn a_vantage_that_contradicts_all_others_is_told_to_people_and_counts_for_what_it_can_have_seen() {
    let folder = tempfile::tempdir().unwrap();
    let mut watcher = watcher(&folder.path().join("store"));
    let views = watcher.views();
    for ticks in 0..8 {
        edge_iad_lies(&mut watcher, REPAIRED + Tick::LENGTH * ticks);
        assert_ne!(watcher.input.verdicts[&us_east()].health, Health::Down, "tick {ticks}");
    }
    watcher.publish_view();
    let view = views.borrow().clone();
    let told = view
        .report
        .waiting
        .iter()
        .find(|it| it.code == ReasonCode::VantageSuspect);
    let told = told.unwrap_or_else(|| panic!("nobody is told: {:?}", view.report.waiting));
    assert_eq!(told.region, Some(us_east()), "`why us-east` tells it too");
    assert!(
        told.text.starts_with("edge-iad alone sees gateway fail"),
        "{}",
        told.text
    );
    let label = |vantage: &str| Vantage {
        vantage: vantage.to_owned(),
    };
    let metrics = &watcher.metrics;
    assert_eq!(metrics.vantage_suspect.get_or_create(&label("edge-iad")).get(), 1);
    assert_eq!(metrics.vantage_suspect.get_or_create(&label("edge-dub")).get(), 0);
    assert_eq!(metrics.reports_cut.get_or_create(&label("edge-iad")).get(), 8);
    assert_eq!(metrics.reports_cut.get_or_create(&label("edge-dub")).get(), 0);
    for ticks in 8..20 {
        a_tick_ends(&mut watcher, REPAIRED + Tick::LENGTH * ticks, true);
    }
    assert_eq!(
        watcher.metrics.vantage_suspect.get_or_create(&label("edge-iad")).get(),
        0,
        "it agrees again"
    );
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
