//! `meridian dns`: asks name servers for an answer, or for every step that leads to it.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    process::ExitCode,
};

use anyhow::{Context as _, anyhow};
use clap::{Args, Subcommand};
use drill::query::{Asked, query};
use reqwest::{StatusCode, Url};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    audit, edges,
    exit::Failure,
    explain_page::{self, Answer},
    output::{Output, print},
    present::{document, plain, table},
    reach::Reach,
    texts,
    zone_key::{self, DsArgs, KeyArgs},
};

#[derive(Debug, Subcommand)]
pub(crate) enum DnsVerb {
    /// Show every step that leads to an answer: the client's network and its place, each edge with its distance, weight and
    /// turn, and the network for which the answer holds.
    Explain(ExplainArgs),
    /// Ask a name server one question and show what it says.
    Query(QueryArgs),
    /// Make a key with which name servers sign the zone.
    Key(KeyArgs),
    /// Print the DS records of keys, which the parent zone needs, and their DNSKEY records.
    Ds(DsArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// The name, such as voice.example.com.
    name: String,
    /// The type of record.
    #[arg(long = "type", value_name = "TYPE", default_value = "A")]
    kind: String,
    /// The address of the client. Its resolver is taken to tell the client's network (RFC 7871).
    #[arg(long, value_name = "IP")]
    client: IpAddr,
    /// The address is that of a resolver which tells nothing of its clients.
    #[arg(long)]
    resolver: bool,
    /// Use this plan instead of the one in force, with the places that the name server knows now.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    generation: Option<u64>,
    /// The administrative address of a name server to ask, instead of those of the running world.
    #[arg(long, value_name = "URL")]
    dns_admin: Option<Url>,
}

#[derive(Debug, Args)]
pub(crate) struct QueryArgs {
    /// The name, such as voice.example.com.
    name: String,
    /// The type of record.
    #[arg(long = "type", value_name = "TYPE", default_value = "A")]
    kind: String,
    /// Ask for the client with this address, as a resolver that tells its clients' networks does.
    #[arg(long, value_name = "IP")]
    client: Option<IpAddr>,
    /// The address of the name server; by default the running world's.
    #[arg(long, value_name = "IP:PORT")]
    server: Option<SocketAddr>,
}

pub(crate) async fn dns(verb: DnsVerb, reach: &Reach, output: Output) -> Result<ExitCode, Failure> {
    match verb {
        DnsVerb::Explain(asked) => explain(&asked, reach, output).await,
        DnsVerb::Query(asked) => ask_once(&asked, reach, output).await,
        DnsVerb::Key(args) => zone_key::make(&args, output),
        DnsVerb::Ds(args) => zone_key::show(&args, output),
    }
}

async fn ask_once(args: &QueryArgs, reach: &Reach, output: Output) -> Result<ExitCode, Failure> {
    let server = match args.server {
        Some(server) => server,
        None => world::find(&reach.state_dir)?.dns,
    };
    // As long as resolvers tell networks (RFC 7871 §11.1).
    let subnet = |client: IpAddr| (client, if client.is_ipv4() { 24 } else { 56 });
    let asked = Asked {
        server,
        name: args.name.clone(),
        kind: args.kind.clone(),
        subnet: args.client.map(subnet),
    };
    let said = query(&asked).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::InvalidInput => Failure::usage(anyhow!(error)),
        _ => Failure::unreachable(anyhow!(error).context(texts::name_server_is_silent(server))),
    })?;
    let transport = if said.over_tcp { "TCP" } else { "UDP" };
    let took_ms = said.took.as_secs_f64() * 1000.0;
    print(&match output {
        Output::Json => document(json!({
            "server": server,
            "node": said.node,
            "code": said.code,
            "records": said.records,
            "scope": said.scope,
            "transport": transport,
            "took_ms": took_ms,
        })),
        Output::Table => {
            let node = said.node.as_deref().unwrap_or("a server without a name");
            let mut text = format!(
                "{} from {node} at {server} over {transport} in {took_ms:.1} ms",
                said.code
            );
            if let Some(scope) = said.scope {
                let _ = write!(text, "; holds for /{scope} around the client");
            }
            for record in &said.records {
                let _ = write!(text, "\n{record}");
            }
            text
        }
    });
    Ok(ExitCode::SUCCESS)
}

async fn explain(args: &ExplainArgs, reach: &Reach, output: Output) -> Result<ExitCode, Failure> {
    let servers = match &args.dns_admin {
        Some(url) => vec![(url.to_string(), url.clone())],
        None => name_servers(reach)?,
    };
    let client = edges::client()?;
    let mut answers = BTreeMap::new();
    for (name, server) in &servers {
        answers.insert(name.clone(), ask(&client, server, args, reach).await?);
    }
    print(&match output {
        Output::Json => document(json!({ "client": args.client, "name_servers": answers })),
        Output::Table => {
            let told = answers.into_values().map(told).collect::<Result<Vec<_>, _>>()?;
            told.join("\n\n")
        }
    });
    Ok(ExitCode::SUCCESS)
}

/// The running world's name servers: names and administrative addresses.
fn name_servers(reach: &Reach) -> Result<Vec<(String, Url)>, Failure> {
    let record = world::find(&reach.state_dir)?;
    let is_other = |name: &&String| {
        record.edges.contains_key(*name) || record.stacks.contains_key(*name) || name.starts_with("control-plane")
    };
    let names = record.metrics.keys().filter(|name| !is_other(name));
    let mut servers = Vec::new();
    for name in names {
        let url = record.metrics[name]
            .parse()
            .context(texts::no_name_server_address(name))?;
        servers.push((name.clone(), url));
    }
    Ok(servers)
}

async fn ask(client: &reqwest::Client, server: &Url, args: &ExplainArgs, reach: &Reach) -> Result<Value, Failure> {
    let said = match send(client.get(question(server, args, args.generation)), server).await? {
        Answer::Is(answer) => return Ok(answer),
        Answer::NoSuchPlan(said) => said,
    };
    let Some(generation) = args.generation else {
        return Err(Failure::failed(anyhow!(said)));
    };
    // Name servers keep one plan; the audit log has the others.
    let snapshot = audit::snapshot(&reach.operator()?, generation).await?;
    match send(
        client.post(question(server, args, None)).body(snapshot.encode().0),
        server,
    )
    .await?
    {
        Answer::Is(answer) => Ok(answer),
        Answer::NoSuchPlan(said) => Err(Failure::failed(anyhow!(said))),
    }
}

fn question(server: &Url, args: &ExplainArgs, generation: Option<u64>) -> Url {
    let mut url = server.clone();
    url.set_path("/explain");
    let mut query = url.query_pairs_mut();
    query
        .clear()
        .append_pair("name", &args.name)
        .append_pair("type", &args.kind)
        .append_pair("client", &args.client.to_string())
        .append_pair("is_resolver", if args.resolver { "true" } else { "false" });
    if let Some(generation) = generation {
        query.append_pair("generation", &generation.to_string());
    }
    drop(query);
    url
}

async fn send(request: reqwest::RequestBuilder, server: &Url) -> Result<Answer, Failure> {
    let silent = texts::name_server_page_is_silent(server);
    let refused = |status: StatusCode, said: String| match status {
        StatusCode::BAD_REQUEST => Failure::usage(anyhow!(said)),
        _ => Failure::failed(texts::name_server_refuses(server, status, &said)),
    };
    explain_page::ask(request, silent, refused).await
}

/// The parts of an explanation that the table shows.
#[derive(Debug, Deserialize)]
struct Explained {
    node: String,
    plan: Number,
    plan_in_force: Number,
    pace: String,
    name: String,
    #[serde(rename = "type")]
    kind: String,
    client: String,
    is_subnet: bool,
    place: Option<Place>,
    edges: Vec<Edge>,
    named_max: usize,
    holds_for: Option<String>,
    code: String,
    answer: Vec<String>,
}

#[derive(Debug, Deserialize, PartialEq, Eq)]
struct Number {
    generation: u64,
    epoch: u64,
}

#[derive(Debug, Deserialize)]
struct Place {
    latitude: f64,
    longitude: f64,
    source: String,
}

#[derive(Debug, Deserialize)]
struct Edge {
    edge: String,
    is_named: bool,
    distance_km: Option<u64>,
    weight: u32,
    percent: u32,
    is_candidate: bool,
    rank: Option<usize>,
}

fn told(answer: Value) -> Result<String, Failure> {
    let explained: Explained = serde_json::from_value(answer).context(texts::other_explanation("the name server"))?;
    let mut text = format!(
        "{}: {} {} by plan {} (epoch {})",
        explained.node, explained.name, explained.kind, explained.plan.generation, explained.plan.epoch
    );
    if explained.plan != explained.plan_in_force {
        let _ = write!(text, "; in force is plan {}", explained.plan_in_force.generation);
    }
    let by = if explained.is_subnet {
        "as its resolver tells"
    } else {
        "by the resolver's own address"
    };
    let _ = write!(text, "\nclient   {} {by}", explained.client);
    match &explained.place {
        Some(place) => {
            let source = if place.source == "operator" {
                "[[network]]"
            } else {
                "the database"
            };
            let _ = write!(text, ", at {}, {} by {source}", place.latitude, place.longitude);
        }
        None => text += ", at no known place",
    }
    let _ = write!(
        text,
        "\nanswers  {}: TTLs are those of a world that is {}",
        explained.code, explained.pace
    );
    if let Some(network) = &explained.holds_for {
        let _ = write!(text, "; this one holds for {network}");
    }
    for record in &explained.answer {
        let _ = write!(text, "\n         {record}");
    }
    if explained.edges.is_empty() {
        return Ok(text);
    }
    let _ = writeln!(
        text,
        "\n\nup to {} edges fit into an answer by their weights",
        explained.named_max
    );
    let mut shown = table(["EDGE", "DISTANCE", "WEIGHT", "NOW", "TURN"]);
    for edge in &explained.edges {
        let turn = match (edge.rank, edge.is_candidate, edge.is_named) {
            (Some(rank), ..) => rank.to_string(),
            (None, true, _) => "near, and other clients' turn".to_owned(),
            (None, false, true) => "others are nearer".to_owned(),
            (None, false, false) => "out by the plan".to_owned(),
        };
        shown.add_row([
            edge.edge.clone(),
            edge.distance_km
                .map_or_else(|| "unknown".to_owned(), |km| format!("{km} km")),
            edge.weight.to_string(),
            format!("{} %", edge.percent),
            turn,
        ]);
    }
    let _ = write!(text, "{}", plain(&shown));
    Ok(text)
}
