//! Stories of devices that prove who they are: keys, tokens, tenants and their limits, revocation.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use auth::fixtures::Provider;
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpSocket,
};
use tokio_tungstenite::tungstenite::{Message, handshake::client::Response};

use crate::support::{
    Fate, Stack, World, ask, hang_means_failure,
    http::{request, say, stack},
    open, planned,
};

const KITCHEN: &str = "mk_kitchen_5f0c";
const HALL: &str = "mk_hall_91ab";

fn hash(key: &str) -> String {
    hex::encode(Sha256::digest(key))
}

/// Two tenants with a device each, and further lines.
fn document(acme: &str, more: &str) -> String {
    format!(
        "[[tenant]]\nname = \"acme\"\n{acme}\n[[tenant]]\nname = \"bolt\"\n\
         [[key]]\nname = \"kitchen\"\ntenant = \"acme\"\nsha256 = \"{}\"\n\
         [[key]]\nname = \"hall\"\ntenant = \"bolt\"\nsha256 = \"{}\"\n{more}",
        hash(KITCHEN),
        hash(HALL)
    )
}

/// The section `[auth]` of an edge that looks at its files all the time.
fn section(folder: &Path, document: &str, lines: &str) -> String {
    let file = folder.join("devices.toml");
    std::fs::write(&file, document).unwrap();
    format!("state_dir = {folder:?}\n[auth]\ndevices = {file:?}\nreload = \"20ms\"\n{lines}")
}

/// An edge that asks for keys.
async fn keyed(acme: &str, stacks: &[(&str, Stack)]) -> (TempDir, World) {
    let folder = tempfile::tempdir().unwrap();
    let section = section(folder.path(), &document(acme, ""), "mode = \"keys\"");
    let world = World::with(&section, stacks).await;
    (folder, world)
}

fn bearer(key: &str) -> String {
    format!("Bearer {key}")
}

/// The status and the code of the error that a device gets instead of a session.
async fn refused(world: &World, headers: &[(&'static str, &str)]) -> (u16, String, Box<Response>) {
    let answer = open(world.address, headers).await.map(drop).expect_err("it is refused");
    let body: Value = serde_json::from_slice(answer.body().as_deref().unwrap_or_default()).expect("errors are JSON");
    let code = body["error"]["code"].as_str().unwrap_or_default().to_owned();
    (answer.status().as_u16(), code, answer)
}

/// A request of HTTP/1.1 and its answer.
async fn get(world: &World, path: &str, lines: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n{lines}Connection: close\r\n\r\n");
    ask(world.address, &request).await
}

#[tokio::test]
async fn only_a_device_with_a_key_is_served_and_no_region_sees_the_key() {
    let (_folder, world) = keyed("", &[("eu-west", Stack::Serves(Fate::Lives))]).await;
    let (status, code, answer) = refused(&world, &[]).await;
    assert_eq!((status, code.as_str()), (401, "invalid_api_key"));
    assert_eq!(answer.headers()["www-authenticate"], "Bearer");
    assert_eq!(refused(&world, &[("authorization", "Bearer sk-other")]).await.0, 401);
    assert!(get(&world, "/v1/models", "").await.starts_with("HTTP/1.1 401 "));
    assert!(
        get(&world, "/v1/models", "Authorization: Bearer x\r\n")
            .await
            .starts_with("HTTP/1.1 401 ")
    );
    // Load balancers have no key. Where one shows a key, no region sees it.
    let health = get(&world, "/health", &format!("Authorization: Bearer {HALL}\r\n")).await;
    assert!(
        health.starts_with("HTTP/1.1 200 ") && !health.contains(HALL),
        "{health}"
    );
    let posted = "POST /health HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx";
    assert!(
        ask(world.address, posted).await.starts_with("HTTP/1.1 401 "),
        "only questions are free"
    );

    let kitchen = bearer(KITCHEN);
    let lines = format!("Authorization: {kitchen}\r\nMeridian-Tenant: bolt\r\n");
    let answer = get(&world, "/v1/models", &lines).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(
        answer.contains("meridian-tenant: acme\r\n"),
        "the edge says whose device it is: {answer}"
    );
    assert!(
        !answer.contains("bolt") && !answer.to_lowercase().contains(KITCHEN),
        "{answer}"
    );
    let mut session = world.open(&[("authorization", &kitchen)]).await;
    assert_eq!(session.hear().await, Message::text("hello"));
}

/// A region gets the upgrade without the key.
#[tokio::test]
async fn a_region_gets_the_subprotocols_without_the_key() {
    let heads = Arc::new(Mutex::new(Vec::new()));
    let heard = heads.clone();
    let (region, _) = stack(move |mut tcp| {
        let heard = heard.clone();
        async move {
            if let Some((head, _)) = request(&mut tcp).await {
                heard.lock().push(head);
                say(&mut tcp, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
            }
        }
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let section = section(folder.path(), &document("", ""), "mode = \"keys\"");
    let world = World::of(&section, &crate::support::planned_at(&[("eu-west", region)]).await);
    let offered = format!("realtime, openai-insecure-api-key.{KITCHEN}");
    let answer = open(world.address, &[("sec-websocket-protocol", &offered)]).await;
    assert_eq!(answer.map(drop).unwrap_err().status(), 400);
    let heads = heads.lock();
    let head = heads[0].to_lowercase();
    assert!(head.contains("\r\nsec-websocket-protocol: realtime\r\n"), "{head}");
    assert!(
        head.contains("\r\nmeridian-tenant: acme\r\n") && !head.contains(KITCHEN),
        "{head}"
    );
}

#[tokio::test]
async fn a_revoked_device_finishes_its_turn_and_no_more() {
    let (folder, world) = keyed("", &[("eu-west", Stack::Talks(Fate::Lives))]).await;
    let (kitchen, hall) = (bearer(KITCHEN), bearer(HALL));
    let mut session = world.open(&[("authorization", &kitchen)]).await;
    let mut other = world.open(&[("authorization", &hall)]).await;
    for session in [&mut session, &mut other] {
        assert_eq!(session.hear().await, Message::text("hello"));
        session.say("a").await;
        assert_eq!(session.hear().await, Message::text("listening"));
    }
    let revoked = document("", "[[revoked]]\nkey = \"kitchen\"\n");
    std::fs::write(folder.path().join("devices.toml"), revoked).unwrap();
    let denied = async {
        while open(world.address, &[("authorization", &kitchen)]).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    hang_means_failure(denied).await;
    session.say(".").await;
    assert_eq!(session.hear().await, Message::text("said a"));
    assert_eq!(session.hear().await, Message::text("done"));
    session
        .check_closed(1008, "your credential was revoked; ask its operator")
        .await;
    other.say(".").await;
    assert_eq!(other.hear().await, Message::text("said a"));
}

/// A session that is asked to make room may take as long as it likes over its turn, and a revoked device may not.
#[tokio::test]
async fn a_device_that_makes_room_for_others_can_still_be_revoked() {
    let folder = tempfile::tempdir().unwrap();
    let limits = "drain.window = '10ms'\ntimeouts.close = '100ms'\ndrain.limit = '300ms'\n";
    let section = section(folder.path(), &document("", ""), "mode = \"keys\"");
    let world = World::with(
        &(limits.to_owned() + &section),
        &[("eu-west", Stack::Talks(Fate::Lives))],
    )
    .await;
    let (kitchen, hall) = (bearer(KITCHEN), bearer(HALL));
    let mut session = world.open(&[("authorization", &kitchen)]).await;
    assert_eq!(session.hear().await, Message::text("hello"));
    session.say("a").await;
    assert_eq!(session.hear().await, Message::text("listening"));
    // Every twentieth session is told in the same round; this one has no turn to finish.
    let mut others = Vec::new();
    for _ in 0..20 {
        others.push(world.open(&[("authorization", &hall)]).await);
    }
    let mut told_with_it = others.pop().unwrap();
    assert_eq!(told_with_it.hear().await, Message::text("hello"));
    let shedding = async {
        loop {
            world.edge.sessions.shed();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        () = told_with_it.check_closed(1013, "edge overloaded; reconnect") => {}
        () = shedding => {}
    }
    std::fs::write(
        folder.path().join("devices.toml"),
        document("", "[[revoked]]\nkey = \"kitchen\"\n"),
    )
    .unwrap();
    session
        .check_closed(1008, "your credential was revoked; ask its operator")
        .await;
}

/// A person writes the document piece by piece, and no device is locked out meanwhile. A busy machine may write so slowly that half of the
/// document holds still; then the story is told again.
#[tokio::test]
async fn half_of_a_document_is_not_taken() {
    for _ in 0..20 {
        let (folder, world) = keyed("", &[("eu-west", Stack::Talks(Fate::Lives))]).await;
        let hall = bearer(HALL);
        let mut session = world.open(&[("authorization", &hall)]).await;
        assert_eq!(session.hear().await, Message::text("hello"));
        let file = folder.path().join("devices.toml");
        let whole = document("", "");
        let half = whole.rfind("[[key]]").unwrap();
        let began = Instant::now();
        for text in ["", &whole[..half], &whole] {
            std::fs::write(&file, text).unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if began.elapsed() > Duration::from_millis(180) {
            continue;
        }
        // Longer than a file has to hold still.
        tokio::time::sleep(Duration::from_millis(500)).await;
        session.say("a").await;
        assert_eq!(session.hear().await, Message::text("listening"));
        world.open(&[("authorization", &hall)]).await;
        return;
    }
    panic!("this machine never wrote three short files in time");
}

#[tokio::test]
async fn a_page_asks_without_a_key_whether_it_may_ask_with_one() {
    let folder = tempfile::tempdir().unwrap();
    let section = section(folder.path(), &document("", ""), "mode = \"keys\"");
    let section = section + "\n[cors]\norigins = [\"https://app.example\"]\n";
    let world = World::with(&section, &[("eu-west", Stack::Serves(Fate::Lives))]).await;
    let (mut requests, connection) =
        h2::client::handshake(tokio::net::TcpStream::connect(world.address).await.unwrap())
            .await
            .unwrap();
    tokio::spawn(connection);
    let asked = |method: &str| {
        http::Request::builder()
            .method(method)
            .uri(format!("http://{}/v1/audio/speech", world.address))
            .header("origin", "https://app.example")
            .header("access-control-request-method", "POST")
            .body(())
            .unwrap()
    };
    for (method, status) in [("OPTIONS", 204), ("GET", 401)] {
        let (answer, _) = requests.send_request(asked(method), true).unwrap();
        let answer = hang_means_failure(answer).await.unwrap();
        assert_eq!(answer.status(), status, "{method}");
        assert_eq!(answer.headers()["access-control-allow-origin"], "https://app.example");
    }
}

#[tokio::test]
async fn a_page_reads_that_its_key_is_wrong_or_its_rate_used_up() {
    let folder = tempfile::tempdir().unwrap();
    let document = document("requests_per_minute = 1", "");
    let section = section(folder.path(), &document, "mode = \"keys\"");
    let section = section + "\n[cors]\norigins = [\"https://app.example\"]\n";
    let world = World::with(&section, &[("eu-west", Stack::Serves(Fate::Lives))]).await;
    let line = |key: &str| format!("Origin: https://app.example\r\nAuthorization: {}\r\n", bearer(key));
    for (key, status) in [("sk-wrong", 401), (KITCHEN, 200), (KITCHEN, 429)] {
        let answer = get(&world, "/v1/models", &line(key)).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        let answer = answer.to_lowercase();
        let allowed = "access-control-allow-origin: https://app.example\r\n";
        assert_eq!(answer.matches(allowed).count(), 1, "{answer}");
        assert!(answer.contains("vary: origin\r\n"), "{answer}");
        let exposed = answer
            .lines()
            .find(|it| it.starts_with("access-control-expose-headers: "));
        assert!(
            exposed.is_some_and(|it| it.contains("x-ratelimit-remaining-requests")),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn a_bad_document_changes_nothing_and_is_counted() {
    let (folder, world) = keyed("", &[("eu-west", Stack::Echoes)]).await;
    let file = folder.path().join("devices.toml");
    std::fs::write(&file, "[[tenant]]\nname = 7\n").unwrap();
    let counted = async {
        while world.metric("meridian_edge_auth_documents_refused_total") != Some(1.0) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    hang_means_failure(counted).await;
    world
        .open(&[("authorization", &bearer(KITCHEN))])
        .await
        .check_echo("still here")
        .await;
    std::fs::remove_file(&file).unwrap();
    let counted = async {
        while world.metric("meridian_edge_auth_documents_refused_total") != Some(2.0) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    hang_means_failure(counted).await;
    world
        .open(&[("authorization", &bearer(HALL))])
        .await
        .check_echo("still here")
        .await;
}

#[tokio::test]
async fn a_tenant_keeps_to_its_limits_and_is_told_them() {
    let limits = "sessions_max = 1\nrequests_per_minute = 3";
    let (_folder, world) = keyed(limits, &[("eu-west", Stack::Serves(Fate::Lives))]).await;
    let (kitchen, hall) = (bearer(KITCHEN), bearer(HALL));
    let _first = world.open(&[("authorization", &kitchen)]).await;
    let (status, code, answer) = refused(&world, &[("authorization", &kitchen)]).await;
    assert_eq!((status, code.as_str()), (429, "too_many_sessions"));
    assert_eq!(answer.headers()["x-ratelimit-limit-requests"], "1");
    assert_eq!(answer.headers()["x-ratelimit-remaining-requests"], "0");
    // The refused one does not count for the rate.
    let lines = format!("Authorization: {kitchen}\r\n");
    assert!(get(&world, "/v1/models", &lines).await.starts_with("HTTP/1.1 200 "));
    assert!(get(&world, "/v1/models", &lines).await.starts_with("HTTP/1.1 200 "));
    let answer = get(&world, "/v1/models", &lines).await;
    assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
    let answer = answer.to_lowercase();
    for header in [
        "retry-after: ",
        "x-ratelimit-limit-requests: 3\r\n",
        "x-ratelimit-remaining-requests: 0\r\n",
        "x-ratelimit-reset-requests: ",
        "rate_limit_exceeded",
    ] {
        assert!(answer.contains(header), "{header}: {answer}");
    }
    let _other = world.open(&[("authorization", &hall)]).await;
    let counted = async {
        while world.metric("meridian_edge_tenant_sessions{tenant=\"bolt\"}") != Some(1.0) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    hang_means_failure(counted).await;
}

#[tokio::test]
async fn a_tenant_whose_bytes_are_used_up_comes_back_tomorrow() {
    let (_folder, world) = keyed("bytes_per_day = 50", &[("eu-west", Stack::Talks(Fate::Lives))]).await;
    let kitchen = bearer(KITCHEN);
    let mut session = world.open(&[("authorization", &kitchen)]).await;
    assert_eq!(session.hear().await, Message::text("hello"));
    session.say("a").await;
    assert_eq!(session.hear().await, Message::text("listening"));
    session.say(&"b".repeat(60)).await;
    session.say(".").await;
    assert_eq!(session.hear().await, Message::text("said a"));
    assert!(session.hear().await.to_text().unwrap().starts_with("said bbb"));
    assert_eq!(session.hear().await, Message::text("done"));
    let reason = "the devices of your tenant used their bytes of the day; come back tomorrow";
    session.check_closed(1008, reason).await;
    let (status, code, answer) = refused(&world, &[("authorization", &kitchen)]).await;
    assert_eq!((status, code.as_str()), (429, "insufficient_quota"));
    assert_eq!(answer.headers()["x-ratelimit-limit-tokens"], "50");
    assert!(answer.headers().contains_key("x-ratelimit-reset-tokens"), "{answer:?}");
    world.open(&[("authorization", &bearer(HALL))]).await;
}

/// An issuer whose set of keys a local server publishes.
async fn published(provider: &Provider) -> (SocketAddr, Arc<AtomicUsize>) {
    let set = provider.set().to_string();
    let asked = Arc::new(AtomicUsize::new(0));
    let counts = asked.clone();
    let (address, _) = stack(move |mut tcp| {
        let (set, counts) = (set.clone(), counts.clone());
        async move {
            while request(&mut tcp).await.is_some() {
                counts.fetch_add(1, Ordering::SeqCst);
                say(
                    &mut tcp,
                    &format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{set}", set.len()),
                )
                .await;
            }
        }
    })
    .await;
    (address, asked)
}

fn token(provider: &Provider, kid: &str, change: impl FnOnce(&mut Value)) -> String {
    let exp = daemon::clock::now().0 / 1000 + 600;
    let mut claims =
        json!({ "iss": "https://id.example", "aud": "voice", "sub": "ada", "tenant": "acme", "jti": "7", "exp": exp });
    change(&mut claims);
    provider.sign(&json!({ "alg": "ES256", "kid": kid }), &claims)
}

fn jwt(lines: &str) -> String {
    format!("mode = \"jwt\"\nissuer = \"https://id.example\"\naudience = [\"voice\"]\n{lines}")
}

#[tokio::test]
async fn tokens_count_also_when_their_issuer_is_gone_and_this_edge_was_restarted() {
    let provider = Provider::new();
    let (issuer, asked) = published(&provider).await;
    let folder = tempfile::tempdir().unwrap();
    let lines = jwt(&format!("jwks_url = \"http://{issuer}/jwks.json\""));
    // All come from one address here.
    let limits = "\n[limits]\nclient_requests_per_s = 100000\nclient_burst = 100000\n";
    let first = section(folder.path(), &document("", ""), &lines) + limits;
    let snapshot = planned(&[("eu-west", Stack::Echoes)]).await;
    let world = World::of(&first, &snapshot);
    let good = bearer(&token(&provider, "p", |_| {}));
    // Before the keys are here the edge says so, and does not blame the device.
    let opened = async {
        loop {
            match open(world.address, &[("authorization", &good)]).await {
                Ok(session) => return session,
                Err(answer) => assert_eq!(
                    answer.status(),
                    503,
                    "{}",
                    String::from_utf8_lossy(answer.body().as_deref().unwrap())
                ),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    hang_means_failure(opened).await.check_echo("hello").await;

    for (wrong, status) in [
        (provider.sign(&json!({ "alg": "none" }), &json!({ "sub": "ada" })), 401),
        (token(&provider, "p", |claims| claims["aud"] = json!("mail")), 401),
        (token(&provider, "p", |claims| claims["exp"] = json!(1)), 401),
        (token(&provider, "p", |claims| claims["tenant"] = json!("nobody")), 401),
        (token(&Provider::new(), "p", |_| {}), 401),
    ] {
        assert_eq!(refused(&world, &[("authorization", &bearer(&wrong))]).await.0, status);
    }
    // Every device can invent key ids, so the edge does not ask the issuer for each.
    for hundred in 0..30 {
        let tries = (0..100).map(|n| {
            let unknown = bearer(&token(&provider, &format!("k{hundred}-{n}"), |_| {}));
            let world = &world;
            async move { refused(world, &[("authorization", &unknown)]).await.0 }
        });
        let statuses = futures_util::future::join_all(tries).await;
        assert!(statuses.iter().all(|status| *status == 401), "{statuses:?}");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);

    // The issuer is down. An edge that starts has its last keys.
    let nowhere = jwt("jwks_url = \"http://127.0.0.1:9/jwks.json\"");
    let second = section(folder.path(), &document("", ""), &nowhere);
    let restarted = World::of(&second, &snapshot);
    restarted
        .open(&[("authorization", &good)])
        .await
        .check_echo("hello")
        .await;
    // A user is revoked, and its token with it, although it was verified before.
    std::fs::write(
        folder.path().join("devices.toml"),
        document("", "[[revoked]]\nuser = \"ada\"\n"),
    )
    .unwrap();
    let denied = async {
        while open(restarted.address, &[("authorization", &good)]).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    hang_means_failure(denied).await;
}

#[tokio::test]
async fn who_tries_too_many_wrong_keys_is_refused_before_they_are_looked_at() {
    let folder = tempfile::tempdir().unwrap();
    let provider = Provider::new();
    std::fs::write(folder.path().join("jwks.json"), provider.set().to_string()).unwrap();
    let lines = jwt(&format!("jwks_file = {:?}", folder.path().join("jwks.json")));
    let limits = "[limits]\nclient_requests_per_s = 1\nclient_burst = 5\n";
    let section = section(folder.path(), &document("", ""), &lines) + "\n" + limits;
    let world = World::with(&section, &[("eu-west", Stack::Serves(Fate::Lives))]).await;
    let mut statuses = std::collections::BTreeMap::new();
    for n in 0..40 {
        let forged = token(&Provider::new(), "p", |claims| claims["jti"] = json!(n));
        let lines = format!("Authorization: {}\r\n", bearer(&forged));
        let answer = get(&world, "/v1/models", &lines).await;
        *statuses.entry(answer[9..12].to_owned()).or_insert(0) += 1;
    }
    // The number that passes depends on the time of forty requests; without the limit all would pass.
    assert!(statuses["429"] > 0 && statuses["401"] >= 5, "{statuses:?}");
    assert_eq!(statuses.len(), 2, "{statuses:?}");
}

/// A request from an address of this machine, and the status of its answer.
async fn status_from(client: [u8; 4], address: SocketAddr, credential: &str) -> String {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((client, 0).into()).unwrap();
    let mut tcp = socket.connect(address).await.unwrap();
    let request =
        format!("GET /v1/models HTTP/1.1\r\nHost: a\r\nAuthorization: {credential}\r\nConnection: close\r\n\r\n");
    tcp.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    tcp.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer)[9..12].to_owned()
}

/// A flood from many addresses: each has its own small rate, and a good device at another address is served in the middle of it. How
/// an edge takes ten thousand is told beside `Access`.
#[tokio::test]
async fn a_flood_of_wrong_tokens_from_many_addresses_keeps_no_good_device_out() {
    const CLIENTS: u8 = 40;
    const TRIES: usize = 25;
    let folder = tempfile::tempdir().unwrap();
    let provider = Provider::new();
    std::fs::write(folder.path().join("jwks.json"), provider.set().to_string()).unwrap();
    let lines = jwt(&format!("jwks_file = {:?}", folder.path().join("jwks.json")));
    let limits = "[limits]\nclient_requests_per_s = 1\nclient_burst = 5\n";
    let section = section(folder.path(), &document("", ""), &lines) + "\n" + limits;
    let world = World::with(&section, &[("eu-west", Stack::Serves(Fate::Lives))]).await;
    let good = bearer(&token(&provider, "p", |_| {}));
    let forged = bearer(&token(&Provider::new(), "p", |_| {}));
    let began = Instant::now();
    let (mut judged, mut turned_away) = (0, 0);
    for round in 0..TRIES {
        let tries = (1..=CLIENTS).map(|client| status_from([127, 0, 7, client], world.address, &forged));
        let served = status_from([127, 0, 8, u8::try_from(round).unwrap()], world.address, &good);
        let (statuses, served) = tokio::join!(futures_util::future::join_all(tries), served);
        assert_eq!(served, "200", "round {round}");
        for status in statuses {
            match status.as_str() {
                "401" => judged += 1,
                "429" => turned_away += 1,
                other => panic!("{other}"),
            }
        }
    }
    // Each address has its burst, and one more each second.
    let judged_max = usize::from(CLIENTS) * (5 + 1 + usize::try_from(began.elapsed().as_secs()).unwrap());
    assert!(
        judged >= 5 * usize::from(CLIENTS) && judged <= judged_max,
        "{judged} of {judged_max}"
    );
    assert_eq!(judged + turned_away, usize::from(CLIENTS) * TRIES);
}
