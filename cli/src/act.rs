//! Requests: force, stop, undo, agree, and wait for what comes of it.

use std::{collections::BTreeSet, path::Path, process::ExitCode, time::Duration};

use api::{
    Operator, OperatorError, operator,
    v1::{self, act_request::Kind},
};
use clap::{Args, Subcommand};
use reqwest::Url;
use tokio::time::Instant;

use crate::{
    Output,
    edges::{self, Emptied},
    exit::{self, Failure},
    parse_length, present, print,
};

/// How long one question of `wait` lasts.
const ASK_FOR: Duration = Duration::from_secs(2);
/// How long an order waits for the edges to have its plan before it is said to be running still. They have it within
/// milliseconds when all is well.
const SPREADS_WITHIN: Duration = Duration::from_secs(3);
/// Wait before the edges are asked about again.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

#[derive(Debug, Subcommand)]
pub(crate) enum Request {
    /// Emergency: move a region's sessions to its backups now, whatever its health. It needs no telemetry: where nobody sees
    /// a backup, what was last known of it counts, and the answer says what speaks against the move.
    Failover {
        /// The region.
        region: String,
        /// Also make a backup the writer of the region's replicated data.
        #[arg(long)]
        promote: bool,
        /// Lose up to this much of the newest data by promoting, such as 30m, or `any`; needs a second person.
        #[arg(long, value_name = "TIME|any", value_parser = parse_loss, requires = "promote")]
        accept_loss: Option<Duration>,
        /// Pass over the rules no-fit-backup, no-headroom and regions-serving-min: you know better than what is believed of
        /// the backups. Needs a second person where one of them speaks against it. Data are never forced: name the loss.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        because: Because,
    },
    /// Planned: move a healthy region's sessions away in steps, and its data with --promote.
    Switchover {
        /// The region.
        region: String,
        /// Also make a backup the writer of the region's replicated data, which must have caught up.
        #[arg(long)]
        promote: bool,
        #[command(flatten)]
        because: Because,
    },
    /// Give an evacuated region its sessions back, step by step.
    Restore {
        /// The region.
        region: String,
        /// Lose up to this much of the data written elsewhere by returning, or `any`; needs a second person.
        #[arg(long, value_name = "TIME|any", value_parser = parse_loss)]
        accept_loss: Option<Duration>,
        #[command(flatten)]
        because: Because,
    },
    /// Empty a region in steps, at the turn boundaries of its sessions; keep sessions off one stack for a while; or leave an
    /// edge out of DNS for a while.
    Drain {
        #[command(flatten)]
        subject: Drained,
        /// For an edge or a stack: for how long.
        #[arg(long = "for", value_name = "TIME", value_parser = parse_length)]
        length: Option<Duration>,
        /// With --wait: the administrative addresses of the edges to ask for their sessions, separated by commas; those of
        /// the running world when not given.
        #[arg(long, value_name = "URL,...", value_delimiter = ',', requires = "wait")]
        edge_admin: Vec<Url>,
        #[command(flatten)]
        because: Because,
    },
    /// Move a growing share of users to another version of the stack.
    Rollout {
        /// The version.
        version: String,
        #[command(flatten)]
        because: Because,
    },
    /// Stop automatic decisions for a while.
    Freeze {
        /// For how long, such as 30m or 2h: a freeze never outlives the people who forgot it.
        #[arg(long = "for", value_name = "TIME", value_parser = parse_length)]
        length: Duration,
        #[command(flatten)]
        because: Because,
    },
    /// Allow automatic decisions again.
    Unfreeze {
        #[command(flatten)]
        because: Because,
    },
    /// Turn one safety rule off for a while; needs a second person.
    Override {
        /// The rule, by the code it refuses with, such as evacuation-limit.
        rule: String,
        /// For how long.
        #[arg(long = "for", value_name = "TIME", value_parser = parse_length)]
        length: Duration,
        #[command(flatten)]
        because: Because,
    },
    /// Lift the hold-down of a region that moved too often.
    Ack {
        /// The region.
        region: String,
        #[command(flatten)]
        because: Because,
    },
    /// Agree to somebody else's request.
    Approve {
        /// The action, as `meridian status` shows it.
        action: String,
        #[command(flatten)]
        because: Because,
    },
    /// Stop an action: what it changed so far is taken back where that is safe.
    Abort {
        /// The action, as `meridian status` shows it.
        action: String,
        #[command(flatten)]
        because: Because,
    },
}

/// What is drained.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Drained {
    /// The region, edge, or stack (address:port).
    subject: Option<String>,
    /// The region.
    #[arg(long)]
    region: Option<String>,
    /// The edge.
    #[arg(long)]
    edge: Option<String>,
    /// The stack, as address:port.
    #[arg(long, value_name = "ADDRESS")]
    stack: Option<std::net::SocketAddr>,
}

fn parse_loss(text: &str) -> Result<Duration, String> {
    match text {
        "any" => Ok(planning::ANY_LOSS),
        time => parse_length(time),
    }
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Because {
    /// Why; kept in the audit log.
    #[arg(long)]
    reason: String,
    /// Who; your login name when not given.
    #[arg(long, env = "USER", default_value = "operator")]
    author: String,
    /// Names the action: the same name twice is one action. Given when an earlier attempt has an unknown outcome.
    #[arg(long)]
    token: Option<String>,
    /// Only show what would come of it: plan, capacity, safety rules.
    #[arg(long)]
    dry_run: bool,
    /// Wait until it is over, at most this long.
    #[arg(long, value_name = "TIME", value_parser = parse_length, conflicts_with = "dry_run")]
    wait: Option<Duration>,
}

impl Because {
    pub(crate) fn reason(&self) -> &str {
        &self.reason
    }

    pub(crate) fn author(&self) -> &str {
        &self.author
    }

    pub(crate) fn dry_run(&self) -> bool {
        self.dry_run
    }

    pub(crate) fn token(&self) -> String {
        let fresh = || uuid::Uuid::new_v4().simple().to_string()[..12].to_owned();
        self.token.clone().unwrap_or_else(fresh)
    }
}

pub(crate) async fn act(
    operator: &Operator,
    request: Request,
    state_dir: &Path,
    output: Output,
) -> Result<ExitCode, Failure> {
    let edge_admin = match &request {
        Request::Drain { edge_admin, .. } => Some(edge_admin.clone()),
        _ => None,
    };
    let (kind, lasts, because) = read(operator, request).await?;
    let emptied = emptied(&kind);
    let request = operator::request(kind, &because.reason, &because.author, &because.token(), lasts);
    if because.dry_run {
        let tried = operator.plan(Some(request)).await?;
        print(&present::plan(&tried, output));
        return Ok(exit::of_outcome(tried.outcome(), &tried.refused));
    }
    let mut reply = operator.act(request).await?;
    // A decision that no edge has yet moves nobody.
    if let (v1::Outcome::Done, Some(number)) = (reply.outcome(), reply.number) {
        let deadline = Instant::now() + because.wait.unwrap_or(SPREADS_WITHIN);
        if let Err(behind) = spread(operator, Some(number), deadline).await {
            reply.set_outcome(v1::Outcome::Running);
            print(&present::action(&reply, output));
            eprintln!("meridian: {behind}; `meridian status` names those that have not");
            return Ok(exit::of_phase("running"));
        }
    }
    print(&present::action(&reply, output));
    match (&reply.action, because.wait) {
        (Some(action), Some(patience)) if reply.outcome() != v1::Outcome::Refused => match (emptied, edge_admin) {
            (Some(emptied), Some(named)) => {
                let found = match (&emptied, named.is_empty()) {
                    (_, false) => Ok(named),
                    (Emptied::Edge(edge), true) => edges::of_world(state_dir, Some(edge)),
                    (_, true) => edges::of_world(state_dir, None),
                };
                let edges = found.map_err(|_| {
                    let text =
                        "the drain is under way, but which edges to ask for sessions is unknown; add --edge-admin";
                    Failure::failed(anyhow::anyhow!(text))
                })?;
                wait_until_empty(operator, action, &emptied, &edges, patience, output).await
            }
            _ => wait(operator, &action.id, patience, output).await,
        },
        _ => Ok(exit::of_outcome(reply.outcome(), &reply.reasons)),
    }
}

async fn read(operator: &Operator, request: Request) -> Result<(Kind, Option<Duration>, Because), Failure> {
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Ok(match request {
        Request::Failover {
            region,
            promote,
            accept_loss,
            force,
            because,
        } => {
            let accept_loss_ms = accept_loss.map(ms);
            let failover = v1::Failover {
                region,
                promote,
                accept_loss_ms,
                force,
            };
            (Kind::Failover(failover), None, because)
        }
        Request::Switchover {
            region,
            promote,
            because,
        } => (Kind::Switchover(v1::Switchover { region, promote }), None, because),
        Request::Restore {
            region,
            accept_loss,
            because,
        } => {
            let accept_loss_ms = accept_loss.map(ms);
            (Kind::Restore(v1::Restore { region, accept_loss_ms }), None, because)
        }
        Request::Drain {
            subject,
            length,
            because,
            ..
        } => (drain(operator, subject, length).await?, length, because),
        Request::Rollout { version, because } => (Kind::Rollout(v1::Rollout { version }), None, because),
        Request::Freeze { length, because } => (Kind::Freeze(v1::Freeze {}), Some(length), because),
        Request::Unfreeze { because } => (Kind::Unfreeze(v1::Unfreeze {}), None, because),
        Request::Override { rule, length, because } => (Kind::Override(v1::Override { rule }), Some(length), because),
        Request::Ack { region, because } => (Kind::Ack(v1::AckRegion { region }), None, because),
        Request::Approve { action, because } => (Kind::Approve(v1::Approve { action }), None, because),
        Request::Abort { action, because } => (Kind::Abort(v1::Abort { action }), None, because),
    })
}

/// What a drain empties.
fn emptied(kind: &Kind) -> Option<Emptied> {
    match kind {
        Kind::Switchover(it) => Some(Emptied::Region(it.region.clone())),
        Kind::DrainEdge(it) => Some(Emptied::Edge(it.edge.clone())),
        Kind::DrainStack(it) => Some(Emptied::Stack(it.stack.clone())),
        _ => None,
    }
}

/// Shows a drain's progress. A region is drained step by step until its action is over, and its last sessions leave after
/// that; an edge or a stack is drained while its action stands.
async fn wait_until_empty(
    operator: &Operator,
    action: &v1::Action,
    emptied: &Emptied,
    edges: &[Url],
    patience: Duration,
    output: Output,
) -> Result<ExitCode, Failure> {
    let deadline = Instant::now() + patience;
    let mut code = exit::of_phase("done");
    if matches!(emptied, Emptied::Region(_)) {
        let stepped = wait(operator, &action.id, patience, output);
        let mut stepped = std::pin::pin!(stepped);
        tokio::select! {
            result = &mut stepped => code = result?,
            // Every session may have left before the last step says so.
            result = edges::watch(edges, emptied, deadline, output) => {
                result?;
                return stepped.await;
            }
        }
        if code != ExitCode::SUCCESS {
            return Ok(code);
        }
    }
    if edges::watch(edges, emptied, deadline, output).await? {
        Ok(code)
    } else {
        Ok(exit::of_phase(&action.phase))
    }
}

/// What a drain asks for. Whoever names a thing of the wrong kind is told, rather than that the thing is drained.
async fn drain(operator: &Operator, subject: Drained, length: Option<Duration>) -> Result<Kind, Failure> {
    let status = operator.status().await?;
    let is_region = |name: &str| status.regions.iter().any(|it| it.region == name);
    let is_edge = |name: &str| status.edges.iter().any(|it| it.edge == name);
    let unknown = |what: &str, name: &str| {
        let regions = status.regions.iter().map(|it| it.region.as_str());
        let known: Vec<&str> = regions.chain(status.edges.iter().map(|it| it.edge.as_str())).collect();
        let text = format!("there is no {what} \"{name}\"; there are {}", known.join(", "));
        Failure::failed(anyhow::anyhow!(text))
    };
    let needs_end = |what: &str| {
        let text = format!("a drained {what} needs an end; add --for, such as --for 2h");
        Failure::usage(anyhow::anyhow!(text))
    };
    let Drained {
        subject,
        region,
        edge,
        stack,
    } = subject;
    let stack = stack.or_else(|| subject.as_ref()?.parse().ok());
    if let Some(stack) = stack {
        length.ok_or_else(|| needs_end("stack"))?;
        let stack = stack.to_string();
        return Ok(Kind::DrainStack(v1::DrainStack { stack }));
    }
    if let Some(edge) = edge.or_else(|| subject.clone().filter(|name| is_edge(name))) {
        if !is_edge(&edge) {
            return Err(unknown("edge", &edge));
        }
        length.ok_or_else(|| needs_end("edge"))?;
        return Ok(Kind::DrainEdge(v1::DrainEdge { edge }));
    }
    let what = if region.is_some() { "region" } else { "region or edge" };
    let region = region.or(subject).unwrap_or_default();
    if !is_region(&region) {
        return Err(unknown(what, &region));
    }
    if length.is_some() {
        let text = "--for is for edges and stacks; a drained region stays away until `meridian restore`";
        return Err(Failure::usage(anyhow::anyhow!(text)));
    }
    Ok(Kind::Switchover(v1::Switchover { region, promote: false }))
}

/// Of the edges that DNS names, how many apply plan `wanted` or a newer one, and how many there are. A lost edge applies
/// nothing until it is back, and then it gets the newest plan first; nobody needs a drained one. Counting them would keep an
/// order waiting for a dead edge for ever.
fn applied(status: &v1::StatusReply, wanted: (u64, u64)) -> (usize, usize) {
    let named = status
        .edges
        .iter()
        .filter(|it| !matches!(it.state.as_str(), "lost" | "drained"));
    let named: BTreeSet<&str> = named.map(|it| it.edge.as_str()).collect();
    let has = |node: &&v1::NodeStatus| {
        let is_named = node.kind() == v1::NodeKind::Edge && named.contains(node.node.as_str());
        is_named && node.acknowledged.is_some_and(|it| order(it) >= wanted)
    };
    (status.nodes.iter().filter(has).count(), named.len())
}

fn order(number: v1::PlanNumber) -> (u64, u64) {
    (number.generation, number.epoch)
}

/// Waits until more than half of the edges that DNS names apply a plan: that of `number`, or the one in force. The error says
/// how far it is at the deadline.
async fn spread(operator: &Operator, number: Option<v1::PlanNumber>, deadline: Instant) -> Result<(), String> {
    let mut behind =
        "which edges have the plan is unknown, because no control plane that leads can be asked".to_owned();
    loop {
        if let Ok(status) = operator.status().await {
            if let Some(wanted) = number.or(status.number).map(order) {
                let (have, named) = applied(&status, wanted);
                if 2 * have > named {
                    return Ok(());
                }
                let generation = wanted.0;
                behind =
                    format!("plan {generation} is decided, and {have} of {named} edges that DNS names apply it so far");
            }
        }
        if Instant::now() >= deadline {
            return Err(behind);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Waits until an action is over and most edges apply what came of it; says so whenever it gets on.
pub(crate) async fn wait(
    operator: &Operator,
    id: &str,
    patience: Duration,
    output: Output,
) -> Result<ExitCode, Failure> {
    let deadline = Instant::now() + patience;
    let mut told = String::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let action = match operator.wait(id, left.min(ASK_FOR)).await {
            Ok(action) => action,
            // An election, or a control plane that starts again: the action is remembered.
            Err(OperatorError::NoLeader { .. } | OperatorError::Unreachable { .. }) if !left.is_zero() => continue,
            Err(error) => return Err(error.into()),
        };
        let over = !matches!(action.phase.as_str(), "running" | "awaiting-approval");
        if !over && left.is_zero() && output == Output::Table {
            eprintln!(
                "meridian: it is not over after {} s; `meridian wait {id}` waits again",
                patience.as_secs()
            );
        }
        if over
            && action.phase == "done"
            && let Err(behind) = spread(operator, None, deadline).await
        {
            let action = v1::Action {
                phase: "running".to_owned(),
                text: format!("{}; {behind}", action.text),
                ..action
            };
            print(&present::waited(&action, output));
            return Ok(exit::of_phase(&action.phase));
        }
        if over || left.is_zero() {
            print(&present::waited(&action, output));
            return Ok(exit::of_phase(&action.phase));
        }
        if output == Output::Table && told != action.text {
            print(&format!("{}: {}", action.phase, action.text));
            told.clone_from(&action.text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A status with these edges, each with its state and the plan that it applies.
    fn status(edges: &[(&str, &str, u64)]) -> v1::StatusReply {
        let edge = |(edge, state, _): &(&str, &str, u64)| v1::EdgeStatus {
            edge: (*edge).to_owned(),
            state: (*state).to_owned(),
            ..Default::default()
        };
        let node = |(node, _, generation): &(&str, &str, u64)| v1::NodeStatus {
            node: (*node).to_owned(),
            kind: v1::NodeKind::Edge.into(),
            acknowledged: Some(v1::PlanNumber {
                generation: *generation,
                epoch: 1,
            }),
            ..Default::default()
        };
        v1::StatusReply {
            edges: edges.iter().map(edge).collect(),
            nodes: edges.iter().map(node).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn an_order_waits_for_the_edges_that_dns_names() {
        let check =
            |edges: &[(&str, &str, u64)], expected| assert_eq!(applied(&status(edges), (7, 1)), expected, "{edges:?}");
        check(&[("iad", "serving", 7), ("dub", "serving", 6)], (1, 2));
        check(&[("iad", "serving", 7), ("dub", "lost", 6)], (1, 1));
        check(&[("iad", "serving", 6), ("dub", "lost", 7)], (0, 1));
        check(&[("iad", "serving", 8), ("dub", "drained", 6)], (1, 1));
        // A node that the topology does not name counts for nothing.
        let mut elsewhere = status(&[("iad", "serving", 6), ("old", "serving", 7)]);
        elsewhere.edges.pop();
        assert_eq!(applied(&elsewhere, (7, 1)), (0, 1));
    }
}
