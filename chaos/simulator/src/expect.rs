//! The expectations of a scenario. They stand in its file, so that a reader sees its purpose and a test fails when one
//! is not met.
//!
//! ```text
//! expect us-east evacuated by 60s          serving, evacuated, draining, restoring; `at 60s`; at the end without a time
//! expect us-east never evacuated
//! expect us-west takes 50 % of us-east     `at 60s`; at the end without a time
//! expect us-west at L1 by 60s              `at 60s` likewise
//! expect refused correlated-evidence       changed, refused, waiting; about one region `us-east refused ...`; `by 60s`
//! expect never promoted                    no decision says so; `us-east never promoted`
//! expect plan count 1
//! expect edge-dub has plan 4@1             at the end
//! expect edge-dub refuses plan 2@1
//! expect honest resolvers leave edge-dub   within the bound that `meridian status` shows; `stretching` and `stale` resolvers likewise
//! ```

use std::time::Duration;

use serde::{
    Deserialize as _,
    de::{IntoDeserializer as _, value},
};
use topology::{
    EdgeId, IdError, Level, NodeId, Plan, PlanNumber, ReasonCode, RegionId, RegionState, Topology, document::Span,
};

use crate::{
    record::{FirstReason, Kind, Record},
    resolvers::{Habit, Left},
    subjects::nodes,
    texts,
};

/// A condition that the record of a scenario must meet.
#[derive(Debug, Clone, PartialEq)]
pub struct Expectation {
    /// Line in the file, from 1.
    pub line: usize,
    /// The text in the file.
    pub text: String,
    expected: Expected,
}

#[derive(Debug, Clone, PartialEq)]
enum Expected {
    State(RegionId, StateName, When),
    NeverState(RegionId, StateName),
    Takes(RegionId, u8, RegionId, When),
    Level(RegionId, Level, When),
    Said(Option<RegionId>, Kind, ReasonCode, Option<Duration>),
    NeverSaid(Option<RegionId>, ReasonCode),
    PlanCount(usize),
    Has(NodeId, PlanNumber),
    Refuses(NodeId, PlanNumber),
    Leave(Habit, EdgeId),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::EnumString)]
#[strum(serialize_all = "kebab-case")]
enum StateName {
    Serving,
    Evacuated,
    Draining,
    Restoring,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    /// At that time, or at the end.
    At(Option<Duration>),
    /// At some time until then.
    By(Duration),
}

impl Expectation {
    pub(crate) fn parse(line: usize, words: &[&str]) -> Result<Self, String> {
        Ok(Self {
            line,
            text: words.join(" "),
            expected: parse(words)?,
        })
    }

    /// Whether it is about resolvers, which are played only then.
    pub(crate) fn is_of_resolvers(&self) -> bool {
        matches!(self.expected, Expected::Leave(..))
    }

    /// The error names a subject that the world does not have.
    pub(crate) fn check(&self, topology: &Topology) -> Result<(), String> {
        let regions: Vec<&RegionId> = match &self.expected {
            Expected::State(region, ..) | Expected::NeverState(region, _) | Expected::Level(region, ..) => vec![region],
            Expected::Takes(region, _, of, _) => vec![region, of],
            Expected::Said(region, ..) | Expected::NeverSaid(region, _) => region.iter().collect(),
            Expected::PlanCount(_) => vec![],
            Expected::Leave(_, edge) => {
                let known = topology.edges.contains_key(edge);
                return known
                    .then_some(())
                    .ok_or_else(|| texts::unknown("edge", edge, topology.edges.keys()));
            }
            Expected::Has(node, _) | Expected::Refuses(node, _) => {
                let known = nodes(topology).any(|it| it == *node);
                return known
                    .then_some(())
                    .ok_or_else(|| texts::unknown("node", node, nodes(topology)));
            }
        };
        match regions
            .into_iter()
            .find(|region| !topology.regions.contains_key(region))
        {
            Some(region) => Err(texts::unknown("region", region, topology.regions.keys())),
            None => Ok(()),
        }
    }

    /// The error tells the result instead of the expected one.
    pub fn judge(&self, record: &Record) -> Result<(), String> {
        match &self.expected {
            Expected::State(region, state, when) => {
                let seen = |plan: &Plan| plan.regions.get(region).map(|it| it.state.to_string());
                let holds = |plan: &Plan| plan.regions.get(region).is_some_and(|it| state.is(it.state));
                at(record, *when, holds, seen)
            }
            Expected::NeverState(region, state) => {
                let is = |plan: &Plan| plan.regions.get(region).is_some_and(|it| state.is(it.state));
                match record.plans.iter().find(|(_, plan)| is(plan)) {
                    Some((since, _)) => Err(format!("it was, at {:.1} s", since.as_secs_f64())),
                    None => Ok(()),
                }
            }
            Expected::Takes(target, percent, primary, when) => {
                let taken = |plan: &Plan| -> u8 {
                    let shares = plan.routes.get(primary).into_iter().flatten();
                    shares.filter(|it| it.region == *target).map(|it| it.percent).sum()
                };
                at(
                    record,
                    *when,
                    |plan| taken(plan) == *percent,
                    |plan| Some(format!("{} %", taken(plan))),
                )
            }
            Expected::Level(region, level, when) => {
                let of = |plan: &Plan| plan.regions.get(region).map(|it| it.level);
                at(
                    record,
                    *when,
                    |plan| of(plan) == Some(*level),
                    |plan| of(plan).map(|it| it.to_string()),
                )
            }
            Expected::Said(region, kind, code, by) => {
                let fits = |said: &&FirstReason| said.kind == *kind && is_about(said, region.as_ref(), *code);
                match record.said.iter().find(fits) {
                    Some(said) if by.is_none_or(|by| said.at <= by) => Ok(()),
                    Some(said) => Err(format!("that was said only at {:.1} s", said.at.as_secs_f64())),
                    None => Err("that was never said".to_owned()),
                }
            }
            Expected::NeverSaid(region, code) => {
                match record.said.iter().find(|said| is_about(said, region.as_ref(), *code)) {
                    Some(said) => Err(format!(
                        "that was said at {:.1} s: {}",
                        said.at.as_secs_f64(),
                        said.reason.text
                    )),
                    None => Ok(()),
                }
            }
            Expected::PlanCount(count) => match record.plans.len() {
                made if made == *count => Ok(()),
                made => Err(format!("{made} plans were made")),
            },
            Expected::Has(node, number) => {
                let applied = record.applied.iter().find(|(it, _)| it == node);
                match applied.and_then(|(_, number)| *number) {
                    Some(has) if has == *number => Ok(()),
                    Some(has) => Err(format!("it has {has}")),
                    None => Err("it has none".to_owned()),
                }
            }
            Expected::Refuses(node, number) => {
                let refused = record
                    .refused
                    .iter()
                    .any(|(_, it, refused)| (it, refused) == (node, number));
                refused.then_some(()).ok_or_else(|| "it did not".to_owned())
            }
            Expected::Leave(habit, edge) => {
                let left = record
                    .left
                    .iter()
                    .filter(|left| left.habit == *habit && left.edge == *edge);
                let mut judged = left.peekable();
                if judged.peek().is_none() {
                    return Err("the edge never died".to_owned());
                }
                let is_in_time = |left: &&Left| left.last.is_some_and(|last| last <= left.promised);
                judged
                    .find(|left| !is_in_time(left))
                    .map_or(Ok(()), |late| Err(late.to_string()))
            }
        }
    }
}

fn is_about(said: &FirstReason, region: Option<&RegionId>, code: ReasonCode) -> bool {
    said.reason.code == code && region.is_none_or(|region| said.reason.region.as_ref() == Some(region))
}

/// Judges the plan in force at a time, or all plans until then.
fn at(
    record: &Record,
    when: When,
    holds: impl Fn(&Plan) -> bool,
    seen: impl Fn(&Plan) -> Option<String>,
) -> Result<(), String> {
    match when {
        When::At(time) => match record.plan_at(time.unwrap_or(Duration::MAX)) {
            Some(plan) if holds(plan) => Ok(()),
            plan => Err(format!("it is {}", plan.and_then(seen).unwrap_or("unknown".to_owned()))),
        },
        When::By(time) => match record.plans.iter().find(|(_, plan)| holds(plan)) {
            Some((since, _)) if *since <= time => Ok(()),
            Some((since, _)) => Err(format!("only at {:.1} s", since.as_secs_f64())),
            None => Err("never".to_owned()),
        },
    }
}

impl StateName {
    fn is(self, state: RegionState) -> bool {
        self == match state {
            RegionState::Serving => Self::Serving,
            RegionState::Evacuated => Self::Evacuated,
            RegionState::Draining(_) => Self::Draining,
            RegionState::Restoring(_) => Self::Restoring,
        }
    }
}

fn parse(words: &[&str]) -> Result<Expected, String> {
    let region = |name: &str| RegionId::new(name).map_err(|error: IdError| error.to_string());
    let node = |name: &str| NodeId::new(name).map_err(|error: IdError| error.to_string());
    let unknown = || texts::not_an_expectation(&words.join(" "));
    let when = |words: &[&str]| match words {
        [] => Ok(When::At(None)),
        ["at", time] => Ok(When::At(Some(time.parse::<Span>()?.0))),
        ["by", time] => Ok(When::By(time.parse::<Span>()?.0)),
        _ => Err(unknown()),
    };
    let by = |words: &[&str]| match when(words)? {
        When::At(None) => Ok(None),
        When::By(time) => Ok(Some(time)),
        When::At(Some(_)) => Err(texts::reason_at_a_time()),
    };
    Ok(match words {
        ["plan", "count", count] => {
            let count = count.parse().map_err(|_| texts::not_a_number(count))?;
            Expected::PlanCount(count)
        }
        ["never", code] => Expected::NeverSaid(None, parse_code(code)?),
        [name, "never", word] => match word.parse() {
            Ok(state) => Expected::NeverState(region(name)?, state),
            Err(_) => Expected::NeverSaid(Some(region(name)?), parse_code(word)?),
        },
        [habit, "resolvers", "leave", edge] => {
            let habit = habit.parse().map_err(|_| unknown())?;
            let edge = EdgeId::new(edge).map_err(|error: IdError| error.to_string())?;
            Expected::Leave(habit, edge)
        }
        [name, "has", "plan", number] => Expected::Has(node(name)?, parse_number(number)?),
        [name, "refuses", "plan", number] => Expected::Refuses(node(name)?, parse_number(number)?),
        [name, "takes", percent, "%", "of", primary, time @ ..] => {
            let percent = percent.parse().map_err(|_| texts::not_a_percentage(percent))?;
            Expected::Takes(region(name)?, percent, region(primary)?, when(time)?)
        }
        [name, "at", level, time @ ..] if level.starts_with('L') => {
            Expected::Level(region(name)?, parse_level(level)?, when(time)?)
        }
        [kind, code, time @ ..] if kind.parse::<Kind>().is_ok() => {
            let kind = kind.parse().map_err(|_| unknown())?;
            Expected::Said(None, kind, parse_code(code)?, by(time)?)
        }
        [name, kind, code, time @ ..] if kind.parse::<Kind>().is_ok() => {
            let kind = kind.parse().map_err(|_| unknown())?;
            Expected::Said(Some(region(name)?), kind, parse_code(code)?, by(time)?)
        }
        [name, state, time @ ..] => {
            let state = state.parse().map_err(|_| unknown())?;
            Expected::State(region(name)?, state, when(time)?)
        }
        _ => return Err(unknown()),
    })
}

fn parse_level(word: &str) -> Result<Level, String> {
    word.parse()
        .map_err(|_| texts::unknown("level", word, ["L0", "L1", "L2", "L3", "L4", "L5"]))
}

/// A code by its name in documents: a misspelt one would never appear, and `never` would always be met.
fn parse_code(word: &str) -> Result<ReasonCode, String> {
    let name: value::StrDeserializer<'_, value::Error> = word.into_deserializer();
    let code = ReasonCode::deserialize(name).ok();
    let known = code.filter(|code| !matches!(code, ReasonCode::Unknown(_)));
    known.ok_or_else(|| texts::unknown_reason(word))
}

fn parse_number(word: &str) -> Result<PlanNumber, String> {
    let parts = word.split_once('@');
    let number = parts.and_then(|(generation, epoch)| {
        Some(PlanNumber {
            generation: generation.parse().ok()?,
            epoch: epoch.parse().ok()?,
        })
    });
    number.ok_or_else(|| texts::not_a_plan(word))
}
