//! The requester of a request that pingora reads, and its request for regions.

use std::net::IpAddr;

use bytes::Bytes;
use http::{Method, header};
use pingora_core::{Error, Result};
use pingora_proxy::Session;
use routing::Table;

use crate::{
    answer::Answer,
    http1,
    request::chooser::{Chooser, RequesterId},
    request::ctx::Ctx,
    request::downstream::{is_malformed, leaves, peer_of, write},
    request::exchange::Answering,
    request::pass_on::pass_on,
    request::requester::{Asking, Requester, Unread},
};

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

/// The request for regions.
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
        http1::headers::forward_headers(&mut lines, headers, &named, &chooser.provenance(ctx, device));
    }
    let length = request.headers.get(header::CONTENT_LENGTH);
    Asking {
        requester: requester_of(chooser, session, ctx.choice.table.as_deref()),
        repeat: ctx.route.repeat(request.method.as_str()),
        to_head: request.method == Method::HEAD,
        expects: request.headers.contains_key(header::EXPECT),
        length: length.and_then(|length| length.to_str().ok()?.parse().ok()),
        is_bodiless: matches!(request.method, Method::GET | Method::HEAD),
        lines,
    }
}

/// The facts about the requester by which the edge chooses a region.
pub(crate) fn requester_of(chooser: &Chooser, session: &Session, table: Option<&Table>) -> RequesterId {
    let request = session.req_header();
    let target = request.uri.path_and_query().map_or("", http::uri::PathAndQuery::as_str);
    let client = peer_of(session).map(|device| device.ip());
    chooser.requester(|name| request.headers.get(name)?.to_str().ok(), target, client, table)
}
