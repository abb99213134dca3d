//! Requests of operators, as a scenario writes them.

use std::time::Duration;

use topology::{EdgeId, IdError, IntentKind, RegionId, Rule};

use super::words::{span, text};
use crate::texts;

/// The request of an operator.
#[derive(Debug, Clone, PartialEq)]
pub struct Ask {
    /// Name of the operator.
    pub who: String,
    /// The order itself.
    pub what: Wanted,
    /// The life of a standing order.
    pub life: Option<Duration>,
    /// The reason that the operator gives; "as the scenario says" if the line has none.
    pub why: String,
}

/// The order; its action may be called "it".
#[derive(Debug, Clone, PartialEq)]
pub enum Wanted {
    /// An order in full.
    Kind(IntentKind),
    /// Approve the newest waiting action.
    ApproveIt,
    /// Abort the newest action under way.
    AbortIt,
}

pub(super) fn parse_ask(words: &[&str]) -> Result<Ask, String> {
    let region = |name: &str| RegionId::new(name).map_err(|error: IdError| error.to_string());
    let (words, why) = match words.iter().position(|word| *word == "because") {
        Some(at) => {
            let why = words[at + 1..].join(" ");
            (&words[..at], why.strip_prefix("of ").unwrap_or(&why).to_owned())
        }
        None => (words, "as the scenario says".to_owned()),
    };
    let unknown = || texts::not_an_event(&words.join(" "));
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
                return Err(texts::switchover_loses_nothing());
            };
            IntentKind::Switchover {
                region: region(name)?,
                promote,
            }
        }
        ["restores", name, how @ ..] => {
            let (false, accept_loss) = parse_how(how).ok_or_else(unknown)?? else {
                return Err(texts::return_promotes_nobody());
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
            let rule = Rule::named(rule).ok_or_else(|| texts::unknown("rule", rule, Rule::ALL))?;
            IntentKind::Override { rule }
        }
        ["acks", name] => IntentKind::Ack { region: region(name)? },
        ["approves", id] if *id != "it" => IntentKind::Approve {
            action: text(id),
            shown: None,
        },
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

/// `and promotes`, `accepting a loss of 1h`, both or neither; none for any other words.
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
