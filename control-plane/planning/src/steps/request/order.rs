//! One order, carried out wholly or not at all.

use std::{collections::BTreeMap, mem::take};

use topology::{Intent, IntentKind, Reason, ReasonCode, RegionId, Share, policy::TwoPerson};

use super::{abort, carried::Carried, drain, failover, record::Shown, restore, rollout, standing, switchover};
use crate::{
    Phase, Report,
    actions::shown_digest,
    draft::Draft,
    facts::Facts,
    gate::Gate,
    shares::{total, total_at},
    texts::{changed, part, refused, waiting},
};

/// A share may be this many points greater than its approver was shown: sessions come and go meanwhile.
const SHARE_GROWS_MAX: u8 = 10;

/// The answer to an order.
pub(super) enum Answer {
    CarriedOut(Phase),
    /// It waits for a second person, who is shown its effects.
    NeedsApproval(Reason, Shown),
    Refused(Reason),
}

/// All or nothing: an order that is refused half-way leaves no trace but the refusal. The need for a second person is
/// found last, so that no one is asked to approve an order that is refused anyway; and again when a person approves, if
/// the order would by then do more than that person was shown.
pub(super) fn carry_out(
    facts: &Facts<'_>,
    draft: &mut Draft,
    report: &mut Report,
    intent: &Intent,
    approved: Option<&Shown>,
) -> Answer {
    let before = draft.clone();
    let changes_before = report.changed.len();
    let gate = Gate::order(matches!(intent.kind, IntentKind::Failover { force: true, .. }));
    let carried = carry_out_kind(facts, gate, draft, report, intent);
    let passed = take(&mut draft.passed_by_force);
    let answer = match carried {
        Err(refusal) => Answer::Refused(refusal),
        Ok(Carried { phase, mut asks }) => {
            if facts.needs_two(TwoPerson::Override) {
                asks.extend(asks_for_force(passed));
            }
            match needs_approval(facts, draft, &before, intent, &asks, approved) {
                None => Answer::CarriedOut(phase),
                Some((reason, shown)) => Answer::NeedsApproval(reason, shown),
            }
        }
    };
    if !matches!(answer, Answer::CarriedOut(_)) {
        *draft = before;
        report.changed.truncate(changes_before);
    }
    answer
}

/// The rules that the order passed by force; each asks for a second person like an override.
fn asks_for_force(passed: BTreeMap<ReasonCode, String>) -> impl Iterator<Item = (String, String)> {
    passed.into_iter().map(|(rule, text)| {
        (
            format!("{} {rule}", TwoPerson::Override),
            part::passes_by_force(rule, &text),
        )
    })
}

/// The reason for which an order waits for a second person, and the effects that this person is shown; none when it needs no
/// second person, or when `approved` has all of them.
fn needs_approval(
    facts: &Facts<'_>,
    draft: &Draft,
    before: &Draft,
    intent: &Intent,
    asks: &BTreeMap<String, String>,
    approved: Option<&Shown>,
) -> Option<(Reason, Shown)> {
    let mut shown = Shown {
        effects: asks.clone(),
        shares: BTreeMap::new(),
    };
    if !asks.is_empty() {
        shown.shares = effects(draft, &before.next.routes);
        let effects = shown.shares.keys().map(|effect| (effect.clone(), effect.clone()));
        shown.effects.extend(effects);
    }
    let grew = |key: &str, agreed: &Shown| {
        let (was, is) = (
            agreed.shares.get(key).copied().unwrap_or_default(),
            *shown.shares.get(key)?,
        );
        (is > was.saturating_add(SHARE_GROWS_MAX)).then(|| part::grew(key, is, was))
    };
    let news = |(key, text): (&String, &String)| match approved {
        Some(agreed) if agreed.effects.contains_key(key) => grew(key, agreed),
        _ => Some(text.clone()),
    };
    let new: Vec<String> = shown.effects.iter().filter_map(news).collect();
    if new.is_empty() {
        return None;
    }
    let moves = moves(facts, draft, &before.next.routes);
    let digest = shown_digest(intent, &shown.effects, &shown.shares);
    let text = match approved {
        None => waiting::needs_approval(intent, asks.values().map(String::as_str), &digest, &moves),
        Some(_) => waiting::needs_approval_again(intent, &new, &digest, &moves),
    };
    Some((facts.reason_for(&intent.kind, ReasonCode::NeedsApproval, text), shown))
}

/// Sessions that go to a region where fewer of them were in the routes `before`, one effect for each primary and
/// target; and the percentage of the primary's sessions that is there then.
fn effects(draft: &Draft, before: &BTreeMap<RegionId, Vec<Share>>) -> BTreeMap<String, u8> {
    let mut effects = BTreeMap::new();
    for (primary, shares) in &draft.next.routes {
        let were = before.get(primary).map(Vec::as_slice).unwrap_or_default();
        for target in shares.iter().map(|share| &share.region) {
            let percent = total_at(shares, target);
            if percent > total_at(were, target) {
                effects.insert(part::sessions_go(primary, target), percent);
            }
        }
        debug_assert!(total(shares) == 100, "routes are whole");
    }
    effects
}

/// The same in one line for the approver: "us-east (up to 1,200 sessions) to us-west, then eu-west".
fn moves(facts: &Facts<'_>, draft: &Draft, before: &BTreeMap<RegionId, Vec<Share>>) -> String {
    let mut moves = Vec::new();
    for (primary, shares) in &draft.next.routes {
        let were = before.get(primary).map(Vec::as_slice).unwrap_or_default();
        let more = |target: &RegionId| total_at(shares, target).saturating_sub(total_at(were, target));
        let targets: Vec<&RegionId> = shares
            .iter()
            .map(|share| &share.region)
            .filter(|it| more(it) > 0)
            .collect();
        if targets.is_empty() {
            continue;
        }
        let percent: u64 = targets.iter().map(|target| u64::from(more(target))).sum();
        let peak = facts
            .input
            .topology
            .regions
            .get(primary)
            .map_or(0, |it| it.sessions_max);
        let sessions = (u64::from(peak) * percent).div_ceil(100);
        moves.push(part::moves(primary, sessions, targets));
    }
    moves.join("; ")
}

/// Carries out the order by its kind.
fn carry_out_kind(
    facts: &Facts<'_>,
    gate: Gate,
    draft: &mut Draft,
    report: &mut Report,
    intent: &Intent,
) -> Result<Carried, Reason> {
    let what = match &intent.kind {
        // Reasons name their region, and automation is one.
        IntentKind::Freeze | IntentKind::Unfreeze => intent.kind.as_str().to_owned(),
        kind if kind.region().is_some() => kind.as_str().to_owned(),
        kind => part::order_of(kind.as_str(), &kind.subject()),
    };
    let why = &changed::order(&what, &intent.author, &intent.reason);
    match &intent.kind {
        IntentKind::Failover { region, .. } => failover::fail_over(facts, gate, draft, report, intent, region, why),
        IntentKind::Switchover { region, .. } => {
            switchover::switch_over(facts, gate, draft, report, intent, region, why)
        }
        IntentKind::Restore { region, .. } => restore::restore(facts, gate, draft, report, intent, region, why),
        IntentKind::DrainEdge { edge } => drain::drain_edge(facts, draft, &intent.kind, edge).map(Carried::from),
        IntentKind::DrainStack { stack } => drain::drain_stack(facts, draft, &intent.kind, stack).map(Carried::from),
        IntentKind::Rollout { version } => {
            rollout::begin(facts, draft, report, intent, version, why).map(Carried::from)
        }
        IntentKind::Freeze => Ok(standing::freeze(facts, report, intent, why).into()),
        IntentKind::Unfreeze => Ok(standing::unfreeze(facts, draft, report, intent, why).into()),
        IntentKind::Override { rule } => Ok(standing::override_rule(facts, report, intent, *rule, why)),
        IntentKind::Ack { region } => standing::ack(facts, draft, report, intent, region, why).map(Carried::from),
        IntentKind::Abort { action } => {
            abort::abort(facts, gate, draft, report, intent, action, why).map(Carried::from)
        }
        // `approval` carries out an approval, by calling `carry_out` for the other order. An approval itself never waits for one.
        IntentKind::Approve { action, .. } => {
            let text = refused::nothing_to_approve(action);
            Err(facts.reason_for(&intent.kind, ReasonCode::NoSuchAction, text))
        }
    }
}
