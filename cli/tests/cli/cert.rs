//! Certificates as the person who issues them does it: in folders, without a world.

use std::{
    path::Path,
    process::{Command, Output},
};

use identity::{Identity, ca, files::Files};

pub(crate) fn cert(folder: &Path, line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_meridian"))
        .args(line.split(' '))
        .arg("--state-dir")
        .arg(folder.join("state"))
        .env_remove("MERIDIAN_IDENTITY")
        .current_dir(folder)
        .output()
        .unwrap()
}

pub(crate) fn done(folder: &Path, line: &str) -> String {
    let output = cert(folder, line);
    assert!(
        output.status.success(),
        "{line}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn refused(folder: &Path, line: &str, because: &str) {
    let output = cert(folder, line);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains(because), "{line}: {said}");
}

fn identity(folder: &Path, name: &str) -> std::sync::Arc<Identity> {
    Identity::load(Files::in_folder(&folder.join(name)), daemon::clock::now).unwrap()
}

/// The fingerprint of the first certificate in a file.
fn fingerprint(folder: &Path, file: &str) -> String {
    let listed = done(folder, &format!("cert list {file}"));
    let words: Vec<&str> = listed.lines().nth(1).unwrap().split_whitespace().collect();
    let is_one = |word: &&&str| word.len() == 16 && word.chars().all(|letter| letter.is_ascii_hexdigit());
    (*words.iter().find(is_one).unwrap()).to_owned()
}

/// docs/security.md, step by step; both ends believe each other after each.
#[tokio::test]
async fn a_root_is_exchanged_by_the_documented_commands() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    done(folder, "cert create-ca old --zone voice.example");
    done(folder, "cert issue control-plane/cp-1 --ca old --into cp");
    done(folder, "cert issue edge/edge-dub --ca old --into edge");
    let meet = async |step: &str| {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = tokio_util::sync::CancellationToken::new();
        let server = Some((identity(folder, "cp"), identity::Mode::Required));
        let mut incoming = identity::listen(listener, server, stop, |_| {});
        let greeting = tokio::spawn(async move {
            use tokio::io::AsyncWriteExt as _;
            use tokio_stream::StreamExt as _;
            let mut connection = incoming.next().await.unwrap().unwrap();
            connection.write_all(b"settings").await.unwrap();
            connection
        });
        let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
        let met = identity(folder, "edge").connect(tcp).await;
        assert!(met.is_ok(), "after {step}: {:?}", met.err());
        drop(greeting.await.unwrap());
    };
    meet("issuing").await;
    done(folder, "cert create-ca new --zone voice.example");
    done(folder, "cert trust add new/root.crt --trust cp/trust.crt");
    meet("the control plane trusts both").await;
    done(folder, "cert trust add new/root.crt --trust edge/trust.crt");
    meet("the edge trusts both").await;
    done(folder, "cert issue edge/edge-dub --ca new --into edge");
    meet("the edge is under the new root").await;
    done(folder, "cert issue control-plane/cp-1 --ca new --into cp");
    meet("the control plane is under the new root").await;
    let old = fingerprint(folder, "old/root.crt");
    refused(
        folder,
        &format!("cert trust remove {old} --trust cp/trust.crt"),
        "only control planes know which nodes and stacks still show",
    );
    done(folder, &format!("cert trust remove {old} --trust cp/trust.crt --force"));
    done(
        folder,
        &format!("cert trust remove {old} --trust edge/trust.crt --force"),
    );
    meet("the old root is gone").await;
    let only = fingerprint(folder, "new/root.crt");
    refused(
        folder,
        &format!("cert trust remove {only} --trust cp/trust.crt --force"),
        "it is the only root",
    );
}

#[test]
fn nothing_is_signed_or_overwritten_by_mistake() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    done(folder, "cert create-ca ca --zone voice.example");
    refused(
        folder,
        "cert create-ca ca --zone voice.example",
        "holds an authority already",
    );
    refused(
        folder,
        "cert create-ca other --zone Voice.Example",
        "write it in lower case",
    );
    done(folder, "cert issue edge/edge-dub --ca ca --into dub --for 2h");
    refused(
        folder,
        "cert issue edge/edge-iad --ca ca --into dub",
        "holds the certificate of spiffe://voice.example/edge/edge-dub",
    );
    refused(
        folder,
        "cert issue operator/alice --ca ca --into alice",
        "operators log in",
    );
    refused(folder, "cert issue edge/../x --ca ca --into x", "write edge/NAME");
    refused(folder, "cert issue edge/x --ca ca --into x --for 2000d", "out of range");

    // A folder handed in for renewal may hold anything: another authority's, or a person's.
    let before = identity(folder, "dub").own();
    done(folder, "cert renew dub --ca ca");
    let after = identity(folder, "dub").own();
    assert_eq!(before.id, after.id);
    assert_ne!(before.serial, after.serial);
    done(folder, "cert create-ca foreign --zone voice.example");
    done(folder, "cert issue edge/edge-iad --ca foreign --into iad");
    refused(folder, "cert renew iad --ca ca", "was not issued by this authority");
    refused(folder, "login bob --roles king --ca ca --into bob", "is no role");
    refused(
        folder,
        "login bob --roles viewer --ca ca --into bob --for 13h",
        "at most 12h",
    );
    done(folder, "login bob --roles operator@us-*,approver --ca ca --into bob");
    refused(folder, "cert renew bob --ca ca", "operators log in");
    refused(
        folder,
        "login eve --roles viewer --ca ca --into bob",
        "holds the certificate of",
    );
    assert_eq!(identity(folder, "bob").own().roles(), "operator@us-*,approver");

    // The next issuer signs under the same root, and what was issued stays good.
    done(folder, "cert next-issuer ca");
    done(folder, "cert renew dub --ca ca");
    let pem = std::fs::read_to_string(folder.join("dub/identity.crt")).unwrap();
    assert_eq!(ca::peer_of(&pem).unwrap().id, before.id);
    assert!(identity(folder, "dub").root_of(&pem).is_some());
}

/// The rest of the story needs a control plane: control-plane/server/tests/server/joining.rs.
#[test]
fn nobody_joins_with_nonsense_or_into_anothers_folder() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let at = "--control-plane https://127.0.0.1:1";
    refused(
        folder,
        &format!("cert join nonsense {at} --into edge"),
        "this is no token; `meridian cert token --role KIND/NAME --reason WHY` makes one",
    );
    let token = format!("mrd_join.{}.{}.edge/edge-dub", "0".repeat(64), "0".repeat(64));
    refused(
        folder,
        &format!("cert join {token} --into edge"),
        "write --control-plane https://",
    );
    refused(
        folder,
        &format!("cert join {token} --control-plane http://127.0.0.1:1 --into edge"),
        "a token is shown over TLS only",
    );
    refused(
        folder,
        &format!("cert join {token} {at} --into edge"),
        "until the token ends it stays good with the key in edge/joining.key",
    );
    // The next attempt shows the same key.
    let key = || std::fs::read(folder.join("edge/joining.key")).unwrap();
    let first = key();
    assert!(first.starts_with(b"-----BEGIN PRIVATE KEY-----"));
    let again = cert(folder, &format!("cert join {token} {at} --into edge"));
    assert_eq!(again.status.code(), Some(5), "nobody answered");
    assert_eq!(key(), first);
    done(folder, "cert create-ca ca --zone voice.example");
    done(folder, "cert issue edge/edge-iad --ca ca --into iad");
    refused(
        folder,
        &format!("cert join {token} {at} --into iad"),
        "holds the certificate of spiffe://voice.example/edge/edge-iad",
    );
    refused(
        folder,
        "cert token --role operator/bob --reason help",
        "operators log in",
    );
}

#[test]
fn a_token_for_a_program_is_shown_once_with_the_lines_that_know_it() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    done(folder, "cert create-ca ca --zone voice.example");
    let said = done(
        folder,
        "operator-token ci --roles viewer,operator@us-* --for 90d --root ca/root.crt",
    );
    let (token, rest) = said.split_once('\n').unwrap();
    let (_, lines) = rest.split_once("[[token]]").unwrap();
    let tokens = identity::operators::OperatorTokens::parse("operators.toml", &format!("[[token]]{lines}")).unwrap();
    let token: identity::join::Token = token.parse().unwrap();
    let now = daemon::clock::now();
    let known = tokens.recognise(&token.hash(), "ci", now).unwrap();
    assert_eq!(known.roles.len(), 2);
    let in_a_year = now + std::time::Duration::from_secs(91 * 86_400);
    assert!(tokens.recognise(&token.hash(), "ci", in_a_year).is_err());
    assert!(
        !lines.contains(&token.to_string()[13..77]),
        "the document has the hash alone"
    );

    refused(
        folder,
        "operator-token ci --roles king --for 90d --root ca/root.crt",
        "is no role",
    );
    refused(
        folder,
        "operator-token ci --roles break-glass --for 90d --root ca/root.crt",
        "a sealed credential alone",
    );
    refused(
        folder,
        "operator-token ci --roles viewer --for 367d --root ca/root.crt",
        "at most 366d",
    );
    refused(
        folder,
        &format!("cert join {token} --control-plane https://127.0.0.1:1 --into x"),
        "`meridian login --token TOKEN` takes it",
    );
}

#[test]
fn a_credential_for_emergencies_lives_for_weeks_and_no_login_gives_its_role() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    done(folder, "cert create-ca ca --zone voice.example");
    let said = done(folder, "cert break-glass safe-1 --ca ca --into usb");
    assert!(said.contains("seal it"), "{said}");
    let own = identity(folder, "usb").own();
    assert_eq!(own.roles(), "break-glass");
    let life = own.until.since(daemon::clock::now());
    assert!(life > std::time::Duration::from_secs(29 * 86_400), "{life:?}");
    refused(
        folder,
        "cert break-glass safe-2 --ca ca --into usb2 --for 91d",
        "at most 90d",
    );
    refused(
        folder,
        "login eve --roles break-glass --ca ca --into eve",
        "a sealed credential alone",
    );
}

#[test]
fn a_key_for_a_device_is_shown_once_with_the_lines_that_let_it_in() {
    let folder = tempfile::tempdir().unwrap();
    let said = done(folder.path(), "device-key kitchen --tenant acme --for 720h");
    let (key, rest) = said.split_once('\n').unwrap();
    let (_, lines) = rest.split_once("[[key]]").unwrap();
    let document = format!("[[tenant]]\nname = \"acme\"\n[[key]]{lines}");
    let devices = auth::Devices::parse("devices.toml", &document).unwrap();
    let now = daemon::clock::now();
    let device = devices.recognise(key, now).unwrap();
    assert_eq!((&*device.tenant, &*device.name), ("acme", "kitchen"));
    let in_a_month = now + std::time::Duration::from_secs(721 * 3600);
    assert_eq!(devices.recognise(key, in_a_month), Err(auth::Denied::Expired));
    assert!(!lines.contains(key), "the document has the hash alone");
    refused(folder.path(), "device-key kitchen --tenant a/b", "letters, digits");
}
