//! The administrative pages of an edge, beside those every process has: the region of each session, and the reasons for a
//! choice.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Query, State},
    http::StatusCode,
    routing::get,
};
use bytes::Bytes;
use routing::{Decision, Table};
use serde::{Deserialize, Serialize};
use topology::{EdgeId, PlanNumber, RegionId, Snapshot, snapshot::SNAPSHOT_BYTES_MAX};

use crate::{Edge, edge::session_key, stacks::fleet_view::Summary, texts};

pub fn router(edge: Arc<Edge>) -> Router {
    Router::new()
        .route("/sessions", get(sessions))
        .route("/explain", get(explain).post(explain_by))
        .layer(DefaultBodyLimit::max(SNAPSHOT_BYTES_MAX))
        .with_state(edge)
}

/// Live sessions of one region.
#[derive(Debug, Serialize)]
struct RegionSessions {
    sessions: usize,
    oldest_s: u64,
    /// Their number at each stack.
    stacks: BTreeMap<SocketAddr, usize>,
}

async fn sessions(State(edge): State<Arc<Edge>>) -> Json<BTreeMap<RegionId, RegionSessions>> {
    let now = daemon::clock::now();
    let mut at_stacks = edge.sessions.by_stack();
    let regions = edge
        .sessions
        .by_region()
        .into_iter()
        .map(|(region, (sessions, oldest))| {
            let oldest_s = now.since(oldest).as_secs();
            let stacks = at_stacks.remove(&region).unwrap_or_default();
            let sessions = RegionSessions {
                sessions,
                oldest_s,
                stacks,
            };
            (region, sessions)
        });
    Json(regions.collect())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    session: Option<String>,
    /// The user, who decides the version during a rollout.
    user: Option<String>,
    /// The address of the device, by which a session without a name keeps its region.
    client: Option<IpAddr>,
    affinity: Option<String>,
    generation: Option<u64>,
}

/// The stack that a session would get now, and the facts behind the choice.
#[derive(Debug, Serialize)]
struct Explanation {
    edge: EdgeId,
    /// The key by which the session keeps its region.
    session_key: String,
    /// The plan of the question, and the plan in force.
    plan: PlanNumber,
    plan_in_force: PlanNumber,
    /// The first decision, then the decisions that would follow if each stack before failed.
    decisions: Vec<Decision>,
    /// The distance for routing, in milliseconds: the measured one, but at least the time of light.
    nearness_ms: BTreeMap<RegionId, f64>,
    #[serde(flatten)]
    seen: Summary,
}

type Refused = (StatusCode, String);

/// Explains by the plan in force, or by the one before.
async fn explain(
    State(edge): State<Arc<Edge>>,
    Query(question): Query<Question>,
) -> Result<Json<Explanation>, Refused> {
    let table = match question.generation {
        None => in_force(&edge)?,
        Some(generation) => edge
            .plans
            .of_generation(generation)
            .ok_or_else(|| (StatusCode::NOT_FOUND, not_held(&edge, generation)))?,
    };
    answer(&edge, &question, &table)
}

/// Explains by a plan in the request, with this edge's present view. The edge stores nothing of that plan.
async fn explain_by(
    State(edge): State<Arc<Edge>>,
    Query(question): Query<Question>,
    document: Bytes,
) -> Result<Json<Explanation>, Refused> {
    let refuse = |error: &dyn std::fmt::Display| (StatusCode::BAD_REQUEST, texts::not_a_plan(error));
    let snapshot: Snapshot = serde_json::from_slice(&document).map_err(|error| refuse(&error))?;
    snapshot.validate().map_err(|error| refuse(&error))?;
    answer(&edge, &question, &Table::compile(&snapshot, &edge.id))
}

fn in_force(edge: &Edge) -> Result<Arc<Table>, Refused> {
    let none = || (StatusCode::SERVICE_UNAVAILABLE, texts::NO_PLAN_YET.to_owned());
    edge.table().ok_or_else(none)
}

fn answer(edge: &Edge, question: &Question, table: &Table) -> Result<Json<Explanation>, Refused> {
    let now = daemon::clock::now();
    let key = match (question.session.as_deref(), question.client) {
        (None, None) => {
            return Err((StatusCode::BAD_REQUEST, texts::EXPLAIN_WHAT.to_owned()));
        }
        (named, client) => session_key(named, client.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))),
    };
    let client = question.client.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let user = routing::user::name(question.user.as_deref(), None, client);
    let affinity = question
        .affinity
        .as_deref()
        .and_then(|token| edge.affinity_tokens.verify(token, now));
    let seen = edge.fleet.summary(table, now);
    let regions = table.regions().map(|(region, _)| region);
    Ok(Json(Explanation {
        edge: edge.id.clone(),
        plan: table.number(),
        plan_in_force: in_force(edge)?.number(),
        decisions: edge.explain(table, &key, &user, affinity.as_ref(), now),
        nearness_ms: regions
            .map(|region| (region.clone(), table.nearness(region, &seen.rtt_ms)))
            .collect(),
        session_key: key,
        seen,
    }))
}

fn not_held(edge: &Edge, generation: u64) -> String {
    let held = edge.plans.all().map(|table| table.number().generation.to_string());
    let held = held.collect::<Vec<_>>().join(" and ");
    texts::plan_not_held(&edge.id, &held, generation)
}
