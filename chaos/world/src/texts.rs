//! The sentences of a world that people read: why it does not start, what its processes did, and what a verb of `meridian up` did not do.
//!
//! A sentence says what is wrong and, after a semicolon, what the world does or what to type. A cause, or the end of a log, follows.

use std::{fmt::Display, path::Path, time::Duration};

// The state folder.

pub(crate) fn already_running(state_dir: &Path, pid: &str, since: &str) -> String {
    format!(
        "a world is already running in {}: process {pid}, since {since} UTC; stop it with Ctrl-C in its terminal or `kill {pid}`, or start \
         another with --state-dir",
        state_dir.display()
    )
}

pub(crate) fn not_running(state_dir: &Path) -> String {
    format!(
        "no world is running in {}; start one with `meridian up`, or name a control plane with --control-plane",
        state_dir.display()
    )
}

pub(crate) fn still_starting(state_dir: &Path) -> String {
    format!(
        "the world in {} is still starting; try again in a moment",
        state_dir.display()
    )
}

pub(crate) fn other_version(state_dir: &Path, found: u32, ours: u32) -> String {
    format!(
        "the world in {} was started by another version of meridian (record {found}, not {ours}); use that version, or stop it and start \
         again",
        state_dir.display()
    )
}

pub(crate) fn cannot_use(path: &Path) -> String {
    format!(
        "cannot use {}; check its rights (`ls -l`), or name another folder with --state-dir",
        path.display()
    )
}

pub(crate) fn cannot_prepare(folder: &Path) -> String {
    format!(
        "cannot prepare {}; check its rights (`ls -l`) and the space (`df`), or name another folder with --state-dir",
        folder.display()
    )
}

// Starting.

pub(crate) fn no_certificates(why: &str) -> String {
    format!("the world has no certificates, so it does not start: {why}")
}

pub(crate) fn no_models(folder: &Path) -> String {
    format!(
        "there are no speech models in {}; give their folder with --models-dir",
        folder.display()
    )
}

pub(crate) fn etcd_not_installed(program: &str, package: &str) -> String {
    format!(
        "--store etcd needs {program}, which is not installed; sudo apt-get install {package}, or leave out --store etcd"
    )
}

pub(crate) fn no_etcd_program(program: &str, package: &str) -> String {
    format!("cannot find the program \"{program}\"; sudo apt-get install {package}")
}

pub(crate) fn no_addresses(attempts: u16, address: &str) -> String {
    format!(
        "no free loopback addresses after {attempts} attempts, and the last one failed at {address}; stop worlds that are no longer used"
    )
}

pub(crate) fn world_not_healthy(waited: Duration, missing: &str, state_dir: &Path) -> String {
    format!(
        "the world was not healthy after {:.0} s: {missing}; the logs are in {}",
        waited.as_secs_f64(),
        state_dir.display()
    )
}

pub(crate) fn folder_failed(folder: &Path, why: impl Display) -> String {
    format!(
        "cannot use {}: {why}; check its rights (`ls -l`), or name another folder",
        folder.display()
    )
}

pub(crate) fn folder_taken(folder: &Path, by: impl Display) -> String {
    format!(
        "{} holds the certificate of {by}; name another folder",
        folder.display()
    )
}

// Processes.

pub(crate) fn no_process(name: &str, known: &str) -> String {
    format!("there is no process \"{name}\"; there are {known}")
}

pub(crate) fn no_program(program: &Path) -> String {
    format!(
        "cannot find {}; build all programs first: cargo build --workspace --bins",
        program.display()
    )
}

/// `action` is a verb, such as "start" or "freeze". The error of the system follows.
pub(crate) fn cannot(action: &str, name: &str) -> String {
    format!("cannot {action} {name}")
}

pub(crate) fn cannot_in_etcd(action: &str) -> String {
    format!("cannot {action}")
}

pub(crate) fn ended_before_ready(name: &str, how: impl Display, log: &Path, last_words: &str) -> String {
    format!(
        "{name} ended before it was ready ({how}); log {}:\n{last_words}",
        log.display()
    )
}

pub(crate) fn not_ready(name: &str, waited: Duration, missing: &str, log: &Path, last_words: &str) -> String {
    format!(
        "{name} was not ready after {:.0} s ({missing}); log {}:\n{last_words}",
        waited.as_secs_f64(),
        log.display()
    )
}

pub(crate) fn process_not_running(name: &str) -> String {
    format!("{name} is not running; restart it first")
}

pub(crate) fn member_runs(name: &str) -> String {
    format!("{name} was started already; kill it first")
}

pub(crate) fn no_quorum(name: &str, majority: usize, members: usize, running: usize) -> String {
    format!(
        "{name} runs and takes no writes yet: {majority} of the {members} members must run (now {running}); restart another one"
    )
}

// The log.

pub(crate) const PROCESS_DIED: &str = "a process of the world died; the others go on without it; type `restart NAME` in the terminal \
                                       of `meridian up`";
pub(crate) const MEMBER_UNWATCHED: &str = "the world cannot watch a member of etcd; it will not report the member's death; stop other \
                                           programs and start the world again";
pub(crate) const CERTIFICATE_NOT_ISSUED: &str = "the world cannot issue a certificate; its process keeps the old one, and the world \
                                                 tries again in a minute; check the space and the rights of the state folder";
pub(crate) const LEFT_BEHIND_ENDED: &str = "ended a process that a killed world left behind";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sentence_says_what_is_wrong_and_what_the_world_or_a_person_does() {
        let (path, waited) = (Path::new("world/edge-dub.log"), Duration::from_secs(20));
        let made = [
            already_running(path, "7", "12:00"),
            not_running(path),
            still_starting(path),
            other_version(path, 1, 3),
            cannot_use(path),
            cannot_prepare(path),
            no_models(path),
            etcd_not_installed("etcd", "etcd-server"),
            no_etcd_program("etcd", "etcd-server"),
            no_addresses(5, "127.1.2.3:80/tcp"),
            world_not_healthy(waited, "health of us-east", path),
            folder_failed(path, "permission denied"),
            folder_taken(path, "edge/edge-dub"),
            no_process("nobody", "edge-dub"),
            no_program(path),
            ended_before_ready("edge-dub", "exit status: 3", path, "ERROR the port is taken"),
            not_ready("edge-dub", waited, "it does not answer", path, "INFO waits"),
            process_not_running("edge-dub"),
            member_runs("etcd-1"),
            no_quorum("etcd-1", 2, 3, 1),
        ];
        for text in made.iter().map(String::as_str) {
            let first = text.lines().next().unwrap_or_default();
            assert!(first.contains("; "), "says one thing only: {text}");
            assert!(!first.ends_with(['.', ';']) && first.len() < 240, "{text}");
        }
        for text in [PROCESS_DIED, MEMBER_UNWATCHED, CERTIFICATE_NOT_ISSUED] {
            assert_eq!(text.split("; ").count(), 3, "not three parts: {text}");
        }
        // The causes that follow these name the rest, and the last is no fault.
        for text in [
            no_certificates("the disk is full"),
            cannot("freeze", "edge-dub"),
            cannot_in_etcd("start etcd"),
            LEFT_BEHIND_ENDED.to_owned(),
        ] {
            assert!(!text.ends_with(['.', ';', ':']), "{text}");
        }
    }
}
