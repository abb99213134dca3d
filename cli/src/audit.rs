//! The audit log: export it, check who vouched for it, and replay every decision in it.

mod lines;
mod verify;

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use api::Operator;
use clap::Subcommand;
use planning::audit::{self, AnyEntry, Documents, Tampered};
use serde::Deserialize;
use serde_json::json;
use topology::Snapshot;

use self::lines::{Line, SignedHead};
use crate::{exit::Failure, output::Output, output::print, present, sealed, texts};

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
        /// Encrypt the file to the key in KEYFILE, 32 bytes in hex. A log names people, addresses and plans. Make a key with
        /// `(umask 077; openssl rand -hex 32 >KEYFILE)`, and keep it elsewhere than the file.
        #[arg(long, value_name = "KEYFILE")]
        encrypt_to: Option<PathBuf>,
    },
    /// Print the head of the log, signed by a control plane, as one line. Keep such lines where nobody who can write the store can
    /// write: each proves later that no entry up to it was changed or removed.
    Head,
    /// Check an exported log: that no entry was changed, removed or inserted, and up to which entry control planes vouched for it.
    Verify {
        /// A file written by `export`.
        file: PathBuf,
        /// The roots under which the certificates of control planes lie; by default those of your credential.
        #[arg(long, value_name = "FILE")]
        trust: Option<PathBuf>,
        /// Files of signed heads that were kept elsewhere (`meridian audit head`).
        #[arg(long = "head", value_name = "FILE")]
        heads: Vec<PathBuf>,
        /// The key of a file that `export --encrypt-to` wrote.
        #[arg(long, value_name = "KEYFILE")]
        key: Option<PathBuf>,
    },
    /// Check that no entry was changed, removed or inserted, and decide every entry again from its recorded input: each
    /// decision must come out byte for byte the same.
    Replay {
        /// A file written by `export`; by default the control plane's log.
        file: Option<PathBuf>,
        /// The key file to which FILE is encrypted.
        #[arg(long, value_name = "KEYFILE", requires = "file")]
        key: Option<PathBuf>,
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

/// The number of an entry that can be read.
fn number(line: &Line) -> Option<u64> {
    let Line::Entry(text) = line else { return None };
    let entry: Named = serde_json::from_str(text).ok()?;
    Some(entry.number)
}

pub(crate) async fn export(
    operator: &Operator,
    file: &Path,
    (from, to): (Option<u64>, Option<u64>),
    encrypt_to: Option<&Path>,
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
        let mut text = Vec::new();
        for line in &lines {
            serde_json::to_writer(&mut text, line)?;
            text.push(b'\n');
        }
        sealed::write(file, &text, encrypt_to)
    };
    write().with_context(|| format!("cannot write {}", file.display()))?;
    print(&match output {
        Output::Json => present::document(json!({ "file": file.display().to_string(), "entries": entries })),
        Output::Table => format!("{entries} entries in {}", file.display()),
    });
    // A program that keeps the log in parts must learn that one is lost.
    match (from, oldest) {
        (Some(from), Some(oldest)) if from < oldest => Err(Failure::failed(texts::entries_pruned(from, oldest, file))),
        _ => Ok(ExitCode::SUCCESS),
    }
}

pub(crate) async fn replay_live(operator: &Operator, output: Output) -> Result<ExitCode, Failure> {
    replay(fetch(operator, 0, 0).await?, output)
}

pub(crate) fn replay_file(file: &Path, key: Option<&Path>, output: Output) -> Result<ExitCode, Failure> {
    replay(lines::read(file, key)?, output)
}

/// Prints the newest head with the signature of a control plane.
pub(crate) async fn head(operator: &Operator) -> Result<ExitCode, Failure> {
    // Beyond the newest entry there is only the head.
    let lines = fetch(operator, u64::MAX, 0).await?;
    let head = lines.into_iter().find(|line| matches!(line, Line::SignedHead(_)));
    let head = head.ok_or_else(texts::head_is_unsigned)?;
    print(&serde_json::to_string(&head).context("cannot print the head")?);
    Ok(ExitCode::SUCCESS)
}

/// Checks an exported log with the signatures in it, and with `heads` that were kept elsewhere.
pub(crate) fn verify_file(
    file: &Path,
    key: Option<&Path>,
    trust: &Path,
    heads: &[PathBuf],
    output: Output,
) -> Result<ExitCode, Failure> {
    let roots = identity::files::read(trust).map_err(|error| Failure::failed(error.into()))?;
    let lines = lines::read(file, key)?;
    let mut signed = Vec::new();
    for kept in heads {
        signed.extend(lines::read(kept, None)?);
    }
    let kept_newest = signed.iter().filter_map(|line| match line {
        Line::SignedHead(head) => Some(head.number),
        _ => None,
    });
    let kept_newest = kept_newest.max();
    signed.extend(lines.iter().cloned());
    let signed: Vec<SignedHead> = signed
        .into_iter()
        .filter_map(|line| match line {
            Line::SignedHead(head) => Some(head),
            _ => None,
        })
        .collect();
    let Log { entries, chain, .. } = whole(lines).map_err(|tampered| Failure::failed(tampered.into()))?;
    let first = number_of(chain.first());
    if let Some(newest) = kept_newest.filter(|newest| *newest < first) {
        return Err(Failure::failed(texts::heads_before_log(newest, first)));
    }
    let vouched = verify::vouched(&signed, (first, &entries), &roots);
    let vouched = vouched.map_err(|error| Failure::failed(error.into()))?;
    let (last, newest) = (number_of(chain.last()), vouched.last());
    print(&match output {
        Output::Json => present::document(json!({
            "first": first, "last": last,
            "vouched": vouched.iter().map(|it| json!({
                "entry": it.number, "at_ms": it.at.0, "by": it.by, "certificate": it.serial,
            })).collect::<Vec<_>>(),
        })),
        Output::Table => {
            let mut text = format!("entries {first} to {last}: the chain is whole\n");
            for it in &vouched {
                let _ = writeln!(
                    text,
                    "{} signed entry {} and all before it at {:#} UTC (certificate {})",
                    it.by, it.number, it.at, it.serial
                );
            }
            if let Some(newest) = newest.filter(|it| it.number < last) {
                let _ = writeln!(text, "no signature speaks for entries {} to {last}", newest.number + 1);
            }
            text
        }
    });
    Ok(ExitCode::SUCCESS)
}

/// Fetches the entries `from..=to` that are in the log, and the number of the oldest one in it.
async fn fetch_part(
    get: impl AsyncFn(u64, u32) -> Result<Vec<Line>, Failure>,
    from: u64,
    to: u64,
) -> Result<(Vec<Line>, Option<u64>), Failure> {
    let first = get(0, 1).await?;
    let Some(oldest) = first.iter().find_map(number) else {
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
    let (mut known, mut signed): (Option<(u64, u64, String)>, Option<SignedHead>) = (None, None);
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
            Line::SignedHead(head) => signed = Some(head),
            Line::Head(_) | Line::Part { .. } => {}
        }
    }
    let Some((first, last, hash)) = known else {
        return Err(Failure::failed(texts::no_such_entries(from, to, oldest)));
    };
    part.push(Line::Part { first, last, hash });
    part.extend(signed.filter(|head| head.number == last).map(Line::SignedHead));
    let oldest = oldest.map(|oldest| if first > from { oldest.max(first) } else { oldest });
    Ok((part, oldest))
}

/// Fetches entries from `from` on, at most `limit`; 0 is the oldest, and all.
async fn fetch(operator: &Operator, from: u64, limit: u32) -> Result<Vec<Line>, Failure> {
    let items = operator.audit_part(from, limit).await?;
    Ok(items.into_iter().filter_map(lines::line).collect())
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
            Line::Head(_) | Line::Part { .. } | Line::SignedHead(_) => {}
        }
    }
    let snapshot = found.map(|entry| documents.snapshot(entry)).transpose();
    snapshot
        .map_err(anyhow::Error::from)?
        .flatten()
        .ok_or_else(|| Failure::failed(texts::no_such_plan(generation, oldest)))
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

/// A log whose chain is whole.
struct Log {
    documents: Documents,
    /// The entries as text.
    entries: Vec<String>,
    chain: Vec<AnyEntry>,
    /// True if it may lack entries at its end.
    is_part: bool,
}

/// Checks the chain of a log and its end.
fn whole(lines: Vec<Line>) -> Result<Log, Tampered> {
    let mut documents = Documents::default();
    let (mut entries, mut head, mut part) = (Vec::new(), None, None);
    for line in lines {
        match line {
            Line::Document { version, text } => documents.insert(version, text)?,
            Line::Entry(text) => entries.push(text),
            Line::Head(hash) => head = Some(hash),
            Line::Part { first, last, hash } => part = Some((first, last, hash)),
            Line::SignedHead(_) => {}
        }
    }
    let chain = audit::chain(entries.iter().map(String::as_bytes), head.as_deref())?;
    // Without a head hash the log may have been cut short, unless a `Part` line names its end.
    let is_part = head.is_none();
    if is_part {
        let (first, last, hash) = part.ok_or(Tampered::Head)?;
        let ends = (chain.first().map(AnyEntry::number), chain.last().map(AnyEntry::number));
        let newest = entries.last().map(|text| audit::hash(text.as_bytes()));
        if ends != (Some(first), Some(last)) || newest != Some(hash) {
            return Err(Tampered::Head);
        }
    }
    Ok(Log {
        documents,
        entries,
        chain,
        is_part,
    })
}

fn check(lines: Vec<Line>) -> Result<Checked, Tampered> {
    let Log {
        mut documents,
        chain: read,
        is_part,
        ..
    } = whole(lines)?;
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
        let numbers = |(lines, oldest): (Vec<Line>, _)| (lines.iter().filter_map(number).collect(), oldest);
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
