//! Writes the signed head of the audit log into a folder, without being asked: who changes the log afterwards, also with the store and
//! this process in hand, contradicts what was taken from the folder by then.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use api::v1;
use identity::Identity;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::gauge::ConstGauge,
};
use serde_json::json;
use topology::Moment;

use crate::{grpc::operator::signed, metrics::AUDIT_HEAD_AGE, records, store::Store, texts::log};

/// Period at which the store is asked for its head: one small read.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A head is written when so many entries are new,
const ENTRIES_MAX: u64 = 100;
/// or when one has been new for so long,
const NEW_FOR_MAX: Duration = Duration::from_secs(10);
/// or after so long without any: an alert on the age then means that heads are not written, and not that nothing happened.
const AGE_MAX: Duration = Duration::from_secs(600);
/// Most heads in the folder, 3 MB together; the oldest go. Heads are meant to be taken elsewhere.
const HEADS_MAX: usize = 1_000;

/// The head that was written last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Written {
    number: u64,
    at: Moment,
}

/// Whether the head `newest` is to be written. A number below the last one is as new as one above: the store was restored.
fn is_due(last: Option<Written>, newest: u64, now: Moment) -> bool {
    let Some(last) = last else {
        return newest > 0;
    };
    // Moments saturate, and a clock that went back must not keep heads from being written.
    let age = if now < last.at { AGE_MAX } else { now.since(last.at) };
    match newest.abs_diff(last.number) {
        0 => age >= AGE_MAX,
        new => new >= ENTRIES_MAX || age >= NEW_FOR_MAX,
    }
}

/// The age of the head that was written last; nothing before the first.
#[derive(Debug, Clone, Default)]
pub(crate) struct HeadAge(Arc<AtomicU64>);

impl Collector for HeadAge {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let at = self.0.load(Relaxed);
        if at == 0 {
            return Ok(());
        }
        let gauge = ConstGauge::new(daemon::clock::now().since(Moment(at)).as_secs_f64());
        let help = "seconds since this control plane wrote the signed head of the audit log";
        gauge.encode(encoder.encode_descriptor(AUDIT_HEAD_AGE, help, None, gauge.metric_type())?)
    }
}

/// Writes heads into `folder` for ever.
pub(crate) async fn keep(folder: PathBuf, store: Arc<dyn Store>, signer: Arc<Identity>, age: HeadAge) {
    let (mut last, mut said) = (None, false);
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        match look(&folder, store.as_ref(), &signer, last).await {
            Ok(None) => said = false,
            Ok(Some(written)) => {
                (last, said) = (Some(written), false);
                age.0.store(written.at.0, Relaxed);
            }
            // Once: a folder that is full for a day would fill the log.
            Err(error) if !said => {
                said = true;
                tracing::error!(folder = %folder.display(), error = format!("{error:#}"), "{}", log::CANNOT_WRITE_HEAD);
            }
            Err(_) => {}
        }
    }
}

/// Writes the head of the store, if it is due.
async fn look(
    folder: &Path,
    store: &dyn Store,
    signer: &Arc<Identity>,
    last: Option<Written>,
) -> anyhow::Result<Option<Written>> {
    let (head, _) = records::audit_head(store).await?;
    if !is_due(last, head.number, daemon::clock::now()) {
        return Ok(None);
    }
    let signed = signed(signer.clone(), head)
        .await
        .map_err(|status| anyhow::anyhow!(status.message().to_owned()))?;
    let written = Written {
        number: signed.number,
        at: Moment(signed.at_ms),
    };
    let folder = folder.to_owned();
    tokio::task::spawn_blocking(move || write(&folder, &signed)).await??;
    Ok(Some(written))
}

/// Writes a head as `meridian audit verify --head` reads it, and removes the oldest ones.
fn write(folder: &Path, head: &v1::SignedHead) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let line = json!({ "signed-head": {
        "number": head.number, "hash": head.hash, "at_ms": head.at_ms, "certificate": head.certificate,
        "signature": hex::encode(&head.signature),
    } });
    // Names sort by time, and whoever takes files away sees whole ones only.
    let name = format!("head-{:015}-{}.jsonl", head.at_ms, head.number);
    let unfinished = folder.join("unfinished");
    let mut file = File::create(&unfinished)?;
    writeln!(file, "{line}")?;
    file.sync_all()?;
    std::fs::rename(&unfinished, folder.join(name))?;
    File::open(folder)?.sync_all()?;
    let heads = heads(folder)?;
    for old in heads.values().rev().skip(HEADS_MAX) {
        std::fs::remove_file(old)?;
    }
    Ok(())
}

/// The heads in the folder, oldest first. Other files are not this process's.
fn heads(folder: &Path) -> std::io::Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with("head-") && name.ends_with(".jsonl") {
            found.insert(name.to_owned(), path);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_written_for_many_entries_for_an_old_one_and_now_and_then() {
        let (start, last) = (Moment(1_800_000_000_000), |number, at| Some(Written { number, at }));
        assert!(!is_due(None, 0, start), "an empty log has no head");
        assert!(is_due(None, 1, start));
        for (newest, after, due) in [
            (7, AGE_MAX - LOOK_EVERY, false),
            (7, AGE_MAX, true),
            (8, NEW_FOR_MAX - LOOK_EVERY, false),
            (8, NEW_FOR_MAX, true),
            (6, NEW_FOR_MAX, true),
            (6 + ENTRIES_MAX, Duration::ZERO, false),
            (7 + ENTRIES_MAX, Duration::ZERO, true),
        ] {
            assert_eq!(
                is_due(last(7, start), newest, start + after),
                due,
                "{newest} after {after:?}"
            );
        }
        assert!(is_due(last(7, start + AGE_MAX), 7, start), "the clock went back");
    }

    #[test]
    fn the_age_is_a_metric_from_the_first_head_on() {
        let (mut registry, age) = (prometheus_client::registry::Registry::default(), HeadAge::default());
        registry.register_collector(Box::new(age.clone()));
        let scrape = || {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
            text
        };
        assert!(!scrape().contains(AUDIT_HEAD_AGE));
        age.0.store(daemon::clock::now().0 - 90_000, Relaxed);
        let said = scrape();
        let seconds = said
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{AUDIT_HEAD_AGE} ")));
        assert!(
            (90.0..600.0).contains(&seconds.unwrap().parse::<f64>().unwrap()),
            "{said}"
        );
    }

    #[test]
    fn the_folder_has_the_newest_heads_and_no_half_one() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("made/when missing");
        let head = |at_ms| v1::SignedHead {
            number: 7,
            hash: "ab".to_owned(),
            at_ms,
            certificate: "a certificate".to_owned(),
            signature: vec![1, 255].into(),
        };
        write(&folder, &head(1)).unwrap();
        std::fs::write(folder.join("README"), "mine").unwrap();
        for at in 2..=u64::try_from(HEADS_MAX).unwrap() + 2 {
            std::fs::write(folder.join(format!("head-{at:015}-7.jsonl")), "").unwrap();
        }
        let newest = 1_800_000_000_000;
        write(&folder, &head(newest)).unwrap();
        let names: Vec<String> = heads(&folder).unwrap().into_keys().collect();
        assert_eq!(names.len(), HEADS_MAX);
        assert!(
            !names.iter().any(|name| name.starts_with("head-000000000000001-")),
            "the oldest went"
        );
        assert!(folder.join("README").exists() && !folder.join("unfinished").exists());
        let text = std::fs::read_to_string(folder.join(format!("head-{newest:015}-7.jsonl"))).unwrap();
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["signed-head"]["signature"], "01ff");
    }
}
