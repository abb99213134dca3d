//! Shared parts of the benches: their start, a description of the machine, medians, tables, and the bench's section of
//! docs/benchmarks.md.

mod snapshot;
pub mod stack;
pub mod texts;

use std::{
    fmt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use serde_json::Value;

use drill::report::percentile;

pub use crate::snapshot::first_snapshot;

/// Runs a bench this many times, or as often as `--runs N` says.
pub async fn main(name: &str, runs: usize, measure: impl AsyncFnOnce(usize) -> anyhow::Result<()>) -> ExitCode {
    let measured = async {
        let mut arguments = std::env::args().skip(1);
        let runs = match (arguments.next().as_deref(), arguments.next(), arguments.next()) {
            (None, ..) => runs,
            (Some("--runs"), Some(runs), None) => runs.parse().with_context(|| texts::not_a_number("--runs"))?,
            _ => return Err(texts::usage(name, "[--runs N]")),
        };
        if runs == 0 {
            return Err(texts::not_positive("--runs"));
        }
        measure(runs).await
    };
    match measured.await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The figures of all runs, the program that measured them, and the machine.
#[derive(Debug, Serialize)]
pub struct Bench<R> {
    schema: u32,
    measured_at_ms: topology::Moment,
    machine: Machine,
    command: String,
    build: &'static str,
    /// The runs, one after the other.
    pub runs: Vec<R>,
}

impl<R> Bench<R> {
    /// The time before the first run.
    #[expect(clippy::new_without_default, reason = "it looks at the clock and the machine")]
    pub fn new() -> Self {
        Self {
            schema: 1,
            measured_at_ms: daemon::clock::now(),
            machine: Machine::this(),
            command: std::env::args().collect::<Vec<_>>().join(" "),
            build: build(),
            runs: Vec::new(),
        }
    }

    /// The program and its build: `target/release/bench-world` (release build).
    pub fn command(&self) -> String {
        format!("`{}` ({} build)", self.command, self.build)
    }

    /// The machine, in one line.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }
}

/// The machine of a measurement.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// Model name of the processor, from /proc/cpuinfo.
    pub processor: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Memory in GiB.
    pub memory_gib: f64,
    /// The kernel's release.
    pub kernel: String,
}

impl Machine {
    /// Describes the machine that this program runs on.
    pub fn this() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let processor = read("/proc/cpuinfo")
            .lines()
            .find_map(|line| Some(line.strip_prefix("model name")?.split_once(':')?.1.trim().to_owned()));
        Self {
            processor: processor.unwrap_or_else(|| "unknown processor".to_owned()),
            cores: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
            memory_gib: kib_after(&read("/proc/meminfo"), "MemTotal:").unwrap_or_default() / f64::from(1 << 20),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            processor,
            cores,
            memory_gib,
            kernel,
        } = self;
        write!(f, "{processor}, {cores} cores, {memory_gib:.0} GiB, Linux {kernel}")
    }
}

/// The profile that this program was built with: "development" or "release".
pub fn build() -> &'static str {
    if cfg!(debug_assertions) {
        "development"
    } else {
        "release"
    }
}

/// A value of `/proc/PID/status` in KiB, such as `VmRSS:`.
pub fn memory_kib(pid: u32, key: &str) -> Option<f64> {
    kib_after(&std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?, key)
}

fn kib_after(text: &str, key: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The median of some values; 0 if there are none.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    percentile(&mut values.into_iter().collect::<Vec<_>>(), 0.5)
}

/// A table as Markdown: names on the left, figures on the right.
pub fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN);
    table.set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// The folder docs/ beside or above this program.
pub fn docs() -> anyhow::Result<PathBuf> {
    world::settings::find_upwards(&world::settings::default_binaries_dir(), "docs")
        .with_context(|| texts::not_found("docs/"))
}

/// Writes docs/benchmarks/`file` and the section of docs/benchmarks.md that stands between the markers of `bench`.
pub fn write(docs: &Path, bench: &str, file: &str, figures: &impl Serialize, section: &str) -> anyhow::Result<()> {
    let folder = docs.join("benchmarks");
    std::fs::create_dir_all(&folder).with_context(|| texts::cannot_make(&folder))?;
    write_file(&folder.join(file), &(serde_json::to_string_pretty(figures)? + "\n"))?;
    let page = docs.join("benchmarks.md");
    let before = std::fs::read_to_string(&page).unwrap_or_else(|_| "# Benchmarks\n".to_owned());
    write_file(&page, &with_section(&before, bench, section))
}

/// As [`write()`], for one part of a bench: `figures` stand under `key` in the file, whose other figures stay.
pub fn write_part(
    docs: &Path,
    bench: &str,
    (file, key): (&str, &str),
    figures: Value,
    section: &str,
) -> anyhow::Result<()> {
    let path = docs.join("benchmarks").join(file);
    let before = std::fs::read_to_string(&path).unwrap_or_else(|_| "{}".to_owned());
    let whole = with_key(&before, key, figures).with_context(|| texts::not_figures(&path))?;
    write(docs, bench, file, &whole, section)
}

fn write_file(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| texts::cannot_write(path))
}

/// The JSON object in `text` with another value under `key`.
fn with_key(text: &str, key: &str, value: Value) -> anyhow::Result<Value> {
    let mut whole: Value = serde_json::from_str(text)?;
    let object = whole.as_object_mut().context(texts::NO_OBJECT)?;
    object.insert(key.to_owned(), value);
    Ok(whole)
}

/// The page with the bench's section replaced, or added at the end.
fn with_section(page: &str, bench: &str, section: &str) -> String {
    let (begin, end) = (format!("<!-- {bench} begins -->"), format!("<!-- {bench} ends -->"));
    let ours = format!("{begin}\n{}\n{end}", section.trim());
    match (page.find(&begin), page.find(&end)) {
        (Some(from), Some(to)) if from < to => format!("{}{ours}{}", &page[..from], &page[to + end.len()..]),
        _ => format!("{}\n\n{ours}\n", page.trim_end()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_section_is_replaced_and_the_rest_of_the_page_stays() {
        let first = with_section("# Benchmarks\n\nOther.\n", "one", "old");
        assert_eq!(
            first,
            "# Benchmarks\n\nOther.\n\n<!-- one begins -->\nold\n<!-- one ends -->\n"
        );
        assert_eq!(with_section(&first, "one", "new"), first.replace("old", "new"));
        let both = with_section(&first, "two", "its own");
        assert!(both.starts_with(first.trim_end()) && both.contains("<!-- two begins -->\nits own"));
    }

    #[test]
    fn a_part_is_written_beside_the_figures_of_the_other_parts() {
        let whole = with_key(r#"{"a": 1, "b": 2}"#, "b", json!({"c": 3})).unwrap();
        assert_eq!(whole, json!({"a": 1, "b": {"c": 3}}));
        assert!(with_key("[]", "b", json!(1)).is_err());
        assert!(with_key("cut sho", "b", json!(1)).is_err());
    }

    #[test]
    fn memory_is_read_from_the_kernels_words() {
        assert_eq!(kib_after("VmPeak:\t9 kB\nVmRSS:\t  2048 kB\n", "VmRSS:"), Some(2048.0));
        assert!(memory_kib(std::process::id(), "VmRSS:").unwrap() > 1024.0);
    }
}
