//! The device of a request that [`crate::request::attempts`] serves, whichever protocol it speaks. The edge itself reads HTTP/1.1
//! ([`crate::request::device_connection`]); pingora reads the other protocols ([`crate::request::pingora_requester`]).

use std::net::IpAddr;

use bytes::Bytes;

use crate::{
    answer::Answer,
    request::chooser::{Chooser, RequesterId},
    request::ctx::Ctx,
    request::exchange::Answering,
    request::route::Repeat,
};

/// The reason for which the edge cannot read a body.
pub(crate) enum Unread<G> {
    /// Its chunks are malformed.
    Malformed,
    Gone(G),
}

/// The device of a request.
pub(crate) trait Requester: Send {
    /// The failure of a device that left, or takes no bytes.
    type Gone: Send;

    /// Whether all of the body was read.
    fn is_body_done(&mut self) -> bool;

    /// Asks a device to send its body that waits to be asked (`Expect: 100-continue`).
    fn go_on(&mut self) -> impl Future<Output = Result<(), Self::Gone>> + Send;

    /// The next part of the body; `None` at its end. Nothing is lost when the future is dropped.
    fn read_body(&mut self) -> impl Future<Output = Result<Option<Bytes>, Unread<Self::Gone>>> + Send;

    /// Resolves when the device leaves. Only for a request that was read to its end.
    fn leaves(&mut self) -> impl Future<Output = Self::Gone> + Send;

    /// Answers with an error.
    fn refuse(
        &mut self,
        chooser: &Chooser,
        ctx: &mut Ctx,
        answer: &Answer,
    ) -> impl Future<Output = Result<(), Self::Gone>> + Send;

    /// Passes an answer on, from its head to its last byte.
    fn pass_on(
        &mut self,
        chooser: &Chooser,
        ctx: &mut Ctx,
        answering: Answering,
        client: Option<IpAddr>,
    ) -> impl Future<Output = Result<(), Self::Gone>> + Send;
}

/// A request for regions, without its body.
pub(crate) struct Asking {
    pub(crate) requester: RequesterId,
    pub(crate) repeat: Repeat,
    /// Whether it asks only for the head of an answer.
    pub(crate) to_head: bool,
    /// Whether the device waits to be asked for its body (`Expect: 100-continue`).
    pub(crate) expects: bool,
    /// The length of its body by `Content-Length`.
    pub(crate) length: Option<u64>,
    /// Whether a request of its method usually has no body, so that an empty one needs no `Content-Length`.
    pub(crate) is_bodiless: bool,
    /// Its head for a region, up to the lines about the body.
    pub(crate) lines: Vec<u8>,
}

impl Asking {
    /// The whole head. `held` is the length of a body that was read to its end, and none for another.
    pub(crate) fn head(&self, held: Option<usize>) -> Vec<u8> {
        let framing = match (held, self.length) {
            (Some(0), None) if self.is_bodiless => String::new(),
            (Some(length), _) => format!("Content-Length: {length}\r\n"),
            (None, Some(said)) => format!("Content-Length: {said}\r\n"),
            (None, None) => "Transfer-Encoding: chunked\r\n".to_owned(),
        };
        let asks = format!("{framing}{}: {}\r\n\r\n", wire::LOAD_HEADER, wire::VERSION);
        [&self.lines[..], asks.as_bytes()].concat()
    }
}
