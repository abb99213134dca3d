//! The audit log: take a copy, and decide everything in it again.

use std::{
    fmt::Write as _,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use api::{Operator, v1};
use clap::Subcommand;
use planning::audit::{self, Documents, Tampered};
use serde::{Deserialize, Serialize};
use serde_json::json;
use topology::Snapshot;

use crate::{Output, exit::Failure, present, print};

#[derive(Debug, Subcommand)]
pub(crate) enum AuditVerb {
    /// Write the audit log to a file, one JSON document a line. The control plane forgets its oldest entries: whoever wants to
    /// keep them exports parts of the log now and then.
    Export {
        /// The file.
        file: PathBuf,
        /// Number of the first entry; the oldest there is when not given.
        #[arg(long, value_name = "ENTRY", value_parser = clap::value_parser!(u64).range(1..))]
        from: Option<u64>,
        /// Number of the last entry; the newest there is when not given.
        #[arg(long, value_name = "ENTRY", value_parser = clap::value_parser!(u64).range(1..))]
        to: Option<u64>,
    },
    /// Check that nothing was changed, left out or put in, and decide every entry again from its recorded input: each must
    /// come out byte for byte the same.
    Replay {
        /// A file written by `export`; the control plane's log when not given.
        file: Option<PathBuf>,
    },
}

/// A line of an exported log. Entries stay the text they are: their bytes are what is hashed.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
enum Line {
    Document {
        version: String,
        text: String,
    },
    Entry(String),
    Head(String),
    /// The end of a part of a log: the hash of its last entry.
    Part {
        first: u64,
        last: u64,
        hash: String,
    },
}

pub(crate) async fn export(
    operator: &Operator,
    file: &Path,
    (from, to): (Option<u64>, Option<u64>),
    output: Output,
) -> Result<ExitCode, Failure> {
    let lines = fetch(operator).await?;
    let lines = if (from, to) == (None, None) {
        lines
    } else {
        part(lines, from.unwrap_or(1), to.unwrap_or(u64::MAX))?
    };
    let entries = lines.iter().filter(|line| matches!(line, Line::Entry(_))).count();
    let write = || -> anyhow::Result<()> {
        let mut out = std::io::BufWriter::new(std::fs::File::create(file)?);
        for line in &lines {
            serde_json::to_writer(&mut out, line)?;
            out.write_all(b"\n")?;
        }
        out.flush()?;
        Ok(())
    };
    write().with_context(|| format!("cannot write {}", file.display()))?;
    print(&match output {
        Output::Json => present::document(json!({ "file": file.display().to_string(), "entries": entries })),
        Output::Table => format!("{entries} entries in {}", file.display()),
    });
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn replay_live(operator: &Operator, output: Output) -> Result<ExitCode, Failure> {
    replay(fetch(operator).await?, output)
}

pub(crate) fn replay_file(file: &Path, output: Output) -> Result<ExitCode, Failure> {
    let read = || -> anyhow::Result<Vec<Line>> {
        let lines = BufReader::new(std::fs::File::open(file)?).lines();
        let read = lines.enumerate().map(|(index, line)| {
            serde_json::from_str(&line?).with_context(|| format!("line {} is no line of an audit log", index + 1))
        });
        read.collect()
    };
    let lines = read().with_context(|| format!("cannot read {}", file.display()))?;
    replay(lines, output)
}

/// The entries of a range, with the documents they were decided with.
fn part(lines: Vec<Line>, from: u64, to: u64) -> Result<Vec<Line>, Failure> {
    let (mut part, mut documents) = (Vec::new(), std::collections::BTreeMap::new());
    let mut known: Option<(u64, u64, String)> = None;
    let mut oldest = None;
    for line in lines {
        match line {
            Line::Document { version, text } => drop(documents.insert(version, text)),
            Line::Entry(text) => {
                let entry: audit::Entry =
                    serde_json::from_str(&text).context("an entry of the audit log cannot be read")?;
                oldest = oldest.or(Some(entry.number));
                if !(from..=to).contains(&entry.number) {
                    continue;
                }
                for version in [entry.input.topology, entry.input.policy] {
                    // Once each, before the first entry that names it.
                    if let Some(text) = documents.remove(&version) {
                        part.push(Line::Document { version, text });
                    }
                }
                let first = known.map_or(entry.number, |(first, _, _)| first);
                known = Some((first, entry.number, audit::hash(text.as_bytes())));
                part.push(Line::Entry(text));
            }
            Line::Head(_) | Line::Part { .. } => {}
        }
    }
    let Some((first, last, hash)) = known else {
        let kept = oldest.map_or_else(|| "no entries".to_owned(), |oldest| format!("entries from {oldest} on"));
        return Err(Failure::failed(anyhow::anyhow!(
            "there is no entry from {from} to {to}: the audit log has {kept}"
        )));
    };
    part.push(Line::Part { first, last, hash });
    Ok(part)
}

async fn fetch(operator: &Operator) -> Result<Vec<Line>, Failure> {
    let items = operator.audit(0).await?;
    let line = |item: v1::AuditItem| match item.item? {
        v1::audit_item::Item::Document(document) => Some(Line::Document {
            version: document.version,
            text: document.text,
        }),
        v1::audit_item::Item::Entry(bytes) => Some(Line::Entry(String::from_utf8_lossy(&bytes).into_owned())),
        v1::audit_item::Item::Head(hash) => Some(Line::Head(hash)),
    };
    Ok(items.into_iter().filter_map(line).collect())
}

/// The plan of a generation with the documents it was made for, as nodes got it.
pub(crate) async fn snapshot(operator: &Operator, generation: u64) -> Result<Snapshot, Failure> {
    let (mut documents, mut found, mut oldest) = (Documents::default(), None, None);
    for line in fetch(operator).await? {
        match line {
            Line::Document { version, text } => documents.insert(version, text).map_err(anyhow::Error::from)?,
            Line::Entry(text) => {
                let entry: audit::Entry =
                    serde_json::from_str(&text).context("an entry of the audit log cannot be read")?;
                let number = entry.plan.as_ref().map(|plan| plan.generation);
                oldest = oldest.or(number);
                // Of two with one number, after a change of leaders, the later one is what was published.
                if number == Some(generation) {
                    found = Some(entry);
                }
            }
            Line::Head(_) | Line::Part { .. } => {}
        }
    }
    let snapshot = found.map(|entry| documents.snapshot(entry)).transpose();
    snapshot.map_err(anyhow::Error::from)?.flatten().ok_or_else(|| {
        let kept = oldest.map_or_else(|| "none".to_owned(), |oldest| format!("plans from {oldest} on"));
        Failure::failed(anyhow::anyhow!(
            "there is no plan {generation}: the audit log has {kept}"
        ))
    })
}

fn replay(lines: Vec<Line>, output: Output) -> Result<ExitCode, Failure> {
    let checked = check(lines).map_err(|tampered| Failure::failed(tampered.into()))?;
    print(&match output {
        Output::Json => present::document(json!({
            "entries": checked.entries, "plans": checked.plans, "first": checked.first, "last": checked.last,
            "reproduced": checked.others.is_empty(), "decided_by_another_version": checked.others.len(),
        })),
        Output::Table => {
            let Checked { plans, first, last, .. } = checked;
            let mut text = match checked.others.first() {
                None => format!(
                    "entries {first} to {last}, {plans} plans: the chain is whole, and every decision comes out the same\n"
                ),
                Some(other) => format!(
                    "entries {first} to {last}, {plans} plans: the chain is whole; {} of them were decided by another \
                     version and come out differently by this one, the others come out the same\nthe first: {other}\n",
                    checked.others.len()
                ),
            };
            if checked.is_part {
                text.push_str("this is a part of a log: entries before and after it are not in it\n");
            } else if checked.first > 1 {
                let _ = writeln!(text, "entries before {} were pruned", checked.first);
            }
            text
        }
    });
    Ok(ExitCode::SUCCESS)
}

struct Checked {
    entries: usize,
    plans: usize,
    first: u64,
    last: u64,
    is_part: bool,
    /// What was decided by another version, and differently.
    others: Vec<Tampered>,
}

fn check(lines: Vec<Line>) -> Result<Checked, Tampered> {
    let mut documents = Documents::default();
    let (mut entries, mut head, mut part) = (Vec::new(), None, None);
    for line in lines {
        match line {
            Line::Document { version, text } => documents.insert(version, text)?,
            Line::Entry(text) => entries.push(text),
            Line::Head(hash) => head = Some(hash),
            Line::Part { first, last, hash } => part = Some((first, last, hash)),
        }
    }
    let read = audit::verify(entries.iter().map(String::as_bytes), head.as_deref())?;
    // Without an end nobody knows whether the end was cut off.
    let is_part = head.is_none();
    if is_part {
        let (first, last, hash) = part.ok_or(Tampered::Head)?;
        let ends = (read.first().map(|it| it.number), read.last().map(|it| it.number));
        let newest = entries.last().map(|text| audit::hash(text.as_bytes()));
        if ends != (Some(first), Some(last)) || newest != Some(hash) {
            return Err(Tampered::Head);
        }
    }
    let mut others = Vec::new();
    for entry in &read {
        match documents.replay(entry) {
            Ok(_) => {}
            Err(other @ Tampered::OtherVersion { .. }) => others.push(other),
            Err(tampered) => return Err(tampered),
        }
    }
    Ok(Checked {
        is_part,
        others,
        entries: read.len(),
        plans: read.iter().filter(|entry| entry.plan.is_some()).count(),
        first: read.first().map_or(0, |entry| entry.number),
        last: read.last().map_or(0, |entry| entry.number),
    })
}
