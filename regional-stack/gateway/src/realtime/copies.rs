//! Copies of sessions whose device left: an edge hands the last checkpoint to another stack of the session's region, and to one of
//! another region. If the session's own stack or region is lost when the device returns, through any edge, the copy has its alarms and
//! timers.

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
use crate::{error::ApiError, ids::logged, stack::Stack, store::Memory, texts};

/// `POST` [`wire::COPY_PATH`] with a sealed state. Only a stack can have sealed it, so the request needs no other proof.
///
/// The stack keeps no session without an alarm or a timer, and drops an earlier copy of it, or a cancelled alarm would ring. A session
/// that is here has a newer memory, which stays.
pub(crate) async fn keep(State(stack): State<Arc<Stack>>, body: Body) -> Result<StatusCode, ApiError> {
    let refused = |why: String| ApiError::new(StatusCode::BAD_REQUEST, "invalid_value", why);
    let Some(key) = &stack.config.checkpoint_key else {
        return Err(refused(texts::NO_CHECKPOINT_KEY.to_owned()));
    };
    let read = timeout(stack.config.limits.body_max.0, to_bytes(body, wire::STATE_BYTES_MAX));
    let sealed = match read.await {
        Ok(Ok(sealed)) => sealed,
        Ok(Err(_)) => {
            let message = texts::checkpoint_too_large(wire::STATE_BYTES_MAX);
            return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message));
        }
        Err(_) => {
            let message = texts::COPY_TOO_SLOW;
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
            // The session's own stack has precedence, while it lives.
            may_go_on_elsewhere: true,
            ..memory
        };
        save(&stack, &name, memory).await;
    } else {
        forget(&stack, &name, memory.revision).await;
    }
    Ok(StatusCode::NO_CONTENT)
}
