//! Reports of vantages to a control plane: parsed, counted and judged.

use std::{collections::BTreeMap, sync::LazyLock};

use prost::Message as _;
use topology::{Tick, Topology, fixtures::three_primaries, policy::HealthPolicy};
use verdict::{Bounds, TickReport, Windows};

static TOPOLOGY: LazyLock<Topology> = LazyLock::new(|| three_primaries().topology);

/// Reads reports one after another, each after its length in two bytes.
pub(crate) fn judge(bytes: &[u8]) {
    let (policy, mut windows) = (HealthPolicy::default(), Windows::default());
    let mut bounds = Bounds::default();
    bounds.know(None, &TOPOLOGY, |_| true);
    let mut newest = Tick(0);
    let mut rest = bytes;
    while let [high, low, after @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let (message, after) = after.split_at(length.min(after.len()));
        rest = after;
        let Some(mut report) = read(message) else { continue };
        bounds.cut(&mut report);
        newest = newest.max(report.tick);
        let _ = windows.take(report, newest, &policy);
    }
    windows.forget(&policy, newest, |region| TOPOLOGY.regions.contains_key(region));
    let verdicts = verdict::judge(TOPOLOGY.regions.keys(), &windows, &policy, newest, &BTreeMap::new());
    assert_eq!(verdicts.len(), TOPOLOGY.regions.len(), "every region is judged");
}

fn read(message: &[u8]) -> Option<TickReport> {
    let report = TickReport::try_from(api::v1::TickReport::decode(message).ok()?).ok()?;
    let written = api::v1::TickReport::from(&report).encode_to_vec();
    let again = api::v1::TickReport::decode(&written[..]).map(TickReport::try_from);
    assert_eq!(again, Ok(Ok(report.clone())), "a report is read as it was written");
    Some(report)
}
