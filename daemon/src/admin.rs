//! The administrative listener of a process: `/metrics` (Prometheus), `/health` (alive) and `/ready` (takes work).

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context as _;
use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use prometheus_client::{encoding::text::encode, registry::Registry};

use crate::Tasks;

/// Which parts of the process take work. A part that was never mentioned does not count; a process with no part that
/// was mentioned is not ready.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<&'static str, Part>>>);

/// Whether a part takes work, and why it does not, in words for people, where it says so.
#[derive(Debug, Clone, Default)]
struct Part {
    ready: bool,
    why: Option<String>,
}

impl Readiness {
    /// Says whether a part takes work.
    pub fn set(&self, part: &'static str, ready: bool) {
        self.insert(part, Part { ready, why: None });
    }

    /// Says whether a part takes work, and if it does not, why.
    pub fn set_unless(&self, part: &'static str, why_not: Option<String>) {
        self.insert(
            part,
            Part {
                ready: why_not.is_none(),
                why: why_not,
            },
        );
    }

    fn insert(&self, part: &'static str, state: Part) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(part, state);
    }

    /// Whether all parts take work.
    pub fn is_ready(&self) -> bool {
        let parts = self.parts();
        !parts.is_empty() && parts.values().all(|part| part.ready)
    }

    fn parts(&self) -> BTreeMap<&'static str, Part> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Starts the listener as a task and returns the address it bound.
pub async fn serve(
    tasks: &mut Tasks,
    listen: SocketAddr,
    registry: Registry,
    readiness: Readiness,
) -> anyhow::Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind(listen)
        .await
        .with_context(|| format!("cannot listen on {listen} for metrics and health"))?;
    let bound = listener.local_addr()?;
    let stop = tasks.stop_token();
    let service = router(Arc::new(registry), readiness);
    tasks.spawn("admin", async move {
        axum::serve(listener, service)
            .with_graceful_shutdown(async move { stop.cancelled().await })
            .await?;
        Ok(())
    });
    Ok(bound)
}

/// The same pages as a router, for a process that also serves them beside its own.
pub fn router(registry: Arc<Registry>, readiness: Readiness) -> Router {
    Router::new()
        .route("/metrics", get(metrics).with_state(registry))
        .route("/health", get(|| async { Json(serde_json::json!({ "status": "ok" })) }))
        .route("/ready", get(ready).with_state(readiness))
}

async fn metrics(State(registry): State<Arc<Registry>>) -> impl IntoResponse {
    let mut text = String::new();
    match encode(&mut text, &registry) {
        Ok(()) => {
            let kind = [(
                header::CONTENT_TYPE,
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
            )];
            (kind, text).into_response()
        }
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("metrics cannot be written: {error}"),
        )
            .into_response(),
    }
}

async fn ready(State(readiness): State<Readiness>) -> impl IntoResponse {
    let status = if readiness.is_ready() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let parts = readiness.parts();
    let ready: BTreeMap<_, _> = parts.iter().map(|(name, part)| (*name, part.ready)).collect();
    let mut page = serde_json::json!({ "ready": readiness.is_ready(), "parts": ready });
    let why: BTreeMap<_, _> = parts
        .iter()
        .filter_map(|(name, part)| Some((*name, part.why.as_ref()?)))
        .collect();
    if !why.is_empty() {
        page["why"] = serde_json::json!(why);
    }
    (status, Json(page))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_means_every_part_and_at_least_one() {
        let readiness = Readiness::default();
        assert!(!readiness.is_ready());
        readiness.set("plan", true);
        assert!(readiness.is_ready());
        readiness.set("listener", false);
        assert!(!readiness.is_ready());
        readiness.set_unless("listener", None);
        assert!(readiness.is_ready());
        readiness.set_unless("listener", Some("the port is taken".to_owned()));
        assert!(!readiness.is_ready());
    }
}
