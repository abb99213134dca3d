//! The headers that pass from one hop to the next. The fast path, pingora's path and upgrades all use the lists of this file, so
//! that a region sees the same headers whichever path a request takes.

use std::{
    io::Write as _,
    net::{IpAddr, SocketAddr},
};

use topology::EdgeId;

use crate::{
    http1::credential::{SUBPROTOCOL, is_credential, without_key},
    request_id::{REQUEST_ID, RequestId},
};

/// Headers that concern one connection alone (RFC 9110 §7.6.1), whichever side wrote them. The edge writes its own.
const OF_CONNECTION: [&str; 5] = [
    "connection",
    "upgrade",
    "keep-alive",
    "proxy-connection",
    "content-length",
];
/// The same in requests only: the codings and trailers of an answer pass unchanged.
///
/// `Expect` is answered by the edge, which reads bodies before it asks a region. Without `Sec-WebSocket-Extensions` no
/// compression is negotiated, so frames can be relayed verbatim and their bits checked.
const OF_CONNECTION_IN_REQUESTS: [&str; 6] = [
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "expect",
    "sec-websocket-extensions",
];
/// Headers between edge and stack: a device can neither send nor see them.
const OF_STACKS: [&str; 3] = [wire::LOAD_HEADER, wire::RESUMES_HEADER, wire::REVISION_HEADER];
const OF_STACKS_IN_REQUESTS: [&str; 6] = [
    wire::HEADER,
    wire::RESUME_HEADER,
    wire::TURNS_HEADER,
    wire::SESSION_HEADER,
    wire::HOME_ZONE_HEADER,
    wire::TENANT_HEADER,
];
/// Headers that the edge writes on requests and on answers.
const OF_EDGE: [&str; 2] = [REQUEST_ID, "meridian-edge"];
const OF_EDGE_IN_ANSWERS: [&str; 2] = ["meridian-region", "meridian-affinity"];
/// A device can claim any address of origin, so the edge drops these and writes `X-Forwarded-For` and `X-Forwarded-Proto` itself.
const HEARSAY: [&str; 6] = [
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-real-ip",
    "forwarded",
    wire::COPY_HEADER,
];

/// The device at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    pub address: SocketAddr,
    pub has_tls: bool,
}

impl Peer {
    /// Its address in the common form: a socket for both families calls 192.0.2.1 `::ffff:192.0.2.1`.
    pub fn ip(&self) -> IpAddr {
        self.address.ip().to_canonical()
    }

    pub fn scheme(&self) -> &'static str {
        if self.has_tls { "https" } else { "http" }
    }
}

/// The facts about a request that the edge writes into its head for the region.
#[derive(Debug, Clone, Copy)]
pub struct Provenance<'a> {
    pub device: Peer,
    pub edge: &'a EdgeId,
    pub id: &'a RequestId,
    /// The tenant of a device that the edge recognised.
    pub tenant: Option<&'a str>,
    /// Whether credentials are for the edge alone, which then drops them.
    pub keeps_credentials: bool,
}

/// Writes the headers of a request that concern the region, each on a line, and those that the edge adds. `named` are the
/// values of its `Connection` headers: headers named there concern this hop only.
pub fn forward_headers<'h>(
    bytes: &mut Vec<u8>,
    headers: impl Iterator<Item = (&'h str, &'h [u8])>,
    named: &[&[u8]],
    provenance: &Provenance<'_>,
) {
    let Provenance {
        device,
        edge,
        id,
        tenant,
        keeps_credentials,
    } = provenance;
    for (name, value) in headers {
        if *keeps_credentials && is_credential(name) {
            if name.eq_ignore_ascii_case(SUBPROTOCOL)
                && let Ok(offered) = std::str::from_utf8(value)
                && let shown = without_key(offered)
                && !shown.is_empty()
            {
                write_line(bytes, name, shown.as_bytes());
            }
        } else if is_forwarded(name, named) {
            write_line(bytes, name, value);
        }
    }
    let _ = write!(
        bytes,
        "X-Forwarded-For: {}\r\nX-Forwarded-Proto: {}\r\nX-Request-Id: {id}\r\nMeridian-Edge: {edge}\r\n",
        device.ip(),
        device.scheme(),
    );
    if let Some(tenant) = tenant {
        write_line(bytes, wire::TENANT_HEADER, tenant.as_bytes());
    }
}

/// Whether a header of a request concerns the region. `named` are the values of its `Connection` headers.
pub fn is_forwarded(name: &str, named: &[&[u8]]) -> bool {
    let lists = [
        &OF_CONNECTION[..],
        &OF_CONNECTION_IN_REQUESTS,
        &OF_EDGE,
        &OF_STACKS,
        &OF_STACKS_IN_REQUESTS,
        &HEARSAY,
    ];
    !is_in(lists, name) && !named.iter().any(|value| names(value, name))
}

/// Whether a header of a region's answer concerns the device. The edge writes the headers of `stamp.rs` itself.
pub fn is_returned(name: &str) -> bool {
    let lists = [&OF_CONNECTION[..], &OF_EDGE, &OF_EDGE_IN_ANSWERS, &OF_STACKS];
    !is_in(lists, name) && !is_for_browsers(name)
}

/// Whether a header of an answer is one that the edge writes for browsers itself.
pub fn is_for_browsers(name: &str) -> bool {
    /// The common beginning of their names.
    const BEGINNING: &str = "access-control-";
    name.len() > BEGINNING.len() && name.as_bytes()[..BEGINNING.len()].eq_ignore_ascii_case(BEGINNING.as_bytes())
}

/// Headers of an answer that only the edge may write, or that are for the edge. pingora passes on all other headers of a region.
pub fn of_edge_in_answers() -> impl Iterator<Item = &'static str> {
    OF_EDGE.into_iter().chain(OF_EDGE_IN_ANSWERS).chain(OF_STACKS)
}

fn is_in<const N: usize>(lists: [&[&str]; N], name: &str) -> bool {
    lists
        .iter()
        .any(|list| list.iter().any(|known| name.eq_ignore_ascii_case(known)))
}

pub(super) fn write_line(bytes: &mut Vec<u8>, name: &str, value: &[u8]) {
    bytes.extend_from_slice(name.as_bytes());
    bytes.extend_from_slice(b": ");
    bytes.extend_from_slice(value);
    bytes.extend_from_slice(b"\r\n");
}

/// Whether a list of names has this one.
pub(super) fn names(list: &[u8], name: &str) -> bool {
    let mut tokens = list.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    tokens.any(|known| known.eq_ignore_ascii_case(name.as_bytes()))
}

pub(super) fn has_token(line: &httparse::Header<'_>, token: &str) -> bool {
    names(line.value, token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_for_browsers_are_known_by_their_beginning() {
        assert!(is_for_browsers("Access-Control-Allow-Origin") && is_for_browsers("access-control-max-age"));
        assert!(!is_for_browsers("access-control-") && !is_for_browsers("accept") && !is_for_browsers("x-request-id"));
    }
}
