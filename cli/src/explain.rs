//! `meridian explain`: asks edges, as a dry run, where they would send a session and why; and prints the page of a reason
//! code.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    process::ExitCode,
};

use anyhow::{Context as _, anyhow};
use clap::{Args, Subcommand};
use reqwest::{StatusCode, Url};
use serde::Deserialize;
use serde_json::{Value, json};
use topology::{
    Snapshot,
    reasons::{Group, PAGES, Page},
};

use crate::{
    audit, edges,
    exit::Failure,
    explain_page::{self, Answer},
    output::Output,
    output::print,
    present::{document, plain, table},
    reach::Reach,
    texts,
};

#[derive(Debug, Subcommand)]
pub(crate) enum ExplainVerb {
    /// Show where edges would send a session now: regions and stacks in order, those passed over with the reason, and
    /// each edge's measurements. Opens no session.
    Route(Route),
    /// Explain a reason code, as `status`, `why` and `history` print it: its meaning, Meridian's response, and the command to
    /// type.
    Reason {
        /// The code, such as no-headroom; by default a list of all codes.
        code: Option<String>,
    },
}

/// Prints the page of one code, or the list of all of them.
pub(crate) fn reason(code: Option<&str>, output: Output) -> Result<ExitCode, Failure> {
    let pages: Vec<&Page> = match code {
        None => PAGES.iter().collect(),
        Some(name) => match PAGES.iter().find(|page| page.code.as_str() == name) {
            Some(page) => vec![page],
            None => {
                return Err(Failure::usage(texts::no_such_reason(name)));
            }
        },
    };
    if output == Output::Json {
        let rows = pages.iter().map(|page| {
            json!({
                "code": page.code.as_str(),
                "group": page.group.title(),
                "means": page.means,
                "does": page.does,
                "type": page.next,
            })
        });
        print(&document(json!({ "reasons": rows.collect::<Vec<_>>() })));
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = String::new();
    if let (Some(_), [page]) = (code, &pages[..]) {
        let _ = write!(
            text,
            "{}: {}\n\n  means     {}\n  Meridian  {}\n  you       {}",
            page.code,
            page.group.title().to_lowercase(),
            page.means,
            page.does,
            page.next
        );
    } else {
        for group in Group::ALL {
            let _ = writeln!(text, "{}", group.title());
            for page in pages.iter().filter(|page| page.group == group) {
                let _ = writeln!(text, "  {:<22}{}", page.code, page.means);
            }
            text.push('\n');
        }
        text += "`meridian explain reason CODE` says what Meridian does about one, and what to type.";
    }
    print(&text);
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, Args)]
pub(crate) struct Route {
    /// The address of the device. A session without a name keeps its place among the percentages by this address.
    #[arg(long, value_name = "IP")]
    client: IpAddr,
    /// The session's own name (`Meridian-Session`).
    #[arg(long, value_name = "KEY")]
    session: Option<String>,
    /// The session's user (`Meridian-User`), which picks the version of the stack during a rollout.
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// The affinity token of the session (`Meridian-Affinity`).
    #[arg(long, value_name = "TOKEN")]
    affinity: Option<String>,
    /// Ask this edge of the running world alone; by default all of them.
    #[arg(long, value_name = "EDGE")]
    edge: Option<String>,
    /// The administrative address of the edge to ask, instead of those of the running world.
    #[arg(long, value_name = "URL", conflicts_with = "edge")]
    edge_admin: Option<Url>,
    /// Use this plan instead of the one in force, with the edge's measurements of now. Edges keep two plans; the audit
    /// log has older ones.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    generation: Option<u64>,
}

pub(crate) async fn route(route: Route, reach: &Reach, output: Output) -> Result<ExitCode, Failure> {
    let edges = match &route.edge_admin {
        Some(url) => vec![(url.to_string(), url.clone())],
        None => edges::of_world(&reach.state_dir, route.edge.as_deref())?,
    };
    let (answers, mut silent) = ask_all(&edges, &route, reach).await?;
    if answers.is_empty()
        && let Some((_, failure)) = silent.pop()
    {
        return Err(failure);
    }
    print(&match output {
        Output::Json => {
            let silent = silent
                .iter()
                .map(|(name, failure)| json!({ "edge": name, "why": format!("{:#}", failure.error) }));
            let silent: Vec<_> = silent.collect();
            document(json!({ "client": route.client, "edges": answers, "silent": silent }))
        }
        Output::Table => {
            let told = answers.into_iter().map(told).collect::<Result<Vec<_>, _>>()?;
            let silent = silent
                .iter()
                .map(|(name, failure)| format!("{name}: {:#}", failure.error));
            told.into_iter().chain(silent).collect::<Vec<_>>().join("\n\n")
        }
    });
    Ok(ExitCode::SUCCESS)
}

/// Edges that do not answer, by name, with the error.
type Silent = Vec<(String, Failure)>;

/// The answers of all edges. An edge that does not answer does not end the command: people ask just when an edge is dead.
async fn ask_all(edges: &[(String, Url)], route: &Route, reach: &Reach) -> Result<(Vec<Value>, Silent), Failure> {
    let client = edges::client()?;
    // The plan from the audit log, fetched once when the first edge does not have it any more.
    let mut older = None;
    let (mut answers, mut silent) = (Vec::new(), Vec::new());
    for (name, edge) in edges {
        let answer = async {
            let said = match ask(client.get(question(edge, route, route.generation)), edge).await? {
                Answer::Is(answer) => return Ok(answer),
                Answer::NoSuchPlan(said) => said,
            };
            let Some(generation) = route.generation else {
                return Err(Failure::failed(anyhow!(said)));
            };
            let snapshot = match older.take() {
                Some(snapshot) => snapshot,
                None => kept(generation, reach, &said).await?,
            };
            let asked = client.post(question(edge, route, None)).body(snapshot.encode().0);
            older = Some(snapshot);
            match ask(asked, edge).await? {
                Answer::Is(answer) => Ok(answer),
                Answer::NoSuchPlan(said) => Err(Failure::failed(anyhow!(said))),
            }
        };
        match answer.await {
            Ok(answer) => answers.push(answer),
            Err(failure) if failure.is_unreachable() => silent.push((name.clone(), failure)),
            Err(failure) => return Err(failure),
        }
    }
    Ok((answers, silent))
}

fn question(edge: &Url, route: &Route, generation: Option<u64>) -> Url {
    let mut url = edge.clone();
    url.set_path("/explain");
    let mut query = url.query_pairs_mut();
    query.clear().append_pair("client", &route.client.to_string());
    let generation = generation.map(|generation| generation.to_string());
    let optional = [
        ("session", &route.session),
        ("user", &route.user),
        ("affinity", &route.affinity),
        ("generation", &generation),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            query.append_pair(name, value);
        }
    }
    drop(query);
    url
}

async fn ask(request: reqwest::RequestBuilder, edge: &Url) -> Result<Answer, Failure> {
    let refused = |status: StatusCode, said: String| Failure::failed(texts::edge_refuses(edge, status, &said));
    explain_page::ask(request, texts::edge_is_silent(edge), refused).await
}

/// Fetches a plan that edges have dropped from the audit log.
async fn kept(generation: u64, reach: &Reach, said: &str) -> Result<Snapshot, Failure> {
    let operator = reach.operator().map_err(|failure| match failure.is_unreachable() {
        true => Failure::failed(texts::plan_is_older_than_edges(said)),
        false => failure,
    })?;
    audit::snapshot(&operator, generation).await
}

/// The parts of an edge's answer that the table shows.
#[derive(Debug, Deserialize)]
struct Explained {
    edge: String,
    session_key: String,
    plan: Number,
    plan_in_force: Number,
    decisions: Vec<Decided>,
    nearness_ms: BTreeMap<String, f64>,
    stacks: Vec<Stack>,
}

#[derive(Debug, Deserialize, PartialEq, Eq)]
struct Number {
    generation: u64,
    epoch: u64,
}

#[derive(Debug, Deserialize)]
struct Decided {
    region: String,
    stack: SocketAddr,
    home: String,
    why: Value,
    stack_why: Value,
    skipped: Vec<Skipped>,
    stacks_skipped: Vec<SkippedStack>,
    ejection_ignored: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Skipped {
    region: String,
    because: String,
}

#[derive(Debug, Deserialize)]
struct SkippedStack {
    stack: SocketAddr,
    because: String,
}

#[derive(Debug, Deserialize)]
struct Stack {
    region: String,
    stack: SocketAddr,
    rtt_ms: Option<f64>,
    in_flight: u32,
    load: Option<Load>,
    is_full: bool,
    ejected_until: Option<topology::Moment>,
    returned_percent: u8,
}

#[derive(Debug, Deserialize)]
struct Load {
    sessions: u32,
    sessions_max: u32,
    waiting: u32,
}

fn told(answer: Value) -> Result<String, Failure> {
    let explained: Explained = serde_json::from_value(answer).context(texts::other_explanation("the edge"))?;
    let mut text = format!(
        "{}: {} by plan {} (epoch {})",
        explained.edge, explained.session_key, explained.plan.generation, explained.plan.epoch
    );
    if explained.plan != explained.plan_in_force {
        let _ = write!(text, "; in force is plan {}", explained.plan_in_force.generation);
    }
    let Some(first) = explained.decisions.first() else {
        let _ = write!(text, "\nno region may serve this session");
        return Ok(text);
    };
    let _ = writeln!(text, "; home is {}", first.home);
    if first.ejection_ignored.as_deref() == Some("panic") {
        let _ = writeln!(
            text,
            "EJECTIONS ARE IGNORED: most stacks in use look dead, so the fault is probably this edge's"
        );
    }
    let mut shown = table(["", "REGION", "STACK", "WHY", "WHY THIS STACK", "PASSED OVER"]);
    for (index, decided) in explained.decisions.iter().enumerate() {
        // Choices "tried" before stand in the rows above.
        let regions = decided.skipped.iter().filter(|skipped| skipped.because != "tried");
        let regions = regions.map(|skipped| format!("{} {}", skipped.region, skipped.because));
        let stacks = decided
            .stacks_skipped
            .iter()
            .filter(|skipped| skipped.because != "tried");
        let stacks = stacks.map(|skipped| format!("{} {}", skipped.stack, skipped.because));
        shown.add_row([
            if index == 0 {
                "goes to".to_owned()
            } else {
                "else".to_owned()
            },
            decided.region.clone(),
            decided.stack.to_string(),
            why(&decided.why),
            stack_why(&decided.stack_why),
            regions.chain(stacks).collect::<Vec<_>>().join(", "),
        ]);
    }
    let _ = write!(text, "{}\n\n{}", plain(&shown), seen(&explained));
    Ok(text)
}

fn seen(explained: &Explained) -> String {
    let mut shown = table(["REGION", "NEAR", "STACK", "ROUND TRIP", "RUNNING", "LOAD", "STATE"]);
    for stack in &explained.stacks {
        let near = explained.nearness_ms.get(&stack.region);
        shown.add_row([
            stack.region.clone(),
            near.map_or_else(String::new, |ms| format!("{ms:.1} ms")),
            stack.stack.to_string(),
            stack.rtt_ms.map_or_else(String::new, |ms| format!("{ms:.1} ms")),
            stack.in_flight.to_string(),
            stack.load.as_ref().map_or_else(String::new, |load| {
                format!(
                    "{} of {} sessions, {} waiting",
                    load.sessions, load.sessions_max, load.waiting
                )
            }),
            match stack {
                Stack {
                    ejected_until: Some(until),
                    ..
                } => format!("ejected until {until}"),
                Stack { is_full: true, .. } => "full".to_owned(),
                Stack {
                    returned_percent: percent @ ..100,
                    ..
                } => format!("returning, {percent} %"),
                _ => "ready".to_owned(),
            },
        ]);
    }
    plain(&shown)
}

/// Renders the reason for a region: `"overflow"`, or `{"share": 40}`.
fn why(why: &Value) -> String {
    match why.get("share") {
        Some(percent) => format!("share of {percent} %"),
        None => why.as_str().unwrap_or_default().to_owned(),
    }
}

/// Renders the reason for a stack: `"only"`, or `{"better-of-two": {…}}`.
fn stack_why(why: &Value) -> String {
    match why.get("better-of-two") {
        Some(two) => format!(
            "cost {}, {} {}",
            two["cost"],
            two["other"].as_str().unwrap_or_default(),
            two["other_cost"]
        ),
        None => why.as_str().unwrap_or_default().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[test]
    fn an_answer_is_told_in_order_with_what_was_passed_over() {
        let answer = json!({
            "edge": "edge-dub", "session_key": "192.0.2.7",
            "plan": { "generation": 7, "epoch": 2 }, "plan_in_force": { "generation": 9, "epoch": 2 },
            "decisions": [
                {
                    "region": "eu-central", "stack": "127.0.0.2:80", "home": "eu-west", "why": "overflow",
                    "stack_why": { "better-of-two": { "cost": 5, "other": "127.0.0.3:80", "other_cost": 9 } },
                    "skipped": [{ "region": "eu-west", "because": "full" }], "stacks_skipped": [],
                    "load": null, "ejection_ignored": null, "plan": { "generation": 7, "epoch": 2 }
                },
                {
                    "region": "us-west", "stack": "127.0.0.4:80", "home": "eu-west", "why": { "share": 40 },
                    "stack_why": "only",
                    "skipped": [{ "region": "eu-central", "because": "tried" }],
                    "stacks_skipped": [{ "stack": "127.0.0.5:80", "because": "ejected" }],
                    "load": null, "ejection_ignored": null, "plan": { "generation": 7, "epoch": 2 }
                },
            ],
            "nearness_ms": { "eu-west": 12.34 },
            "rtt_ms": {}, "ejected": [],
            "stacks": [{
                "region": "eu-west", "stack": "127.0.0.1:80", "rtt_ms": 0.5, "in_flight": 3,
                "load": { "sessions": 96, "sessions_max": 100, "waiting": 1, "waiting_max": 32 },
                "is_full": true, "ejected_until": null, "returned_percent": 100
            }],
        });
        let text = told(answer).unwrap();
        for said in [
            "edge-dub: 192.0.2.7 by plan 7 (epoch 2); in force is plan 9; home is eu-west",
            "cost 5, 127.0.0.3:80 9",
            "eu-west full",
            "share of 40 %",
            "127.0.0.5:80 ejected",
            "12.3 ms",
            "96 of 100 sessions, 1 waiting",
        ] {
            assert!(text.contains(said), "{said}: {text}");
        }
        assert!(!text.contains("tried"), "{text}");
    }

    #[tokio::test]
    async fn an_edge_that_does_not_answer_is_named_and_the_others_answer() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let mut asked = [0; 1024];
            let length = tcp.read(&mut asked).await.unwrap();
            assert!(asked[..length].starts_with(b"GET /explain?client=192.0.2.7 "));
            let answer = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 12\r\n\r\n{\"edge\":\"b\"}";
            tcp.write_all(answer.as_bytes()).await.unwrap();
        });
        // Bound and not listening, so no other process can listen there.
        let dead = tokio::net::TcpSocket::new_v4().unwrap();
        dead.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let nobody = dead.local_addr().unwrap();
        let edge = |name: &str, at: SocketAddr| (name.to_owned(), format!("http://{at}").parse().unwrap());
        let edges = [edge("a", nobody), edge("b", address), edge("c", nobody)];
        let (answers, silent) = ask_all(&edges, &from_home(), &nowhere()).await.unwrap();
        serving.await.unwrap();
        assert_eq!(answers, [json!({ "edge": "b" })]);
        let names: Vec<&str> = silent.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["a", "c"]);
        assert!(silent[0].1.is_unreachable() && silent[0].1.error.to_string().contains("does not answer"));
    }

    fn nowhere() -> Reach {
        Reach {
            control_planes: Vec::new(),
            identity: None,
            state_dir: "/nowhere".into(),
        }
    }

    fn from_home() -> Route {
        Route {
            client: "192.0.2.7".parse().unwrap(),
            session: None,
            user: None,
            affinity: None,
            edge: None,
            edge_admin: None,
            generation: None,
        }
    }

    #[test]
    fn what_is_asked_is_escaped() {
        let route = Route {
            client: "192.0.2.7".parse().unwrap(),
            session: Some("a&b c".to_owned()),
            user: None,
            affinity: None,
            edge: None,
            edge_admin: None,
            generation: None,
        };
        let url = question(&"http://127.0.0.1:9/metrics?x".parse().unwrap(), &route, Some(3));
        assert_eq!(
            url.as_str(),
            "http://127.0.0.1:9/explain?client=192.0.2.7&session=a%26b+c&generation=3"
        );
    }
}
