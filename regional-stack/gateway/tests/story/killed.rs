//! Alarms, timers and clocks after a stack, in a process of its own, died by SIGKILL.

use std::{net::SocketAddr, path::Path, process::Stdio, time::Duration};

use daemon::Announcement;
use serde_json::{Value, json};
use tokio::{
    process::{Child, Command},
    time::{sleep, timeout},
};

use crate::{
    memory::{CHECKPOINT_KEY, Device, World, zones::check_clock},
    region::{HANGS_AFTER, Region, engines, until_metric},
};

/// A stack, in a process of its own.
struct Process {
    child: Child,
    http: SocketAddr,
}

impl Process {
    /// Starts a stack of this region, with its state in this folder.
    async fn start(folder: &Path, region: &str, home: &str) -> Self {
        let config = folder.join("stack.toml");
        let text = format!(
            "region = \"{region}\"\nlisten = \"127.0.0.1:0\"\nadmin_listen = \"127.0.0.1:0\"\nengine = \"scripted\"\nhome_city = \
             \"{home}\"\ncheckpoint_key = \"{CHECKPOINT_KEY}\"\nstate_dir = \"state\"\n"
        );
        std::fs::write(&config, text).unwrap();
        let announced = folder.join("announced.json");
        // The announcement of the process before would pass for its own.
        let _ = std::fs::remove_file(&announced);
        let mut child = Command::new(env!("CARGO_BIN_EXE_meridian-stack"))
            .arg("--config")
            .arg(&config)
            .arg("--announce")
            .arg(&announced)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let ready = async {
            loop {
                if let Some(announcement) = Announcement::read(&announced).unwrap() {
                    return announcement.addresses["http"];
                }
                assert_eq!(child.try_wait().unwrap(), None, "the stack ended");
                // The announcement is the only sign of the other process.
                sleep(Duration::from_millis(10)).await;
            }
        };
        let http = timeout(HANGS_AFTER, ready).await.expect("the stack is ready");
        Self { child, http }
    }

    /// Kills it with SIGKILL.
    async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// Asks it to end, as an upgrade does.
    fn begin_stop(&self) {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    async fn stopped(mut self) {
        let ended = timeout(HANGS_AFTER, self.child.wait()).await.expect("the stack ends");
        assert!(ended.unwrap().success());
    }

    async fn until_on_disk(&self, sessions: usize) {
        until_metric(self.http, "meridian_stack_sessions_unwritten 0").await;
        until_metric(self.http, &format!("meridian_stack_sessions_on_disk {sessions}")).await;
    }
}

#[tokio::test]
async fn what_a_device_that_is_away_was_promised_outlives_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let first = Process::start(folder.path(), "eu-west", "london").await;
    let world = World::new(1, &[("eu-west", first.http)]);
    let headers = [("meridian-zone", "Asia/Tokyo")];
    let mut device = Device::call_with(world.edges[0].1, "", &headers).await.unwrap();
    device.reads().await;
    device.say("set an alarm for seven a m").await;
    let alarms = device.say("what alarms do i have").await;
    assert!(alarms.contains("seven"), "{alarms}");
    device.say("set a timer for one second").await;
    let id = device.id().to_owned();
    drop(device);
    until_metric(first.http, "meridian_stack_sessions 0").await;
    first.until_on_disk(1).await;
    first.kill().await;

    // The timer is over by now. This edge started after the kill, and has no checkpoint of the session.
    let second = Process::start(folder.path(), "eu-west", "london").await;
    let world = World::new(1, &[("eu-west", second.http)]);
    let edge = world.edges[0].1;
    let mut back = Device::call(edge, &format!("&resume={id}")).await;
    assert_eq!(back.session["output_modalities"], json!(["text"]));
    assert_eq!(back.rings().await.0, "your timer for one second is done");
    assert_eq!(back.say("stop").await, "okay");
    assert_eq!(back.say("what alarms do i have").await, alarms);
    check_clock(&mut back, "tokyo").await;

    // A cancelled alarm is gone from the disk too, for the next process.
    back.say("cancel all alarms").await;
    second.until_on_disk(0).await;
    let id = back.id().to_owned();
    drop(back);
    second.kill().await;
    let third = Process::start(folder.path(), "eu-west", "london").await;
    let world = World::new(1, &[("eu-west", third.http)]);
    let mut back = Device::call(world.edges[0].1, &format!("&resume={id}")).await;
    let error = back.until("error").await;
    assert_eq!(error["error"]["code"], "session_not_resumed");
}

/// No edge is between device and stack that could resume the session elsewhere.
#[tokio::test]
async fn what_a_connected_device_was_promised_outlives_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let first = Process::start(folder.path(), "eu-west", "london").await;
    let mut device = Device::call(first.http, "").await;
    device.reads().await;
    device.say("set a timer for ten minutes").await;
    first.until_on_disk(1).await;
    first.kill().await;

    let second = Process::start(folder.path(), "eu-west", "london").await;
    let mut back = device.resume(second.http).await;
    assert_eq!(back.id(), device.id());
    assert!(back.say("how much time is left").await.contains("minutes"));
}

/// Two stacks and two edges that know both; a device has asked for an alarm through the first edge.
struct Promised {
    stacks: Vec<Process>,
    world: World,
    device: Device,
    /// The answer to "what alarms do i have".
    alarms: String,
    _folders: [tempfile::TempDir; 2],
}

impl Promised {
    /// The device is in the first region.
    async fn at(places: [(&str, &str); 2]) -> Self {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let mut stacks = Vec::new();
        for (folder, (region, home)) in folders.iter().zip(places) {
            stacks.push(Process::start(folder.path(), region, home).await);
        }
        let known: Vec<_> = places
            .iter()
            .zip(&stacks)
            .map(|((region, _), stack)| (*region, stack.http))
            .collect();
        let world = World::new(2, &known);
        let mut device = Device::call(world.edges[0].1, "").await;
        device.reads().await;
        device.say("set an alarm for seven a m").await;
        let alarms = device.say("what alarms do i have").await;
        if !serves(stacks[0].http).await {
            stacks.reverse();
        }
        Self {
            stacks,
            world,
            device,
            alarms,
            _folders: folders,
        }
    }
}

/// The stack does not come back, and the device returns through another edge than the one it left. The other stack is one of the same
/// region, or the last one of the world.
#[tokio::test]
async fn what_a_device_that_is_away_was_promised_outlives_its_stack_and_its_region_through_another_edge() {
    let london = ("eu-west", "london");
    for other in [london, ("eu-central", "berlin")] {
        let mut place = Promised::at([london, other]).await;
        let (here, there) = (place.world.edges[0].1, place.world.edges[1].1);
        let id = place.device.id().to_owned();
        drop(place.device);
        let (stack, keeper) = (place.stacks.remove(0), place.stacks.remove(0));
        keeper.until_on_disk(1).await;
        stack.kill().await;

        let mut back = Device::call(there, &format!("&resume={id}")).await;
        assert_eq!(back.region(), other.0);
        assert_eq!(back.session["output_modalities"], json!(["text"]));
        assert_eq!(back.say("what alarms do i have").await, place.alarms);
        assert_eq!(back.say("cancel the alarm").await, "alarm cancelled");
        let id = back.id().to_owned();
        drop(back);
        keeper.until_on_disk(0).await;
        let mut back = Device::call(here, &format!("&resume={id}")).await;
        assert_eq!(back.say("what alarms do i have").await, "there is no alarm");
    }
}

/// The other stack drops the copy of a session whose alarms were cancelled, or it would ring them.
#[tokio::test]
async fn a_copy_goes_with_the_last_alarm() {
    let place = Promised::at([("eu-west", "london"); 2]).await;
    let id = place.device.id().to_owned();
    drop(place.device);
    for stack in &place.stacks {
        stack.until_on_disk(1).await;
    }
    let mut back = Device::call(place.world.edges[1].1, &format!("&resume={id}")).await;
    assert!(serves(place.stacks[0].http).await, "it is back where it was");
    assert_eq!(back.say("cancel the alarm").await, "alarm cancelled");
    drop(back);
    for stack in &place.stacks {
        stack.until_on_disk(0).await;
    }
}

#[tokio::test]
async fn only_a_checkpoint_that_a_stack_sealed_is_kept() {
    let region = Region::start_in(
        "eu-west",
        &format!("checkpoint_key = \"{CHECKPOINT_KEY}\""),
        engines(),
        |_| {},
    )
    .await;
    for (state, status) in [
        (Vec::new(), 400),
        (vec![7; 500], 400),
        (vec![7; wire::STATE_BYTES_MAX + 1], 413),
    ] {
        let sent = reqwest::Client::new()
            .post(region.url(wire::COPY_PATH))
            .body(state)
            .send();
        assert_eq!(sent.await.unwrap().status(), status);
    }
}

/// Whether the stack serves a session.
async fn serves(stack: SocketAddr) -> bool {
    let metrics = reqwest::get(format!("http://{stack}/metrics")).await.unwrap();
    let metrics = metrics.text().await.unwrap();
    metrics.lines().any(|line| line == "meridian_stack_sessions 1")
}

/// The way in which a stack loses a session that goes on in another one.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Lost {
    Killed,
    Stopped,
    /// The device is away, and comes back through the edge that it left, which has the session's checkpoint.
    KilledWhileAway,
}

/// The stack is back with its old memory, and the id of the session names it.
#[tokio::test]
async fn a_stack_that_is_back_does_not_bring_back_what_was_cancelled_elsewhere() {
    for lost in [Lost::Killed, Lost::Stopped, Lost::KilledWhileAway] {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let first = Process::start(folders[0].path(), "eu-west", "london").await;
        let second = Process::start(folders[1].path(), "eu-central", "berlin").await;
        let world = World::new(1, &[("eu-west", first.http), ("eu-central", second.http)]);
        let edge = world.edges[0].1;
        let mut device = Device::call(edge, "").await;
        device.reads().await;
        device.say("set a timer for ten minutes").await;
        first.until_on_disk(1).await;
        let id = device.id().to_owned();
        match lost {
            Lost::Killed => first.kill().await,
            Lost::Stopped => {
                first.begin_stop();
                device.until_moved("eu-central").await;
                first.stopped().await;
            }
            Lost::KilledWhileAway => {
                drop(device);
                until_metric(first.http, "meridian_stack_sessions 0").await;
                first.kill().await;
                device = Device::call(edge, &format!("&resume={id}")).await;
            }
        }
        device.until_moved("eu-central").await;
        assert_eq!(device.say("cancel the timer").await, "timer cancelled");
        drop(device);
        until_metric(second.http, "meridian_stack_sessions 0").await;

        let back = Process::start(folders[0].path(), "eu-west", "london").await;
        // The stack does not know that the session went on elsewhere.
        back.until_on_disk(1).await;
        let world = World::new(1, &[("eu-west", back.http), ("eu-central", second.http)]);
        let mut device = Device::call(world.edges[0].1, &format!("&resume={id}")).await;
        assert_eq!(device.region(), "eu-central", "{lost:?}");
        assert_eq!(device.say("how much time is left").await, "there is no timer");
    }
}

#[tokio::test]
async fn a_device_keeps_its_clock_when_its_region_is_killed() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let first = Process::start(folders[0].path(), "eu-west", "london").await;
    let second = Process::start(folders[1].path(), "eu-central", "berlin").await;
    let world = World::new(2, &[("eu-west", first.http), ("eu-central", second.http)]);
    let headers = [("meridian-zone", "America/New_York")];
    let mut device = Device::call_with(world.edges[0].1, "", &headers).await.unwrap();
    assert_eq!(device.region(), "eu-west");
    device.reads().await;
    check_clock(&mut device, "new york").await;
    let alarm = device.say("set an alarm for seven a m").await;
    let alarms = device.say("what alarms do i have").await;
    first.kill().await;

    // The connection stays, and its new region knows where the device is.
    check_clock(&mut device, "new york").await;
    device.until_moved("eu-central").await;
    assert_eq!(device.say("what alarms do i have").await, alarms);
    // So does a new call through any edge that names its zone.
    let mut other = Device::call_with(world.edges[1].1, "", &headers).await.unwrap();
    assert_eq!(other.region(), "eu-central");
    other.reads().await;
    check_clock(&mut other, "new york").await;
    assert_eq!(other.say("set an alarm for seven a m").await, alarm);
}

#[tokio::test]
async fn a_stack_without_a_disk_serves_on_and_says_so() {
    let place = tempfile::tempdir().unwrap();
    let in_the_way = place.path().join("state");
    std::fs::write(&in_the_way, b"a file where the folder is to be").unwrap();
    let lines = format!(
        "checkpoint_key = \"{CHECKPOINT_KEY}\"\nstate_dir = \"{}\"",
        in_the_way.join("stack").display()
    );
    let region = Region::start_in("eu-west", &lines, engines(), |_| {}).await;
    let store = async || {
        let health = reqwest::get(region.url("/health")).await.unwrap();
        assert_eq!(health.status(), 200, "the stack is no worse than one without a folder");
        let health: Value = health.json().await.unwrap();
        health["components"]["session-store"].clone()
    };
    let mut device = Device::call(region.http, "").await;
    device.reads().await;
    device.say("set a timer for ten minutes").await;
    region.until_metric("meridian_stack_sessions_unwritten 1").await;
    assert_eq!(
        store().await,
        json!({ "status": "ok", "disk": "failing", "unwritten": 1 })
    );
    let mut back = device.resume(region.http).await;
    assert!(back.say("how much time is left").await.contains("minutes"));

    std::fs::remove_file(&in_the_way).unwrap();
    region.until_metric("meridian_stack_sessions_on_disk 1").await;
    region.until_metric("meridian_stack_sessions_unwritten 0").await;
    assert_eq!(store().await, json!({ "status": "ok", "disk": "ok" }));
}
