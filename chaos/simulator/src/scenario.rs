//! The scenario language: one event a line, `#` begins a comment.
//!
//! ```text
//! at 35s  us-east dies                      nobody can connect to it
//! at 35s  us-east is unreachable from edge-iad
//! at 35s  us-east asr fails 20 %            or gateway, nlu, tts, skills, session-store; in steps of 5 %
//! at 35s  us-east asr takes 700 ms
//! at 35s  us-east recovers                  from everything above
//! at 35s  edge-iad is silent                it reports nothing; `speaks` ends it
//! at 35s  operator fails over us-east
//! at 35s  operator restores us-east
//! at 35s  operator freezes for 10m
//! at 35s  operator unfreezes
//! end 5m
//! ```

use std::time::Duration;

use topology::{Component, IdError, NodeId, RegionId, document::Span};

/// A script of faults and requests.
#[derive(Debug, Clone, PartialEq)]
pub struct Scenario {
    /// What happens, in the order of time.
    pub events: Vec<Line>,
    /// When it ends.
    pub end: Duration,
}

/// One line of the script.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
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
    /// One vantage cannot connect to the region.
    Unreachable(RegionId, NodeId),
    /// This percentage of what a component is asked fails.
    Fails(RegionId, Component, u32),
    /// Recognition takes this long.
    AsrTakes(RegionId, Duration),
    /// All is well again with the region.
    Recovers(RegionId),
    /// A vantage reports nothing.
    Silent(NodeId),
    /// A silent vantage reports again.
    Speaks(NodeId),
    /// An operator moves a region's sessions away.
    FailOver(RegionId),
    /// An operator brings a region back.
    Restore(RegionId),
    /// An operator forbids automatic changes.
    Freeze(Duration),
    /// An operator allows them again.
    Unfreeze,
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
        let mut events: Vec<Line> = Vec::new();
        let mut end = None;
        for (index, line) in text.lines().enumerate() {
            let bad = |problem: String| BadScenario {
                line: index + 1,
                problem,
            };
            let line = line.split('#').next().unwrap_or_default();
            let words: Vec<&str> = line.split_whitespace().collect();
            let time = |text: &str| text.parse::<Span>().map(|span| span.0).map_err(bad);
            match words.as_slice() {
                [] => {}
                ["end", at] => end = Some(time(at)?),
                ["at", at, event @ ..] => {
                    let at = time(at)?;
                    if events.last().is_some_and(|before| at < before.at) {
                        return Err(bad("it happens before the line above".into()));
                    }
                    let (text, event) = (event.join(" "), parse_event(event).map_err(bad)?);
                    events.push(Line { at, text, event });
                }
                _ => return Err(bad("a line begins with \"at TIME\" or \"end TIME\"".into())),
            }
        }
        let end = end.ok_or(BadScenario {
            line: text.lines().count(),
            problem: "\"end TIME\" is missing".into(),
        })?;
        Ok(Self { events, end })
    }
}

fn parse_event(words: &[&str]) -> Result<Event, String> {
    let region = |name: &str| RegionId::new(name).map_err(|error: IdError| error.to_string());
    let vantage = |name: &str| NodeId::new(name).map_err(|error: IdError| error.to_string());
    let number = |text: &str| text.parse().map_err(|_| format!("\"{text}\" is not a whole number"));
    Ok(match words {
        [name, "dies"] => Event::Dies(region(name)?),
        [name, "is", "unreachable", "from", node] => Event::Unreachable(region(name)?, vantage(node)?),
        [name, component, "fails", percent, "%"] => {
            let component = Component::parse(component).ok_or_else(|| format!("\"{component}\" is no component"))?;
            Event::Fails(region(name)?, component, number(percent)?)
        }
        [name, "asr", "takes", ms, "ms"] => {
            Event::AsrTakes(region(name)?, Duration::from_millis(u64::from(number(ms)?)))
        }
        [name, "recovers"] => Event::Recovers(region(name)?),
        [node, "is", "silent"] => Event::Silent(vantage(node)?),
        [node, "speaks"] => Event::Speaks(vantage(node)?),
        ["operator", "fails", "over", name] => Event::FailOver(region(name)?),
        ["operator", "restores", name] => Event::Restore(region(name)?),
        ["operator", "freezes", "for", time] => Event::Freeze(time.parse::<Span>()?.0),
        ["operator", "unfreezes"] => Event::Unfreeze,
        other => return Err(format!("\"{}\" is nothing that can happen", other.join(" "))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
        ] {
            let error = Scenario::parse(text).unwrap_err().to_string();
            assert!(error.starts_with(complaint), "{error}");
        }
    }
}
