//! The objections to new documents, and the differences between documents. An objection says what would go wrong, and
//! what to do about it.

use topology::{RegionId, Share};

use super::{join_and, part};

// Contradictions: no decision could ever follow both documents.

pub(crate) fn no_region_could_be_left(min: usize, regions: usize) -> String {
    let most = match regions.saturating_sub(1) {
        0 => String::new(),
        most => format!("; with {regions} regions it is {most} at most"),
    };
    format!(
        "safety.regions_serving_min is {min} and the topology has {regions} regions, so no region could ever be left{most}"
    )
}

pub(crate) fn no_region_could_be_bad(needed: usize, vantages: usize) -> String {
    format!(
        "health.vantages_min is {needed} and {vantages} vantages see the regions, the edges and the control plane, so no \
         region could ever be found bad; it is {vantages} at most"
    )
}

// Sessions or data that a new topology would strand.

pub(crate) fn writer_would_go(writer: &RegionId, region: &RegionId) -> String {
    format!(
        "{writer} writes data of {region}; `meridian restore {region} --reason WHY` brings them home before {writer} goes"
    )
}

pub(crate) fn region_with_data_elsewhere_would_go(region: &RegionId, writer: &RegionId) -> String {
    format!(
        "data of {region} are written by {writer}; `meridian restore {region} --reason WHY` brings them home before \
         {region} goes"
    )
}

pub(crate) fn serving_region_would_go(primary: &RegionId, percent: u8) -> String {
    format!(
        "{primary} serves {percent} % of its sessions; `meridian drain --region {primary} --reason WHY` empties it before \
         it goes"
    )
}

pub(crate) fn hosts_would_go(primary: &RegionId, gone: &[Share], homeless: u8) -> String {
    format!(
        "sessions of {primary} are at {} and {homeless} % find no place in its other backups; `meridian restore {primary} \
         --reason WHY` brings them home first",
        part::shares(gone)
    )
}

pub(crate) fn host_would_be_primary(primary: &RegionId, host: &RegionId) -> String {
    format!(
        "sessions of {primary} are at {host}, which is to be a primary, and find no other place; `meridian restore \
         {primary} --reason WHY` brings them home first"
    )
}

// Risks that a second person has to agree to.

pub(crate) fn other_zone(from: &str, to: &str) -> String {
    format!("the zone would change from {from} to {to}: devices that ask for {from} would find nothing at once")
}

pub(crate) fn other_address(edge: &str) -> String {
    format!(
        "{edge} would have another address, and DNS would name that at once, whether or not devices reach it; a second edge \
         beside it can be seen to work before {edge} goes"
    )
}

pub(crate) fn new_primary(region: &RegionId) -> String {
    format!("{region} would be a new primary: callers near it would have their home there at once")
}

/// `reach` says how one sees that a thing of this kind works: "devices reach", "resolvers reach".
pub(crate) fn addresses_at_once(kind: &str, reach: &str, names: &[&str]) -> String {
    format!(
        "the addresses of {} would change or go at once; change one {kind}, see that {reach} it, then the next",
        join_and(names)
    )
}

pub(crate) fn elsewhere(name: &str, km: f64) -> String {
    format!(
        "{name} would be {km:.0} km from where it is: callers are sent there by distance, so other callers would be at once"
    )
}

pub(crate) fn backups_lost(region: &RegionId, lost: &[&str]) -> String {
    format!(
        "{region} would lose its backup {}: its sessions could not flee there any more",
        join_and(lost)
    )
}

pub(crate) fn primary_to_backup(region: &RegionId) -> String {
    format!("{region} would be a backup: callers who are at home there would have no home")
}

pub(crate) fn backup_to_primary(region: &RegionId) -> String {
    format!("{region} would be a primary: no region could flee there any more")
}

pub(crate) fn other_room(limit: &str, region: &RegionId, from: Option<u32>, to: Option<u32>) -> String {
    let number = |limit: Option<u32>| limit.map_or("no limit".to_owned(), |it| it.to_string());
    format!(
        "{limit} of {region} would change from {} to {}: too much overloads the region when others flee there, too little \
         leaves them without a place",
        number(from),
        number(to)
    )
}

pub(crate) fn version_at_once(version: &str, region: &RegionId) -> String {
    format!(
        "version {version} would be in service in {region} at once; `meridian rollout {version} --reason WHY` brings it to \
         users in steps"
    )
}

pub(crate) fn too_few_known_stacks(region: &RegionId, kept: usize, stacks: usize, needed: usize) -> String {
    format!(
        "{kept} of {stacks} stacks of {region} would be those that serve now, and it needs {needed}; change some, see that \
         they serve, then the others"
    )
}

// Differences.

pub(crate) fn zone_differs(before: &str, after: &str) -> String {
    format!("the zone is {after} in place of {before}")
}

pub(crate) fn records_differ() -> String {
    "the service bindings or records of the zone changed".to_owned()
}

pub(crate) fn ttl_differs(before_s: u32, after_s: u32) -> String {
    format!("the DNS TTL is {after_s} s in place of {before_s} s")
}

pub(crate) fn probe_differs() -> String {
    "the probe policy changed".to_owned()
}

pub(crate) fn more_changes(more: usize) -> String {
    format!("and {more} more changes")
}

pub(crate) fn is_gone(kind: &str, id: &str) -> String {
    format!("{kind} {id} is gone")
}

pub(crate) fn is_new(kind: &str, id: &str) -> String {
    format!("{kind} {id} is new")
}

pub(crate) fn has_another(kind: &str, id: &str, parts: &[&str]) -> String {
    format!("{kind} {id} has another {}", join_and(parts))
}
