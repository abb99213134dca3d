//! Documents that change: which of them would do harm, and their differences in words.
//!
//! Why it is so: docs/decisions/21-documents-in-force.md.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use topology::{
    Component, Edge, Location, Moment, NameServer, Plan, Policy, ReasonCode, Region, RegionId, Role, Share, Topology,
};

use crate::{Input, plan, shares::total_at, texts::documents as texts};

/// The reasons for which a topology must not be applied now, one a line; none when it may be. A valid topology can still strand
/// sessions or data that are at a region which it does not have.
pub fn refuses_topology(input: &Input, topology: &Topology, now: Moment) -> Vec<String> {
    let Some(current) = &input.current else {
        return Vec::new();
    };
    let mut problems = lost_writers(current, topology);
    let applied = Input {
        topology: topology.clone(),
        request: None,
        ..input.clone()
    };
    let outcome = plan(&applied, now);
    let invalid = outcome.report.refused.iter();
    problems.extend(
        invalid
            .filter(|reason| reason.code == ReasonCode::InvalidPlan)
            .map(|reason| reason.text.clone()),
    );
    if let Some(next) = &outcome.plan {
        problems.extend(stranded(current, next, topology));
    }
    problems
}

/// The contradictions of two documents that are valid alone: no decision could ever follow both.
pub fn problems(topology: &Topology, policy: &Policy) -> Vec<String> {
    let mut problems = Vec::new();
    let (regions, min) = (topology.regions.len(), policy.safety.regions_serving_min as usize);
    if min >= regions {
        problems.push(texts::no_region_could_be_left(min, regions));
    }
    // The control plane that leads is a vantage, too.
    let (vantages, needed) = (topology.edges.len() + 1, policy.health.vantages_min as usize);
    if needed > vantages {
        problems.push(texts::no_region_could_be_bad(needed, vantages));
    }
    problems
}

/// The changes of a topology whose effect the control plane cannot see: the place where devices find the service, the
/// room of regions, the stacks that serve, the backups. One line each, for two people. One person may take a small
/// step: add edges or take one out, change a name server or some of a region's stacks, see that it works, and change
/// the next.
pub fn risks(input: &Input, topology: &Topology) -> Vec<String> {
    let current = &input.topology;
    let mut risks = Vec::new();
    if current.zone != topology.zone {
        risks.push(texts::other_zone(&current.zone, &topology.zone));
    }
    let edge_moves = |edge: &&Edge| {
        let after = topology.edges.get(&edge.id);
        after.is_none_or(|after| (&after.addresses, after.port) != (&edge.addresses, edge.port))
    };
    // Devices use no edge that was not yet seen to work.
    let is_used = |edge: &&Edge| !input.memory.new_edges.contains(&edge.id);
    let used: Vec<&Edge> = current.edges.values().filter(is_used).collect();
    let edges = used.iter().copied().filter(edge_moves);
    let edges: Vec<&str> = edges.map(|it| it.id.as_str()).collect();
    risks.extend(at_once("edge", "devices reach", &edges, used.len()));
    risks.extend(what_is_new(current, topology));
    let server_moves = |server: &&NameServer| {
        let after = topology.name_servers.get(&server.id);
        after.is_none_or(|after| after.address != server.address)
    };
    let servers = current.name_servers.values().filter(server_moves);
    let servers: Vec<&str> = servers.map(|it| it.id.as_str()).collect();
    let all = current.name_servers.len();
    risks.extend(at_once("name server", "resolvers reach", &servers, all));
    for (id, before) in &current.edges {
        let after = topology.edges.get(id);
        risks.extend(after.and_then(|after| elsewhere(id.as_str(), before.location, after.location)));
    }
    for (id, before) in &current.regions {
        let Some(after) = topology.regions.get(id) else {
            continue;
        };
        risks.extend(elsewhere(id.as_str(), before.location, after.location));
        risks.extend(other_role(before, after));
        risks.extend(other_room(before, after));
        risks.extend(other_stacks(input, before, after));
    }
    risks
}

/// New parts that would be used before a vantage saw them work. New edges are not among them: DNS names them when they
/// work.
fn what_is_new(current: &Topology, topology: &Topology) -> Vec<String> {
    let mut risks = Vec::new();
    for (id, before) in &current.edges {
        let after = topology.edges.get(id);
        if after.is_some_and(|after| (&after.addresses, after.port) != (&before.addresses, before.port)) {
            risks.push(texts::other_address(id.as_str()));
        }
    }
    let primaries = topology.primaries().map(|region| &region.id);
    for id in primaries.filter(|id| !current.regions.contains_key(*id)) {
        risks.push(texts::new_primary(id));
    }
    risks
}

/// Addresses of several of a kind that would change or go together, or of the only one.
fn at_once(kind: &str, who_reach: &str, names: &[&str], all: usize) -> Option<String> {
    let is_much = names.len() > 1 || (!names.is_empty() && names.len() == all);
    is_much.then(|| texts::addresses_at_once(kind, who_reach, names))
}

/// Longest distance that counts as the correction of a location, not as a move.
const CORRECTION_KM: f64 = 100.0;

fn elsewhere(name: &str, before: Location, after: Location) -> Option<String> {
    let km = before.distance_km(after);
    (km > CORRECTION_KM).then(|| texts::elsewhere(name, km))
}

fn other_role(before: &Region, after: &Region) -> Option<String> {
    let id = &before.id;
    match (&before.role, &after.role) {
        (Role::Primary { backups }, Role::Primary { backups: after }) => {
            let lost: Vec<&str> = backups
                .iter()
                .filter(|it| !after.contains(it))
                .map(RegionId::as_str)
                .collect();
            (!lost.is_empty()).then(|| texts::backups_lost(id, &lost))
        }
        (Role::Backup, Role::Backup) => None,
        (Role::Primary { .. }, Role::Backup) => Some(texts::primary_to_backup(id)),
        (Role::Backup, Role::Primary { .. }) => Some(texts::backup_to_primary(id)),
    }
}

/// Other limits of a region. Too large: it is sent more than it can serve. Too small: others find no place there.
fn other_room(before: &Region, after: &Region) -> Vec<String> {
    let room = |region: &Region| {
        let sessions = ("sessions_max".to_owned(), Some(region.sessions_max));
        let connects = ("connects_per_s_max".to_owned(), region.connects_per_s_max);
        let components = Component::ALL.into_iter().map(|component| {
            let limit = region.capacity.get(&component).copied();
            (format!("capacity.{component}"), limit)
        });
        [sessions, connects].into_iter().chain(components).collect::<Vec<_>>()
    };
    let changed = room(before)
        .into_iter()
        .zip(room(after))
        .filter(|(from, to)| from != to);
    changed
        .map(|((limit, from), (_, to))| texts::other_room(&limit, &before.id, from, to))
        .collect()
}

/// Stacks that would go, or come, so many at once that a region is served by too few which are known to work.
fn other_stacks(input: &Input, before: &Region, after: &Region) -> Vec<String> {
    let id = &before.id;
    let version = |region: &Region| {
        region
            .stacks
            .first()
            .map(|it| it.version().to_owned())
            .unwrap_or_default()
    };
    let (from, to) = (version(before), version(after));
    let is_rolled_out = |version: &str| {
        let rollout = input.current.as_ref().and_then(|plan| plan.rollout.as_ref());
        rollout.is_some_and(|it| it.version == version && it.percent == 100)
    };
    let mut risks = Vec::new();
    if from != to && !is_rolled_out(&to) {
        risks.push(texts::version_at_once(&to, id));
    }
    let serving = |region: &Region, version: &str| -> BTreeSet<SocketAddr> {
        let stacks = region.stacks.iter().filter(|it| it.version() == version);
        stacks.map(|it| it.address).collect()
    };
    // The stacks of a fully rolled out version that were there already.
    let (were, are) = (serving(before, &to), serving(after, &to));
    let kept = were.intersection(&are).count();
    let needed = (were.len().max(are.len()) as f64 * input.policy.health.capacity_min - 1e-9).ceil() as usize;
    if from == to && kept < needed {
        risks.push(texts::too_few_known_stacks(id, kept, are.len(), needed));
    }
    risks
}

/// Limit of differences told one by one; of the others only the number is told.
const DIFFERENCES_TOLD: usize = 5;

/// The differences between two pairs of documents as nodes get them, in words for history and status.
pub fn differences(before: (&Topology, &Policy), after: (&Topology, &Policy)) -> Vec<String> {
    let mut told = Vec::new();
    if before.0.zone != after.0.zone {
        told.push(texts::zone_differs(&before.0.zone, &after.0.zone));
    }
    compare("edge", &before.0.edges, &after.0.edges, edge_parts, &mut told);
    compare("region", &before.0.regions, &after.0.regions, region_parts, &mut told);
    compare(
        "name server",
        &before.0.name_servers,
        &after.0.name_servers,
        server_parts,
        &mut told,
    );
    if (&before.0.service, &before.0.records) != (&after.0.service, &after.0.records) {
        told.push(texts::records_differ());
    }
    if before.1.dns.ttl != after.1.dns.ttl {
        told.push(texts::ttl_differs(before.1.dns.ttl_s(), after.1.dns.ttl_s()));
    }
    if before.1.probe != after.1.probe {
        told.push(texts::probe_differs());
    }
    let more = told.len().saturating_sub(DIFFERENCES_TOLD);
    told.truncate(DIFFERENCES_TOLD);
    if more > 0 {
        told.push(texts::more_changes(more));
    }
    told
}

/// Tells the things of a kind that came, went, or have another part.
fn compare<K: Ord + std::fmt::Display, T: PartialEq>(
    kind: &str,
    before: &BTreeMap<K, T>,
    after: &BTreeMap<K, T>,
    parts: fn(&T, &T) -> Vec<&'static str>,
    told: &mut Vec<String>,
) {
    for id in before.keys().filter(|id| !after.contains_key(id)) {
        told.push(texts::is_gone(kind, &id.to_string()));
    }
    for (id, now) in after {
        match before.get(id) {
            None => told.push(texts::is_new(kind, &id.to_string())),
            Some(was) if was != now => told.push(texts::has_another(kind, &id.to_string(), &parts(was, now))),
            Some(_) => {}
        }
    }
}

fn named(parts: impl IntoIterator<Item = (&'static str, bool)>) -> Vec<&'static str> {
    parts
        .into_iter()
        .filter(|(_, differs)| *differs)
        .map(|(name, _)| name)
        .collect()
}

fn edge_parts(was: &Edge, now: &Edge) -> Vec<&'static str> {
    named([
        ("address", was.addresses != now.addresses),
        ("port", was.port != now.port),
        ("place", was.location != now.location),
        ("weight", was.weight != now.weight),
    ])
}

fn region_parts(was: &Region, now: &Region) -> Vec<&'static str> {
    named([
        ("role or list of backups", was.role != now.role),
        ("place", was.location != now.location),
        ("sessions_max", was.sessions_max != now.sessions_max),
        ("connects_per_s_max", was.connects_per_s_max != now.connects_per_s_max),
        ("capacity", was.capacity != now.capacity),
        ("time zone", was.time_zone != now.time_zone),
        ("list of stacks", was.stacks != now.stacks),
    ])
}

fn server_parts(was: &NameServer, now: &NameServer) -> Vec<&'static str> {
    named([("address", was.address != now.address)])
}

fn lost_writers(current: &Plan, topology: &Topology) -> Vec<String> {
    let mut problems = Vec::new();
    for (region, writers) in &current.writers {
        let is_primary = topology.primaries().any(|it| it.id == *region);
        let gone = writers.values().find(|writer| !topology.regions.contains_key(writer));
        match (gone, writers.values().next()) {
            (Some(writer), _) => problems.push(texts::writer_would_go(writer, region)),
            (None, Some(writer)) if !is_primary => {
                problems.push(texts::region_with_data_elsewhere_would_go(region, writer));
            }
            _ => {}
        }
    }
    problems
}

/// Sessions whose region the topology removes, or makes a primary, and that find no other place.
fn stranded(current: &Plan, next: &Plan, topology: &Topology) -> Vec<String> {
    let mut problems = Vec::new();
    // The callers of a removed primary lose their home, and no rule checks that other regions have room for them.
    for (primary, shares) in &current.routes {
        let at_home = total_at(shares, primary);
        if at_home > 0 && !topology.regions.contains_key(primary) {
            problems.push(texts::serving_region_would_go(primary, at_home));
        }
    }
    for (primary, shares) in &next.routes {
        let before = current.routes.get(primary).map(Vec::as_slice).unwrap_or_default();
        let gone = before.iter().filter(|it| !topology.regions.contains_key(&it.region));
        let gone: Vec<Share> = gone.cloned().collect();
        let home = total_at(shares, primary).saturating_sub(total_at(before, primary));
        if !gone.is_empty() && home > 0 {
            problems.push(texts::hosts_would_go(primary, &gone, home));
        }
        let others = shares.iter().map(|share| &share.region).filter(|it| *it != primary);
        for host in others.filter(|it| topology.primaries().any(|region| region.id == **it)) {
            problems.push(texts::host_would_be_primary(primary, host));
        }
    }
    problems
}
