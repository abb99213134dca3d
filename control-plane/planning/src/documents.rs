//! Documents that change: what comes of a plan when its regions and edges come and go, and which documents would do harm.

use std::collections::BTreeSet;

use topology::{
    Edge, EdgeState, Level, Moment, Plan, Policy, Reason, ReasonCode, RegionId, RegionPlan, RegionState, Role, Share,
    Topology, snapshot::digest,
};

use crate::{
    Input, Phase,
    capacity::Placed,
    plan::{Planner, describe, home, plan},
    regions::{total, total_at},
};

/// Why a topology must not be applied now, one reason a line; none when it may be. What is fine on paper can still strand
/// sessions, or data, that are where the new topology has nothing.
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

/// What is wrong with two documents together: each is well formed, and nothing could ever be done by them.
pub fn problems(topology: &Topology, policy: &Policy) -> Vec<String> {
    let mut problems = Vec::new();
    let (regions, min) = (topology.regions.len(), policy.safety.regions_serving_min as usize);
    if min >= regions {
        let most = match regions.saturating_sub(1) {
            0 => String::new(),
            most => format!("; with {regions} regions it is {most} at most"),
        };
        problems.push(format!(
            "safety.regions_serving_min is {min} and the topology has {regions} regions, so no region could ever be left{most}"
        ));
    }
    // The control plane that leads is a vantage, too.
    let (vantages, needed) = (topology.edges.len() + 1, policy.health.vantages_min as usize);
    if needed > vantages {
        problems.push(format!(
            "health.vantages_min is {needed} and {vantages} vantages see the regions, the edges and the control plane, so no \
             region could ever be found bad; it is {vantages} at most"
        ));
    }
    problems
}

/// What a topology would change in where devices find the service, one line each. Nothing here can see whether they would find
/// it there, so two people look: one changes an edge, sees that devices reach it, and changes the next.
pub fn risks(current: &Topology, topology: &Topology) -> Vec<String> {
    let mut risks = Vec::new();
    if current.zone != topology.zone {
        let (from, to) = (&current.zone, &topology.zone);
        risks.push(format!(
            "the zone would go from {from} to {to}: devices that ask for {from} would find nothing at once"
        ));
    }
    let is_elsewhere = |edge: &&Edge| {
        let after = topology.edges.get(&edge.id);
        after.is_none_or(|after| (&after.addresses, after.port) != (&edge.addresses, edge.port))
    };
    let elsewhere: Vec<&str> = current
        .edges
        .values()
        .filter(is_elsewhere)
        .map(|it| it.id.as_str())
        .collect();
    if elsewhere.len() > 1 || (!elsewhere.is_empty() && elsewhere.len() == current.edges.len()) {
        risks.push(format!(
            "the addresses of {} would change or go at once; change one edge, see that devices reach it, then the next",
            elsewhere.join(" and ")
        ));
    }
    risks
}

fn lost_writers(current: &Plan, topology: &Topology) -> Vec<String> {
    let mut problems = Vec::new();
    for (region, writers) in &current.writers {
        let is_primary = topology.primaries().any(|it| it.id == *region);
        let gone = writers.values().find(|writer| !topology.regions.contains_key(writer));
        match (gone, writers.values().next()) {
            (Some(writer), _) => problems.push(format!(
                "{writer} writes data of {region}; `meridian restore {region}` brings them home before {writer} goes"
            )),
            (None, Some(writer)) if !is_primary => problems.push(format!(
                "data of {region} are written by {writer}; `meridian restore {region}` brings them home before {region} goes"
            )),
            _ => {}
        }
    }
    problems
}

/// Sessions whose place the topology takes away, or needs for others, and that find no other.
fn stranded(current: &Plan, next: &Plan, topology: &Topology) -> Vec<String> {
    let mut problems = Vec::new();
    // A primary that goes takes its callers' home with it, and nobody asks whether the others have room for them.
    for (primary, shares) in &current.routes {
        let at_home = total_at(shares, primary);
        if at_home > 0 && !topology.regions.contains_key(primary) {
            problems.push(format!(
                "{primary} serves {at_home} % of its sessions; `meridian drain --region {primary}` empties it before it goes"
            ));
        }
    }
    for (primary, shares) in &next.routes {
        let before = current.routes.get(primary).map(Vec::as_slice).unwrap_or_default();
        let gone = before.iter().filter(|it| !topology.regions.contains_key(&it.region));
        let gone: Vec<Share> = gone.cloned().collect();
        let home = total_at(shares, primary).saturating_sub(total_at(before, primary));
        if !gone.is_empty() && home > 0 {
            problems.push(format!(
                "sessions of {primary} are at {} and {home} % find no place in its other backups",
                describe(&gone)
            ));
        }
        let others = shares.iter().map(|share| &share.region).filter(|it| *it != primary);
        for host in others.filter(|it| topology.primaries().any(|region| region.id == **it)) {
            problems.push(format!(
                "sessions of {primary} are at {host}, which is to be a primary, and find no other place"
            ));
        }
    }
    problems
}

impl Planner<'_> {
    /// Regions and edges that came or went.
    pub(crate) fn follow_topology(&mut self) {
        let Input { topology, policy, .. } = self.input;
        let documents = digest(topology, policy.dns.ttl_s(), &policy.probe);
        let changed = self.next.documents != documents;
        self.next.documents = documents;
        self.next.regions.retain(|id, _| topology.regions.contains_key(id));
        self.next.edges.retain(|id, _| topology.edges.contains_key(id));
        for region in topology.regions.values() {
            let serving = RegionPlan {
                state: RegionState::Serving,
                level: Level::L0,
                since: self.now,
            };
            let plan = self.next.regions.entry(region.id.clone()).or_insert(serving);
            if region.role == Role::Backup {
                // Only a primary leaves its sessions to others; one that was made a backup has none to leave.
                plan.state = RegionState::Serving;
            }
        }
        for edge in topology.edges.keys() {
            self.next.edges.entry(edge.clone()).or_insert(EdgeState::Serving);
        }
        if changed {
            self.say_that_documents_changed();
        }
        self.follow_writers();
        self.follow_routes();
    }

    fn say_that_documents_changed(&mut self) {
        let genesis = self.next.generation == 0;
        let (code, text) = if genesis {
            (ReasonCode::Genesis, "first plan: every primary serves its own sessions")
        } else {
            (
                ReasonCode::TopologyChanged,
                "the topology, the DNS TTL or the probe policy changed",
            )
        };
        self.report.changed.push(Reason {
            code,
            region: None,
            text: text.to_owned(),
            evidence: vec![],
            until: None,
        });
    }

    /// A writer that is gone writes nothing any more. Who applies such a topology all the same ([`refuses_topology`]) is told
    /// what it did.
    fn follow_writers(&mut self) {
        let regions = &self.input.topology.regions;
        self.next.writers.retain(|id, _| regions.contains_key(id));
        let mut lost = Vec::new();
        for (region, writers) in &mut self.next.writers {
            let gone = writers.iter().filter(|(_, writer)| !regions.contains_key(writer));
            let (classes, gone): (Vec<String>, BTreeSet<RegionId>) =
                gone.map(|(class, writer)| (class.clone(), writer.clone())).unzip();
            if !gone.is_empty() {
                writers.retain(|_, writer| !gone.contains(writer));
                lost.push((region.clone(), classes.join(", "), names(&gone)));
            }
        }
        self.next.writers.retain(|_, writers| !writers.is_empty());
        for (region, classes, gone) in lost {
            let text = format!(
                "{gone}, which wrote {classes}, is gone from the topology: it writes them itself again, without what only \
                 {gone} had"
            );
            self.change(ReasonCode::Demoted, &region, text);
        }
    }

    fn follow_routes(&mut self) {
        let topology = &self.input.topology;
        let is_primary = |id: &RegionId| matches!(topology.regions.get(id), Some(it) if it.role != Role::Backup);
        self.next.routes.retain(|id, _| is_primary(id));
        for region in topology.primaries() {
            let Some(shares) = self.next.routes.get(&region.id) else {
                self.next.routes.insert(region.id.clone(), vec![home(&region.id)]);
                if let Some(plan) = self.next.regions.get_mut(&region.id) {
                    plan.state = RegionState::Serving;
                }
                continue;
            };
            let targets = shares.iter().map(|share| share.region.clone());
            let gone: BTreeSet<RegionId> = targets.filter(|it| !topology.regions.contains_key(it)).collect();
            if !gone.is_empty() {
                let why = format!("{} is gone from the topology", names(&gone));
                self.place_again(&region.id, &gone, ReasonCode::TopologyChanged, &why);
            }
        }
    }

    /// Finds another place for the part of a primary's sessions that is at regions which take none any more. What is
    /// elsewhere stays there, and what finds no place comes home: its verdict moves it on if that is bad.
    pub(crate) fn place_again(&mut self, primary: &RegionId, lost: &BTreeSet<RegionId>, code: ReasonCode, why: &str) {
        let shares = self.next.routes.get(primary).cloned().unwrap_or_default();
        let (gone, kept): (Vec<Share>, Vec<Share>) = shares.into_iter().partition(|it| lost.contains(&it.region));
        self.next.routes.insert(primary.clone(), kept.clone());
        let at_home = total_at(&kept, primary);
        let away: Vec<Share> = kept.into_iter().filter(|it| it.region != *primary).collect();
        let Placed { mut shares, left } = self.place_away(primary, 100 - at_home).unwrap_or(Placed {
            left: total(&gone),
            shares: away,
        });
        let mut text = format!("{why}: what was there ({} %) moves on", total(&gone));
        if !shares.is_empty() {
            text = format!("{text}, and its sessions away from home go to {}", describe(&shares));
        }
        if left > 0 {
            text = format!("{text}; {left} % find no place and come home");
        }
        let stay = at_home + left;
        if stay > 0 {
            let share = Share {
                region: primary.clone(),
                percent: stay,
            };
            shares.insert(0, share);
        }
        self.count_arrivals(primary, &shares);
        self.next.routes.insert(primary.clone(), shares);
        self.moved.insert(primary.clone());
        let cause = lost.first().unwrap_or(primary);
        self.change_because_of(cause, code, primary, text.clone());
        self.stay(primary, stay, &text);
    }

    /// The state of a primary that has this much of its sessions at home since others came back.
    pub(crate) fn stay(&mut self, primary: &RegionId, percent: u8, text: &str) {
        let now = self.now;
        let Some(plan) = self.next.regions.get_mut(primary) else {
            return;
        };
        let state = match (plan.state, percent) {
            (_, 0) => RegionState::Evacuated,
            (_, 100) => RegionState::Serving,
            (RegionState::Restoring(_), percent) => RegionState::Restoring(percent),
            (_, percent) => RegionState::Draining(percent),
        };
        if state == plan.state {
            return;
        }
        (plan.state, plan.since) = (state, now);
        if state == RegionState::Serving {
            self.end_moves(primary, Phase::Aborted, text);
        }
    }
}

fn names(regions: &BTreeSet<RegionId>) -> String {
    let names: Vec<&str> = regions.iter().map(RegionId::as_str).collect();
    names.join(" and ")
}
