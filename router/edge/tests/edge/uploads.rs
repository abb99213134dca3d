//! Long bodies that pingora passes on, to operators' own servers and as calls (gRPC): which side's time runs, and who is told.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use crate::support::{
    World, calls, hang_means_failure,
    http::{repeats, request, say, stack},
    lateness::unless_late,
    planned, planned_at, read_head,
};
use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Semaphore,
};

/// More than the edge holds before it asks a server.
const HELD_BYTES: usize = 40_000;
const DOWN: &str = "meridian_edge_upstream_down_total{path=\"/skills/\"}";
const TOO_SLOW: &str = "meridian_edge_refused_total{reason=\"body-too-slow\"}";

/// An edge with an operator's server behind `/skills/`, which is marked down when it fails once.
async fn with_server(server: SocketAddr, changes: &str) -> World {
    let group = format!("upstream = [{{ path = '/skills/', servers = ['{server}'], max_fails = 1 }}]\n{changes}");
    World::of(&group, &planned(&[]).await)
}

fn head(length: usize) -> String {
    format!("POST /skills/upload HTTP/1.1\r\nHost: v\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n")
}

async fn rest(tcp: &mut TcpStream) -> String {
    let mut said = Vec::new();
    hang_means_failure(tcp.read_to_end(&mut said)).await.unwrap();
    String::from_utf8(said).unwrap()
}

/// A device of HTTP/2 begins an upload.
async fn begin_upload(world: &World) -> (h2::client::ResponseFuture, h2::SendStream<Bytes>) {
    let tcp = TcpStream::connect(world.address).await.unwrap();
    let (sender, connection) = h2::client::handshake(tcp).await.unwrap();
    tokio::spawn(connection);
    let mut sender = hang_means_failure(sender.ready()).await.unwrap();
    let upload = http::Request::post("http://v/skills/upload").body(()).unwrap();
    sender.send_request(upload, false).unwrap()
}

#[tokio::test]
async fn an_upload_that_keeps_pace_may_last_longer_than_its_server_may_take_to_answer() {
    let (server, _) = stack(counts).await;
    let timeouts = "timeouts = { device = '5s', answer = '1s' }";
    let mut pauses = tokio::time::interval(Duration::from_millis(100));

    let world = with_server(server, timeouts).await;
    let mut tcp = TcpStream::connect(world.address).await.unwrap();
    say(&mut tcp, &head(HELD_BYTES + 16_000)).await;
    say(&mut tcp, &"x".repeat(HELD_BYTES)).await;
    for _ in 0..16 {
        pauses.tick().await;
        say(&mut tcp, &"x".repeat(1000)).await;
    }
    let said = rest(&mut tcp).await;
    assert!(
        said.starts_with("HTTP/1.1 200 ") && said.ends_with("\r\n\r\n56000"),
        "{said}"
    );

    let (answer, mut body) = begin_upload(&world).await;
    body.send_data(Bytes::from(vec![b'x'; HELD_BYTES]), false).unwrap();
    for _ in 0..16 {
        pauses.tick().await;
        body.send_data(Bytes::from(vec![b'x'; 1000]), false).unwrap();
    }
    body.send_data(Bytes::new(), true).unwrap();
    assert_eq!(hang_means_failure(answer).await.unwrap().status(), 200);
    assert_eq!(world.metric(DOWN), None);
}

/// Answers each request with the length of its body, in whichever framing it comes.
async fn counts(mut tcp: TcpStream) {
    while let Some(head) = read_head(&mut tcp).await {
        let is_chunked = head.to_lowercase().contains("transfer-encoding: chunked");
        let length = match is_chunked {
            true => chunks(&mut tcp).await,
            false => {
                let length = head.to_lowercase();
                let length = length
                    .lines()
                    .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
                let mut body = vec![0; length.unwrap_or(0)];
                tcp.read_exact(&mut body).await.is_ok().then_some(body.len())
            }
        };
        let Some(length) = length.map(|length| length.to_string()) else {
            return;
        };
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{length}", length.len());
        say(&mut tcp, &answer).await;
    }
}

/// Reads a chunked body; its length.
async fn chunks(tcp: &mut TcpStream) -> Option<usize> {
    let mut length = 0;
    loop {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            line.push(tcp.read_u8().await.ok()?);
        }
        let size = usize::from_str_radix(std::str::from_utf8(&line).ok()?.trim(), 16).ok()?;
        let mut chunk = vec![0; size + 2];
        tcp.read_exact(&mut chunk).await.ok()?;
        length += size;
        if size == 0 {
            return Some(length);
        }
    }
}

#[tokio::test]
async fn a_trickling_upload_opens_no_server_and_ends_with_408() {
    let (server, taken) = stack(repeats).await;
    let world = with_server(server, "timeouts.device = '300ms'").await;
    for framing in ["Content-Length: 5000", "Transfer-Encoding: chunked"] {
        let mut tcp = TcpStream::connect(world.address).await.unwrap();
        let head = format!("POST /skills/upload HTTP/1.1\r\nHost: v\r\n{framing}\r\nConnection: close\r\n\r\n");
        say(&mut tcp, &head).await;
        let (mut reading, mut writing) = tcp.split();
        let trickle = async {
            loop {
                // Until the edge has had enough of it, which the answer says.
                let _ = writing
                    .write_all(if framing.contains("chunked") {
                        b"1\r\nx\r\n"
                    } else {
                        b"x"
                    })
                    .await;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let mut said = vec![0; 13];
        tokio::select! {
            biased;
            read = hang_means_failure(reading.read_exact(&mut said)) => drop(read.unwrap()),
            () = trickle => unreachable!("it never tires"),
        }
        assert_eq!(String::from_utf8_lossy(&said), "HTTP/1.1 408 ", "{framing}");
    }
    let (answer, mut body) = begin_upload(&world).await;
    let trickle = async {
        loop {
            let _ = body.send_data(Bytes::from_static(b"x"), false);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        biased;
        head = hang_means_failure(answer) => assert_eq!(head.unwrap().status(), 408),
        () = trickle => unreachable!("it never tires"),
    }
    assert_eq!(taken.load(Ordering::SeqCst), 0, "no server waits with it");
    assert_eq!(world.metric(TOO_SLOW), Some(3.0));
}

/// Beyond the held part of an upload, the edge passes it on as it comes, and the device has to keep pace there too.
#[tokio::test]
async fn an_upload_that_trickles_or_stops_is_given_up_and_its_server_is_not_blamed() {
    // The server reads everything and answers only at the end.
    let (server, _) = stack(counts).await;
    for pause in [Duration::from_millis(50), Duration::from_secs(60)] {
        let world = with_server(server, "timeouts = { device = '300ms', answer = '15s' }").await;
        let mut tcp = TcpStream::connect(world.address).await.unwrap();
        say(&mut tcp, &head(2 * HELD_BYTES)).await;
        say(&mut tcp, &"x".repeat(HELD_BYTES)).await;
        let began = tokio::time::Instant::now();
        let (mut reading, mut writing) = tcp.split();
        let trickle = async {
            loop {
                let _ = writing.write_all(b"x").await;
                tokio::time::sleep(pause).await;
            }
        };
        let mut said = vec![0; 13];
        tokio::select! {
            biased;
            read = hang_means_failure(reading.read_exact(&mut said)) => drop(read.unwrap()),
            () = trickle => unreachable!("it never tires"),
        }
        assert_eq!(String::from_utf8_lossy(&said), "HTTP/1.1 408 ", "{pause:?}");
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "{pause:?}: {:?}",
            began.elapsed()
        );
        assert_eq!(world.metric(TOO_SLOW), Some(1.0), "{pause:?}");
        assert_eq!(world.metric(DOWN), None, "{pause:?}");
    }
}

/// A server that reads nothing of a body until it may. Its kernel takes little for it.
async fn reading_later(may: Arc<Semaphore>) -> SocketAddr {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(8 << 10).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(64).unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let may = may.clone();
            tokio::spawn(async move {
                drop(may.acquire().await);
                counts_once(&mut tcp).await;
            });
        }
    });
    address
}

async fn counts_once(tcp: &mut TcpStream) {
    if let Some((_, body)) = request(tcp).await {
        let length = body.len().to_string();
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{length}", length.len());
        say(tcp, &answer).await;
    }
}

/// More than the buffers of two connections and of pingora hold: Linux lets one grow to 32 MiB.
const LONG_BYTES: usize = 48 << 20;
/// Room for that.
const LONG_BODIES: &str = "limits.body_bytes_max = 67108864\n";

#[tokio::test]
async fn the_time_in_which_a_server_does_not_read_is_not_the_device_s() {
    let may = Arc::new(Semaphore::new(0));
    let server = reading_later(may.clone()).await;
    let world = with_server(
        server,
        &format!("{LONG_BODIES}timeouts = {{ device = '1s', answer = '15s' }}"),
    )
    .await;
    let mut tcp = TcpStream::connect(world.address).await.unwrap();
    say(&mut tcp, &head(LONG_BYTES)).await;
    let (mut reading, mut writing) = tcp.split();
    let later = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        may.add_permits(1);
    };
    let body = vec![b'x'; LONG_BYTES];
    let mut said = String::new();
    let (_, _, read) = tokio::join!(
        later,
        writing.write_all(&body),
        hang_means_failure(reading.read_to_string(&mut said))
    );
    assert!(read.is_ok() && said.starts_with("HTTP/1.1 200 "), "{said}");
    assert!(said.ends_with(&LONG_BYTES.to_string()), "{said}");
    assert_eq!((world.metric(TOO_SLOW), world.metric(DOWN)), (None, None));
}

#[tokio::test]
async fn a_server_that_never_reads_is_given_up_and_the_device_is_not_blamed() {
    unless_late(async |lateness| {
        let server = reading_later(Arc::new(Semaphore::new(0))).await;
        let changes = format!("{LONG_BODIES}timeouts = {{ device = '1s', answer = '2s' }}");
        let world = lateness.of(with_server(server, &changes).await);
        let mut tcp = TcpStream::connect(world.address).await.unwrap();
        say(&mut tcp, &head(LONG_BYTES)).await;
        let (mut reading, mut writing) = tcp.split();
        let body = vec![b'x'; LONG_BYTES];
        let mut said = vec![0; 13];
        // After its answer the edge may take the rest, or close.
        let sending = async {
            let _ = writing.write_all(&body).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            read = hang_means_failure(reading.read_exact(&mut said)) => drop(read.unwrap()),
            () = sending => unreachable!("it never ends"),
        }
        assert_eq!(String::from_utf8_lossy(&said), "HTTP/1.1 504 ");
        // The server's failure is counted when the request is over, which is after its answer.
        let counted = async {
            while world.metric(DOWN).is_none() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        hang_means_failure(counted).await;
        assert_eq!((world.metric(TOO_SLOW), world.metric(DOWN)), (None, Some(1.0)));
    })
    .await;
}

/// A stack that takes calls and reads nothing of their bodies for a while. Then it takes all and answers.
async fn calls_read_later(pause: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(tcp).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    tokio::spawn(async move {
                        let mut body = request.into_body();
                        tokio::time::sleep(pause).await;
                        while let Some(part) = body.data().await {
                            body.flow_control().release_capacity(part.unwrap().len()).unwrap();
                        }
                        let head = http::Response::builder()
                            .header("content-type", "application/grpc")
                            .header("grpc-status", "0");
                        respond.send_response(head.body(()).unwrap(), true).unwrap();
                    });
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn the_time_in_which_a_region_does_not_read_a_call_is_not_the_device_s() {
    let home = calls_read_later(Duration::from_secs(3)).await;
    let world = World::of(
        "timeouts = { device = '1s', answer = '15s' }",
        &planned_at(&[("eu-west", home)]).await,
    );
    let tcp = TcpStream::connect(world.address).await.unwrap();
    let (answer, mut body) = calls::begin(tcp, calls::WINDOW).await;
    body.send_data(Bytes::from(vec![b'x'; 2 << 20]), true).unwrap();
    assert_eq!(hang_means_failure(calls::status(answer)).await.as_deref(), Some("0"));
    assert_eq!(world.metric(TOO_SLOW), None);
    assert_eq!(world.observed().get("eu-west").map(|(_, failed)| *failed), Some(0));
}
