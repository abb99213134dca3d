//! The memory of a signer, and when it signs again. Tools of others check the signatures themselves (`tests/probes.rs`).

use std::{os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use topology::fixtures::three_primaries;

use super::*;
use crate::{Received, Responder, Transport};

const NOW: Moment = Moment(1_700_000_000_000);

/// A key in a file that only its owner may read.
pub(crate) fn key_file(folder: &Path, name: &str) -> PathBuf {
    let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).unwrap();
    let file = folder.join(name);
    std::fs::write(&file, pem::encode(&pem::Pem::new("PRIVATE KEY", key.as_ref()))).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    file
}

fn signer() -> Arc<Signer> {
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(key_file(folder.path(), "zone.key")).unwrap();
    Arc::new(Signer::of(&text, Metrics::default()).unwrap())
}

fn made(signer: &Signer) -> u64 {
    signer.metrics.signatures.get()
}

async fn ahead(signer: &Signer, snapshot: &topology::Snapshot, now: Moment) {
    let ahead = signer.sign_ahead(&Answers::compile(snapshot, now), now, || false).await;
    assert!(ahead.is_some());
}

#[tokio::test]
async fn a_plan_signs_only_what_it_changes_and_signatures_are_renewed_before_they_end() {
    let signer = signer();
    let mut snapshot = three_primaries();
    ahead(&signer, &snapshot, NOW).await;
    let first = made(&signer);
    assert!(first > 10, "{first}");
    // The same answers with other TTLs, and a plan that only has another number: its SOA is new.
    ahead(&signer, &snapshot, NOW + Duration::from_secs(60)).await;
    assert_eq!(made(&signer), first);
    snapshot.plan.generation += 1;
    ahead(&signer, &snapshot, NOW + Duration::from_secs(120)).await;
    assert_eq!(made(&signer), first + 1);
    let days = |days: u64| NOW + Duration::from_secs(days * 24 * 3600);
    ahead(&signer, &snapshot, days(3)).await;
    assert_eq!(made(&signer), first + 1);
    ahead(&signer, &snapshot, days(5)).await;
    assert_eq!(made(&signer), 2 * first + 1, "each answer in force is signed anew");
    // A clock that was ahead made signatures which do not count yet.
    ahead(&signer, &snapshot, NOW).await;
    assert_eq!(made(&signer), 3 * first + 1);
}

#[tokio::test]
async fn strangers_get_so_many_signatures_a_second_for_names_that_do_not_exist() {
    let signer = signer();
    let answers = Answers::compile(&three_primaries(), NOW);
    let responder = Responder::new(answers, &topology::NodeId::new("dns-1").unwrap(), [0; 16])
        .signed_by(signer.clone())
        .amplifying(10);
    let ask = |nth: u64, transport, now| {
        let label = format!("{nth:08}");
        let mut message = vec![0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 8];
        message.extend(label.bytes());
        message.extend(b"\x05voice\x08meridian\x04test\0\0\x01\0\x01");
        message.extend([0, 0, 41, 4, 208, 0, 0, 0x80, 0, 0, 0]);
        let received = Received {
            message: &message,
            client: [192, 0, 2, 1].into(),
            transport,
            now,
        };
        responder.reply(&received).unwrap()
    };
    for nth in 0..DENIALS_PER_S {
        assert!(!ask(nth, Transport::Udp, NOW).truncated, "{nth}");
    }
    let before = made(&signer);
    let cut = ask(DENIALS_PER_S, Transport::Udp, NOW);
    assert!(cut.truncated && cut.bytes[2] & 2 != 0 && cut.bytes[6..10] == [0; 4]);
    assert_eq!(made(&signer) - before, 0, "a reply that is cut costs no signature");
    let message =
        b"\0\x01\0\0\0\x01\0\0\0\0\0\x01\x01x\x05voice\x08meridian\x04test\0\0\x01\0\x01\0\0\x29\x04\xd0\0\0\x80\0\0\0";
    let limited = responder.cut_reply(&Received {
        message,
        client: [192, 0, 2, 1].into(),
        transport: Transport::Udp,
        now: NOW + Duration::from_secs(1),
    });
    assert!(limited.unwrap().truncated);
    assert_eq!(made(&signer) - before, 0, "nor does one that the rate limit cuts");
    assert!(!ask(0, Transport::Tcp, NOW).truncated);
    assert!(!ask(0, Transport::Udp, NOW + Duration::from_secs(1)).truncated);
    assert!(signer.kept() < 100, "such signatures are not kept");
}

#[test]
fn a_key_that_others_can_read_or_that_is_no_key_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = key_file(folder.path(), "zone.key");
    let refused = |files: &[&PathBuf]| {
        let files: Vec<PathBuf> = files.iter().map(|file| (*file).clone()).collect();
        format!("{:#}", Signer::read(&files, Metrics::default()).unwrap_err())
    };
    assert!(refused(&[&file, &file]).contains("the tag of the other one"));
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert!(refused(&[&file]).contains("zone.key"), "{}", refused(&[&file]));
    let other = key_file(folder.path(), "other.key");
    for text in [
        "",
        "no key",
        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
    ] {
        std::fs::write(&other, text).unwrap();
        let error = refused(&[&other]);
        assert!(error.contains("other.key holds no key of ECDSA"), "{error}");
    }
    assert!(refused(&[&folder.path().join("none.key")]).contains("none.key"));
}
