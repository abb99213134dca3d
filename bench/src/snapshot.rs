//! The first plan of a topology: every primary and every edge serves.

use std::collections::{BTreeMap, BTreeSet};

use topology::{
    EdgeState, Level, Moment, Plan, Reason, ReasonCode, RegionId, RegionPlan, RegionState, Share, Snapshot, Topology,
    policy::ProbePolicy,
    snapshot::{SNAPSHOT_SCHEMA, digest},
};

/// TTL of DNS answers, in seconds: the default of the policy.
const DNS_TTL_S: u32 = 15;

/// A snapshot of the topology in `document`, in which every primary has all its sessions and every edge is in DNS answers.
pub fn first_snapshot(document: &str, created_at: Moment) -> anyhow::Result<Snapshot> {
    let topology = Topology::parse("the bench's topology", document).map_err(|error| anyhow::anyhow!("{error}"))?;
    let probe = ProbePolicy::default();
    let serving = RegionPlan {
        state: RegionState::Serving,
        level: Level::L0,
        since: Moment(0),
    };
    let whole = |region: &RegionId| Share {
        region: region.clone(),
        percent: 100,
    };
    let plan = Plan {
        generation: 1,
        epoch: 1,
        created_at,
        documents: digest(&topology, DNS_TTL_S, &probe),
        regions: (topology.regions.keys())
            .map(|id| (id.clone(), serving.clone()))
            .collect(),
        routes: (topology.primaries())
            .map(|region| (region.id.clone(), vec![whole(&region.id)]))
            .collect(),
        edges: (topology.edges.keys())
            .map(|id| (id.clone(), EdgeState::Serving))
            .collect(),
        drained_stacks: BTreeSet::new(),
        writers: BTreeMap::new(),
        rollout: None,
        reasons: vec![Reason {
            code: ReasonCode::Genesis,
            region: None,
            text: "the bench's plan".to_owned(),
            evidence: Vec::new(),
            until: None,
        }],
    };
    Ok(Snapshot {
        schema: SNAPSHOT_SCHEMA,
        plan,
        topology,
        dns_ttl_s: DNS_TTL_S,
        probe,
    })
}
