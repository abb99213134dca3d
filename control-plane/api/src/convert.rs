//! Conversions between wire messages and our types. Everything that comes in is checked here, once.

use topology::{Component, NodeId, PlanNumber, Reason, RegionId, Snapshot, Tick};
use verdict::{FAILURE_LENGTH_MAX, Latency, Observation, Source, TickReport};

use crate::v1;

/// Most observations in one report: 100 regions × 6 components × 2 sources, with room.
pub const OBSERVATIONS_MAX: usize = 4_096;
/// Largest latency sketch accepted, in bytes.
pub const LATENCY_BYTES_MAX: usize = 64 << 10;

/// Why a message is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct BadMessage {
    /// Which field.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

impl BadMessage {
    /// A complaint about one field.
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
        }
    }
}

impl From<&Reason> for v1::Reason {
    fn from(reason: &Reason) -> Self {
        Self {
            code: reason.code.as_str().to_owned(),
            region: reason.region.as_ref().map(ToString::to_string).unwrap_or_default(),
            text: reason.text.clone(),
            evidence: reason.evidence.clone(),
        }
    }
}

impl From<&TickReport> for v1::TickReport {
    fn from(report: &TickReport) -> Self {
        Self {
            vantage: report.vantage.to_string(),
            tick: report.tick.0,
            observations: report.observations.iter().map(Into::into).collect(),
        }
    }
}

impl From<&Observation> for v1::Observation {
    fn from(observation: &Observation) -> Self {
        let latency = match observation.latency.count() {
            0 => Vec::new(),
            _ => serde_json::to_vec(&observation.latency).expect("a sketch is numbers, which JSON can write"),
        };
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
            latency: latency.into(),
            failure: observation.failure.clone(),
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
                format!("{count} are more than {OBSERVATIONS_MAX}"),
            ));
        }
        Ok(Self {
            vantage: NodeId::new(&report.vantage).map_err(|error| BadMessage::new("vantage", error))?,
            tick: Tick(report.tick),
            observations: report
                .observations
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
            v1::Source::Unspecified => return Err(BadMessage::new("source", "it is not given")),
        };
        let component = Component::parse(&observation.component)
            .ok_or_else(|| BadMessage::new("component", format!("there is no \"{:.40}\"", observation.component)))?;
        let latency = if observation.latency.is_empty() {
            Latency::default()
        } else if observation.latency.len() > LATENCY_BYTES_MAX {
            return Err(BadMessage::new(
                "latency",
                format!("{} bytes are too many", observation.latency.len()),
            ));
        } else {
            serde_json::from_slice(&observation.latency).map_err(|error| BadMessage::new("latency", error))?
        };
        Ok(Self {
            region: RegionId::new(&observation.region).map_err(|error| BadMessage::new("region", error))?,
            component,
            source,
            succeeded: observation.succeeded,
            failed: observation.failed,
            latency,
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
        TickReport {
            vantage: NodeId::new("edge-iad").unwrap(),
            tick: Tick(7),
            observations: vec![seen],
        }
    }

    #[test]
    fn a_report_survives_the_wire() {
        assert_eq!(TickReport::try_from(v1::TickReport::from(&report())), Ok(report()));
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
        assert_eq!(with(|report| report.observations[0].latency = "{".into()), "latency");
        assert_eq!(
            with(|report| report.observations[0].latency = vec![b' '; LATENCY_BYTES_MAX + 1].into()),
            "latency"
        );
        let one = good.observations[0].clone();
        let mut many = good.clone();
        many.observations = vec![one; OBSERVATIONS_MAX + 1];
        assert_eq!(TickReport::try_from(many).unwrap_err().field, "observations");
    }
}
