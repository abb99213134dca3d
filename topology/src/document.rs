//! Reading documents people write. Every problem of a file is reported at once, with its line; unknown keys are refused.
//!
//! Values are read by serde, one at a time; tables are walked by hand, because serde gives up at the first error.

use std::{cell::RefCell, collections::BTreeSet, fmt, ops::Range, time::Duration};

use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use toml::de::{DeTable, DeValue, ValueDeserializer};

/// Largest document read, in bytes. A thousand edges take about 200 kB.
pub const DOCUMENT_BYTES_MAX: usize = 4 << 20;
/// Longest length of time in a document: ten years. Nobody means more, and sums of a few of them never overflow.
pub const DURATION_MAX: Duration = Duration::from_secs(3650 * 24 * 3600);

/// One thing that is wrong with a document.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The file's name as it was given.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// What is wrong and what would be right.
    pub text: String,
}

/// Everything that is wrong with a document, in the order of its lines. Never empty as an error.
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

/// Reads a document that somebody applies with `read`, which takes what it needs from the root section. Fails with all
/// problems found.
pub fn read<T>(file: &str, text: &str, read: impl FnOnce(&mut Section<'_>) -> Option<T>) -> Result<T, Problems> {
    read_from(&Source::new(file, text, None), read)
}

/// Reads a document that is in force already. The version that took it may have had wider limits, and a document that
/// cannot be read would stop all deciding. So a value out of range becomes the nearest one in range, and a rule between
/// values that is broken is passed over. The problems beside the result name each of them.
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
    let text = source.text;
    if text.len() > DOCUMENT_BYTES_MAX {
        let size = text.len();
        source.report(
            0..0,
            format!("the document has {size} bytes, the limit is {DOCUMENT_BYTES_MAX}"),
        );
        return Err(Problems(source.problems.take()));
    }
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        source.report(error.span().unwrap_or(0..0), error.message().to_owned());
    }
    // After a syntax error the tree has holes; complaints about missing keys would only mislead.
    let value = if errors.is_empty() {
        let mut root = Section {
            source,
            name: String::new(),
            table: table.get_ref(),
            span: 0..0,
            seen: BTreeSet::new(),
        };
        let value = read(&mut root);
        root.finish();
        value
    } else {
        None
    };
    let mut problems = source.problems.take();
    problems.sort();
    match value {
        Some(value) if problems.is_empty() => Ok(value),
        _ => Err(Problems(problems)),
    }
}

struct Source<'d> {
    file: &'d str,
    text: &'d str,
    problems: RefCell<Vec<Problem>>,
    /// Problems that are passed over; none where every problem counts.
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

/// A table of the document, and which of its keys were asked for.
pub struct Section<'d> {
    source: &'d Source<'d>,
    name: String,
    table: &'d DeTable<'d>,
    span: Range<usize>,
    seen: BTreeSet<String>,
}

impl<'d> Section<'d> {
    /// A value that must be there.
    pub fn required<T: DeserializeOwned>(&mut self, key: &str) -> Option<T> {
        if self.table.get(key).is_none() {
            self.seen.insert(key.to_owned());
            self.report(&format!("\"{key}\" is missing"));
            return None;
        }
        self.read(key)
    }

    /// A value that may be left out.
    pub fn optional<T: DeserializeOwned>(&mut self, key: &str, default: T) -> T {
        if self.table.get(key).is_none() {
            self.seen.insert(key.to_owned());
            return default;
        }
        self.read(key).unwrap_or(default)
    }

    /// A number that may be left out and must lie in `range`.
    pub fn in_range<T>(&mut self, key: &str, default: T, range: std::ops::RangeInclusive<T>) -> T
    where
        T: DeserializeOwned + PartialOrd + fmt::Display,
    {
        let value = self.optional(key, default);
        self.within(key, value, range, T::to_string)
    }

    /// A length of time that may be left out and must lie in `range`.
    pub fn duration_in_range(
        &mut self,
        key: &str,
        default: Duration,
        range: std::ops::RangeInclusive<Duration>,
    ) -> Duration {
        let time = self.duration(key, default);
        self.within(key, time, range, |time| match time.subsec_millis() {
            0 => format!("{} s", time.as_secs()),
            _ => format!("{} ms", time.as_millis()),
        })
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
        let (from, to, is) = (shown(&start), shown(&end), shown(&value));
        let nearest = if value < start { start } else { end };
        let mut text = format!("\"{key}\" is {is}, allowed is {from} to {to}");
        if self.source.tolerated.is_some() {
            text.push_str(&format!("; {} is used", shown(&nearest)));
        }
        self.report_rule(key, &text);
        nearest
    }

    /// Reports a value that a rule forbids. A stored document is read all the same, as the caller left it.
    pub fn report_rule(&self, key: &str, text: &str) {
        let span = self.table.get(key).map_or(self.span.clone(), toml::Spanned::span);
        let problems = self.source.tolerated.as_ref().unwrap_or(&self.source.problems);
        self.source.report_to(problems, span, self.named(text));
    }

    /// A length of time that may be left out.
    pub fn duration(&mut self, key: &str, default: Duration) -> Duration {
        let duration = self.optional(key, Span(default)).0;
        if duration <= DURATION_MAX {
            return duration;
        }
        self.report_at(key, &format!("\"{key}\" is longer than ten years (3650d)"));
        default
    }

    /// An array that must be there; each item that is wrong is a problem of its own.
    pub fn required_each<T: DeserializeOwned>(&mut self, key: &str) -> Option<Vec<T>> {
        let Some(DeValue::Array(items)) = self.table.get(key).map(toml::Spanned::get_ref) else {
            return self.required(key);
        };
        self.seen.insert(key.to_owned());
        let read: Vec<Option<T>> = items.iter().map(|item| self.read_value(key, item)).collect();
        read.into_iter().collect()
    }

    fn read<T: DeserializeOwned>(&mut self, key: &str) -> Option<T> {
        self.seen.insert(key.to_owned());
        self.read_value(key, self.table.get(key)?)
    }

    fn read_value<T: DeserializeOwned>(&self, key: &str, value: &toml::Spanned<DeValue<'_>>) -> Option<T> {
        match T::deserialize(ValueDeserializer::from(value.clone())) {
            Ok(value) => Some(value),
            Err(error) => {
                self.source
                    .report(value.span(), format!("{}: {}", self.path(key), error.message()));
                None
            }
        }
    }

    /// A table; an empty one when it is left out.
    pub fn section(&mut self, key: &str) -> Option<Section<'d>> {
        self.seen.insert(key.to_owned());
        let value = self.table.get(key)?;
        self.as_section(key, value)
    }

    /// An array of tables, `[[key]]`; empty when left out.
    pub fn sections(&mut self, key: &str) -> Vec<Section<'d>> {
        self.seen.insert(key.to_owned());
        let Some(value) = self.table.get(key) else {
            return Vec::new();
        };
        match value.get_ref() {
            DeValue::Array(items) => items.iter().filter_map(|item| self.as_section(key, item)).collect(),
            other => {
                let found = other.type_str();
                self.source.report(
                    value.span(),
                    format!("{}: write [[{key}]] tables, not a {found}", self.path(key)),
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
                let found = other.type_str();
                self.source.report(
                    value.span(),
                    format!("{}: expected a table, found a {found}", self.path(key)),
                );
                None
            }
        }
    }

    /// Reports a problem of the whole section.
    pub fn report(&self, text: &str) {
        self.source.report(self.span.clone(), self.named(text));
    }

    /// Reports a problem of one key.
    pub fn report_at(&self, key: &str, text: &str) {
        let span = self.table.get(key).map_or(self.span.clone(), toml::Spanned::span);
        self.source.report(span, self.named(text));
    }

    fn named(&self, text: &str) -> String {
        if self.name.is_empty() {
            text.to_owned()
        } else {
            format!("{}: {text}", self.name)
        }
    }

    /// Ends the section: keys nobody asked for are problems.
    pub fn finish(self) {
        for key in self.table.keys() {
            if !self.seen.contains(key.get_ref().as_ref()) {
                let known = self.seen.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
                self.source.report(
                    key.span(),
                    format!("{}: unknown key; known here: {known}", self.path(key.get_ref())),
                );
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

/// A length of time as people write it: `250ms`, `10s`, `5m`, `1h`, `3d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

impl std::str::FromStr for Span {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let unit_ms = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => {
                return Err(format!(
                    "\"{text}\" is not a length of time; write a whole number and ms, s, m, h or d"
                ));
            }
        };
        let number: u64 = number
            .parse()
            .map_err(|_| format!("\"{text}\" does not begin with a whole number"))?;
        let ms = number
            .checked_mul(unit_ms)
            .ok_or_else(|| format!("\"{text}\" is too long"))?;
        Ok(Self(Duration::from_millis(ms)))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time() {
        for (text, ms) in [("250ms", 250), ("10s", 10_000), ("5m", 300_000), ("3d", 259_200_000)] {
            assert_eq!(text.parse(), Ok(Span(Duration::from_millis(ms))), "{text}");
        }
        for text in [
            "",
            "s",
            "10",
            "10 s",
            "-1s",
            "1.5s",
            "99999999999999999999s",
            "999999999999999999d",
        ] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_syntax_error_names_its_line() {
        let problems = read("x.toml", "a = 1\nb = = 2\n", |root| root.required::<u32>("a")).unwrap_err();
        assert!(problems.to_string().starts_with("x.toml:2: "), "{problems}");
    }
}
