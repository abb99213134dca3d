//! Reading request bodies: whole, bounded and in time.

use std::sync::Arc;

use axum::{
    body::Body,
    http::{HeaderMap, StatusCode, header},
};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use tokio::{sync::OwnedSemaphorePermit, time::timeout};

use crate::{error::ApiError, stack::Stack, texts};

/// Most clients send their whole body before they read the answer, and a reset loses an answer into a socket with unread data. So the
/// stack reads on and drops the bytes: of a body that is too large up to this many times the limit, and of a body for which there is no
/// place up to the limit.
const DISCARD_TIMES: usize = 8;

/// A whole body, and its share of `uploads_max`. The caller holds the share until the last byte of the answer is made.
pub(super) struct Upload {
    pub(super) bytes: Bytes,
    pub(super) place: OwnedSemaphorePermit,
}

pub(super) async fn read(stack: &Stack, headers: &HeaderMap, body: Body) -> Result<Upload, ApiError> {
    let limits = &stack.config.limits;
    let Ok(place) = Arc::clone(&stack.uploads).try_acquire_owned() else {
        // A client that sent `Expect` waits for our answer before it sends the body.
        if !headers.contains_key(header::EXPECT) {
            let _ = timeout(limits.body_max.0, discard(body, limits.body_bytes_max)).await;
        }
        let message = texts::TOO_MANY_UPLOADS;
        return Err(ApiError::new(
            StatusCode::TOO_MANY_REQUESTS,
            "rate_limit_exceeded",
            message,
        ));
    };
    let Ok(bytes) = timeout(limits.body_max.0, read_all(body, limits.body_bytes_max)).await else {
        let message = texts::body_too_slow(limits.body_max.0);
        return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", message));
    };
    Ok(Upload { bytes: bytes?, place })
}

/// Reads a body up to `bytes_max` and drops its bytes.
async fn discard(body: Body, bytes_max: usize) {
    let mut stream = body.into_data_stream();
    let mut length = 0usize;
    while let Some(Ok(piece)) = stream.next().await {
        length = length.saturating_add(piece.len());
        if length > bytes_max {
            return;
        }
    }
}

async fn read_all(body: Body, bytes_max: usize) -> Result<Bytes, ApiError> {
    let mut stream = body.into_data_stream();
    let mut read = BytesMut::new();
    let mut length = 0usize;
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(|_| ApiError::new(StatusCode::BAD_REQUEST, "incomplete_body", texts::BODY_CUT))?;
        length = length.saturating_add(piece.len());
        if length <= bytes_max {
            read.extend_from_slice(&piece);
        } else if length > bytes_max.saturating_mul(DISCARD_TIMES) {
            break;
        } else {
            read = BytesMut::new();
        }
    }
    if length > bytes_max {
        let message = texts::body_too_large(bytes_max);
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message));
    }
    Ok(read.freeze())
}
