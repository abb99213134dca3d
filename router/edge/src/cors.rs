//! The pages that may call this edge from a browser: Cross-Origin Resource Sharing, as browsers apply it (WHATWG Fetch §3.2).
//!
//! A browser asks before it lets the page of another origin send anything unusual (a *preflight*), and shows an answer to the
//! page only when the answer names the page's origin. The edge decides both for the paths of regions, so a preflight costs no
//! region anything. A page gets no cookies sent along: devices prove who they are with `Authorization`.

use std::{fmt::Write as _, time::Duration};

use daemon::config::Problems;
use serde::Deserialize;
use topology::document::Span;

/// Most headers of one preflight that the edge reads; pages of the OpenAI SDK ask for about ten.
const HEADERS_MAX: usize = 64;

/// Section `[cors]`: the pages that may call.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cors {
    /// Origins of the pages, as in `https://app.example`; `*` allows every page, and an empty list none.
    pub origins: Vec<String>,
    /// Methods that pages may use beside GET, HEAD and POST, which need no permission.
    pub methods: Vec<String>,
    /// Headers that pages may send; a name that ends with `*` allows all names with that beginning.
    pub headers: Vec<String>,
    /// Headers of answers that pages may read.
    pub exposed: Vec<String>,
    /// The time for which browsers need not ask again. They have limits of their own.
    pub max_age: Span,
}

impl Default for Cors {
    fn default() -> Self {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Self {
            origins: Vec::new(),
            methods: texts(&["GET", "POST"]),
            // The headers that SDKs of the OpenAI API send from a browser, and those that devices may send to this edge.
            headers: texts(&[
                "authorization",
                "content-type",
                "openai-*",
                "x-stainless-*",
                "x-request-id",
                "meridian-*",
            ]),
            exposed: texts(&[
                "x-request-id",
                "retry-after",
                "openai-processing-ms",
                "x-ratelimit-limit-requests",
                "x-ratelimit-remaining-requests",
                "x-ratelimit-reset-requests",
                "x-ratelimit-limit-tokens",
                "x-ratelimit-remaining-tokens",
                "x-ratelimit-reset-tokens",
                "meridian-region",
                "meridian-edge",
                "meridian-affinity",
            ]),
            // Chromium's limit is two hours; a change of this list should not take that long to arrive.
            max_age: Span(Duration::from_secs(600)),
        }
    }
}

/// The headers of an answer that permits a preflight.
pub(crate) type PreflightHeaders = Vec<(&'static str, String)>;

/// The permission that a page asks for.
#[derive(Debug, Clone, Copy)]
pub struct Preflight<'h> {
    /// The origin of the page.
    pub origin: &'h str,
    /// Names of the headers that it would send, with commas between.
    pub headers: &'h str,
}

impl Cors {
    /// Whether any page may call.
    pub fn is_on(&self) -> bool {
        !self.origins.is_empty()
    }

    /// The header of an answer that a page of this origin may read.
    pub fn allowed(&self, origin: &str) -> Option<Box<str>> {
        let named = |known: &String| known == "*" || known == origin;
        // An origin of the list is a header value; for one that only `*` allows, the answer repeats `*`.
        let any = self.origins.iter().any(|known| known == "*");
        let found = self.origins.iter().any(named);
        found.then(|| if any { "*".into() } else { origin.into() })
    }

    /// The headers of an answer that permits a preflight, besides those of every answer; `None` when pages of that origin may not
    /// call.
    ///
    /// The answer leaves out headers that the page may not send, so that the browser can name it to the page's developer.
    pub fn answer(&self, asked: Preflight<'_>) -> Option<Vec<(&'static str, String)>> {
        self.allowed(asked.origin)?;
        let names = asked.headers.split(',').map(str::trim).take(HEADERS_MAX);
        let mut headers = String::new();
        for name in names.filter(|name| self.may_send(name)) {
            let comma = if headers.is_empty() { "" } else { ", " };
            let _ = write!(headers, "{comma}{}", name.to_ascii_lowercase());
        }
        let mut lines = vec![
            ("Access-Control-Allow-Methods", self.methods.join(", ")),
            ("Access-Control-Max-Age", self.max_age.0.as_secs().to_string()),
        ];
        if !headers.is_empty() {
            lines.push(("Access-Control-Allow-Headers", headers));
        }
        Some(lines)
    }

    fn may_send(&self, name: &str) -> bool {
        is_token(name)
            && self.headers.iter().any(|known| match known.strip_suffix('*') {
                Some(beginning) => name
                    .get(..beginning.len())
                    .is_some_and(|begins| begins.eq_ignore_ascii_case(beginning)),
                None => name.eq_ignore_ascii_case(known),
            })
    }

    /// The faults, each with its key.
    pub fn problems(&self) -> Problems {
        let mut problems = Problems::default();
        for origin in &self.origins {
            if origin != "*" && !is_origin(origin) {
                let text = format!(
                    "\"{origin}\" is not an origin; write scheme://host or scheme://host:port in lower case and without a \
                     path, such as \"https://app.example\""
                );
                problems.add("cors.origins", text);
            }
        }
        for (key, names) in [
            ("methods", &self.methods),
            ("headers", &self.headers),
            ("exposed", &self.exposed),
        ] {
            for name in names {
                let text = match key {
                    "headers" => name.strip_suffix('*').unwrap_or(name),
                    _ => name,
                };
                // A bare `*` would let pages send headers of the hop, even `Host`, as far as browsers allow it.
                if !is_token(text) || text.contains('*') {
                    let text = format!("\"{name}\" is not a name; write one such as \"authorization\"");
                    problems.add(format!("cors.{key}"), text);
                }
            }
        }
        problems
    }
}

/// A name in a header (RFC 9110 §5.6.2).
fn is_token(text: &str) -> bool {
    let is_of_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.len() <= 128 && text.bytes().all(is_of_token)
}

/// An origin as browsers write it (RFC 6454 §6.2).
fn is_origin(text: &str) -> bool {
    let Some((scheme, host)) = text.split_once("://") else {
        return false;
    };
    let is_scheme = !scheme.is_empty()
        && scheme
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || b"+-.".contains(&byte));
    let has_capitals = text.bytes().any(|byte| byte.is_ascii_uppercase());
    is_scheme && !has_capitals && crate::http1::request::is_host(host.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(origins: &[&str]) -> Cors {
        Cors {
            origins: origins.iter().map(|origin| (*origin).to_owned()).collect(),
            ..Cors::default()
        }
    }

    fn line(lines: &[(&'static str, String)], name: &str) -> Option<String> {
        let found = lines.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| value.clone())
    }

    #[test]
    fn a_page_is_let_in_by_its_whole_origin() {
        let cors = of(&["https://app.example", "http://localhost:3000"]);
        assert!(cors.is_on() && cors.problems().is_empty());
        for origin in ["https://app.example", "http://localhost:3000"] {
            assert_eq!(cors.allowed(origin).as_deref(), Some(origin));
        }
        for origin in [
            "http://app.example",
            "https://app.example:8443",
            "https://app.example.evil.example",
            "https://evil.example/https://app.example",
            "null",
            "",
        ] {
            assert_eq!(cors.allowed(origin), None, "{origin}");
        }
        assert_eq!(of(&["*"]).allowed("https://any.example").as_deref(), Some("*"));
        assert!(!of(&[]).is_on() && of(&[]).allowed("https://app.example").is_none());
    }

    #[test]
    fn a_preflight_names_what_may_be_sent_and_leaves_out_the_rest() {
        let cors = of(&["https://app.example"]);
        let ask = |origin, headers| cors.answer(Preflight { origin, headers });
        let lines = ask(
            "https://app.example",
            "Authorization,content-type, OpenAI-Beta,x-evil, meridian-session",
        )
        .unwrap();
        assert_eq!(
            line(&lines, "Access-Control-Allow-Headers").unwrap(),
            "authorization, content-type, openai-beta, meridian-session"
        );
        assert_eq!(line(&lines, "Access-Control-Allow-Methods").unwrap(), "GET, POST");
        assert_eq!(line(&lines, "Access-Control-Max-Age").unwrap(), "600");
        let lines = ask("https://app.example", "x-evil\u{e9}, , openai\r\n-x").unwrap();
        assert_eq!(line(&lines, "Access-Control-Allow-Headers"), None);
        assert!(ask("https://evil.example", "authorization").is_none());
    }

    #[test]
    fn a_malformed_origin_or_name_is_a_problem() {
        let mut cors = of(&[
            "https://app.example/",
            "app.example",
            "HTTPS://app.example",
            "https://",
            "*.example",
        ]);
        cors.headers = vec!["*".to_owned(), "x y".to_owned()];
        cors.exposed = vec!["x-*".to_owned()];
        let problems = cors.problems().to_string();
        let problems: Vec<&str> = problems.lines().collect();
        assert_eq!(problems.len(), 8, "{problems:#?}");
        assert!(
            problems[0].contains("\"https://app.example/\" is not an origin; write"),
            "{problems:#?}"
        );
    }
}
