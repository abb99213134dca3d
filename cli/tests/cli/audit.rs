//! An exported audit log in the hands of an auditor, who has files and no control plane.

use std::path::Path;

use identity::{files::Files, signature};
use planning::audit::{self, Access, AccessEntry, AccessKind};
use serde_json::json;
use topology::Moment;

use crate::cert::{done, refused};

/// The entries of a small log.
fn entries(texts: &[&str]) -> Vec<String> {
    let mut previous = audit::FIRST.to_owned();
    let entry = |(index, text): (usize, &&str)| {
        let now = Moment(1_800_000_000_000 + index as u64);
        let entry = AccessEntry {
            number: index as u64 + 1,
            previous: previous.clone(),
            at: now,
            access: Access::once(AccessKind::Denied, "cp-1", None, text, now),
            oldest: 1,
        };
        let bytes = entry.encode();
        previous = audit::hash(&bytes);
        String::from_utf8(bytes).unwrap()
    };
    texts.iter().enumerate().map(entry).collect()
}

/// A head at the newest of these entries, signed with the certificate in a folder.
fn signed(folder: &Path, entries: &[String]) -> String {
    let (number, at) = (entries.len() as u64, daemon::clock::now());
    let hash = entries.last().map(|it| audit::hash(it.as_bytes())).unwrap_or_default();
    let signed = signature::sign(&Files::in_folder(folder), &audit::head_to_sign(number, &hash, at)).unwrap();
    let hex: String = signed.bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let head =
        json!({ "number": number, "hash": hash, "at_ms": at.0, "certificate": signed.certificate, "signature": hex });
    json!({ "signed-head": head }).to_string() + "\n"
}

fn write(file: &Path, entries: &[String], signed: &str) {
    let mut lines: Vec<String> = entries
        .iter()
        .map(|text| json!({ "entry": text }).to_string())
        .collect();
    lines.push(json!({ "head": audit::hash(entries.last().unwrap().as_bytes()) }).to_string());
    std::fs::write(file, lines.join("\n") + "\n" + signed).unwrap();
}

#[test]
fn a_log_that_somebody_wrote_anew_does_not_fit_a_head_that_was_kept() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    done(folder, "cert create-ca ca --zone voice.example");
    done(folder, "cert issue control-plane/cp-1 --ca ca --into cp");
    let cp = folder.join("cp");
    let log = entries(&["alice tries", "alice tries again", "bob tries"]);
    std::fs::write(folder.join("kept"), signed(&cp, &log[..2])).unwrap();
    write(&folder.join("log"), &log, &signed(&cp, &log));
    let said = done(folder, "audit verify log --trust ca/trust.crt --head kept");
    assert!(said.contains("entries 1 to 3: the chain is whole"), "{said}");
    for entry in [2, 3] {
        let line = format!("spiffe://voice.example/control-plane/cp-1 signed entry {entry} and all before it");
        assert!(said.contains(&line), "{said}");
    }

    // A writer of the store makes a whole chain, and a control plane signs its head: the old head shows the difference.
    let anew = entries(&["nobody tries", "nobody tries again", "nobody tries at all"]);
    write(&folder.join("anew"), &anew, &signed(&cp, &anew));
    done(folder, "audit verify anew --trust ca/trust.crt");
    refused(
        folder,
        "audit verify anew --trust ca/trust.crt --head kept",
        "entry 2 is not the one that spiffe://voice.example/control-plane/cp-1 signed",
    );
    // A whole log that begins after every head that was kept proves nothing to their keeper.
    std::fs::write(folder.join("old"), signed(&cp, &[])).unwrap();
    refused(
        folder,
        "audit verify anew --trust ca/trust.crt --head old",
        "nothing that was kept elsewhere speaks for it",
    );
    // Without a signature there is nothing to rely on, and an edge signs nothing.
    write(&folder.join("bare"), &log, "");
    refused(
        folder,
        "audit verify bare --trust ca/trust.crt",
        "no control plane signed this log",
    );
    done(folder, "cert issue edge/edge-dub --ca ca --into edge");
    write(&folder.join("edges"), &log, &signed(&folder.join("edge"), &log));
    refused(
        folder,
        "audit verify edges --trust ca/trust.crt",
        "which is no control plane",
    );
    // Another deployment's authority vouches for nothing here, and a broken chain is named before any signature.
    done(folder, "cert create-ca other --zone voice.example");
    refused(
        folder,
        "audit verify log --trust other/trust.crt",
        "does not lead to a trusted root",
    );
    let mut broken = log.clone();
    broken[1] = broken[1].replace("alice", "carol");
    write(&folder.join("broken"), &broken, &signed(&cp, &log));
    refused(
        folder,
        "audit verify broken --trust ca/trust.crt",
        "does not follow from the one before it",
    );
}
