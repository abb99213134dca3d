//! gRPC as a stack and a device see it: HTTP/2, and a status in the trailers. What is in the messages does not matter to an edge.

use std::time::Duration;

use bytes::Bytes;
use h2::{RecvStream, SendStream, client::ResponseFuture, server::SendResponse};
use http::{HeaderMap, Request, Response};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use super::hang::hang_means_failure;

/// The window of a device that reads everything.
pub const WINDOW: u32 = 65_535;
/// An answer that does not fit into a small window.
const ANSWER_BYTES: usize = 40_000;

/// A stack's end of a connection: each call is taken to its end, and answered then.
pub async fn serve(io: impl AsyncRead + AsyncWrite + Unpin) -> Option<()> {
    serve_after(io, Duration::ZERO).await
}

/// The same after a pause in which nothing of a call is read.
pub async fn serve_after(io: impl AsyncRead + AsyncWrite + Unpin, pause: Duration) -> Option<()> {
    let mut connection = h2::server::handshake(io).await.ok()?;
    while let Some(Ok((request, respond))) = connection.accept().await {
        tokio::spawn(answer(request.into_body(), respond, pause));
    }
    Some(())
}

async fn answer(mut body: RecvStream, mut respond: SendResponse<Bytes>, pause: Duration) -> Option<()> {
    tokio::time::sleep(pause).await;
    while let Some(part) = body.data().await {
        body.flow_control().release_capacity(part.ok()?.len()).ok()?;
    }
    let head = Response::builder().header("content-type", "application/grpc");
    let mut says = respond.send_response(head.body(()).ok()?, false).ok()?;
    says.send_data(Bytes::from(vec![b'x'; ANSWER_BYTES]), false).ok()?;
    let trailers = HeaderMap::from_iter([("grpc-status".parse().ok()?, "0".parse().ok()?)]);
    says.send_trailers(trailers).ok()
}

/// A device begins a call; with a window of zero it takes nothing of its answer but the head.
pub async fn begin(tcp: TcpStream, window: u32) -> (ResponseFuture, SendStream<Bytes>) {
    let handshake = h2::client::Builder::new()
        .initial_window_size(window)
        .handshake::<_, Bytes>(tcp);
    let (sender, connection) = hang_means_failure(handshake).await.unwrap();
    tokio::spawn(connection);
    let mut sender = hang_means_failure(sender.ready()).await.unwrap();
    let call = Request::post("http://v/meridian.voice.v1.Voice/Transcribe")
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    sender.send_request(call.body(()).unwrap(), false).unwrap()
}

/// The status of a call: in its trailers, or in the head of a refusal. `None` when it was broken off.
pub async fn status(answer: ResponseFuture) -> Option<String> {
    let (head, mut body) = answer.await.ok()?.into_parts();
    let said = |headers: &HeaderMap| Some(headers.get("grpc-status")?.to_str().ok()?.to_owned());
    if let Some(status) = said(&head.headers) {
        return Some(status);
    }
    while let Some(part) = body.data().await {
        body.flow_control().release_capacity(part.ok()?.len()).ok()?;
    }
    said(&body.trailers().await.ok()??)
}
