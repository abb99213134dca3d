//! Pages that call from a browser: the questions that a browser asks first, and what it has to hear before it shows an answer.

use std::{net::SocketAddr, sync::atomic::Ordering};

use crate::support::{
    self, Stack, World, hang_means_failure,
    http::{answer, request, say, stack},
    planned_at,
};
use tokio::net::TcpStream;

const APP: &str = "https://app.example";
const CORS: &str = "cors.origins = ['https://app.example', 'http://localhost:3000']";

/// A region that thinks it knows about browsers.
async fn forger(mut tcp: TcpStream) {
    while let Some((head, _)) = request(&mut tcp).await {
        let said = head.to_lowercase();
        let length = said.len();
        let head = "HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: https://evil.example\r\nAccess-Control-Allow-Credentials: true\r\n\
                    Vary: Accept\r\nX-Request-Id: forged\r\n";
        say(&mut tcp, &format!("{head}Content-Length: {length}\r\n\r\n{said}")).await;
    }
}

async fn world(changes: &str) -> (World, std::sync::Arc<std::sync::atomic::AtomicUsize>) {
    let (home, taken) = stack(forger).await;
    (World::of(changes, &planned_at(&[("eu-west", home)]).await), taken)
}

/// All values of a header, in small letters.
fn values(head: &str, name: &str) -> Vec<String> {
    let lines = head.lines().map(str::to_lowercase);
    lines
        .filter_map(|line| Some(line.strip_prefix(name)?.strip_prefix(": ")?.to_owned()))
        .collect()
}

fn preflight(path: &str, origin: &str, more: &str) -> String {
    format!(
        "OPTIONS {path} HTTP/1.1\r\nHost: v\r\nOrigin: {origin}\r\nAccess-Control-Request-Method: POST\r\n\
         Access-Control-Request-Headers: authorization,content-type\r\n{more}\r\n"
    )
}

/// The requests of a page, on each way a request takes, and the answers.
fn asks(origin: &str) -> Vec<(String, u16)> {
    let head = |line: &str| format!("{line} HTTP/1.1\r\nHost: v\r\n{origin}Connection: close\r\n");
    vec![
        (format!("{}\r\n", head("GET /v1/models")), 200),
        (
            format!("{}Content-Length: 2\r\n\r\nhi", head("POST /v1/audio/speech")),
            200,
        ),
        (
            format!(
                "{}Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
                head("POST /v1/audio/speech")
            ),
            200,
        ),
        (
            format!("{}Content-Length: 2\r\n\r\nhi", head("POST /v1/audio/transcriptions")),
            200,
        ),
        // Those that the edge gives itself.
        (format!("{}\r\n", head("GET /nothing")), 404),
        (format!("{}\r\n", head("GET /v1/realtime")), 426),
        (format!("{}\r\n", head("GET /v1/models/../x")), 400),
        (
            format!("{}Content-Length: 99999999999\r\n\r\n", head("POST /v1/audio/speech")),
            413,
        ),
        (format!("{}Host: w\r\n\r\n", head("GET /v1/models")), 400),
    ]
}

#[tokio::test]
async fn a_page_that_may_call_reads_every_answer_and_others_read_none() {
    let (world, _) = world(CORS).await;
    for (origin, allowed) in [
        (format!("Origin: {APP}\r\n"), Some(APP)),
        (
            "Origin: http://localhost:3000\r\n".to_owned(),
            Some("http://localhost:3000"),
        ),
        ("Origin: https://evil.example\r\n".to_owned(), None),
        ("Origin: null\r\n".to_owned(), None),
        (String::new(), None),
    ] {
        for (text, status) in asks(&origin) {
            let said = world.ask(&text).await;
            let (head, _) = said.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{text}: {head}");
            let shown: Vec<String> = allowed.iter().map(|it| (*it).to_owned()).collect();
            assert_eq!(values(head, "access-control-allow-origin"), shown, "{text}: {head}");
            let exposed = values(head, "access-control-expose-headers");
            assert_eq!(exposed.len(), shown.len(), "{text}: {head}");
            assert!(
                exposed
                    .iter()
                    .all(|it| it.contains("x-request-id") && it.contains("retry-after"))
            );
            assert!(
                values(head, "access-control-allow-credentials").is_empty(),
                "{text}: {head}"
            );
            assert!(values(head, "vary").contains(&"origin".to_owned()), "{text}: {head}");
        }
    }
    let any = support::World::with("cors.origins = ['*']", &[("eu-west", Stack::Http)]).await;
    for (text, _) in asks("Origin: https://any.example\r\n") {
        let said = any.ask(&text).await;
        assert_eq!(values(&said, "access-control-allow-origin"), ["*"], "{said}");
    }
}

async fn ask_http2(address: SocketAddr, request: http::Request<()>) -> http::Response<()> {
    let tcp = TcpStream::connect(address).await.unwrap();
    let (sender, connection) = h2::client::handshake(tcp).await.unwrap();
    tokio::spawn(connection);
    let mut sender = hang_means_failure(sender.ready()).await.unwrap();
    let (answer, _) = sender.send_request(request, true).unwrap();
    let (head, _) = hang_means_failure(answer).await.unwrap().into_parts();
    http::Response::from_parts(head, ())
}

#[tokio::test]
async fn the_same_with_http2() {
    let (world, taken) = world(CORS).await;
    for (path, status) in [("/v1/models", 200), ("/nothing", 404)] {
        let asks = http::Request::get(format!("http://v{path}")).header("origin", APP);
        let head = ask_http2(world.address, asks.body(()).unwrap()).await;
        assert_eq!(head.status().as_u16(), status);
        assert_eq!(head.headers()["access-control-allow-origin"], APP);
        assert!(head.headers().contains_key("access-control-expose-headers"));
        assert!(!head.headers().contains_key("access-control-allow-credentials"));
        assert!(head.headers().get_all("vary").iter().any(|it| it == "Origin"));
    }
    let asked = taken.load(Ordering::SeqCst);
    for (origin, status) in [(APP, 204), ("https://evil.example", 403)] {
        let asks = http::Request::options("http://v/v1/audio/speech")
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization");
        let head = ask_http2(world.address, asks.body(()).unwrap()).await;
        assert_eq!(head.status().as_u16(), status, "{head:?}");
        let shown = head.headers().get("access-control-allow-origin");
        assert_eq!(shown.is_some(), status == 204);
        assert_eq!(
            head.headers().contains_key("access-control-allow-headers"),
            status == 204
        );
        assert!(head.headers().contains_key("x-request-id"));
    }
    assert_eq!(taken.load(Ordering::SeqCst), asked, "no region is asked what pages may");
}

#[tokio::test]
async fn the_question_of_a_browser_is_answered_by_the_edge_alone_on_the_same_connection() {
    let (world, taken) = world(CORS).await;
    let mut tcp = TcpStream::connect(world.address).await.unwrap();
    // Also for an unknown path: the page must be able to read the 404.
    for path in ["/v1/audio/transcriptions", "/v1/models", "/nothing", "/v1/realtime"] {
        say(&mut tcp, &preflight(path, APP, "")).await;
        let head = hang_means_failure(support::read_head(&mut tcp)).await.unwrap();
        assert!(head.starts_with("HTTP/1.1 204 "), "{path}: {head}");
        assert_eq!(values(&head, "access-control-allow-origin"), [APP]);
        assert_eq!(
            values(&head, "access-control-allow-headers"),
            ["authorization, content-type"]
        );
        assert_eq!(values(&head, "access-control-allow-methods"), ["get, post"]);
        assert_eq!(values(&head, "access-control-max-age"), ["600"]);
        assert_eq!(values(&head, "x-request-id").len(), 1);
        assert!(values(&head, "content-length").is_empty(), "RFC 9110 §8.6: {head}");
    }
    assert_eq!(taken.load(Ordering::SeqCst), 0, "no region was asked");
    say(&mut tcp, "GET /v1/models HTTP/1.1\r\nHost: v\r\n\r\n").await;
    assert!(answer(&mut tcp).await.0.starts_with("HTTP/1.1 200 "));
    let counted = "meridian_edge_http_requests_total{route=\"preflight\",status=\"2xx\"}";
    assert_eq!(world.metric(counted), Some(4.0));
    // A page that may not call gets the reason, for its developer.
    let said = world.ask(&preflight("/v1/models", "https://evil.example", "")).await;
    assert!(
        said.starts_with("HTTP/1.1 403 ") && said.contains("origin_not_allowed"),
        "{said}"
    );
    assert!(values(&said, "access-control-allow-origin").is_empty());
    assert_eq!(
        world.metric("meridian_edge_refused_total{reason=\"origin\"}"),
        Some(1.0)
    );
    // One with a body that never comes is answered as well.
    let said = world
        .ask(&preflight(
            "/v1/models",
            APP,
            "Content-Length: 2\r\nConnection: close\r\n",
        ))
        .await;
    assert!(said.starts_with("HTTP/1.1 204 "), "{said}");
    assert_eq!(values(&said, "access-control-allow-origin"), [APP]);
}

#[tokio::test]
async fn the_question_of_a_browser_costs_its_client_as_much_as_any() {
    let limits = format!("{CORS}\nlimits = {{ client_requests_per_s = 1, client_burst = 3 }}");
    let (world, _) = world(&limits).await;
    let mut tcp = TcpStream::connect(world.address).await.unwrap();
    for _ in 0..3 {
        say(&mut tcp, &preflight("/v1/models", APP, "")).await;
        let head = hang_means_failure(support::read_head(&mut tcp)).await.unwrap();
        assert!(head.starts_with("HTTP/1.1 204 "), "{head}");
    }
    let mut head = String::new();
    // A second between two questions allows one more.
    for _ in 0..20 {
        say(&mut tcp, &preflight("/v1/models", APP, "")).await;
        head = hang_means_failure(support::read_head(&mut tcp)).await.unwrap();
        if !head.starts_with("HTTP/1.1 204 ") {
            break;
        }
    }
    assert!(head.starts_with("HTTP/1.1 429 "), "{head}");
    assert_eq!(
        values(&head, "access-control-allow-origin"),
        [APP],
        "the page may read why"
    );
}

#[tokio::test]
async fn without_origins_the_edge_says_nothing_to_browsers() {
    let (world, taken) = world("").await;
    for (text, status) in asks(&format!("Origin: {APP}\r\n")) {
        let said = world.ask(&text).await;
        assert!(said.starts_with(&format!("HTTP/1.1 {status} ")), "{said}");
        let (head, _) = said.split_once("\r\n\r\n").unwrap();
        assert!(!head.to_lowercase().contains("access-control-"), "{head}");
        assert!(!values(head, "vary").contains(&"origin".to_owned()), "{head}");
    }
    // A request then is a request like any other.
    let asked = taken.load(Ordering::SeqCst);
    let said = world
        .ask(&preflight("/v1/audio/voices", APP, "Connection: close\r\n"))
        .await;
    assert!(
        said.starts_with("HTTP/1.1 200 ") && said.contains("options /v1/audio/voices"),
        "{said}"
    );
    assert!(taken.load(Ordering::SeqCst) >= asked);
}

#[tokio::test]
async fn an_operators_server_speaks_to_browsers_itself() {
    let (server, _) = stack(forger).await;
    let group = format!("{CORS}\n[[upstream]]\npath = '/skills/'\nservers = ['{server}']");
    let (world, _) = world(&group).await;
    for text in [
        preflight("/skills/x", APP, "Connection: close\r\n"),
        format!("GET /skills/x HTTP/1.1\r\nHost: v\r\nOrigin: {APP}\r\nConnection: close\r\n\r\n"),
    ] {
        let said = world.ask(&text).await;
        let (head, _) = said.split_once("\r\n\r\n").unwrap();
        assert_eq!(
            values(head, "access-control-allow-origin"),
            ["https://evil.example"],
            "{said}"
        );
        assert_eq!(values(head, "x-request-id").len(), 1, "{said}");
        assert!(!said.contains("forged"), "{said}");
    }
}

#[tokio::test]
async fn a_session_opens_for_any_page() {
    let world = World::with(CORS, &[("eu-west", Stack::Echoes)]).await;
    for origin in [APP, "https://evil.example"] {
        let mut session = world.open(&[("origin", origin)]).await;
        session.check_echo("hello").await;
        assert_eq!(session.header("access-control-allow-origin"), "");
        assert_eq!(session.header("x-request-id").len(), 36);
    }
}
