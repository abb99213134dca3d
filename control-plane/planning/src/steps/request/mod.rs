//! The request of a decision: carried out at once, kept waiting for a second person, or refused by a rule.

mod approval;
mod drain;
mod failover;
mod restore;
mod rollout;
mod standing;
mod switchover;

use std::{collections::BTreeMap, mem::take};

use topology::{Intent, IntentKind, Reason, ReasonCode, RegionId, RegionState, Share, policy::TwoPerson};

use crate::{
    Action, PLANNER, Phase, Report,
    actions::{RECOVERED, STANDING_MAX},
    draft::Draft,
    facts::Facts,
    gate::Gate,
    shares::{total, total_at},
    texts::{changed, part, refused, waiting},
    wake::approval_end,
};

/// The effects of an order that its approver was shown.
#[derive(Default)]
struct Shown {
    /// As in [`Action::shown`].
    effects: BTreeMap<String, String>,
    /// As in [`Action::shares`].
    shares: BTreeMap<String, u8>,
}

/// A share may be this many points greater than its approver was shown: sessions come and go meanwhile.
const SHARE_GROWS_MAX: u8 = 10;

/// An order that the draft carries out.
struct Carried {
    phase: Phase,
    /// Why it needs a second person, by the policy's rule and its subject; empty when one person is enough.
    asks: BTreeMap<String, String>,
}

/// The answer to an order.
enum Answer {
    CarriedOut(Phase),
    /// It waits for a second person, who is shown its effects.
    NeedsApproval(Reason, Shown),
    Refused(Reason),
}

impl From<Phase> for Carried {
    fn from(phase: Phase) -> Self {
        let asks = BTreeMap::new();
        Self { phase, asks }
    }
}

impl Carried {
    /// The same, if a second person agrees, where the policy wants one for that.
    fn asking(mut self, facts: &Facts<'_>, of: TwoPerson, about: &str, because: String) -> Self {
        if facts.needs_two(of) {
            let key = format!("{of} {about}").trim_end().to_owned();
            self.asks.insert(key, because);
        }
        self
    }
}

/// Carries out the request of this decision, unless its token was used before.
pub(crate) fn carry_out_request(facts: &Facts<'_>, draft: &mut Draft, report: &mut Report) {
    let Some(intent) = facts.input.request.clone() else {
        return;
    };
    if draft.memory.actions.contains_key(&intent.id) {
        return;
    }
    if person(&intent.author) == PLANNER {
        let text = refused::author_is_planner(&intent.author);
        return report.deny(facts.reason_for(&intent.kind, ReasonCode::BadRequest, text));
    }
    if let Some(refusal) = waiting_duplicate(facts, draft, &intent.kind) {
        return report.deny(refusal);
    }
    let may_stay = if intent.kind.stands() {
        check_room_for_one_more(facts, draft, &intent.kind)
    } else {
        Ok(())
    };
    if let Err(refusal) = may_stay {
        return report.deny(refusal);
    }
    match carry_out(facts, draft, report, &intent, None) {
        Answer::CarriedOut(phase) => record(facts, draft, report, intent, phase, None, Shown::default()),
        Answer::NeedsApproval(reason, shown) => {
            if let Err(refusal) = check_room_for_one_more(facts, draft, &intent.kind) {
                return report.deny(refusal);
            }
            report.wait(reason.until(approval_end(&intent)));
            record(facts, draft, report, intent, Phase::AwaitingApproval, None, shown);
        }
        Answer::Refused(refusal) => report.deny(refusal),
    }
}

/// Two orders for the same, each with a person to find for it, would be two decisions.
fn waiting_duplicate(facts: &Facts<'_>, draft: &Draft, kind: &IntentKind) -> Option<Reason> {
    let mut waiting = draft.memory.actions.values();
    let waiting = waiting.find(|it| it.phase == Phase::AwaitingApproval && it.intent.kind == *kind)?;
    let Intent {
        id, author, created_at, ..
    } = &waiting.intent;
    let text = refused::asked_already(author, *created_at, id);
    Some(facts.reason_for(kind, ReasonCode::AskedAlready, text))
}

/// A limit to the orders that stand or wait, because each is remembered until its time is over. The limit never keeps
/// anyone from moving a region, or from ending what stands.
fn check_room_for_one_more(facts: &Facts<'_>, draft: &Draft, kind: &IntentKind) -> Result<(), Reason> {
    let stays = |action: &&Action| match action.phase {
        Phase::AwaitingApproval => true,
        Phase::Running => action.intent.kind.stands(),
        _ => false,
    };
    if draft.memory.actions.values().filter(stays).count() < STANDING_MAX {
        return Ok(());
    }
    Err(facts.reason_for(kind, ReasonCode::BadRequest, refused::too_many_orders()))
}

/// Remembers the order as an action.
fn record(
    facts: &Facts<'_>,
    draft: &mut Draft,
    report: &Report,
    intent: Intent,
    phase: Phase,
    approved_by: Option<String>,
    shown: Shown,
) {
    if phase == Phase::Running {
        replace_recovered(facts, draft, &intent);
    }
    let said = report.changed.iter().chain(&report.waiting).last();
    let text = match (&intent.kind, phase) {
        // The step that drains comes later in the decision, and gives no reason where the plan has it drained already.
        (IntentKind::DrainEdge { edge }, Phase::Running) => changed::edge_stays_out(edge, intent.expires_at),
        (IntentKind::DrainStack { stack }, Phase::Running) => changed::stack_stays_out(*stack, intent.expires_at),
        _ => said.map(|reason| reason.text.clone()).unwrap_or_default(),
    };
    let action = Action {
        text,
        intent,
        phase,
        owner: facts.input.epoch,
        changed_at: facts.now,
        approved_by,
        spreads: None,
        shown: shown.effects,
        shares: shown.shares,
    };
    draft.memory.actions.insert(action.intent.id.clone(), action);
}

/// A new order ends the same order of a recovered plan: it names its own end, which counts from now on.
fn replace_recovered(facts: &Facts<'_>, draft: &mut Draft, intent: &Intent) {
    let same = draft.memory.running(|kind| *kind == intent.kind);
    let recovered = same.filter(|action| action.intent.author == RECOVERED && action.intent.id != intent.id);
    let ids: Vec<String> = recovered.map(|action| action.intent.id.clone()).collect();
    for id in ids {
        draft.end_action(facts, &id, Phase::Done, &changed::ordered_anew(&intent.author));
    }
}

/// All or nothing: an order that is refused half-way leaves no trace but the refusal. The need for a second person is
/// found last, so that no one is asked to approve an order that is refused anyway; and again when a person approves, if
/// the order would by then do more than that person was shown.
fn carry_out(
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

/// Why an order waits for a second person, and the effects that this person is shown; none when it needs no second
/// person, or when `approved` has all of them.
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
    let text = match approved {
        None => waiting::needs_approval(intent, asks.values().map(String::as_str), &moves),
        Some(_) => waiting::needs_approval_again(intent, &new, &moves),
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
        IntentKind::Approve { action } => part::approval_of(action),
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
        IntentKind::Approve { action } => {
            approval::approve(facts, draft, report, intent, action, why).map(Carried::from)
        }
        IntentKind::Abort { action } => {
            approval::abort(facts, gate, draft, report, intent, action, why).map(Carried::from)
        }
    }
}

/// Leaving a second region is for two people to decide.
fn ask_for_second_evacuation(carried: Carried, facts: &Facts<'_>, draft: &Draft, region: &RegionId) -> Carried {
    let others = draft.others_away(region);
    if others.is_empty() {
        return carried;
    }
    let because = part::away_already(&others);
    carried.asking(facts, TwoPerson::SecondEvacuation, &others.join(" "), because)
}

/// The state of a region that an order names; an error when it is no primary.
fn state_of_primary(
    facts: &Facts<'_>,
    draft: &Draft,
    kind: &IntentKind,
    region: &RegionId,
) -> Result<RegionState, Reason> {
    let is_primary = facts.input.topology.primaries().any(|it| it.id == *region);
    let text = match draft.state(region) {
        Some(state) if is_primary => return Ok(state),
        Some(_) => refused::is_a_backup(region),
        None => refused::no_such_region(region),
    };
    Err(facts.reason_for(kind, ReasonCode::BadRequest, text))
}

/// The order asks for what is so already.
fn already(facts: &Facts<'_>, report: &mut Report, kind: &IntentKind, text: impl Into<String>) -> Phase {
    report.change(facts.reason_for(kind, ReasonCode::AlreadySo, text));
    Phase::Done
}

/// A name in one spelling: an extra space or capital does not make a second person.
fn person(name: &str) -> String {
    let words: Vec<String> = name.split_whitespace().map(str::to_lowercase).collect();
    words.join(" ")
}
