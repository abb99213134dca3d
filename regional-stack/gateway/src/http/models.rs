//! `GET /v1/models`: the names of the models of this stack. It accepts every other name too, so that unmodified clients work.

use axum::{Json, extract::Path, http::StatusCode};
use serde_json::{Value, json};

use crate::{error::ApiError, texts};

const MODELS: [&str; 3] = ["meridian-asr", "meridian-tts", "meridian-realtime"];

pub(super) async fn list() -> Json<Value> {
    Json(json!({ "object": "list", "data": MODELS.map(model) }))
}

pub(super) async fn retrieve(Path(name): Path<String>) -> Result<Json<Value>, ApiError> {
    match MODELS.iter().find(|known| **known == name) {
        Some(known) => Ok(Json(model(known))),
        None => {
            let message = texts::unknown_model(&MODELS);
            Err(ApiError {
                param: Some("model".into()),
                ..ApiError::new(StatusCode::NOT_FOUND, "model_not_found", message)
            })
        }
    }
}

fn model(name: &str) -> Value {
    json!({ "id": name, "object": "model", "created": 0, "owned_by": "meridian" })
}
