//! The arrival of a request at pingora: its admission, and the beginning of its body.

use std::time::Instant;

use pingora_core::{Result, protocols::http::ServerSession};
use pingora_proxy::Session;

use crate::{
    answer::Answer,
    cors::PreflightHeaders,
    request::chooser::Chooser,
    request::ctx::Ctx,
    request::downstream::{is_malformed, peer_of},
};

/// The edge reads this much of a body before it asks a region or an operator's server: pingora repeats the part of a body that it
/// holds, and loses the bytes beyond 64 KiB. One read brings 16 KiB at most: a frame of HTTP/2, or what [`crate::accept::transport`]
/// reads of a body.
const BODY_BYTES_HELD: usize = 32 << 10;

/// Makes pingora cut a device off that does not keep pace.
pub(super) fn expect_pace(chooser: &Chooser, session: &mut Session) {
    let timeouts = &chooser.edge.config.timeouts;
    match session.as_mut() {
        // Bodies have deadlines of their own: `hold_body`, and then the clock.
        ServerSession::H1(http1) => http1.set_write_timeout(Some(timeouts.device.0)),
        ServerSession::H2(http2) => http2.set_write_timeout(Some(timeouts.device.0)),
        _ => {}
    }
    session.as_mut().set_total_drain_timeout(Some(timeouts.device.0));
}

/// Admits a request, or returns the reason and the answer of its refusal.
pub(super) fn admit(
    chooser: &Chooser,
    session: &Session,
    ctx: &mut Ctx,
) -> std::result::Result<(), (&'static str, Answer)> {
    if ctx.admission.slot.is_none()
        && let Some(device) = peer_of(session)
    {
        let admitted = chooser.edge.admission.request(device.ip());
        ctx.admission.slot = Some(admitted.map_err(|refusal| (refusal.as_str(), refusal.answer()))?);
        chooser.requests.count_request(daemon::clock::now());
    }
    let request = session.req_header();
    let recognised = match ctx.admission.refused.take() {
        Some(refused) => Err(refused),
        None => chooser.recognise(ctx, request.method.as_str(), |name| {
            request.headers.get(name)?.to_str().ok()
        }),
    };
    recognised.map_err(|refused| (refused.as_str(), refused.answer()))?;
    let bytes_max = chooser.edge.config.limits.body_bytes_max;
    let length = session.req_header().headers.get(http::header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > bytes_max) {
        return Err(("body-too-large", Answer::body_too_large(bytes_max)));
    }
    Ok(())
}

/// Reads as much of a body as pingora can repeat, before the edge asks a server. Returns the answer of a refused request.
pub(super) async fn hold_body(chooser: &Chooser, session: &mut Session, ctx: &mut Ctx) -> Result<Option<Answer>> {
    let edge = &chooser.edge;
    let expects = session.req_header().headers.contains_key(http::header::EXPECT);
    let http = session.as_mut();
    if http.is_body_done() {
        return Ok(None);
    }
    if expects {
        http.write_continue_response()
            .await
            .map_err(|error| error.into_down())?;
    }
    http.enable_retry_buffering();
    let mut held = 0;
    while held < BODY_BYTES_HELD && !http.is_body_done() {
        let began = Instant::now();
        match tokio::time::timeout(ctx.proxied.pace.remaining(), http.read_request_body()).await {
            Err(_) => {
                edge.refused("body-too-slow", &ctx.stamp.id);
                return Ok(Some(Answer::body_too_slow()));
            }
            Ok(Err(error)) if is_malformed(&error) => {
                edge.refused("malformed", &ctx.stamp.id);
                return Ok(Some(Answer::malformed_body()));
            }
            Ok(Err(error)) => return Err(error.into_down()),
            Ok(Ok(None)) => break,
            Ok(Ok(Some(part))) => {
                ctx.proxied.pace.waited(began.elapsed(), part.len());
                held += part.len();
            }
        }
    }
    if !session.as_mut().is_body_done()
        && let Some(device) = peer_of(session)
    {
        match edge.admission.upload(device.ip()) {
            Ok(slot) => ctx.admission.upload = Some(slot),
            Err(refusal) => {
                edge.refused(refusal.as_str(), &ctx.stamp.id);
                return Ok(Some(refusal.answer()));
            }
        }
    }
    Ok(None)
}

/// The answer to a browser's preflight, as in [`Chooser::answer_to_preflight`].
pub(super) fn answer_to_preflight(
    chooser: &Chooser,
    session: &Session,
    ctx: &mut Ctx,
) -> Option<std::result::Result<PreflightHeaders, Answer>> {
    let request = session.req_header();
    let asked = (request.method.as_str(), request.uri.path());
    chooser.answer_to_preflight(ctx, asked, |name| request.headers.get(name)?.to_str().ok())
}
