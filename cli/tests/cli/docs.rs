//! The documentation pages stay true: their links lead somewhere, the files and functions that they name exist, the
//! commands that they print are commands, and every metric has its line. Only a reader can check the prose.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::texts::{self, root};

/// A reader of README has a minute, a reader of ARCHITECTURE ten.
const README_LINES_MAX: usize = 150;
const ARCHITECTURE_BYTES_MAX: usize = 10_000;

/// The files with the names of the metrics, one for each process.
const METRICS: [&str; 4] = [
    "control-plane/server/src/metrics.rs",
    "router/edge/src/metrics.rs",
    "dns/server/src/metrics.rs",
    "regional-stack/gateway/src/metrics.rs",
];

/// Every page, by its path from the root. Without CHANGELOG.md, which names files and commands of earlier versions.
fn pages() -> BTreeMap<PathBuf, String> {
    let mut paths: Vec<PathBuf> = [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "regional-stack/gateway/README.md",
    ]
    .iter()
    .map(PathBuf::from)
    .collect();
    for folder in ["docs", "docs/decisions"] {
        let entries = fs::read_dir(root().join(folder)).unwrap();
        let names = entries.map(|entry| Path::new(folder).join(entry.unwrap().file_name()));
        paths.extend(names.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    }
    let read = |path: PathBuf| {
        let text = fs::read_to_string(root().join(&path)).unwrap();
        (path, text)
    };
    paths.into_iter().map(read).collect()
}

/// The code spans of a page: text between backquotes, outside of fenced blocks.
fn code_in(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    // A span may be broken over two lines of a paragraph, so each paragraph is read whole.
    for paragraph in outside_fences(text).split("\n\n") {
        let spans = paragraph.split('`').skip(1).step_by(2);
        found.extend(spans.map(|span| span.replace('\n', " ")));
    }
    found
}

fn outside_fences(text: &str) -> String {
    let parts = text.split("```").step_by(2);
    parts.collect::<Vec<_>>().join("\n\n")
}

fn inside_fences(text: &str) -> Vec<&str> {
    text.split("```").skip(1).step_by(2).flat_map(str::lines).collect()
}

/// The anchor that GitHub makes of a heading.
fn anchor(heading: &str) -> String {
    let kept = |letter: char| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_');
    let lower = heading.trim().to_lowercase();
    lower
        .chars()
        .filter(|letter| kept(*letter))
        .collect::<String>()
        .replace(' ', "-")
}

fn anchors(text: &str) -> BTreeSet<String> {
    let outside = outside_fences(text);
    let headings = outside.lines().filter(|line| line.starts_with('#'));
    headings.map(|line| anchor(line.trim_start_matches('#'))).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut broken = Vec::new();
    for (page, text) in pages() {
        let outside = outside_fences(&text);
        for link in outside.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("http") {
                continue;
            }
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => root().join(&page),
                file => root().join(page.parent().unwrap()).join(file),
            };
            let leads = match heading {
                "" => target.exists(),
                heading => fs::read_to_string(&target).is_ok_and(|text| anchors(&text).contains(heading)),
            };
            if !leads {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "links that lead nowhere:\n{}", broken.join("\n"));
}

/// Whether a code span is a path of this repository: it has a folder, and one of our endings.
fn is_path(code: &str) -> bool {
    let ends = [
        ".rs",
        ".md",
        ".toml",
        ".scenario",
        ".transcript",
        ".tsv",
        ".txt",
        ".proto",
    ];
    code.contains('/')
        && ends.iter().any(|end| code.ends_with(end))
        && code
            .chars()
            .all(|letter| letter.is_ascii_alphanumeric() || "/._-".contains(letter))
}

#[test]
fn the_files_and_functions_that_the_architecture_names_exist() {
    let mut gone = Vec::new();
    for (page, text) in pages() {
        if !page.starts_with("docs/decisions") && page != Path::new("ARCHITECTURE.md") {
            continue;
        }
        for path in code_in(&text).into_iter().filter(|code| is_path(code)) {
            if !root().join(&path).exists() {
                gone.push(format!("{}: {path}", page.display()));
            }
        }
    }
    // The map names a file and then its functions in brackets: `relay.rs` (`run`).
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut looked_up = 0;
    for (at, _) in flat.match_indices(".rs` (`") {
        let path = flat[..at + 3].rsplit('`').next().unwrap();
        let Ok(source) = fs::read_to_string(root().join(path)) else {
            continue;
        };
        let bracket = flat[at..].split_once('(').unwrap().1.split(')').next().unwrap();
        for name in bracket.split('`').skip(1).step_by(2) {
            looked_up += 1;
            let named = |kind: &str| {
                let item = format!("{kind} {name}");
                let mut places = source.match_indices(&item).map(|(at, found)| at + found.len());
                places.any(|end| !source[end..].starts_with(|next: char| next.is_alphanumeric() || next == '_'))
            };
            if !named("fn") && !named("struct") {
                gone.push(format!("ARCHITECTURE.md: {path} has no {name}"));
            }
        }
    }
    // Functions behind arrows stand without their file; some file of the map must have each.
    let spans = code_in(&text);
    let sources: Vec<String> = spans
        .iter()
        .filter(|code| is_path(code))
        .filter_map(|path| fs::read_to_string(root().join(path)).ok())
        .collect();
    let is_function =
        |code: &&String| code.contains('_') && code.chars().all(|letter| letter.is_ascii_lowercase() || letter == '_');
    for name in spans.iter().filter(is_function) {
        let head = format!("fn {name}(");
        let generic = format!("fn {name}<");
        if !sources
            .iter()
            .any(|source| source.contains(&head) || source.contains(&generic))
        {
            gone.push(format!("ARCHITECTURE.md: no file that it names has {name}"));
        }
    }
    assert!(
        looked_up > 20,
        "only {looked_up} functions were found in ARCHITECTURE.md; is it still written that way?"
    );
    assert!(gone.is_empty(), "named and not there:\n{}", gone.join("\n"));
}

/// Every source file, by its path from the root. Skips folders that begin with a dot, and target/.
fn sources() -> Vec<PathBuf> {
    let (mut folders, mut found) = (vec![root()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && !name.starts_with('.') && name != "target" {
                folders.push(path);
            } else if name.ends_with(".rs") {
                found.push(path);
            }
        }
    }
    found
}

/// The pages that comments name, each with a file that names it.
fn pages_in_comments() -> Vec<(String, PathBuf)> {
    let mut named = Vec::new();
    for path in sources() {
        let text = fs::read_to_string(&path).unwrap();
        let comments = text.lines().filter(|line| line.trim_start().starts_with("//"));
        for (page, _) in comments.flat_map(|line| line.match_indices("docs/").map(move |(at, _)| (&line[at..], at))) {
            let end = page.find(|letter: char| !letter.is_ascii_alphanumeric() && !"/._-".contains(letter));
            let page = &page[..end.unwrap_or(page.len())];
            let page = page.split_inclusive(".md").next().filter(|page| page.ends_with(".md"));
            named.extend(page.map(|page| (page.to_owned(), path.clone())));
        }
    }
    named
}

#[test]
fn code_names_every_decision() {
    let named: BTreeSet<String> = pages_in_comments().into_iter().map(|(page, _)| page).collect();
    let decisions = pages().into_keys().map(|page| page.to_string_lossy().into_owned());
    let decisions = decisions.filter(|page| page.starts_with("docs/decisions/") && !page.ends_with("README.md"));
    let lost: Vec<String> = decisions.filter(|page| !named.contains(page)).collect();
    assert!(
        lost.is_empty(),
        "no code says \"Why it is so\" with these decisions; name each beside the code that it explains, or delete it:\n{}",
        lost.join("\n")
    );
}

#[test]
fn the_pages_that_comments_name_exist() {
    let named = pages_in_comments();
    let gone = named.iter().filter(|(page, _)| !root().join(page).exists());
    let gone: Vec<String> = gone.map(|(page, path)| format!("{}: {page}", path.display())).collect();
    let named = named.len();
    assert!(
        named > 10,
        "only {named} comments name a page; are they still written that way?"
    );
    assert!(
        gone.is_empty(),
        "comments name pages that do not exist:\n{}",
        gone.join("\n")
    );
}

#[test]
fn every_metric_has_a_line() {
    let page = fs::read_to_string(root().join("docs/metrics.md")).unwrap();
    let rows: BTreeSet<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `meridian_")?.split('`').next())
        .collect();
    let mut missing = Vec::new();
    let mut known = BTreeSet::new();
    for file in METRICS {
        let source = fs::read_to_string(root().join(file)).unwrap();
        let names: BTreeSet<&str> = source
            .split("\"meridian_")
            .skip(1)
            .filter_map(|rest| rest.split('"').next())
            .collect();
        assert!(!names.is_empty(), "{file} has no metrics; is it still where they are?");
        for name in names {
            let total = format!("{name}_total");
            match (rows.get(name), rows.get(total.as_str())) {
                (Some(row), _) | (None, Some(row)) => _ = known.insert(*row),
                (None, None) => missing.push(format!("{file}: meridian_{name}")),
            }
        }
    }
    assert!(
        missing.is_empty(),
        "without a line in docs/metrics.md:\n{}",
        missing.join("\n")
    );
    // Rows of the table of alerts begin in the same way, but name expressions.
    let gone: Vec<_> = rows
        .iter()
        .filter(|row| !known.contains(*row) && !row.contains(' '))
        .collect();
    assert!(gone.is_empty(), "in docs/metrics.md and in no process: {gone:?}");
}

/// The command lines of a page: those in its blocks, with or without a prompt, and those in its sentences.
fn commands(text: &str) -> Vec<String> {
    let blocks = inside_fences(text)
        .into_iter()
        .map(|line| line.trim_start_matches("$ ").to_owned());
    let all = blocks.chain(code_in(text));
    // `meridian: …` is output, not a command, and three dots stand for anything.
    all.filter(|line| line.starts_with("meridian ")).collect()
}

/// A line of a table, with the next one at its end if a string goes on there.
fn joined(line: &str) -> String {
    match line.strip_suffix('\\') {
        Some(begun) => begun.to_owned(),
        None => format!("{}\n", line.trim_start()),
    }
}

#[test]
fn every_command_is_one() {
    let mut helps: BTreeMap<Vec<String>, String> = BTreeMap::new();
    let mut wrong = Vec::new();
    let mut tried = 0;
    // A string of a table goes on behind a backslash.
    let tables = texts::tables().into_iter();
    let tables = tables.map(|(path, text)| {
        let table = text.split("#[cfg(test)]").next().unwrap();
        (path, table.lines().map(joined).collect::<String>())
    });
    for (page, text) in pages().into_iter().chain(tables) {
        for command in commands(&text) {
            let line = command.split(" #").next().unwrap();
            let words: Vec<&str> = line.split_whitespace().skip(1).collect();
            // Verbs are lower case and come first: `topology apply`, `explain route`.
            let is_verb = |word: &&&str| {
                word.chars().all(|letter| letter.is_ascii_lowercase() || letter == '-') && !word.starts_with('-')
            };
            let verbs: Vec<String> = words
                .iter()
                .take(3)
                .take_while(is_verb)
                .map(|word| (*word).to_owned())
                .collect();
            let Some(first) = verbs.first().cloned() else { continue };
            if first == "stack" || first == "edge" {
                continue;
            }
            tried += 1;
            let depth = match (first.as_str(), verbs.get(1).map(String::as_str)) {
                ("cert", Some("trust")) => 3,
                ("topology" | "policy" | "audit" | "explain" | "cert" | "models" | "dns", _) => 2,
                _ => 1,
            };
            let verb = verbs.into_iter().take(depth).collect::<Vec<_>>();
            let help = helps.entry(verb.clone()).or_insert_with(|| {
                let output = Command::new(env!("CARGO_BIN_EXE_meridian"))
                    .args(&verb)
                    .arg("--help")
                    .output()
                    .unwrap();
                match output.status.success() {
                    true => String::from_utf8(output.stdout).unwrap(),
                    false => String::new(),
                }
            });
            if help.is_empty() {
                wrong.push(format!("{}: {command}", page.display()));
                continue;
            }
            let options = words.iter().filter(|word| word.starts_with("--"));
            let names = options.map(|word| word.split('=').next().unwrap().trim_end_matches([',', ')', '.']));
            for option in names {
                let has = help.split_whitespace().any(|word| {
                    word.trim_matches(|letter| "<>[],|".contains(letter))
                        .split(['=', '['])
                        .next()
                        == Some(option)
                });
                if !has {
                    wrong.push(format!("{}: {command} (no {option})", page.display()));
                }
            }
        }
    }
    assert!(
        tried > 40,
        "only {tried} commands were found; are they still written that way?"
    );
    assert!(wrong.is_empty(), "no such command or option:\n{}", wrong.join("\n"));
}

#[test]
fn the_first_pages_are_short() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let lines = readme.lines().count();
    assert!(
        lines <= README_LINES_MAX,
        "README.md has {lines} lines; {README_LINES_MAX} are the limit. Move details to docs/"
    );
    let architecture = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let bytes = architecture.len();
    assert!(
        bytes <= ARCHITECTURE_BYTES_MAX,
        "ARCHITECTURE.md has {bytes} bytes; {ARCHITECTURE_BYTES_MAX} are the limit. Decisions belong in docs/decisions/"
    );
}

#[test]
fn every_example_in_the_code_runs() {
    // `make test` compiles the documentation of a crate only if it may have examples, because that takes seconds for each crate.
    for crate_folder in texts::crates() {
        let manifest = fs::read_to_string(root().join(&crate_folder).join("Cargo.toml")).unwrap();
        let has_examples = texts::sources_in(&crate_folder).iter().any(|source| {
            let comments = source
                .lines()
                .map(str::trim_start)
                .filter(|line| line.starts_with("//"));
            let fences = comments.filter_map(|line| line.split_once("```").map(|(_, language)| language));
            // Every second fence ends a block; a block of text is no example.
            fences.step_by(2).any(|language| language != "text")
        });
        assert_eq!(
            manifest.contains("\ndoctest = false\n"),
            !has_examples,
            "{crate_folder}: write doctest = false under [lib] of a crate without examples, and only there"
        );
    }
}
