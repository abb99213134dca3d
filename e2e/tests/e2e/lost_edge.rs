//! Edges are lost in a world of real processes, and the real name server is asked until it names them no more: both are killed,
//! then one is out of reach of devices while it reports and follows plans.
//!
//! Needs all programs: `cargo build --workspace --bins` (`make test` does it).

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use api::v1::{Reason, StatusReply};
use drill::observe::Observer;
use e2e::Stage;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};
use topology::{Policy, Tick};
use world::layout::{Kind, configuration_file};

/// Time for a plan to be decided, published and answered by, and for the question.
const PUBLISHED_WITHIN: Duration = Duration::from_secs(10);
/// The edge that is lost, and the one that stays.
const LOST: &str = "edge-iad";
const LEFT: &str = "edge-dub";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_edges_leave_the_answers_in_time_and_the_last_one_never_does() {
    let stage = Stage::set().await;
    let observer = Observer::start(stage.world.operator());
    dead_edges(&stage, &observer).await;
    an_edge_out_of_reach(&stage, &observer).await;
    drop(observer);
    stage.clear().await;
}

/// The address at which devices reach an edge by the topology.
async fn public_address(stage: &Stage, edge: &str) -> SocketAddr {
    let url = &stage.world.record().await.edges[edge];
    url.trim_start_matches("http://").parse().unwrap()
}

/// Asks the name server until its answer is as wanted, for so long at most.
async fn names(stage: &Stage, what: &str, limit: Duration, wanted: impl Fn(&[IpAddr]) -> bool) {
    let answers = async {
        // A busy name server may leave one of hundreds of questions unanswered.
        while !stage
            .resolver
            .answer()
            .await
            .is_ok_and(|answer| wanted(&answer.addresses))
        {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let answered = tokio::time::timeout(limit, answers).await;
    assert!(answered.is_ok(), "{what}: not within {limit:?}");
}

async fn both_are_named(stage: &Stage, limit: Duration) {
    let (lost, left) = (public_address(stage, LOST).await, public_address(stage, LEFT).await);
    names(stage, "both are named", limit, |them| {
        them.contains(&lost.ip()) && them.contains(&left.ip())
    })
    .await;
}

/// Waits until only the other edge is named, from a fault that began just now.
async fn the_lost_one_leaves(stage: &Stage) {
    let (policy, began) = (Policy::default().edges, daemon::clock::now());
    let left = public_address(stage, LEFT).await.ip();
    let bound = policy.lost_after + Tick::LENGTH + PUBLISHED_WITHIN;
    names(stage, "the lost edge is out", bound, |them| them == [left]).await;
    let took = daemon::clock::now().since(began);
    assert!(
        took >= policy.lost_after - Tick::LENGTH,
        "{took:?}: a restart is quicker than that"
    );
    println!("        out after {:.1} s", took.as_secs_f64());
}

async fn dead_edges(stage: &Stage, observer: &Observer) {
    let policy = Policy::default().edges;
    stage.scene("an edge is killed: the name server names it no more within what configs/policy.toml promises");
    stage.world.kill(LOST).await.unwrap();
    the_lost_one_leaves(stage).await;

    stage.scene("the other one is killed too: somebody has to be named, so it stays");
    stage.world.kill(LEFT).await.unwrap();
    let limit = policy.lost_after + 2 * Tick::LENGTH;
    observer
        .until("the floor", limit, |status| says(status, "edge-floor", ""))
        .await
        .unwrap();
    let left = public_address(stage, LEFT).await.ip();
    names(stage, "the last one is named", PUBLISHED_WITHIN, |them| them == [left]).await;

    stage.scene("both come back: both are named again");
    stage.world.restart(LOST).await.unwrap();
    stage.world.restart(LEFT).await.unwrap();
    both_are_named(stage, policy.returned_after + 3 * Tick::LENGTH + PUBLISHED_WITHIN).await;
}

/// The passage of devices' connections to an edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Passage {
    Open,
    /// No process listens: a balancer that is down, a firewall that rejects.
    Refuses,
    /// Connections are taken, and nothing is passed on: a balancer that lost its edge.
    Swallows,
}

/// A balancer with the public address of an edge. The edge listens elsewhere, and its reports and plans do not pass here.
struct Balancer {
    passage: watch::Sender<Passage>,
    _serves: JoinSet<()>,
}

impl Balancer {
    fn start(public: SocketAddr, edge: SocketAddr) -> Self {
        let (passage, mut passages) = watch::channel(Passage::Open);
        let mut serves = JoinSet::new();
        serves.spawn(async move {
            loop {
                let now = *passages.borrow_and_update();
                if now == Passage::Refuses {
                    if passages.changed().await.is_err() {
                        return;
                    }
                    continue;
                }
                let listener = TcpListener::bind(public).await.unwrap();
                // All of them end when the passage changes. Two vantages and no devices connect here, each once a tick.
                let (mut passing, mut swallowed) = (JoinSet::new(), Vec::new());
                loop {
                    let mut device = tokio::select! {
                        accepted = listener.accept() => accepted.unwrap().0,
                        changed = passages.changed() => match changed {
                            Ok(()) => break,
                            Err(_) => return,
                        },
                    };
                    if now == Passage::Swallows {
                        swallowed.push(device);
                        continue;
                    }
                    passing.spawn(async move {
                        if let Ok(mut edge) = TcpStream::connect(edge).await {
                            // Its end concerns only the two.
                            let _ = tokio::io::copy_bidirectional(&mut device, &mut edge).await;
                        }
                    });
                }
            }
        });
        Self {
            passage,
            _serves: serves,
        }
    }

    fn set(&self, passage: Passage) {
        self.passage.send_replace(passage);
    }
}

/// Puts a balancer in front of the edge that will be lost, at the address that the topology names.
async fn balance(stage: &Stage) -> Balancer {
    let public = public_address(stage, LOST).await;
    let IpAddr::V4(ip) = public.ip() else {
        panic!("{public}: a world is in 127.0.0.0/8");
    };
    // A host of the world's own network, where none of its processes is.
    let [a, b, c, _] = ip.octets();
    let own = SocketAddr::from((Ipv4Addr::new(a, b, c, 101), public.port()));
    let file = configuration_file(stage.world.state_dir(), LOST, Kind::Edge);
    let text = std::fs::read_to_string(&file).unwrap();
    let (listens, elsewhere) = (format!("listen = [\"{public}\"]"), format!("listen = [\"{own}\"]"));
    assert!(text.contains(&listens), "{text}");
    std::fs::write(&file, text.replace(&listens, &elsewhere)).unwrap();
    stage.world.restart(LOST).await.unwrap();
    Balancer::start(public, own)
}

/// The newest reason with this code; there may be decisions about other things after it.
async fn newest_reason(stage: &Stage, code: &str) -> Reason {
    let decisions = stage.world.operator().history(0).await.unwrap();
    let mut reasons = decisions.iter().flat_map(|decision| &decision.reasons);
    let reason = reasons.find(|reason| reason.code == code).cloned();
    reason.unwrap_or_else(|| panic!("no {code} in {decisions:#?}"))
}

fn says(status: &StatusReply, code: &str, text: &str) -> bool {
    let is_it = |reason: &Reason| reason.code == code && reason.text.contains(text);
    status.waiting.iter().any(is_it)
}

/// The edge runs, reports and follows plans, and devices cannot connect to it: only other vantages can tell.
async fn an_edge_out_of_reach(stage: &Stage, observer: &Observer) {
    let policy = Policy::default().edges;
    let balancer = balance(stage).await;
    let pid = stage.world.pids().await[LOST];
    both_are_named(stage, Duration::from_secs(20)).await;
    for passage in [Passage::Refuses, Passage::Swallows] {
        stage.scene(&format!(
            "an edge that reports is out of reach ({passage:?}): the name server names it no more within what configs/policy.toml promises"
        ));
        balancer.set(passage);
        the_lost_one_leaves(stage).await;
        let why = newest_reason(stage, "edge-lost").await;
        let said = format!("2 of 2 vantages have not reached {LOST} at its public addresses");
        assert!(
            why.text.contains(&said) && why.text.contains("though it reports"),
            "{}",
            why.text
        );
        let status = crate::status(stage).await;
        let seen = status.edges.iter().find(|seen| seen.edge == LOST).unwrap();
        assert_eq!(seen.state, "lost");
        assert!(
            status.now_ms - seen.heard_at_ms < Tick::LENGTH.as_millis() as u64,
            "it is not silent: {seen:?}"
        );

        stage.scene("it is reached again: it is named again, and the reason does not say that it had been silent");
        balancer.set(Passage::Open);
        let reached = format!("vantages reach {LOST} at its public addresses again");
        let is_said = |status: &StatusReply| says(status, "edge-returned", &reached);
        let limit = 2 * Tick::LENGTH + PUBLISHED_WITHIN;
        observer.until("the return is announced", limit, is_said).await.unwrap();
        both_are_named(stage, policy.returned_after + Tick::LENGTH + PUBLISHED_WITHIN).await;
        let why = newest_reason(stage, "edge-returned").await;
        assert_eq!(why.text, format!("{reached}, and DNS names it again"));
    }
    assert_eq!(stage.world.pids().await[LOST], pid, "it ran all the time");
}
