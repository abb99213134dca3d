//! `meridian up` and the commands that it reads from a pipe. The members of etcd are real; every other program is a
//! script that only reports that it is ready.

use std::{
    io::{BufRead as _, BufReader, Lines, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

/// Links `meridian` into `folder` and puts scripts beside it: it looks for its programs in its own folder.
fn programs(folder: &Path) {
    std::fs::hard_link(env!("CARGO_BIN_EXE_meridian"), folder.join("meridian")).unwrap();
    let announce = r#"printf '{"program":"p","pid":%d,"addresses":{}}' $$ > "$4.new"; mv "$4.new" "$4""#;
    for program in [
        "meridian-stack",
        "meridian-control-plane",
        "meridian-dns",
        "meridian-edge",
    ] {
        let path = folder.join(program);
        std::fs::write(&path, format!("#!/bin/sh\n{announce}\ncat >/dev/null\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
}

struct Up {
    child: Child,
    pipe: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Up {
    fn start(folder: &Path) -> Self {
        let mut child = Command::new(folder.join("meridian"))
            .args(["up", "--store", "etcd"])
            .arg("--models-dir")
            .arg(folder)
            .arg("--state-dir")
            .arg(folder.join("state"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let pipe = child.stdin.take().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, pipe, lines }
    }

    fn say(&mut self, command: &str) {
        writeln!(self.pipe, "{command}").unwrap();
    }

    /// Reads lines until one contains `expected`.
    fn until(&mut self, expected: &str) {
        let mut said = String::new();
        for line in self.lines.by_ref() {
            let line = line.unwrap();
            if line.contains(expected) {
                return;
            }
            said += &format!("{line}\n");
        }
        panic!("\"{expected}\" was never said, but:\n{said}");
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // The processes that it started end with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_pipe_kills_and_restarts_what_runs_and_no_command_waits_for_a_quorum() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    programs(folder.path());
    let mut up = Up::start(folder.path());
    up.until("Ctrl-C stops everything");

    up.say("kill nobody");
    up.until("there is no process \"nobody\"");
    up.say("kill ns1");
    up.until("ns1 killed");
    up.say("restart ns1");
    up.until("ns1 ready after");

    for member in ["etcd-1", "etcd-2", "etcd-3"] {
        up.say(&format!("kill {member}"));
        up.until(&format!("{member} killed"));
    }
    // One member alone has no quorum: `meridian` says so, and takes the next command at once.
    up.say("restart etcd-1");
    up.until("etcd-1 runs and takes no writes yet: 2 of the 3 members must run (now 1)");
    up.say("restart etcd-2");
    up.until("etcd-2 ready after");
    up.say("restart etcd-3");
    up.until("etcd-3 ready after");
    up.say("kil us-west");
    up.until("there is no command \"kil\"; did you mean `kill`?");
    up.say("dance");
    up.until("kill NAME");

    let stopped = Command::new("kill").arg(up.child.id().to_string()).status();
    assert!(stopped.unwrap().success());
    up.until("no process is left");
    assert!(up.child.wait().unwrap().success());
}
