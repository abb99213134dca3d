//! The service listener: routes, and what is common to all of them.

mod body;
mod events;
mod health;
mod models;
mod request_id;
mod speech;
mod subtitles;
mod transcriptions;

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::{DefaultBodyLimit, MatchedPath, Request, State},
    http::{HeaderValue, Method, StatusCode, Uri},
    middleware::{self, Next},
    response::Response,
    routing::{get, post},
};

use crate::{error::ApiError, grpc, metrics::HttpLabels, realtime, stack::Stack, texts};

/// The routes for devices and edges.
pub(crate) fn router(stack: Arc<Stack>) -> Router {
    let pages = daemon::admin::router(Arc::clone(&stack.registry), stack.readiness.clone()).into_service::<Body>();
    Router::new()
        .route("/v1/audio/transcriptions", post(transcriptions::openai))
        .route("/v1/audio/speech", post(speech::openai))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{model}", get(models::retrieve))
        .route("/v1/realtime", get(realtime::upgrade))
        .route("/api/v1/voice/transcribe", post(transcriptions::plain))
        .route("/api/v1/voice/synthesize", post(speech::plain))
        .route(wire::COPY_PATH, post(realtime::copies::keep))
        .route("/health", get(health::health))
        .with_state(Arc::clone(&stack))
        // `/health` of the administrative pages knows nothing of components, so only the other two are taken over.
        .route_service("/metrics", pages.clone())
        .route_service("/ready", pages)
        .merge(grpc::router(Arc::clone(&stack)))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        // Bodies are read by `body`, which knows our own limit and answers in our own words.
        .layer(DefaultBodyLimit::disable())
        .layer(middleware::from_fn_with_state(Arc::clone(&stack), tell_load))
        .layer(middleware::from_fn_with_state(stack, count))
        .layer(middleware::from_fn(request_id::identify))
}

/// The administrative listener: the same health as the service listener, so that either may be probed.
pub(crate) fn admin_router(stack: Arc<Stack>) -> Router {
    let pages = daemon::admin::router(Arc::clone(&stack.registry), stack.readiness.clone()).into_service::<Body>();
    Router::new()
        .route("/health", get(health::health))
        .with_state(stack)
        .route_service("/metrics", pages.clone())
        .route_service("/ready", pages)
        .layer(middleware::from_fn(request_id::identify))
}

async fn unknown_path(method: Method, uri: Uri) -> ApiError {
    // The text comes from a stranger, so the echo is bounded.
    let path: String = uri.path().chars().take(100).collect();
    let message = texts::unknown_path(&method, &path);
    ApiError::new(StatusCode::NOT_FOUND, "unknown_url", message)
}

async fn wrong_method(method: Method) -> ApiError {
    let message = texts::wrong_method(&method);
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}

/// Adds the load of the stack to each answer for an edge that asks for it.
async fn tell_load(State(stack): State<Arc<Stack>>, request: Request, next: Next) -> Response {
    let asks = wire::wants_load(request.headers().get(wire::LOAD_HEADER).map(HeaderValue::as_bytes));
    let mut response = next.run(request).await;
    if asks && let Ok(load) = HeaderValue::try_from(stack.load().to_string()) {
        response.headers_mut().insert(wire::LOAD_HEADER, load);
    }
    response
}

async fn count(State(stack): State<Arc<Stack>>, request: Request, next: Next) -> Response {
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("unknown", MatchedPath::as_str)
        .to_owned();
    let response = next.run(request).await;
    stack
        .metrics
        .http_requests
        .get_or_create(&HttpLabels {
            route,
            code: response.status().as_u16(),
        })
        .inc();
    response
}
