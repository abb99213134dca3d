//! The refusals and warnings of the command itself. The control plane and the other crates have tables of their own.
//!
//! A refusal says what is wrong, and after a semicolon or between backquotes what to type instead.

use std::{fmt::Display, path::Path};

use anyhow::{Error, anyhow};
use topology::Moment;

// The command line.

pub(crate) fn zone_key_exists(file: &Path) -> Error {
    anyhow!(
        "{} exists and was left as it is; write the name of a new file",
        file.display()
    )
}

pub(crate) fn zone_name_is_malformed(zone: &str) -> Error {
    anyhow!("\"{zone:.255}\" is no zone; write its name, such as voice.example.com")
}

pub(crate) fn no_random_numbers() -> Error {
    anyhow!("the system gives no random numbers, so there is no key; check /dev/urandom and type the command again")
}

pub(crate) fn not_a_zone_key(file: &Path) -> String {
    format!(
        "{} holds no key of ECDSA on P-256 (PKCS #8 in PEM); make one: `meridian dns key zone.key`",
        file.display()
    )
}

pub(crate) fn no_such_reason(name: &str) -> Error {
    anyhow!("there is no reason code {name:?} in this version; `meridian explain reason` lists all")
}

/// `what` is "region" or "edge", and `known` has the names of both.
pub(crate) fn no_such_target(what: &str, name: &str, known: &[&str]) -> Error {
    anyhow!("there is no {what} \"{name}\"; there are {}", known.join(", "))
}

pub(crate) fn no_such_edge(edge: &str, known: &str) -> Error {
    anyhow!("there is no edge {edge}; there are {known}")
}

/// `what` is "stack" or "edge".
pub(crate) fn drain_needs_end(what: &str) -> Error {
    anyhow!("a drained {what} needs an end; add --for, such as --for 2h")
}

pub(crate) fn drained_region_has_no_end() -> Error {
    anyhow!(
        "--for applies to edges and stacks; a drained region stays drained until `meridian restore REGION --reason WHY`, so \
         remove --for"
    )
}

pub(crate) fn drain_is_unobserved() -> Error {
    anyhow!("the drain is under way, but the edges that hold its sessions are unknown; add --edge-admin URL")
}

/// The question before an approval.
pub(crate) const AGREE: &str = "Type y to agree: ";

pub(crate) fn not_agreed(action: &str) -> Error {
    anyhow!("nothing was sent, and {action} still waits; `meridian abort {action} --reason WHY` ends it")
}

/// The newest head that was kept speaks for entries before those of the log alone.
pub(crate) fn heads_before_log(newest: u64, first: u64) -> Error {
    anyhow!(
        "the newest head in --head is of entry {newest}, and this log begins with entry {first}: nothing that was kept elsewhere speaks for it; \
         verify an older export, and export and keep heads more often than the log is pruned"
    )
}

pub(crate) fn sealed_too_long() -> Error {
    anyhow!(
        "--for: a sealed credential lives at most 90d, so that a lost one ends; write --for 90d or less, and make it anew in time"
    )
}

/// `key` is the file of the key that the token may be shown with again.
pub(crate) fn token_unanswered(why: &str, key: &Path) -> Error {
    anyhow!(
        "no control plane lets this process or person in: {why}; type the same command again: until the token ends it stays good with \
         the key in {}",
        key.display()
    )
}

pub(crate) fn provider_is_away(why: impl Display) -> Error {
    anyhow!(
        "nobody can sign in at the identity provider now: {why}; try again, or use a sealed credential (`meridian --identity DIR status`)"
    )
}

/// No control plane of the command line, of the credential or of this machine's world answers.
pub(crate) fn no_control_plane(error: &dyn Display) -> Error {
    anyhow!("{error}; start a world here with `meridian up`, or name another one with --control-plane URL")
}

/// A login or a newcomer needs the address of a control plane.
pub(crate) fn nobody_to_ask() -> Error {
    anyhow!("--control-plane: somebody has to be asked; write --control-plane https://address:port")
}

pub(crate) fn token_is_an_operators(operator: &str) -> Error {
    anyhow!("this is the token of the operator {operator}; `meridian login --token TOKEN` takes it")
}

pub(crate) fn token_is_a_process_s(process: &dyn Display) -> Error {
    anyhow!("this is the token of {process}; `meridian cert join TOKEN --into DIR` takes it")
}

pub(crate) fn folder_is_anothers(folder: &Path, holder: &dyn Display) -> Error {
    anyhow!(
        "{} holds the certificate of {holder}; name another folder",
        folder.display()
    )
}

pub(crate) fn not_one_root(file: &Path) -> Error {
    anyhow!("{} holds no root, or several; name a file with one", file.display())
}

pub(crate) fn token_life_too_long() -> Error {
    anyhow!("--for: a token lives at most 366d; write a shorter time")
}

pub(crate) fn head_is_unsigned() -> Error {
    anyhow!("this control plane has no certificate to sign with; give it the section [identity]")
}

pub(crate) fn life_too_long() -> Error {
    anyhow!("--for is longer than the calendar; write a shorter one")
}

pub(crate) fn package_of_one_model() -> Error {
    anyhow!(
        "--from is the package of one model; name that model, such as `meridian models fetch moonshine-tiny-en --from FILE`"
    )
}

pub(crate) fn zone_is_malformed(zone: &str) -> Error {
    anyhow!("--zone: \"{zone}\" is no zone; write it in lower case, as in topology.toml, such as voice.example.com")
}

// Edges and the running world.

pub(crate) fn edge_is_silent(edge: impl Display) -> String {
    format!(
        "the edge at {edge} does not answer; check that this is its administrative address (admin_listen in edge.toml)"
    )
}

pub(crate) fn edge_refuses(edge: impl Display, status: impl Display, said: &str) -> Error {
    anyhow!(
        "the edge at {edge} answers {status}: {said}; check that this is its administrative address (admin_listen in edge.toml)"
    )
}

pub(crate) fn name_server_refuses(server: impl Display, status: impl Display, said: &str) -> Error {
    anyhow!(
        "the name server at {server} answers {status}: {said}; check that this is its administrative address (admin_listen in \
         dns.toml)"
    )
}

/// `process` is "the edge" or "the name server".
pub(crate) fn other_explanation(process: &str) -> String {
    format!("cannot read the answer of {process}, which may have another version; use the `meridian` of its release")
}

pub(crate) fn name_server_is_silent(server: impl Display) -> String {
    format!(
        "the name server at {server} does not answer; check the address (listen in dns.toml), and that UDP and TCP reach it"
    )
}

pub(crate) fn name_server_page_is_silent(server: impl Display) -> String {
    format!(
        "the name server at {server} does not answer; check that this is its administrative address (admin_listen in dns.toml)"
    )
}

pub(crate) fn no_name_server_address(name: &str) -> String {
    format!("the record of the world has a wrong address for {name}; start the world again: `meridian up`")
}

/// `silent` are the addresses.
pub(crate) fn edges_report_no_sessions(silent: &[String]) -> Error {
    anyhow!(
        "{} does not report its sessions; check that this is an administrative address (admin_listen)",
        silent.join(" and ")
    )
}

pub(crate) fn no_world_for_edges(error: impl Display) -> Error {
    anyhow!("{error}; name edges outside a world with --edge-admin URL")
}

/// `said` is the answer of the edge.
pub(crate) fn plan_is_older_than_edges(said: &str) -> Error {
    anyhow!("{said}; name a control plane with --control-plane URL: its audit log has older plans")
}

// Certificates and credentials.

pub(crate) fn authority_exists(folder: &Path) -> Error {
    anyhow!(
        "{} holds an authority already, and everything it issued would become worthless; name another folder",
        folder.display()
    )
}

pub(crate) fn credential_life_too_long() -> Error {
    anyhow!("--for: a credential of a person lives at most 12h, so that a stolen one ends; log in again when it has")
}

pub(crate) fn addresses_are_for_etcd() -> Error {
    anyhow!("--address: etcd goes by addresses, and all others by their ids; write it for etcd/NAME, and only then")
}

pub(crate) fn not_of_this_authority(certificate: &Path) -> Error {
    anyhow!(
        "{} was not issued by this authority; issue it by its name: `meridian cert issue KIND/NAME --ca DIR --into DIR`",
        certificate.display()
    )
}

pub(crate) fn operators_log_in(name: &str) -> Error {
    anyhow!("operators log in: `meridian login {name} --roles ROLE`")
}

pub(crate) fn no_certificate(file: &Path) -> Error {
    anyhow!(
        "{} holds no certificate in PEM; name a file such as trust.crt",
        file.display()
    )
}

pub(crate) fn unreadable_certificate(file: &Path) -> Error {
    anyhow!(
        "{} holds a certificate that cannot be read, and rewriting would drop it; edit it by hand",
        file.display()
    )
}

pub(crate) fn no_such_root(bundle: &Path, fingerprint: &str, known: &[&str]) -> Error {
    anyhow!(
        "{} has no root {fingerprint}; it has {}",
        bundle.display(),
        known.join(", ")
    )
}

pub(crate) fn only_root() -> Error {
    anyhow!(
        "it is the only root: without one, nothing can connect; add the next root first (`meridian cert trust add FILE \
         --trust FILE`)"
    )
}

/// `why` says why no control plane can be asked.
pub(crate) fn root_is_unchecked(why: impl Display) -> Error {
    anyhow!(
        "{why}, and only control planes know which nodes and stacks still show a certificate under this root; start them, or remove it \
         without that check with --force"
    )
}

/// `shown` are the nodes and stacks.
pub(crate) fn root_is_shown(shown: &[&str], fingerprint: &str) -> Error {
    let show = if shown.len() == 1 { "shows" } else { "show" };
    anyhow!(
        "{} still {show} a certificate under {fingerprint}; issue new ones under another root first (`meridian cert renew DIR \
         --ca DIR`), then remove it",
        shown.join(", ")
    )
}

pub(crate) fn not_an_issuer(file: &Path) -> Error {
    anyhow!(
        "{} was not made by `meridian cert create-ca DIR --zone ZONE`",
        file.display()
    )
}

pub(crate) fn no_credential(error: impl Display) -> Error {
    anyhow!("{error}. `meridian login NAME --roles ROLE` makes a credential, and --identity names its folder")
}

pub(crate) fn credential_expired(name: impl Display, until: Moment) -> Error {
    anyhow!("the credential of {name} has expired at {until}; `meridian login NAME --roles ROLE` makes another")
}

// The audit log.

pub(crate) fn entries_pruned(from: u64, oldest: u64, file: &Path) -> Error {
    anyhow!(
        "entries {from} to {} are not in {}: they were pruned; export earlier ones from time to time, the audit log goes from entry \
         {oldest} on",
        oldest - 1,
        file.display()
    )
}

pub(crate) fn no_such_entries(from: u64, to: u64, oldest: Option<u64>) -> Error {
    let kept = oldest.map_or_else(|| "no entries".to_owned(), |oldest| format!("entries from {oldest} on"));
    anyhow!("there is no entry from {from} to {to}; the audit log has {kept}")
}

pub(crate) fn no_such_plan(generation: u64, oldest: Option<u64>) -> Error {
    let kept = oldest.map_or_else(|| "none".to_owned(), |oldest| format!("plans from {oldest} on"));
    anyhow!("there is no plan {generation}; the audit log has {kept}")
}

// Speech.

/// The remedy when pip names no index.
pub(crate) const NAME_AN_INDEX: &str =
    "name an index of Python packages with --index or PIP_INDEX_URL, or the package's file with --from";

pub(crate) fn no_words() -> Error {
    anyhow!("the text has no words; write some, such as --say \"what time is it\"")
}

pub(crate) fn text_too_long(chars: usize, chars_max: usize) -> Error {
    anyhow!("the text has {chars} characters; write at most {chars_max}")
}

pub(crate) fn no_espeak() -> Error {
    anyhow!("--say needs espeak-ng, which is not installed; sudo apt-get install espeak-ng, or give a WAV file")
}

pub(crate) fn no_pip() -> String {
    format!("cannot run pip; {NAME_AN_INDEX}")
}

pub(crate) fn pip_is_silent() -> String {
    format!("pip does not answer; {NAME_AN_INDEX}")
}

pub(crate) fn pip_names_no_index() -> String {
    format!("pip names no index; {NAME_AN_INDEX}")
}

pub(crate) fn model_missing(model: &str) -> String {
    format!("not here; run `meridian models fetch {model}`")
}

pub(crate) fn model_damaged(what: &str, model: &str) -> String {
    format!("damaged: {what}; run `meridian models fetch {model}`")
}

/// `advice` is that of the crate `client` for this error.
pub(crate) fn call_failed(error: &dyn Display, advice: &str) -> Error {
    anyhow!("{error}; {advice}")
}

// Simulations.

pub(crate) fn scenario_ends_before(file: &Path, end_s: u64, at_s: u64) -> Error {
    anyhow!(
        "{} ends after {end_s} s, and --at is {at_s} s; write --at {end_s}s or less",
        file.display()
    )
}

// Encrypted files.

pub(crate) const SEALED_NEEDS_KEY: &str = "it is encrypted; name the file with its key: --key KEYFILE";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_is_wrong_and_what_to_type() {
        let file = Path::new("trust.crt");
        for text in [
            zone_key_exists(file),
            no_random_numbers(),
            zone_name_is_malformed("a..b"),
            anyhow!(not_a_zone_key(file)),
            no_such_reason("x"),
            no_such_target("edge", "x", &["us-east"]),
            no_such_edge("x", "edge-dub"),
            drain_needs_end("stack"),
            drained_region_has_no_end(),
            drain_is_unobserved(),
            token_unanswered("https://cp-1 does not answer", file),
            provider_is_away("https://id.example: status 503"),
            heads_before_log(1, 2),
            anyhow!("{AGREE}; then {}", not_agreed("a1")),
            sealed_too_long(),
            anyhow!("pip names no index; {NAME_AN_INDEX}"),
            anyhow!(no_pip()),
            anyhow!(pip_is_silent()),
            anyhow!(pip_names_no_index()),
            anyhow!(model_missing("moonshine-tiny-en")),
            anyhow!(model_damaged("no weights", "moonshine-tiny-en")),
            call_failed(&"no session", "check the network"),
            no_control_plane(&"nobody answers"),
            nobody_to_ask(),
            token_is_an_operators("alice"),
            token_is_a_process_s(&"edge/edge-dub"),
            folder_is_anothers(file, &"edge/edge-dub"),
            not_one_root(file),
            token_life_too_long(),
            head_is_unsigned(),
            scenario_ends_before(file, 60, 90),
            anyhow!(SEALED_NEEDS_KEY),
            life_too_long(),
            package_of_one_model(),
            zone_is_malformed("X"),
            anyhow!(edge_is_silent("127.0.0.1")),
            edge_refuses("127.0.0.1", 404, "Not Found"),
            name_server_refuses("127.0.0.1", 404, "Not Found"),
            anyhow!(other_explanation("the edge")),
            anyhow!(name_server_is_silent("127.0.0.1")),
            anyhow!(name_server_page_is_silent("127.0.0.1")),
            anyhow!(no_name_server_address("ns1")),
            edges_report_no_sessions(&["127.0.0.1".to_owned()]),
            no_world_for_edges("no world runs here"),
            plan_is_older_than_edges("this edge has no plan 1"),
            authority_exists(file),
            credential_life_too_long(),
            addresses_are_for_etcd(),
            not_of_this_authority(file),
            operators_log_in("alice"),
            no_certificate(file),
            unreadable_certificate(file),
            no_such_root(file, "00", &["11"]),
            only_root(),
            root_is_unchecked("no control plane is known"),
            root_is_shown(&["edge-dub"], "00"),
            not_an_issuer(file),
            no_credential("there is no file"),
            credential_expired("alice", Moment(0)),
            entries_pruned(1, 2, file),
            no_such_entries(1, 2, None),
            no_such_plan(1, Some(2)),
            no_words(),
            text_too_long(2, 1),
            no_espeak(),
        ] {
            let text = text.to_string();
            assert!(
                text.contains("; ") || text.contains("\u{60}meridian "),
                "says no remedy: {text}"
            );
            assert!(
                !text.ends_with('.') && !text.contains("  ") && !text.contains('\n'),
                "{text}"
            );
        }
    }
}
