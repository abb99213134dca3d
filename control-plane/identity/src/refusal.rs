//! Answers a client that speaks plain text where a certificate is required, in the protocol that the client speaks, so that
//! its user reads the reason.

use std::future::poll_fn;

use http::{Response, StatusCode, header};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::texts::MUST_PROVE as WHY;

/// Largest head of a request that is read before the refusal: those of gRPC calls have some hundred bytes.
const HEAD_BYTES_MAX: u32 = 16 << 10;
/// `UNAUTHENTICATED` of the status codes of gRPC.
const UNAUTHENTICATED: &str = "16";

/// Answers the first request, and ends the connection. The caller bounds the time.
pub(crate) async fn of_plain_text(mut tcp: TcpStream, speaks_http2: bool) {
    if speaks_http2 {
        // The client may break off, or speak no HTTP/2 after all.
        let _ = of_http2(tcp).await;
        return;
    }
    // RFC 9110 §15.5.22: it has to change to another protocol first.
    let answer = format!(
        "HTTP/1.1 426 Upgrade Required\r\nUpgrade: TLS/1.3\r\nConnection: Upgrade, close\r\nContent-Type: text/plain\r\n\
         Content-Length: {}\r\n\r\n{WHY}\n",
        WHY.len() + 1
    );
    // It may be gone already.
    let _ = tcp.write_all(answer.as_bytes()).await;
    close(tcp).await;
}

/// A GOAWAY in the place of an answer would be shorter. A client that reads it before it has sent its request reports a closed connection, or
/// connects again, and in neither case the reason.
async fn of_http2(tcp: TcpStream) -> Result<(), h2::Error> {
    let mut settings = h2::server::Builder::new();
    settings.max_concurrent_streams(1).max_header_list_size(HEAD_BYTES_MAX);
    let mut connection = settings.handshake(tcp).await?;
    let Some(first) = connection.accept().await else {
        return Ok(());
    };
    let (request, mut respond) = first?;
    let content_type = request.headers().get(header::CONTENT_TYPE);
    if content_type.is_some_and(|it| it.as_bytes().starts_with(b"application/grpc")) {
        let answer = Response::builder()
            .header(header::CONTENT_TYPE, "application/grpc")
            .header("grpc-status", UNAUTHENTICATED)
            .header("grpc-message", WHY);
        respond.send_response(answer.body(()).expect("its headers are constants"), true)?;
    } else {
        let answer = Response::builder()
            .status(StatusCode::FORBIDDEN)
            .header(header::CONTENT_TYPE, "text/plain");
        let mut body = respond.send_response(answer.body(()).expect("its headers are constants"), false)?;
        body.send_data(bytes::Bytes::from_static(WHY.as_bytes()), true)?;
    }
    drop((request, respond));
    connection.graceful_shutdown();
    poll_fn(|cx| connection.poll_closed(cx)).await
}

/// Ends a connection so that the peer can read the last words: a socket that closes on unread bytes resets its connection.
pub(crate) async fn close(mut tcp: TcpStream) {
    let _ = tcp.shutdown().await;
    let mut rest = [0; 1024];
    while matches!(tcp.read(&mut rest).await, Ok(1..)) {}
}
