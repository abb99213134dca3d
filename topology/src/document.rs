//! Reads documents that people write. Reports every problem of a file at once, each with its line, its key, and what to
//! write instead. Unknown keys are problems.
//!
//! There are two ways in, with the same texts. [`parse`] reads a type of serde: the configurations of the processes.
//! [`read`] and [`read_stored`] walk the sections of a document that a control plane stores, because such a document is
//! read with values that a newer version refuses.

mod span;
mod typed;

use std::{cell::RefCell, collections::BTreeSet, fmt, ops::Range, time::Duration};

use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use crate::spelling;

/// Largest document, in bytes. A thousand edges take about 200 kB.
pub const DOCUMENT_BYTES_MAX: usize = 4 << 20;

/// Longest text that a problem repeats, in bytes.
const WRITTEN_BYTES_MAX: usize = 60;

pub use span::Span;
pub use typed::{Guide, parse};

/// One problem of a document.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The name of the file, as the caller gave it.
    pub file: String,
    /// Line number, from 1.
    pub line: usize,
    /// The mistake, and what to write instead.
    pub text: String,
}

/// All problems of a document, ordered by line. As an error it is never empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            write!(f, "{newline}{problem}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.text)
    }
}

/// Reads a document that an operator applies. `read` takes the values it needs from the root section. Fails with all
/// problems of the document.
pub fn read<T>(file: &str, text: &str, read: impl FnOnce(&mut Section<'_>) -> Option<T>) -> Result<T, Problems> {
    read_from(&Source::new(file, text, None), read)
}

/// Reads a document that is already in force. An older version that accepted it may have had wider limits, and a
/// document that cannot be read would stop every decision. So a value out of range becomes the nearest value in range,
/// and a broken rule between values is ignored. The problems beside the result name each such case.
pub fn read_stored<T>(
    file: &str,
    text: &str,
    read: impl FnOnce(&mut Section<'_>) -> Option<T>,
) -> Result<(T, Vec<Problem>), Problems> {
    let source = Source::new(file, text, Some(RefCell::default()));
    let value = read_from(&source, read)?;
    let mut tolerated = source.tolerated.map(RefCell::into_inner).unwrap_or_default();
    tolerated.sort();
    Ok((value, tolerated))
}

fn read_from<T>(source: &Source<'_>, read: impl FnOnce(&mut Section<'_>) -> Option<T>) -> Result<T, Problems> {
    let value = source.table().and_then(|table| {
        let mut root = Section {
            source,
            name: String::new(),
            table: &table,
            span: 0..0,
            seen: BTreeSet::new(),
        };
        let value = read(&mut root);
        root.finish();
        value
    });
    source.result(value)
}

struct Source<'d> {
    file: &'d str,
    text: &'d str,
    problems: RefCell<Vec<Problem>>,
    /// Problems that do not make the document unreadable. `None` when every problem does.
    tolerated: Option<RefCell<Vec<Problem>>>,
}

impl<'d> Source<'d> {
    fn new(file: &'d str, text: &'d str, tolerated: Option<RefCell<Vec<Problem>>>) -> Self {
        Self {
            file,
            text,
            problems: RefCell::default(),
            tolerated,
        }
    }

    /// The tables of the text. `None` when it is too long or no TOML; after a syntax error the tree has holes, and
    /// reports of missing keys would only mislead.
    fn table(&self) -> Option<DeTable<'d>> {
        let size = self.text.len();
        if size > DOCUMENT_BYTES_MAX {
            let text = format!("the document has {size} bytes; write at most {DOCUMENT_BYTES_MAX}");
            self.report(0..0, text);
            return None;
        }
        let (table, errors) = DeTable::parse_recoverable(self.text);
        for error in &errors {
            self.report(error.span().unwrap_or(0..0), error.message().to_owned());
        }
        errors.is_empty().then(|| table.into_inner())
    }

    /// The value, unless a problem was reported.
    fn result<T>(&self, value: Option<T>) -> Result<T, Problems> {
        let mut problems = self.problems.take();
        problems.sort();
        match value {
            Some(value) if problems.is_empty() => Ok(value),
            _ => Err(Problems(problems)),
        }
    }

    fn report(&self, span: Range<usize>, text: String) {
        self.report_to(&self.problems, span, text);
    }

    fn report_to(&self, problems: &RefCell<Vec<Problem>>, span: Range<usize>, text: String) {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        problems.borrow_mut().push(Problem {
            file: self.file.to_owned(),
            line,
            text,
        });
    }
}

/// A table of the document, and the keys that the reader has asked for.
pub struct Section<'d> {
    source: &'d Source<'d>,
    name: String,
    table: &'d DeTable<'d>,
    span: Range<usize>,
    seen: BTreeSet<String>,
}

impl<'d> Section<'d> {
    /// A value that the document must contain. `example` is a value as the document writes it.
    pub fn required<T: DeserializeOwned>(&mut self, key: &str, example: &str) -> Option<T> {
        if self.table.get(key).is_none() {
            self.seen.insert(key.to_owned());
            self.report_at(key, &format!("missing; write {key} = {example}"));
            return None;
        }
        self.read(key, &format!("{key} = {example}"))
    }

    /// A value that the document may leave out. `example` is a value as the document writes it.
    pub fn optional<T: DeserializeOwned>(&mut self, key: &str, default: T, example: &str) -> T {
        self.read(key, &format!("{key} = {example}")).unwrap_or(default)
    }

    /// A number that the document may leave out. A present value must lie in `range`.
    pub fn in_range<T>(&mut self, key: &str, default: T, range: std::ops::RangeInclusive<T>) -> T
    where
        T: DeserializeOwned + PartialOrd + fmt::Display,
    {
        let allowed = format!("{} to {}", range.start(), range.end());
        let value = self.read(key, &allowed).unwrap_or(default);
        self.within(key, value, range, T::to_string)
    }

    /// A duration that the document may leave out. A present value must lie in `range`.
    pub fn duration_in_range(
        &mut self,
        key: &str,
        default: Duration,
        range: std::ops::RangeInclusive<Duration>,
    ) -> Duration {
        let time = self.duration(key, default);
        self.within(key, time, range, |time| format!("\"{}\"", Span(*time)))
    }

    fn within<T: PartialOrd>(
        &self,
        key: &str,
        value: T,
        range: std::ops::RangeInclusive<T>,
        shown: impl Fn(&T) -> String,
    ) -> T {
        if range.contains(&value) {
            return value;
        }
        let (start, end) = range.into_inner();
        let mut text = out_of_range(&shown(&value), &shown(&start), &shown(&end));
        let nearest = if value < start { start } else { end };
        if self.source.tolerated.is_some() {
            text.push_str(&format!("; until then {} is used", shown(&nearest)));
        }
        self.report_rule(key, &text);
        nearest
    }

    /// Reports a value that a rule forbids. When the document is already in force, reading goes on with the caller's
    /// value.
    pub fn report_rule(&self, key: &str, text: &str) {
        let problems = self.source.tolerated.as_ref().unwrap_or(&self.source.problems);
        self.source.report_to(problems, self.span_of(key), self.at(key, text));
    }

    /// A duration that the document may leave out.
    pub fn duration(&mut self, key: &str, default: Duration) -> Duration {
        self.optional(key, Span(default), "\"30s\"").0
    }

    /// An array that the document must contain. Each wrong item is reported as a problem of its own.
    pub fn required_each<T: DeserializeOwned>(&mut self, key: &str, example: &str) -> Option<Vec<T>> {
        let Some(DeValue::Array(items)) = self.table.get(key).map(toml::Spanned::get_ref) else {
            return self.required(key, example);
        };
        self.seen.insert(key.to_owned());
        let wanted = format!("{key} = {example}");
        let read: Vec<Option<T>> = items.iter().map(|item| self.read_value(key, item, &wanted)).collect();
        read.into_iter().collect()
    }

    /// The value, if it is present and of the right type. `wanted` is the advice for a value of another type.
    fn read<T: DeserializeOwned>(&mut self, key: &str, wanted: &str) -> Option<T> {
        self.seen.insert(key.to_owned());
        self.read_value(key, self.table.get(key)?, wanted)
    }

    fn read_value<T: DeserializeOwned>(
        &self,
        key: &str,
        value: &toml::Spanned<DeValue<'_>>,
        wanted: &str,
    ) -> Option<T> {
        let error = match T::deserialize(ValueDeserializer::from(value.clone())) {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        let message = error.message();
        let written = self.source.text.get(value.span()).unwrap_or_default();
        // Messages of the standard library do not repeat the value.
        let is_repeated = message.contains(written.trim_matches('"'));
        let named = if written.starts_with('"') && !is_repeated && written.len() <= WRITTEN_BYTES_MAX {
            format!("{written}: {message}")
        } else {
            message.to_owned()
        };
        let text = format!("{}: {}", self.path(key), with_advice(&named, Some(wanted)));
        self.source.report(value.span(), text);
        None
    }

    /// The table with this key, or `None` when the document leaves it out or has another value there.
    pub fn section(&mut self, key: &str) -> Option<Section<'d>> {
        self.seen.insert(key.to_owned());
        let value = self.table.get(key)?;
        self.as_section(key, value)
    }

    /// The array of tables `[[key]]`, or an empty list when the document leaves it out.
    pub fn sections(&mut self, key: &str) -> Vec<Section<'d>> {
        self.seen.insert(key.to_owned());
        let Some(value) = self.table.get(key) else {
            return Vec::new();
        };
        match value.get_ref() {
            DeValue::Array(items) => items.iter().filter_map(|item| self.as_section(key, item)).collect(),
            other => {
                let (path, found) = (self.path(key), other.type_str());
                self.source.report(
                    value.span(),
                    format!("{path}: found {found} instead of sections; write [[{path}]]"),
                );
                Vec::new()
            }
        }
    }

    fn as_section(&self, key: &str, value: &'d toml::Spanned<DeValue<'d>>) -> Option<Section<'d>> {
        match value.get_ref() {
            DeValue::Table(table) => Some(Section {
                source: self.source,
                name: self.path(key),
                table,
                span: value.span(),
                seen: BTreeSet::new(),
            }),
            other => {
                let (path, found) = (self.path(key), other.type_str());
                self.source.report(
                    value.span(),
                    format!("{path}: found {found} instead of a section; write [{path}]"),
                );
                None
            }
        }
    }

    /// Reports a problem of the whole section.
    pub fn report(&self, text: &str) {
        self.source.report(self.span.clone(), self.named(text));
    }

    /// Reports a problem of one key, or of the section's first line if the key is missing.
    pub fn report_at(&self, key: &str, text: &str) {
        self.source.report(self.span_of(key), self.at(key, text));
    }

    fn span_of(&self, key: &str) -> Range<usize> {
        self.table.get(key).map_or(self.span.clone(), toml::Spanned::span)
    }

    fn at(&self, key: &str, text: &str) -> String {
        if key.is_empty() {
            self.named(text)
        } else {
            format!("{}: {text}", self.path(key))
        }
    }

    fn named(&self, text: &str) -> String {
        if self.name.is_empty() {
            text.to_owned()
        } else {
            format!("{}: {text}", self.name)
        }
    }

    /// Ends the section. Reports every key that the reader never asked for as unknown.
    pub fn finish(self) {
        for key in self.table.keys() {
            if !self.seen.contains(key.get_ref().as_ref()) {
                let known: Vec<&str> = self.seen.iter().map(String::as_str).collect();
                let text = format!("{}: {}", self.path(key.get_ref()), unknown_key(key.get_ref(), &known));
                self.source.report(key.span(), text);
            }
        }
    }

    fn path(&self, key: &str) -> String {
        if self.name.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.name)
        }
    }
}

/// The problem of a value outside of `from..=to`, all three as a document writes them.
pub fn out_of_range(value: &str, from: &str, to: &str) -> String {
    format!("{value} is out of range; write {from} to {to}")
}

fn unknown_key(key: &str, known: &[&str]) -> String {
    match spelling::nearest(key, known.iter().copied()) {
        Some(nearest) => format!("unknown key; write {nearest}, or remove it"),
        None if known.is_empty() => "unknown key; remove it".to_owned(),
        None => format!("unknown key; remove it, or write one of {}", known.join(", ")),
    }
}

/// The message with what to write, unless it says that itself, as those of our own types do.
fn with_advice(message: &str, wanted: Option<&str>) -> String {
    match wanted {
        Some(wanted) if !message.contains("; ") => format!("{message}; write {wanted}"),
        _ => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_syntax_error_names_its_line() {
        let problems = read("x.toml", "a = 1\nb = = 2\n", |root| root.required::<u32>("a", "1")).unwrap_err();
        assert!(problems.to_string().starts_with("x.toml:2: "), "{problems}");
    }

    /// A person who reads a problem has only its line: the place, the key, the mistake, and the repair.
    #[test]
    fn every_problem_names_the_key_and_what_to_write() {
        let small = include_str!("../testdata/small.toml");
        let broken_topologies = [
            ("zone = \"voice.meridian.test\"", "zone = \"Voice\""),
            ("zone = \"voice.meridian.test\"", "zone = 7"),
            ("id = \"us-west\"", "id = \"us-east\""),
            ("id = \"us-west\"", "id = \"US West\""),
            ("id = \"us-west\"", ""),
            ("id = \"us-west\"", "id = \"ns1\""),
            ("role = \"backup\"", "role = \"boss\""),
            ("role = \"backup\"", "role = \"primary\""),
            ("role = \"backup\"", "role = \"backup\"\nbackups = [\"us-east\"]"),
            (
                "backups = [\"us-west\"]",
                "backups = [\"us-west\", \"us-west\", \"mars\", \"us-east\"]",
            ),
            ("latitude = 45.6", "latitude = 145.6"),
            ("sessions_max = 200", "sessions_max = 0\nconnects_per_s_max = 0"),
            ("sessions_max = 200", "sessions_max = \"many\""),
            (
                "sessions_max = 200",
                "sessions_max = 200\ntime_zone = \"Europe/Atlantis\"",
            ),
            ("sessions_max = 200", "sessions_max = 200\ncapacity = 7"),
            ("sessions_max = 200", "sessions_max = 200\n[region.capacity]\nears = 7"),
            ("stacks = [\"127.0.0.1:9002\"]", "stacks = []"),
            ("stacks = [\"127.0.0.1:9002\"]", "stacks = [\"nowhere\", 7]"),
            (
                "stacks = [\"127.0.0.1:9002\"]",
                "stacks = [{ address = \"nowhere\", version = \"2.4.0\" }]",
            ),
            (
                "stacks = [\"127.0.0.1:9002\"]",
                "stacks = [{ address = \"127.0.0.1:9002\", version = \"2 4\" }]",
            ),
            ("\"127.0.0.1:9002\"", "\"127.0.0.1:9002\", \"127.0.0.1:9002\""),
            ("127.0.0.1:9002", "127.0.0.1:9001"),
            ("addresses = [\"127.0.1.1\"]", "addresses = []"),
            ("addresses = [\"127.0.1.1\"]", "addresses = [\"localhost\"]"),
            ("[[edge]]", "[edge]"),
            ("[[edge]]", "[[edges]]"),
            ("[[region]]", "[[regions]]"),
            ("port = 8080", "port = 99999"),
            ("address = \"127.0.0.1\"", "address = \"localhost\""),
        ];
        let topologies = broken_topologies.into_iter().map(|(good, bad)| {
            let text = small.replace(good, bad);
            let problems = crate::Topology::parse("t.toml", &text).expect_err(bad);
            (text, problems)
        });
        let broken_policies = [
            "colour = 1",
            "health = 7",
            "[probe]\ntimeout = 7\noffset = \"9s\"",
            "[probe]\ntimeout = \"7 s\"\noffset = \"99999999999999999999s\"",
            "[probe]\ntimeout = \"s\"\noffset = \"999999999999999999d\"",
            "[probe]\noffset = \"3651d\"",
            "[health]\nblind_ticks = 360\ngateway_window_bad = 13\nsamples_min = \"many\"",
            "[failover]\ncorrelated_hold = \"often\"\nreconnect_window = \"1ms\"",
            "[drain]\nsteps = [0, 50]",
            "[drain]\nsteps = 7",
            "[restore]\nsteps = [100, 1]",
            "[safety]\ntwo_person = [\"everything\"]",
            "[damping]\nper_move = 2001\nreuse = 2001",
            "[[rollout.step]]\npercent = 50",
            "[[rollout.step]]\npercent = 0\n[[rollout.step]]\npercent = 100",
            "[[data]]\nclass = \"a\"\nreplication = \"often\"\n[[data]]",
            "[[data]]\nclass = \"a\"\nreplication = \"async\"\n[[data]]\nclass = \"a\"\nreplication = \"async\"",
        ];
        let policies = broken_policies.into_iter().map(|text| {
            let problems = crate::Policy::parse("p.toml", text).expect_err(text);
            (text.to_owned(), problems)
        });
        let repairs = ["write", "add", "remove", "give"];
        for (text, problems) in topologies.chain(policies) {
            for Problem { text: problem, .. } in problems.0 {
                let (mistake, repair) = problem.rsplit_once("; ").unwrap_or((&problem, ""));
                let names_a_key = mistake.split_once(": ").is_some_and(|(key, _)| {
                    !key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase() || b"-_.".contains(&b))
                });
                // These are about the document as a whole.
                let is_whole = ["the topology has no ", "stack ", "\""]
                    .iter()
                    .any(|start| mistake.starts_with(start));
                let is_repair = repairs.contains(&repair.split(' ').next().unwrap_or_default());
                assert!((names_a_key || is_whole) && is_repair, "{problem}\nof\n{text}");
            }
        }
    }
}
