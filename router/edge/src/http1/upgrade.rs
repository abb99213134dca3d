//! The request of a device to open a session (RFC 6455 §4.2.1).

use std::{net::SocketAddr, sync::Arc};

use auth::Device;
use routing::user;

use crate::{
    http1::{
        credential::{SUBPROTOCOL, bearer, credential},
        head::{Head, LINES_MAX},
        headers::{Peer, Provenance, forward_headers},
        request::{Request, USER, names_of_parameters, path_of, query},
    },
    request_id::{REQUEST_ID, RequestId},
};

/// A device's request to open a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upgrade {
    target: String,
    headers: Vec<(String, Vec<u8>)>,
    device: Peer,
    /// The device that the edge recognised.
    pub vouched: Option<Arc<Device>>,
}

/// The path of the Realtime API.
pub const REALTIME: &str = "/v1/realtime";

impl Upgrade {
    /// Reads a request as an upgrade to the Realtime WebSocket (RFC 6455 §4.2.1). `Ok(None)` for any other request.
    ///
    /// # Errors
    ///
    /// The request is an upgrade and not well formed.
    pub fn parse(head: &Head, device: Peer) -> Result<Option<Self>, UpgradeError> {
        // The target alone shows that most requests are no upgrade.
        let words = head.bytes[..head.len].split(|byte| byte.is_ascii_whitespace());
        // Empty lines may come before it (RFC 9112 §2.2).
        let target = words.filter(|word| !word.is_empty()).nth(1);
        let may_be = |target: &[u8]| !target.starts_with(b"/") || target.starts_with(REALTIME.as_bytes());
        if !target.is_some_and(may_be) {
            return Ok(None);
        }
        let mut lines = [httparse::EMPTY_HEADER; LINES_MAX];
        let request = Request::parse(&head.bytes[..head.len], &mut lines).map_err(UpgradeError::Malformed)?;
        if path_of(request.target) != REALTIME {
            return Ok(None);
        }
        let upgrade = Self {
            target: request.target.to_owned(),
            headers: request
                .lines
                .iter()
                .map(|line| (line.name.to_owned(), line.value.to_vec()))
                .collect(),
            device,
            vouched: None,
        };
        let asks = upgrade.has_token("upgrade", "websocket") && upgrade.has_token("connection", "upgrade");
        if !asks || request.method != "GET" || !request.is_http11() {
            return Ok(None);
        }
        if upgrade.header("sec-websocket-version") != Some("13") {
            return Err(UpgradeError::Version);
        }
        if upgrade.all("sec-websocket-key").count() != 1 {
            return Err(UpgradeError::Malformed(
                "an upgrade has one Sec-WebSocket-Key (RFC 6455)",
            ));
        }
        if names_of_parameters(request.target).any(|name| name.contains('%')) {
            // The edge and the stack could disagree on what a device asks for.
            return Err(UpgradeError::Malformed("write the names of parameters without %"));
        }
        if request.has_body() {
            // The edge and the stack could disagree on where the body ends and frames begin.
            return Err(UpgradeError::Malformed("an upgrade has no body"));
        }
        Ok(Some(upgrade))
    }

    /// The first header of that name, if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self
            .headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(value).ok()
    }

    /// A parameter of the query, undecoded: ids and tokens need no percent-encoding.
    pub fn query(&self, name: &str) -> Option<&str> {
        query(&self.target, name)
    }

    /// The credential that the device shows.
    pub fn credential(&self) -> Option<&str> {
        let offered = self
            .all(SUBPROTOCOL)
            .filter_map(|value| std::str::from_utf8(value).ok());
        credential(self.header("authorization"), offered)
    }

    /// The user by whom a rollout chooses the version.
    pub fn user(&self, client: SocketAddr) -> String {
        let given = self.header(USER).or_else(|| self.query("user"));
        let given = given.or(self.vouched.as_ref().map(|device| &*device.name));
        let token = self.header("authorization").and_then(bearer);
        user::name(given, token, client.ip())
    }

    /// All headers of that name.
    fn all(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        let headers = self.headers.iter();
        headers
            .filter(move |(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_slice())
    }

    fn has_token(&self, name: &str, token: &str) -> bool {
        self.all(name)
            .filter_map(|value| std::str::from_utf8(value).ok())
            .flat_map(|value| value.split(','))
            .any(|part| part.trim().eq_ignore_ascii_case(token))
    }

    /// The id of the session: the one that the device sent, or a new one.
    pub fn id(&self) -> RequestId {
        RequestId::of(self.all(REQUEST_ID).next())
    }

    /// The request for a region. `Sec-WebSocket-Key` stays, so the region's answer satisfies the device. `ours` are further lines.
    pub fn forwarded(&self, edge: &topology::EdgeId, id: &RequestId, ours: &str) -> Vec<u8> {
        let mut bytes = format!("GET {} HTTP/1.1\r\n", self.target).into_bytes();
        let headers = self
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_slice()));
        let named: Vec<&[u8]> = self.all("connection").collect();
        let provenance = Provenance {
            device: self.device,
            edge,
            id,
            tenant: self.vouched.as_ref().map(|device| &*device.tenant),
            keeps_credentials: self.vouched.is_some(),
        };
        forward_headers(&mut bytes, headers, &named, &provenance);
        bytes.extend_from_slice(b"Connection: Upgrade\r\nUpgrade: websocket\r\n");
        bytes.extend_from_slice(ours.as_bytes());
        bytes.extend_from_slice(b"\r\n");
        bytes
    }
}

/// The fault of a request that should have been an upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpgradeError {
    Malformed(&'static str),
    /// The request asks for another version of WebSocket than 13.
    Version,
}

#[cfg(test)]
mod tests {
    use super::*;
    use topology::EdgeId;

    fn head_of(text: &str) -> Head {
        Head {
            bytes: text.into(),
            len: text.len(),
        }
    }

    const DEVICE: Peer = Peer {
        address: SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(1, 2, 3, 4)), 5),
        has_tls: false,
    };

    const WELL: &str = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: abc\r\n";

    async fn upgrade(target: &str, lines: &str) -> Result<Option<Upgrade>, UpgradeError> {
        let text = format!(
            "GET {target} HTTP/1.1\r\nHost: v\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n{lines}\r\n"
        );
        Upgrade::parse(&head_of(&text), DEVICE)
    }

    #[tokio::test]
    async fn a_forwarded_upgrade_has_no_compression_and_names_the_address_that_the_edge_saw() {
        let lines = format!(
            "{WELL}Sec-WebSocket-Extensions: permessage-deflate\r\nX-Forwarded-For: 6.6.6.6\r\nMeridian-Resume: 1\r\nX-Forwarded-Proto: x\r\nX-Hop: 1\r\nConnection: X-Hop\r\nAuthorization: Bearer k\r\n"
        );
        let upgrade = upgrade("/v1/realtime?model=m&affinity=t", &lines)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(upgrade.query("affinity"), Some("t"));
        assert_eq!(upgrade.query("nothing"), None);
        let id = RequestId::of(Some(b"mine"));
        let bytes = upgrade.forwarded(&EdgeId::new("edge-dub").unwrap(), &id, "A: b\r\n");
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(
            text,
            "GET /v1/realtime?model=m&affinity=t HTTP/1.1\r\nHost: v\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: abc\r\nAuthorization: Bearer k\r\nX-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: http\r\n\
             X-Request-Id: mine\r\nMeridian-Edge: edge-dub\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nA: b\r\n\r\n"
        );
    }

    #[tokio::test]
    async fn an_empty_line_before_an_upgrade_is_nothing() {
        let text = format!(
            "\r\nGET {REALTIME} HTTP/1.1\r\nHost: v\r\nConnection: upgrade\r\nUpgrade: websocket\r\n{WELL}\r\n"
        );
        let head = head_of(&text);
        assert!(Upgrade::parse(&head, DEVICE).unwrap().is_some());
    }

    #[tokio::test]
    async fn a_malformed_upgrade_gets_the_reason() {
        assert_eq!(upgrade("/v1/audio/speech", WELL).await, Ok(None));
        let status = |answer: Result<Option<Upgrade>, UpgradeError>| match answer.unwrap_err() {
            UpgradeError::Version => 426,
            UpgradeError::Malformed(_) => 400,
        };
        assert_eq!(status(upgrade(REALTIME, "Sec-WebSocket-Version: 8\r\n").await), 426);
        assert_eq!(status(upgrade(REALTIME, "Sec-WebSocket-Version: 13\r\n").await), 400);
        // A stack would read `resume`, which the edge did not check.
        assert_eq!(status(upgrade("/v1/realtime?%72esume=sess_1", WELL).await), 400);
        for more in [
            "Content-Length: 5\r\n",
            "Transfer-Encoding: chunked\r\n",
            "Sec-WebSocket-Key: another\r\n",
            "Host: another\r\n",
            "Connection: Host\r\n",
        ] {
            assert_eq!(
                status(upgrade(REALTIME, &format!("{WELL}{more}")).await),
                400,
                "{more:?}"
            );
        }
        let hostless = format!("GET {REALTIME} HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\n{WELL}\r\n");
        let head = head_of(&hostless);
        assert_eq!(status(Upgrade::parse(&head, DEVICE)), 400);
    }
}
