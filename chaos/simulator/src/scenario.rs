//! The scenario language: one line a fact, `#` begins a comment.
//!
//! First the differences of this world from the topology:
//!
//! ```text
//! region us-west sessions 100 connects 10/s asr 50      its limits
//! region us-east stacks 2                               number of its stacks, all alike
//! traffic us-east 98 turns at edge-iad                  real traffic in each tick, beside the probes
//! traffic us-east 98 turns and 300 sessions at edge-iad sessions as well, spread over the stacks; those of a stack that dies are
//!                                                       lost within a minute, as with a machine that falls silent
//! rollout holds 3m 5m 7m                                instead of days
//! rollout versions v2 v3                                each region has a stack of each
//! ```
//!
//! Then the events, in the order of time:
//!
//! ```text
//! at 35s  us-east dies                      all connections to it fail
//! at 35s  us-east is unreachable from edge-iad
//! at 35s  stack 2 of us-east dies           of several; `recovers` ends it
//! at 35s  us-east asr fails 20 %            or gateway, nlu, tts, skills, session-store; exactly where there is traffic, else by
//!                                           the luck of two probes of the gateway and one of the others in each tick
//! at 35s  stack 2 of us-east asr fails 20 % likewise, of one stack
//! at 35s  us-east asr takes 700 ms
//! at 35s  us-east recovers                  from everything above
//! at 35s  us-east flaps every 30s for 10m   dies for 30 s, is well for 30 s, and so on; well at the end
//! at 35s  edge-iad is silent                it reports nothing; `speaks` ends it
//! at 35s  edge edge-iad dies                its process is gone: it sends nothing, no plan and no vantage reaches it
//! at 35s  edge edge-iad unreachable         it works and reports; no vantage reaches its public addresses
//! at 35s  edge edge-iad recovers            from both
//! at 35s  edge-iad lies about us-east       it reports the opposite of what it sees; `is honest` ends it
//! at 35s  us-east profiles lag 2h           its copies are that far behind; `us-east data lags 5s` for every class
//! at 35s  us-east profiles are not measured any more; `us-east data is not measured` for every class
//! at 35s  v2 fails 2 % of turns             devices observe a version: `takes +60 %`, `has 12 underruns per session`,
//!                                           `has 1 gpu memory errors`, `has 50 sessions`
//! at 35s  clock jumps 1h                    the clock of the control plane; `clock jumps back 1h`; of an edge:
//!                                           `clock of edge-iad jumps 2s`
//! at 35s  leader changes                    another control plane leads; observations are forgotten
//! at 35s  store goes back to generation 2   it is restored from a copy of that time
//! at 35s  edge-iad refuses the next plan    `refuses plans` until it `accepts plans`
//! at 35s  edge-iad is cut off               no plan reaches it; `is connected` ends it
//! at 35s  enactor holds the plan            a slow one takes a copy of the plan in force; others are faster
//! at 35s  enactor applies what it held
//! ```
//!
//! Operators have names, and may give a reason after `because`:
//!
//! ```text
//! at 35s  alice fails over us-east [and promotes] [accepting a loss of 1h] [by force]
//! at 35s  alice switches over us-east [and promotes]
//! at 35s  alice restores us-east [accepting a loss of 1h]
//! at 35s  alice drains edge-iad for 2h
//! at 35s  alice starts rollout v2
//! at 35s  alice freezes for 10m             `unfreezes` ends it
//! at 35s  alice overrides hold-down for 30m
//! at 35s  alice acks us-east
//! at 35s  bob approves it                   the newest that waits; or by id: requests are a1, a2, ... in order
//! at 35s  bob aborts it                     the newest that is under way, or by id
//! ```
//!
//! Last the expectations ([`crate::expect`]) and the end:
//!
//! ```text
//! expect us-east evacuated by 60s
//! end 5m
//! ```

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use topology::{Component, IdError, NodeId, Policy, RegionId, Stack, Topology, document::Span, policy::RolloutStep};

mod ask;
mod event;
mod words;

pub use self::{
    ask::{Ask, Wanted},
    event::{Event, VersionChange},
};
use self::{
    event::parse_event,
    words::{number, number_up_to},
};
use crate::{expect::Expectation, texts};

/// Longest scenario: the simulator plays every tick of it.
const END_MAX: Duration = Duration::from_secs(30 * 86_400);

/// Most stacks of a region: each vantage probes each of them in each tick.
const STACKS_MAX: u32 = 50;
/// Most turns of real traffic of an edge and a region in a tick.
const TURNS_MAX: u32 = 10_000;
/// Most sessions of an edge and a region.
const SESSIONS_MAX: u32 = 50_000;
/// Most deaths of one flapping line.
const FLAPS_MAX: u32 = 1000;

/// A script of faults and requests.
#[derive(Debug, Clone, PartialEq)]
pub struct Scenario {
    /// The differences of this world from the topology and the policy.
    pub head: Head,
    /// The events, in the order of time.
    pub events: Vec<Line>,
    /// The claims about the end of the record, in the order of the file.
    pub expectations: Vec<Expectation>,
    /// Time of the end, from the start.
    pub end: Duration,
}

/// The differences of a scenario's world from the documents that it is played with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Head {
    /// The limits of regions, each with its line.
    pub sizes: Vec<(usize, RegionId, Vec<Size>)>,
    /// The holds of a rollout's steps.
    pub rollout_holds: Option<Vec<Duration>>,
    /// Real traffic, by edge and region.
    pub traffic: BTreeMap<(NodeId, RegionId), Traffic>,
    /// Versions of which each region has a stack, beside those in service.
    pub versions: Vec<String>,
}

/// Real traffic of an edge in a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Turns in each tick; each comes with a connection.
    pub turns: u32,
    /// Sessions while the region has all its callers.
    pub sessions: u32,
}

/// A limit of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// Number of sessions at once.
    Sessions(u32),
    /// New connections per second.
    Connects(u32),
    /// Number of sessions that one component can serve.
    Of(Component, u32),
    /// Number of stacks.
    Stacks(u32),
}

/// One line of the script.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// Line in the file, from 1.
    pub line: usize,
    /// Time from the start.
    pub at: Duration,
    /// The text in the file.
    pub text: String,
    /// The event.
    pub event: Event,
}

/// A fault of a scenario, with its line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", texts::in_line(*line, problem))]
pub struct BadScenario {
    /// Line in the file, from 1.
    pub line: usize,
    /// The mistake, and the repair.
    pub problem: String,
}

impl Scenario {
    /// Reads a scenario.
    pub fn parse(text: &str) -> Result<Self, BadScenario> {
        let mut head = Head::default();
        let mut events: Vec<Line> = Vec::new();
        let mut expectations = Vec::new();
        let mut end = None;
        for (index, line) in text.lines().enumerate() {
            let number = index + 1;
            let bad = |problem: String| BadScenario { line: number, problem };
            let line = line.split('#').next().unwrap_or_default();
            let words: Vec<&str> = line.split_whitespace().collect();
            let time = |text: &str| text.parse::<Span>().map(|span| span.0).map_err(bad);
            match words.as_slice() {
                [] => {}
                ["region", name, sizes @ ..] => {
                    let name = name.parse().map_err(|error: IdError| bad(error.to_string()))?;
                    head.sizes.push((number, name, parse_sizes(sizes).map_err(bad)?));
                }
                ["traffic", name, turns, "turns", sessions @ .., "at", edge] => {
                    let region = name.parse().map_err(|error: IdError| bad(error.to_string()))?;
                    let edge = NodeId::new(edge).map_err(|error| bad(error.to_string()))?;
                    let turns = number_up_to(turns, TURNS_MAX).map_err(bad)?;
                    let sessions = match sessions {
                        [] => 0,
                        ["and", sessions, "sessions"] => number_up_to(sessions, SESSIONS_MAX).map_err(bad)?,
                        _ => return Err(bad(texts::traffic())),
                    };
                    head.traffic.insert((edge, region), Traffic { turns, sessions });
                }
                ["rollout", "holds", times @ ..] if !times.is_empty() => {
                    let times: Result<_, _> = times.iter().map(|text| time(text)).collect();
                    head.rollout_holds = Some(times?);
                }
                ["rollout", "versions", names @ ..] if !names.is_empty() => {
                    head.versions.extend(names.iter().map(|name| (*name).to_owned()));
                }
                ["expect", expected @ ..] => {
                    expectations.push(Expectation::parse(number, expected).map_err(bad)?);
                }
                ["end", at] => {
                    end = Some(time(at)?).filter(|end| *end <= END_MAX);
                    if end.is_none() {
                        let days = END_MAX.as_secs() / 86_400;
                        return Err(bad(texts::ends_too_late(days)));
                    }
                }
                ["at", at, event @ ..] => {
                    let at = time(at)?;
                    if events.last().is_some_and(|before| at < before.at) {
                        return Err(bad(texts::before_line_above()));
                    }
                    let (text, event) = (event.join(" "), parse_event(event).map_err(bad)?);
                    let line = number;
                    events.push(Line { line, at, text, event });
                }
                _ => {
                    return Err(bad(texts::unknown_line()));
                }
            }
        }
        let end = end.ok_or(BadScenario {
            line: text.lines().count(),
            problem: texts::no_end(),
        })?;
        Ok(Self {
            head,
            events: unfold(events)?,
            expectations,
            end,
        })
    }

    /// The world of the scenario. The error names a line with a subject that the world does not have.
    pub fn world(&self, topology: &Topology, policy: &Policy) -> Result<(Topology, Policy), BadScenario> {
        let (mut topology, mut policy) = (topology.clone(), policy.clone());
        for (line, region, sizes) in &self.head.sizes {
            let Some(region) = topology.regions.get_mut(region) else {
                let (line, problem) = (*line, texts::unknown("region", region, topology.regions.keys()));
                return Err(BadScenario { line, problem });
            };
            for size in sizes {
                match *size {
                    Size::Sessions(sessions) => region.sessions_max = sessions,
                    Size::Connects(per_second) => region.connects_per_s_max = Some(per_second),
                    Size::Of(component, sessions) => drop(region.capacity.insert(component, sessions)),
                    Size::Stacks(stacks) => {
                        let Some(first) = region.stacks.first().cloned() else {
                            continue;
                        };
                        // Ports are far apart, so that no two regions share one.
                        let port = |number: u32| first.address.port().wrapping_add(number as u16 * 100);
                        let stack = |number| SocketAddr::new(first.address.ip(), port(number)).into();
                        region.stacks = (0..stacks).map(stack).collect();
                    }
                }
            }
        }
        for (edge, region) in self.head.traffic.keys() {
            let is_edge = topology.edges.keys().any(|it| it.as_str() == edge.as_str());
            let problem = if !is_edge {
                texts::unknown("edge", edge, topology.edges.keys())
            } else if !topology.regions.contains_key(region) {
                texts::unknown("region", region, topology.regions.keys())
            } else {
                continue;
            };
            return Err(BadScenario { line: 1, problem });
        }
        let ports = 20_000_u16..;
        let mut addresses = ports.map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        for version in &self.head.versions {
            for (region, address) in topology.regions.values_mut().zip(&mut addresses) {
                let stack = Stack::of_version(address, version).map_err(|error| BadScenario {
                    line: 1,
                    problem: error.to_string(),
                })?;
                region.stacks.push(stack);
            }
        }
        if let Some(holds) = &self.head.rollout_holds {
            let steps = policy.rollout.steps.iter().zip(holds);
            let held = steps.map(|(step, hold)| RolloutStep {
                percent: step.percent,
                hold: *hold,
            });
            let rest = policy.rollout.steps.iter().skip(holds.len()).copied();
            policy.rollout.steps = held.chain(rest).collect();
        }
        for line in &self.events {
            line.event.check(&topology, &policy).map_err(|problem| BadScenario {
                line: line.line,
                problem,
            })?;
        }
        for expectation in &self.expectations {
            expectation.check(&topology).map_err(|problem| BadScenario {
                line: expectation.line,
                problem,
            })?;
        }
        Ok((topology, policy))
    }
}

/// Unfolds flapping into deaths and recoveries.
fn unfold(events: Vec<Line>) -> Result<Vec<Line>, BadScenario> {
    let mut unfolded = Vec::new();
    for line in events {
        let Event::Flaps(region, every, until) = &line.event else {
            unfolded.push(line);
            continue;
        };
        let times = until.as_millis() / every.as_millis().max(1);
        if every.is_zero() || times == 0 || times > u128::from(FLAPS_MAX) {
            let problem = texts::flaps_out_of_range(FLAPS_MAX);
            return Err(BadScenario {
                line: line.line,
                problem,
            });
        }
        for time in 0..times as u32 {
            let dies = time % 2 == 0;
            let event = if dies { Event::Dies } else { Event::Recovers };
            let verb = if dies { "dies" } else { "recovers" };
            unfolded.push(Line {
                at: line.at + *every * time,
                text: format!("{region} {verb} (flaps)"),
                event: event(region.clone()),
                ..line
            });
        }
        unfolded.push(Line {
            at: line.at + *until,
            text: format!("{region} recovers (stops flapping)"),
            event: Event::Recovers(region.clone()),
            ..line
        });
    }
    unfolded.sort_by_key(|line| line.at);
    Ok(unfolded)
}

fn parse_sizes(words: &[&str]) -> Result<Vec<Size>, String> {
    if words.is_empty() || !words.len().is_multiple_of(2) {
        return Err(texts::no_sizes());
    }
    let size = |pair: &[&str]| {
        let (what, text) = (pair[0], pair[1]);
        Ok(match (what, Component::parse(what)) {
            ("sessions", _) => Size::Sessions(number(text)?),
            ("stacks", _) => Size::Stacks(number_up_to(text, STACKS_MAX)?),
            ("connects", _) => Size::Connects(number(text.trim_end_matches("/s"))?),
            (_, Some(component)) => Size::Of(component, number(text)?),
            _ => return Err(texts::not_a_size(what)),
        })
    };
    words.chunks(2).map(size).collect()
}

#[cfg(test)]
mod tests;
