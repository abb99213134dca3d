//! The administrative page of a name server, beside those every process has: the steps that lead to an answer.

use std::{
    net::IpAddr,
    sync::{Arc, OnceLock},
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Query, State},
    http::StatusCode,
    routing::get,
};
use serde::{Deserialize, Serialize};
use steering::{Answers, Client, Explained, Geography, Lookup, Record, Settings, Source, Steering, Type};
use tokio::sync::watch;
use topology::{NodeId, PlanNumber, Snapshot, snapshot::SNAPSHOT_BYTES_MAX};

use crate::{Responder, texts};

/// The parts of its process that the page needs.
#[derive(Debug)]
pub struct Pages {
    /// The name server.
    pub node: NodeId,
    /// Set with the first plan.
    pub responder: OnceLock<Arc<Responder>>,
    /// The places of clients.
    pub geography: watch::Receiver<Arc<Geography>>,
    /// The settings that change answers.
    pub settings: Settings,
}

/// The page.
pub fn router(pages: Arc<Pages>) -> Router {
    Router::new()
        .route("/explain", get(explain).post(explain_by))
        .layer(DefaultBodyLimit::max(SNAPSHOT_BYTES_MAX))
        .with_state(pages)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    name: String,
    #[serde(rename = "type")]
    kind: Option<String>,
    client: IpAddr,
    /// True if `client` is a resolver that tells no network of its own client.
    #[serde(default)]
    is_resolver: bool,
    generation: Option<u64>,
}

/// The steps that lead to an answer.
#[derive(Debug, Serialize)]
struct Explanation {
    node: NodeId,
    plan: PlanNumber,
    plan_in_force: PlanNumber,
    pace: &'static str,
    name: String,
    #[serde(rename = "type")]
    kind: String,
    /// The network by which the client is told apart.
    client: String,
    is_subnet: bool,
    place: Option<Place>,
    edges: Vec<Edge>,
    named_max: usize,
    holds_for: Option<String>,
    code: &'static str,
    answer: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Place {
    latitude: f64,
    longitude: f64,
    source: &'static str,
}

#[derive(Debug, Serialize)]
struct Edge {
    edge: String,
    is_named: bool,
    distance_km: Option<u64>,
    weight: u32,
    percent: u32,
    is_candidate: bool,
    rank: Option<usize>,
}

type Refused = (StatusCode, String);

/// Explains by the plan in force.
async fn explain(
    State(pages): State<Arc<Pages>>,
    Query(question): Query<Question>,
) -> Result<Json<Explanation>, Refused> {
    let answers = in_force(&pages)?;
    let have = answers.number().generation;
    match question.generation {
        Some(asked) if asked != have => Err((StatusCode::NOT_FOUND, texts::plan_not_held(&pages.node, have, asked))),
        _ => answer(&pages, &question, &answers),
    }
}

/// Explains by a plan in the request. The name server stores nothing of that plan.
async fn explain_by(
    State(pages): State<Arc<Pages>>,
    Query(question): Query<Question>,
    document: Bytes,
) -> Result<Json<Explanation>, Refused> {
    let refuse = |error: &dyn std::fmt::Display| (StatusCode::BAD_REQUEST, texts::not_a_plan(error));
    let snapshot: Snapshot = serde_json::from_slice(&document).map_err(|error| refuse(&error))?;
    snapshot.validate().map_err(|error| refuse(&error))?;
    let mut steering = Steering::new(pages.geography.borrow().clone(), pages.settings.clone());
    let answers = steering.compile(&snapshot, daemon::clock::now());
    answer(&pages, &question, &answers)
}

fn in_force(pages: &Pages) -> Result<Arc<Answers>, Refused> {
    let responder = pages.responder.get();
    let none = || (StatusCode::SERVICE_UNAVAILABLE, texts::NO_PLAN_YET.to_owned());
    responder.map(|responder| responder.answers()).ok_or_else(none)
}

fn answer(pages: &Pages, question: &Question, answers: &Answers) -> Result<Json<Explanation>, Refused> {
    let kind = question.kind.as_deref().unwrap_or("A");
    let kind = Type::of_name(kind).ok_or_else(|| (StatusCode::BAD_REQUEST, texts::not_a_type(kind)))?;
    let client = if question.is_resolver {
        Client::behind(question.client)
    } else {
        Client::in_network_of(question.client)
    };
    let explained = answers.explain(&question.name, kind, &client).map_err(|_| {
        (
            StatusCode::BAD_REQUEST,
            texts::not_in_zone(&question.name, answers.zone()),
        )
    })?;
    Ok(Json(explanation(pages, question, kind, answers, explained)?))
}

fn explanation(
    pages: &Pages,
    question: &Question,
    kind: Type,
    answers: &Answers,
    explained: Explained,
) -> Result<Explanation, Refused> {
    let line = |record: &Record| {
        format!(
            "{}. {} {} {}",
            record.name,
            record.ttl_s,
            record.data.kind(),
            record.data
        )
    };
    let (code, answer) = match &explained.answer.lookup {
        Lookup::Found { records, .. } => ("NOERROR", records.iter().map(line).collect()),
        Lookup::NoData(soa) => ("NODATA", vec![line(soa)]),
        Lookup::NoSuchName(soa) => ("NXDOMAIN", vec![line(soa)]),
    };
    let edges = explained.edges.into_iter().map(|edge| Edge {
        edge: edge.id.to_string(),
        is_named: edge.is_named,
        distance_km: edge.distance_km.map(|km| km.round() as u64),
        weight: edge.weight,
        percent: edge.percent,
        is_candidate: edge.is_candidate,
        rank: edge.rank,
    });
    Ok(Explanation {
        node: pages.node.clone(),
        plan: answers.number(),
        plan_in_force: in_force(pages)?.number(),
        pace: answers.pace().as_str(),
        name: question.name.clone(),
        kind: kind.to_string(),
        client: explained.client.to_string(),
        is_subnet: explained.is_subnet,
        place: explained.place.map(|(at, source)| Place {
            latitude: at.latitude,
            longitude: at.longitude,
            source: match source {
                Source::Operator => "operator",
                Source::Database => "database",
            },
        }),
        edges: edges.collect(),
        named_max: explained.named_max,
        holds_for: explained.holds_for.map(|network| network.to_string()),
        code,
        answer,
    })
}
