//! Headers on every answer of the edge, from any source: the id of a request or session in all logs, and the headers that a
//! browser needs before it shows the answer to a page.

use http::{HeaderName, HeaderValue, header};
use pingora_http::ResponseHeader;

use crate::{
    cors::Cors,
    http1::{head::Head, headers::is_for_browsers},
    request_id::{REQUEST_ID, RequestId},
};

/// The headers on every answer to one request.
#[derive(Debug, Clone)]
pub struct Stamp {
    pub id: RequestId,
    /// The header for a browser whose page may read the answer; none for any other requester.
    origin: Option<Box<str>>,
}

impl Stamp {
    /// The stamp of a request with this id and from this origin.
    pub fn of(cors: &Cors, id: Option<&[u8]>, origin: Option<&[u8]>) -> Self {
        let origin = origin.filter(|_| cors.is_on());
        Self {
            id: RequestId::of(id),
            origin: origin.and_then(|origin| cors.allowed(std::str::from_utf8(origin).ok()?)),
        }
    }

    /// The stamp of a request that the edge refuses for its head.
    pub fn of_head(cors: &Cors, head: &Head) -> Self {
        let id_and_origin = head.values([REQUEST_ID, "origin"]);
        id_and_origin.map_or_else(Self::blank, |[id, origin]| Self::of(cors, id, origin))
    }

    /// The stamp of a request that the edge could not read.
    pub fn blank() -> Self {
        RequestId::random().into()
    }

    /// Writes the lines into the head of an answer.
    pub fn write(&self, cors: &Cors, head: &mut Vec<u8>) {
        let mut line = |name: &str, value: &str| {
            for part in [name, ": ", value, "\r\n"] {
                head.extend_from_slice(part.as_bytes());
            }
        };
        line("X-Request-Id", self.id.as_str());
        if !cors.is_on() {
            return;
        }
        // Also without an origin: a cache must not give a page the answer to another origin.
        line("Vary", "Origin");
        if let Some(origin) = &self.origin {
            line("Access-Control-Allow-Origin", origin);
            if !cors.exposed.is_empty() {
                line("Access-Control-Expose-Headers", &cors.exposed.join(", "));
            }
        }
    }

    /// The same where pingora writes the head.
    pub fn insert(&self, cors: &Cors, head: &mut ResponseHeader) -> pingora_core::Result<()> {
        head.insert_header(REQUEST_ID, self.id.as_str())?;
        if !cors.is_on() {
            return Ok(());
        }
        head.append_header(header::VARY, HeaderValue::from_static("Origin"))?;
        if let Some(origin) = &self.origin {
            head.insert_header(header::ACCESS_CONTROL_ALLOW_ORIGIN, &**origin)?;
            if !cors.exposed.is_empty() {
                head.insert_header(header::ACCESS_CONTROL_EXPOSE_HEADERS, cors.exposed.join(", "))?;
            }
        }
        Ok(())
    }
}

impl From<RequestId> for Stamp {
    /// The stamp of a session's opening, which needs no permission of CORS.
    fn from(id: RequestId) -> Self {
        Self { id, origin: None }
    }
}

/// Removes a region's headers for browsers.
pub fn clear(head: &mut ResponseHeader) {
    let said: Vec<HeaderName> = head
        .headers
        .keys()
        .filter(|name| is_for_browsers(name.as_str()))
        .cloned()
        .collect();
    for name in said {
        head.remove_header(&name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_allowed_pages_an_answer_has_no_headers_for_browsers() {
        let mut head = Vec::new();
        let stamp = Stamp::of(&Cors::default(), Some(b"one"), Some(b"https://app.example"));
        stamp.write(&Cors::default(), &mut head);
        assert_eq!(String::from_utf8(head).unwrap(), "X-Request-Id: one\r\n");
    }
}
