//! The audit log: export it, and replay every decision in it.

use std::{
    fmt::Write as _,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use api::{Operator, v1};
use clap::Subcommand;
use planning::audit::{self, AnyEntry, Documents, Tampered};
use serde::{Deserialize, Serialize};
use serde_json::json;
use topology::Snapshot;

use crate::{exit::Failure, output::Output, output::print, present};

#[derive(Debug, Subcommand)]
pub(crate) enum AuditVerb {
    /// Write the audit log to a file, one JSON document a line. The control plane prunes its oldest entries; to keep
    /// them, export parts of the log from time to time.
    Export {
        /// The file to write. It is replaced if it exists.
        file: PathBuf,
        /// Number of the first entry; by default the oldest in the log. If it was pruned, the file gets the entries
        /// that are left, and the command fails with the number from which the log goes.
        #[arg(long, value_name = "ENTRY", value_parser = clap::value_parser!(u64).range(1..))]
        from: Option<u64>,
        /// Number of the last entry; by default the newest in the log.
        #[arg(long, value_name = "ENTRY", value_parser = clap::value_parser!(u64).range(1..))]
        to: Option<u64>,
    },
    /// Check that no entry was changed, removed or inserted, and decide every entry again from its recorded input: each
    /// decision must come out byte for byte the same.
    Replay {
        /// A file written by `export`; by default the control plane's log.
        file: Option<PathBuf>,
    },
}

/// A line of an exported log. Entries stay text as they came, because the hash chain covers their bytes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
enum Line {
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
}

/// The part of an entry that says where it belongs. All versions write it alike.
#[derive(Deserialize)]
struct Named {
    number: u64,
    /// None in an entry about access.
    input: Option<Versions>,
}

#[derive(Deserialize)]
struct Versions {
    topology: String,
    policy: String,
}

impl Line {
    /// The number of an entry that can be read.
    fn number(&self) -> Option<u64> {
        let Self::Entry(text) = self else { return None };
        let entry: Named = serde_json::from_str(text).ok()?;
        Some(entry.number)
    }
}

pub(crate) async fn export(
    operator: &Operator,
    file: &Path,
    (from, to): (Option<u64>, Option<u64>),
    output: Output,
) -> Result<ExitCode, Failure> {
    let (lines, oldest) = match (from, to) {
        (None, None) => (fetch(operator, 0, 0).await?, None),
        _ => {
            let get = async |from, limit| fetch(operator, from, limit).await;
            fetch_part(get, from.unwrap_or(1), to.unwrap_or(u64::MAX)).await?
        }
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
    // A program that keeps the log in parts must learn that one is lost.
    match (from, oldest) {
        (Some(from), Some(oldest)) if from < oldest => Err(Failure::failed(anyhow::anyhow!(
            "entries {from} to {} are not in {}: they were pruned, and the audit log goes from entry {oldest} on",
            oldest - 1,
            file.display()
        ))),
        _ => Ok(ExitCode::SUCCESS),
    }
}

pub(crate) async fn replay_live(operator: &Operator, output: Output) -> Result<ExitCode, Failure> {
    replay(fetch(operator, 0, 0).await?, output)
}

pub(crate) fn replay_file(file: &Path, output: Output) -> Result<ExitCode, Failure> {
    let read = || -> anyhow::Result<Vec<Line>> {
        let lines = BufReader::new(std::fs::File::open(file)?).lines();
        let read = lines.enumerate().map(|(index, line)| {
            serde_json::from_str(&line?).with_context(|| format!("line {} is not a line of an audit log", index + 1))
        });
        read.collect()
    };
    let lines = read().with_context(|| format!("cannot read {}", file.display()))?;
    replay(lines, output)
}

/// Fetches the entries `from..=to` that are in the log, and the number of the oldest one in it.
async fn fetch_part(
    get: impl AsyncFn(u64, u32) -> Result<Vec<Line>, Failure>,
    from: u64,
    to: u64,
) -> Result<(Vec<Line>, Option<u64>), Failure> {
    let first = get(0, 1).await?;
    let Some(oldest) = first.iter().find_map(Line::number) else {
        return part(first, from, to, None);
    };
    let begin = from.max(oldest);
    if begin > to {
        return part(first, from, to, Some(oldest));
    }
    let limit = u32::try_from(to - begin).ok().and_then(|more| more.checked_add(1));
    // 0 is all: there are never so many.
    let lines = get(begin, limit.unwrap_or(0)).await?;
    part(lines, from, to, Some(oldest))
}

/// Selects the entries `from..=to` and the documents that they were decided with. Returns the number of the oldest entry
/// in the log too; it may have grown since it was asked for.
fn part(lines: Vec<Line>, from: u64, to: u64, oldest: Option<u64>) -> Result<(Vec<Line>, Option<u64>), Failure> {
    let (mut part, mut documents) = (Vec::new(), std::collections::BTreeMap::new());
    let mut known: Option<(u64, u64, String)> = None;
    for line in lines {
        match line {
            Line::Document { version, text } => drop(documents.insert(version, text)),
            Line::Entry(text) => {
                let entry: Named = serde_json::from_str(&text).context("cannot read an entry of the audit log")?;
                if !(from..=to).contains(&entry.number) {
                    continue;
                }
                let named = entry.input.map(|input| [input.topology, input.policy]);
                for version in named.into_iter().flatten() {
                    // Each document goes once, before the first entry that names it.
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
    let oldest = oldest.map(|oldest| if first > from { oldest.max(first) } else { oldest });
    Ok((part, oldest))
}

/// Fetches entries from `from` on, at most `limit`; 0 is the oldest, and all.
async fn fetch(operator: &Operator, from: u64, limit: u32) -> Result<Vec<Line>, Failure> {
    let items = operator.audit_part(from, limit).await?;
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

/// The plan of a generation with the documents it was made for, as edges and name servers received it.
pub(crate) async fn snapshot(operator: &Operator, generation: u64) -> Result<Snapshot, Failure> {
    let (mut documents, mut found, mut oldest) = (Documents::default(), None, None);
    for line in fetch(operator, 0, 0).await? {
        match line {
            Line::Document { version, text } => documents.insert(version, text).map_err(anyhow::Error::from)?,
            Line::Entry(text) => {
                let entry = AnyEntry::read(text.as_bytes()).context("cannot read an entry of the audit log")?;
                let Some(entry) = entry.decision() else { continue };
                let number = entry.plan.as_ref().map(|plan| plan.generation);
                oldest = oldest.or(number);
                // A change of leaders can leave two entries with one generation. The later one was published.
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
    /// Entries decided by another version of the product, which this version decides differently.
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
    let read = audit::chain(entries.iter().map(String::as_bytes), head.as_deref())?;
    // Without a head hash the log may have been cut short, unless a `Part` line names its end.
    let is_part = head.is_none();
    if is_part {
        let (first, last, hash) = part.ok_or(Tampered::Head)?;
        let ends = (read.first().map(AnyEntry::number), read.last().map(AnyEntry::number));
        let newest = entries.last().map(|text| audit::hash(text.as_bytes()));
        if ends != (Some(first), Some(last)) || newest != Some(hash) {
            return Err(Tampered::Head);
        }
    }
    let (all, first, last) = (read.len(), number_of(read.first()), number_of(read.last()));
    let decisions: Vec<_> = read.into_iter().filter_map(AnyEntry::decision).collect();
    let mut others = Vec::new();
    for entry in &decisions {
        match documents.replay(entry) {
            Ok(_) => {}
            Err(other @ Tampered::OtherVersion { .. }) => others.push(other),
            Err(tampered) => return Err(tampered),
        }
    }
    Ok(Checked {
        is_part,
        others,
        entries: all,
        plans: decisions.iter().filter(|entry| entry.plan.is_some()).count(),
        first,
        last,
    })
}

fn number_of(entry: Option<&AnyEntry>) -> u64 {
    entry.map_or(0, AnyEntry::number)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The answers of a log that goes from `oldest` to 400, and the questions.
    async fn asked(oldest: u64, from: u64, to: u64) -> (Result<(Vec<u64>, Option<u64>), String>, Vec<(u64, u32)>) {
        let asked = std::cell::RefCell::new(Vec::new());
        let get = async |from: u64, limit: u32| {
            asked.borrow_mut().push((from, limit));
            let first = from.max(oldest);
            let last = if limit == 0 {
                400
            } else {
                400.min(first + u64::from(limit) - 1)
            };
            let entry = |number| json!({ "number": number, "input": { "topology": "t", "policy": "p" }, "more": 1 });
            let document = Line::Document {
                version: "t".to_owned(),
                text: String::new(),
            };
            let entries = (first..=last).map(|number| Line::Entry(entry(number).to_string()));
            Ok(std::iter::once(document).chain(entries).collect())
        };
        let fetched = fetch_part(get, from, to).await;
        let numbers = |(lines, oldest): (Vec<Line>, _)| (lines.iter().filter_map(Line::number).collect(), oldest);
        let fetched = fetched.map(numbers).map_err(|failure| failure.error.to_string());
        (fetched, asked.into_inner())
    }

    #[tokio::test]
    async fn only_the_range_is_fetched_and_a_gap_at_its_beginning_is_known() {
        let (part, requests) = asked(1, 100, 102).await;
        assert_eq!(part, Ok((vec![100, 101, 102], Some(1))));
        assert_eq!(requests, [(0, 1), (100, 3)]);
        // The beginning was pruned.
        let (part, requests) = asked(301, 299, 302).await;
        assert_eq!(part, Ok((vec![301, 302], Some(301))));
        assert_eq!(requests, [(0, 1), (301, 2)]);
        // All of it was, or it is still to come.
        let (part, requests) = asked(301, 1, 300).await;
        assert_eq!(
            (part.unwrap_err().contains("entries from 301 on"), requests.len()),
            (true, 1)
        );
        assert!(asked(301, 401, 500).await.0.is_err());
        // To the end.
        let (part, requests) = asked(301, 399, u64::MAX).await;
        assert_eq!(part, Ok((vec![399, 400], Some(301))));
        assert_eq!(requests[1], (399, 0));
    }
}
