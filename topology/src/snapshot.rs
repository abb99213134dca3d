//! The document that edges and DNS responders work from: one plan together with the topology it was made for. A
//! snapshot is whole and immutable; a reader uses one snapshot for an entire request.
//!
//! Why it is so: docs/decisions/19-what-a-node-applies.md.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{Plan, RegionState, Topology, policy::ProbePolicy, texts};

/// Version of the snapshot document. A reader refuses every other version.
pub const SNAPSHOT_SCHEMA: u32 = 1;

/// Largest snapshot document, in bytes. 100 regions and 1,000 edges take about 0.5 MB.
pub const SNAPSHOT_BYTES_MAX: usize = 4 << 20;

/// One plan, and the topology that it routes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    /// Always [`SNAPSHOT_SCHEMA`] in a valid snapshot.
    pub schema: u32,
    /// The regions for the sessions of each primary.
    pub plan: Plan,
    /// The regions, edges and name servers that the plan was made for.
    pub topology: Topology,
    /// TTL of the DNS answers made from this snapshot, in seconds, 1..=3600.
    pub dns_ttl_s: u32,
    /// The rules by which nodes with this snapshot probe the regions.
    pub probe: ProbePolicy,
}

/// The reason for which a node refuses a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// The document is larger than [`SNAPSHOT_BYTES_MAX`].
    #[error("{}", texts::snapshot_too_large(*.0, SNAPSHOT_BYTES_MAX))]
    TooLarge(usize),
    /// The bytes are not a snapshot document.
    #[error("{}", texts::snapshot_unreadable(.0))]
    Unreadable(String),
    /// The checksum does not match the bytes.
    #[error("{}", texts::snapshot_damaged())]
    Corrupt,
    /// The document is readable, but the plan cannot be applied.
    #[error("{}", texts::plan_cannot_be_applied(*generation, problems))]
    Invalid {
        /// Generation of the plan.
        generation: u64,
        /// Every problem found, one text each.
        problems: Vec<String>,
    },
}

impl Snapshot {
    /// The document as JSON, and its SHA-256 in hex.
    pub fn encode(&self) -> (Vec<u8>, String) {
        let bytes = serde_json::to_vec(self).expect("a snapshot holds only maps with text keys, which JSON can write");
        let checksum = checksum(&bytes);
        (bytes, checksum)
    }

    /// Reads a document made by [`Snapshot::encode`]. Checks the size, the checksum, and the plan
    /// ([`Snapshot::validate`]).
    pub fn decode(bytes: &[u8], expected_checksum: &str) -> Result<Self, SnapshotError> {
        if bytes.len() > SNAPSHOT_BYTES_MAX {
            return Err(SnapshotError::TooLarge(bytes.len()));
        }
        if checksum(bytes) != expected_checksum {
            return Err(SnapshotError::Corrupt);
        }
        let snapshot: Self =
            serde_json::from_slice(bytes).map_err(|error| SnapshotError::Unreadable(error.to_string()))?;
        snapshot.validate()?;
        Ok(snapshot)
    }

    /// Checks that the plan can be applied to its topology. A plan without a route is never valid (invariant 2).
    pub fn validate(&self) -> Result<(), SnapshotError> {
        let Self {
            schema,
            plan,
            topology,
            dns_ttl_s,
            probe,
        } = self;
        let mut problems = Vec::new();
        if *schema != SNAPSHOT_SCHEMA {
            problems.push(format!(
                "its schema is {schema}, and this version reads only schema {SNAPSHOT_SCHEMA}"
            ));
        }
        if plan.generation == 0 {
            problems.push("its generation is 0, and the first plan has generation 1".into());
        }
        if *dns_ttl_s == 0 || *dns_ttl_s > 3600 {
            problems.push(format!("the DNS TTL is {dns_ttl_s} s, and allowed is 1 to 3600 s"));
        }
        if plan.documents != digest(topology, *dns_ttl_s, probe) {
            problems.push("the plan was made for another topology or policy".into());
        }
        if plan.routes.is_empty() {
            problems.push("the plan has no routes".into());
        }
        for region in topology.regions.keys() {
            if !plan.regions.contains_key(region) {
                problems.push(format!("the plan does not contain region {region}"));
            }
        }
        for region in plan.regions.keys() {
            if !topology.regions.contains_key(region) {
                problems.push(format!("region {region} is not in the topology"));
            }
        }
        for edge in topology.edges.keys() {
            if !plan.edges.contains_key(edge) {
                problems.push(format!("the plan does not contain edge {edge}"));
            }
        }
        if plan.edges.values().all(|state| *state == crate::EdgeState::Drained) {
            problems.push("the plan has no serving edge".into());
        }
        for region in topology.regions.values() {
            let drained = |stack: &crate::Stack| plan.drained_stacks.contains(&stack.address);
            if region.stacks.iter().all(drained) {
                problems.push(format!("every stack of {} is drained", region.id));
            }
        }
        for primary in topology.primaries() {
            if !plan.routes.contains_key(&primary.id) {
                problems.push(format!("primary {} has no route", primary.id));
            }
        }
        for (primary, shares) in &plan.routes {
            let total: u32 = shares.iter().map(|share| u32::from(share.percent)).sum();
            if total != 100 {
                problems.push(format!("the shares of {primary} sum to {total}, not 100"));
            }
            for share in shares {
                match plan.regions.get(&share.region).map(|region| region.state) {
                    None => problems.push(format!("{primary} is routed to {}, which is unknown", share.region)),
                    Some(RegionState::Evacuated) => {
                        problems.push(format!("{primary} is routed to {}, which is evacuated", share.region));
                    }
                    Some(RegionState::Serving | RegionState::Restoring(_) | RegionState::Draining(_)) => {}
                }
                if share.percent == 0 {
                    problems.push(format!("{primary} gives {} a share of 0", share.region));
                }
            }
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(SnapshotError::Invalid {
                generation: plan.generation,
                problems,
            })
        }
    }
}

/// Digest (SHA-256, hex) of everything in a snapshot except the plan.
pub fn digest(topology: &Topology, dns_ttl_s: u32, probe: &ProbePolicy) -> String {
    let documents = serde_json::to_vec(&(topology, dns_ttl_s, probe));
    checksum(&documents.expect("documents hold only maps with text keys, which JSON can write"))
}

fn checksum(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RegionId, fixtures::three_primaries};

    #[test]
    fn a_snapshot_survives_the_wire_byte_for_byte() {
        let snapshot = three_primaries();
        let (bytes, sum) = snapshot.encode();
        let read = Snapshot::decode(&bytes, &sum).unwrap();
        assert_eq!(read, snapshot);
        assert_eq!(read.encode(), (bytes, sum));
    }

    #[test]
    fn stacks_without_a_version_are_written_as_they_were_before_there_were_versions() {
        let mut snapshot = three_primaries();
        let text = String::from_utf8(snapshot.encode().0).unwrap();
        assert!(text.contains(r#""stacks":["127.0.0.1:9001"]"#), "{text}");
        let region = snapshot.topology.regions.values_mut().next().unwrap();
        let address = region.stacks[0].address;
        region.stacks.push(crate::Stack::of_version(address, "2.4.0").unwrap());
        snapshot.plan.documents = digest(&snapshot.topology, snapshot.dns_ttl_s, &snapshot.probe);
        let (bytes, sum) = snapshot.encode();
        assert_eq!(Snapshot::decode(&bytes, &sum).unwrap(), snapshot);
    }

    #[test]
    fn numbers_of_any_length_are_read_as_they_were_written() {
        let mut snapshot = three_primaries();
        let region = snapshot.topology.regions.values_mut().next().unwrap();
        region.location.latitude = 49.825999768488444;
        snapshot.plan.documents = digest(&snapshot.topology, snapshot.dns_ttl_s, &snapshot.probe);
        let (bytes, sum) = snapshot.encode();
        assert_eq!(Snapshot::decode(&bytes, &sum).unwrap(), snapshot);
    }

    /// During an upgrade an older node must follow a newer control plane; a node that could not would have no failover.
    #[test]
    fn a_plan_of_a_newer_version_is_read_but_for_what_a_node_would_have_to_do() {
        let (bytes, _) = three_primaries().encode();
        let text = String::from_utf8(bytes).unwrap();
        let decode = |text: &str| Snapshot::decode(text.as_bytes(), &checksum(text.as_bytes()));
        let newer = text.replace(
            r#""code":"genesis""#,
            r#""code":"edge-lost","severity":7,"links":["https://example.com"]"#,
        );
        assert_ne!(newer, text);
        let read = decode(&newer).unwrap();
        assert_eq!(read.plan.reasons[0].code.as_str(), "edge-lost");
        // The node reports its plan with the same code, although it does not know the code.
        let (again, sum) = read.encode();
        assert_eq!(Snapshot::decode(&again, &sum), Ok(read));
        for routed in [
            text.replace(r#""routes":"#, r#""weights":{},"routes":"#),
            text.replace(r#""state":"serving""#, r#""state":"paused""#),
        ] {
            assert_ne!(routed, text);
            assert!(matches!(decode(&routed), Err(SnapshotError::Unreadable(_))));
        }
    }

    #[test]
    fn damage_is_noticed() {
        let (mut bytes, sum) = three_primaries().encode();
        bytes[20] ^= 1;
        assert_eq!(Snapshot::decode(&bytes, &sum), Err(SnapshotError::Corrupt));
        assert!(matches!(
            Snapshot::decode(b"{}", &checksum(b"{}")),
            Err(SnapshotError::Unreadable(_))
        ));
        let huge = vec![b' '; SNAPSHOT_BYTES_MAX + 1];
        assert_eq!(Snapshot::decode(&huge, ""), Err(SnapshotError::TooLarge(huge.len())));
    }

    #[test]
    fn an_empty_or_dead_world_is_never_valid() {
        let mut empty = three_primaries();
        empty.plan.routes.clear();
        let mut drained = three_primaries();
        for state in drained.plan.edges.values_mut() {
            *state = crate::EdgeState::Drained;
        }
        let mut to_evacuated = three_primaries();
        let us_east = RegionId::new("us-east").unwrap();
        to_evacuated.plan.regions.get_mut(&us_east).unwrap().state = RegionState::Evacuated;
        let mut ninety = three_primaries();
        ninety.plan.routes.get_mut(&us_east).unwrap()[0].percent = 90;
        let mut elsewhere = three_primaries();
        elsewhere.topology.regions.get_mut(&us_east).unwrap().sessions_max += 1;
        let mut no_plan = three_primaries();
        no_plan.plan.generation = 0;
        let mut nobody = three_primaries();
        nobody.plan.routes.get_mut(&us_east).unwrap().push(crate::Share {
            region: RegionId::new("us-west").unwrap(),
            percent: 0,
        });
        let mut stackless = three_primaries();
        stackless.plan.drained_stacks = stackless.topology.regions[&us_east]
            .stacks
            .iter()
            .map(|it| it.address)
            .collect();
        let mut later = three_primaries();
        later.schema = SNAPSHOT_SCHEMA + 1;
        let mut forgotten = three_primaries();
        forgotten.plan.routes.remove(&us_east);
        for (snapshot, complaint) in [
            (empty, "the plan has no routes"),
            (drained, "the plan has no serving edge"),
            (to_evacuated, "us-east is routed to us-east, which is evacuated"),
            (ninety, "the shares of us-east sum to 90, not 100"),
            (elsewhere, "the plan was made for another topology or policy"),
            // Every plan would count as newer than generation 0.
            (no_plan, "its generation is 0, and the first plan has generation 1"),
            // The count of regions with a share would include a region that gets no session.
            (nobody, "us-east gives us-west a share of 0"),
            // Edges would send its users to a region in which no stack serves.
            (stackless, "every stack of us-east is drained"),
            // An older reader would give a changed field its old meaning.
            (later, "its schema is 2, and this version reads only schema 1"),
            // Users whose primary this is would have no region.
            (forgotten, "primary us-east has no route"),
        ] {
            let error = snapshot.validate().unwrap_err().to_string();
            assert!(error.contains(complaint), "{error}");
        }
    }
}
