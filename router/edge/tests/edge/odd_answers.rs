//! A region's odd answer means the same on every way of a request: the device sees the same, and the same side is blamed.
//!
//! One file, although it is long: most of it is the table of answers.

use std::{fmt::Write as _, net::SocketAddr, time::Duration};

use crate::support::{World, hang_means_failure, http::stack, planned_at, read_head};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// The behaviour of a stack after its words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Waits,
    Closes,
    Resets,
}
use Then::{Closes, Resets, Waits};

/// The moment at which a stack speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    /// It has read the request.
    Asked,
    /// It has read the head, and reads no more.
    HeadRead,
}
use When::{Asked, HeadRead};

/// The words of a stack for each request. `{lines}` stands for 70 header lines, `{long}` for a header of 70,000 bytes.
const ODD: &[(&str, When, &str, Then)] = &[
    (
        "usual",
        Asked,
        "HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Length: 5\r\n\r\nhello",
        Waits,
    ),
    (
        "says that it closes",
        Asked,
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello",
        Closes,
    ),
    (
        "closes unsaid",
        Asked,
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        Closes,
    ),
    (
        "100 first",
        Asked,
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        Waits,
    ),
    (
        "103 first",
        Asked,
        "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        Waits,
    ),
    ("102 alone", Asked, "HTTP/1.1 102 Processing\r\n\r\n", Waits),
    ("102 and the end", Asked, "HTTP/1.1 102 Processing\r\n\r\n", Closes),
    (
        "101 unasked",
        Asked,
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nhello",
        Waits,
    ),
    ("204", Asked, "HTTP/1.1 204 No Content\r\n\r\n", Waits),
    (
        "204 with a length and a body",
        Asked,
        "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello",
        Waits,
    ),
    (
        "204 with chunks",
        Asked,
        "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        Waits,
    ),
    (
        "304 with a length",
        Asked,
        "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\nContent-Length: 5\r\n\r\n",
        Waits,
    ),
    (
        "304 with a body",
        Asked,
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\nhello",
        Waits,
    ),
    (
        "205",
        Asked,
        "HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n",
        Waits,
    ),
    (
        "no length",
        Asked,
        "HTTP/1.1 200 OK\r\nContent-Type: a/b\r\n\r\nhello",
        Closes,
    ),
    (
        "no length, and reset",
        Asked,
        "HTTP/1.1 200 OK\r\nContent-Type: a/b\r\n\r\nhello",
        Resets,
    ),
    ("length 0", Asked, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Waits),
    (
        "HTTP/1.0",
        Asked,
        "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        Closes,
    ),
    (
        "HTTP/1.0 without a length",
        Asked,
        "HTTP/1.0 200 OK\r\n\r\nhello",
        Closes,
    ),
    (
        "HTTP/1.0 keep-alive",
        Asked,
        "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello",
        Waits,
    ),
    (
        "HTTP/1.0 with chunks",
        Asked,
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        Closes,
    ),
    (
        "HTTP/2 in its first line",
        Asked,
        "HTTP/2 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        Waits,
    ),
    (
        "chunks",
        Asked,
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        Waits,
    ),
    (
        "chunks with trailers",
        Asked,
        "HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n",
        Waits,
    ),
    (
        "chunks with extensions",
        Asked,
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\n\r\n",
        Waits,
    ),
    (
        "sizes in capitals with zeros",
        Asked,
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n00A\r\n0123456789\r\n000\r\n\r\n",
        Waits,
    ),
    (
        "no chunk",
        Asked,
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nhello",
        Waits,
    ),
    (
        "a bad chunk behind a good one",
        Asked,
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nx\r\n",
        Waits,
    ),
    (
        "chunks that break off",
        Asked,
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        Closes,
    ),
    (
        "chunks that are reset",
        Asked,
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        Resets,
    ),
    (
        "a body that breaks off",
        Asked,
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello",
        Closes,
    ),
    (
        "a body that is reset",
        Asked,
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello",
        Resets,
    ),
    (
        "a body that stops",
        Asked,
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello",
        Waits,
    ),
    (
        "too much",
        Asked,
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello, world",
        Waits,
    ),
    (
        "two answers",
        Asked,
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n",
        Waits,
    ),
    (
        "the length twice",
        Asked,
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
        Waits,
    ),
    (
        "two lengths",
        Asked,
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        Waits,
    ),
    (
        "a length in a list",
        Asked,
        "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello",
        Waits,
    ),
    (
        "a length with a sign",
        Asked,
        "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello",
        Waits,
    ),
    (
        "a length beside chunks",
        Asked,
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        Waits,
    ),
    (
        "gzip and chunks",
        Asked,
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        Waits,
    ),
    (
        "gzip alone",
        Asked,
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhello",
        Closes,
    ),
    ("a head without end", Asked, "HTTP/1.1 200 OK\r\nX: {long}", Waits),
    (
        "a large head",
        Asked,
        "HTTP/1.1 200 OK\r\nX: {long}\r\nContent-Length: 5\r\n\r\nhello",
        Waits,
    ),
    (
        "too many lines",
        Asked,
        "HTTP/1.1 200 OK\r\n{lines}Content-Length: 5\r\n\r\nhello",
        Waits,
    ),
    (
        "64 lines",
        Asked,
        "HTTP/1.1 200 OK\r\n{63}Content-Length: 5\r\n\r\nhello",
        Waits,
    ),
    ("half a head", Asked, "HTTP/1.1 200 OK\r\nContent-", Closes),
    ("half a head, and silence", Asked, "HTTP/1.1 200 OK\r\nContent-", Waits),
    (
        "bare line feeds",
        Asked,
        "HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
        Waits,
    ),
    (
        "an empty line first",
        Asked,
        "\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        Waits,
    ),
    (
        "a folded line",
        Asked,
        "HTTP/1.1 200 OK\r\nX-A: b\r\n c\r\nContent-Length: 5\r\n\r\nhello",
        Waits,
    ),
    (
        "a line without a colon",
        Asked,
        "HTTP/1.1 200 OK\r\nnonsense\r\nContent-Length: 5\r\n\r\nhello",
        Waits,
    ),
    (
        "a space before the colon",
        Asked,
        "HTTP/1.1 200 OK\r\nX-A : b\r\nContent-Length: 5\r\n\r\nhello",
        Waits,
    ),
    (
        "no reason",
        Asked,
        "HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello",
        Waits,
    ),
    (
        "another reason",
        Asked,
        "HTTP/1.1 200 Why not\r\nContent-Length: 5\r\n\r\nhello",
        Waits,
    ),
    (
        "status 099",
        Asked,
        "HTTP/1.1 099 Low\r\nContent-Length: 5\r\n\r\nhello",
        Waits,
    ),
    (
        "status 299",
        Asked,
        "HTTP/1.1 299 Mine\r\nContent-Length: 5\r\n\r\nhello",
        Waits,
    ),
    (
        "status 799",
        Asked,
        "HTTP/1.1 799 High\r\nContent-Length: 5\r\n\r\nhello",
        Waits,
    ),
    ("text of another kind", Asked, "SSH-2.0-OpenSSH\r\n", Waits),
    ("nothing, and closes", Asked, "", Closes),
    ("nothing, and resets", Asked, "", Resets),
    ("nothing at all", Asked, "", Waits),
    (
        "headers of the hop",
        Asked,
        "HTTP/1.1 200 OK\r\nKeep-Alive: timeout=5\r\nConnection: X-Hop\r\nX-Hop: 1\r\nUpgrade: x\r\nProxy-Connection: a\r\nContent-Length: 5\r\n\r\nhello",
        Waits,
    ),
    (
        "Connection names the length",
        Asked,
        "HTTP/1.1 200 OK\r\nConnection: content-length\r\nContent-Length: 5\r\n\r\nhello",
        Waits,
    ),
    (
        "a header twice",
        Asked,
        "HTTP/1.1 200 OK\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nDate: today\r\nServer: x\r\nContent-Length: 5\r\n\r\nhello",
        Waits,
    ),
    ("500", Asked, "HTTP/1.1 500 Oh\r\nContent-Length: 5\r\n\r\nsorry", Waits),
    ("503 without a length", Asked, "HTTP/1.1 503 Oh\r\n\r\nsorry", Closes),
    (
        "429",
        Asked,
        "HTTP/1.1 429 Slowly\r\nRetry-After: 3\r\nContent-Length: 5\r\n\r\nsorry",
        Waits,
    ),
    (
        "an early refusal",
        HeadRead,
        "HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\n\r\nsorry",
        Waits,
    ),
    (
        "an early refusal, and closes",
        HeadRead,
        "HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 5\r\n\r\nsorry",
        Closes,
    ),
    (
        "an early answer in chunks",
        HeadRead,
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        Waits,
    ),
    ("early nonsense", HeadRead, "no answer\r\n\r\n", Waits),
    ("an early end", HeadRead, "", Closes),
];

const BODY_BYTES: usize = 60_000;

/// The ways of a request to a region. The first of a kind is that of small requests.
fn ways() -> [(&'static str, Vec<(&'static str, String)>); 2] {
    let post =
        |framing: String, body: String| format!("POST /api/v1/voice/x HTTP/1.1\r\nHost: v\r\n{framing}\r\n\r\n{body}");
    let long = "x".repeat(BODY_BYTES);
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: v\r\n\r\n");
    [
        (
            "POST",
            vec![
                ("short", post("Content-Length: 5".into(), "hello".into())),
                (
                    "chunked",
                    post("Transfer-Encoding: chunked".into(), "5\r\nhello\r\n0\r\n\r\n".into()),
                ),
                ("held", post("Content-Length: 17000".into(), "x".repeat(17_000))),
                ("long", post(format!("Content-Length: {BODY_BYTES}"), long.clone())),
                (
                    "long and chunked",
                    post(
                        "Transfer-Encoding: chunked".into(),
                        format!("{BODY_BYTES:x}\r\n{long}\r\n0\r\n\r\n"),
                    ),
                ),
            ],
        ),
        (
            "GET",
            vec![("short", get("/v1/models")), ("other", get("/v1/audio/transcriptions"))],
        ),
    ]
}

/// A stack that answers each request in this way.
async fn odd(when: When, words: String, then: Then) -> SocketAddr {
    let (address, _) = stack(move |mut tcp| {
        let words = words.clone();
        async move {
            let Some(head) = read_head(&mut tcp).await else { return };
            if when == Asked && read_body(&mut tcp, &head.to_lowercase()).await.is_none() {
                return;
            }
            let _ = tcp.write_all(words.as_bytes()).await;
            match then {
                Waits => {
                    // It reads nothing more until the edge has gone.
                    if when == Asked {
                        let _ = tcp.read_to_end(&mut Vec::new()).await;
                    } else {
                        tokio::time::sleep(Duration::from_secs(3600)).await;
                    }
                }
                Closes => {}
                Resets => {
                    // The words arrive before the reset, which would drop them.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    tcp.set_zero_linger().unwrap();
                }
            }
        }
    })
    .await;
    address
}

async fn read_body(tcp: &mut TcpStream, head: &str) -> Option<()> {
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    if let Some(length) = length {
        let mut body = vec![0; length];
        tcp.read_exact(&mut body).await.ok()?;
    } else if head.contains("transfer-encoding") {
        let mut body = Vec::new();
        while !body.ends_with(b"\r\n0\r\n\r\n") {
            (tcp.read_buf(&mut body).await.ok()? > 0).then_some(())?;
        }
    }
    Some(())
}

/// Asks once, and behind it for a path that the edge does not serve: its 404 shows that the connection stayed. Returns what the
/// device saw, and who was blamed.
async fn ask(request: &str, (when, words, then): (When, &str, Then)) -> String {
    let lines = |count: usize| (0..count).map(|n| format!("X-{n}: {n}\r\n")).collect::<String>();
    let words = words
        .replace("{long}", &"x".repeat(70_000))
        .replace("{lines}", &lines(70))
        .replace("{63}", &lines(63));
    let home = odd(when, words, then).await;
    let changes = "workers = 1\nretry = { retries_max = 0 }\nhedge = { budget_percent = 0, body_bytes_max = 20000 }\n\
                   timeouts = { answer = '1s', upgrade = '1s', close = '200ms' }\n\
                   limits = { body_buffer_bytes_max = 20000 }";
    let world = World::of(changes, &planned_at(&[("eu-west", home)]).await);
    let mut device = TcpStream::connect(world.address).await.unwrap();
    let (mut reading, mut writing) = device.split();
    let asking = async {
        let next = "GET /nothing HTTP/1.1\r\nHost: v\r\nConnection: close\r\n\r\n";
        let _ = writing.write_all(format!("{request}{next}").as_bytes()).await;
    };
    let mut said = Vec::new();
    let (read, ()) = tokio::join!(hang_means_failure(reading.read_to_end(&mut said)), asking);
    // The end may come as a reset, depending on the unread bytes.
    let _ = read;
    let mut seen = answers(&said);
    let observed = world.observed().get("eu-west").copied().unwrap_or_default();
    let _ = write!(seen, "; (good, bad) {observed:?}; blamed");
    for fault in ["device", "region", "edge", "nobody"] {
        let name = format!("meridian_edge_faults_total{{region=\"eu-west\",fault=\"{fault}\"}}");
        if let Some(count) = world.metric(&name) {
            let _ = write!(seen, " {fault} {count}");
        }
    }
    seen
}

/// Answers as a device understands them, without the words that differ each time.
fn answers(mut bytes: &[u8]) -> String {
    let mut seen = String::new();
    while !bytes.is_empty() {
        let mut lines = [httparse::EMPTY_HEADER; 100];
        let mut head = httparse::Response::new(&mut lines);
        let Ok(httparse::Status::Complete(length)) = head.parse(bytes) else {
            let _ = write!(
                seen,
                " [no head: {:?}]",
                String::from_utf8_lossy(&bytes[..bytes.len().min(40)])
            );
            return seen;
        };
        let status = head.code.unwrap();
        let mut headers: Vec<String> = head
            .headers
            .iter()
            .map(|line| format!("{}={}", line.name.to_lowercase(), String::from_utf8_lossy(line.value)))
            .filter(|line| !line.starts_with("x-request-id=") && !line.starts_with("meridian-affinity="))
            .map(|line| line.chars().take(40).collect())
            .collect();
        headers.sort();
        let find = |name: &str| {
            headers
                .iter()
                .find_map(|line| line.strip_prefix(name).map(str::to_owned))
        };
        let is_chunked = find("transfer-encoding=").is_some_and(|coding| coding.to_lowercase().ends_with("chunked"));
        let said = find("content-length=").and_then(|length| length.parse::<usize>().ok());
        bytes = &bytes[length..];
        let (body, rest) = match said {
            _ if status < 200 || status == 204 || status == 304 => (String::new(), bytes),
            _ if is_chunked => unchunked(bytes),
            Some(length) if length <= bytes.len() => (text(&bytes[..length]), &bytes[length..]),
            Some(_) => (format!("{}[broken off]", text(bytes)), &bytes[bytes.len()..]),
            None => (format!("{}[end]", text(bytes)), &bytes[bytes.len()..]),
        };
        bytes = rest;
        if status == 404 && body.contains("/nothing") {
            seen.push_str(" [stays]");
            continue;
        }
        let _ = write!(seen, "{status} {} {headers:?} {body:?}", head.reason.unwrap_or(""));
    }
    seen
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The data of a chunked body, its trailers, and the bytes behind it.
fn unchunked(mut bytes: &[u8]) -> (String, &[u8]) {
    let mut data = String::new();
    loop {
        let line = bytes.windows(2).position(|window| window == b"\r\n");
        let Some((line, size)) = line.and_then(|line| {
            let digits = text(&bytes[..line]);
            let digits = digits.split(';').next().unwrap_or_default();
            Some((line, usize::from_str_radix(digits, 16).ok()?))
        }) else {
            return (format!("{data}[broken off]"), &[]);
        };
        bytes = &bytes[line + 2..];
        if size == 0 {
            let Some(end) = bytes.windows(2).position(|window| window == b"\r\n") else {
                return (format!("{data}[broken off]"), &[]);
            };
            if end == 0 {
                return (data, &bytes[2..]);
            }
            data = format!("{data}[{}]", text(&bytes[..end]));
            let rest = bytes.windows(4).position(|window| window == b"\r\n\r\n");
            return (data, rest.map_or(&[], |at| &bytes[at + 4..]));
        }
        if bytes.len() < size + 2 {
            return (
                format!("{data}{}[broken off]", text(&bytes[..size.min(bytes.len())])),
                &[],
            );
        }
        data.push_str(&text(&bytes[..size]));
        bytes = &bytes[size + 2..];
    }
}

/// Asks on both ways until they are alike; a busy machine may be too late for one of them now and then.
async fn differ(short: &str, other: &str, odd: (When, &str, Then)) -> Option<(String, String)> {
    let mut seen = (String::new(), String::new());
    for _ in 0..10 {
        seen = tokio::join!(ask(short, odd), ask(other, odd));
        if seen.0 == seen.1 {
            return None;
        }
    }
    Some(seen)
}

#[tokio::test]
async fn an_odd_answer_means_the_same_on_every_way() {
    let mut different = String::new();
    for (name, when, words, then) in ODD {
        let odd = (*when, *words, *then);
        for (method, ways) in ways() {
            let [(_, short), others @ ..] = &ways[..] else {
                unreachable!()
            };
            let differing = others.iter().map(|(_, other)| differ(short, other, odd));
            let differing = futures_util::future::join_all(differing).await;
            for ((way, _), differing) in others.iter().zip(differing) {
                if let Some((short, other)) = differing {
                    let _ = write!(different, "\n{method} {name}:\n  short: {short}\n  {way}: {other}");
                }
            }
        }
    }
    assert!(different.is_empty(), "{different}");
}

/// Many clients read nothing before they have sent their whole request.
#[tokio::test]
async fn an_early_answer_reaches_a_device_that_sends_all_before_it_reads() {
    let words = "HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\n\r\nsorry";
    let home = odd(HeadRead, words.to_owned(), Waits).await;
    let world = World::of("", &planned_at(&[("eu-west", home)]).await);
    let mut device = TcpStream::connect(world.address).await.unwrap();
    let length = 20 << 20;
    let head = format!("POST /api/v1/voice/x HTTP/1.1\r\nHost: v\r\nContent-Length: {length}\r\n\r\n");
    device.write_all(head.as_bytes()).await.unwrap();
    hang_means_failure(device.write_all(&vec![b'x'; length])).await.unwrap();
    let mut said = Vec::new();
    hang_means_failure(device.read_to_end(&mut said)).await.unwrap();
    assert!(answers(&said).starts_with("413 "), "{}", text(&said));
}
