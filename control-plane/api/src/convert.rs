//! Conversions between wire messages and the types of Meridian. Every incoming message is checked here, once.

use std::time::Duration;

use topology::{Component, EdgeId, IntentKind, NodeId, PlanNumber, Reason, RegionId, Rule, Snapshot, Tick};
use verdict::{
    EdgeProbe, FAILURE_LENGTH_MAX, Latency, Observation, ReplicationLag, Source, TickReport, TrafficSeen, VersionSeen,
};

use crate::{texts, v1};

/// Most observations in one report. 100 regions × 6 components × 2 sources, each for about ten stacks, fit with room to
/// spare.
pub const OBSERVATIONS_MAX: usize = 16_384;
/// Largest latency sketch, in bytes.
pub const LATENCY_BYTES_MAX: usize = 64 << 10;

/// The reason for which a message is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", texts::in_field(field, problem))]
pub struct BadMessage {
    /// The wrong field.
    pub field: &'static str,
    /// The mistake in it.
    pub problem: String,
}

impl BadMessage {
    /// A mistake in one field.
    pub fn new(field: &'static str, problem: impl std::fmt::Display) -> Self {
        Self {
            field,
            problem: problem.to_string(),
        }
    }
}

impl From<BadMessage> for tonic::Status {
    fn from(bad: BadMessage) -> Self {
        tonic::Status::invalid_argument(bad.to_string())
    }
}

impl From<PlanNumber> for v1::PlanNumber {
    fn from(number: PlanNumber) -> Self {
        Self {
            generation: number.generation,
            epoch: number.epoch,
        }
    }
}

impl From<v1::PlanNumber> for PlanNumber {
    fn from(number: v1::PlanNumber) -> Self {
        Self {
            generation: number.generation,
            epoch: number.epoch,
        }
    }
}

impl From<&Snapshot> for v1::SnapshotUpdate {
    fn from(snapshot: &Snapshot) -> Self {
        let (document, checksum) = snapshot.encode();
        Self {
            number: Some(snapshot.plan.number().into()),
            document: document.into(),
            checksum,
            send_yours: false,
        }
    }
}

impl From<&Snapshot> for v1::Held {
    fn from(snapshot: &Snapshot) -> Self {
        let (document, checksum) = snapshot.encode();
        Self {
            document: document.into(),
            checksum,
        }
    }
}

/// Longest name of a version, rule or action, in characters.
const NAME_MAX: usize = 200;

impl TryFrom<v1::act_request::Kind> for IntentKind {
    type Error = BadMessage;
    fn try_from(kind: v1::act_request::Kind) -> Result<Self, BadMessage> {
        use v1::act_request::Kind;
        let region = |name: &str| RegionId::new(name).map_err(|error| BadMessage::new("region", error));
        let name = |field: &'static str, name: String| match name.chars().count() {
            0 => Err(BadMessage::new(field, texts::MISSING)),
            // The name is printed on other people's terminals.
            _ if name.contains(topology::text::is_hidden) => Err(BadMessage::new(field, texts::HIDDEN_CHARACTERS)),
            1..=NAME_MAX => Ok(name),
            _ => Err(BadMessage::new(field, texts::name_too_long(NAME_MAX))),
        };
        let loss = |ms: Option<u64>| ms.map(Duration::from_millis);
        Ok(match kind {
            Kind::Failover(it) => Self::Failover {
                region: region(&it.region)?,
                promote: it.promote,
                accept_loss: loss(it.accept_loss_ms),
                force: it.force,
            },
            Kind::Switchover(it) => Self::Switchover {
                region: region(&it.region)?,
                promote: it.promote,
            },
            Kind::Restore(it) => Self::Restore {
                region: region(&it.region)?,
                accept_loss: loss(it.accept_loss_ms),
            },
            Kind::DrainEdge(it) => Self::DrainEdge {
                edge: EdgeId::new(&it.edge).map_err(|error| BadMessage::new("edge", error))?,
            },
            Kind::DrainStack(it) => Self::DrainStack {
                stack: it
                    .stack
                    .parse()
                    .map_err(|_| BadMessage::new("stack", texts::not_an_address(&it.stack)))?,
            },
            Kind::Rollout(it) => Self::Rollout {
                version: name("version", it.version)?,
            },
            Kind::Freeze(_) => Self::Freeze,
            Kind::Unfreeze(_) => Self::Unfreeze,
            Kind::Override(it) => Self::Override {
                rule: Rule::named(&it.rule).ok_or_else(|| {
                    let known: Vec<_> = Rule::ALL.iter().map(Rule::to_string).collect();
                    let known = known.join(", ");
                    BadMessage::new("rule", texts::not_a_rule(&it.rule, &known))
                })?,
            },
            Kind::Ack(it) => Self::Ack {
                region: region(&it.region)?,
            },
            Kind::Approve(it) => Self::Approve {
                action: name("action", it.action)?,
                shown: match &*it.shown {
                    "" => None,
                    _ => Some(name("shown", it.shown)?),
                },
            },
            Kind::Abort(it) => Self::Abort {
                action: name("action", it.action)?,
            },
        })
    }
}

impl From<&Reason> for v1::Reason {
    fn from(reason: &Reason) -> Self {
        Self {
            code: reason.code.as_str().to_owned(),
            region: reason.region.as_ref().map(ToString::to_string).unwrap_or_default(),
            text: reason.text.clone(),
            evidence: reason.evidence.clone(),
            until_ms: reason.until.unwrap_or_default().0,
        }
    }
}

impl From<&TickReport> for v1::TickReport {
    fn from(report: &TickReport) -> Self {
        Self {
            vantage: report.vantage.to_string(),
            tick: report.tick.0,
            observations: report.observations.iter().map(Into::into).collect(),
            replication: report.replication.iter().map(Into::into).collect(),
            versions: report.versions.iter().map(Into::into).collect(),
            traffic: report.traffic.iter().map(Into::into).collect(),
            edges: report.edges.iter().map(Into::into).collect(),
            names: None,
            // The sender adds these when it sends.
            sent_ms: 0,
            ahead_ms: None,
        }
    }
}

impl From<&EdgeProbe> for v1::EdgeProbe {
    fn from(probe: &EdgeProbe) -> Self {
        Self {
            edge: probe.edge.to_string(),
            reached: probe.reached,
            failure: probe.failure.clone(),
        }
    }
}

impl TryFrom<v1::EdgeProbe> for EdgeProbe {
    type Error = BadMessage;
    fn try_from(probe: v1::EdgeProbe) -> Result<Self, BadMessage> {
        Ok(Self {
            edge: EdgeId::new(&probe.edge).map_err(|error| BadMessage::new("edge", error))?,
            reached: probe.reached,
            failure: probe.failure.chars().take(FAILURE_LENGTH_MAX).collect(),
        })
    }
}

impl From<&ReplicationLag> for v1::ReplicationLag {
    fn from(lag: &ReplicationLag) -> Self {
        Self {
            region: lag.region.to_string(),
            class: lag.class.clone(),
            behind_ms: u64::try_from(lag.behind.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

impl TryFrom<v1::ReplicationLag> for ReplicationLag {
    type Error = BadMessage;
    fn try_from(lag: v1::ReplicationLag) -> Result<Self, BadMessage> {
        if lag.class.len() > NAME_MAX {
            return Err(BadMessage::new("class", texts::name_too_long(NAME_MAX)));
        }
        Ok(Self {
            region: RegionId::new(&lag.region).map_err(|error| BadMessage::new("region", error))?,
            class: lag.class,
            behind: Duration::from_millis(lag.behind_ms),
        })
    }
}

impl From<&VersionSeen> for v1::VersionSeen {
    fn from(seen: &VersionSeen) -> Self {
        Self {
            version: seen.version.clone(),
            sessions: seen.sessions,
            turns_succeeded: seen.turns_succeeded,
            turns_failed: seen.turns_failed,
            latency: latency_bytes(&seen.latency).into(),
            underruns: seen.underruns,
            gpu_memory_errors: seen.gpu_memory_errors,
        }
    }
}

impl TryFrom<v1::VersionSeen> for VersionSeen {
    type Error = BadMessage;
    fn try_from(seen: v1::VersionSeen) -> Result<Self, BadMessage> {
        if seen.version.len() > NAME_MAX {
            return Err(BadMessage::new("version", texts::name_too_long(NAME_MAX)));
        }
        Ok(Self {
            version: seen.version,
            sessions: seen.sessions,
            turns_succeeded: seen.turns_succeeded,
            turns_failed: seen.turns_failed,
            latency: read_latency(&seen.latency)?,
            underruns: seen.underruns,
            gpu_memory_errors: seen.gpu_memory_errors,
        })
    }
}

impl From<&TrafficSeen> for v1::TrafficSeen {
    fn from(seen: &TrafficSeen) -> Self {
        Self {
            region: seen.region.to_string(),
            connects_ok: seen.connects_ok,
            connects_failed: seen.connects_failed,
            aborts: seen.aborts,
            turns_ok: seen.turns_ok,
            turns_failed: seen.turns_failed,
            sessions: seen.sessions,
            connect: latency_bytes(&seen.connect).into(),
            first_byte: latency_bytes(&seen.first_byte).into(),
            turn: latency_bytes(&seen.turn).into(),
        }
    }
}

impl TryFrom<v1::TrafficSeen> for TrafficSeen {
    type Error = BadMessage;
    fn try_from(seen: v1::TrafficSeen) -> Result<Self, BadMessage> {
        Ok(Self {
            region: RegionId::new(&seen.region).map_err(|error| BadMessage::new("region", error))?,
            connects_ok: seen.connects_ok,
            connects_failed: seen.connects_failed,
            aborts: seen.aborts,
            turns_ok: seen.turns_ok,
            turns_failed: seen.turns_failed,
            sessions: seen.sessions,
            connect: read_latency(&seen.connect)?,
            first_byte: read_latency(&seen.first_byte)?,
            turn: read_latency(&seen.turn)?,
        })
    }
}

/// The questions that a name server answered in one tick.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NamesSeen {
    /// Questions answered.
    pub answered: u64,
    /// Of these, the malformed ones, those about another zone, and those for something that the server does not do.
    pub refused: u64,
    /// Replies that the rate limit cut or dropped.
    pub limited: u64,
    /// Replies that the system did not take.
    pub failed: u64,
    /// From the moment at which the server took a question until its reply was with the system.
    pub latency: Latency,
}

/// A report of a name server.
#[derive(Debug, Clone, PartialEq)]
pub struct NamesReport {
    /// The name server.
    pub node: NodeId,
    /// The tick.
    pub tick: Tick,
    /// Its questions.
    pub seen: NamesSeen,
}

impl From<&NamesReport> for v1::TickReport {
    fn from(report: &NamesReport) -> Self {
        Self {
            vantage: report.node.to_string(),
            tick: report.tick.0,
            names: Some(v1::NamesSeen {
                answered: report.seen.answered,
                refused: report.seen.refused,
                limited: report.seen.limited,
                failed: report.seen.failed,
                latency: latency_bytes(&report.seen.latency).into(),
            }),
            ..Self::default()
        }
    }
}

impl TryFrom<v1::NamesSeen> for NamesSeen {
    type Error = BadMessage;
    fn try_from(seen: v1::NamesSeen) -> Result<Self, BadMessage> {
        Ok(Self {
            answered: seen.answered,
            refused: seen.refused,
            limited: seen.limited,
            failed: seen.failed,
            latency: read_latency(&seen.latency)?,
        })
    }
}

fn latency_bytes(latency: &Latency) -> Vec<u8> {
    match latency.count() {
        0 => Vec::new(),
        _ => serde_json::to_vec(latency).expect("a sketch is numbers, which JSON can write"),
    }
}

fn read_latency(bytes: &[u8]) -> Result<Latency, BadMessage> {
    match bytes.len() {
        0 => Ok(Latency::default()),
        1..=LATENCY_BYTES_MAX => serde_json::from_slice(bytes).map_err(|error| BadMessage::new("latency", error)),
        many => Err(BadMessage::new(
            "latency",
            texts::latency_too_long(many, LATENCY_BYTES_MAX),
        )),
    }
}

impl From<&Observation> for v1::Observation {
    fn from(observation: &Observation) -> Self {
        let source = match observation.source {
            Source::Probe => v1::Source::Probe,
            Source::Traffic => v1::Source::Traffic,
        };
        Self {
            region: observation.region.to_string(),
            component: observation.component.to_string(),
            source: source.into(),
            succeeded: observation.succeeded,
            failed: observation.failed,
            latency: latency_bytes(&observation.latency).into(),
            failure: observation.failure.clone(),
            stack: observation.stack.map(|stack| stack.to_string()).unwrap_or_default(),
        }
    }
}

impl TryFrom<v1::TickReport> for TickReport {
    type Error = BadMessage;
    fn try_from(report: v1::TickReport) -> Result<Self, BadMessage> {
        if report.observations.len() > OBSERVATIONS_MAX {
            let count = report.observations.len();
            return Err(BadMessage::new(
                "observations",
                texts::too_many_items(count, OBSERVATIONS_MAX),
            ));
        }
        for (field, count) in [
            ("replication", report.replication.len()),
            ("versions", report.versions.len()),
            ("traffic", report.traffic.len()),
            ("edges", report.edges.len()),
        ] {
            if count > OBSERVATIONS_MAX {
                return Err(BadMessage::new(field, texts::too_many_items(count, OBSERVATIONS_MAX)));
            }
        }
        Ok(Self {
            vantage: NodeId::new(&report.vantage).map_err(|error| BadMessage::new("vantage", error))?,
            tick: Tick(report.tick),
            observations: report
                .observations
                .into_iter()
                .map(TryInto::try_into)
                .collect::<Result<_, _>>()?,
            replication: report
                .replication
                .into_iter()
                .map(TryInto::try_into)
                .collect::<Result<_, _>>()?,
            versions: report
                .versions
                .into_iter()
                .map(TryInto::try_into)
                .collect::<Result<_, _>>()?,
            traffic: report
                .traffic
                .into_iter()
                .map(TryInto::try_into)
                .collect::<Result<_, _>>()?,
            edges: report
                .edges
                .into_iter()
                .map(TryInto::try_into)
                .collect::<Result<_, _>>()?,
        })
    }
}

impl TryFrom<v1::Observation> for Observation {
    type Error = BadMessage;
    fn try_from(observation: v1::Observation) -> Result<Self, BadMessage> {
        let source = match observation.source() {
            v1::Source::Probe => Source::Probe,
            v1::Source::Traffic => Source::Traffic,
            v1::Source::Unspecified => return Err(BadMessage::new("source", texts::MISSING)),
        };
        let component = Component::parse(&observation.component).ok_or_else(|| {
            let known: Vec<_> = Component::ALL.iter().map(Component::to_string).collect();
            BadMessage::new(
                "component",
                texts::not_a_component(&observation.component, &known.join(", ")),
            )
        })?;
        let stack = match observation.stack.as_str() {
            "" => None,
            stack => Some(
                stack
                    .parse()
                    .map_err(|_| BadMessage::new("stack", texts::not_an_address(stack)))?,
            ),
        };
        Ok(Self {
            region: RegionId::new(&observation.region).map_err(|error| BadMessage::new("region", error))?,
            component,
            source,
            stack,
            succeeded: observation.succeeded,
            failed: observation.failed,
            latency: read_latency(&observation.latency)?,
            failure: observation.failure.chars().take(FAILURE_LENGTH_MAX).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> TickReport {
        let mut seen = Observation::new(RegionId::new("us-east").unwrap(), Component::Asr, Source::Probe);
        seen.succeed(12.0);
        seen.fail("refused");
        let mut traffic = TrafficSeen {
            connects_ok: 5,
            connects_failed: 4,
            aborts: 3,
            turns_ok: 2,
            turns_failed: 1,
            ..TrafficSeen::new(RegionId::new("us-east").unwrap())
        };
        traffic.connect.add(1.0);
        traffic.first_byte.add(20.0);
        traffic.turn.add(400.0);
        let stack = Observation {
            stack: Some("[::1]:9001".parse().unwrap()),
            ..Observation::new(RegionId::new("us-east").unwrap(), Component::Gateway, Source::Probe)
        };
        TickReport {
            replication: vec![ReplicationLag {
                region: RegionId::new("us-east").unwrap(),
                class: "profiles".into(),
                behind: Duration::from_secs(90),
            }],
            versions: vec![VersionSeen {
                version: "v2".into(),
                sessions: 3,
                turns_succeeded: 9,
                turns_failed: 1,
                latency: Latency::default(),
                underruns: 2,
                gpu_memory_errors: 0,
            }],
            traffic: vec![traffic],
            edges: vec![EdgeProbe {
                edge: EdgeId::new("edge-dub").unwrap(),
                reached: false,
                failure: "refused".into(),
            }],
            ..TickReport::new(NodeId::new("edge-iad").unwrap(), Tick(7), vec![seen, stack])
        }
    }

    #[test]
    fn a_report_survives_the_wire() {
        assert_eq!(TickReport::try_from(v1::TickReport::from(&report())), Ok(report()));
    }

    #[test]
    fn a_report_of_an_older_edge_has_no_traffic_and_an_older_control_plane_takes_no_notice_of_it() {
        use prost::Message as _;
        /// A report from before the field `traffic` existed.
        #[derive(Clone, PartialEq, prost::Message)]
        struct Older {
            #[prost(string, tag = "1")]
            vantage: String,
            #[prost(uint64, tag = "2")]
            tick: u64,
            #[prost(message, repeated, tag = "5")]
            versions: Vec<v1::VersionSeen>,
        }
        let newer = v1::TickReport::from(&report());
        let read = Older::decode(newer.encode_to_vec().as_slice()).unwrap();
        assert_eq!((read.tick, read.versions.len()), (7, 1));
        let older = TickReport::try_from(v1::TickReport::decode(read.encode_to_vec().as_slice()).unwrap());
        assert_eq!(older.unwrap().traffic, []);
    }

    #[test]
    fn nonsense_is_refused_by_field() {
        let good = v1::TickReport::from(&report());
        let with = |change: fn(&mut v1::TickReport)| {
            let mut bad = good.clone();
            change(&mut bad);
            TickReport::try_from(bad).unwrap_err().field
        };
        assert_eq!(with(|report| report.vantage = "Not An Id".into()), "vantage");
        assert_eq!(with(|report| report.observations[0].region.clear()), "region");
        assert_eq!(
            with(|report| report.observations[0].component = "brain".into()),
            "component"
        );
        assert_eq!(with(|report| report.observations[0].source = 0), "source");
        assert_eq!(with(|report| report.observations[1].stack = "nowhere".into()), "stack");
        assert_eq!(with(|report| report.observations[0].latency = "{".into()), "latency");
        assert_eq!(
            with(|report| report.observations[0].latency = vec![b' '; LATENCY_BYTES_MAX + 1].into()),
            "latency"
        );
        assert_eq!(with(|report| report.edges[0].edge.clear()), "edge");
        assert_eq!(with(|report| report.traffic[0].region.clear()), "region");
        assert_eq!(with(|report| report.traffic[0].turn = "{".into()), "latency");
        let one = good.observations[0].clone();
        let mut many = good.clone();
        many.observations = vec![one; OBSERVATIONS_MAX + 1];
        assert_eq!(TickReport::try_from(many).unwrap_err().field, "observations");
    }
}
