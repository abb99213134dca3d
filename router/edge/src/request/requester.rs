//! The device of a request whose body is read before regions are asked, or passed on as it comes, whichever protocol it speaks:
//! HTTP/1.1 by the edge itself ([`crate::request::device_connection`]), everything else by pingora ([`crate::request::pingora_requester`]).

use std::net::IpAddr;

use bytes::Bytes;

use crate::{
    answer::Answer,
    request::chooser::{Chooser, RequesterId},
    request::ctx::Ctx,
    request::exchange::Answering,
    request::route::Repeat,
};

/// The reason for which a body cannot be read.
pub(crate) enum Unread<G> {
    /// It is none.
    Malformed,
    Gone(G),
}

/// The device at the other end.
pub(crate) trait Requester: Send {
    /// The device left, or takes nothing.
    type Gone: Send;

    /// Whether all of the body was read.
    fn is_body_done(&mut self) -> bool;

    /// Asks for the body of a device that waits for it (`Expect: 100-continue`).
    fn go_on(&mut self) -> impl Future<Output = Result<(), Self::Gone>> + Send;

    /// The next part of the body; `None` at its end. Nothing is lost when the future is dropped.
    fn read_body(&mut self) -> impl Future<Output = Result<Option<Bytes>, Unread<Self::Gone>>> + Send;

    /// Resolves when a device leaves whose request is all here.
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

/// A request as far as regions are concerned, without its body.
pub(crate) struct Asking {
    pub(crate) requester: RequesterId,
    pub(crate) repeat: Repeat,
    /// Whether it asks for nothing but the head of an answer.
    pub(crate) to_head: bool,
    /// Whether the device waits to be told to send its body.
    pub(crate) expects: bool,
    /// The length that it says its body has.
    pub(crate) length: Option<u64>,
    /// Whether a request like this mostly has no body, and then says nothing of one.
    pub(crate) is_bodiless: bool,
    /// Its head as a region gets it, up to the lines about the body.
    pub(crate) lines: Vec<u8>,
}

impl Asking {
    /// The whole head. `None` for a body that is not all here.
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
