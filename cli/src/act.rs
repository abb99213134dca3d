//! Requests of operators: move regions, freeze automation, approve, abort, and wait for the outcome.

use std::{path::Path, process::ExitCode, time::Duration};

use api::{
    Operator, OperatorError, operator,
    v1::{self, act_request::Kind},
};
use clap::{Args, Subcommand};
use reqwest::Url;
use tokio::time::Instant;

use crate::{
    edges::{self, Emptied},
    exit::{self, Failure},
    length::parse_length,
    output::{Output, ask, complain, print},
    present, texts,
};

/// The longest single `Wait` call. `wait` calls again until its deadline, and prints progress in between.
const ASK_FOR: Duration = Duration::from_secs(2);

#[derive(Debug, Subcommand)]
pub(crate) enum Request {
    /// Emergency: move a region's sessions to its backups now, whatever its health. Needs no telemetry: for a backup
    /// that no vantage sees, the last known health counts, and the answer lists every fact against the move.
    Failover {
        /// The region to leave, by its name in `meridian status`.
        region: String,
        /// Also make a backup the writer of the region's replicated data.
        #[arg(long)]
        promote: bool,
        /// Accept the loss of up to this much of the newest data by promoting, such as 30m, or `any`; needs a second
        /// person.
        #[arg(long, value_name = "TIME|any", value_parser = parse_loss, requires = "promote")]
        accept_loss: Option<Duration>,
        /// Pass over the rules no-fit-backup, no-headroom and regions-serving-min, because you know more about the
        /// backups than the control plane does. Needs a second person if one of these rules blocks the move. --force
        /// accepts no loss of data: --accept-loss does.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        because: Because,
    },
    /// Planned: move a healthy region's sessions away in steps; with --promote its data too.
    Switchover {
        /// The region to leave, by its name in `meridian status`.
        region: String,
        /// Also make a backup the writer of the region's replicated data, which must have caught up.
        #[arg(long)]
        promote: bool,
        #[command(flatten)]
        because: Because,
    },
    /// Give an evacuated region its sessions back, step by step.
    Restore {
        /// The evacuated region, by its name in `meridian status`.
        region: String,
        /// Accept the loss of up to this much of the data that other regions wrote meanwhile, or `any`; needs a second
        /// person.
        #[arg(long, value_name = "TIME|any", value_parser = parse_loss)]
        accept_loss: Option<Duration>,
        #[command(flatten)]
        because: Because,
    },
    /// Empty a region in steps, at the turn boundaries of its sessions. For a stack: keep sessions off it for a time.
    /// For an edge: leave it out of DNS for a time.
    Drain {
        #[command(flatten)]
        subject: Drained,
        /// Time for which an edge or a stack stays drained (required for these), such as 2h.
        #[arg(long = "for", value_name = "TIME", value_parser = parse_length)]
        length: Option<Duration>,
        /// With --wait: the administrative addresses of the edges to ask for their sessions, separated by commas. The
        /// default is the running world's edges.
        #[arg(long, value_name = "URL,...", value_delimiter = ',', requires = "wait")]
        edge_admin: Vec<Url>,
        #[command(flatten)]
        because: Because,
    },
    /// Move users to another version of the stack, a growing share at a time.
    Rollout {
        /// The version to move to, as in the topology document: each region needs a stack of it.
        version: String,
        #[command(flatten)]
        because: Because,
    },
    /// Stop automatic decisions for a time.
    Freeze {
        /// Duration of the freeze, such as 30m or 2h. It always ends by itself, so that a forgotten freeze does no
        /// harm.
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
    /// Turn one safety rule off for a time; needs a second person.
    Override {
        /// The rule, by the code of its refusals, such as evacuation-limit.
        rule: String,
        /// Time for which the rule is off, such as 30m.
        #[arg(long = "for", value_name = "TIME", value_parser = parse_length)]
        length: Duration,
        #[command(flatten)]
        because: Because,
    },
    /// Lift the hold-down of a region that moved too often.
    Ack {
        /// The region that is held down, by its name in `meridian status`.
        region: String,
        #[command(flatten)]
        because: Because,
    },
    /// Approve another person's request.
    Approve {
        /// The action, as `meridian status` shows it.
        action: String,
        /// The digest that you agree to, as the line that asks for a second person names it. If the request would do something else by then, the
        /// approval is refused. Without it, the command shows what the request would do now, and asks if it runs in a terminal.
        #[arg(long, value_name = "DIGEST")]
        shown: Option<String>,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        because: Because,
    },
    /// Stop an action. The control plane takes back the steps done so far, where that is safe.
    Abort {
        /// The action, as `meridian status` shows it.
        action: String,
        #[command(flatten)]
        because: Because,
    },
}

/// The region, edge or stack to drain.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Drained {
    /// A region, an edge, or a stack (address:port).
    subject: Option<String>,
    /// A region by its name, when SUBJECT could also mean an edge.
    #[arg(long)]
    region: Option<String>,
    /// An edge by its name, when SUBJECT could also mean a region.
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
    /// The reason, for the audit log.
    #[arg(long)]
    reason: String,
    /// The author, for the audit log: the name in your credential. Without one, your login name by default.
    #[arg(long)]
    author: Option<String>,
    /// A name for this action. Two requests with one name are one action: repeat the name of an attempt whose outcome
    /// is unknown.
    #[arg(long)]
    token: Option<String>,
    /// Change nothing; show the plan, the capacity and the safety rules that would follow.
    #[arg(long)]
    dry_run: bool,
    /// Wait until the action is over, at most this long.
    #[arg(long, value_name = "TIME", value_parser = parse_length, conflicts_with = "dry_run")]
    wait: Option<Duration>,
}

impl Because {
    pub(crate) fn reason(&self) -> &str {
        &self.reason
    }

    /// The author, whom a credential names by itself.
    pub(crate) fn author(&self, operator: &Operator) -> String {
        let named = self.author.clone().or_else(|| operator.name());
        named.unwrap_or_else(world::authority::person)
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
    let request = operator::request(
        kind,
        &because.reason,
        &because.author(operator),
        &because.token(),
        lasts,
    );
    if because.dry_run {
        let tried = operator.plan(Some(request)).await?;
        print(&present::plan(&tried, output));
        return Ok(exit::of_outcome(tried.outcome()));
    }
    let reply = operator.act(request).await?;
    print(&present::action(&reply, output));
    // Sessions move only when edges apply the plan. Say so when no wait was asked for.
    if let Some(action) = reply
        .action
        .as_ref()
        .filter(|it| it.spreads > 0 && because.wait.is_none())
    {
        let v1::Action {
            spreads,
            edges,
            edges_acknowledged,
            id,
            ..
        } = action;
        complain(&format!(
            "plan {spreads} is decided, and {edges_acknowledged} of {edges} edges that DNS names apply it so far; \
             `meridian status` names those that have not, `meridian wait {id}` waits for them"
        ));
        return Ok(exit::of_phase(&action.phase));
    }
    match (&reply.action, because.wait) {
        (Some(action), Some(wait_max)) if reply.outcome() != v1::Outcome::Refused => match (emptied, edge_admin) {
            (Some(emptied), Some(named)) => {
                let found = match (&emptied, named.is_empty()) {
                    (_, false) => Ok(named.into_iter().map(|url| (url.to_string(), url)).collect()),
                    (Emptied::Edge(edge), true) => edges::of_world(state_dir, Some(edge)),
                    (_, true) => edges::of_world(state_dir, None),
                };
                let urls = |edges: Vec<(String, Url)>| edges.into_iter().map(|(_, url)| url).collect::<Vec<_>>();
                let edges = found
                    .map(urls)
                    .map_err(|_| Failure::failed(texts::drain_is_unobserved()))?;
                wait_until_empty(operator, action, &emptied, &edges, wait_max, output).await
            }
            _ => wait(operator, &action.id, wait_max, output).await,
        },
        _ => Ok(exit::of_outcome(reply.outcome())),
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
        Request::Approve {
            action,
            shown,
            yes,
            because,
        } => {
            let shown = match shown {
                Some(shown) => shown,
                None => show(operator, &action, yes || because.dry_run).await?,
            };
            (Kind::Approve(v1::Approve { action, shown }), None, because)
        }
        Request::Abort { action, because } => (Kind::Abort(v1::Abort { action }), None, because),
    })
}

/// Shows what an action would do with a second person's approval, and returns the digest of that. The digest is empty where nothing
/// waits, which the control plane says better.
async fn show(operator: &Operator, id: &str, yes: bool) -> Result<String, Failure> {
    let status = operator.status().await?;
    let Some(action) = status.actions.into_iter().find(|it| it.id == id) else {
        return Ok(String::new());
    };
    if !action.effects.is_empty() {
        complain(&present::asked_for(&action));
    }
    if !yes {
        let answer = ask(texts::AGREE).map_err(anyhow::Error::from)?;
        if answer.is_some_and(|answer| !matches!(answer.as_str(), "y" | "yes")) {
            return Err(Failure::failed(texts::not_agreed(id)));
        }
    }
    Ok(action.shown)
}

/// The target whose sessions a drain moves away; `None` for every other action.
fn emptied(kind: &Kind) -> Option<Emptied> {
    match kind {
        Kind::Switchover(it) => Some(Emptied::Region(it.region.clone())),
        Kind::DrainEdge(it) => Some(Emptied::Edge(it.edge.clone())),
        Kind::DrainStack(it) => Some(Emptied::Stack(it.stack.clone())),
        _ => None,
    }
}

/// Shows the progress of a drain. A region's action ends with its last step, and its last sessions leave after that.
/// The action of an edge or a stack stands for as long as the drain lasts, so only the count of sessions tells the end.
async fn wait_until_empty(
    operator: &Operator,
    action: &v1::Action,
    emptied: &Emptied,
    edges: &[Url],
    wait_max: Duration,
    output: Output,
) -> Result<ExitCode, Failure> {
    let deadline = Instant::now() + wait_max;
    let mut code = exit::of_phase("done");
    if matches!(emptied, Emptied::Region(_)) {
        let stepped = wait(operator, &action.id, wait_max, output);
        let mut stepped = std::pin::pin!(stepped);
        tokio::select! {
            result = &mut stepped => code = result?,
            // All sessions may have left before the control plane reports the last step.
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

/// Turns the arguments of `drain` into a request. A name of the wrong kind (`--edge us-east`) is an error here, because
/// the control plane would otherwise report a drain of something that does not exist.
async fn drain(operator: &Operator, subject: Drained, length: Option<Duration>) -> Result<Kind, Failure> {
    let status = operator.status().await?;
    let is_region = |name: &str| status.regions.iter().any(|it| it.region == name);
    let is_edge = |name: &str| status.edges.iter().any(|it| it.edge == name);
    let unknown = |what: &str, name: &str| {
        let regions = status.regions.iter().map(|it| it.region.as_str());
        let known: Vec<&str> = regions.chain(status.edges.iter().map(|it| it.edge.as_str())).collect();
        Failure::failed(texts::no_such_target(what, name, &known))
    };
    let needs_end = |what: &str| Failure::usage(texts::drain_needs_end(what));
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
        return Err(Failure::usage(texts::drained_region_has_no_end()));
    }
    Ok(Kind::Switchover(v1::Switchover { region, promote: false }))
}

/// Waits until an action is over and most edges apply its plan, and prints each change of its text.
pub(crate) async fn wait(
    operator: &Operator,
    id: &str,
    wait_max: Duration,
    output: Output,
) -> Result<ExitCode, Failure> {
    let deadline = Instant::now() + wait_max;
    let mut last_text = String::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let action = match operator.wait(id, left.min(ASK_FOR)).await {
            Ok(action) => action,
            // Keep waiting through an election or a restart of the control plane: the store remembers the action.
            Err(OperatorError::NoLeader { .. } | OperatorError::Unreachable { .. }) if !left.is_zero() => continue,
            Err(error) => return Err(error.into()),
        };
        let over = !matches!(action.phase.as_str(), "running" | "awaiting-approval");
        if !over && left.is_zero() && output == Output::Table {
            complain(&format!(
                "action {id} is not over after {} s; wait on with `meridian wait {id}`",
                wait_max.as_secs()
            ));
        }
        if over || left.is_zero() {
            print(&present::waited(&action, output));
            return Ok(exit::of_phase(&action.phase));
        }
        if output == Output::Table && last_text != action.text {
            print(&format!("{}: {}", action.phase, action.text));
            last_text.clone_from(&action.text);
        }
    }
}
