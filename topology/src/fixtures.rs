//! A small topology with a plan, for tests.

use std::collections::BTreeMap;

use crate::{
    EdgeState, Level, Moment, Plan, Reason, ReasonCode, RegionPlan, RegionState, Share, Snapshot, Topology,
    policy::ProbePolicy,
    snapshot::{SNAPSHOT_SCHEMA, digest},
};

/// Three primaries with one backup each, two edges and a name server, and a plan in which every region serves.
pub fn three_primaries() -> Snapshot {
    let topology = Topology::parse("three-primaries.toml", include_str!("../testdata/three-primaries.toml"))
        .expect("the fixture is a valid topology");
    let serving = RegionPlan {
        state: RegionState::Serving,
        level: Level::L0,
        since: Moment(0),
    };
    let plan = Plan {
        generation: 1,
        epoch: 1,
        created_at: Moment(0),
        documents: digest(&topology, 15, &ProbePolicy::default()),
        regions: topology
            .regions
            .keys()
            .map(|id| (id.clone(), serving.clone()))
            .collect(),
        routes: topology
            .primaries()
            .map(|region| {
                (
                    region.id.clone(),
                    vec![Share {
                        region: region.id.clone(),
                        percent: 100,
                    }],
                )
            })
            .collect::<BTreeMap<_, _>>(),
        edges: topology
            .edges
            .keys()
            .map(|id| (id.clone(), EdgeState::Serving))
            .collect(),
        drained_stacks: Default::default(),
        writers: BTreeMap::new(),
        rollout: None,
        reasons: vec![Reason {
            code: ReasonCode::Genesis,
            region: None,
            text: "first plan".into(),
            evidence: vec![],
            until: None,
        }],
    };
    Snapshot {
        schema: SNAPSHOT_SCHEMA,
        plan,
        topology,
        dns_ttl_s: 15,
        probe: ProbePolicy::default(),
    }
}
