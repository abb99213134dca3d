//! The scenario language: one line a fact, `#` begins a comment.
//!
//! First how this world differs from the topology it is played in:
//!
//! ```text
//! region us-west sessions 100 connects 10/s asr 50      what it has room for
//! region us-east stacks 2                               how many stacks it has, all alike
//! traffic us-east 98 turns at edge-iad                  real traffic in each tick, beside the probes
//! rollout holds 3m 5m 7m                                instead of days
//! rollout versions v2 v3                                each region has a stack of each
//! ```
//!
//! Then what happens, in the order of time:
//!
//! ```text
//! at 35s  us-east dies                      nobody can connect to it
//! at 35s  us-east is unreachable from edge-iad
//! at 35s  stack 2 of us-east dies           of several; `recovers` ends it
//! at 35s  us-east asr fails 20 %            or gateway, nlu, tts, skills, session-store; exactly where there is traffic, else by
//!                                           the luck of two probes of the gateway and one of the others in each tick
//! at 35s  us-east asr takes 700 ms
//! at 35s  us-east recovers                  from everything above
//! at 35s  us-east flaps every 30s for 10m   dies for 30 s, is well for 30 s, and so on; well at the end
//! at 35s  edge-iad is silent                it reports nothing; `speaks` ends it
//! at 35s  edge-iad lies about us-east       it reports the opposite of what it sees; `is honest` ends it
//! at 35s  us-east profiles lag 2h           its copies are that far behind; `us-east data lags 5s` for every class
//! at 35s  us-east profiles are not measured any more; `us-east data is not measured` for every class
//! at 35s  v2 fails 2 % of turns             what devices see of a version: `takes +60 %`, `has 12 underruns per session`,
//!                                           `has 1 gpu memory errors`, `has 50 sessions`
//! at 35s  clock jumps 1h                    the clock of the control plane; `clock jumps back 1h`; of an edge:
//!                                           `clock of edge-iad jumps 2s`
//! at 35s  leader changes                    another control plane leads; what was seen is forgotten
//! at 35s  store goes back to generation 2   it is restored from a copy of that time
//! at 35s  edge-iad refuses the next plan    `refuses plans` until it `accepts plans`
//! at 35s  edge-iad is cut off               no plan reaches it; `is connected` ends it
//! at 35s  enactor holds the plan            a slow one takes a copy of the plan in force; others are faster
//! at 35s  enactor applies what it held
//! ```
//!
//! Operators have names, and may say `because` of what:
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
//! And last what must, and must not, come of it ([`crate::expect`]), and when it ends:
//!
//! ```text
//! expect us-east evacuated by 60s
//! end 5m
//! ```

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use topology::{
    Component, EdgeId, IdError, IntentKind, NodeId, Policy, RegionId, Rule, Stack, Topology, document::Span,
    policy::RolloutStep,
};

use crate::expect::Expectation;

/// Longest scenario: every tick of it is played.
const END_MAX: Duration = Duration::from_secs(30 * 86_400);

/// Most stacks of a region: each is probed by each vantage in each tick.
const STACKS_MAX: u32 = 50;
/// Most turns of real traffic of an edge and a region in a tick.
const TURNS_MAX: u32 = 10_000;
/// Most times one line of flapping may die.
const FLAPS_MAX: u32 = 1000;

/// A script of faults and requests.
#[derive(Debug, Clone, PartialEq)]
pub struct Scenario {
    /// How the world differs from the topology and the policy it is played with.
    pub head: Head,
    /// What happens, in the order of time.
    pub events: Vec<Line>,
    /// What must come of it.
    pub expectations: Vec<Expectation>,
    /// When it ends.
    pub end: Duration,
}

/// How the world of a scenario differs from the documents it is played with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Head {
    /// What regions have room for, and the line that says so.
    pub sizes: Vec<(usize, RegionId, Vec<Size>)>,
    /// How long the steps of a rollout are held.
    pub rollout_holds: Option<Vec<Duration>>,
    /// Turns of real traffic in each tick, by edge and region.
    pub traffic: BTreeMap<(NodeId, RegionId), u32>,
    /// Versions of which each region has a stack, beside those in service.
    pub versions: Vec<String>,
}

/// What a region has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// Sessions at once.
    Sessions(u32),
    /// New connections per second.
    Connects(u32),
    /// Sessions that one component can serve.
    Of(Component, u32),
    /// Stacks.
    Stacks(u32),
}

/// One line of the script.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// Where it stands, from 1.
    pub line: usize,
    /// When, from the start.
    pub at: Duration,
    /// What, in the words of the script.
    pub text: String,
    /// What.
    pub event: Event,
}

/// One thing that happens.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Nobody can connect to the region.
    Dies(RegionId),
    /// Nobody can connect to one of its stacks, by number from 1.
    StackDies(RegionId, usize),
    /// That stack is well again.
    StackRecovers(RegionId, usize),
    /// One vantage cannot connect to the region.
    Unreachable(RegionId, NodeId),
    /// This percentage of what a component is asked fails.
    Fails(RegionId, Component, u32),
    /// Recognition takes this long.
    AsrTakes(RegionId, Duration),
    /// All is well again with the region.
    Recovers(RegionId),
    /// It dies and recovers in turn: how long each time, and for how long in all.
    Flaps(RegionId, Duration, Duration),
    /// A vantage reports nothing.
    Silent(NodeId),
    /// A silent vantage reports again.
    Speaks(NodeId),
    /// A vantage reports the opposite of what it sees of a region.
    Lies(NodeId, RegionId),
    /// A vantage reports what it sees.
    Honest(NodeId),
    /// Copies of a class of the region's data, or of all, are this far behind.
    Lags(RegionId, Option<String>, Duration),
    /// Nobody measures that any more.
    Unmeasured(RegionId, Option<String>),
    /// What devices see of a version of the stack.
    Version(String, Seen),
    /// The clock of the control plane or of an edge jumps, in milliseconds.
    ClockJumps(NodeId, i64),
    /// Another control plane leads.
    LeaderChanges,
    /// The store is restored from a copy that it made at this generation.
    StoreGoesBack(u64),
    /// A node refuses the next plan.
    RefusesNext(NodeId),
    /// A node refuses every plan.
    RefusesAll(NodeId),
    /// A node accepts plans again.
    Accepts(NodeId),
    /// No plan reaches a node.
    CutOff(NodeId),
    /// Plans reach a node again.
    Connected(NodeId),
    /// A slow enactor takes a copy of the plan in force.
    EnactorHolds,
    /// The slow enactor brings what it took to every node.
    EnactorApplies,
    /// An operator asks for something.
    Asks(Ask),
}

/// One thing that devices see of a version of the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// So many sessions were on it.
    Sessions(u32),
    /// This percentage of its turns fails.
    Fails(u32),
    /// Its turns take this many percent longer than those of the old version.
    Slower(u32),
    /// Audio underruns in each session.
    Underruns(u32),
    /// GPU memory errors of its stacks.
    GpuMemoryErrors(u32),
}

/// What an operator asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct Ask {
    /// Who.
    pub who: String,
    /// What.
    pub what: Wanted,
    /// For how long, where it counts for a time.
    pub life: Option<Duration>,
    /// Why.
    pub why: String,
}

/// What an operator wants; actions may be called "it".
#[derive(Debug, Clone, PartialEq)]
pub enum Wanted {
    /// Something named in full.
    Kind(IntentKind),
    /// That the newest waiting action goes on.
    ApproveIt,
    /// That the newest action under way ends.
    AbortIt,
}

/// What is wrong with a scenario, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct BadScenario {
    /// From 1.
    pub line: usize,
    /// What is wrong.
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
                ["traffic", name, turns, "turns", "at", edge] => {
                    let region = name.parse().map_err(|error: IdError| bad(error.to_string()))?;
                    let edge = NodeId::new(edge).map_err(|error| bad(error.to_string()))?;
                    let turns = number_up_to(turns, TURNS_MAX).map_err(bad)?;
                    head.traffic.insert((edge, region), turns);
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
                        return Err(bad(format!("a scenario ends within {days} days")));
                    }
                }
                ["at", at, event @ ..] => {
                    let at = time(at)?;
                    if events.last().is_some_and(|before| at < before.at) {
                        return Err(bad("it happens before the line above".into()));
                    }
                    let (text, event) = (event.join(" "), parse_event(event).map_err(bad)?);
                    let line = number;
                    events.push(Line { line, at, text, event });
                }
                _ => {
                    return Err(bad(
                        "a line begins with \"at TIME\", \"end TIME\", \"expect\", \"region NAME\", \"traffic REGION\", \
                         \"rollout holds\" or \"rollout versions\""
                            .into(),
                    ));
                }
            }
        }
        let end = end.ok_or(BadScenario {
            line: text.lines().count(),
            problem: "\"end TIME\" is missing".into(),
        })?;
        Ok(Self {
            head,
            events: unfold(events)?,
            expectations,
            end,
        })
    }

    /// The world it is played in. The error names a line that speaks of something that world does not have.
    pub fn world(&self, topology: &Topology, policy: &Policy) -> Result<(Topology, Policy), BadScenario> {
        let (mut topology, mut policy) = (topology.clone(), policy.clone());
        for (line, region, sizes) in &self.head.sizes {
            let Some(region) = topology.regions.get_mut(region) else {
                let (line, problem) = (*line, format!("there is no region {region}"));
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
                        // Ports far apart, so that no two regions share one.
                        let port = |number: u32| first.address.port().wrapping_add(number as u16 * 100);
                        let stack = |number| SocketAddr::new(first.address.ip(), port(number)).into();
                        region.stacks = (0..stacks).map(stack).collect();
                    }
                }
            }
        }
        for (edge, region) in self.head.traffic.keys() {
            let is_edge = topology.edges.keys().any(|it| it.as_str() == edge.as_str());
            if !is_edge || !topology.regions.contains_key(region) {
                let problem = format!("there is no edge {edge} or no region {region}");
                return Err(BadScenario { line: 1, problem });
            }
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

/// Flapping, told as what happens when.
fn unfold(events: Vec<Line>) -> Result<Vec<Line>, BadScenario> {
    let mut unfolded = Vec::new();
    for line in events {
        let Event::Flaps(region, every, until) = &line.event else {
            unfolded.push(line);
            continue;
        };
        let times = until.as_millis() / every.as_millis().max(1);
        if every.is_zero() || times == 0 || times > u128::from(FLAPS_MAX) {
            let problem = format!("it flaps at least once and at most {FLAPS_MAX} times, each longer than nothing");
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
        return Err("write what it has room for: \"sessions 100\", \"connects 10/s\" or \"asr 50\"".to_owned());
    }
    let size = |pair: &[&str]| {
        let (what, text) = (pair[0], pair[1]);
        Ok(match (what, Component::parse(what)) {
            ("sessions", _) => Size::Sessions(number(text)?),
            ("stacks", _) => Size::Stacks(number_up_to(text, STACKS_MAX)?),
            ("connects", _) => Size::Connects(number(text.trim_end_matches("/s"))?),
            (_, Some(component)) => Size::Of(component, number(text)?),
            _ => return Err(format!("\"{what}\" is nothing a region has room for")),
        })
    };
    words.chunks(2).map(size).collect()
}

/// A whole number from 1 to so many.
fn number_up_to(text: &str, max: u32) -> Result<u32, String> {
    let number = number(text)?;
    let fits = (1..=max).contains(&number);
    fits.then_some(number)
        .ok_or_else(|| format!("{text} is not 1 to {max}"))
}

fn number(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("\"{text}\" is not a whole number"))
}

fn parse_event(words: &[&str]) -> Result<Event, String> {
    let region = |name: &str| RegionId::new(name).map_err(|error: IdError| error.to_string());
    let vantage = |name: &str| NodeId::new(name).map_err(|error: IdError| error.to_string());
    Ok(match words {
        [name, "dies"] => Event::Dies(region(name)?),
        ["stack", stack, "of", name, "dies"] => Event::StackDies(region(name)?, number(stack)? as usize),
        ["stack", stack, "of", name, "recovers"] => Event::StackRecovers(region(name)?, number(stack)? as usize),
        [name, "is", "unreachable", "from", node] => Event::Unreachable(region(name)?, vantage(node)?),
        [name, component, "fails", percent, "%"] => {
            let component = Component::parse(component).ok_or_else(|| format!("\"{component}\" is no component"))?;
            Event::Fails(region(name)?, component, number(percent)?)
        }
        [name, "asr", "takes", ms, "ms"] => {
            Event::AsrTakes(region(name)?, Duration::from_millis(u64::from(number(ms)?)))
        }
        [name, "recovers"] => Event::Recovers(region(name)?),
        [name, "flaps", "every", each, "for", all] => Event::Flaps(region(name)?, span(each)?, span(all)?),
        [node, "is", "silent"] => Event::Silent(vantage(node)?),
        [node, "speaks"] => Event::Speaks(vantage(node)?),
        [node, "lies", "about", name] => Event::Lies(vantage(node)?, region(name)?),
        [node, "is", "honest"] => Event::Honest(vantage(node)?),
        [name, "data", "lags", time] => Event::Lags(region(name)?, None, span(time)?),
        [name, "data", "is", "not", "measured"] => Event::Unmeasured(region(name)?, None),
        [name, class, "lag", time] => Event::Lags(region(name)?, Some((*class).to_owned()), span(time)?),
        [name, class, "are", "not", "measured"] => Event::Unmeasured(region(name)?, Some((*class).to_owned())),
        [version, "fails", percent, "%", "of", "turns"] => Event::Version(text(version), Seen::Fails(number(percent)?)),
        [version, "takes", more, "%"] if more.starts_with('+') => {
            Event::Version(text(version), Seen::Slower(number(&more[1..])?))
        }
        [version, "has", count, "sessions"] => Event::Version(text(version), Seen::Sessions(number(count)?)),
        [version, "has", count, "underruns", "per", "session"] => {
            Event::Version(text(version), Seen::Underruns(number(count)?))
        }
        [version, "has", count, "gpu", "memory", "errors"] => {
            Event::Version(text(version), Seen::GpuMemoryErrors(number(count)?))
        }
        ["clock", "jumps", "back", time] => Event::ClockJumps(control_plane(), -millis(time)?),
        ["clock", "jumps", time] => Event::ClockJumps(control_plane(), millis(time)?),
        ["clock", "of", node, "jumps", "back", time] => Event::ClockJumps(vantage(node)?, -millis(time)?),
        ["clock", "of", node, "jumps", time] => Event::ClockJumps(vantage(node)?, millis(time)?),
        ["leader", "changes"] => Event::LeaderChanges,
        ["store", "goes", "back", "to", "generation", generation] => {
            Event::StoreGoesBack(u64::from(number(generation)?))
        }
        [node, "refuses", "the", "next", "plan"] => Event::RefusesNext(vantage(node)?),
        [node, "refuses", "plans"] => Event::RefusesAll(vantage(node)?),
        [node, "accepts", "plans"] => Event::Accepts(vantage(node)?),
        [node, "is", "cut", "off"] => Event::CutOff(vantage(node)?),
        [node, "is", "connected"] => Event::Connected(vantage(node)?),
        ["enactor", "holds", "the", "plan"] => Event::EnactorHolds,
        ["enactor", "applies", "what", "it", "held"] => Event::EnactorApplies,
        other => Event::Asks(parse_ask(other)?),
    })
}

fn text(word: &str) -> String {
    word.to_owned()
}

fn span(text: &str) -> Result<Duration, String> {
    text.parse::<Span>().map(|span| span.0)
}

fn millis(text: &str) -> Result<i64, String> {
    let ms = span(text)?.as_millis();
    i64::try_from(ms).map_err(|_| format!("\"{text}\" is too long"))
}

fn parse_ask(words: &[&str]) -> Result<Ask, String> {
    let region = |name: &str| RegionId::new(name).map_err(|error: IdError| error.to_string());
    let (words, why) = match words.iter().position(|word| *word == "because") {
        Some(at) => {
            let why = words[at + 1..].join(" ");
            (&words[..at], why.strip_prefix("of ").unwrap_or(&why).to_owned())
        }
        None => (words, "as the scenario says".to_owned()),
    };
    let unknown = || format!("\"{}\" is nothing that can happen", words.join(" "));
    let [who, asked @ ..] = words else {
        return Err(unknown());
    };
    let mut life = None;
    let kind = match asked {
        ["fails", "over", name, how @ ..] => {
            let (how, force) = match how {
                [how @ .., "by", "force"] => (how, true),
                how => (how, false),
            };
            let (promote, accept_loss) = parse_how(how).ok_or_else(unknown)??;
            IntentKind::Failover {
                region: region(name)?,
                promote,
                accept_loss,
                force,
            }
        }
        ["switches", "over", name, how @ ..] => {
            let (promote, None) = parse_how(how).ok_or_else(unknown)?? else {
                return Err("a switchover loses no data".to_owned());
            };
            IntentKind::Switchover {
                region: region(name)?,
                promote,
            }
        }
        ["restores", name, how @ ..] => {
            let (false, accept_loss) = parse_how(how).ok_or_else(unknown)?? else {
                return Err("a region that returns writes its own data again by itself".to_owned());
            };
            IntentKind::Restore {
                region: region(name)?,
                accept_loss,
            }
        }
        ["drains", name, "for", time] => {
            life = Some(span(time)?);
            match name.parse() {
                Ok(stack) => IntentKind::DrainStack { stack },
                Err(_) => IntentKind::DrainEdge {
                    edge: EdgeId::new(name).map_err(|error| error.to_string())?,
                },
            }
        }
        ["starts", "rollout", version] => IntentKind::Rollout { version: text(version) },
        ["freezes", "for", time] => {
            life = Some(span(time)?);
            IntentKind::Freeze
        }
        ["unfreezes"] => IntentKind::Unfreeze,
        ["overrides", rule, "for", time] => {
            life = Some(span(time)?);
            let rule = Rule::named(rule).ok_or_else(|| format!("there is no rule {rule} to override"))?;
            IntentKind::Override { rule }
        }
        ["acks", name] => IntentKind::Ack { region: region(name)? },
        ["approves", id] if *id != "it" => IntentKind::Approve { action: text(id) },
        ["aborts", id] if *id != "it" => IntentKind::Abort { action: text(id) },
        ["approves" | "aborts", _] => {
            let what = if asked[0] == "approves" {
                Wanted::ApproveIt
            } else {
                Wanted::AbortIt
            };
            let who = text(who);
            return Ok(Ask { who, what, life, why });
        }
        _ => return Err(unknown()),
    };
    let (who, what) = (text(who), Wanted::Kind(kind));
    Ok(Ask { who, what, life, why })
}

/// `and promotes`, `accepting a loss of 1h`, both or neither; none when it is something else.
fn parse_how(words: &[&str]) -> Option<Result<(bool, Option<Duration>), String>> {
    let (promote, rest) = match words {
        ["and", "promotes", rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    match rest {
        [] => Some(Ok((promote, None))),
        ["accepting", "a", "loss", "of", time] => Some(span(time).map(|time| (promote, Some(time)))),
        _ => None,
    }
}

impl Event {
    /// Says what this event speaks of and the world does not have.
    fn check(&self, topology: &Topology, policy: &Policy) -> Result<(), String> {
        let region = |id: &RegionId| {
            let known = topology.regions.contains_key(id);
            known.then_some(()).ok_or_else(|| format!("there is no region {id}"))
        };
        let node = |id: &NodeId| {
            let known = nodes(topology).any(|node| node == *id);
            known.then_some(()).ok_or_else(|| format!("there is no node {id}"))
        };
        let vantage = |id: &NodeId| {
            let known = vantages(topology).any(|node| node == *id);
            known.then_some(()).ok_or_else(|| format!("there is no vantage {id}"))
        };
        match self {
            Self::Dies(id) | Self::Fails(id, ..) | Self::AsrTakes(id, _) | Self::Recovers(id) | Self::Flaps(id, ..) => {
                region(id)
            }
            Self::StackDies(id, stack) | Self::StackRecovers(id, stack) => {
                region(id)?;
                let stacks = topology.regions.get(id).map_or(0, |it| it.stacks.len());
                let known = (1..=stacks).contains(stack);
                known
                    .then_some(())
                    .ok_or_else(|| format!("{id} has {stacks} stacks, and no stack {stack}"))
            }
            Self::Unreachable(id, by) | Self::Lies(by, id) => region(id).and(vantage(by)),
            Self::Silent(by) | Self::Speaks(by) | Self::Honest(by) | Self::ClockJumps(by, _) => vantage(by),
            Self::Lags(id, class, _) | Self::Unmeasured(id, class) => {
                let known = |class: &String| policy.data.iter().any(|it| it.class == *class);
                match class {
                    Some(class) if !known(class) => Err(format!("there is no data class {class}")),
                    _ => region(id),
                }
            }
            Self::RefusesNext(id)
            | Self::RefusesAll(id)
            | Self::Accepts(id)
            | Self::CutOff(id)
            | Self::Connected(id) => node(id),
            // Operators may ask for what is not there; they are told so.
            Self::Asks(_)
            | Self::Version(..)
            | Self::LeaderChanges
            | Self::StoreGoesBack(_)
            | Self::EnactorHolds
            | Self::EnactorApplies => Ok(()),
        }
    }
}

/// Who follows plans.
pub(crate) fn nodes(topology: &Topology) -> impl Iterator<Item = NodeId> {
    topology
        .edges
        .keys()
        .map(NodeId::from)
        .chain(topology.name_servers.keys().cloned())
}

/// Who looks at the regions.
pub(crate) fn vantages(topology: &Topology) -> impl Iterator<Item = NodeId> {
    topology.edges.keys().map(NodeId::from).chain([control_plane()])
}

pub(crate) fn control_plane() -> NodeId {
    NodeId::new("control-plane").expect("the name is an id")
}

/// One data class, or all of them.
pub(crate) fn classes(policy: &Policy, class: Option<&str>) -> Vec<String> {
    let known = policy.data.iter().map(|it| it.class.as_str());
    known
        .filter(|name| class.is_none_or(|class| class == *name))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use topology::fixtures::three_primaries;

    #[test]
    fn mistakes_name_their_line() {
        for (text, complaint) in [
            ("at 5s us-east dies", "line 1: \"end TIME\" is missing"),
            (
                "at 5s us-east sleeps\nend 1m",
                "line 1: \"us-east sleeps\" is nothing that can happen",
            ),
            (
                "at 5s us-east dies\nat 4s us-east recovers\nend 1m",
                "line 2: it happens before the line above",
            ),
            ("at soon us-east dies\nend 1m", "line 1: \"soon\""),
            (
                "at 5s us-east ears fails 10 %\nend 1m",
                "line 1: \"ears\" is no component",
            ),
            ("when 5s\nend 1m", "line 1: a line begins with"),
            (
                "region us-west tea 5\nend 1m",
                "line 1: \"tea\" is nothing a region has room for",
            ),
            (
                "at 5s us-east flaps every 1s for 1d\nend 1m",
                "line 1: it flaps at least once",
            ),
            (
                "at 5s alice switches over us-east accepting a loss of 1h\nend 1m",
                "line 1: a switchover loses no data",
            ),
            (
                "at 5s alice overrides gravity for 1h\nend 1m",
                "line 1: there is no rule gravity",
            ),
            ("expect rain\nend 1m", "line 1: \"rain\" is nothing to expect"),
        ] {
            let error = Scenario::parse(text).unwrap_err().to_string();
            assert!(error.starts_with(complaint), "{error}");
        }
    }

    #[test]
    fn what_the_world_does_not_have_is_no_scenario_of_it() {
        for (text, complaint) in [
            ("at 5s us-eats dies", "line 1: there is no region us-eats"),
            ("at 5s edge-xyz is silent", "line 1: there is no vantage edge-xyz"),
            (
                "at 5s control-plane refuses plans",
                "line 1: there is no node control-plane",
            ),
            ("at 5s us-east jokes lag 5s", "line 1: there is no data class jokes"),
            ("region us-eats sessions 5", "line 1: there is no region us-eats"),
            ("expect us-eats evacuated", "line 1: there is no region us-eats"),
        ] {
            let scenario = Scenario::parse(&format!("{text}\nend 1m")).unwrap();
            let error = scenario
                .world(&three_primaries().topology, &Policy::default())
                .unwrap_err();
            assert_eq!(error.to_string(), complaint);
        }
    }

    #[test]
    fn the_head_sizes_the_world() {
        let text = "region us-west sessions 100 connects 10/s asr 50\nrollout holds 1m 2m\nend 1m";
        let scenario = Scenario::parse(text).unwrap();
        let (topology, policy) = scenario.world(&three_primaries().topology, &Policy::default()).unwrap();
        let west = &topology.regions[&RegionId::new("us-west").unwrap()];
        let sizes = (
            west.sessions_max,
            west.connects_per_s_max,
            west.capacity[&Component::Asr],
        );
        assert_eq!(sizes, (100, Some(10), 50));
        let holds: Vec<u64> = policy.rollout.steps.iter().map(|step| step.hold.as_secs()).collect();
        assert_eq!(holds, [60, 120, 7 * 24 * 3600, 0]);
    }

    #[test]
    fn flapping_is_told_as_deaths_and_recoveries_and_ends_well() {
        let text = "at 10s us-east flaps every 30s for 2m\nat 50s us-west dies\nend 5m";
        let told: Vec<(u64, String)> = Scenario::parse(text)
            .unwrap()
            .events
            .into_iter()
            .map(|line| (line.at.as_secs(), line.text))
            .collect();
        let expected = [
            (10, "us-east dies (flaps)"),
            (40, "us-east recovers (flaps)"),
            (50, "us-west dies"),
            (70, "us-east dies (flaps)"),
            (100, "us-east recovers (flaps)"),
            (130, "us-east recovers (stops flapping)"),
        ];
        assert_eq!(told, expected.map(|(at, text)| (at, text.to_owned())));
    }

    #[test]
    fn operators_speak_in_whole_sentences() {
        let asked = |line: &str| match Scenario::parse(&format!("at 5s {line}\nend 1m"))
            .unwrap()
            .events
            .remove(0)
            .event
        {
            Event::Asks(ask) => ask,
            other => panic!("{other:?}"),
        };
        let ask = asked("alice fails over us-east and promotes accepting a loss of 2h because the floor is wet");
        assert_eq!((ask.who.as_str(), ask.why.as_str()), ("alice", "the floor is wet"));
        let hours = Duration::from_secs(7200);
        assert!(
            matches!(ask.what, Wanted::Kind(IntentKind::Failover { promote: true, accept_loss: Some(loss), .. }) if loss == hours)
        );
        assert_eq!(asked("bob approves it").what, Wanted::ApproveIt);
        let abort = IntentKind::Abort { action: "a1".into() };
        assert_eq!(asked("bob aborts a1").what, Wanted::Kind(abort));
        assert_eq!(asked("bob freezes for 2m").life, Some(Duration::from_secs(120)));
    }
}
