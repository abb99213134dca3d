//! The state of a region and its reasons, for an operator at 3 a.m. or a rehearsal.

use std::{collections::BTreeSet, fmt, time::Duration};

use planning::{Action, Check, Input, Load, Report, loads};
use topology::{
    Moment, NodeId, Plan, PlanNumber, Policy, Reason, ReasonCode, RegionId, RegionPlan, Role, Share, Topology,
};
use verdict::Verdict;

use crate::{
    BadScenario, Scenario,
    record::{FirstReason, Kind},
    texts,
    world::play_until,
};

/// Limit of lines, and of characters in each: one screen.
pub const LINES_MAX: usize = 40;
/// See [`LINES_MAX`].
pub const COLUMNS_MAX: usize = 120;
/// Lines of evidence on the screen; the verdict has the others.
const EVIDENCE_MAX: usize = 3;
/// Column of texts, and of decisions.
const INDENT: usize = 11;
const INDENT_DECISION: usize = 40;

/// The state of one region at one time of a scenario. It is written as one screen of text.
#[derive(Debug, Clone, PartialEq)]
pub struct Why {
    /// The region that was asked about.
    pub region: RegionId,
    /// Time from the start of the scenario.
    pub at: Duration,
    /// The same by the clock of the control plane.
    pub now: Moment,
    /// The input of the last decision. Its `current` is the plan in force.
    pub input: Input,
    /// The reasons of that decision.
    pub report: Report,
    /// Reasons of decisions about this region until then, each once.
    pub decisions: Vec<FirstReason>,
    /// Plans that nodes refused until then.
    pub refused: Vec<(Duration, NodeId, PlanNumber)>,
}

/// The reason why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// The scenario cannot be played.
    #[error(transparent)]
    Scenario(#[from] BadScenario),
    /// There is no such region.
    #[error("{0}")]
    NoRegion(String),
}

/// Plays a scenario to its end, or `until` a time of it, and gives the state of a region then.
pub fn why(
    scenario: &Scenario,
    topology: &Topology,
    policy: &Policy,
    region: &RegionId,
    until: Option<Duration>,
) -> Result<Why, NoAnswer> {
    if !topology.regions.contains_key(region) {
        return Err(NoAnswer::NoRegion(texts::unknown(
            "region",
            region,
            topology.regions.keys(),
        )));
    }
    let at = until.map_or(scenario.end, |until| until.min(scenario.end));
    let world = play_until(scenario, topology, policy, at)?;
    Ok(Why {
        region: region.clone(),
        at,
        now: world.now(),
        report: world.last_report,
        decisions: world.record.about(region).cloned().collect(),
        refused: world.record.refused,
        input: world.input,
    })
}

impl Why {
    /// The plan in force.
    pub fn plan(&self) -> Option<&Plan> {
        self.input.current.as_ref()
    }

    /// The plan for the region.
    pub fn planned(&self) -> Option<&RegionPlan> {
        self.plan()?.regions.get(&self.region)
    }

    /// The verdict on the region.
    pub fn verdict(&self) -> Option<&Verdict> {
        self.input.verdicts.get(&self.region)
    }

    /// The regions that get the sessions at home in the region; none for a backup.
    pub fn route(&self) -> &[Share] {
        let routes = self.plan().map(|plan| &plan.routes);
        routes
            .and_then(|routes| routes.get(&self.region))
            .map_or(&[], Vec::as_slice)
    }

    /// The shares of other primaries' sessions that the region takes.
    pub fn guests(&self) -> Vec<Share> {
        let routes = self.plan().into_iter().flat_map(|plan| &plan.routes);
        let guests = routes.filter(|(primary, _)| **primary != self.region);
        let shares = guests.flat_map(|(primary, shares)| {
            let here = shares.iter().filter(|share| share.region == self.region);
            here.map(|share| Share {
                region: primary.clone(),
                percent: share.percent,
            })
        });
        shares.collect()
    }

    /// The loads that are planned for the region, with its limits.
    pub fn loads(&self) -> Vec<Load> {
        let all = self
            .plan()
            .map(|plan| loads(&self.input.topology, plan, &self.input.verdicts));
        let all = all.unwrap_or_default().into_iter();
        all.filter(|load| load.region == self.region).collect()
    }

    /// Requests about the region that are under way or wait for approval.
    pub fn under_way(&self) -> impl Iterator<Item = &Action> {
        let actions = self.input.memory.actions.values();
        actions.filter(|it| !it.phase.is_final() && it.intent.kind.region() == Some(&self.region))
    }

    /// Current refusals and waits, about the region or about none.
    pub fn now(&self) -> impl Iterator<Item = (Kind, &Reason)> {
        let refused = self.report.refused.iter().map(|reason| (Kind::Refused, reason));
        let waiting = self.report.waiting.iter().map(|reason| (Kind::Waiting, reason));
        let concerns = |reason: &Reason| reason.region.as_ref().is_none_or(|region| *region == self.region);
        refused.chain(waiting).filter(move |(_, reason)| concerns(reason))
    }

    /// The checks of safety rules for the region in the last decision.
    pub fn checks(&self) -> impl Iterator<Item = &Check> {
        self.report
            .checks
            .iter()
            .filter(|check| check.region.as_ref() == Some(&self.region))
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        let mut facts = Vec::new();
        if let Some(planned) = self.planned() {
            let RegionPlan { state, level, since } = planned;
            facts.push(("state", format!("{state} since {since}, level {level}")));
        }
        let shares = |shares: &[Share]| {
            let shares: Vec<String> = shares
                .iter()
                .map(|it| format!("{} {} %", it.region, it.percent))
                .collect();
            shares.join(", ")
        };
        if !self.route().is_empty() {
            facts.push(("sessions", format!("go to {}", shares(self.route()))));
        }
        let guests = self.guests();
        if !guests.is_empty() {
            facts.push(("guests", format!("sessions of {}", shares(&guests))));
        }
        let loads: Vec<String> = self
            .loads()
            .iter()
            .map(|load| format!("{} {:.0} of {}", load.resource, load.planned, load.max))
            .collect();
        facts.push(("load", loads.join(", ")));
        if let Some(verdict) = self.verdict() {
            facts.push(("health", format!("{}: {}", verdict.health, verdict.summary)));
            let evidence = verdict.evidence.iter().take(EVIDENCE_MAX);
            facts.extend(evidence.map(|line| ("evidence", line.clone())));
        }
        if let Some(penalty) = self.input.memory.penalties.get(&self.region) {
            let policy = &self.input.policy.damping;
            let held = match penalty.until(policy, self.now) {
                Some(until) => format!(", held down until {until}"),
                None => format!(", held down from {}", policy.suppress),
            };
            facts.push(("penalty", format!("{}{held}", penalty.value(policy, self.now))));
        }
        if let Some(writers) = self.plan().and_then(|plan| plan.writers.get(&self.region)) {
            let writers: Vec<String> = writers
                .iter()
                .map(|(class, region)| format!("{class} in {region}"))
                .collect();
            facts.push(("written", writers.join(", ")));
        }
        if let Some((at, ..)) = self.refused.last() {
            let nodes: BTreeSet<&str> = self.refused.iter().map(|(_, node, _)| node.as_str()).collect();
            let plans: BTreeSet<String> = self.refused.iter().map(|(.., number)| number.to_string()).collect();
            let list = |names: Vec<&str>| names.join(", ");
            let (nodes, plans) = (
                list(nodes.into_iter().collect()),
                list(plans.iter().map(String::as_str).collect()),
            );
            let at = at.as_secs_f64();
            facts.push(("nodes", format!("{nodes} refused plan {plans}, last at {at:.1} s")));
        }
        for Action { intent, phase, .. } in self.under_way() {
            let (id, kind, author, reason) = (&intent.id, intent.kind.as_str(), &intent.author, &intent.reason);
            facts.push(("under way", format!("{id}: {kind} by {author}, {phase}: {reason}")));
        }
        for (kind, reason) in self.now() {
            facts.push((
                kind.into(),
                format!("{}: {}{}", reason.code, reason.text, until(reason)),
            ));
        }
        facts
    }
}

fn until(reason: &Reason) -> String {
    let until = reason.until.map(|until| until.to_string());
    let until = until.filter(|until| !reason.text.contains(until));
    until.map(|until| format!(" (until {until})")).unwrap_or_default()
}

impl fmt::Display for Why {
    /// One screen, with as many of the newest decisions as fit.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = match self.input.topology.regions.get(&self.region).map(|it| &it.role) {
            Some(Role::Primary { backups }) => {
                let backups: Vec<&str> = backups.iter().map(RegionId::as_str).collect();
                format!("primary, backups {}", backups.join(", "))
            }
            Some(Role::Backup) | None => "backup".to_owned(),
        };
        let plan = self
            .plan()
            .map_or("no plan".to_owned(), |plan| format!("plan {}", plan.number()));
        let seconds = self.at.as_secs_f64();
        let mut lines = vec![format!("{} ({role}) at {seconds:.1} s, {plan}", self.region)];
        let mut last = "";
        for (name, text) in self.facts() {
            let shown = if name == last { "" } else { name };
            lines.extend(wrap(&format!("{shown:<INDENT$}"), &text));
            last = name;
        }
        // The screen has room for both: neither facts nor decisions fill it.
        lines.truncate(LINES_MAX - 10);
        lines.push(String::new());
        let decisions: Vec<Vec<String>> = self.told().into_iter().map(tell).collect();
        let mut room = LINES_MAX - lines.len() - 1;
        let mut first = decisions.len();
        while let Some(decision) = first.checked_sub(1).and_then(|before| decisions.get(before)) {
            if decision.len() > room {
                break;
            }
            room -= decision.len();
            first -= 1;
        }
        lines.push(match first {
            0 => "what was decided about it".to_owned(),
            earlier => format!("what was decided about it ({earlier} earlier not shown)"),
        });
        lines.extend(decisions.into_iter().skip(first).flatten());
        for line in lines {
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

impl Why {
    /// The decisions; of waits that count up only the last.
    fn told(&self) -> Vec<&FirstReason> {
        let mut told: Vec<&FirstReason> = Vec::new();
        for said in &self.decisions {
            let goes_on = |before: &&mut &FirstReason| {
                said.kind == Kind::Waiting && (before.kind, before.reason.code) == (said.kind, said.reason.code)
            };
            match told.last_mut().filter(goes_on) {
                Some(before) => *before = said,
                None => told.push(said),
            }
        }
        told
    }
}

fn tell(said: &FirstReason) -> Vec<String> {
    let FirstReason { at, kind, reason } = said;
    let seconds = format!("{:.1}s", at.as_secs_f64());
    let head = format!("{seconds:>8}  {kind:<8} {:<21}", reason.code);
    let mut lines = wrap(
        &format!("{head:<INDENT_DECISION$} "),
        &format!("{}{}", reason.text, until(reason)),
    );
    // The evidence of the move; later evidence belongs to another time.
    if let (Kind::Changed, ReasonCode::Failover, Some(seen)) = (kind, reason.code, reason.evidence.first()) {
        lines.extend(wrap(&" ".repeat(INDENT_DECISION + 1), seen));
    }
    lines
}

/// A text in lines of at most [`COLUMNS_MAX`], the first after `head`, the others below it.
fn wrap(head: &str, text: &str) -> Vec<String> {
    let indent = head.chars().count();
    let mut lines = vec![head.to_owned()];
    // A percent sign stays with its number.
    let text = text.replace(" %", "\u{a0}%");
    for word in text.split([' ', '\n']).filter(|word| !word.is_empty()) {
        let line = lines.last().map_or(0, |line| line.chars().count());
        if line > indent && line + 1 + word.chars().count() > COLUMNS_MAX {
            lines.push(" ".repeat(indent));
        }
        if let Some(line) = lines.last_mut() {
            if line.chars().count() > indent {
                line.push(' ');
            }
            // A word fits in a line, but a name might not.
            let room = COLUMNS_MAX - line.chars().count();
            line.extend(word.chars().take(room).map(|it| if it == '\u{a0}' { ' ' } else { it }));
        }
    }
    lines
}
