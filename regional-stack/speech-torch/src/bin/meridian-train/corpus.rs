//! Reads recordings and their tables.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::texts;

/// Longest training recording, in seconds. A longer one would slow down its whole batch.
const RECORDING_MAX_S: f32 = 12.0;

/// One line of a table: file, text, and a third column whose meaning depends on the table.
pub(crate) struct Row {
    pub(crate) file: PathBuf,
    pub(crate) text: String,
    pub(crate) third: String,
}

pub(crate) fn table(folder: &Path, name: &str) -> Result<Vec<Row>> {
    let path = folder.join(name);
    let text = std::fs::read_to_string(&path).with_context(|| texts::no_table(&path))?;
    let mut rows = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let [file, text, third] = line.split('\t').collect::<Vec<_>>()[..] else {
            bail!(texts::not_three_columns(&path, number + 1));
        };
        rows.push(Row {
            file: folder.join(file),
            text: text.to_owned(),
            third: third.to_owned(),
        });
    }
    if rows.is_empty() {
        bail!(texts::no_recordings(&path));
    }
    Ok(rows)
}

pub(crate) fn samples(file: &Path) -> Result<Vec<f32>> {
    let bytes = std::fs::read(file).with_context(|| texts::cannot_read(file))?;
    speech::wav::decode(&bytes, RECORDING_MAX_S).with_context(|| file.display().to_string())
}

/// Runs `work` for each row on all cores, and keeps the order. Counts unusable recordings, without failing.
pub(crate) fn prepare<T: Send>(rows: &[Row], work: impl Fn(&Row) -> Result<T> + Sync) -> Result<Vec<T>> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let share = rows.len().div_ceil(cores).max(1);
    let parts: Vec<Vec<Result<T>>> = std::thread::scope(|scope| {
        let workers: Vec<_> = rows
            .chunks(share)
            .map(|part| scope.spawn(|| part.iter().map(&work).collect::<Vec<_>>()))
            .collect();
        workers
            .into_iter()
            .map(|w| w.join().expect("preparing a recording does not panic"))
            .collect()
    });
    let (good, bad): (Vec<_>, Vec<_>) = parts.into_iter().flatten().partition(Result::is_ok);
    if let Some(Err(first)) = bad.first() {
        eprintln!("{}", texts::left_out(bad.len(), rows.len(), &format!("{first:#}")));
        // A few bad files are no reason to stop. Many mean that the corpus itself is wrong.
        if bad.len() * 20 > rows.len() {
            bail!(texts::TOO_MANY_LEFT_OUT);
        }
    }
    Ok(good.into_iter().flatten().collect())
}
