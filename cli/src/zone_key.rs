//! Keys of zones: makes one, and shows the records by which the parent zone names it.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, anyhow};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::Args;
use identity::files;
use ring::{
    digest::{SHA256, digest},
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use serde_json::json;
use steering::{ALGORITHM, DS_HASH, ZoneKey};

use crate::{
    exit::Failure,
    output::{Output, print},
    present::document,
    texts,
};

#[derive(Debug, Args)]
pub(crate) struct KeyArgs {
    /// The new file, such as zone.key. A file that exists is left as it is.
    file: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct DsArgs {
    /// The zone, such as voice.example.com.
    zone: String,
    /// Files of its keys.
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

/// Makes a key that only its owner may read.
pub(crate) fn make(args: &KeyArgs, output: Output) -> Result<ExitCode, Failure> {
    let file = &args.file;
    if file.exists() {
        return Err(Failure::usage(texts::zone_key_exists(file)));
    }
    let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
        .map_err(|_| Failure::failed(texts::no_random_numbers()))?;
    let text = pem::encode(&pem::Pem::new("PRIVATE KEY", key.as_ref()));
    files::write(file, &text, 0o600).map_err(|error| Failure::failed(anyhow!(error)))?;
    let tag = read(file)?.tag();
    print(&match output {
        Output::Json => document(json!({ "file": file, "tag": tag })),
        Output::Table => format!(
            "{} holds a new key with the tag {tag}.\nName it in [dnssec] of the dns.toml of every name server of the zone, then give the parent \
             zone what this prints:\nmeridian dns ds ZONE {}",
            file.display(),
            file.display()
        ),
    });
    Ok(ExitCode::SUCCESS)
}

/// Prints the DS records for the parent zone, and the DNSKEY records, which some registries ask for instead.
pub(crate) fn show(args: &DsArgs, output: Output) -> Result<ExitCode, Failure> {
    let zone = args.zone.trim_end_matches('.').to_ascii_lowercase();
    if zone.is_empty() || zone.split('.').any(|label| label.is_empty() || label.len() > 63) {
        return Err(Failure::usage(texts::zone_name_is_malformed(&args.zone)));
    }
    let keys = args
        .files
        .iter()
        .map(|file| read(file))
        .collect::<Result<Vec<_>, _>>()?;
    let (ds, dnskey): (Vec<_>, Vec<_>) = keys.iter().map(|key| records(key, &zone)).unzip();
    print(&match output {
        Output::Json => document(json!({ "ds": ds, "dnskey": dnskey })),
        Output::Table => [ds, dnskey].concat().join("\n"),
    });
    Ok(ExitCode::SUCCESS)
}

fn records(key: &ZoneKey, zone: &str) -> (String, String) {
    let hash = digest(&SHA256, &key.hashed_for_parent(zone));
    let ds = format!(
        "{zone}. IN DS {} {ALGORITHM} {DS_HASH} {}",
        key.tag(),
        hex::encode_upper(hash)
    );
    let (flags, protocol, algorithm) = key.shown();
    let dnskey = format!(
        "{zone}. IN DNSKEY {flags} {protocol} {algorithm} {}",
        STANDARD.encode(key.point())
    );
    (ds, dnskey)
}

fn read(file: &Path) -> Result<ZoneKey, Failure> {
    let no_key = || texts::not_a_zone_key(file);
    let read = || -> anyhow::Result<ZoneKey> {
        let text = files::read_key(file)?;
        let pem = pem::parse(&text).with_context(no_key)?;
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pem.contents(), &SystemRandom::new())
            .map_err(|error| anyhow!("{error}"))
            .with_context(no_key)?;
        // An uncompressed point: 4, x, y.
        let point = pair.public_key().as_ref().split_first().map(|(_, point)| point);
        let point: &[u8; 64] = point.and_then(<[u8]>::first_chunk).with_context(no_key)?;
        Ok(ZoneKey::new(point))
    };
    read().map_err(Failure::usage)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// The key of RFC 6605 §6.1, and the DS record that the RFC shows for it.
    #[test]
    fn a_ds_record_is_the_one_that_the_rfc_shows() {
        let private = STANDARD.decode("GU6SnQ/Ou+xC5RumuIUIuJZteXT2z0O/ok1s38Et6mQ=").unwrap();
        let point = "GojIhhXUN/u4v54ZQqGSnyhWJwaubCvTmeexv7bR6edbkrSqQpF64cYbcB7wNcP+e+MAnLr+Wi9xMWyQLc8NAA==";
        let before = hex::decode("308187020100301306072a8648ce3d020106082a8648ce3d030107046d306b0201010420").unwrap();
        let between = hex::decode("a14403420004").unwrap();
        let der = [before, private, between, STANDARD.decode(point).unwrap()].concat();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("zone.key");
        files::write(&file, &pem::encode(&pem::Pem::new("PRIVATE KEY", der)), 0o600).unwrap();
        let (ds, dnskey) = records(&read(&file).unwrap(), "example.net");
        assert_eq!(
            ds,
            "example.net. IN DS 55648 13 2 B4C8C1FE2E7477127B27115656AD6256F424625BF5C1E2770CE6D6E37DF61D17"
        );
        assert_eq!(dnskey, format!("example.net. IN DNSKEY 257 3 13 {point}"));
    }

    #[test]
    fn a_key_is_private_and_never_replaces_another() {
        let folder = tempfile::tempdir().unwrap();
        let args = KeyArgs {
            file: folder.path().join("zone.key"),
        };
        assert!(make(&args, Output::Json).is_ok());
        let made = std::fs::read(&args.file).unwrap();
        let mode = std::fs::metadata(&args.file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(make(&args, Output::Table).is_err());
        assert_eq!(std::fs::read(&args.file).unwrap(), made);
        let ds = |zone: &str, file: &Path| {
            show(
                &DsArgs {
                    zone: zone.to_owned(),
                    files: vec![file.to_owned()],
                },
                Output::Table,
            )
        };
        assert!(ds("voice.example.", &args.file).is_ok());
        assert!(ds("voice..example", &args.file).is_err());
        std::fs::set_permissions(&args.file, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(ds("voice.example", &args.file).is_err(), "others can read it");
    }
}
