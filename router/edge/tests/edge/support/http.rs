//! Stacks that play the script of a test on a connection, and the bytes of both of its ends.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::{hang::hang_means_failure, read_head};

/// A stack whose every connection is treated in this way; where it is, and how many connections it took.
pub async fn stack<F>(treat: impl Fn(TcpStream) -> F + Send + 'static) -> (SocketAddr, Arc<AtomicUsize>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let taken = Arc::new(AtomicUsize::new(0));
    let takes = taken.clone();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            takes.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(treat(tcp));
        }
    });
    (address, taken)
}

/// The same on a thread of its own: it is on time, however much the devices of the test have to do.
pub fn stack_apart<F>(treat: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let event_loop = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let serving = async move {
        let listener = TcpListener::from_std(listener).unwrap();
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(treat(tcp));
        }
    };
    std::thread::spawn(move || event_loop.unwrap().block_on(serving));
    address
}

/// Reads a request; its head, and as much body as it says.
pub async fn request(tcp: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let head = read_head(tcp).await?;
    let length = head.lines().find_map(|line| {
        line.to_lowercase()
            .strip_prefix("content-length: ")?
            .trim()
            .parse()
            .ok()
    });
    let mut body = vec![0; length.unwrap_or(0)];
    tcp.read_exact(&mut body).await.ok()?;
    Some((head, body))
}

pub async fn say(tcp: &mut TcpStream, text: &str) {
    // The test checks at its other end whether the edge still reads.
    let _ = tcp.write_all(text.as_bytes()).await;
}

/// Answers every request with the first line of it, in the usual way.
pub async fn repeats(mut tcp: TcpStream) {
    while let Some((head, body)) = request(&mut tcp).await {
        let said = format!("{} {}", head.lines().next().unwrap(), String::from_utf8_lossy(&body));
        let length = said.len();
        say(
            &mut tcp,
            &format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{said}"),
        )
        .await;
    }
}

/// Reads an answer with a length; its head and body.
pub async fn answer(tcp: &mut TcpStream) -> (String, String) {
    let (head, body) = hang_means_failure(request(tcp)).await.expect("an answer");
    (head, String::from_utf8(body).unwrap())
}

/// Reads until just these bytes have come.
pub async fn expect(tcp: &mut TcpStream, text: &str) {
    let mut bytes = vec![0; text.len()];
    hang_means_failure(tcp.read_exact(&mut bytes)).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&bytes), text);
}
