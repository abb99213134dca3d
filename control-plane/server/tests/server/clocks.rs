//! A real control plane with a clock that differs from those of its edges: it decides all the same, and names the wrong clock.

use std::time::Duration;

use crate::common::{ControlPlane, DEADLINE, status_of};
use api::v1::{self, observations_client::ObservationsClient};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};
use tokio_stream::wrappers::ReceiverStream;
use topology::{RegionId, RegionState};

/// The report of an edge on a tick in which it sees us-east dead and every other region healthy.
fn report(vantage: &str, tick: u64, sent_ms: u64) -> v1::TickReport {
    let observation = |region: &str| {
        let (succeeded, failed) = if region == "us-east" { (0, 20) } else { (20, 0) };
        v1::Observation {
            region: region.to_owned(),
            component: "gateway".to_owned(),
            source: v1::Source::Probe.into(),
            succeeded,
            failed,
            ..Default::default()
        }
    };
    v1::TickReport {
        vantage: vantage.to_owned(),
        tick,
        sent_ms,
        observations: [
            "us-east",
            "us-west",
            "eu-west",
            "eu-central",
            "ap-south",
            "ap-northeast",
        ]
        .map(observation)
        .to_vec(),
        ..Default::default()
    }
}

/// Sends a report of one vantage on each of the ticks. Returns the reasons for which receipts refuse them.
async fn send(control_plane: &ControlPlane, vantage: &str, ticks: [u64; 2], ahead_ms: i64) -> Vec<v1::ReportReceipt> {
    let (reports, requests) = mpsc::channel(2);
    for tick in ticks {
        let sent = daemon::clock::now().0.saturating_add_signed(ahead_ms);
        reports.send(report(vantage, tick, sent)).await.unwrap();
    }
    let mut client = ObservationsClient::connect(control_plane.endpoint.clone())
        .await
        .unwrap();
    let mut receipts = client.report(ReceiverStream::new(requests)).await.unwrap().into_inner();
    let mut told = Vec::new();
    for _ in ticks {
        let receipt = tokio::time::timeout(DEADLINE, receipts.message()).await;
        told.push(receipt.expect("a receipt comes").unwrap().unwrap());
    }
    told
}

/// Two edges whose clocks are `ahead_ms` ahead of the control plane's, and two of their ticks.
async fn a_dead_region_is_left(ahead_ms: i64) {
    let folder = tempfile::tempdir().unwrap();
    // No process listens there: the control plane's own probes see every region dead, and they are one vantage.
    let control_plane = ControlPlane::start_with(folder.path(), |topology| {
        topology.replace("127.0.0.1:900", "127.0.0.1:1")
    })
    .await;
    let (sender, mut plans) = watch::channel(None);
    let follower = control_plane.follower(&folder.path().join("plan"));
    tokio::spawn(async move { follower.run(sender, std::future::pending()).await });

    // Both edges report within one tick: a report of the tick before the last is too old a tick later.
    while !(500..5_000).contains(&(daemon::clock::now().0 % 10_000)) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let tick = daemon::clock::now().0.saturating_add_signed(ahead_ms) / 10_000;
    for vantage in ["edge-iad", "edge-dub"] {
        for receipt in send(&control_plane, vantage, [tick - 2, tick - 1], ahead_ms).await {
            assert_eq!(receipt.unwanted, "", "{vantage}, tick {}", receipt.tick);
            assert!(receipt.sent_ms >= receipt.received_ms && receipt.received_ms > 0);
        }
    }
    let us_east = RegionId::new("us-east").unwrap();
    let is_left = |snapshot: &topology::Snapshot| snapshot.plan.regions[&us_east].state == RegionState::Evacuated;
    let left = plans.wait_for(|plan: &Option<std::sync::Arc<topology::Snapshot>>| plan.as_deref().is_some_and(is_left));
    let left = tokio::time::timeout(DEADLINE, left).await;
    drop(
        left.unwrap_or_else(|_| panic!("us-east is never left with clocks {ahead_ms} ms ahead"))
            .unwrap(),
    );

    let status = status_of(&control_plane.operator()).await;
    let clock = status.waiting.iter().find(|reason| reason.code == "clock-skew");
    let text = &clock.expect("it says that a clock is wrong").text;
    let way = if ahead_ms > 0 { "behind" } else { "ahead of" };
    assert!(
        text.contains("the clock of this control plane is") && text.contains(way),
        "{text}"
    );
    assert!(text.contains("edge-dub") || text.contains("edge-iad"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_ten_seconds_behind_its_edges_leaves_a_dead_region() {
    a_dead_region_is_left(10_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_ten_seconds_ahead_of_its_edges_leaves_a_dead_region() {
    a_dead_region_is_left(-10_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_says_why_a_report_does_not_count() {
    let folder = tempfile::tempdir().unwrap();
    let control_plane = ControlPlane::start(folder.path()).await;
    let tick = daemon::clock::now().0 / 10_000;
    for (vantage, ticks, complaint) in [
        (
            "edge-mars",
            [tick - 2, tick - 1],
            "edge-mars is no edge of the topology",
        ),
        (
            "edge-iad",
            [tick + 60, tick + 61],
            "its clock and ours are too far apart",
        ),
        ("edge-iad", [tick - 60, tick - 59], "is too old to decide on"),
    ] {
        for receipt in send(&control_plane, vantage, ticks, 0).await {
            assert!(receipt.unwanted.contains(complaint), "{}", receipt.unwanted);
        }
    }
    let [first, again] = <[_; 2]>::try_from(send(&control_plane, "edge-iad", [tick - 1; 2], 0).await).unwrap();
    assert_eq!(first.unwanted, "");
    assert!(again.unwanted.contains("has already reported"), "{}", again.unwanted);
}

/// A probe without an answer does not count if the control plane itself was stopped.
#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_that_was_stopped_holds_that_against_no_stack() {
    let folder = tempfile::tempdir().unwrap();
    let stack = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = stack.local_addr().unwrap().to_string();
    let configs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
    let [topology, policy] =
        ["topology.toml", "policy.toml"].map(|file| std::fs::read_to_string(configs.join(file)).unwrap());
    let topology = topology.replace("127.0.0.1:9001", &address);
    let log = folder.path().join("log");
    let stderr = std::fs::File::create(&log).unwrap();
    let control_plane = ControlPlane::start_logging(folder.path(), &topology, &policy, stderr.into()).await;
    let probe = async {
        loop {
            let (connection, _) = stack.accept().await.unwrap();
            // A spoken turn: they begin in the first 3.5 s of a tick. A probe that is stopped late ends with the tick.
            if daemon::clock::now().0 % 10_000 < 4_500 {
                return connection;
            }
        }
    };
    let _unanswered = tokio::time::timeout(DEADLINE, probe).await.expect("it is probed");
    control_plane.signal("-STOP");
    // Longer than the deadline of probes, which is 2 s.
    tokio::time::sleep(Duration::from_secs(3)).await;
    control_plane.signal("-CONT");
    let is_said = async {
        loop {
            let log = std::fs::read_to_string(&log).unwrap();
            let mut lines = log.lines();
            if lines.any(|line| line.contains(&address) && line.contains("the probe does not count")) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(DEADLINE, is_said)
        .await
        .expect("the probe does not count");
}
