//! What edges and DNS responders hold: one plan together with the topology it was made for. Whole and immutable; a
//! reader keeps one for an entire request.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{Plan, RegionState, Topology, policy::ProbePolicy};

/// Version of the snapshot document; a reader refuses others.
pub const SNAPSHOT_SCHEMA: u32 = 1;

/// Largest snapshot document accepted, in bytes: 100 regions and 1,000 edges take about 0.5 MB.
pub const SNAPSHOT_BYTES_MAX: usize = 4 << 20;

/// One plan and the topology it routes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    /// [`SNAPSHOT_SCHEMA`].
    pub schema: u32,
    /// The routing truth.
    pub plan: Plan,
    /// Where things are.
    pub topology: Topology,
    /// TTL of the DNS answers made from it, in seconds.
    pub dns_ttl_s: u32,
    /// How the nodes that hold it probe the regions.
    pub probe: ProbePolicy,
}

/// Why a snapshot is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Larger than [`SNAPSHOT_BYTES_MAX`].
    #[error("snapshot of {0} bytes is over the limit of {SNAPSHOT_BYTES_MAX}")]
    TooLarge(usize),
    /// Not a snapshot document.
    #[error("snapshot is not readable: {0}")]
    Unreadable(String),
    /// Bytes and checksum disagree.
    #[error("snapshot does not match its checksum")]
    Corrupt,
    /// Readable, and wrong.
    #[error("plan {generation} is not valid: {}", problems.join("; "))]
    Invalid {
        /// The plan's generation.
        generation: u64,
        /// Everything that is wrong with it.
        problems: Vec<String>,
    },
}

impl Snapshot {
    /// The document, and its SHA-256 in hex.
    pub fn encode(&self) -> (Vec<u8>, String) {
        let bytes = serde_json::to_vec(self).expect("a snapshot holds only maps with text keys, which JSON can write");
        let checksum = checksum(&bytes);
        (bytes, checksum)
    }

    /// Reads a document made by [`Snapshot::encode`], and checks it all.
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

    /// Checks that the plan can be applied to its topology. An empty world is never valid (invariant 2).
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
            problems.push(format!("schema {schema} is not {SNAPSHOT_SCHEMA}"));
        }
        if plan.generation == 0 {
            problems.push("generation 0 is no plan".into());
        }
        if *dns_ttl_s == 0 || *dns_ttl_s > 3600 {
            problems.push(format!("dns ttl of {dns_ttl_s} s is not in 1..=3600"));
        }
        if plan.documents != digest(topology, *dns_ttl_s, probe) {
            problems.push("it was made for another topology or policy".into());
        }
        if plan.routes.is_empty() {
            problems.push("it routes nothing".into());
        }
        for region in topology.regions.keys() {
            if !plan.regions.contains_key(region) {
                problems.push(format!("region {region} is missing"));
            }
        }
        for region in plan.regions.keys() {
            if !topology.regions.contains_key(region) {
                problems.push(format!("region {region} is not in the topology"));
            }
        }
        for edge in topology.edges.keys() {
            if !plan.edges.contains_key(edge) {
                problems.push(format!("edge {edge} is missing"));
            }
        }
        if plan.edges.values().all(|state| *state == crate::EdgeState::Drained) {
            problems.push("no edge serves".into());
        }
        for region in topology.regions.values() {
            let drained = |stack: &crate::Stack| plan.drained_stacks.contains(&stack.address);
            if region.stacks.iter().all(drained) {
                problems.push(format!("no stack of {} serves", region.id));
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

/// Digest (SHA-256, hex) of everything in a snapshot besides the plan.
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

    /// During an upgrade an older node has to follow a newer control plane, or it has no failover.
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
        // Whoever asks the node for its plan gets the same code back.
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
            (empty, "it routes nothing"),
            (drained, "no edge serves"),
            (to_evacuated, "us-east is routed to us-east, which is evacuated"),
            (ninety, "the shares of us-east sum to 90, not 100"),
            (elsewhere, "it was made for another topology or policy"),
            // Any plan would be newer than this one.
            (no_plan, "generation 0 is no plan"),
            // A region that is named and takes nobody would be counted as a place to go.
            (nobody, "us-east gives us-west a share of 0"),
            // Its callers would be sent to a region in which nothing answers.
            (stackless, "no stack of us-east serves"),
            // What means something else in another version would be read as if it did not.
            (later, "schema 2 is not 1"),
            // Callers at home there would have nowhere to go.
            (forgotten, "primary us-east has no route"),
        ] {
            let error = snapshot.validate().unwrap_err().to_string();
            assert!(error.contains(complaint), "{error}");
        }
    }
}
