//! Heads of HTTP/1.1 as the edge forwards them. httparse reads them on the other side.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use edge::{
    http1::head::LINES_MAX,
    http1::{Body, Peer, Request, Response, headers::Provenance},
    request_id::RequestId,
};
use topology::EdgeId;

const CLIENT: Peer = Peer {
    address: SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7)), 4711),
    has_tls: true,
};

/// A forwarded request must be one request to the region too, and the same one (RFC 9112 §11.2).
pub(crate) fn pass_on_request(head: &[u8]) {
    let mut lines = [httparse::EMPTY_HEADER; LINES_MAX];
    let Ok(request) = Request::parse(head, &mut lines) else {
        return;
    };
    let _ = (
        request.path(),
        request.is_grpc(),
        request.only_reads(),
        request.header("host"),
    );
    // The edge writes another head for a session, and pingora writes the head of a chunked request.
    if !request.is_plain || request.is_chunked {
        return;
    }
    let edge = EdgeId::new("edge-iad").expect("it is a good name");
    let tenant = head.len().is_multiple_of(2).then_some("acme");
    let forwarded = request.forwarded(&Provenance {
        device: CLIENT,
        edge: &edge,
        id: &RequestId::of(request.id),
        tenant,
        keeps_credentials: tenant.is_some(),
    });

    let mut read = [httparse::EMPTY_HEADER; LINES_MAX + 6];
    let mut region = httparse::Request::new(&mut read);
    let length = region.parse(&forwarded).expect("the region reads what we write");
    assert_eq!(
        length,
        httparse::Status::Complete(forwarded.len()),
        "one head and nothing behind it"
    );
    assert_eq!(
        (region.method, region.path),
        (Some(request.method), Some(request.target))
    );
    assert_eq!(region.version, Some(1));
    let count = |name: &str| {
        let named = region
            .headers
            .iter()
            .filter(|line| line.name.eq_ignore_ascii_case(name));
        named.count()
    };
    assert_eq!(count("host"), 1);
    assert_eq!(
        count(wire::TENANT_HEADER),
        usize::from(tenant.is_some()),
        "only the edge says it"
    );
    if tenant.is_some() {
        assert_eq!(count("authorization"), 0, "a credential stays at the edge");
    }
    assert_eq!(count("x-request-id"), 1, "what is no id is not passed on");
    assert_eq!(
        count("x-forwarded-for"),
        1,
        "what a device says of its address is not passed on"
    );
    assert_eq!(
        (count("transfer-encoding"), count("upgrade"), count("connection")),
        (0, 0, 0)
    );
    let length = region
        .headers
        .iter()
        .find(|line| line.name.eq_ignore_ascii_case("content-length"));
    let length = length.map_or(Ok(0), |line| std::str::from_utf8(line.value).unwrap_or("").parse());
    assert_eq!(length, Ok(request.body_bytes()), "where its body ends, both sides know");
    assert!(count("content-length") <= 1);
}

/// Reads a response whole and in pieces. The first byte tells whether the request was a HEAD, the second the size of
/// the pieces.
pub(crate) fn pass_on_response(bytes: &[u8]) {
    let [to_head, piece, answer @ ..] = bytes else { return };
    let read = || Response::parse(answer, to_head & 1 != 0);
    let Ok(Some(response)) = read() else { return };
    assert!(response.len <= answer.len());
    let returned = [&response.returned[..], b"\r\n"].concat();
    let mut lines = [httparse::EMPTY_HEADER; LINES_MAX];
    let mut device = httparse::Response::new(&mut lines);
    let length = device.parse(&returned).expect("the device reads what we write");
    assert_eq!(
        length,
        httparse::Status::Complete(returned.len()),
        "one head and nothing behind it"
    );
    assert_eq!(device.code, Some(response.status));

    let body = &answer[response.len..];
    let whole = take(response.body, [body]);
    let Ok(Some(again)) = read() else {
        panic!("the same bytes are the same answer")
    };
    let pieces = take(again.body, body.chunks(usize::from(*piece).max(1)));
    assert_eq!(whole, pieces, "how a body comes in makes no difference");
}

/// The number of bytes that belong to the body, and whether the body is complete; `None` for a malformed body.
fn take<'b>(mut body: Body, pieces: impl IntoIterator<Item = &'b [u8]>) -> Option<(usize, bool)> {
    let mut taken = 0;
    for piece in pieces {
        let now = body.take(piece).ok()?;
        assert!(now <= piece.len());
        taken += now;
        if now < piece.len() {
            assert!(body.is_done(), "what is not the body's comes behind its end");
            break;
        }
    }
    Some((taken, body.is_done()))
}
