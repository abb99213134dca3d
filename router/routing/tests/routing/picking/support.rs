//! A table, the measurements of its edge, and a request.

use std::{collections::BTreeMap, net::SocketAddr};

use routing::{Decision, Policy, Request, Rule, Stacks, Table, Tried, User, pick};
use topology::{EdgeId, Moment, RegionId, Share, Snapshot, fixtures::three_primaries};
use wire::Load;

pub(super) fn region(name: &str) -> RegionId {
    RegionId::new(name).unwrap()
}

/// A table in which the sessions of us-east have these shares.
pub(super) fn world(shares: &[(&str, u8)]) -> Table {
    compile(&planned(shares))
}

pub(super) fn planned(shares: &[(&str, u8)]) -> Snapshot {
    let mut snapshot = three_primaries();
    snapshot.plan.created_at = Moment(1_000);
    let shares = shares
        .iter()
        .filter(|(_, percent)| *percent > 0)
        .map(|(name, percent)| Share {
            region: region(name),
            percent: *percent,
        })
        .collect();
    snapshot.plan.routes.insert(region("us-east"), shares);
    snapshot
}

pub(super) fn compile(snapshot: &Snapshot) -> Table {
    Table::compile(snapshot, &EdgeId::new("edge-iad").unwrap())
}

pub(super) const NOW: Moment = Moment(1_000_000);

/// The measurements of the edge for a table.
pub(super) struct Measured<'a> {
    pub(super) table: &'a Table,
    pub(super) stacks: Stacks,
}

pub(super) fn measured(table: &Table) -> Measured<'_> {
    let mut stacks = Stacks::default();
    let known = table
        .regions()
        .flat_map(|(_, stacks)| stacks.iter().map(|stack| stack.address));
    stacks.retain(&known.collect());
    Measured { table, stacks }
}

impl Measured<'_> {
    pub(super) fn stacks_of(&self, name: &str) -> Vec<SocketAddr> {
        let (_, stacks) = self.table.regions().find(|(id, _)| id.as_str() == name).unwrap();
        stacks.iter().map(|stack| stack.address).collect()
    }

    pub(super) fn stack_is_ejected(&mut self, stack: SocketAddr, at: Moment) {
        while !self.stacks.is_ejected(stack, at) {
            self.stacks.failed(stack, at, &Policy::DEFAULT);
        }
    }

    pub(super) fn ejected(mut self, names: &[&str]) -> Self {
        for name in names {
            for stack in self.stacks_of(name) {
                self.stack_is_ejected(stack, NOW);
            }
        }
        self
    }

    /// All stacks of the region report that this many of at most 32 jobs wait.
    pub(super) fn waiting(mut self, name: &str, waiting: u32) -> Self {
        for stack in self.stacks_of(name) {
            self.stack_says(stack, waiting);
        }
        self
    }

    pub(super) fn stack_says(&mut self, stack: SocketAddr, waiting: u32) {
        let load = Load {
            sessions: 1,
            sessions_max: 100,
            waiting,
            waiting_max: 32,
            ..Load::default()
        };
        self.stacks.loaded(stack, load, NOW);
    }
}

/// An ordinary request. Tests change single fields.
pub(super) struct Ask<'a> {
    pub(super) table: &'a Table,
    pub(super) key: &'a str,
    pub(super) affinity: Option<&'a str>,
    pub(super) is_there: bool,
    pub(super) remembers: bool,
    pub(super) affinity_at: Moment,
    pub(super) silent: &'a [&'a str],
    pub(super) tried: &'a [&'a str],
    pub(super) measured: Measured<'a>,
    pub(super) now: Moment,
}

pub(super) fn ask<'a>(table: &'a Table, key: &'a str) -> Ask<'a> {
    Ask {
        table,
        key,
        affinity: None,
        is_there: false,
        remembers: false,
        affinity_at: Moment(0),
        silent: &[],
        tried: &[],
        measured: measured(table),
        now: NOW,
    }
}

impl Ask<'_> {
    pub(super) fn pick(&self) -> Option<Decision> {
        let mut tried = Tried::default();
        for name in self.tried {
            tried.region(&region(name));
        }
        self.pick_after(&tried)
    }

    pub(super) fn pick_after(&self, tried: &Tried) -> Option<Decision> {
        let affinity = self.affinity.map(region);
        let request = Request {
            session_key: self.key,
            user: User::default(),
            affinity: affinity.as_ref(),
            is_there: self.is_there,
            remembers: self.remembers,
            silent: &self.silent.iter().map(|name| region(name)).collect(),
            affinity_at: self.affinity_at,
            tried,
            measured_rtt_ms: &BTreeMap::new(),
            stacks: &self.measured.stacks,
            policy: &Policy::DEFAULT,
            now: self.now,
        };
        pick(self.table, &request)
    }

    pub(super) fn check(&self, expected: &str, why: Rule) {
        let decision = self.pick().expect("some region is left");
        assert_eq!(
            (decision.region.as_str(), decision.why),
            (expected, why),
            "{decision:?}"
        );
    }
}

/// A table in which us-east has this many stacks.
pub(super) fn with_stacks(count: u16) -> Table {
    let mut snapshot = planned(&[("us-east", 100)]);
    let stacks = &mut snapshot.topology.regions.get_mut(&region("us-east")).unwrap().stacks;
    let first = stacks[0].address;
    *stacks = (0..count)
        .map(|n| SocketAddr::new(first.ip(), first.port() + n).into())
        .collect();
    compile(&snapshot)
}
