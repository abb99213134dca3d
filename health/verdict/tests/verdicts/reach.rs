//! The reach of edges by the testimonies of vantages, tick by tick.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use topology::{Component, EdgeId, Moment, NodeId, RegionId, Tick};
use verdict::{EdgeProbe, Observation, Reach, Reached, Source, Testimony, TickReport, Unreached};

const DUB: &str = "edge-dub";
/// Ticks that a report may be late.
const FRESH: u32 = 3;

fn edge(name: &str) -> EdgeId {
    EdgeId::new(name).unwrap()
}

/// The testimony of a vantage about edges in a tick.
struct Says<'a> {
    vantage: &'a str,
    reached: &'a [(&'a str, bool)],
    /// Whether one of its probes of the regions was answered.
    is_online: bool,
}

fn says<'a>(vantage: &'a str, reached: &'a [(&'a str, bool)]) -> Says<'a> {
    Says {
        vantage,
        reached,
        is_online: true,
    }
}

/// The reach of `edge-dub` after these ticks.
fn after(ticks: &[Vec<Says<'_>>]) -> Reached {
    let mut reach = Reach::default();
    for (tick, said) in (100..).map(Tick).zip(ticks) {
        for Says {
            vantage,
            reached,
            is_online,
        } in said
        {
            let mut region = Observation::new(RegionId::new("us-east").unwrap(), Component::Gateway, Source::Probe);
            match is_online {
                true => region.succeed(1.0),
                false => region.fail("no route"),
            }
            let edges = reached.iter().map(|(name, reached)| EdgeProbe {
                edge: edge(name),
                reached: *reached,
                failure: String::new(),
            });
            let mut report = TickReport {
                edges: edges.collect(),
                ..TickReport::new(NodeId::new(vantage).unwrap(), tick, vec![region])
            };
            reach.take(Testimony::of(&mut report), |edge| edge.as_str() != "edge-gone");
            assert!(report.edges.is_empty());
        }
        reach.judge(tick, FRESH);
    }
    reach.of(&edge(DUB))
}

fn start(tick: u64) -> Moment {
    Tick(tick).start()
}

#[test]
fn most_of_the_witnesses_have_to_agree_and_two_at_least() {
    let dead = || [("edge-dub", false)];
    let unreached = |by, of| {
        Some(Unreached {
            since: start(100),
            until: start(101),
            ticks: 1,
            by,
            of,
        })
    };
    let (no, yes) = (dead(), [("edge-dub", true)]);
    for (tick, expected) in [
        (vec![says("edge-iad", &no)], None),
        (vec![says("edge-iad", &no), says("control-plane", &no)], unreached(2, 2)),
        (vec![says("edge-iad", &no), says("control-plane", &yes)], None),
        (
            vec![
                says("edge-iad", &no),
                says("edge-sin", &no),
                says("control-plane", &yes),
            ],
            unreached(2, 3),
        ),
        (
            vec![says("a", &no), says("b", &no), says("c", &yes), says("d", &yes)],
            None,
        ),
        // An edge testifies for itself.
        (vec![says("edge-dub", &no), says("edge-iad", &no)], None),
    ] {
        let names: Vec<_> = tick.iter().map(|it| it.vantage).collect();
        let known = after(&[tick]);
        assert_eq!(known.unreached, expected, "{names:?}");
        assert_eq!(
            known.reached_since.is_some(),
            expected.is_none() && names.len() > 1 && names[0] != "edge-dub"
        );
    }
}

#[test]
fn a_vantage_whose_own_network_is_gone_is_no_witness() {
    let no = [("edge-dub", false), ("edge-iad", false)];
    let offline = |vantage| Says {
        is_online: false,
        ..says(vantage, &no)
    };
    assert_eq!(
        after(&[vec![offline("edge-sin"), offline("control-plane")]]),
        Reached::default()
    );
    // One of them reached another edge, so its own network works.
    let one = [("edge-dub", false), ("edge-iad", true)];
    let online = Says {
        is_online: false,
        ..says("edge-sin", &one)
    };
    let known = after(&[vec![online, says("control-plane", &no)]]);
    assert_eq!(known.unreached.unwrap().by, 2);
}

#[test]
fn ticks_in_a_row_are_counted_and_silence_neither_adds_nor_takes_away() {
    let (no, yes) = ([("edge-dub", false)], [("edge-dub", true)]);
    let bad = || vec![says("edge-iad", &no), says("control-plane", &no)];
    let good = || vec![says("edge-iad", &yes), says("control-plane", &yes)];
    let known = after(&[good(), bad(), vec![], vec![says("edge-iad", &no)], bad()]);
    let seen = known.unreached.unwrap();
    assert_eq!(
        (seen.since, seen.until, seen.ticks, known.reached_since),
        (start(101), start(105), 2, None)
    );
    // No vantage reports any more: the last known state stays.
    let known = after(&[bad(), vec![], vec![]]);
    assert_eq!(known.unreached.unwrap().until, start(101));
    let known = after(&[bad(), good(), vec![], good()]);
    assert_eq!((known.unreached, known.reached_since), (None, Some(start(101))));
    // One vantage that reaches the edge, alone, is proof enough that it can be reached.
    assert_eq!(
        after(&[bad(), vec![says("edge-iad", &yes)]]).reached_since,
        Some(start(101))
    );
}

/// A vantage far from the control plane is late in every tick, and must still count as a witness.
#[test]
fn a_late_report_counts_while_its_tick_is_young() {
    let testify = |reach: &mut Reach, vantage: &str, tick: u64, reached: bool| {
        let told = [("edge-iad", true), ("edge-dub", reached)];
        let edges = told.map(|(name, reached)| EdgeProbe {
            edge: edge(name),
            reached,
            failure: String::new(),
        });
        let mut report = TickReport {
            edges: edges.into(),
            ..TickReport::new(NodeId::new(vantage).unwrap(), Tick(tick), vec![])
        };
        reach.take(Testimony::of(&mut report), |_| true);
    };
    let mut reach = Reach::default();
    for tick in 100..103 {
        testify(&mut reach, "control-plane", tick, false);
        reach.judge(Tick(tick), FRESH);
        testify(&mut reach, "edge-sin", tick, false);
    }
    reach.judge(Tick(103), FRESH);
    let seen = reach.of(&edge(DUB)).unreached.unwrap();
    assert_eq!(
        (seen.since, seen.until, seen.ticks, seen.by),
        (start(100), start(103), 3, 2)
    );
    // Tick 100 takes no more reports.
    testify(&mut reach, "edge-nrt", 100, true);
    testify(&mut reach, "edge-syd", 100, true);
    reach.judge(Tick(103), FRESH);
    assert_eq!(reach.of(&edge(DUB)).unreached, Some(seen));
    testify(&mut reach, "edge-nrt", 102, true);
    testify(&mut reach, "edge-syd", 102, true);
    reach.judge(Tick(104), FRESH);
    assert_eq!(reach.of(&edge(DUB)).reached_since, Some(start(102)));
}

#[test]
fn a_report_that_is_too_late_or_of_an_unknown_edge_counts_for_nothing() {
    let mut reach = Reach::default();
    reach.judge(Tick(100), 1);
    for vantage in ["edge-iad", "control-plane"] {
        for (tick, name) in [(99, "edge-dub"), (101, "edge-gone")] {
            let mut report = TickReport {
                edges: vec![
                    EdgeProbe {
                        edge: edge(name),
                        reached: false,
                        failure: String::new(),
                    },
                    EdgeProbe {
                        edge: edge("edge-sin"),
                        reached: true,
                        failure: String::new(),
                    },
                ],
                ..TickReport::new(NodeId::new(vantage).unwrap(), Tick(tick), vec![])
            };
            reach.take(Testimony::of(&mut report), |edge| edge.as_str() != "edge-gone");
        }
    }
    reach.judge(Tick(101), 1);
    assert_eq!(reach.of(&edge("edge-dub")), Reached::default());
    assert_eq!(reach.of(&edge("edge-gone")), Reached::default());
    assert!(reach.of(&edge("edge-sin")).reached_since.is_some());
    reach.retain(|edge| edge.as_str() != "edge-sin");
    assert_eq!(reach.of(&edge("edge-sin")), Reached::default());
}
