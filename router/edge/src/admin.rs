//! The administrative pages of an edge, beside those every process has: who is where, and why someone would go where.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json, Router,
    extract::{Query, State},
    routing::get,
};
use routing::Decision;
use serde::{Deserialize, Serialize};
use topology::{PlanNumber, RegionId};

use crate::Edge;

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
    #[serde(default)]
    session: String,
    #[serde(default)]
    user: String,
    affinity: Option<String>,
}

/// Where a session would go now, and what was known.
#[derive(Debug, Serialize)]
struct Explanation {
    plan: Option<PlanNumber>,
    /// The first decision, then what would follow if each region before failed.
    decisions: Vec<Decision>,
    rtt_ms: BTreeMap<RegionId, f64>,
    ejected: Vec<RegionId>,
    /// What routing calls near, in milliseconds: measured, but no less than light takes.
    nearness_ms: BTreeMap<RegionId, f64>,
}

async fn explain(State(edge): State<Arc<Edge>>, Query(question): Query<Question>) -> Json<Explanation> {
    let now = daemon::clock::now();
    let affinity = question.affinity.as_deref().and_then(|token| edge.affinity(token, now));
    let table = edge.table();
    let (rtt_ms, ejected) = edge.seen.summary(now);
    let nearness_ms = table.iter().flat_map(|table| {
        let nearness = |region: &RegionId| table.nearness(region, &rtt_ms);
        table
            .regions()
            .map(move |(region, _)| (region.clone(), nearness(region)))
    });
    Json(Explanation {
        plan: table.as_ref().map(|table| table.number()),
        decisions: edge.explain(&question.session, &question.user, affinity.as_ref(), now),
        nearness_ms: nearness_ms.collect(),
        rtt_ms: rtt_ms.clone(),
        ejected: ejected.into_iter().collect(),
    })
}
