//! Reading recordings and their tables.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Longest training recording; a longer one would make its whole batch slow.
const RECORDING_MAX_S: f32 = 12.0;

/// One line of a table: file, text, and a third column whose meaning depends on the table.
pub(crate) struct Row {
    pub(crate) file: PathBuf,
    pub(crate) text: String,
    pub(crate) third: String,
}

pub(crate) fn table(folder: &Path, name: &str) -> Result<Vec<Row>> {
    let path = folder.join(name);
    let text = std::fs::read_to_string(&path).with_context(|| {
        format!(
            "cannot read {}; make the recordings with tools/synthesise-speech",
            path.display()
        )
    })?;
    let mut rows = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let [file, text, third] = line.split('\t').collect::<Vec<_>>()[..] else {
            bail!(
                "{}:{}: wanted three columns separated by tabs",
                path.display(),
                number + 1
            );
        };
        rows.push(Row {
            file: folder.join(file),
            text: text.to_owned(),
            third: third.to_owned(),
        });
    }
    if rows.is_empty() {
        bail!("{} lists no recordings", path.display());
    }
    Ok(rows)
}

pub(crate) fn samples(file: &Path) -> Result<Vec<f32>> {
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    speech::wav::decode(&bytes, RECORDING_MAX_S).with_context(|| file.display().to_string())
}

/// Does `work` for each row on all cores, in order; recordings that cannot be used are counted, not fatal.
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
        eprintln!(
            "left out {} of {} recordings, the first because: {first:#}",
            bad.len(),
            rows.len()
        );
        // A few odd files are no reason to stop; many mean that the corpus is not what it should be.
        if bad.len() * 20 > rows.len() {
            bail!("more than one in twenty recordings cannot be used; make the corpus again");
        }
    }
    Ok(good.into_iter().flatten().collect())
}
