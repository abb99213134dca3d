//! Stories of requests that meet regions which are slow, broken or full.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crate::support::{self, Stack, World, hang_means_failure, planned_at, read_head, stack};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
};

/// A stack that answers every request with its name, once it may.
struct Named {
    address: SocketAddr,
    /// Requests that came in.
    asked: Arc<AtomicUsize>,
    /// Connections whose peer left before it was answered.
    left: watch::Receiver<usize>,
    /// One permit lets one answer out.
    gate: Arc<Semaphore>,
}

/// The behaviour of a named stack once it may act.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Does {
    Answers(u16),
    /// Hangs up instead of answering.
    HangsUp,
    /// Hangs up in the middle of its answer.
    StopsHalfway,
}

async fn named(name: &'static str, does: Does) -> Named {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (asked, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let (leaves, left) = watch::channel(0);
    let (asks, opens) = (asked.clone(), gate.clone());
    let leaves = Arc::new(leaves);
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let (asks, opens, leaves) = (asks.clone(), opens.clone(), leaves.clone());
            tokio::spawn(async move {
                while let Some(head) = read_head(&mut tcp).await {
                    let length = head.lines().find_map(|line| {
                        let line = line.to_lowercase();
                        line.strip_prefix("content-length: ")?.trim().parse().ok()
                    });
                    let mut body = vec![0; length.unwrap_or(0)];
                    if tcp.read_exact(&mut body).await.is_err() {
                        return;
                    }
                    asks.fetch_add(1, Ordering::SeqCst);
                    let mut one = [0];
                    tokio::select! {
                        permit = opens.acquire() => permit.unwrap().forget(),
                        // No byte follows a request before its answer, so this wait ends only with the connection.
                        _ = tcp.read(&mut one) => {
                            leaves.send_modify(|left| *left += 1);
                            return;
                        }
                    }
                    let said = format!("{name} heard {} bytes", body.len());
                    let answer = match does {
                        Does::Answers(status) => {
                            format!("HTTP/1.1 {status} Well\r\nContent-Length: {}\r\n\r\n{said}", said.len())
                        }
                        Does::HangsUp => return,
                        Does::StopsHalfway => format!("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{said}"),
                    };
                    if tcp.write_all(answer.as_bytes()).await.is_err() || does == Does::StopsHalfway {
                        return;
                    }
                }
            });
        }
    });
    Named {
        address,
        asked,
        left,
        gate,
    }
}

impl Named {
    fn open(&self) {
        self.gate.add_permits(1_000_000);
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    async fn until_asked(&self, count: usize) {
        let asked = async {
            while self.asked() < count {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        hang_means_failure(asked).await;
    }
}

/// Home, its first backup and its second.
async fn world(changes: &str, stacks: &[&Named]) -> World {
    let names = ["eu-west", "eu-central", "us-west"];
    let stacks: Vec<_> = names
        .into_iter()
        .zip(stacks.iter().map(|stack| stack.address))
        .collect();
    World::of(changes, &planned_at(&stacks).await)
}

fn post(path: &str, body: &str) -> String {
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nHost: v\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
}

fn transcription() -> String {
    post("/v1/audio/transcriptions", "a recording")
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: v\r\nConnection: close\r\n\r\n")
}

const EAGER: &str = "hedge.after = '20ms'\nhedge.budget_percent = 100\n";

fn hedges(world: &World, outcome: &str) -> f64 {
    world
        .metric(&format!("meridian_edge_hedges_total{{outcome=\"{outcome}\"}}"))
        .unwrap_or(0.0)
}

#[tokio::test]
async fn the_first_good_answer_wins_and_the_slow_region_is_hung_up_on() {
    for path in ["/v1/audio/transcriptions", "/api/v1/voice/transcribe"] {
        let (slow, quick) = (
            named("slow", Does::Answers(200)).await,
            named("quick", Does::Answers(200)).await,
        );
        quick.open();
        let world = world(EAGER, &[&slow, &quick]).await;
        let answer = world.ask(&post(path, "a recording")).await;
        assert!(
            answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("quick heard 11 bytes"),
            "{answer}"
        );
        assert!(
            answer.to_lowercase().contains("meridian-region: eu-central"),
            "{answer}"
        );
        assert_eq!((slow.asked(), quick.asked()), (1, 1));
        let mut left = slow.left.clone();
        hang_means_failure(left.wait_for(|left| *left == 1)).await.unwrap();
        assert_eq!((hedges(&world, "sent"), hedges(&world, "won")), (1.0, 1.0));
        // Its answer comes too late: the stack of the next request answers that one.
        slow.open();
        let answer = world.ask(&post(path, "another")).await;
        assert!(answer.ends_with("heard 7 bytes"), "{answer}");
        assert_eq!(world.observed()["eu-west"].1, 0, "slow is not broken");
    }
}

#[tokio::test]
async fn a_region_that_answers_in_time_is_asked_alone() {
    let (first, second) = (
        named("first", Does::Answers(200)).await,
        named("second", Does::Answers(200)).await,
    );
    first.open();
    let world = world("hedge.after = '10s'\nhedge.budget_percent = 100\n", &[&first, &second]).await;
    for _ in 0..5 {
        assert!(world.ask(&transcription()).await.ends_with("first heard 11 bytes"));
    }
    assert_eq!((first.asked(), second.asked()), (5, 0));
}

#[tokio::test]
async fn a_connection_is_kept_between_transcriptions_on_both_sides() {
    let region = named("region", Does::Answers(200)).await;
    region.open();
    let world = world("hedge.after = '10s'", &[&region]).await;
    let mut device = TcpStream::connect(world.address).await.unwrap();
    for n in 1..4 {
        let recording = "x".repeat(n);
        let request =
            format!("POST /v1/audio/transcriptions HTTP/1.1\r\nHost: v\r\nContent-Length: {n}\r\n\r\n{recording}");
        device.write_all(request.as_bytes()).await.unwrap();
        let head = hang_means_failure(read_head(&mut device))
            .await
            .expect("the connection is kept");
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        let expected = format!("region heard {n} bytes");
        let mut heard = vec![0; expected.len()];
        hang_means_failure(device.read_exact(&mut heard)).await.unwrap();
        assert_eq!(String::from_utf8(heard).unwrap(), expected);
    }
    let opened = world.metric("meridian_edge_connects_total{region=\"eu-west\",outcome=\"ok\"}");
    assert_eq!(opened, Some(1.0), "one connection served all three");
    let old = "POST /v1/audio/transcriptions HTTP/1.0\r\nContent-Length: 1\r\n\r\nx";
    assert!(world.ask(old).await.ends_with("region heard 1 bytes"));
}

#[tokio::test]
async fn a_tenth_of_the_transcriptions_is_copied_and_no_more() {
    let (slow, quick) = (
        named("slow", Does::Answers(200)).await,
        named("quick", Does::Answers(200)).await,
    );
    quick.open();
    let world = world("hedge.after = '1ms'\n", &[&slow, &quick]).await;
    let ask = || {
        let address = world.address;
        tokio::spawn(async move { support::ask(address, &transcription()).await })
    };
    // All of them are slow, and thirty are asked within ten seconds.
    let answers: Vec<_> = (0..30).map(|_| ask()).collect();
    slow.until_asked(30).await;
    let both = async {
        while hedges(&world, "sent") + hedges(&world, "budget-exhausted") < 30.0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    hang_means_failure(both).await;
    slow.open();
    for answer in answers {
        assert!(answer.await.unwrap().starts_with("HTTP/1.1 200 "));
    }
    // A copy that was sent may have been cancelled before it arrived.
    let sent = hedges(&world, "sent");
    assert!(
        (1.0..=3.0).contains(&sent) && quick.asked() as f64 <= sent,
        "{sent} copies of 30"
    );
}

#[tokio::test]
async fn a_bad_answer_does_not_win_over_a_good_one_that_comes_later() {
    let (good, bad) = (
        named("good", Does::Answers(200)).await,
        named("bad", Does::Answers(503)).await,
    );
    bad.open();
    let world = world(EAGER, &[&good, &bad]).await;
    let asking = tokio::spawn({
        let address = world.address;
        async move { support::ask(address, &transcription()).await }
    });
    bad.until_asked(1).await;
    good.open();
    let answer = asking.await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("good heard 11 bytes"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_recording_goes_on_to_the_next_region_when_one_refuses_or_breaks() {
    let (broken, works) = (
        named("broken", Does::HangsUp).await,
        named("works", Does::Answers(200)).await,
    );
    broken.open();
    works.open();
    // Home has no listener at all, its first backup hangs up.
    let stacks = [("eu-central", broken.address), ("us-west", works.address)];
    let world = World::of("hedge.after = '10s'", &planned_at(&stacks).await);
    let answer = world.ask(&transcription()).await;
    assert!(answer.ends_with("works heard 11 bytes"), "{answer}");
    let observed = world.observed();
    assert_eq!((observed["eu-west"].1, observed["eu-central"].1), (1, 1));
}

#[tokio::test]
async fn long_recordings_and_those_of_unknown_length_are_streamed_to_one_region() {
    let (slow, quick) = (
        named("slow", Does::Answers(200)).await,
        named("quick", Does::Answers(200)).await,
    );
    quick.open();
    let world = world(&format!("{EAGER}hedge.body_bytes_max = 10\n"), &[&slow, &quick]).await;
    let asking = tokio::spawn({
        let address = world.address;
        async move { support::ask(address, &transcription()).await }
    });
    slow.until_asked(1).await;
    // Five times as long as a copy would have waited.
    tokio::time::sleep(Duration::from_millis(100)).await;
    slow.open();
    assert!(asking.await.unwrap().ends_with("slow heard 11 bytes"));
    assert_eq!(quick.asked(), 0);
}

#[tokio::test]
async fn a_device_that_leaves_takes_all_copies_along() {
    let (one, two) = (
        named("one", Does::Answers(200)).await,
        named("two", Does::Answers(200)).await,
    );
    let world = world(EAGER, &[&one, &two]).await;
    let mut device = TcpStream::connect(world.address).await.unwrap();
    device.write_all(transcription().as_bytes()).await.unwrap();
    one.until_asked(1).await;
    two.until_asked(1).await;
    drop(device);
    for stack in [&one, &two] {
        hang_means_failure(stack.left.clone().wait_for(|left| *left == 1))
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn what_only_reads_is_asked_again_elsewhere_and_what_does_not_is_not() {
    let (broken, works) = (
        named("broken", Does::HangsUp).await,
        named("works", Does::Answers(200)).await,
    );
    broken.open();
    works.open();
    let world = world("retry.base = '20ms'", &[&broken, &works]).await;
    let began = Instant::now();
    let answer = world.ask(&get("/v1/models")).await;
    assert!(answer.ends_with("works heard 0 bytes"), "{answer}");
    assert!(began.elapsed() >= Duration::from_millis(10), "it paused first");
    let answer = world.ask(&post("/api/v1/voice/anything", "do this")).await;
    assert!(
        answer.starts_with("HTTP/1.1 502 ") && answer.contains("region_failed"),
        "{answer}"
    );
    assert_eq!((broken.asked(), works.asked()), (2, 1));
}

#[tokio::test]
async fn an_answer_that_has_begun_is_never_begun_again() {
    let (halfway, works) = (
        named("halfway", Does::StopsHalfway).await,
        named("works", Does::Answers(200)).await,
    );
    halfway.open();
    works.open();
    let world = world("", &[&halfway, &works]).await;
    for request in [get("/v1/models"), transcription()] {
        let answer = world.ask(&request).await;
        assert!(!answer.contains("works"), "{answer}");
    }
    assert_eq!((halfway.asked(), works.asked()), (2, 0));
}

#[tokio::test]
async fn retries_stay_within_their_budget() {
    let all: Vec<Named> = [
        named("a", Does::HangsUp).await,
        named("b", Does::HangsUp).await,
        named("c", Does::HangsUp).await,
    ]
    .into();
    for stack in &all {
        stack.open();
    }
    let world = world("retry = { base = '1ms', budget_min = 2 }", &[&all[0], &all[1], &all[2]]).await;
    for _ in 0..20 {
        let answer = world.ask(&get("/v1/models")).await;
        assert!(answer.starts_with("HTTP/1.1 50"), "{answer}");
    }
    // A fifth of twenty, which is more than the two there always are.
    let asked: usize = all.iter().map(Named::asked).sum();
    assert!((20..=24).contains(&asked), "{asked} attempts for 20 requests");
    let exhausted = world.metric("meridian_edge_retries_total{outcome=\"budget-exhausted\"}");
    assert!(exhausted.is_some_and(|count| count >= 15.0), "{exhausted:?}");
}

#[tokio::test]
async fn a_region_at_its_limit_is_passed_over_and_sessions_do_not_count() {
    let (full, next) = (
        named("full", Does::Answers(200)).await,
        named("next", Does::Answers(200)).await,
    );
    let world = world(
        "breaker.max_requests = 2\nlimits.client_in_flight_max = 0\nhedge.budget_percent = 0\n",
        &[&full, &next],
    )
    .await;
    let ask = || {
        let address = world.address;
        tokio::spawn(async move { support::ask(address, &transcription()).await })
    };
    let first = [ask(), ask()];
    full.until_asked(2).await;
    let second = [ask(), ask()];
    next.until_asked(2).await;
    assert_eq!(
        world.metric("meridian_edge_breaker_open_total{region=\"eu-west\",limit=\"requests\"}"),
        Some(2.0)
    );
    // The third region has no listener, so nothing is left for the fifth.
    let answer = world.ask(&transcription()).await;
    assert!(
        answer.starts_with("HTTP/1.1 503 ") && answer.contains("overloaded"),
        "{answer}"
    );
    assert!(answer.to_lowercase().contains("retry-after: "), "{answer}");
    full.open();
    next.open();
    for asking in first {
        assert!(asking.await.unwrap().ends_with("full heard 11 bytes"));
    }
    for asking in second {
        assert!(asking.await.unwrap().ends_with("next heard 11 bytes"));
    }
    // Their places are free again.
    assert!(world.ask(&transcription()).await.ends_with("full heard 11 bytes"));

    let echoes = World::with(
        "breaker.max_requests = 1\nlimits.client_in_flight_max = 0\nbreaker.max_connections = 1\n",
        &[("eu-west", Stack::Echoes)],
    )
    .await;
    let mut sessions = Vec::new();
    for _ in 0..5 {
        sessions.push(echoes.open(&[]).await);
    }
    for session in &mut sessions {
        session.check_echo("hello").await;
    }
}

#[tokio::test]
async fn what_a_region_has_said_so_far_is_passed_on_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let world = World::of("", &planned_at(&[("eu-west", listener.local_addr().unwrap())]).await);
    for path in ["/v1/audio/speech", "/v1/audio/transcriptions"] {
        let mut device = TcpStream::connect(world.address).await.unwrap();
        device.write_all(post(path, "x").as_bytes()).await.unwrap();
        let (mut region, _) = hang_means_failure(listener.accept()).await.unwrap();
        read_head(&mut region).await.unwrap();
        region.read_u8().await.unwrap();
        let first = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n";
        region.write_all(first).await.unwrap();
        let mut heard = Vec::new();
        while !heard.ends_with(b"first\r\n") {
            assert_ne!(
                hang_means_failure(device.read_buf(&mut heard)).await.unwrap(),
                0,
                "{heard:?}"
            );
        }
        region.write_all(b"4\r\nlast\r\n0\r\n\r\n").await.unwrap();
        hang_means_failure(device.read_to_end(&mut heard)).await.unwrap();
        assert!(
            heard.ends_with(b"last\r\n0\r\n\r\n"),
            "{}",
            String::from_utf8_lossy(&heard)
        );
    }
}

fn upstream(servers: &[SocketAddr], more: &str) -> String {
    let servers: Vec<String> = servers.iter().map(|server| format!("'{server}'")).collect();
    format!(
        "upstream = [{{ path = '/skills/', servers = [{}]{more} }}]\n",
        servers.join(", ")
    )
}

#[tokio::test]
async fn another_service_lives_behind_a_path_of_the_same_url() {
    let (skills, region) = (
        named("skills", Does::Answers(200)).await,
        named("region", Does::Answers(200)).await,
    );
    skills.open();
    region.open();
    let world = world(&upstream(&[skills.address], ""), &[&region]).await;
    let answer = world.ask(&post("/skills/weather?city=dublin", "now")).await;
    assert!(answer.ends_with("skills heard 3 bytes"), "{answer}");
    assert!(!answer.to_lowercase().contains("meridian-region"), "{answer}");
    assert!(world.ask(&get("/v1/models")).await.ends_with("region heard 0 bytes"));
    let answer = world.ask(&get("/skill")).await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
}

#[tokio::test]
async fn requests_spread_over_servers_and_leave_one_that_fails_three_times() {
    let (one, two) = (
        named("one", Does::Answers(200)).await,
        named("two", Does::Answers(200)).await,
    );
    one.open();
    two.open();
    let dead = stack(Stack::Refuses).await;
    let world = world(&upstream(&[one.address, dead, two.address], ""), &[]).await;
    // One after the other, so that all have the same number in flight and take turns.
    for _ in 0..20 {
        let answer = world.ask(&post("/skills/", "")).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    assert_eq!(one.asked() + two.asked(), 20);
    assert!(
        one.asked().abs_diff(two.asked()) <= 4,
        "{} and {}",
        one.asked(),
        two.asked()
    );
    assert_eq!(
        world.metric("meridian_edge_upstream_down_total{path=\"/skills/\"}"),
        Some(1.0)
    );

    let all_down = World::with(&upstream(&[dead], ", max_fails = 1"), &[]).await;
    for _ in 0..3 {
        let answer = all_down.ask(&get("/skills/")).await;
        assert!(
            answer.starts_with("HTTP/1.1 503 ") && answer.contains("no_server"),
            "{answer}"
        );
    }
}
