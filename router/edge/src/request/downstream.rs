//! The device of a request that pingora reads: its address, and the answers of the edge to it.

use std::net::IpAddr;

use bytes::Bytes;
use http::{Method, header};
use pingora_core::{Error, ErrorType, Result, protocols::http::ServerSession};
use pingora_http::ResponseHeader;
use pingora_proxy::Session;

use crate::{
    Edge,
    answer::Answer,
    cors::PreflightHeaders,
    http1::{self, Peer},
    request::chooser::Chooser,
    request::ctx::Ctx,
    request::exchange::Answering,
    request::grpc,
    request::pass_on::pass_on,
    request::requester::{Asking, Requester, Unread},
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

impl Requester for Session {
    type Gone = Box<Error>;

    fn is_body_done(&mut self) -> bool {
        self.as_mut().is_body_done()
    }

    async fn go_on(&mut self) -> Result<()> {
        self.as_mut().write_continue_response().await
    }

    async fn read_body(&mut self) -> std::result::Result<Option<Bytes>, Unread<Box<Error>>> {
        if self.as_mut().is_body_done() {
            return Ok(None);
        }
        match self.as_mut().read_request_body().await {
            Ok(part) => Ok(part),
            Err(error) if is_malformed(&error) => Err(Unread::Malformed),
            Err(error) => Err(Unread::Gone(error.into_down())),
        }
    }

    async fn leaves(&mut self) -> Box<Error> {
        leaves(self).await
    }

    async fn refuse(&mut self, chooser: &Chooser, ctx: &mut Ctx, answer: &Answer) -> Result<()> {
        write(&chooser.edge, self, ctx, answer).await
    }

    async fn pass_on(
        &mut self,
        chooser: &Chooser,
        ctx: &mut Ctx,
        answering: Answering,
        client: Option<IpAddr>,
    ) -> Result<()> {
        pass_on(chooser, self, ctx, answering, client).await
    }
}

/// A request as regions get it.
pub(crate) fn asking_of(chooser: &Chooser, session: &Session, ctx: &Ctx) -> Asking {
    let request = session.req_header();
    let target = request
        .uri
        .path_and_query()
        .map_or("/", http::uri::PathAndQuery::as_str);
    let mut lines = format!("{} {target} HTTP/1.1\r\n", request.method).into_bytes();
    if !request.headers.contains_key(header::HOST)
        && let Some(authority) = request.uri.authority()
    {
        lines.extend_from_slice(format!("Host: {authority}\r\n").as_bytes());
    }
    let connection = request.headers.get_all(header::CONNECTION);
    let named: Vec<&[u8]> = connection.iter().map(header::HeaderValue::as_bytes).collect();
    let headers = request.headers.iter();
    let headers = headers.map(|(name, value)| (name.as_str(), value.as_bytes()));
    if let Some(device) = peer_of(session) {
        let edge = (&chooser.edge.id, &ctx.stamp.id);
        http1::headers::forward_headers(&mut lines, headers, &named, device, edge);
    }
    let length = request.headers.get(header::CONTENT_LENGTH);
    Asking {
        asker: chooser.asker_of(session, ctx.table.as_deref()),
        repeat: ctx.route.repeat(request.method.as_str()),
        to_head: request.method == Method::HEAD,
        expects: request.headers.contains_key(header::EXPECT),
        length: length.and_then(|length| length.to_str().ok()?.parse().ok()),
        is_bodiless: matches!(request.method, Method::GET | Method::HEAD),
        lines,
    }
}

/// Resolves when a device whose request is all here leaves. Bytes that it sends ahead wait in front of pingora
/// ([`crate::accept::transport`]).
pub(crate) async fn leaves(session: &mut Session) -> Box<Error> {
    match session.as_mut().read_body_or_idle(true).await {
        Err(gone) => gone.into_down(),
        Ok(_) => Error::new(ErrorType::ConnectionClosed).into_down(),
    }
}

/// Whether a body could not be read because it is none: see [`crate::accept::transport`].
pub(crate) fn is_malformed(error: &Error) -> bool {
    let io = error.root_cause().downcast_ref::<std::io::Error>();
    io.is_some_and(|io| io.kind() == std::io::ErrorKind::InvalidData)
        || matches!(error.etype(), ErrorType::Custom("InvalidChunk"))
}
