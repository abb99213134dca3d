//! The administrative pages of an edge, beside those every process has: who is where, and why someone would go where.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use axum::{
    Json, Router,
    extract::{Query, State},
    http::StatusCode,
    routing::get,
};
use routing::Decision;
use serde::{Deserialize, Serialize};
use topology::{EdgeId, PlanNumber, RegionId};

use crate::{Edge, edge::session_key, seen::Summary};

/// `/sessions` and `/explain`.
pub fn router(edge: Arc<Edge>) -> Router {
    Router::new()
        .route("/sessions", get(sessions))
        .route("/explain", get(explain))
        .with_state(edge)
}

/// Live sessions of one region.
#[derive(Debug, Serialize)]
struct RegionSessions {
    sessions: usize,
    oldest_s: u64,
}

async fn sessions(State(edge): State<Arc<Edge>>) -> Json<BTreeMap<RegionId, RegionSessions>> {
    let now = daemon::clock::now();
    let regions = edge
        .sessions
        .by_region()
        .into_iter()
        .map(|(region, (sessions, oldest))| {
            let oldest_s = now.since(oldest).as_secs();
            (region, RegionSessions { sessions, oldest_s })
        });
    Json(regions.collect())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    session: Option<String>,
    /// Whose it is, when a version is rolled out.
    #[serde(default)]
    user: String,
    /// Where the device comes from: its place when the session has no name.
    client: Option<IpAddr>,
    affinity: Option<String>,
    generation: Option<u64>,
}

/// Where a session would go now, and what was known.
#[derive(Debug, Serialize)]
struct Explanation {
    edge: EdgeId,
    /// What keeps the session's place.
    session_key: String,
    /// The plan that was asked about, and the one in force.
    plan: PlanNumber,
    plan_in_force: PlanNumber,
    /// The first decision, then what would follow if each before failed.
    decisions: Vec<Decision>,
    /// What routing calls near, in milliseconds: measured, but no less than light takes.
    nearness_ms: BTreeMap<RegionId, f64>,
    #[serde(flatten)]
    seen: Summary,
}

async fn explain(
    State(edge): State<Arc<Edge>>,
    Query(question): Query<Question>,
) -> Result<Json<Explanation>, (StatusCode, String)> {
    let now = daemon::clock::now();
    let Some(in_force) = edge.table() else {
        return Err((StatusCode::SERVICE_UNAVAILABLE, "this edge has no plan yet".to_owned()));
    };
    let table = match question.generation {
        None => in_force.clone(),
        Some(generation) => edge
            .table_of(generation)
            .ok_or_else(|| (StatusCode::NOT_FOUND, not_held(&edge, generation)))?,
    };
    let key = match (&question.session, question.client) {
        (None, None) => {
            let text = "name a session or a client, as in /explain?client=192.0.2.7";
            return Err((StatusCode::BAD_REQUEST, text.to_owned()));
        }
        (named, client) => session_key(named.as_deref(), client.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))),
    };
    let affinity = question.affinity.as_deref().and_then(|token| edge.affinity(token, now));
    let seen = edge.seen.summary(&table, now);
    let regions = table.regions().map(|(region, _)| region);
    Ok(Json(Explanation {
        edge: edge.id.clone(),
        plan: table.number(),
        plan_in_force: in_force.number(),
        decisions: edge.explain(&table, &key, &question.user, affinity.as_ref(), now),
        nearness_ms: regions
            .map(|region| (region.clone(), table.nearness(region, &seen.rtt_ms)))
            .collect(),
        session_key: key,
        seen,
    }))
}

fn not_held(edge: &Edge, generation: u64) -> String {
    let held = edge.tables().map(|table| table.number().generation.to_string());
    let held = held.collect::<Vec<_>>().join(" and ");
    format!(
        "{} holds plan {held}, not {generation}: an edge keeps the plan in force and the one before",
        edge.id
    )
}
