//! Questions to edges at their administrative addresses: where they are, and how many sessions they carry.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Duration,
};

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::{Client, Url};
use serde::Deserialize;
use tokio::time::{Instant, sleep};

use crate::{
    exit::Failure,
    output::{Output, complain, print},
    texts,
};

/// Per request. An edge answers `/sessions` from memory, so five seconds of silence mean that it is not there.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Pause between two rounds of counting sessions.
const LOOK_EVERY: Duration = Duration::from_secs(1);

pub(crate) fn client() -> anyhow::Result<Client> {
    Client::builder()
        .timeout(TIMEOUT)
        .build()
        .context("cannot create a client")
}

/// The running world's edges, or the edge `only`: names and administrative addresses.
pub(crate) fn of_world(state_dir: &Path, only: Option<&str>) -> Result<Vec<(String, Url)>, Failure> {
    let record = world::find(state_dir).map_err(|error| {
        let Failure { error, code } = Failure::from(error);
        let error = texts::no_world_for_edges(error);
        Failure { error, code }
    })?;
    if let Some(edge) = only
        && !record.edges.contains_key(edge)
    {
        let known = record.edges.keys().cloned().collect::<Vec<_>>().join(", ");
        return Err(Failure::usage(texts::no_such_edge(edge, &known)));
    }
    let wanted = record.edges.keys().filter(|name| only.is_none_or(|edge| edge == *name));
    let admin = |name: &String| {
        let url = record
            .metrics
            .get(name)
            .with_context(|| format!("the record of the world has no address of {name}"))?;
        let url = url
            .parse()
            .with_context(|| format!("the record of the world has the wrong address {url} for {name}"))?;
        Ok((name.clone(), url))
    };
    Ok(wanted.map(admin).collect::<anyhow::Result<_>>()?)
}

/// The target of a drain: sessions leave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Emptied {
    Region(String),
    Stack(String),
    Edge(String),
}

impl Emptied {
    fn why_left(&self) -> &'static str {
        match self {
            Self::Edge(_) => "DNS no longer names it, and its sessions stay until they end",
            Self::Region(_) | Self::Stack(_) => "sessions in a turn finish it first",
        }
    }
}

impl std::fmt::Display for Emptied {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Region(name) | Self::Stack(name) | Self::Edge(name) => f.write_str(name),
        }
    }
}

/// Live sessions of one region at one edge, in all and by stack.
#[derive(Debug, Deserialize)]
struct RegionSessions {
    sessions: u64,
    #[serde(default)]
    stacks: BTreeMap<String, u64>,
}

/// Counts the sessions that remain. Also returns the addresses of edges that did not answer.
async fn count_remaining(client: &Client, edges: &[Url], emptied: &Emptied) -> (u64, BTreeSet<String>) {
    let (mut left, mut silent) = (0, BTreeSet::new());
    for edge in edges {
        let mut url = edge.clone();
        url.set_path("/sessions");
        let said = async { client.get(url).send().await?.error_for_status()?.json().await };
        let regions: BTreeMap<String, RegionSessions> = match said.await {
            Ok(regions) => regions,
            Err::<_, reqwest::Error>(_) => {
                silent.insert(edge.to_string());
                continue;
            }
        };
        left += match emptied {
            Emptied::Edge(_) => regions.values().map(|it| it.sessions).sum(),
            Emptied::Region(region) => regions.get(region).map_or(0, |it| it.sessions),
            Emptied::Stack(stack) => regions.values().filter_map(|it| it.stacks.get(stack)).sum::<u64>(),
        };
    }
    (left, silent)
}

/// Shows the number of remaining sessions until it is zero or `deadline` passes. Returns whether it is zero.
pub(crate) async fn watch(
    edges: &[Url],
    emptied: &Emptied,
    deadline: Instant,
    output: Output,
) -> Result<bool, Failure> {
    let client = client()?;
    let mut bar: Option<ProgressBar> = None;
    let mut reported = None;
    loop {
        let (left, silent) = count_remaining(&client, edges, emptied).await;
        if !silent.is_empty() && reported.is_none() {
            let silent: Vec<&str> = silent.iter().map(String::as_str).collect();
            complain(&format!("{} does not report its sessions", silent.join(" and ")));
        }
        let bar = bar.get_or_insert_with(|| progress(left, emptied));
        bar.set_length(bar.length().unwrap_or(0).max(left));
        bar.set_position(bar.length().unwrap_or(0) - left);
        // Without a terminal the progress bar is hidden: print a line for each change instead.
        if bar.is_hidden() && output == Output::Table && reported != Some(left) {
            print(&format!("{emptied}: {left} sessions left"));
        }
        reported = Some(left);
        let is_known = silent.is_empty();
        if (left == 0 && is_known) || Instant::now() + LOOK_EVERY > deadline {
            bar.finish_and_clear();
            if !is_known {
                let silent: Vec<String> = silent.into_iter().collect();
                return Err(Failure::unreachable(texts::edges_report_no_sessions(&silent)));
            }
            if output == Output::Table {
                match left {
                    0 => print(&format!("{emptied} is empty")),
                    left => complain(&format!("{emptied} still has {left} sessions; {}", emptied.why_left())),
                }
            }
            return Ok(left == 0);
        }
        sleep(LOOK_EVERY).await;
    }
}

fn progress(sessions: u64, emptied: &Emptied) -> ProgressBar {
    let template = "{msg} [{bar:40}] {pos} of {len} sessions left it";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(sessions)
        .with_style(style)
        .with_message(topology::text::for_terminal(&emptied.to_string()).into_owned())
}
