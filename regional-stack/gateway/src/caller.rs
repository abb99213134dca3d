//! The kind of caller: a device, a vantage that probes, or an edge that sends a second copy.

use axum::http::{HeaderMap, header};

use crate::queue::Class;

/// The class of a request's caller; `otherwise` for a caller that is neither a vantage that probes nor an edge with a second copy.
pub(crate) fn class_of(headers: &HeaderMap, otherwise: Class) -> Class {
    let is_probe = headers
        .get(header::USER_AGENT)
        .is_some_and(|agent| agent == wire::PROBE_AGENT);
    if headers.contains_key(wire::COPY_HEADER) {
        Class::Hedge
    } else if is_probe && !headers.contains_key("meridian-edge") {
        // Vantages ask stacks directly. A request through an edge comes from a device, even if it calls itself a vantage.
        Class::Probe
    } else {
        otherwise
    }
}
