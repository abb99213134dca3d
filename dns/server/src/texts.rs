//! The sentences of the name server that an operator reads: why it does not start, and the faults of its sockets. The problems of its
//! configuration stand beside its keys.
//!
//! A sentence says what is wrong and, after a semicolon, what the name server does or what to type. The cause follows it.

use std::{
    fmt::Display,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use topology::NodeId;

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

/// An address of `[tls]` cannot be listened on.
pub fn cannot_listen_for_tls(address: SocketAddr) -> String {
    format!(
        "cannot listen on {address} (TLS); write a free address in [tls], and allow ports below 1024 with CAP_NET_BIND_SERVICE"
    )
}

pub(crate) fn no_common_port(ip: IpAddr) -> String {
    format!("no port of {ip} is free for both UDP and TCP; write one that is in listen")
}

pub(crate) const TASK_ENDED: &str = "a task that serves DNS ended unexpectedly; the name server stops, and its supervisor starts it \
                                     again; please report this line";
pub(crate) const THREAD_ENDED: &str = "a thread that serves DNS ended unexpectedly; the name server stops, and its supervisor starts it \
                                       again; please report this line";
pub(crate) const CANNOT_START_THREADS: &str = "the threads that serve DNS cannot be started; the name server stops, and its supervisor \
                                               starts it again; check the limit of tasks (TasksMax) and the memory of this machine";
pub(crate) const CANNOT_RECEIVE: &str = "cannot receive over UDP; the name server tries again after a pause; check the memory and the \
                                         limits of this machine";
pub(crate) const CANNOT_ACCEPT: &str = "cannot accept over TCP; the name server answers over UDP and tries again after a pause; check \
                                        the open files (LimitNOFILE)";
pub(crate) const CANNOT_WRITE_REPLY: &str =
    "a reply cannot be written; the client gets none and asks again; please report this line";

pub(crate) const CERTIFICATE_REFUSED: &str = "the new certificate for DNS over TLS cannot be used; the old one stays in use; put the right \
                                              files in the places that [tls] names";

pub(crate) fn bad_certificate(certificate: &Path, key: &Path) -> String {
    format!(
        "certificate {} with key {} cannot be used; write a chain and its key in PEM",
        certificate.display(),
        key.display()
    )
}

pub(crate) fn tls_without_addresses() -> String {
    "the list is empty; write at least one, such as [\"0.0.0.0:853\"], or remove [tls]".to_owned()
}

pub(crate) const MEMORY_UNREADABLE: &str = "the file with the edges that return cannot be read; such edges get all their clients at once; \
                                            nothing has to be done: the next plan writes it anew";
pub(crate) const MEMORY_NOT_SAVED: &str = "the edges that return cannot be written to disk; after a restart they get all their clients at once; \
                                           check the disk of state_dir";
pub(crate) const PLACES_REFUSED: &str = "the new geoip_database cannot be used; the name server goes on with the places that it read before; put \
                                         a whole database in its place";

pub(crate) const REPORT_DROPPED: &str = "a report of questions is lost, because the control planes take none; the name server answers as before; \
                                         type: meridian status";
pub(crate) const CANNOT_SIGN: &str = "an answer cannot be signed; the name server sends it unsigned, and resolvers that validate ask \
                                      another one; check that this machine has random numbers (/dev/urandom)";

pub(crate) fn not_a_zone_key(file: &Path) -> String {
    format!(
        "{} holds no key of ECDSA on P-256 (PKCS #8 in PEM); make one: meridian dns key {}",
        file.display(),
        file.display()
    )
}

pub(crate) fn equal_keys(file: &Path) -> String {
    format!(
        "{} holds a key with the tag of the other one; make another: meridian dns key {}",
        file.display(),
        file.display()
    )
}

pub(crate) fn bad_keys(most: usize) -> String {
    format!("write 1 to {most} files, the one that signs first; without [dnssec] the zone is not signed")
}

pub(crate) fn bad_amplification() -> String {
    "write 3 to 10; a longer reply is cut, and its client asks over TCP".to_owned()
}

pub(crate) const NO_PLAN_YET: &str =
    "this name server has no plan yet; it does not listen for DNS until it has one; type: meridian status";

pub(crate) fn plan_not_held(node: &NodeId, have: u64, asked: u64) -> String {
    format!(
        "{node} holds plan {have} and not plan {asked}; leave --generation out, or wait until the plan has reached it"
    )
}

pub(crate) fn not_a_plan(error: &dyn Display) -> String {
    format!("the request holds no plan that can be applied: {error}; type: meridian plan")
}

pub(crate) fn not_a_type(kind: &str) -> String {
    format!("\"{kind:.20}\" is no type of record; write A, AAAA, HTTPS, SVCB, NS, SOA, TXT, CAA or TYPE and a number")
}

pub(crate) fn not_in_zone(name: &str, zone: &str) -> String {
    format!("\"{name:.255}\" is not in the zone {zone}; write {zone} or a name that ends with it")
}

/// `database` is the key `geoip_database` with the file.
pub(crate) fn database_too_long(database: &str, bytes: u64, bytes_max: u64) -> String {
    format!("{database} has {bytes} bytes; use one of at most {bytes_max}")
}

pub(crate) fn database_without_places(database: &str) -> String {
    format!("{database} has no network with a latitude and a longitude; use a city database, or remove the line")
}

pub(crate) fn bad_cookie_secret() -> String {
    "write 32 hexadecimal digits, the same in all name servers of the zone; `openssl rand -hex 16` makes them"
        .to_owned()
}

pub(crate) fn bad_return_step(seconds: u64, most: u64) -> String {
    format!("{seconds} is out of range; write 0 to {most} seconds")
}

pub(crate) fn static_edges_without_mode() -> String {
    "all_out_edges counts only with all_out = \"static\"; write that, or remove the line".to_owned()
}

pub(crate) fn no_static_edges() -> String {
    "all_out = \"static\" names the edges of all_out_edges, and there are none; write all_out_edges = [\"edge-iad\"]"
        .to_owned()
}

pub(crate) fn bad_slip() -> String {
    "write 0 to 10; of so many limited replies one is sent, cut".to_owned()
}

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
            &cannot_listen_for_tls(address),
        ] {
            assert_eq!(text.split("; ").count(), 2, "not two parts: {text}");
            assert!(!text.ends_with(['.', ';', ':']) && text.len() < 240, "{text}");
        }
        for text in [
            plan_not_held(&NodeId::new("ns1").unwrap(), 3, 4),
            not_a_plan(&"it has no edge"),
            not_a_type("AAAAA"),
            not_in_zone("example.org", "voice.example"),
            bad_cookie_secret(),
            bad_return_step(9_000, 3_600),
            static_edges_without_mode(),
            no_static_edges(),
            bad_slip(),
            database_too_long("geoip_database city.mmdb", 2, 1),
            database_without_places("geoip_database country.mmdb"),
            not_a_zone_key(Path::new("zone.key")),
            equal_keys(Path::new("zone.key")),
            bad_keys(2),
            bad_amplification(),
            bad_certificate(Path::new("dns.crt"), Path::new("dns.key")),
            tls_without_addresses(),
        ] {
            assert!(text.contains("; "), "{text}");
        }
        assert_eq!(NO_PLAN_YET.split("; ").count(), 3, "{NO_PLAN_YET}");
        for text in [
            TASK_ENDED,
            THREAD_ENDED,
            CANNOT_START_THREADS,
            CANNOT_RECEIVE,
            CANNOT_ACCEPT,
            CANNOT_WRITE_REPLY,
            CANNOT_SIGN,
            MEMORY_UNREADABLE,
            MEMORY_NOT_SAVED,
            PLACES_REFUSED,
            CERTIFICATE_REFUSED,
            REPORT_DROPPED,
        ] {
            assert_eq!(text.split("; ").count(), 3, "not three parts: {text}");
        }
    }
}
