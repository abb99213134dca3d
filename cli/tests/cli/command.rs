//! The `meridian` command in the hands of a user: one world, every command against it, and no process left at the end.
//!
//! Needs the other programs: `cargo build --workspace --bins` (`make test` does it).

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use world::Record;

/// The command at the terminal of a person.
fn as_person(name: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meridian"));
    command.env("USER", name).env_remove("MERIDIAN_IDENTITY");
    command
}

fn meridian(state_dir: &Path, arguments: &[&str]) -> Output {
    as_person("alice")
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

/// Runs `meridian up` until it reports that every region is healthy.
fn up(state_dir: &Path) -> (Child, Record) {
    let mut child = as_person("alice")
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

/// Waits until no process of a world runs any more.
fn wait_until_gone(record: &Record) {
    let began = Instant::now();
    for (name, pid) in &record.processes {
        while Path::new(&format!("/proc/{pid}")).exists() {
            assert!(began.elapsed() < Duration::from_secs(30), "{name} ({pid}) is left");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The number that follows these words.
fn number_after(said: &str, words: &str) -> u64 {
    let (_, rest) = said
        .split_once(words)
        .unwrap_or_else(|| panic!("no \"{words}\" in {said}"));
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits
        .parse()
        .unwrap_or_else(|_| panic!("no number after \"{words}\" in {said}"))
}

/// Operators look, try, move, approve, abort and restore; each exit code tells the outcome.
fn operators_decide(state_dir: &Path, folder: &Path) {
    let run = |arguments: &[&str], code: i32, says: &str| {
        let output = meridian(state_dir, arguments);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(says), "{arguments:?}: {said}");
        said
    };
    // A busy machine may have made a region look ill for a moment, which blocks orders and moves plans.
    let when_healthy = || {
        let began = Instant::now();
        loop {
            let status = meridian(state_dir, &["status", "-o", "json"]);
            let status: Value = serde_json::from_slice(&status.stdout).unwrap_or_default();
            let regions = status["regions"].as_array().map_or(&[][..], Vec::as_slice);
            if !regions.is_empty() && regions.iter().all(|region| region["health"] == "healthy") {
                return;
            }
            assert!(began.elapsed() < Duration::from_secs(120), "{status:#}");
            std::thread::sleep(Duration::from_millis(200));
        }
    };
    let because = ["--reason", "a test", "--author", "alice"];
    let with = |arguments: &[&'static str]| [arguments, &because[..]].concat();

    // A dry run shows everything and changes nothing.
    when_healthy();
    let planned = run(&["plan"], 0, " stays");
    let in_force = number_after(&planned, "plan ");
    let would_follow = format!("plan {} would follow plan {in_force}", in_force + 1);
    run(&with(&["failover", "ap-south", "--dry-run"]), 0, &would_follow);
    run(&["plan"], 0, &format!("plan {in_force} stays"));
    // It runs until most edges apply its plan, if they are slow.
    let moved = run(
        &with(&["failover", "ap-south", "--token", "move-1"]),
        0,
        ": action move-1, plan ",
    );
    assert!(moved.contains("done: ") || moved.contains("running: "), "{moved}");
    assert_eq!(number_after(&moved, "action move-1, plan "), in_force + 1, "{moved}");
    run(
        &with(&["failover", "ap-south", "--token", "move-1"]),
        0,
        "the same request was made at",
    );
    run(&["why", "ap-south"], 0, "forced-failover");
    run(&["wait", "move-1"], 0, "failover ap-south done");
    when_healthy();
    // No vantage measured the replication lag, so the control plane must not promote another writer.
    run(&with(&["failover", "ap-south", "--promote"]), 3, "rpo-exceeded");
    // A second evacuated region needs a second person.
    when_healthy();
    run(
        &with(&["switchover", "eu-west", "--token", "move-2"]),
        4,
        "meridian approve move-2",
    );
    run(&with(&["approve", "move-2"]), 3, "same-person");
    // One shell is one person, whatever name it gives.
    let as_bob = ["approve", "move-2", "--reason", "agreed", "--author", "bob"];
    run(&as_bob, 1, "the certificate is alice's, and the request says \"bob\"");
    // The refusal quotes the request, whose escapes must not reach the terminal.
    let odd = ["freeze", "--for", "5m", "--reason", "x", "--author", "a\u{1b}[2Jb"];
    let refused = run(&odd, 1, "a\\u{1b}[2Jb");
    assert!(!refused.contains('\u{1b}'), "{refused:?}");
    run(
        &["login", "bob", "--roles", "approver"],
        0,
        "bob has the roles approver until",
    );
    let bob = state_dir.join("operators/bob");
    let bob = ["--identity", bob.to_str().unwrap()];
    when_healthy();
    // The action that waits is not the one that bob read about. Without --shown he reads it here.
    let elsewhere = ["--shown", "0000000000000000"];
    let changed = run(&[&as_bob[..], &bob, &elsewhere].concat(), 3, "shown-changed");
    assert!(changed.contains("meridian approve move-2 --shown "), "{changed}");
    let agreed = run(&[&as_bob[..], &bob].concat(), 0, "switchover by alice: a test");
    assert!(
        agreed.contains("move-2 is switchover eu-west, asked for by alice: a test"),
        "{agreed}"
    );
    let denied = [&["abort", "move-2", "--reason", "a test"], &bob[..]].concat();
    run(&denied, 1, "it needs the role operator in eu-west");
    run(&["status"], 0, "draining 75 %");
    run(&with(&["abort", "move-2"]), 0, "aborted");
    when_healthy();
    run(&["why", "eu-west"], 0, "eu-west (primary): healthy, serving");
    run(
        &with(&["override", "evacuation-limit", "--for", "5m"]),
        4,
        "needs-approval",
    );
    run(
        &with(&["override", "gravity", "--for", "5m"]),
        1,
        "cannot be overridden; write one of regions-serving-min",
    );
    run(&with(&["freeze", "--for", "5m"]), 0, "no automatic change until");
    run(&with(&["unfreeze"]), 0, "automation is on again");
    run(
        &with(&["drain", "edge-iad", "--for", "5m"]),
        0,
        "edge-iad is left out of DNS answers",
    );
    run(&with(&["drain", "edge-dub", "--for", "5m"]), 3, "last-edge");
    run(&with(&["drain", "edge-dub"]), 2, "add --for");
    // A region that a person emptied while it was healthy has none.
    run(&with(&["ack", "ap-south"]), 0, "ap-south carries no penalty");
    run(&with(&["failover", "atlantis"]), 3, "there is no region atlantis");
    run(&with(&["rollout", "9.9.9"]), 3, "no stack has version 9.9.9");
    run(&["wait", "nothing"], 1, "there is no action");

    // Documents are compared, validated with all problems at once, and applied.
    let file = folder.join("topology.toml");
    let path = file.to_str().unwrap();
    let in_force = run(&["topology", "get"], 0, "[[region]]");
    std::fs::write(
        &file,
        in_force.replacen("sessions_max = 200", "sessions_max = 0\ncolour = \"red\"", 1),
    )
    .unwrap();
    let problems = run(&["topology", "validate", path], 1, "unknown key");
    assert!(
        problems.contains(":8: region.sessions_max: 0 is out of range; write 1 or more"),
        "{problems}"
    );
    // More capacity of a region needs a second person.
    std::fs::write(&file, in_force.replacen("sessions_max = 200", "sessions_max = 250", 1)).unwrap();
    run(&["topology", "diff", path], 3, "+sessions_max = 250");
    let apply = [&["topology", "apply", path], &because[..]].concat();
    run(&apply, 3, "would change from 200 to 250");
    std::fs::write(&file, in_force.replacen("latitude = 39.0", "latitude = 39.1", 1)).unwrap();
    run(&["topology", "diff", path], 0, "+latitude = 39.1");
    run(&apply, 0, "has another place");
    run(&["topology", "diff", path], 0, "no difference");

    // Edges explain routes themselves: with the plan in force, with one they dropped long ago, and under the edge's own
    // name.
    let route = |more: &[&'static str]| [&["explain", "route", "--client", "192.0.2.7"], more].concat();
    let explained = run(&route(&[]), 0, "home is eu-west");
    assert!(explained.contains("edge-iad: 192.0.2.7 by plan"), "{explained}");
    let explained = run(
        &route(&["--edge", "edge-dub", "-o", "json"]),
        0,
        "\"session_key\": \"192.0.2.7\"",
    );
    let explained: Value = serde_json::from_str(&explained).unwrap();
    assert_eq!(
        (&explained["schema"], &explained["edges"][1]),
        (&1.into(), &Value::Null)
    );
    let decided = &explained["edges"][0]["decisions"][0];
    assert_eq!(
        (&decided["region"], &decided["why"]["share"]),
        (&"eu-west".into(), &100.into())
    );
    run(&route(&["--generation", "1"]), 0, "by plan 1 (epoch");
    run(
        &route(&["--generation", "9999"]),
        1,
        "there is no plan 9999; the audit log has plans from 1 on",
    );
    run(&route(&["--edge", "atlantis"]), 2, "there are edge-dub, edge-iad");
    run(&route(&["--edge-admin", "http://127.0.0.1:1"]), 5, "does not answer");

    // Every decision so far replays to the same bytes, and a changed log is noticed.
    run(&["audit", "replay"], 0, "every decision comes out the same");
    let log = folder.join("audit.jsonl");
    let path = log.to_str().unwrap();
    run(&["audit", "export", path], 0, "entries in");
    run(&["audit", "replay", path], 0, "the chain is whole");
    let exported = std::fs::read_to_string(&log).unwrap();
    std::fs::write(&log, exported.replacen("a test", "no test", 1)).unwrap();
    run(&["audit", "replay", path], 1, "was changed");
    std::fs::write(&log, "{}").unwrap();
    run(&["audit", "replay", path], 1, "line 1 is not a line of an audit log");
}

#[test]
fn recorded_incidents_are_explained_on_one_screen_without_a_world() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../chaos/scenarios");
    let mut incidents = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let file = entry.unwrap().path();
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        if !name.starts_with("incident-") || !name.ends_with(".scenario") {
            continue;
        }
        incidents += 1;
        let played = meridian(Path::new("/nowhere"), &["simulate", file.to_str().unwrap()]);
        assert!(played.status.success(), "{name}: {}", text(&played));
        let why = meridian(
            Path::new("/nowhere"),
            &["why", "us-east", "--scenario", file.to_str().unwrap()],
        );
        let screen = text(&why);
        assert!(
            why.status.success() && screen.contains("what was decided about it"),
            "{name}: {screen}"
        );
        assert!(screen.lines().count() <= 40, "{name}: {screen}");
        assert!(
            screen.lines().all(|line| line.chars().count() <= 120),
            "{name}: {screen}"
        );
    }
    assert!(incidents >= 8, "{incidents}");
}

#[test]
fn one_world_is_used_as_people_use_it_and_nothing_is_left_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let state_dir = folder.path().join("up");

    // Commands fail in a helpful way while no world runs.
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

    operators_decide(&state_dir, folder.path());

    signal(&child, "INT");
    let ended = child.wait_with_output().unwrap();
    assert!(ended.status.success(), "{}", text(&ended));
    wait_until_gone(&record);
    assert_eq!(meridian(&state_dir, &["status"]).status.code(), Some(5));

    // Killed with SIGKILL, `meridian up` cannot clean up. Its processes end all the same, and a new world can start.
    let (mut child, record) = up(&state_dir);
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until_gone(&record);
    assert_eq!(meridian(&state_dir, &["status"]).status.code(), Some(5));
}

/// Arguments, paths and answers of servers may be another person's text, copied from a ticket or a log: it is shown, and does not
/// move the cursor or clear the screen.
#[test]
fn an_error_shows_hidden_letters_of_a_text_and_does_not_obey_them() {
    let odd = "a\u{1b}[2Jb";
    let cases: [(&[&str], i32, &str); 6] = [
        (&["explain", "reason", odd], 2, "a\\u{1b}[2Jb"),
        (&["simulate", odd], 1, "a\\u{1b}[2Jb"),
        (&["topology", "validate", odd], 1, "a\\u{1b}[2Jb"),
        (&["status", "--state-dir", odd], 5, "a\\u{1b}[2Jb"),
        // clap answers these by itself.
        (&[odd], 2, "unrecognized subcommand"),
        (&["freeze", "--reason", "x", "--for", odd], 2, "--for"),
    ];
    for (arguments, code, says) in cases {
        let output = as_person("alice").args(arguments).output().unwrap();
        let said = text(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(says), "{arguments:?}: {said}");
        assert!(!said.contains('\u{1b}'), "{arguments:?}: {said:?}");
    }
}

/// Every command has its man page and stands in the completions, as `meridian help` lists it.
#[test]
fn shells_complete_every_command_and_man_explains_it() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_meridian"))
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let help = run(&["--help"]);
    let commands: Vec<&str> = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .map_while(|line| line.split_whitespace().next())
        .filter(|command| *command != "help")
        .collect();
    assert!(commands.contains(&"failover") && commands.contains(&"status"), "{help}");

    let pages = folder.path().join("man");
    let said = run(&["man", pages.to_str().unwrap()]);
    assert!(said.contains("man "), "{said}");
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completion", shell]);
        for command in &commands {
            assert!(script.contains(command), "{shell} does not complete {command}");
        }
    }
    for command in &commands {
        let page = std::fs::read_to_string(pages.join(format!("meridian-{command}.1"))).unwrap();
        assert!(page.contains(".SH SYNOPSIS"), "{command}: {page}");
    }
    assert!(pages.join("meridian.1").exists());

    // A path that cannot be a folder is one line with the reason.
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let refused = Command::new(env!("CARGO_BIN_EXE_meridian"))
        .arg("man")
        .arg(&file)
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        text(&refused).contains("cannot write the man pages into"),
        "{}",
        text(&refused)
    );
}

/// Every code that a decision can print has its page, and an unknown one is refused with the way to the list.
#[test]
fn a_reason_code_is_explained_without_a_world() {
    let explain = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_meridian"));
        command.args(["explain", "reason"]).args(arguments).output().unwrap()
    };
    let one = explain(&["no-headroom"]);
    assert!(one.status.success());
    assert!(
        text(&one).contains("`meridian plan` shows the capacity table"),
        "{}",
        text(&one)
    );
    let all: Value = serde_json::from_slice(&explain(&["-o", "json"]).stdout).unwrap();
    let rows = all["reasons"].as_array().unwrap();
    assert!(rows.iter().any(|row| row["code"] == "stack-fails"), "{all}");
    let unknown = explain(&["no-such-code"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(
        text(&unknown).contains("`meridian explain reason` lists all"),
        "{}",
        text(&unknown)
    );
}
