//! The figures of both kinds, their ratios, and the goals.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bench::{Machine, build, median, table};
use serde::Serialize;
use serde_json::{Value, json};

use super::{FRAMES, Mtls, TURNS, WORDS};
use crate::{regions::CALLERS, report::rounded, sessions::MANY};

/// A figure of the comparison, in the order of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Figure {
    /// Processor time of a frame before a stack without session continuity, in µs.
    Frame,
    /// The same before one with it, as real stacks are.
    KeptFrame,
    /// Memory of a silent session, in KiB.
    Memory,
    /// The same, with session continuity.
    KeptMemory,
    /// Latency of a turn with the speech models, in ms.
    TurnP50,
    TurnP99,
    /// Latency of a turn with scripted engines, in ms.
    ScriptP50,
    ScriptP99,
    /// The time to go on after a region was killed, in ms, and lost sessions.
    KillP50,
    KillP99,
    KillLost,
    /// The same after a region was frozen.
    FreezeP50,
    FreezeP99,
    FreezeLost,
}

impl Figure {
    /// Its name in the table, its key in the file, and the digits behind the point.
    fn name(self) -> (&'static str, &'static str, usize) {
        match self {
            Self::Frame => ("CPU of a 640-byte frame, µs", "frame_cpu_us", 2),
            Self::KeptFrame => ("the frame, kept for another region", "frame_cpu_us_with_continuity", 2),
            Self::Memory => ("memory of a silent session, KiB", "idle_rss_kb", 1),
            Self::KeptMemory => ("the session, kept for another region", "idle_rss_kb_with_continuity", 1),
            Self::TurnP50 => ("turn with the speech models, P50, ms", "turn_p50_ms", 1),
            Self::TurnP99 => ("P99, ms", "turn_p99_ms", 1),
            Self::ScriptP50 => ("turn with scripted engines, P50, ms", "scripted_turn_p50_ms", 1),
            Self::ScriptP99 => ("P99, ms", "scripted_turn_p99_ms", 1),
            Self::KillP50 => ("region killed, time to go on, P50, ms", "region_kill_resume_p50_ms", 0),
            Self::KillP99 => ("P99, ms", "region_kill_resume_p99_ms", 0),
            Self::KillLost => ("sessions lost", "region_kill_lost", 0),
            Self::FreezeP50 => (
                "region frozen, time to go on, P50, ms",
                "region_freeze_resume_p50_ms",
                0,
            ),
            Self::FreezeP99 => ("P99, ms", "region_freeze_resume_p99_ms", 0),
            Self::FreezeLost => ("sessions lost", "region_freeze_lost", 0),
        }
    }

    /// The largest ratio of on to off that is good enough, if there is a goal.
    fn ratio_max(self) -> Option<f64> {
        match self {
            Self::Frame | Self::KeptFrame => Some(1.05),
            Self::KillP99 | Self::FreezeP99 => Some(1.2),
            _ => None,
        }
    }

    /// True if all runs count together, and the goal is none.
    fn is_loss(self) -> bool {
        matches!(self, Self::KillLost | Self::FreezeLost)
    }
}

/// One value of each kind a run.
#[derive(Debug, Default, Serialize)]
struct Pairs {
    off: Vec<f64>,
    on: Vec<f64>,
}

impl Pairs {
    fn of(&self, mtls: Mtls) -> &[f64] {
        match mtls {
            Mtls::Off => &self.off,
            Mtls::On => &self.on,
        }
    }

    fn median(&self, mtls: Mtls) -> f64 {
        median(self.of(mtls).iter().copied())
    }

    fn sum(&self, mtls: Mtls) -> f64 {
        self.of(mtls).iter().sum()
    }

    /// The ratio of on to off in each pair.
    fn ratios(&self) -> Vec<f64> {
        let pairs = self.off.iter().zip(&self.on).filter(|(off, _)| **off > 0.0);
        pairs.map(|(off, on)| on / off).collect()
    }

    /// The median of the ratios: a run in which the machine was slow changes both of its values. `None` without a value to compare with.
    fn ratio(&self) -> Option<f64> {
        let ratios = self.ratios();
        (!ratios.is_empty()).then(|| median(ratios))
    }

    /// The smallest and the largest ratio.
    fn spread(&self) -> String {
        let ratios = self.ratios();
        let [least, most] = [0.0, 1.0].map(|q| drill::report::percentile(&mut ratios.clone(), q));
        if ratios.is_empty() {
            String::new()
        } else {
            format!("{least:.2}–{most:.2}")
        }
    }
}

/// Everything that was measured with and without mutual TLS.
#[derive(Debug)]
pub(crate) struct Comparison {
    runs: usize,
    began: Instant,
    took: Duration,
    figures: BTreeMap<Figure, Pairs>,
}

impl Comparison {
    pub(crate) fn new(runs: usize) -> Self {
        Self {
            runs,
            began: Instant::now(),
            took: Duration::ZERO,
            figures: BTreeMap::new(),
        }
    }

    pub(super) fn begins(&mut self) {
        self.began = Instant::now();
    }

    pub(super) fn ends(&mut self) {
        self.took = self.began.elapsed();
    }

    /// Adds the value of a run.
    pub(super) fn add(&mut self, figure: Figure, mtls: Mtls, value: f64) {
        let pairs = self.figures.entry(figure).or_default();
        match mtls {
            Mtls::Off => pairs.off.push(value),
            Mtls::On => pairs.on.push(value),
        }
    }

    /// The JSON object: each figure by name, and below them the raw values.
    pub(crate) fn document(&self) -> Value {
        let mut document = json!({
            "measured_at_ms": daemon::clock::now(),
            "machine": Machine::this(),
            "build": build(),
            "runs": self.runs,
            "took_s": self.took.as_secs(),
        });
        for (figure, pairs) in &self.figures {
            let (_, key, _) = figure.name();
            document[key] = if figure.is_loss() {
                json!({"off": pairs.sum(Mtls::Off), "on": pairs.sum(Mtls::On)})
            } else {
                json!({
                    "off": rounded(pairs.median(Mtls::Off)),
                    "on": rounded(pairs.median(Mtls::On)),
                    "ratio": pairs.ratio().map(rounded),
                    "ratio_max": figure.ratio_max(),
                })
            };
            document["raw"][key] = json!(pairs);
        }
        document
    }

    fn rows(&self) -> Vec<[String; 6]> {
        let rows = self.figures.iter().map(|(figure, pairs)| {
            let (name, _, digits) = figure.name();
            if figure.is_loss() {
                let lost = |mtls| format!("{} of {}", pairs.sum(mtls), pairs.of(mtls).len() * CALLERS);
                let [off, on] = Mtls::BOTH.map(lost);
                return [name.to_owned(), off, on, String::new(), String::new(), "0".to_owned()];
            }
            let [off, on] = Mtls::BOTH.map(|mtls| format!("{:.digits$}", pairs.median(mtls)));
            let ratio = pairs.ratio().map(|ratio| format!("{ratio:.2}"));
            let goal = figure.ratio_max().map(|most| format!("≤ {most} ×"));
            [
                name.to_owned(),
                off,
                on,
                ratio.unwrap_or_default(),
                pairs.spread(),
                goal.unwrap_or_default(),
            ]
        });
        rows.collect()
    }

    /// One sentence about the goals that are missed.
    fn missed(&self) -> String {
        let missed = self.figures.iter().filter_map(|(figure, pairs)| {
            let (_, key, _) = figure.name();
            if figure.is_loss() {
                let lost = pairs.sum(Mtls::Off) + pairs.sum(Mtls::On);
                return (lost > 0.0).then(|| format!("`{key}` ({lost} sessions)"));
            }
            let (ratio, most) = (pairs.ratio()?, figure.ratio_max()?);
            (ratio > most).then(|| format!("`{key}` ({ratio:.2} times)"))
        });
        let missed: Vec<String> = missed.collect();
        if missed.is_empty() {
            "Every goal is reached.".to_owned()
        } else {
            format!(
                "Goals that are missed, by their names in the file: {}.",
                missed.join(", ")
            )
        }
    }

    /// The section of docs/benchmarks.md.
    pub(crate) fn section(&self) -> String {
        let mut figures = table(["", "off", "on", "ratio", "of single pairs", "goal"]);
        for row in self.rows() {
            figures.add_row(row);
        }
        format!(
            "## Mutual TLS between edges and stacks, on beside off\n\n\
             `bench-edge --only mtls` ({build} build): {runs} pairs in {took} s, in which off and on take turns. Columns off and on are \
             medians of the runs; the ratio is the median of the ratios of the pairs, and the next column has the smallest and the \
             largest of these. Machine: {machine}. Load generator, edge and stack share the cores.\n\n\
             Off is `mode = \"off\"` at stacks and `stacks = \"off\"` at edges and control planes ([security](security.md#a-fleet)); on is \
             the default, `required`. Devices talk to the edge in plain text in both. With TLS on, stacks refuse plain text, so no pair compares TLS with itself.\n\n\
             Frames are relayed in 200 sessions of 50 frames a second each way, {FRAMES} in each session; the figure is processor time of the \
             edge, user and system. Memory is what {MANY} sessions added to the edge's own (`RssAnon`). A turn is \"{WORDS}\", spoken in real time \
             by the one caller of a world through edge and stack, and lasts from the last piece of speech to the first audio of the \
             reply. The worlds with and without TLS run at the same time, and their callers speak one after the other, {TURNS} turns \
             each in a run, of which the P99 is the slowest. Scripted engines take next to no time, so the share of the transport is largest there. \
             Regions are killed and frozen under {CALLERS} callers as above, each time in a new world.\n\n\
             {figures}\n\n{missed}\n\n\
             Raw values: `mtls` in [benchmarks/edge.json](benchmarks/edge.json).",
            build = build(),
            runs = self.runs,
            took = self.took.as_secs(),
            machine = Machine::this(),
            missed = self.missed(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn comparison(figures: &[(Figure, &[f64], &[f64])]) -> Comparison {
        let mut comparison = Comparison::new(3);
        for (figure, off, on) in figures {
            for (off, on) in off.iter().zip(*on) {
                comparison.add(*figure, Mtls::Off, *off);
                comparison.add(*figure, Mtls::On, *on);
            }
        }
        comparison
    }

    /// In the second run the machine is twice as slow. The medians of both kinds come from different runs then.
    #[test]
    fn the_ratio_is_that_of_values_that_were_measured_side_by_side() {
        let measured = comparison(&[(Figure::Frame, &[10.0, 20.0, 11.0], &[10.4, 20.8, 10.9])]);
        let pairs = &measured.figures[&Figure::Frame];
        assert_eq!(pairs.ratio(), Some(1.04));
        assert_eq!(pairs.spread(), "0.99–1.04");
        assert_eq!([pairs.median(Mtls::Off), pairs.median(Mtls::On)], [11.0, 10.9]);
    }

    #[test]
    fn nothing_has_a_ratio_to_nothing() {
        let pairs = Pairs::default();
        assert_eq!((pairs.ratio(), pairs.spread()), (None, String::new()));
        let measured = comparison(&[(Figure::KillP99, &[0.0], &[5.0])]);
        assert_eq!(measured.figures[&Figure::KillP99].ratio(), None);
        assert_eq!(measured.document()["region_kill_resume_p99_ms"]["ratio"], Value::Null);
    }

    #[test]
    fn the_table_has_off_and_on_with_their_ratio_and_the_goal() {
        let measured = comparison(&[
            (Figure::KillLost, &[0.0, 2.0], &[0.0, 0.0]),
            (Figure::Frame, &[8.0, 8.0], &[8.2, 8.4]),
            (Figure::Memory, &[4.0], &[12.0]),
        ]);
        let rows = [
            [
                "CPU of a 640-byte frame, µs",
                "8.00",
                "8.20",
                "1.02",
                "1.02–1.05",
                "≤ 1.05 ×",
            ],
            [
                "memory of a silent session, KiB",
                "4.0",
                "12.0",
                "3.00",
                "3.00–3.00",
                "",
            ],
            ["sessions lost", "2 of 1000", "0 of 1000", "", "", "0"],
        ];
        assert_eq!(measured.rows(), rows.map(|row| row.map(str::to_owned)));
        let section = measured.section();
        assert!(
            section.contains(" 1.02–1.05 |") && section.contains(" ≤ 1.05 × |"),
            "{section}"
        );
    }

    #[test]
    fn goals_are_missed_by_ratios_above_them_and_by_lost_sessions() {
        let reached = comparison(&[
            (Figure::KillP99, &[100.0], &[120.0]),
            (Figure::KillP50, &[100.0], &[150.0]),
        ]);
        assert_eq!(reached.missed(), "Every goal is reached.");
        let missed = comparison(&[
            (Figure::KeptFrame, &[8.0], &[9.0]),
            (Figure::FreezeP99, &[100.0], &[121.0]),
            (Figure::FreezeLost, &[0.0], &[1.0]),
        ]);
        assert_eq!(
            missed.missed(),
            "Goals that are missed, by their names in the file: `frame_cpu_us_with_continuity` (1.12 times), \
             `region_freeze_resume_p99_ms` (1.21 times), `region_freeze_lost` (1 sessions)."
        );
    }

    #[test]
    fn the_file_has_medians_ratios_and_every_single_value() {
        let measured = comparison(&[
            (Figure::Frame, &[8.0, 9.0, 10.0], &[8.4, 9.0, 10.0]),
            (Figure::KillLost, &[1.0, 2.0], &[0.0, 0.0]),
        ]);
        let document = measured.document();
        assert_eq!(
            document["frame_cpu_us"],
            json!({"off": 9.0, "on": 9.0, "ratio": 1.0, "ratio_max": 1.05})
        );
        assert_eq!(document["region_kill_lost"], json!({"off": 3.0, "on": 0.0}));
        assert_eq!(document["raw"]["frame_cpu_us"]["on"], json!([8.4, 9.0, 10.0]));
    }

    #[test]
    fn figures_have_keys_of_their_own() {
        use Figure as F;
        let all = [
            F::Frame,
            F::KeptFrame,
            F::Memory,
            F::KeptMemory,
            F::TurnP50,
            F::TurnP99,
            F::ScriptP50,
            F::ScriptP99,
            F::KillP50,
            F::KillP99,
            F::KillLost,
            F::FreezeP50,
            F::FreezeP99,
            F::FreezeLost,
        ];
        let keys: std::collections::BTreeSet<_> = all.map(|figure| figure.name().1).into();
        assert_eq!(keys.len(), all.len());
    }
}
