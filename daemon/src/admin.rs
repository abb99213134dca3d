//! The administrative listener of a process: `/metrics` (Prometheus), `/health` (the process is alive) and `/ready` (it
//! takes work).

use std::{collections::BTreeMap, fmt::Write as _, net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use parking_lot::Mutex;
use prometheus_client::{encoding::text::encode, registry::Registry};

use crate::{Tasks, texts};

/// The readiness of the process, by part. A process is ready when every part that reported is, or can be spared. Parts that
/// have not reported do not count; a process without any report is not ready.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<&'static str, Part>>>);

/// Whether a part takes work, and optionally the reason why it does not, for people.
#[derive(Debug, Clone, Default)]
struct Part {
    ready: bool,
    /// The process takes work without this part.
    is_spared: bool,
    why: Option<String>,
}

impl Readiness {
    /// Records whether a part takes work.
    pub fn set(&self, part: &'static str, ready: bool) {
        let state = Part {
            ready,
            ..Part::default()
        };
        self.insert(part, state);
    }

    /// Records that a part takes work, or the reason why it does not.
    pub fn set_unless(&self, part: &'static str, why_not: Option<String>) {
        self.insert(
            part,
            Part {
                ready: why_not.is_none(),
                is_spared: false,
                why: why_not,
            },
        );
    }

    /// Records the reason why a part takes no work, in a process that takes other work all the same: `/ready` shows it and
    /// still answers 200.
    pub fn spare(&self, part: &'static str, why_not: String) {
        self.insert(
            part,
            Part {
                ready: false,
                is_spared: true,
                why: Some(why_not),
            },
        );
    }

    fn insert(&self, part: &'static str, state: Part) {
        self.0.lock().insert(part, state);
    }

    /// Whether at least one part has reported, and every reported part takes work or can be spared.
    pub fn is_ready(&self) -> bool {
        let parts = self.parts();
        !parts.is_empty() && parts.values().all(|part| part.ready || part.is_spared)
    }

    fn parts(&self) -> BTreeMap<&'static str, Part> {
        self.0.lock().clone()
    }
}

/// Starts the listener as a task. Returns the bound address.
pub async fn serve(
    tasks: &mut Tasks,
    listen: SocketAddr,
    registry: Registry,
    readiness: Readiness,
) -> anyhow::Result<SocketAddr> {
    serve_with(tasks, listen, registry, readiness, Router::new()).await
}

/// Starts the listener with further pages of the process.
pub async fn serve_with(
    tasks: &mut Tasks,
    listen: SocketAddr,
    registry: Registry,
    readiness: Readiness,
    pages: Router,
) -> anyhow::Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind(listen)
        .await
        .with_context(|| texts::cannot_listen_for_metrics(listen))?;
    let bound = listener.local_addr()?;
    let stop = tasks.stop_token();
    let service = router(Arc::new(registry), readiness).merge(pages);
    tasks.spawn("admin", async move {
        axum::serve(listener, service)
            .with_graceful_shutdown(async move { stop.cancelled().await })
            .await?;
        Ok(())
    });
    Ok(bound)
}

/// The same pages as a router, for a process that also serves them on another listener.
pub fn router(registry: Arc<Registry>, readiness: Readiness) -> Router {
    Router::new()
        .route("/metrics", get(metrics).with_state(registry))
        .route("/health", get(|| async { Json(serde_json::json!({ "status": "ok" })) }))
        .route("/ready", get(ready).with_state(readiness))
}

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const CLASSIC: &str = "text/plain; version=0.0.4; charset=utf-8";

async fn metrics(State(registry): State<Arc<Registry>>, headers: HeaderMap) -> impl IntoResponse {
    let mut text = String::new();
    match encode(&mut text, &registry) {
        Ok(()) => {
            let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|it| it.to_str().ok());
            let (kind, text) = if accepted
                .into_iter()
                .any(|it| it.contains("application/openmetrics-text"))
            {
                (OPENMETRICS, text)
            } else {
                (CLASSIC, classic(&text))
            };
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("metrics cannot be written: {error}"),
        )
            .into_response(),
    }
}

/// The metrics in Prometheus' older text format, for clients that do not ask for OpenMetrics. In that format the
/// description of a counter carries the name of its samples, and some types do not exist.
fn classic(openmetrics: &str) -> String {
    let described = |line: &str, keyword: &str| {
        let rest = line.strip_prefix("# ")?.strip_prefix(keyword)?.strip_prefix(' ')?;
        let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        Some((name.to_owned(), rest.to_owned()))
    };
    let types: BTreeMap<String, String> = openmetrics.lines().filter_map(|line| described(line, "TYPE")).collect();
    let sample = |name: &str| match types.get(name).map(String::as_str) {
        Some("counter") => format!("{name}_total"),
        Some("info") => format!("{name}_info"),
        _ => name.to_owned(),
    };
    let mut text = String::with_capacity(openmetrics.len() + 1024);
    for line in openmetrics.lines() {
        if line == "# EOF" || line.starts_with("# UNIT ") {
            continue;
        }
        if let Some((name, help)) = described(line, "HELP") {
            let _ = writeln!(text, "# HELP {} {help}", sample(&name));
        } else if let Some((name, kind)) = described(line, "TYPE") {
            let kind = match kind.as_str() {
                kind @ ("counter" | "gauge" | "histogram" | "summary") => kind,
                "info" | "stateset" => "gauge",
                _ => "untyped",
            };
            let _ = writeln!(text, "# TYPE {} {kind}", sample(&name));
        } else {
            let _ = writeln!(text, "{}", without_exemplar(line));
        }
    }
    text
}

/// A sample without its exemplar, which follows the value after " # ". Inside quotes, " # " is part of a label.
fn without_exemplar(line: &str) -> &str {
    let (mut is_quoted, mut is_escaped) = (false, false);
    for (at, byte) in line.bytes().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            b'#' if !is_quoted => return line[..at].trim_end(),
            _ => {}
        }
    }
    line
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
    fn the_older_format_describes_counters_by_the_name_of_their_samples() {
        let counter = prometheus_client::metrics::counter::Counter::<u64>::default();
        let gauge = prometheus_client::metrics::gauge::Gauge::<i64>::default();
        let mut registry = Registry::default();
        registry.register("calls", "calls that came", counter);
        registry.register("open", "calls that go on", gauge);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        assert_eq!(
            classic(&text),
            "# HELP calls_total calls that came.\n# TYPE calls_total counter\ncalls_total 0\n\
             # HELP open calls that go on.\n# TYPE open gauge\nopen 0\n"
        );
        let with = "# TYPE h histogram\nh_bucket{le=\"1.0\",path=\"a # b\"} 3 # {trace=\"x\"} 0.5\n# EOF\n";
        assert_eq!(
            classic(with),
            "# TYPE h histogram\nh_bucket{le=\"1.0\",path=\"a # b\"} 3\n"
        );
    }

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

    #[tokio::test]
    async fn a_part_that_can_be_spared_is_shown_and_the_process_is_ready() {
        let readiness = Readiness::default();
        readiness.set("plan", true);
        readiness.spare("decisions", "nobody leads".to_owned());
        let answer = ready(State(readiness.clone())).await.into_response();
        assert_eq!(answer.status(), StatusCode::OK);
        let page = axum::body::to_bytes(answer.into_body(), 1 << 10).await.unwrap();
        let page: serde_json::Value = serde_json::from_slice(&page).unwrap();
        let shown = serde_json::json!({
            "ready": true, "parts": { "plan": true, "decisions": false }, "why": { "decisions": "nobody leads" },
        });
        assert_eq!(page, shown);
        readiness.set("plan", false);
        assert!(!readiness.is_ready());
    }
}
