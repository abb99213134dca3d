//! The sentences of the edge that people read: refusals for the developers of devices, and warnings of the log for operators.
//! The texts about configuration stand beside its keys; those about credentials are in the table of the crate `auth`.
//!
//! A refusal says what is wrong and what the device does next. A warning says what is wrong, what the edge does about it, and
//! what to check or type.

use std::{fmt::Display, path::Path};

// Refusals: the `message` of an answer in the form of the OpenAI API.

pub(crate) const DRAINING: &str = "this edge is stopping; connect again to reach another";
pub(crate) const EDGE_FULL: &str = "this edge has no room; connect again to reach another";
pub(crate) const SESSIONS_FULL: &str = "this edge has no slot for another session; try again";
pub(crate) const HANDSHAKES_FULL: &str = "too many sessions are opening at this edge at this moment; try again";
pub(crate) const OVERLOADED: &str = "this edge is short of memory; try again";
pub(crate) const CLIENT_CONNECTIONS: &str = "this address has too many connections; close some";
pub(crate) const CLIENT_RATE: &str = "this address sends too many requests; slow down";
pub(crate) const CLIENT_IN_FLIGHT: &str =
    "this address has too many requests without an answer yet; wait for some of them";
pub(crate) const CLIENT_UPLOADS: &str =
    "this address sends too many long request bodies at once; wait for one of them, or send shorter ones";
pub(crate) const HEADER_TOO_SLOW: &str = "the request header took too long to arrive; send it faster";
pub(crate) const BODY_TOO_SLOW: &str = "the request body took too long to arrive; send it faster";
pub(crate) const BODY_MALFORMED: &str = "the chunks of the body are malformed; frame them as in RFC 9112 section 7.1";
pub(crate) const WEBSOCKET_ONLY: &str =
    "/v1/realtime speaks WebSocket version 13; connect with wss:// or send the upgrade headers";
pub(crate) const TLS_ONLY: &str = "this port speaks TLS; connect with https:// or wss://";
pub(crate) const GRPC_NEEDS_HTTP2: &str = "gRPC needs HTTP/2; use a client that speaks it";
pub(crate) const NO_REGION: &str = "no region could take the request; try again";
pub(crate) const NO_SERVER: &str = "no server of this path could take the request; try again";
pub(crate) const ANSWER_UNUSABLE: &str = "the region's answer breaks HTTP, so the edge cannot pass it on; try again";
pub(crate) const NOT_PASSED_ON: &str = "the edge could not pass the request on; try again";

/// The paths that an answer to an unknown path names.
pub(crate) const PATHS: &str = "/v1/realtime (WebSocket), /v1/audio/transcriptions, /v1/audio/speech, /v1/models, \
                                /api/v1/voice/*, /health, and gRPC meridian.voice.v1.Voice";

/// `tried` are the regions that were asked.
pub(crate) fn no_region_for_session(tried: &str) -> String {
    format!("no region could take the session (tried {tried}); try again")
}

pub(crate) fn regions_at_limit(limit: &str) -> String {
    format!("every region is at its limit of {limit}; try again")
}

/// `whose` is "region eu-west" or "the server".
pub(crate) fn failed_while_answering(whose: impl Display, is_timeout: bool) -> String {
    let what = if is_timeout {
        "did not answer in time"
    } else {
        "failed while it answered"
    };
    format!("{whose} {what}; try again if the request may run twice")
}

pub(crate) fn header_too_large(bytes_max: usize, lines_max: usize) -> String {
    format!("request headers are limited to {bytes_max} bytes and {lines_max} lines; send fewer or shorter ones")
}

pub(crate) fn body_too_large(bytes_max: u64) -> String {
    format!("request bodies are limited to {bytes_max} bytes; send a shorter one")
}

pub(crate) fn origin_not_allowed(origin: &str) -> String {
    format!("pages of {origin} may not call this service; its operator names those that may in [cors] of the edge")
}

pub(crate) fn not_found(path: &str) -> String {
    format!("nothing is served at {path}; there is {PATHS}")
}

pub(crate) fn tenant_sessions(max: u32) -> String {
    format!("this tenant has its {max} sessions at this edge; end one")
}

pub(crate) fn tenant_rate(per_minute: u32) -> String {
    format!("this tenant may send {per_minute} requests a minute to this edge; slow down")
}

pub(crate) fn tenant_bytes(per_day: u64) -> String {
    format!("the devices of this tenant sent the {per_day} bytes of this day (UTC) to this edge; come back tomorrow")
}

// Reasons of Close frames, which hold at most 123 bytes.

pub(crate) const CLOSE_DRAINING: &str = "edge draining; reconnect";
pub(crate) const CLOSE_OVERLOADED: &str = "edge overloaded; reconnect";
pub(crate) const CLOSE_REVOKED: &str = "your credential was revoked; ask its operator";
pub(crate) const CLOSE_QUOTA_USED: &str = "the devices of your tenant used their bytes of the day; come back tomorrow";
pub(crate) const CLOSE_DEVICE_SLOW: &str = "you read too slowly; read faster";
pub(crate) const CLOSE_DEVICE_TRICKLES: &str = "a frame that you began takes too long; send faster";

pub(crate) fn region_lost(region: &str) -> String {
    format!("region {region} lost; reconnect")
}

// Refusals of `/explain`, for operators.

pub(crate) const NO_PLAN_YET: &str = "this edge has no plan yet; ask again when it follows a control plane";
pub(crate) const EXPLAIN_WHAT: &str =
    "the question names neither a session nor a client; name one, as in /explain?client=192.0.2.7";

/// `held` are the generations that the edge has.
pub(crate) fn plan_not_held(edge: impl Display, held: &str, generation: u64) -> String {
    format!("{edge} holds plan {held}, not {generation}; ask for one of those, because an edge keeps only two plans")
}

pub(crate) fn not_a_plan(error: impl Display) -> String {
    format!("the body is not a plan: {error}; send a snapshot in JSON")
}

// Warnings of the log. The fields beside them have the ids, the addresses and the numbers.

pub(crate) const PLAN_NOT_NEWER: &str = "a control plane offered a plan that is not newer; the plan in force stays; compare the \
                                         plans of all control planes: `meridian status`";
pub(crate) const PLAN_SERVES_NOBODY: &str = "the new plan would leave sessions of this edge without a stack; the plan in force \
                                             stays; look at the plan: `meridian plan`";
pub(crate) const NO_ROOM: &str = "this edge is out of descriptors, ports or buffers; it refuses new devices for a second and \
                                  blames no region; raise LimitNOFILE or lower limits.connections_max";
pub(crate) const STACK_NOT_BELIEVED: &str = "a stack and this edge do not believe each other's certificate; sessions go to other \
                                             stacks; check the clocks, the trust and [identity] of both (docs/security.md)";
pub(crate) const STACK_EJECTED: &str = "a stack failed too often; this edge sends it nothing for a while; look at the stack \
                                        and its region: `meridian why REGION`";
pub(crate) const SERVER_DOWN: &str = "a server of an [[upstream]] failed too often; the edge asks the others of its path until \
                                      fail_timeout has passed; check that server";
pub(crate) const NO_REGION_TOOK_SESSION: &str = "no region took the session; the device got 503 and tries again; see the regions \
                                                 with `meridian status`";
pub(crate) const CUT_AFTER_DRAIN: &str = "sessions were left when drain.limit had passed; the edge cut them; a longer drain.limit \
                                          lets them finish";
pub(crate) const CANNOT_ACCEPT: &str = "the edge cannot accept a connection; it tries again after a pause; look at the open files \
                                        and the memory of this machine";
pub(crate) const SUCCESSOR_LEFT: &str = "a successor ended before it accepted devices; this edge goes on serving; look at the log \
                                         of the successor";
pub(crate) const SUCCESSOR_FAILED: &str = "a successor did not get the sockets; this edge goes on serving; start it again with \
                                           --take-over";
pub(crate) const CANNOT_HAND_OVER: &str = "this edge cannot offer its sockets to a successor; it serves all the same; stop it \
                                           before you start the next one, or make state_dir writable";
pub(crate) const PREDECESSOR_NOT_TOLD: &str = "the edge before this one did not hear that it can go; this edge serves; stop the \
                                               old process yourself";
pub(crate) const MEMORY_UNSEEN: &str = "the edge cannot read its memory use; limits.memory_max has no effect; check that /proc is \
                                        mounted";
pub(crate) const MEMORY_PRESSURE: &str = "the memory pressure changed; the edge admits devices by it; add edges or raise \
                                          limits.memory_max if it stays";
pub(crate) const CERTIFICATE_EXPIRED: &str = "the certificate for devices has expired; the edge serves with it all the same, and \
                                              devices refuse it; put a new one in its place";
pub(crate) const CERTIFICATE_REFUSED: &str = "the new certificate for devices is not valid; the old one stays in use; correct the \
                                              files";
pub(crate) const CERTIFICATE_EXPIRES: &str = "the certificate for devices expires soon; the edge serves with it until then; put a \
                                              new one in its place";
pub(crate) const OPEN_FILES_FIXED: &str = "the edge cannot raise its limit on open files; it goes on with the one it has; raise \
                                           LimitNOFILE or ulimit -n";
pub(crate) const OPEN_FILES_TOO_FEW: &str = "limits.connections_max is more than the open files allow; the edge accepts fewer \
                                             connections; raise LimitNOFILE or ulimit -n";
pub(crate) const NO_IDENTITY: &str = "this edge has no [identity] for stacks; it believes any process at the address of a stack, \
                                      and talks to it in plain text; give the edge and its stacks an identity (docs/security.md)";
pub(crate) const CANNOT_ANNOUNCE: &str =
    "the edge cannot announce its addresses; it stops; check the path of --announce";
pub(crate) const REVOKED_IN_VAIN: &str = "the document of devices revokes names that it does not have; the rest is in force; check \
                                          the spelling";
pub(crate) const DOCUMENT_REFUSED: &str = "the edge does not take the new document of devices; the last one stays in force; correct \
                                           the file";
pub(crate) const ISSUER_URL_UNUSABLE: &str = "the edge cannot ask the issuer for its keys; the last keys stay in force; correct \
                                              auth.jwks_url and restart the edge";
pub(crate) const ISSUER_SENT_NO_KEYS: &str = "the issuer of tokens sent no keys; the last keys stay in force; check that this edge \
                                              reaches auth.jwks_url";

// The handover between two processes of an edge: an edge that starts with --take-over stops with one of these, and the edge that offers
// its sockets logs one behind [`SUCCESSOR_FAILED`].

pub(crate) fn no_predecessor(path: &Path) -> String {
    format!(
        "no edge offers its sockets at {}; start without --take-over when none is running",
        path.display()
    )
}

pub(crate) const PREDECESSOR_IS_SILENT: &str =
    "the running edge does not hand its sockets over; look at its log, or stop it and start without --take-over";
pub(crate) const PREDECESSOR_REFUSES: &str = "the running edge is stopping, or runs as another user; start as its user, or without --take-over once it has stopped";
pub(crate) const UNREADABLE_OFFER: &str = "the running edge sent an offer that this version cannot read; stop it first";

pub(crate) fn other_offer(protocol: u32, received: usize, offered: usize) -> String {
    format!(
        "the running edge is of a version that cannot be taken over (protocol {protocol}, {received} of {offered} sockets); stop it first"
    )
}

pub(crate) fn successor_is_another_user(successor: u32, own: u32) -> String {
    format!("the successor runs as user {successor}, and this edge as {own}; start both as the same user")
}

pub(crate) const SUCCESSOR_IS_SILENT: &str = "the successor does not read the offer; look at its log";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_is_wrong_and_what_to_do() {
        let constants = [
            DRAINING,
            EDGE_FULL,
            SESSIONS_FULL,
            HANDSHAKES_FULL,
            OVERLOADED,
            CLIENT_CONNECTIONS,
            CLIENT_RATE,
            CLIENT_IN_FLIGHT,
            CLIENT_UPLOADS,
            HEADER_TOO_SLOW,
            BODY_TOO_SLOW,
            BODY_MALFORMED,
            WEBSOCKET_ONLY,
            TLS_ONLY,
            GRPC_NEEDS_HTTP2,
            NO_REGION,
            NO_SERVER,
            ANSWER_UNUSABLE,
            NOT_PASSED_ON,
            CLOSE_DRAINING,
            CLOSE_OVERLOADED,
            CLOSE_REVOKED,
            CLOSE_QUOTA_USED,
            CLOSE_DEVICE_SLOW,
            CLOSE_DEVICE_TRICKLES,
            NO_PLAN_YET,
            EXPLAIN_WHAT,
            PREDECESSOR_IS_SILENT,
            PREDECESSOR_REFUSES,
            UNREADABLE_OFFER,
            SUCCESSOR_IS_SILENT,
        ];
        let made = [
            no_region_for_session("none"),
            regions_at_limit("connections"),
            failed_while_answering("region eu-west", true),
            failed_while_answering("the server", false),
            header_too_large(1, 1),
            body_too_large(1),
            origin_not_allowed("https://app.example"),
            not_found("/"),
            tenant_sessions(1),
            tenant_rate(1),
            tenant_bytes(1),
            region_lost("eu-west"),
            not_a_plan("no generation"),
            plan_not_held("edge-dub", "4 and 5", 1),
            no_predecessor(Path::new("state")),
            other_offer(2, 1, 2),
            successor_is_another_user(1000, 0),
        ];
        for text in constants.into_iter().chain(made.iter().map(String::as_str)) {
            let (wrong, remedy) = text.split_once("; ").unwrap_or_default();
            assert!(!wrong.is_empty() && !remedy.is_empty(), "says no remedy: {text}");
            check(text);
        }
        assert!(not_found("/").ends_with(PATHS));
    }

    #[test]
    fn a_warning_says_what_is_wrong_what_the_edge_does_and_what_to_type() {
        for text in [
            PLAN_NOT_NEWER,
            PLAN_SERVES_NOBODY,
            NO_ROOM,
            STACK_NOT_BELIEVED,
            STACK_EJECTED,
            SERVER_DOWN,
            NO_REGION_TOOK_SESSION,
            CUT_AFTER_DRAIN,
            CANNOT_ACCEPT,
            SUCCESSOR_LEFT,
            SUCCESSOR_FAILED,
            CANNOT_HAND_OVER,
            PREDECESSOR_NOT_TOLD,
            MEMORY_UNSEEN,
            MEMORY_PRESSURE,
            CERTIFICATE_EXPIRED,
            CERTIFICATE_REFUSED,
            CERTIFICATE_EXPIRES,
            OPEN_FILES_FIXED,
            OPEN_FILES_TOO_FEW,
            NO_IDENTITY,
            CANNOT_ANNOUNCE,
            REVOKED_IN_VAIN,
            DOCUMENT_REFUSED,
            ISSUER_URL_UNUSABLE,
            ISSUER_SENT_NO_KEYS,
        ] {
            assert_eq!(text.split("; ").count(), 3, "not three parts: {text}");
            check(text);
        }
    }

    /// One line of plain text that begins with its subject and ends without a full stop.
    fn check(text: &str) {
        let opens = text.split(' ').next().unwrap_or_default();
        assert!(
            !["what", "who", "whoever", "whatever", "which", "how"].contains(&opens),
            "{text}"
        );
        assert!(
            !text.contains('\n') && !text.contains("  ") && !text.ends_with('.'),
            "{text}"
        );
    }
}
