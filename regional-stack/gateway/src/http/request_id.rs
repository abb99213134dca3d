//! `x-request-id`: the name by which people find a request in the logs of every process that it passed.

use axum::{
    extract::Request,
    http::{HeaderName, HeaderValue},
    middleware::Next,
    response::Response,
};
use tracing::Instrument as _;
use uuid::Uuid;

const HEADER: HeaderName = HeaderName::from_static("x-request-id");
/// Longest name that a request may bring: every line of the log repeats it.
const LENGTH_MAX: usize = 128;

/// Names a request in its answer and in every line that is logged about it: by the name that it brings, or else by a new one.
pub(super) async fn identify(request: Request, next: Next) -> Response {
    let brought = request.headers().get(HEADER).filter(|id| is_name(id));
    let id = brought.cloned().unwrap_or_else(new);
    // An edge that recognises devices says whose this one is.
    let tenant = request
        .headers()
        .get(wire::TENANT_HEADER)
        .filter(|tenant| is_name(tenant));
    let tenant = tenant.and_then(|tenant| tenant.to_str().ok());
    let span = tracing::info_span!("request", request_id = %id.to_str().unwrap_or_default(), tenant);
    let mut response = next.run(request).instrument(span).await;
    response.headers_mut().insert(HEADER, id);
    response
}

/// Whether a name has only letters, digits and signs that neither a log nor a shell gives a meaning.
fn is_name(id: &HeaderValue) -> bool {
    let bytes = id.as_bytes();
    (1..=LENGTH_MAX).contains(&bytes.len())
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.:/+=@".contains(byte))
}

fn new() -> HeaderValue {
    let id = format!("req_{}", Uuid::new_v4().simple());
    HeaderValue::try_from(id).expect("hex digits are good in a header")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_are_taken_over() {
        let long = "a".repeat(LENGTH_MAX);
        for good in [
            "req_0123abcd",
            "7e1c-4a",
            "Root=1-5759e988-bd862e3fe1be46a994272793",
            &long,
        ] {
            assert!(is_name(&HeaderValue::from_str(good).unwrap()), "{good}");
        }
        let too_long = "a".repeat(LENGTH_MAX + 1);
        for bad in ["", "a b", "a\tb", "<script>", "a\"b", "$(reboot)", &too_long] {
            assert!(!is_name(&HeaderValue::from_str(bad).unwrap()), "{bad}");
        }
        assert!(is_name(&new()) && new() != new());
    }
}
