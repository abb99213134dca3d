//! `GET /health`.

use std::sync::Arc;

use axum::{Json, extract::State, http::StatusCode};
use serde_json::Value;

use crate::{health, stack::Stack};

/// 200 when every component works and the stack takes work, else 503.
pub(super) async fn health(State(stack): State<Arc<Stack>>) -> (StatusCode, Json<Value>) {
    let health = health::check(&stack).await;
    let code = match health.is_ok() {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    (code, Json(health.report))
}
