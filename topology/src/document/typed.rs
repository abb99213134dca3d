//! Reads a document into a type of serde.
//!
//! Serde stops at the first error. So this module takes a wrong value out of the tables and reads again, until none is
//! left. A key that the type cannot do without gets the value of an example instead.

use std::{collections::BTreeSet, ops::Range};

use serde::de::DeserializeOwned;
use toml::{
    Spanned,
    de::{DeTable, DeValue, Deserializer, Error},
};

use super::{Problems, Source, WRITTEN_BYTES_MAX, unknown_key, with_advice};

/// Most wrong values that one reading reports. Each costs another reading of the document.
const PROBLEMS_MAX: usize = 100;

/// The span of the root, and of keys that the document does not contain.
const ROOT: Range<usize> = 0..0;

/// Knowledge of a reader about a document beside its type.
#[derive(Debug, Clone, Copy, Default)]
pub struct Guide<'g> {
    /// A document without problems that shows every required key. Problems advise its values.
    pub example: &'g str,
    /// Keys of older releases whose values were whole seconds, each with the key that has a duration today:
    /// `("limits.idle_seconds_max", "limits.idle_max")`. Both are in one section.
    pub once_seconds: &'g [(&'g str, &'g str)],
    /// Keys of older releases that have another name today, and the same values. Both are in one section.
    pub renamed: &'g [(&'g str, &'g str)],
}

/// Reads a document. `file` is only the name that problems mention. `rules` returns the mistakes that the type cannot express, as
/// pairs of a key, such as `limits.sessions_max` or `upstream[1].path`, and a text. Fails with all problems of the
/// document; none repeats the value of a key, because it may be secret, except addresses.
pub fn parse<T: DeserializeOwned>(
    file: &str,
    text: &str,
    guide: Guide<'_>,
    rules: impl FnOnce(&T) -> Vec<(String, String)>,
) -> Result<T, Problems> {
    let source = Source::new(file, text, None);
    let Some(written) = source.table() else {
        return source.result(None);
    };
    // Spans of the example lie behind those of the document.
    let example_text = format!("{}{}", "\n".repeat(text.len() + 1), guide.example);
    let (example, _) = DeTable::parse_recoverable(&example_text);
    let mut reader = Reader {
        source: &source,
        guide,
        example_text: &example_text,
        example: DeValue::Table(example.into_inner()),
        rest: DeValue::Table(written.clone()),
        written: DeValue::Table(written),
        reported: BTreeSet::new(),
        is_renumbered: false,
    };
    let value = reader.read_all();
    if let Some(value) = &value {
        reader.apply_rules(rules(value));
    }
    source.result(value)
}

/// One step from a table or an array to a value in it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Key(String),
    Item(usize),
}

/// The way from the root to a value.
type Path = Vec<Step>;

struct Reader<'d> {
    source: &'d Source<'d>,
    guide: Guide<'d>,
    example_text: &'d str,
    example: DeValue<'d>,
    /// The document.
    written: DeValue<'d>,
    /// The document without the wrong values.
    rest: DeValue<'d>,
    /// The paths of the wrong keys.
    reported: BTreeSet<String>,
    /// Whether an item was taken out of an array, after which other items have other indices.
    is_renumbered: bool,
}

impl<'d> Reader<'d> {
    /// Reads until no value is wrong, or until a wrong one can be neither removed nor replaced.
    fn read_all<T: DeserializeOwned>(&mut self) -> Option<T> {
        for _ in 0..PROBLEMS_MAX {
            let DeValue::Table(table) = self.rest.clone() else {
                return None;
            };
            match T::deserialize(Deserializer::from(Spanned::new(ROOT, table))) {
                Ok(value) => return Some(value),
                Err(error) => self.report_and_mend(&error)?,
            }
        }
        None
    }

    /// Reports an error, and takes its cause away. `None` when the cause cannot be taken away.
    fn report_and_mend(&mut self, error: &Error) -> Option<()> {
        let span = error.span().unwrap_or(ROOT);
        let message = error.message();
        let path_in = |tables| {
            (span != ROOT)
                .then(|| find(tables, &span))
                .flatten()
                .unwrap_or_default()
        };
        // In the rest, items may have other indices than in the document.
        let (mut path, mut shown_path) = (path_in(&self.rest), path_in(&self.written));
        if let Some(field) = quoted(message).next().filter(|_| message.starts_with("missing field ")) {
            path.push(Step::Key(field.to_owned()));
            shown_path.push(Step::Key(field.to_owned()));
            let shown = show(&shown_path);
            if self.reported.insert(shown.clone()) {
                let text = format!("{shown}: missing; {}", self.how_to_add(&shown_path, field));
                self.source.report(span, text);
            }
            return self.add_from_example(&path);
        }
        let shown = show(&shown_path);
        let text = if message.starts_with("unknown field ") {
            self.unknown(&path, &shown, message)
        } else {
            self.wrong(&shown_path, &span, message)
        };
        if self.reported.insert(shown.clone()) {
            let text = if shown.is_empty() {
                text
            } else {
                format!("{shown}: {text}")
            };
            self.source.report(span, text);
        }
        self.remove(&path)
    }

    fn unknown(&self, path: &[Step], shown: &str, message: &str) -> String {
        let key = quoted(message).next().unwrap_or_default();
        if let Some((_, name)) = self.guide.renamed.iter().find(|(old, _)| *old == shown) {
            return format!("renamed; write {} in its place", last_part(name));
        }
        let Some((_, name)) = self.guide.once_seconds.iter().find(|(old, _)| *old == shown) else {
            return unknown_key(key, &quoted(message).skip(1).collect::<Vec<_>>());
        };
        let name = last_part(name);
        let seconds = match get(&self.rest, path).map(Spanned::get_ref) {
            Some(DeValue::Integer(seconds)) => seconds.as_str(),
            _ => "30",
        };
        format!("whole seconds are now written as a duration; write {name} = \"{seconds}s\"")
    }

    fn wrong(&self, path: &[Step], span: &Range<usize>, message: &str) -> String {
        // Only this kind of value is repeated; others may be secret.
        if message == "invalid socket address syntax" {
            let written = self.source.text.get(span.clone()).unwrap_or_default();
            return format!("{written} is not an address; write IP:PORT, as in \"127.0.0.1:8080\" or \"[::]:8080\"");
        }
        let wanted = self
            .example_of(path)
            .filter(|_| matches!(path.last(), Some(Step::Key(_))));
        with_advice(message, wanted.as_deref())
    }

    /// `key = value`, as the example has it. `None` for a value that is long or has sections.
    fn example_of(&self, path: &[Step]) -> Option<String> {
        let Some(Step::Key(key)) = path.last() else {
            return None;
        };
        let value = self.in_example(path)?;
        let written = self.example_text.get(value.span())?;
        let has_sections = written.starts_with('[') && !value.get_ref().is_array() || written.starts_with("[[");
        let is_short = written.len() <= WRITTEN_BYTES_MAX && !written.contains('\n');
        // An operator must not use the secret of an example.
        let is_secret = key.ends_with("_key");
        (is_short && !has_sections && !is_secret).then(|| format!("{key} = {written}"))
    }

    fn how_to_add(&self, path: &[Step], field: &str) -> String {
        match self.in_example(path).map(Spanned::get_ref) {
            Some(DeValue::Table(_)) => format!("add the section [{}]", show(path)),
            _ => match self.example_of(path) {
                Some(example) => format!("write {example}"),
                None => format!("add {field}"),
            },
        }
    }

    /// The value of a key in the example. Every item of an array is like the first.
    fn in_example(&self, path: &[Step]) -> Option<&Spanned<DeValue<'d>>> {
        let like_first = |step: &Step| match step {
            Step::Item(_) => Step::Item(0),
            Step::Key(key) => Step::Key(key.clone()),
        };
        get(&self.example, &path.iter().map(like_first).collect::<Path>())
    }

    /// Gives a missing key the value of the example. Removes its section if there is none.
    fn add_from_example(&mut self, path: &[Step]) -> Option<()> {
        let (last, container) = path.split_last()?;
        let value = self.in_example(path).cloned();
        match (last, value, get_mut(&mut self.rest, container)) {
            (Step::Key(key), Some(value), Some(DeValue::Table(table))) if !table.contains_key(key.as_str()) => {
                table.insert(Spanned::new(ROOT, key.clone().into()), value);
                Some(())
            }
            _ => self.remove(container),
        }
    }

    fn remove(&mut self, path: &[Step]) -> Option<()> {
        let (last, container) = path.split_last()?;
        match (last, get_mut(&mut self.rest, container)?) {
            (Step::Key(key), DeValue::Table(table)) => table.remove(key.as_str()).map(drop),
            (Step::Item(index), DeValue::Array(items)) if *index < items.len() => {
                self.is_renumbered = true;
                let others = items.clone().into_iter().enumerate();
                *items = others.filter_map(|(at, item)| (at != *index).then_some(item)).collect();
                Some(())
            }
            _ => None,
        }
    }

    /// Reports the broken rules, but for those of values that were not read.
    fn apply_rules(&self, broken: Vec<(String, String)>) {
        for (key, text) in broken {
            let is_read = !self
                .reported
                .iter()
                .any(|path| is_part(path, &key) || is_part(&key, path));
            if is_read && !(self.is_renumbered && key.contains('[')) {
                self.source.report(self.span_of(&key), format!("{key}: {text}"));
            }
        }
    }

    /// The place of a key, or of the innermost section around it when the document leaves it out.
    fn span_of(&self, key: &str) -> Range<usize> {
        let mut path = Path::new();
        for step in key.split('.') {
            let (name, index) = match step.strip_suffix(']').and_then(|step| step.split_once('[')) {
                Some((name, index)) => (name, index.parse().ok()),
                None => (step, None),
            };
            path.push(Step::Key(name.to_owned()));
            path.extend(index.map(Step::Item));
        }
        let longest = (1..=path.len())
            .rev()
            .find_map(|steps| get(&self.written, &path[..steps]));
        longest.map_or(ROOT, Spanned::span)
    }
}

/// Whether `path` is `whole`, or leads to a part of it.
fn is_part(path: &str, whole: &str) -> bool {
    path.strip_prefix(whole)
        .is_some_and(|rest| whole.is_empty() || rest.is_empty() || rest.starts_with(['.', '[']))
}

/// The names between backticks in a message of serde.
/// The key without its section.
fn last_part(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

fn quoted(message: &str) -> impl Iterator<Item = &str> {
    message.split('`').skip(1).step_by(2)
}

/// The path as people write it: `upstream[1].path`.
fn show(path: &[Step]) -> String {
    let mut shown = String::new();
    for step in path {
        match step {
            Step::Item(index) => shown.push_str(&format!("[{index}]")),
            Step::Key(key) if shown.is_empty() => shown.push_str(key),
            Step::Key(key) => shown.push_str(&format!(".{key}")),
        }
    }
    shown
}

fn get<'t, 'd>(root: &'t DeValue<'d>, path: &[Step]) -> Option<&'t Spanned<DeValue<'d>>> {
    let (first, rest) = path.split_first()?;
    let value = match (first, root) {
        (Step::Key(key), DeValue::Table(table)) => table.get(key.as_str())?,
        (Step::Item(index), DeValue::Array(items)) => items.get::<usize>(*index)?,
        _ => return None,
    };
    if rest.is_empty() {
        Some(value)
    } else {
        get(value.get_ref(), rest)
    }
}

fn get_mut<'t, 'd>(root: &'t mut DeValue<'d>, path: &[Step]) -> Option<&'t mut DeValue<'d>> {
    path.iter().try_fold(root, |value, step| match (step, value) {
        (Step::Key(key), DeValue::Table(table)) => Some(table.get_mut(key.as_str())?.get_mut()),
        (Step::Item(index), DeValue::Array(items)) => Some(items.get_mut(*index)?.get_mut()),
        _ => None,
    })
}

/// The innermost value that has this span, or whose key has it, or which contains it.
fn find(root: &DeValue<'_>, span: &Range<usize>) -> Option<Path> {
    let contains = |outer: &Range<usize>| outer.start <= span.start && span.end <= outer.end;
    let within = |step: Step, value: &Spanned<DeValue<'_>>, is_key: bool| {
        let inner = find(value.get_ref(), span);
        let is_here = is_key || inner.is_some() || contains(&value.span());
        is_here.then(|| [vec![step], inner.unwrap_or_default()].concat())
    };
    match root {
        DeValue::Table(table) => table
            .iter()
            .find_map(|(key, value)| within(Step::Key(key.get_ref().to_string()), value, key.span() == *span)),
        DeValue::Array(items) => items
            .iter()
            .enumerate()
            .find_map(|(index, item)| within(Step::Item(index), item, false)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::{super::Span, *};

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its errors matter here")]
    struct Config {
        node: crate::NodeId,
        listen: Vec<std::net::SocketAddr>,
        signing_key: String,
        #[serde(default)]
        limits: Limits,
        #[serde(default)]
        upstream: Vec<Upstream>,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Limits {
        sessions_max: u32,
        idle_max: Option<Span>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Upstream {
        path: String,
        port: u16,
    }

    const EXAMPLE: &str = "node = \"edge-1\"\nlisten = [\"127.0.0.1:1\"]\nsigning_key = \"secret\"\n\
                           [limits]\nsessions_max = 10\nidle_max = \"90s\"\n";
    const GUIDE: Guide<'_> = Guide {
        example: EXAMPLE,
        once_seconds: &[("limits.idle_seconds_max", "limits.idle_max")],
        renamed: &[("limits.places_max", "limits.sessions_max")],
    };

    fn problems(text: &str) -> String {
        let rules = |config: &Config| {
            let slashless = config
                .upstream
                .iter()
                .enumerate()
                .filter(|(_, it)| !it.path.starts_with('/'));
            slashless
                .map(|(index, it)| {
                    (
                        format!("upstream[{index}].path"),
                        format!("no slash; write \"/{}\"", it.path),
                    )
                })
                .chain((config.limits.sessions_max == 0).then(|| ("limits.sessions_max".to_owned(), "0".to_owned())))
                .chain(
                    config
                        .upstream
                        .iter()
                        .filter(|it| it.port == 0)
                        .map(|_| ("node".into(), "port 0".into())),
                )
                .collect()
        };
        parse(file!(), text, GUIDE, rules).map(drop).map_or_else(
            |problems| problems.to_string().replace(file!(), "x.toml"),
            |()| String::new(),
        )
    }

    #[test]
    fn everything_wrong_is_reported_at_once() {
        assert_eq!(problems(EXAMPLE), "");
        let text = "listen = [\"127.0.0.1:1\", \"localhost:1\", 7]\nsigning_key = 7\nprot = 1\n\
                    [limits]\nsessions_max = \"many\"\nidle_max = \"2 s\"\nidle_seconds_max = 7\ncolour = \"red\"\nplaces_max = 7\n\
                    [[upstream]]\npath = \"a\"\n[[upstream]]\npath = 7\nport = 99999\n";
        assert_eq!(
            problems(text),
            "x.toml:1: listen[1]: \"localhost:1\" is not an address; write IP:PORT, as in \"127.0.0.1:8080\" or \"[::]:8080\"\n\
             x.toml:1: listen[2]: invalid type: integer `7`, expected socket address\n\
             x.toml:1: node: missing; write node = \"edge-1\"\n\
             x.toml:2: signing_key: invalid type: integer `7`, expected a string\n\
             x.toml:3: prot: unknown key; remove it, or write one of node, listen, signing_key, limits, upstream\n\
             x.toml:5: limits.sessions_max: invalid type: string \"many\", expected u32; write sessions_max = 10\n\
             x.toml:6: limits.idle_max: \"2 s\" is not a duration; write a whole number and ms, s, m, h or d, such as \"30s\"\n\
             x.toml:7: limits.idle_seconds_max: whole seconds are now written as a duration; write idle_max = \"7s\"\n\
             x.toml:8: limits.colour: unknown key; remove it, or write one of sessions_max, idle_max\n\
             x.toml:9: limits.places_max: renamed; write sessions_max in its place\n\
             x.toml:10: upstream[0].port: missing; add port\n\
             x.toml:13: upstream[1].path: invalid type: integer `7`, expected a string\n\
             x.toml:14: upstream[1].port: invalid value: integer `99999`, expected u16"
        );
    }

    #[test]
    fn rules_are_applied_to_what_could_be_read() {
        let text = format!("{EXAMPLE}sessions_mx = 1\n[[upstream]]\npath = \"a\"\nport = 0\n").replace("= 10", "= 0");
        assert_eq!(
            problems(&text),
            "x.toml:1: node: port 0\n\
             x.toml:5: limits.sessions_max: 0\n\
             x.toml:7: limits.sessions_mx: unknown key; write sessions_max, or remove it\n\
             x.toml:9: upstream[0].path: no slash; write \"/a\""
        );
    }

    #[test]
    fn a_document_without_an_example_is_read_as_far_as_possible() {
        let read = |text| parse::<Config>("x.toml", text, Guide::default(), |_| vec![]);
        let text = read("listen = 7\nlimits = 8").unwrap_err().to_string();
        assert!(
            text.contains("x.toml:1: listen: invalid type") && text.contains("x.toml:2: limits: invalid type"),
            "{text}"
        );
        let text = read("node = = 1\nother = [\n").unwrap_err().to_string();
        assert!(text.starts_with("x.toml:1: ") && text.contains("\nx.toml:"), "{text}");
    }
}
