//! The device of a request that pingora reads: its address, and the edge's own answers to it.

use http::Method;
use pingora_core::{Error, ErrorType, Result, protocols::http::ServerSession};
use pingora_http::ResponseHeader;
use pingora_proxy::Session;

use crate::{
    Edge,
    answer::Answer,
    cors::PreflightHeaders,
    http1::{self, Peer},
    request::ctx::Ctx,
    request::grpc,
};

/// The device of a request.
pub(crate) fn peer_of(session: &Session) -> Option<Peer> {
    let digest = session.as_ref().digest();
    let has_tls = digest.is_some_and(|digest| digest.ssl_digest.is_some());
    let address = *session.client_addr()?.as_inet()?;
    Some(Peer { address, has_tls })
}

/// Answers the preflight of a page that may call.
pub(crate) async fn write_preflight(
    edge: &Edge,
    session: &mut Session,
    ctx: &Ctx,
    headers: PreflightHeaders,
) -> Result<()> {
    let mut head = ResponseHeader::build(http::StatusCode::NO_CONTENT, Some(8))?;
    for (name, value) in headers {
        head.insert_header(name, value)?;
    }
    ctx.stamp.insert(&edge.config.cors, &mut head)?;
    session.write_response_header(Box::new(head), true).await
}

/// Answers with an error, in the protocol of the requester.
pub(crate) async fn write(edge: &Edge, session: &mut Session, ctx: &Ctx, answer: &Answer) -> Result<()> {
    let is_grpc = grpc::is_grpc(&session.req_header().headers);
    if let ServerSession::H2(http2) = session.as_mut()
        && is_grpc
    {
        return grpc::refuse(http2, answer, &ctx.stamp, &edge.config.cors);
    }
    let body = answer.body();
    let mut head = ResponseHeader::build(answer.status, Some(8))?;
    head.insert_header("Content-Type", "application/json")?;
    head.insert_header("Content-Length", body.len())?;
    ctx.stamp.insert(&edge.config.cors, &mut head)?;
    for (name, value) in &answer.headers {
        // HTTP/2 knows no upgrades (RFC 9113 §8.2.2).
        if *name != "Upgrade" || !session.as_ref().is_http2() {
            head.insert_header(*name, value)?;
        }
    }
    let is_head = session.req_header().method == Method::HEAD;
    session.write_response_header(Box::new(head), is_head).await?;
    if is_head {
        // RFC 9110 §9.3.2.
        return Ok(());
    }
    session.write_response_body(Some(body), true).await
}

/// Resolves when a device whose request is all here leaves. Bytes that it sends ahead wait in front of pingora
/// ([`crate::accept::transport`]).
pub(crate) async fn leaves(session: &mut Session) -> Box<Error> {
    match session.as_mut().read_body_or_idle(true).await {
        Err(gone) => gone.into_down(),
        Ok(_) => Error::new(ErrorType::ConnectionClosed).into_down(),
    }
}

/// Whether the chunks of a body are malformed: see [`crate::accept::transport`].
pub(crate) fn is_malformed(error: &Error) -> bool {
    let io = error.root_cause().downcast_ref::<std::io::Error>();
    io.is_some_and(|io| io.kind() == std::io::ErrorKind::InvalidData)
        || matches!(error.etype(), ErrorType::Custom("InvalidChunk"))
}

/// Checks that a request of HTTP/2 names one host. The edge checked requests of HTTP/1 when it read their heads.
pub(crate) fn names_one_host(session: &Session) -> std::result::Result<(), &'static str> {
    if !session.as_ref().is_http2() {
        return Ok(());
    }
    let request = session.req_header();
    let authority = request.uri.authority().map(|authority| authority.as_str().as_bytes());
    let hosts = request.headers.get_all(http::header::HOST);
    let host = hosts.iter().next_back().map(http::HeaderValue::as_bytes);
    http1::request::check_host(authority, host, hosts.iter().count())
}
