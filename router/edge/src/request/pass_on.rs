//! Passing a region's answer on to a device that pingora talks to.

use std::net::IpAddr;

use bytes::BytesMut;
use http::{StatusCode, Version, header};
use identity::Link;
use pingora_core::{Error, ErrorType, Result};
use pingora_http::ResponseHeader;
use pingora_proxy::Session;
use tokio::{
    io::AsyncReadExt as _,
    time::{Instant, timeout},
};

use crate::{
    answer::Answer,
    http1::head::LINES_MAX,
    http1::{Body, Response},
    request::chooser::Chooser,
    request::ctx::Ctx,
    request::downstream::{leaves, write},
    request::exchange::{Answering, At, Failure, READ_BYTES},
    texts,
};

/// Passes an answer on, from its head to its last byte.
pub(crate) async fn pass_on(
    chooser: &Chooser,
    session: &mut Session,
    ctx: &mut Ctx,
    answering: Answering,
    client: Option<IpAddr>,
) -> Result<()> {
    let Answering {
        region,
        mut response,
        mut read,
    } = answering;
    let head = match head_for_device(chooser, session, ctx, &response) {
        Ok(head) => head,
        Err(failure) => {
            chooser.broke_off(ctx, 502, &failure, client);
            let answer = Answer::region_failed(StatusCode::BAD_GATEWAY, texts::ANSWER_UNUSABLE);
            return write(&chooser.edge, session, ctx, &answer).await;
        }
    };
    let answer_limit = chooser.edge.config.timeouts.answer.0;
    let mut pace = chooser.edge.config.pace();
    let mut region = Some(region);
    let mut head = Some(head);
    let has_body = !response.body.is_done();
    let watches = session.as_mut().is_body_done();
    loop {
        let data = match response.body.data(&mut read) {
            Ok(data) => data,
            Err(broken) => {
                return break_off(chooser, session, ctx, &response, broken.into(), client, head.is_some()).await;
            }
        };
        if response.body.is_done()
            && let Some(region) = region.take()
        {
            region_is_done(chooser, ctx, region, &response, &read);
        }
        let began = Instant::now();
        let length = data.len();
        let writing = async {
            if let Some(head) = head.take() {
                session.write_response_header(Box::new(head), !has_body).await?;
            }
            if !data.is_empty() {
                session.write_response_body(Some(data), false).await?;
            }
            if region.is_none() && has_body {
                session.write_response_body(None, true).await?;
            }
            Result::<()>::Ok(())
        };
        match timeout(pace.remaining(), writing).await {
            Ok(written) => written?,
            Err(_) => {
                let failure = Failure::device_slow();
                chooser.broke_off(ctx, response.status, &failure, client);
                return Err(Error::explain(ErrorType::WriteTimedout, failure.why).into_down());
            }
        }
        pace.waited(began.elapsed(), length);
        let Some(from) = &mut region else { return Ok(()) };
        read.reserve(READ_BYTES);
        let count = tokio::select! {
            biased;
            count = timeout(answer_limit, from.read_buf(&mut read)) => count,
            // The device left; dropping the connection tells the region.
            gone = leaves(session), if watches => {
                chooser.broke_off(ctx, response.status, &Failure::device_gone(), client);
                return Err(gone);
            }
        };
        let failure = match count {
            Ok(Ok(0)) if matches!(response.body, Body::UntilClose) => {
                ctx.choice.in_flight = None;
                chooser.done(ctx, response.status, None);
                let ending = session.write_response_body(None, true);
                return match timeout(pace.remaining(), ending).await {
                    Ok(ended) => ended,
                    Err(_) => Err(Error::new(ErrorType::WriteTimedout).into_down()),
                };
            }
            Ok(Ok(1..)) => continue,
            Ok(Ok(0)) => Failure::ended(),
            Ok(Err(error)) => Failure::io(At::Sent, &error),
            Err(_) => Failure::timed_out(&chooser.edge, At::Sent, answer_limit),
        };
        return break_off(chooser, session, ctx, &response, failure, client, false).await;
    }
}

/// The region is done, however slowly the device takes the answer.
fn region_is_done(chooser: &Chooser, ctx: &mut Ctx, region: Link, response: &Response, read: &BytesMut) {
    ctx.choice.in_flight = None;
    chooser.done(ctx, response.status, None);
    if let Some(decision) = &ctx.choice.decision
        && response.keeps
        && read.is_empty()
    {
        chooser.pool.put(decision.stack, region);
    }
}

/// An answer broke off. The device gets an error, unless it has a part of the answer already.
async fn break_off(
    chooser: &Chooser,
    session: &mut Session,
    ctx: &mut Ctx,
    response: &Response,
    failure: Failure,
    client: Option<IpAddr>,
    is_untold: bool,
) -> Result<()> {
    chooser.broke_off(ctx, response.status, &failure, client);
    if is_untold {
        return write(&chooser.edge, session, ctx, &chooser.region_failed(ctx, &failure)).await;
    }
    // pingora may hold the beginning of the answer back; this sends the part that came.
    let _ = timeout(chooser.edge.config.timeouts.close.0, session.as_mut().shutdown()).await;
    Err(Error::explain(ErrorType::ConnectionClosed, failure.why).into_up())
}

/// The head of an answer as pingora writes it for the device.
fn head_for_device(
    chooser: &Chooser,
    session: &Session,
    ctx: &Ctx,
    response: &Response,
) -> std::result::Result<ResponseHeader, Failure> {
    if response.is_coded {
        return Err(Failure::nonsense("its Transfer-Encoding is more than chunked"));
    }
    let nonsense = |_| Failure::nonsense("its head");
    // The edge adds at most one line.
    let mut lines = [httparse::EMPTY_HEADER; LINES_MAX + 1];
    let mut parsed = httparse::Response::new(&mut lines);
    let text = [&response.returned[..], b"\r\n"].concat();
    parsed.parse(&text).map_err(|_| Failure::nonsense("its head"))?;
    let mut head = ResponseHeader::build(response.status, Some(parsed.headers.len() + 4)).map_err(nonsense)?;
    for line in parsed.headers.iter() {
        if !line.name.eq_ignore_ascii_case("transfer-encoding") {
            head.append_header(line.name.to_owned(), line.value).map_err(nonsense)?;
        }
    }
    // HTTP/2 has frames, and HTTP/1.0 ends a body by closing.
    let is_http11 = session.req_header().version == Version::HTTP_11;
    if !response.body.is_done() && is_http11 && !matches!(response.body, Body::Length(_)) {
        head.insert_header(header::TRANSFER_ENCODING, "chunked")
            .map_err(nonsense)?;
    }
    chooser.sign_response(&mut head, ctx).map_err(nonsense)?;
    Ok(head)
}
