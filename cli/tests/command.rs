//! The `meridian` command as people use it: one world, the commands against it, and nothing left of it.
//!
//! Needs all programs: `cargo build --workspace --bins` (the Makefile does it).

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use world::Record;

fn meridian(state_dir: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_meridian"))
        .args(arguments)
        .arg("--state-dir")
        .arg(state_dir)
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    let (stdout, stderr) = (&output.stdout, &output.stderr);
    String::from_utf8_lossy(stdout).into_owned() + &String::from_utf8_lossy(stderr)
}

/// Runs `meridian up` until it says that every region is healthy.
fn up(state_dir: &Path) -> (Child, Record) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_meridian"))
        .arg("up")
        .arg("--state-dir")
        .arg(state_dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        said += &line;
        said.push('\n');
        if line.contains("every region is healthy") {
            return (child, world::find(state_dir).unwrap());
        }
    }
    panic!("{said}{}", text(&child.wait_with_output().unwrap()));
}

fn signal(child: &Child, signal: &str) {
    let sent = Command::new("sh")
        .arg("-c")
        .arg(format!("kill -{signal} {}", child.id()))
        .status();
    assert!(sent.unwrap().success());
}

/// Waits until no process of a world is left.
fn wait_until_gone(record: &Record) {
    let began = Instant::now();
    for (name, pid) in &record.processes {
        while Path::new(&format!("/proc/{pid}")).exists() {
            assert!(began.elapsed() < Duration::from_secs(30), "{name} ({pid}) is left");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn one_world_is_used_as_people_use_it_and_nothing_is_left_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let state_dir = folder.path().join("up");

    // Before there is a world.
    let nobody = meridian(&state_dir, &["status"]);
    assert_eq!(nobody.status.code(), Some(5));
    assert!(
        text(&nobody).contains("start one with `meridian up`"),
        "{}",
        text(&nobody)
    );
    assert_eq!(
        meridian(&state_dir, &["status", "--control-plane", "http://127.0.0.1:1"])
            .status
            .code(),
        Some(5)
    );
    assert_eq!(
        meridian(&state_dir, &["failover", "us-east"]).status.code(),
        Some(2),
        "a reason is missing"
    );

    let (child, record) = up(&state_dir);
    assert_eq!(record.processes.len(), 10);
    let second = meridian(&state_dir, &["up"]);
    assert_eq!(second.status.code(), Some(1));
    let expected = format!("already running in {}: process {}", state_dir.display(), child.id());
    assert!(text(&second).contains(&expected), "{}", text(&second));

    let status = meridian(&state_dir, &["status", "-o", "json"]);
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(
        (&status["schema"], status["regions"].as_array().unwrap().len()),
        (&1.into(), 6)
    );
    for verb in [&["status"][..], &["why", "us-east"], &["history"]] {
        let shown = meridian(&state_dir, verb);
        assert!(
            shown.status.success() && shown.stdout.len() > 40,
            "{verb:?}: {}",
            text(&shown)
        );
    }
    assert_eq!(meridian(&state_dir, &["why", "atlantis"]).status.code(), Some(1));

    let recordings = drill::recordings::default_folder();
    let recording = recordings.join("what-time-is-it.wav");
    let reply = folder.path().join("reply.wav");
    let call = [
        "call",
        recording.to_str().unwrap(),
        "--sessions",
        "2",
        "-o",
        "json",
        "--out",
        reply.to_str().unwrap(),
    ];
    let called = meridian(&state_dir, &call);
    assert!(called.status.success(), "{}", text(&called));
    let called: Value = serde_json::from_slice(&called.stdout).unwrap();
    assert_eq!(called["calls"][1]["intent"], "time.query", "{called}");
    assert!(std::fs::metadata(&reply).unwrap().len() > 1_000);
    let not_a_recording = meridian(&state_dir, &["call", "Cargo.toml"]);
    assert_eq!(not_a_recording.status.code(), Some(1));

    let moved = meridian(&state_dir, &["failover", "ap-south", "--reason", "a test"]);
    assert!(moved.status.success(), "{}", text(&moved));
    let why = text(&meridian(&state_dir, &["why", "ap-south"]));
    assert!(why.contains("forced-failover") && why.contains("evacuated"), "{why}");

    signal(&child, "INT");
    let ended = child.wait_with_output().unwrap();
    assert!(ended.status.success(), "{}", text(&ended));
    wait_until_gone(&record);
    assert_eq!(meridian(&state_dir, &["status"]).status.code(), Some(5));

    // Killed outright, it cannot clean up, and still nothing is left; the next one starts all the same.
    let (mut child, record) = up(&state_dir);
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until_gone(&record);
    assert_eq!(meridian(&state_dir, &["status"]).status.code(), Some(5));
}
