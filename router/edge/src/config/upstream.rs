//! Section `[[upstream]]`: other services behind the same public URL.

use std::{net::SocketAddr, time::Duration};

use daemon::config::Problems;
use serde::Deserialize;
use topology::document::Span;

/// Servers behind a path of the public URL, as with nginx's `upstream` and `location`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// Requests whose path begins like this go to these servers unchanged. The longest path that fits wins.
    pub path: String,
    /// The edge asks the server with the fewest requests in flight.
    pub servers: Vec<SocketAddr>,
    /// The edge does not ask a server for `fail_timeout` after that many of its requests failed within `fail_timeout`. 0: the
    /// edge always asks.
    #[serde(default = "max_fails")]
    pub max_fails: u32,
    /// See `max_fails`.
    #[serde(default = "fail_timeout")]
    pub fail_timeout: Span,
}

fn max_fails() -> u32 {
    3
}

fn fail_timeout() -> Span {
    Span(Duration::from_secs(30))
}

/// The faults of all sections, each with its key.
pub(super) fn problems(sections: &[Upstream]) -> Problems {
    let mut problems = Problems::default();
    for (index, Upstream { path, servers, .. }) in sections.iter().enumerate() {
        let key = format!("upstream[{index}].path");
        if !path.starts_with('/') || path.contains(['?', '#']) {
            problems.add(key, format!("\"{path}\" is not a path; write one such as \"/skills/\""));
        } else if crate::request::route::is_ours(path) || path == "/" {
            let text = format!("\"{path}\" is served by the regions; write another path, such as \"/skills/\"");
            problems.add(key, text);
        } else if sections.iter().filter(|other| other.path == *path).count() > 1 {
            problems.add(key, format!("\"{path}\" is written twice; write each path once"));
        }
        if servers.is_empty() {
            let text = "the list is empty; write at least one server, such as [\"10.0.0.1:8080\"]";
            problems.add(format!("upstream[{index}].servers"), text);
        }
    }
    problems
}
