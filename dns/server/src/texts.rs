//! The sentences of the name server that an operator reads: why it does not start, and the faults of its sockets. The problems of its
//! configuration stand beside its keys.
//!
//! A sentence says what is wrong and, after a semicolon, what the name server does or what to type. The cause follows it.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
};

/// The folder of the last good plan cannot be made.
pub fn cannot_create_state_dir(folder: &Path) -> String {
    format!(
        "cannot create state_dir {}; write a folder that this process may create",
        folder.display()
    )
}

/// The name server waits for its first plan.
pub const WAITS_FOR_PLAN: &str =
    "waiting for the first plan; the DNS ports stay closed until then, so that resolvers ask another server";

/// The task that follows plans ended before the first one came.
pub const FOLLOWER_ENDED: &str =
    "the task that follows plans ended; the name server stops, and its supervisor starts it again";

pub(crate) fn cannot_listen(address: SocketAddr, transport: &str) -> String {
    format!(
        "cannot listen on {address} ({transport}); write a free address in listen, and allow ports below 1024 with CAP_NET_BIND_SERVICE"
    )
}

pub(crate) fn no_common_port(ip: IpAddr) -> String {
    format!("no port of {ip} is free for both UDP and TCP; write one that is in listen")
}

pub(crate) const TASK_ENDED: &str = "a task that serves DNS ended unexpectedly; the name server stops, and its supervisor starts it \
                                     again; please report this line";
pub(crate) const CANNOT_RECEIVE: &str = "cannot receive over UDP; the name server tries again after a pause; check the memory and the \
                                         limits of this machine";
pub(crate) const CANNOT_ACCEPT: &str = "cannot accept over TCP; the name server answers over UDP and tries again after a pause; check \
                                        the open files (LimitNOFILE)";
pub(crate) const CANNOT_WRITE_REPLY: &str =
    "a reply cannot be written; the client gets none and asks again; please report this line";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sentence_says_what_is_wrong_and_what_the_name_server_or_a_person_does() {
        let address: SocketAddr = "127.0.0.1:53".parse().unwrap();
        for text in [
            cannot_create_state_dir(Path::new("state")).as_str(),
            WAITS_FOR_PLAN,
            FOLLOWER_ENDED,
            &cannot_listen(address, "UDP"),
            &no_common_port(address.ip()),
        ] {
            assert_eq!(text.split("; ").count(), 2, "not two parts: {text}");
            assert!(!text.ends_with(['.', ';', ':']) && text.len() < 240, "{text}");
        }
        for text in [TASK_ENDED, CANNOT_RECEIVE, CANNOT_ACCEPT, CANNOT_WRITE_REPLY] {
            assert_eq!(text.split("; ").count(), 3, "not three parts: {text}");
        }
    }
}
