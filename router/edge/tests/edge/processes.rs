//! Stories of edges as processes: how they are replaced, how they end, and what they make of standing still.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::Ordering,
    time::Duration,
};

use crate::support::{HANGS_AFTER, Session, Stack, ask, hang_means_failure, http, open, planned, planned_at};
use daemon::Announcement;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{io::AsyncReadExt as _, net::TcpStream, sync::oneshot::error::TryRecvError};
use topology::Snapshot;

/// An edge with a plan on disk and without a control plane.
struct EdgeFolder {
    folder: tempfile::TempDir,
}

/// A process; killed when the test ends before it does.
struct Process {
    child: Child,
    announced: PathBuf,
}

impl EdgeFolder {
    async fn new(changes: &str) -> Self {
        Self::of(changes, &planned(&[("eu-west", Stack::Echoes)]).await)
    }

    fn of(changes: &str, snapshot: &Snapshot) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config: toml::Table = toml::from_str(include_str!("../../../../configs/edge.toml")).unwrap();
        let changes = format!(
            "listen = ['127.0.0.1:0']\nadmin_listen = '127.0.0.1:0'\ncontrol_planes = []\nstate_dir = 'state'\n\
             affinity_key = '{}'\n{changes}",
            "5a".repeat(32)
        );
        for (key, value) in toml::from_str::<toml::Table>(&changes).unwrap() {
            config.insert(key, value);
        }
        std::fs::write(folder.path().join("edge.toml"), config.to_string()).unwrap();
        std::fs::create_dir(folder.path().join("state")).unwrap();
        node::LastGood::at(folder.path().join("state/plan"))
            .save(snapshot)
            .unwrap();
        Self { folder }
    }

    fn start(&self, name: &str, options: &[&str]) -> Process {
        let announced = self.folder.path().join(name);
        let child = Command::new(env!("CARGO_BIN_EXE_meridian-edge"))
            .args([Path::new("--config"), &self.folder.path().join("edge.toml")])
            .args([Path::new("--announce"), &announced])
            .args(options)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Process { child, announced }
    }
}

impl Process {
    /// The addresses of devices and of operators, once the edge is ready.
    async fn ready(&mut self) -> (SocketAddr, SocketAddr) {
        let announced = async {
            loop {
                if let Some(announcement) = Announcement::read(&self.announced).unwrap() {
                    return (announcement.addresses["http"], announcement.addresses["admin"]);
                }
                if let Some(status) = self.child.try_wait().unwrap() {
                    panic!("the edge ended: {status}");
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        hang_means_failure(announced).await
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Its exit code, once it ended.
    async fn ended(&mut self) -> Option<i32> {
        let ended = async {
            loop {
                if let Some(status) = self.child.try_wait().unwrap() {
                    return status.code();
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        hang_means_failure(ended).await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn enters(address: SocketAddr) -> Session {
    open(address, &[]).await.map_err(drop).expect("the session opens")
}

#[tokio::test]
async fn an_edge_is_replaced_twice_and_nobody_is_refused() {
    let place = EdgeFolder::new("[drain]\nupgrade_window = '300ms'").await;
    let mut first = place.start("first", &[]);
    let (address, admin) = first.ready().await;
    let mut anna = enters(address).await;

    // Devices that connect all the time: not one may be refused, or reset before it was answered.
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let devices = tokio::spawn(async move {
        let mut opened = 0;
        while stopped.try_recv() == Err(TryRecvError::Empty) {
            enters(address).await;
            opened += 1;
        }
        opened
    });

    let mut second = place.start("second", &["--take-over"]);
    assert_eq!(second.ready().await, (address, admin), "the same sockets");
    // She stays until she is asked to connect again, and then meets the second edge.
    anna.check_closed(1012, "edge draining; reconnect").await;
    drop(anna);
    assert_eq!(first.ended().await, Some(0));
    let mut bert = enters(address).await;

    let mut third = place.start("third", &["--take-over"]);
    assert_eq!(third.ready().await, (address, admin));
    bert.check_closed(1012, "edge draining; reconnect").await;
    drop(bert);
    assert_eq!(second.ended().await, Some(0));

    drop(stop);
    assert!(hang_means_failure(devices).await.unwrap() > 0);
    third.signal(Signal::TERM);
    assert_eq!(third.ended().await, Some(0));
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
}

/// A machine that is short of processor time, or was suspended: deadlines pass while the edge does not run.
#[tokio::test]
async fn an_edge_that_stood_still_blames_itself_for_what_did_not_come_meanwhile() {
    // It takes connections and may answer at any moment.
    let (silent, asked) = http::stack(async |tcp| {
        let _open = tcp;
        std::future::pending::<()>().await;
    })
    .await;
    let changes = "workers = 1\n[timeouts]\nupgrade = '1s'\n[limits]\nregions_tried_max = 1";
    let place = EdgeFolder::of(changes, &planned_at(&[("eu-west", silent)]).await);
    let mut edge = place.start("late", &[]);
    let (address, admin) = edge.ready().await;
    let upgrade = "GET /v1/realtime HTTP/1.1\r\nHost: v\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let get = "GET /v1/models HTTP/1.1\r\nHost: v\r\nConnection: close\r\n\r\n";
    for (times, request) in [upgrade, get].into_iter().enumerate() {
        let mut device = TcpStream::connect(address).await.unwrap();
        http::say(&mut device, request).await;
        hang_means_failure(async {
            while asked.load(Ordering::SeqCst) == times {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
        edge.signal(Signal::STOP);
        // Longer than the edge waits for an answer.
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        edge.signal(Signal::CONT);
        let mut answer = String::new();
        hang_means_failure(device.read_to_string(&mut answer)).await.unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 503 ") && answer.contains("edge_full"),
            "{answer}"
        );
    }
    let metrics = ask(admin, "GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    let blamed = "meridian_edge_faults_total{region=\"eu-west\",fault=";
    let faults: Vec<&str> = metrics.lines().filter_map(|line| line.strip_prefix(blamed)).collect();
    assert_eq!(faults, ["\"edge\"} 2"], "{metrics}");
    // The edge has room for others, and serves them.
    let nothing = ask(address, &get.replace("/v1/models", "/nothing")).await;
    assert!(nothing.starts_with("HTTP/1.1 404 "), "{nothing}");
}

#[tokio::test]
async fn a_successor_that_dies_too_early_changes_nothing() {
    let place = EdgeFolder::new("").await;
    let mut first = place.start("first", &[]);
    let (address, _) = first.ready().await;
    let mut anna = enters(address).await;
    // It has the sockets and no plan, so it does not accept.
    for plan in std::fs::read_dir(place.folder.path().join("state")).unwrap() {
        let path = plan.unwrap().path();
        if path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("plan"))
        {
            std::fs::remove_file(path).unwrap();
        }
    }
    let mut second = place.start("second", &["--take-over"]);
    tokio::time::timeout(Duration::from_millis(500), second.ready())
        .await
        .expect_err("it has no plan");
    second.signal(Signal::KILL);
    assert_eq!(second.ended().await, None);
    anna.check_echo("still here").await;
    enters(address).await.check_echo("and here").await;
    first.signal(Signal::TERM);
    anna.check_closed(1012, "edge draining; reconnect").await;
    drop(anna);
    assert_eq!(first.ended().await, Some(0));
}

#[tokio::test]
async fn taking_over_from_nobody_is_an_error_with_a_remedy() {
    let place = EdgeFolder::new("").await;
    let output = Command::new(env!("CARGO_BIN_EXE_meridian-edge"))
        .args([Path::new("--config"), &place.folder.path().join("edge.toml")])
        .arg("--take-over")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("start without --take-over"), "{said}");
}

#[tokio::test]
async fn an_edge_without_sessions_ends_at_once_and_one_with_sessions_tells_them() {
    let place = EdgeFolder::new("[drain]\nwindow = '100ms'").await;
    let mut quiet = place.start("quiet", &[]);
    let (address, _) = quiet.ready().await;
    let _idle = TcpStream::connect(address).await.unwrap();
    let began = std::time::Instant::now();
    quiet.signal(Signal::TERM);
    assert_eq!(quiet.ended().await, Some(0));
    println!("it ended after {:?}", began.elapsed());
    assert!(began.elapsed() < HANGS_AFTER / 2, "{:?}", began.elapsed());

    let mut busy = place.start("busy", &[]);
    let (address, _) = busy.ready().await;
    let mut anna = enters(address).await;
    busy.signal(Signal::TERM);
    anna.check_closed(1012, "edge draining; reconnect").await;
    drop(anna);
    assert_eq!(busy.ended().await, Some(0));
}
