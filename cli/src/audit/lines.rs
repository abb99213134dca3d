//! The lines of an exported audit log.

use std::{io::BufRead as _, path::Path};

use anyhow::Context as _;
use api::v1;
use serde::{Deserialize, Serialize};

use crate::sealed;

/// A line of an exported log. Entries stay text as they came, because the hash chain covers their bytes.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Line {
    Document {
        version: String,
        text: String,
    },
    Entry(String),
    Head(String),
    /// The end of a part of a log: the numbers of its first and last entry, and the hash of the last.
    Part {
        first: u64,
        last: u64,
        hash: String,
    },
    /// A control plane vouches for the newest entry of its time.
    SignedHead(SignedHead),
}

/// A signed head, as it is kept beside the log or elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SignedHead {
    pub(crate) number: u64,
    pub(crate) hash: String,
    pub(crate) at_ms: u64,
    /// The certificate of the control plane and the issuers above it, in PEM.
    pub(crate) certificate: String,
    /// The signature, in hex.
    pub(crate) signature: String,
}

impl From<v1::SignedHead> for SignedHead {
    fn from(head: v1::SignedHead) -> Self {
        let hex = head.signature.iter().map(|byte| format!("{byte:02x}"));
        Self {
            number: head.number,
            hash: head.hash,
            at_ms: head.at_ms,
            certificate: head.certificate,
            signature: hex.collect(),
        }
    }
}

impl SignedHead {
    /// The bytes of the signature; empty if the text is no hex.
    pub(crate) fn signature(&self) -> Vec<u8> {
        let digits = self.signature.as_bytes().chunks(2);
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        digits.map(byte).collect::<Option<_>>().unwrap_or_default()
    }
}

/// The line of an item; `None` for an item of a later version.
pub(crate) fn line(item: v1::AuditItem) -> Option<Line> {
    Some(match item.item? {
        v1::audit_item::Item::Document(document) => Line::Document {
            version: document.version,
            text: document.text,
        },
        v1::audit_item::Item::Entry(bytes) => Line::Entry(String::from_utf8_lossy(&bytes).into_owned()),
        v1::audit_item::Item::Head(hash) => Line::Head(hash),
        v1::audit_item::Item::SignedHead(head) => Line::SignedHead(head.into()),
    })
}

/// Reads an exported log, or a file of signed heads. An encrypted file needs its `key`.
pub(crate) fn read(file: &Path, key: Option<&Path>) -> anyhow::Result<Vec<Line>> {
    let read = || -> anyhow::Result<Vec<Line>> {
        let text = sealed::read(file, key)?;
        let lines = text.as_slice().lines();
        let read = lines.enumerate().map(|(index, line)| {
            serde_json::from_str(&line?).with_context(|| format!("line {} is not a line of an audit log", index + 1))
        });
        read.collect()
    };
    read().with_context(|| format!("cannot read {}", file.display()))
}
