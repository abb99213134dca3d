//! Every sentence about identities that an operator reads, in one place, so that a reviewer reads them side by side.
//!
//! A sentence begins with its subject, says what is wrong, and after a semicolon what to do, with the command where there is one. The
//! line that shows it says what the process does: it does not start, or it keeps the certificate that it has.

use std::fmt::Display;

use topology::Moment;

/// The command that makes a certificate with a new key.
const ISSUE: &str = "`meridian cert issue KIND/NAME --ca DIR --into DIR`";
/// The command that makes a certificate anew for the same id.
const RENEW: &str = "`meridian cert renew DIR --ca DIR`";
/// The command that gets an operator's certificate.
const LOGIN: &str = "`meridian login NAME --roles ROLE`";

// Files.

pub(crate) fn file_failed(verb: &str, path: impl Display, why: impl Display) -> String {
    format!("cannot {verb} {path}: {why}; `ls -l` on its folder shows its rights")
}

pub(crate) fn key_readable(path: impl Display, mode: u32) -> String {
    format!(
        "{path} can be read by others (mode {mode:04o}); a key that others can read proves nothing: chmod 600 {path}"
    )
}

pub(crate) fn file_too_long(path: impl Display, bytes: u64) -> String {
    format!("{path} has {bytes} bytes, so it holds no certificates or key; name another file")
}

// Certificates that are read.

pub(crate) fn not_x509(why: &str) -> String {
    format!("the certificate is not X.509: {why}; issue it anew with {ISSUE}")
}

pub(crate) fn not_one_uri(uris: usize) -> String {
    format!("the certificate has {uris} URIs, and must have exactly one, its SPIFFE id; issue it with {ISSUE}")
}

pub(crate) fn bad_uri(why: impl Display) -> String {
    format!("the certificate's URI: {why}")
}

pub(crate) fn ends_before_it_begins(from: Moment, until: Moment) -> String {
    format!("the certificate begins at {from:#} and ends at {until:#} UTC; issue it anew with {ISSUE}")
}

pub(crate) fn bad_roles(why: &str) -> String {
    format!("the certificate's roles (organization): {why}; log in again with {LOGIN}")
}

pub(crate) fn not_an_id(text: &str) -> String {
    format!(
        "\"{text:.200}\" is not an id; write spiffe://ZONE/ and edge/NAME, dns/NAME, control-plane/NAME, etcd/NAME, operator/NAME or \
         stack/REGION/NAME; names have letters, digits, '.', '-' and '_', at most 64"
    )
}

pub(crate) fn not_a_role(text: &str, roles: &[&str]) -> String {
    format!(
        "\"{text:.100}\" is no role; write {}, each with or without regions, such as operator@us-east or operator@us-*",
        roles.join(", ")
    )
}

// The identity of this process.

pub(crate) fn not_pem(path: &str, what: &str) -> String {
    format!("{path} holds no {what} in PEM; issue it anew with {ISSUE}")
}

pub(crate) fn in_file(path: &str, why: impl Display) -> String {
    format!("{path}: {why}")
}

pub(crate) fn key_does_not_fit(key: &str, certificate: &str, why: &str) -> String {
    format!("{key} is not the key of {certificate}: {why}; copy both from one folder, or issue them anew with {ISSUE}")
}

pub(crate) fn other_id(offered: impl Display, own: impl Display) -> String {
    format!("the certificate is {offered}'s, and this process is {own}; issue its own with {ISSUE}")
}

pub(crate) fn out_of_date(certificate: &str, from: Moment, until: Moment) -> String {
    format!(
        "{certificate} is valid from {from:#} to {until:#} UTC, and not now; check the clock (`timedatectl`), or issue it anew with {RENEW}"
    )
}

pub(crate) fn untrusted(certificate: &str, trust: &str, why: &str) -> String {
    format!("{certificate} is not signed by a root in {trust}: {why}; issue it anew with {ISSUE}")
}

pub(crate) fn expired_at_start() -> String {
    format!(
        "the certificate of this process has expired; control planes refuse it, and so do peers whose own was renewed. Issue it anew with {RENEW}"
    )
}

pub(crate) fn untrusted_at_start() -> String {
    format!(
        "the root of this process's own certificate is not in its trust; peers may refuse it. Issue it anew under another root with {ISSUE}"
    )
}

pub(crate) fn root_removed() -> String {
    format!(
        "the root of this process's own certificate was removed from its trust; peers may refuse it. Issue it anew under another root with \
         {ISSUE}"
    )
}

// The authority.

pub(crate) fn cannot_make(why: impl Display) -> String {
    format!("cannot make a certificate: {why}; check the names and the life that the command gives it")
}

pub(crate) fn issuer_does_not_fit(why: impl Display) -> String {
    format!("the issuer's certificate and key do not fit: {why}; name the folder of one authority with --ca DIR")
}

pub(crate) fn bad_request(why: impl Display) -> String {
    format!(
        "the request cannot be read, or its signature is not made with its own key: {why}; make a new key and a new request"
    )
}

pub(crate) fn life_out_of_range(life: impl std::fmt::Debug, left: impl std::fmt::Debug) -> String {
    format!("a life of {life:?} is out of range; write 1m or more, and no more than the issuer has left ({left:?})")
}

// Peers.

pub(crate) fn peer_has_no_certificate() -> String {
    format!("the peer has no certificate; give it one with {ISSUE}, and the section [identity]")
}

pub(crate) fn peer_lost_its_root() -> String {
    format!("the root of the peer is no longer trusted; issue its certificate anew under another root with {ISSUE}")
}

pub(crate) fn peer_of_other_zone(id: impl Display, zone: &str) -> String {
    format!(
        "{id} is of another zone than {zone}; check the address, or issue its certificate in this zone with {ISSUE}"
    )
}

pub(crate) fn not_a_control_plane(id: impl Display) -> String {
    format!("expected a control plane, found {id}; check the address")
}

pub(crate) fn peer_expired(at: Moment) -> String {
    format!("the certificate of the peer ended at {at:#} UTC; issue it anew with {RENEW}")
}

pub(crate) fn refused_by_peer(own: impl Display, why: &str) -> String {
    format!(
        "the other end refuses the certificate of {own}: {why}; its log says why, and `meridian cert list DIR` shows this certificate"
    )
}

// Peers at the other end of a link between edge and stack: a text follows "the stack ADDRESS:" or the like.

pub(crate) fn it_refuses(why: &str) -> String {
    format!(
        "it refuses the certificate of this process ({why}); look into its log, and at this certificate with `meridian cert list DIR`"
    )
}

pub(crate) fn it_proves_nothing(why: &str) -> String {
    format!("it does not prove its id: {why}")
}

pub(crate) fn it_speaks_no_tls() -> String {
    "it does not speak TLS; give it the section [identity], or write stacks = \"off\" here".to_owned()
}

pub(crate) fn its_root_was_taken_away() -> String {
    format!("its root is no longer trusted; issue its certificate anew under another root with {ISSUE}")
}

// Connections that a listener refuses or ends.

pub(crate) const TOO_MANY_JOIN: &str = "too many processes are joining; it may try again at once";
pub(crate) const TOO_MANY_HANDSHAKES: &str = "too many peers are at their handshake; it may try again at once";
pub(crate) const SPEAKS_PLAIN_TEXT: &str =
    "the peer speaks plain text; give it the section [identity], and write https:// in control_planes";
pub(crate) const HANDSHAKE_TOO_SLOW: &str =
    "the handshake was not done in 5 s; the peer tries again, and its network is to be checked if that goes on";
pub(crate) const BREAK_GLASS_IS_SEALED: &str = "a sealed credential alone has the role break-glass; `meridian cert break-glass NAME --ca DIR --into DIR` makes one";

pub(crate) const MUST_PROVE: &str = "this process wants to know who calls: use https:// and a certificate";

pub(crate) const PEER_EXPIRED: &str = "the certificate of the peer has expired";
pub(crate) const PEER_EXPIRES_SOON: &str = "the certificate of the peer is about to expire";
pub(crate) const PEER_UNTRUSTED: &str = "the root of the peer is no longer trusted";
pub(crate) const PROCESS_ENDS: &str = "this process ends";

// The log.

pub(crate) const CONNECTION_ENDS: &str = "a connection ends, because the certificate of its peer no longer counts; the peer opens it again \
     with a new one; renew that certificate if it does not come back";
pub(crate) const EXPIRED_PEER_BELIEVED: &str = "a link was opened although the certificate of its peer has ended, because that of this process was not \
     renewed either; links stay possible until a week after that end; let control planes renew certificates again, or issue them anew: \
     `meridian cert renew DIR --ca DIR`";
pub(crate) const CONNECTION_REFUSED: &str =
    "a connection was refused; its peer tries again; correct what the error names, at the peer or here";
pub(crate) const CANNOT_ACCEPT: &str = "this process cannot accept a connection; it tries again after a pause; check its open files \
     (LimitNOFILE)";
pub(crate) const NEW_FILES_REFUSED: &str = "the new certificate or trust is no good; the old one stays in use; correct the files: `meridian cert \
     list DIR`";

// Rights: the rule that denies a call. A text follows "ID may not CALL:".

pub(crate) fn denied(id: &str, call: &str, rule: &str) -> String {
    format!("{id} may not {call}: {rule}")
}

pub(crate) const FOLLOWS_AS_ITSELF: &str =
    "a node follows plans under its own id only; correct the node's name in its configuration, or its certificate";
pub(crate) const EDGES_FOLLOW_AS_EDGES: &str = "only edges follow plans as edges; check the certificate of the node";
pub(crate) const DNS_FOLLOWS_AS_DNS: &str =
    "only name servers follow plans as name servers; check the certificate of the node";
pub(crate) const REPORTS_AS_ITSELF: &str =
    "a vantage reports under its own id only; correct the node's name in its configuration, or its certificate";
pub(crate) const VANTAGES_REPORT: &str =
    "only edges and control planes report observations; check the certificate of the node";
pub(crate) const NAME_SERVERS_REPORT: &str =
    "only name servers report questions of DNS; check the certificate of the node";
pub(crate) const EDGES_CALL_STACKS: &str =
    "only edges and control planes do that; devices and operators go through an edge";
pub(crate) const OTHER_REGION_SERVES: &str =
    "its address in topology.toml leads to another process; check the address, and the certificate of the stack";

pub(crate) fn operators_log_in() -> String {
    format!("an operator's certificate is not renewed; log in again ({LOGIN})")
}

pub(crate) fn needs_role(role: impl Display, region: Option<&str>, has: &str) -> String {
    let place = region.map_or_else(|| " everywhere".to_owned(), |region| format!(" in {region}"));
    format!("it needs the role {role}{place}, and this certificate has {has}; log in with one that has it")
}

pub(crate) fn etcd_is_issued() -> String {
    "etcd has an authority of its own; issue it anew with `meridian cert issue etcd/NAME --ca DIR --into DIR`"
        .to_owned()
}

pub(crate) fn only_operators() -> String {
    format!("only operators do that; use an operator's certificate ({LOGIN})")
}

// Tokens and signatures.

pub(crate) fn unknown_token() -> &'static str {
    "the token is not known; it must stand in operators.toml of the control plane, under its name"
}

pub(crate) fn token_ended() -> &'static str {
    "the token has ended; make another with `meridian operator-token NAME --roles ROLE --for TIME --root FILE`"
}

pub(crate) fn no_token() -> &'static str {
    "this is no token; `meridian cert token --role KIND/NAME --reason WHY` makes one for a process, and \
     `meridian operator-token NAME --roles ROLE --for TIME --root FILE` one for a program"
}

pub(crate) fn key_signs_nothing(why: &str) -> String {
    format!("the key of this process signs nothing: {why}; issue a new one with {ISSUE}")
}

pub(crate) fn files_in_exchange() -> &'static str {
    "the certificate and the key of this process do not fit each other right now; try again"
}

pub(crate) fn signer_untrusted() -> &'static str {
    "the certificate of the signature does not lead to a trusted root; name the right roots with --trust FILE"
}

pub(crate) fn signed_out_of_date(id: &str, at: Moment, from: Moment, until: Moment) -> String {
    format!(
        "{id} signed it at {at:#} UTC, and its certificate was valid from {from:#} to {until:#} UTC; do not believe it, and ask for \
         another head (`meridian audit head`)"
    )
}

pub(crate) fn forged(id: &str) -> String {
    format!("the signature is not one of {id} for this statement; do not believe it, and find out who wrote it")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sentence_begins_with_its_subject_and_says_what_to_do() {
        let at = Moment(0);
        let constants = [
            TOO_MANY_HANDSHAKES,
            SPEAKS_PLAIN_TEXT,
            HANDSHAKE_TOO_SLOW,
            FOLLOWS_AS_ITSELF,
            EDGES_FOLLOW_AS_EDGES,
            DNS_FOLLOWS_AS_DNS,
            REPORTS_AS_ITSELF,
            VANTAGES_REPORT,
            NAME_SERVERS_REPORT,
            EDGES_CALL_STACKS,
            OTHER_REGION_SERVES,
            TOO_MANY_JOIN,
            BREAK_GLASS_IS_SEALED,
            unknown_token(),
            token_ended(),
            no_token(),
            files_in_exchange(),
            signer_untrusted(),
        ];
        let sentences = [
            file_failed("read", "identity.key", "no such file"),
            key_readable("identity.key", 0o644),
            file_too_long("identity.crt", 2 << 20),
            not_x509("a length is wrong"),
            not_one_uri(2),
            ends_before_it_begins(at, at),
            bad_roles("not text"),
            not_an_id("nonsense"),
            not_a_role("king", &["viewer"]),
            not_pem("identity.crt", "certificate"),
            key_does_not_fit("identity.key", "identity.crt", "keys differ"),
            other_id("edge/a", "edge/b"),
            out_of_date("identity.crt", at, at),
            untrusted("identity.crt", "trust.crt", "UnknownIssuer"),
            cannot_make("a name is too long"),
            issuer_does_not_fit("keys differ"),
            bad_request("no PEM"),
            life_out_of_range(at, at),
            key_signs_nothing("a length is wrong"),
            signed_out_of_date("control-plane/cp-1", at, at, at),
            forged("control-plane/cp-1"),
            peer_has_no_certificate(),
            peer_lost_its_root(),
            peer_of_other_zone("edge/a", "voice.example"),
            not_a_control_plane("edge/a"),
            peer_expired(at),
            refused_by_peer("edge/a", "UnknownCA"),
            it_refuses("UnknownCA"),
            it_speaks_no_tls(),
            its_root_was_taken_away(),
            operators_log_in(),
            needs_role("operator", Some("us-east"), "none"),
            etcd_is_issued(),
            only_operators(),
        ];
        let sentences = sentences.iter().map(String::as_str).chain(constants);
        for text in sentences {
            assert!(text.contains("; "), "does not say what to do: {text}");
            assert!(!text.ends_with(['.', ';', ':']) && text.len() < 320, "{text}");
            let begins = text.split(' ').next().unwrap();
            assert!(
                !["what", "who", "whoever", "whatever", "which"].contains(&begins),
                "{text}"
            );
        }
        for text in [
            CONNECTION_ENDS,
            CONNECTION_REFUSED,
            CANNOT_ACCEPT,
            NEW_FILES_REFUSED,
            EXPIRED_PEER_BELIEVED,
        ] {
            assert_eq!(text.split("; ").count(), 3, "not three parts: {text}");
        }
        for why in [PEER_EXPIRED, PEER_EXPIRES_SOON, PEER_UNTRUSTED, PROCESS_ENDS] {
            assert!(why.starts_with("th"), "a reason for which a connection ends: {why}");
        }
        assert!(MUST_PROVE.contains(": use "), "{MUST_PROVE}");
        for text in [expired_at_start(), untrusted_at_start(), root_removed()] {
            assert!(text.contains("`meridian cert "), "names no command: {text}");
        }
        // The rest follow or wrap one of the sentences above.
        for text in [
            bad_uri(not_an_id("nonsense")),
            in_file("identity.crt", not_one_uri(2)),
            it_proves_nothing(&peer_expired(at)),
            denied("edge/a", "approve an order", &only_operators()),
        ] {
            assert!(text.contains("; "), "{text}");
        }
    }
}
