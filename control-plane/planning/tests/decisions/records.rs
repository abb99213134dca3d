//! The record of a decision: enough to decide again, and small enough for the store.

use std::collections::BTreeMap;

use planning::{
    Input, Refusal,
    audit::{Documents, Entry, FIRST, Recorded, hash},
    plan,
};
use topology::{Intent, IntentKind, NodeId, Policy, RegionId, Topology};
use verdict::Health;

use crate::world::{HOUR, SECOND, World, region, roll_out};

/// A hundred regions, every second a primary, and a thousand edges: the largest planned deployment.
fn large() -> String {
    let mut text = "zone = \"voice.meridian.test\"\n".to_owned();
    for number in 0..100 {
        let (id, next) = (format!("region-{number:03}"), (number + 1) % 100);
        let role = match number % 2 {
            0 => format!("role = \"primary\"\nbackups = [\"region-{next:03}\"]"),
            _ => "role = \"backup\"".to_owned(),
        };
        let address = format!("10.1.{number}.1:9000");
        text += &format!(
            "[[region]]\nid = \"{id}\"\n{role}\nlatitude = 1.0\nlongitude = {number}.5\nsessions_max = 100000\nstacks = \
             [\"{address}\"]\n"
        );
    }
    for number in 0..1000 {
        let (id, high, low) = (format!("edge-in-a-city-{number:04}"), number / 250, number % 250);
        text += &format!(
            "[[edge]]\nid = \"{id}\"\naddresses = [\"10.2.{high}.{low}\"]\nport = 8080\nlatitude = 1.0\nlongitude = 2.0\n"
        );
    }
    text
}

fn entry(input: &Input, now: topology::Moment, topology: &str, policy: &str) -> Entry {
    let outcome = plan(input, now);
    let report = &outcome.report;
    let said = [&report.changed, &report.refused, &report.waiting];
    Entry {
        number: 1,
        previous: FIRST.to_owned(),
        at: now,
        actor: "planner".to_owned(),
        principal: None,
        because: None,
        input: Recorded::of(input, &hash(topology.as_bytes()), &hash(policy.as_bytes())),
        plan: outcome.plan.clone(),
        memory: outcome.memory.clone(),
        reasons: said.into_iter().flatten().cloned().collect(),
        version: planning::audit::VERSION.to_owned(),
        oldest: 1,
    }
}

fn decided_again(entry: &Entry, topology: String, policy: String) {
    let mut documents = Documents::default();
    documents.insert(hash(topology.as_bytes()), topology).unwrap();
    documents.insert(hash(policy.as_bytes()), policy).unwrap();
    let read: Entry = serde_json::from_slice(&entry.encode()).unwrap();
    assert_eq!(&read, entry);
    documents.replay(&read).unwrap();
}

#[test]
fn a_decision_of_another_version_is_not_called_tampering() {
    let (topology, policy) = (large(), String::new());
    let input = Input::new(
        Topology::parse("large", &topology).unwrap(),
        topology::Policy::default(),
        1,
    );
    let mut documents = Documents::default();
    documents.insert(hash(topology.as_bytes()), topology.clone()).unwrap();
    documents.insert(hash(policy.as_bytes()), policy.clone()).unwrap();
    let mut entry = entry(&input, topology::Moment(1_000_000), &topology, &policy);
    documents.replay(&entry).unwrap();
    entry.reasons[0].text = "said in other words".to_owned();
    assert!(matches!(
        documents.replay(&entry),
        Err(planning::audit::Tampered::Differs { .. })
    ));
    for version in ["0.0.1+older", ""] {
        entry.version = version.to_owned();
        let told = documents.replay(&entry).unwrap_err();
        assert!(matches!(told, planning::audit::Tampered::OtherVersion { .. }), "{told}");
        assert!(told.to_string().contains("was decided by another version"), "{told}");
    }
}

/// A document that this version cannot read is no proof of a changed log.
#[test]
fn an_entry_decided_with_a_document_of_another_version_is_not_called_unreadable() {
    let (topology, policy) = (large(), "[health]\nblind_ticks = 360\n".to_owned());
    let input = Input::new(Topology::parse("large", &topology).unwrap(), Policy::default(), 1);
    let later = "[health]\ncolour = \"red\"\n".to_owned();
    let mut documents = Documents::default();
    for text in [&topology, &policy, &later] {
        documents.insert(hash(text.as_bytes()), text.clone()).unwrap();
    }
    let mut old = entry(&input, topology::Moment(1_000_000), &topology, &policy);
    old.version = String::new();
    let told = documents.replay(&old);
    let is_other = |it: &Result<_, _>| matches!(it, Err(planning::audit::Tampered::OtherVersion { .. }));
    assert!(told.is_ok() || is_other(&told), "{told:?}");
    old.input.policy = hash(later.as_bytes());
    let told = documents.replay(&old);
    assert!(is_other(&told), "{told:?}");
    let text = told.unwrap_err().to_string();
    assert!(
        text.contains("was decided by another version") && text.contains("colour"),
        "{text}"
    );
}

#[test]
fn the_largest_world_all_down_fits_into_the_store_and_is_decided_again() {
    let (document, rules) = (large(), "[failover]\ncorrelated_hold = true\n".to_owned());
    let topology = Topology::parse("large", &document).unwrap();
    let version = topology::stack::CURRENT;
    let edges: Vec<NodeId> = topology.edges.keys().map(NodeId::from).collect();
    // A day with many long reasons of operators.
    let mut talk = World::new();
    for number in 0..300 {
        talk.input.request = Some(Intent {
            id: format!("{number:0500}"),
            kind: IntentKind::Unfreeze,
            author: "ж".repeat(500),
            reason: "中".repeat(500),
            created_at: talk.now,
            expires_at: talk.now + HOUR,
        });
        talk.decide();
    }
    let mut world = World::with(|of_world, policy| {
        (*of_world, *policy) = (topology, Policy::parse("p", &rules).unwrap());
    });
    world.input.memory = talk.input.memory;
    world.ask("alice", roll_out(version));
    let seen_by = |region: &RegionId| {
        // The vantages of each region differ a little.
        let skipped = usize::from(region.as_str().as_bytes()[9] - b'0');
        edges.iter().skip(skipped).cloned().collect::<Vec<_>>()
    };
    let regions: Vec<RegionId> = world.input.topology.regions.keys().cloned().collect();
    for region in &regions {
        world.sees(region.as_str(), Health::Down);
        let verdict = world.input.verdicts.get_mut(region).unwrap();
        verdict.bad_from = seen_by(region);
        verdict.evidence = vec!["gateway at 12:00:00.000: edge-in-a-city-0001 0/20 and so on ".repeat(4); 6];
        verdict.level = topology::Level::L2;
    }
    // All levels change in one plan, which all nodes refuse with long errors.
    let acknowledged = world.plan().clone();
    world.decide();
    world.input.refusal = Some(Refusal {
        number: world.plan().number(),
        nodes: edges
            .iter()
            .map(|edge| (edge.clone(), "I cannot read it ".repeat(100)))
            .collect(),
        following: 1000,
        acknowledged: Some(acknowledged),
    });
    world.now = world.now + SECOND;
    let entry = entry(&world.input, world.now, &document, &rules);
    assert!(entry.plan.is_some(), "it is taken back");
    let bytes = entry.encode().len();
    assert!(bytes < 1_000_000, "{bytes} bytes");
    decided_again(&entry, document, rules);
}

#[test]
fn the_vantages_of_a_decision_are_recorded_and_decide_again() {
    let document = include_str!("../../../../topology/testdata/three-primaries.toml").to_owned();
    let rules = String::new();
    let seen_by = |vantages: &str| vantages.split_whitespace().map(|it| NodeId::new(it).unwrap()).collect();
    let cases: [BTreeMap<&str, &str>; 3] = [
        [("us-east", "a b c d e f g h i j"), ("eu-west", "i j k l")].into(),
        [("us-east", "a b c"), ("eu-west", "b c")].into(),
        [("us-east", "a b"), ("eu-west", "")].into(),
    ];
    for (case, hold) in cases.into_iter().zip([false, true, true]) {
        let mut world = World::with(|topology, _| *topology = Topology::parse("t", &document).unwrap());
        for (name, vantages) in case {
            world.sees(name, Health::Down);
            world.input.verdicts.get_mut(&region(name)).unwrap().bad_from = seen_by(vantages);
        }
        let entry = entry(&world.input, world.now, &document, &rules);
        assert_eq!(entry.plan.is_none(), hold);
        decided_again(&entry, document.clone(), rules.clone());
    }
}
