//! Copies of sessions whose device left: an edge hands the last checkpoint to another stack of the session's region, and to one of
//! another region. Should its own stack or region be gone when the device returns, through whichever edge, its alarms and timers
//! are there.

use std::sync::Arc;

use axum::{
    body::{Body, to_bytes},
    extract::State,
    http::StatusCode,
};
use tokio::time::timeout;

use super::{
    connection::{forget, save},
    session::Session,
};
use crate::{error::ApiError, ids::logged, stack::Stack, store::Memory};

/// `POST` [`wire::COPY_PATH`] with a sealed state. Only a stack can have sealed it, so the request needs no other proof.
///
/// Sessions without an alarm or a timer are not kept. An earlier copy of such a session is dropped, or what was cancelled
/// would ring. What this stack itself remembers of the session is newer when the session is here, and stays.
pub(crate) async fn keep(State(stack): State<Arc<Stack>>, body: Body) -> Result<StatusCode, ApiError> {
    let refused = |why: String| ApiError::new(StatusCode::BAD_REQUEST, "invalid_value", why);
    let Some(key) = &stack.config.checkpoint_key else {
        return Err(refused(
            "this stack has no checkpoint_key and takes no sessions of others".to_owned(),
        ));
    };
    let read = timeout(stack.config.limits.body_max.0, to_bytes(body, wire::STATE_BYTES_MAX));
    let sealed = match read.await {
        Ok(Ok(sealed)) => sealed,
        Ok(Err(_)) => {
            let message = format!("send one checkpoint of at most {} bytes", wire::STATE_BYTES_MAX);
            return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message));
        }
        Err(_) => {
            let message = "the request body did not arrive in time; send it faster";
            return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", message));
        }
    };
    let state = key
        .open(&sealed, daemon::clock::now())
        .map_err(|error| refused(error.to_string()))?;
    let (name, memory) = Session::copied_in(&stack, state).map_err(|error| refused(error.to_string()))?;
    if memory.owes_something() {
        tracing::debug!(session = logged(&name), "keeps a copy of a session");
        let memory = Memory {
            // Its own stack speaks for it, if it lives.
            may_go_on_elsewhere: true,
            ..memory
        };
        save(&stack, &name, memory).await;
    } else {
        forget(&stack, &name, memory.revision).await;
    }
    Ok(StatusCode::NO_CONTENT)
}
