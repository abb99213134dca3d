//! The sentences of every process that an operator reads: why it does not start or stops, and the faults of its keys. Problems of a
//! configuration stand beside their rules.
//!
//! A sentence says what is wrong and, after a semicolon, what the process does or what to type. The cause follows it.

use std::{fmt::Display, net::SocketAddr, path::Path};

/// Makes a key, in a file that nobody else reads.
const MAKE_KEY: &str = "make one with `openssl rand -hex 32`";

// Start and end.

pub(crate) fn cannot_read_configuration(path: &Path) -> String {
    format!(
        "cannot read configuration {}; give another with --config",
        path.display()
    )
}

pub(crate) fn cannot_announce(path: &Path) -> String {
    format!(
        "cannot write the announcement {}; give --announce a file in a folder that this process may write",
        path.display()
    )
}

pub(crate) fn cannot_read_announcement(path: &Path) -> String {
    format!(
        "cannot read the announcement {}; remove the file and start its process again",
        path.display()
    )
}

pub(crate) fn cannot_listen_for_metrics(address: SocketAddr) -> String {
    format!("cannot listen on {address} for metrics and health; write a free address in admin_listen")
}

pub(crate) fn cannot_watch(signal: &str) -> String {
    format!("cannot watch {signal}; the process does not start, because nothing could stop it in order")
}

pub(crate) fn task_ended(name: &str) -> String {
    format!("task {name} ended unexpectedly; the process stops, and its supervisor starts it again")
}

pub(crate) fn in_task(name: &str) -> String {
    format!("task {name}")
}

pub(crate) const CUT_AFTER_GRACE: &str = "tasks did not stop within the grace period; the process ends without them; report it if it \
                                          comes again";

// Keys.

pub(crate) const KEY_IN_CONFIGURATION: &str = "every user of this machine can read the configuration, which holds a key; the process \
                                               starts all the same; keep the key in a file of its own: { file = \"PATH\" }";

pub(crate) fn no_credentials(variable: &str) -> String {
    format!(
        "{variable} is not set; start the process by systemd with LoadCredential=NAME:/path/of/file, or write the path of a file"
    )
}

pub(crate) fn no_key_file(path: &Path) -> String {
    let path = path.display();
    format!("there is no file {path}; make one: (umask 077; openssl rand -hex 32 >{path})")
}

pub(crate) fn cannot_read_key(path: &Path, why: impl Display) -> String {
    format!("cannot read {}: {why}; `ls -l` shows its rights", path.display())
}

pub(crate) fn key_readable(path: &Path, mode: u32) -> String {
    let path = path.display();
    format!("{path} can be read by others (mode {mode:04o}); make a new key, and chmod 600 {path}")
}

pub(crate) fn key_file_too_long(path: &Path, bytes: u64) -> String {
    format!(
        "{} has {bytes} bytes and holds no key; write one or two lines in hex",
        path.display()
    )
}

pub(crate) fn key_file_empty(path: &Path) -> String {
    let path = path.display();
    format!("{path} is empty; make a key: (umask 077; openssl rand -hex 32 >{path})")
}

pub(crate) fn key_is_published() -> String {
    "this key is the published example, and everybody knows it; make your own with `openssl rand -hex 32`".to_owned()
}

pub(crate) fn key_is_not_hex() -> String {
    format!("the key is not hexadecimal; {MAKE_KEY}")
}

pub(crate) const KEY_SHAPE: &str =
    "not a key; write \"HEX\", the new and the old key as [\"NEW\", \"OLD\"], or { file = \"PATH\" }";

// Encrypted files.

/// `known` are the names of the keys that are there.
pub(crate) fn sealed_with_another_key(wanted: &str, known: &[String]) -> String {
    format!(
        "it is encrypted with the key {wanted}, and the key file has {}; name the file that it was encrypted to",
        known.join(" and ")
    )
}

pub(crate) const SEALED_CHANGED: &str =
    "it was changed or cut short since it was encrypted, or its key is another one; fetch it again";
pub(crate) const NO_RANDOM_NUMBERS: &str = "the system gives no random numbers; check /dev/urandom";

pub(crate) fn sealing_key_has_other_length(file: &Path, bytes: usize, wanted: usize) -> String {
    let path = file.display();
    format!("a key in {path} has {bytes} bytes and needs {wanted}; make one: (umask 077; openssl rand -hex 32 >{path})")
}

pub(crate) fn key_has_other_length(bytes: usize, wanted: usize) -> String {
    format!("the key has {bytes} bytes and needs {wanted}; {MAKE_KEY}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sentence_says_what_is_wrong_and_what_the_process_or_a_person_does() {
        let (path, address) = (Path::new("edge.key"), "127.0.0.1:80".parse().unwrap());
        let made = [
            cannot_read_configuration(path),
            cannot_announce(path),
            cannot_read_announcement(path),
            cannot_listen_for_metrics(address),
            cannot_watch("SIGTERM"),
            task_ended("admin"),
            no_credentials("CREDENTIALS_DIRECTORY"),
            no_key_file(path),
            cannot_read_key(path, "permission denied"),
            key_readable(path, 0o644),
            key_file_too_long(path, 5000),
            key_file_empty(path),
            key_is_published(),
            key_is_not_hex(),
            sealed_with_another_key("0badcafe", &["deadbeef".to_owned()]),
            sealing_key_has_other_length(path, 2, 32),
            key_has_other_length(2, 32),
        ];
        let constants = [
            CUT_AFTER_GRACE,
            KEY_IN_CONFIGURATION,
            KEY_SHAPE,
            SEALED_CHANGED,
            NO_RANDOM_NUMBERS,
        ];
        for text in made.iter().map(String::as_str).chain(constants) {
            assert!(text.contains("; "), "says one thing only: {text}");
            assert!(!text.ends_with(['.', ';', ':']) && text.len() < 240, "{text}");
        }
        // The cause follows, which says the rest.
        assert_eq!(in_task("admin"), "task admin");
    }
}
