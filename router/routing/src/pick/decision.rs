//! The choice of a region and a stack, with its reasons as data.

use std::net::SocketAddr;

use serde::Serialize;
use topology::{PlanNumber, RegionId};
use wire::Load;

use crate::Table;

/// A choice, and the reasons for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// The chosen region.
    pub region: RegionId,
    /// The chosen stack of the region.
    pub stack: SocketAddr,
    /// The version of that stack.
    pub version: Box<str>,
    /// The version that the user belongs to, if no stack of that version was available.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version_missed: Option<Box<str>>,
    /// The primary nearest to this edge.
    pub home: RegionId,
    /// The rule that chose the region.
    pub why: Rule,
    /// The reason for choosing this stack of the region.
    pub stack_why: StackWhy,
    /// The last load report of the stack, unless it is too old.
    pub load: Option<Load>,
    /// The regions that came first and were skipped.
    pub skipped: Vec<Skipped>,
    /// The stacks of the region that were skipped.
    pub stacks_skipped: Vec<SkippedStack>,
    /// The reason why an ejected stack was chosen, if one was.
    pub ejection_ignored: Option<EjectionIgnored>,
    /// The plan by which the choice was made.
    pub plan: PlanNumber,
}

impl Decision {
    /// Changes to the stack of the same region that has the memory of the session. Keeps the stack if that other stack
    /// was skipped for a reason other than being full or returning.
    pub fn at_stack(mut self, table: &Table, remembers: impl Fn(SocketAddr) -> bool) -> Self {
        let Some(entry) = table.entry(&self.region) else {
            return self;
        };
        let mut others = entry.stacks.iter().filter(|stack| stack.address != self.stack);
        let Some(stack) = others.find(|stack| remembers(stack.address)) else {
            return self;
        };
        let is_out = |skipped: &SkippedStack| {
            let is_slow_only = matches!(skipped.because, SkipReason::Returning | SkipReason::Full);
            skipped.stack == stack.address && !is_slow_only
        };
        if self.stacks_skipped.iter().any(is_out) {
            return self;
        }
        self.stack = stack.address;
        self.version = stack.version().into();
        self.stack_why = StackWhy::Remembers;
        self.load = None;
        self
    }
}

/// The rules that choose a region, in the order in which they apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[derive(strum::IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub enum Rule {
    /// The session was in this region before, and the plan still sends sessions there.
    Affinity,
    /// The plan gives this region this percentage of the home's sessions, and this session is one of them.
    Share(u8),
    /// The session's own share could not take it; this region is the next in the order of the plan.
    Overflow,
    /// No share of the home could take the session; this region is a backup of the home.
    Backup,
    /// No region of the home could take the session; this is the nearest region that serves.
    AnyServing,
}

impl Rule {
    /// The name of the rule in logs.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// The reason for choosing this stack of the region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StackWhy {
    /// No other stack of the region could take the session.
    Only,
    /// The stack has the memory of the session.
    Remembers,
    /// Of the two stacks that the session draws, this one cost less. A cost is the round trip times the requests of
    /// this edge in flight there times the jobs waiting there, in microseconds.
    BetterOfTwo {
        /// The cost of the chosen stack.
        cost: u64,
        /// The stack that was not chosen.
        other: SocketAddr,
        /// The cost of that stack.
        other_cost: u64,
    },
}

impl std::fmt::Display for StackWhy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Only => f.write_str("only"),
            Self::Remembers => f.write_str("remembers"),
            Self::BetterOfTwo {
                cost,
                other,
                other_cost,
            } => write!(f, "cost {cost}, {other} {other_cost}"),
        }
    }
}

/// The reason for choosing an ejected stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[derive(strum::IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub enum EjectionIgnored {
    /// Every remaining region is ejected, and so many regions are that the fault is probably at this edge.
    Panic,
    /// Every remaining region is ejected.
    NothingElse,
}

impl EjectionIgnored {
    /// The name of the reason in logs.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// A region that was skipped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// The skipped region.
    pub region: RegionId,
    /// The reason why it did not get the session.
    pub because: SkipReason,
}

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.region, self.because.as_str())
    }
}

/// A stack that was skipped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SkippedStack {
    /// The skipped stack.
    pub stack: SocketAddr,
    /// The reason why it did not get the session.
    pub because: SkipReason,
}

impl std::fmt::Display for SkippedStack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.stack, self.because.as_str())
    }
}

/// The reason for skipping a region or a stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[derive(strum::IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub enum SkipReason {
    /// An earlier attempt for this session failed there.
    Tried,
    /// This edge saw it fail, and avoids it for a time.
    Ejected,
    /// It answered none of this edge's recent probes.
    Silent,
    /// It reported that it is full.
    Full,
    /// It was ejected, and its sessions return gradually. This session is not among them yet.
    Returning,
    /// The plan evacuated it.
    Evacuated,
    /// The plan gives it no share of the home's sessions.
    NoShare,
    /// It is not in the plan.
    Unknown,
}

impl SkipReason {
    /// The name of the reason in logs.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}
