//! The story of `meridian demo`: real calls, a region dies under them, its sessions move, and it comes back.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use api::{
    operator,
    v1::{Decision, Outcome, StatusReply},
};
use probe::CallOptions;
use tokio::{sync::watch, task::JoinSet};
use topology::Moment;
use world::World;

use crate::{
    Narrator, Recording, Report, Resolver,
    calls::{place, stages},
    fleet::{Fleet, Knock, Knocker, Moved, PATIENCE, TurnRecord, is_elsewhere, share_elsewhere},
    observe::{Observer, published},
    recordings,
    report::{CallLine, Check, Generation, Mark, REPORT_SCHEMA, percentile},
};

/// How the demo is run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where reports and replies go. Made when absent.
    pub report_dir: PathBuf,
    /// The recorded calls.
    pub calls_dir: PathBuf,
    /// Callers who talk all the while.
    pub sessions: usize,
    /// How the world is started.
    pub world: world::Settings,
}

/// The target of the product: kill to all new sessions elsewhere by plan.
const FAILOVER_MAX: Duration = Duration::from_secs(30);
/// Share of new sessions that must be elsewhere once the plan is published.
const ELSEWHERE_MIN: f64 = 0.99;
/// Share of the recorded calls that must be understood. The recogniser is small and some recordings are hard on purpose.
const UNDERSTOOD_MIN: f64 = 0.8;
/// Recorded calls at once: two cores also run everything else.
const CALLS_AT_ONCE: usize = 3;
/// Longest wait for every caller's first answer.
const FIRST_ANSWERS_MAX: Duration = Duration::from_secs(30);
/// How long new sessions are watched after the plan was published, before the region comes back.
const WATCH_ELSEWHERE: Duration = Duration::from_secs(3);
/// Three good ticks after the restart, and room.
const HEALTHY_AGAIN_MAX: Duration = Duration::from_secs(60);
/// Five steps, each judged on closed ticks.
const RESTORE_MAX: Duration = Duration::from_secs(90);

/// The policy of the demo: the product's, except that a restore step is held for seconds and not for a minute.
pub fn policy() -> String {
    const HOLD: &str = "step_hold = \"1m\"";
    debug_assert!(world::settings::DEFAULT_POLICY.contains(HOLD));
    world::settings::DEFAULT_POLICY.replace(HOLD, "step_hold = \"2s\"")
}

/// Tells the whole story. The report says whether it held; an error means that it could not be told to its end.
pub async fn demo(settings: Settings, narrator: Arc<Narrator>) -> anyhow::Result<Report> {
    let began = Instant::now();
    let recordings = Arc::new(recordings::load(&settings.calls_dir)?);
    let replies = settings.report_dir.join("replies");
    std::fs::create_dir_all(&replies).with_context(|| format!("cannot make {}", replies.display()))?;

    narrator.step(
        1,
        "Six regions, two edges, a name server and a control plane start on this machine",
    );
    let mut world_settings = settings.world.clone();
    world_settings.policy = policy();
    world_settings.progress = {
        let narrator = Arc::clone(&narrator);
        Arc::new(move |progress| {
            if !matches!(progress, world::Progress::Started(_) | world::Progress::Stopping(_)) {
                narrator.say(progress.to_string());
            }
        })
    };
    let world = World::start(world_settings).await?;
    let deaths = watch_deaths(&world, &narrator);
    let started_s = began.elapsed().as_secs_f64();
    let status = world.healthy().await?;
    let healthy_s = began.elapsed().as_secs_f64();
    narrator.say(format!(
        "every region is healthy, plan {} is acknowledged by {} nodes",
        generation(&status),
        status.nodes.len()
    ));
    let record = world.record().await;
    let resolver = Resolver::new(record.dns, &record.zone, record.edge_port)?;
    let options = CallOptions {
        host: Some(record.zone.clone()),
        ..CallOptions::default()
    };

    narrator.step(
        2,
        "Recorded callers resolve the service name, call an edge, and are answered by a region",
    );
    say_dns(&narrator, &resolver, &record.zone).await?;
    let calls = place_recorded_calls(&recordings, &resolver, &options, &replies, &narrator).await?;

    let sessions = settings.sessions;
    narrator.step(
        3,
        &format!("{sessions} callers talk all the while; a region dies under them"),
    );
    let observer = Observer::start(world.operator());
    let fleet = {
        let narrator = Arc::clone(&narrator);
        let told: Arc<dyn Fn(&TurnRecord) + Send + Sync> = Arc::new(move |turn| tell_interruption(&narrator, turn));
        Fleet::start(sessions, &recordings, &resolver, &options, &told)
    };
    let region = region_of_most(&fleet, &record.edges, &narrator).await?;
    let edges = edge_addresses(&world);
    let knocker = Knocker::start(edges, &options);
    wait_until_mid_call(&fleet, &region).await?;
    let killed_at = world.kill(&region).await?;
    narrator.killed_at(killed_at);
    narrator.say_at(
        killed_at,
        format!("kill -9 {region}, in the middle of calls (times are now since the kill)"),
    );

    narrator.step(
        4,
        "The loss is seen, judged, decided and published; new calls go elsewhere",
    );
    let waiting = tell_waiting(&observer, &region, &narrator);
    let since_kill = |at: Moment| at.since(killed_at).as_secs_f64();
    let patience = FAILOVER_MAX + Duration::from_secs(15);
    let status = observer
        .until(&format!("the evacuation of {region}"), patience, |status| {
            state_of(status, &region) == "evacuated"
        })
        .await?;
    let evacuation = generation(&status);
    let status = observer
        .until(
            &format!("the acknowledgement of plan {evacuation}"),
            patience,
            |status| published(status, evacuation).is_some(),
        )
        .await?;
    let decision = evacuation_decision(&world, &region, killed_at).await?;
    let decided_at = Moment(decision.at_ms);
    let published_at = published(&status, evacuation).unwrap_or(decided_at).max(decided_at);
    // The verdict is part of the decision: a status that was read late cannot make it later.
    let detected_at = observer
        .first_health(&region, "down", killed_at)
        .map_or(decided_at, |seen| seen.min(decided_at));
    tell_decision(&narrator, &region, &decision, detected_at, published_at, &status);
    say_dns(&narrator, &resolver, &record.zone).await?;
    let elsewhere = call_elsewhere(&recordings, &resolver, &options, &region, &narrator).await?;
    sleep_until(published_at + WATCH_ELSEWHERE).await;

    narrator.step(
        5,
        &format!("{region} comes back: first its process, then its sessions, step by step on command"),
    );
    let watched_until = daemon::clock::now();
    let took = world.restart(&region).await?;
    let restarted_at = daemon::clock::now();
    narrator.say(format!(
        "{region} is up again after {:.1} s; it gets no sessions by itself",
        took.as_secs_f64()
    ));
    observer
        .until(&format!("the recovery of {region}"), HEALTHY_AGAIN_MAX, |status| {
            health_of(status, &region) == "healthy"
        })
        .await?;
    narrator.say(format!(
        "{region} is healthy again; an operator gives its sessions back"
    ));
    let restore_began = Instant::now();
    let commanded_at = daemon::clock::now();
    restore(&world, &region, &narrator).await?;
    let mut told_state = "evacuated".to_owned();
    observer
        .until(&format!("the restore of {region}"), RESTORE_MAX, |status| {
            let state = state_of(status, &region);
            if state != told_state {
                narrator.say(format!("{region} is {state} (plan {})", generation(status)));
                told_state = state.to_owned();
            }
            state == "serving"
        })
        .await?;
    waiting.abort();
    let restore_s = restore_began.elapsed().as_secs_f64();
    let restored_at = daemon::clock::now();
    let back = call_back_home(&recordings, &resolver, &options, &region, &narrator).await?;

    let turns = fleet.finish().await;
    let knocks = knocker.finish().await;
    let history = world.operator().history(HISTORY_MAX).await?;
    drop(observer);
    let died = deaths.seen.borrow().clone();
    world.shutdown().await;

    let mut generations: Vec<Generation> = history.iter().map(|made| Generation::new(made, killed_at)).collect();
    // The history also has what was refused; that made no plan.
    generations.retain(|generation| generation.generation > 0);
    generations.sort_by_key(|generation| generation.generation);
    let reconnected = |turn: &&TurnRecord| !turn.interruptions.is_empty();
    let moved = |turn: &&TurnRecord| !turn.moves.is_empty();
    let moved_in_turn = |turn: &&TurnRecord| turn.moves.iter().any(|moved| moved.at_ms >= turn.started_at_ms);
    let cut_in_turn = |turn: &&TurnRecord| turn.interruptions.iter().any(|cut| cut.at_ms >= turn.started_at_ms);
    let mut first_audio: Vec<f64> = turns.iter().filter_map(|turn| turn.first_audio_ms).collect();
    let after_kill: Vec<&Knock> = (knocks.iter())
        .filter(|knock| (killed_at..watched_until).contains(&knock.at_ms))
        .collect();
    let last_not_elsewhere = after_kill.iter().rev().find(|knock| !is_elsewhere(knock, &region));
    let mut report = Report {
        schema: REPORT_SCHEMA,
        held: false,
        began_at_ms: narrator.began(),
        took_s: 0.0,
        started_s,
        healthy_s,
        region: region.clone(),
        sessions,
        sessions_interrupted: count_sessions(turns.iter().filter(|it| moved(it) || reconnected(it))),
        sessions_interrupted_in_turn: count_sessions(turns.iter().filter(|it| moved_in_turn(it) || cut_in_turn(it))),
        sessions_moved: count_sessions(turns.iter().filter(moved)),
        sessions_reconnected: count_sessions(turns.iter().filter(reconnected)),
        turns_completed: turns.iter().filter(|turn| turn.completed()).count(),
        turns_failed: turns.iter().filter(|turn| !turn.completed()).count(),
        turns_understood: turns.iter().filter(|turn| turn.understood).count(),
        turn_p50_ms: percentile(&mut first_audio, 0.5),
        turn_p99_ms: percentile(&mut first_audio, 0.99),
        reconnect_max_s: longest_reconnect(&turns),
        new_sessions_elsewhere_s: last_not_elsewhere
            .map_or(0.0, |knock| since_kill(knock.at_ms) + knock.took_ms / 1000.0),
        detect_s: since_kill(detected_at),
        decide_s: since_kill(decided_at),
        publish_s: since_kill(published_at),
        failover_s: since_kill(published_at),
        new_sessions_elsewhere_share: share_elsewhere(&knocks, &region, published_at, watched_until)
            .unwrap_or_default(),
        new_sessions: after_kill.len(),
        new_sessions_failed: after_kill.iter().filter(|knock| !knock.failure.is_empty()).count(),
        restore_s,
        generations,
        calls,
        checks: Vec::new(),
        marks: vec![
            mark(killed_at, format!("{region} is killed")),
            mark(detected_at, "judged down".to_owned()),
            mark(decided_at, format!("plan {evacuation} decided")),
            mark(published_at, "plan on every node".to_owned()),
            mark(restarted_at, "process up again".to_owned()),
            mark(commanded_at, "restore commanded".to_owned()),
            mark(restored_at, "all sessions back".to_owned()),
        ],
        turns,
        story: String::new(),
    };
    report.marks.sort_by_key(|mark| mark.at_ms);
    report.checks = checks(&report, elsewhere, back, &died);
    report.held = report.checks.iter().all(|check| check.held);
    report.took_s = began.elapsed().as_secs_f64();
    report.story = narrator.story();
    report.write(&settings.report_dir)?;
    narrator.show(&report.table());
    narrator.show(&format!(
        "Report, replies and picture: {} ({:.0} s)",
        settings.report_dir.display(),
        report.took_s
    ));
    Ok(report)
}

/// Decisions asked for at the end: a demo makes about ten.
const HISTORY_MAX: u32 = 100;

fn checks(report: &Report, elsewhere: bool, back: bool, died: &[String]) -> Vec<Check> {
    let understood = report.calls.iter().filter(|call| call.understood).count();
    let check = |held: bool, expected: &str, found: String| Check {
        expected: expected.to_owned(),
        found,
        held,
    };
    vec![
        check(
            understood as f64 >= UNDERSTOOD_MIN * report.calls.len() as f64,
            "the recorded calls are understood (80 % at least)",
            format!("{understood} of {}", report.calls.len()),
        ),
        check(
            report.sessions_interrupted_in_turn > 0 && report.sessions_moved > 0,
            "the kill meets callers in the middle of a turn, and they go on elsewhere",
            format!(
                "{} of {} sessions interrupted, {} in a turn; {} moved",
                report.sessions_interrupted,
                report.sessions,
                report.sessions_interrupted_in_turn,
                report.sessions_moved
            ),
        ),
        check(
            report.sessions_reconnected == 0,
            "no caller loses the connection",
            format!("{} of {} did", report.sessions_reconnected, report.sessions),
        ),
        check(
            report.turns_failed == 0 && report.turns_completed > 0,
            "every turn is answered in the end",
            format!("{} answered, {} failed", report.turns_completed, report.turns_failed),
        ),
        check(
            report.failover_s < FAILOVER_MAX.as_secs_f64(),
            "failover takes less than 30 s",
            format!("{:.1} s", report.failover_s),
        ),
        check(
            report.new_sessions_elsewhere_share >= ELSEWHERE_MIN,
            "99 % of new sessions are elsewhere once the plan is published",
            format!("{:.1} %", report.new_sessions_elsewhere_share * 100.0),
        ),
        check(
            elsewhere,
            "new calls are answered by other regions",
            if elsewhere { "all of them" } else { "not all of them" }.to_owned(),
        ),
        check(
            back,
            "after the restore the region answers again",
            if back { "it does" } else { "it does not" }.to_owned(),
        ),
        check(
            died.is_empty(),
            "no process dies but the one that is killed",
            if died.is_empty() {
                "none did".to_owned()
            } else {
                died.join(", ")
            },
        ),
    ]
}

async fn say_dns(narrator: &Narrator, resolver: &Resolver, zone: &str) -> anyhow::Result<()> {
    let answer = resolver.answer().await?;
    let addresses: Vec<String> = answer.addresses.iter().map(ToString::to_string).collect();
    let serial = match resolver.serial().await {
        Ok(serial) => format!(", serial {serial}"),
        Err(_) => String::new(),
    };
    narrator.say(format!(
        "dns: {zone} {} IN A {} ({:.1} ms{serial})",
        answer.ttl_s,
        addresses.join(" "),
        answer.took.as_secs_f64() * 1000.0
    ));
    Ok(())
}

async fn place_recorded_calls(
    recordings: &Arc<Vec<Recording>>,
    resolver: &Resolver,
    options: &CallOptions,
    replies: &Path,
    narrator: &Arc<Narrator>,
) -> anyhow::Result<Vec<CallLine>> {
    let mut lines: Vec<Option<CallLine>> = vec![None; recordings.len()];
    let mut next = 0;
    let mut placed = JoinSet::new();
    loop {
        while next < recordings.len() && placed.len() < CALLS_AT_ONCE {
            let (index, recordings) = (next, Arc::clone(recordings));
            let (resolver, options, narrator) = (resolver.clone(), options.clone(), Arc::clone(narrator));
            let reply = replies.join(&recordings[index].file);
            placed.spawn(async move {
                let line = place_recorded_call(&recordings[index], index, &resolver, &options, &reply, &narrator).await;
                (index, line)
            });
            next += 1;
        }
        let Some(joined) = placed.join_next().await else { break };
        let (index, line) = joined.context("a caller panicked")?;
        lines[index] = Some(line?);
    }
    Ok(lines.into_iter().flatten().collect())
}

async fn place_recorded_call(
    recording: &Recording,
    index: usize,
    resolver: &Resolver,
    options: &CallOptions,
    reply: &Path,
    narrator: &Narrator,
) -> anyhow::Result<CallLine> {
    let mut line = CallLine {
        file: recording.file.clone(),
        words: recording.words.clone(),
        transcript: String::new(),
        intent: String::new(),
        understood: false,
        reply: String::new(),
        region: String::new(),
        first_audio_ms: None,
        asr_ms: None,
        nlu_ms: None,
        skill_ms: None,
        tts_ms: None,
        failure: String::new(),
    };
    match place(resolver, index, options, PATIENCE, &recording.utterance).await {
        Ok(placed) => {
            let turn = placed.turn;
            recordings::write_reply(reply, &turn.reply_audio)?;
            line.understood = turn.intent == recording.intent;
            let doubt = if line.understood {
                String::new()
            } else {
                format!(" (expected {})", recording.intent)
            };
            narrator.say(format!(
                "{}: \"{}\" → {}{doubt} → \"{}\"\n{} · {}",
                recording.file,
                turn.transcript,
                turn.intent,
                turn.reply_text,
                turn.region.as_deref().unwrap_or("an unnamed region"),
                stages(&turn)
            ));
            line.first_audio_ms = turn.first_audio.map(|first| first.as_secs_f64() * 1000.0);
            line.asr_ms = turn.timings.asr_ms;
            line.nlu_ms = turn.timings.nlu_ms;
            line.skill_ms = turn.timings.skill_ms;
            line.tts_ms = turn.timings.tts_ms;
            line.region = turn.region.unwrap_or_default();
            line.transcript = turn.transcript;
            line.intent = turn.intent;
            line.reply = turn.reply_text;
        }
        Err(error) => {
            narrator.say(format!("{}: failed: {error}", recording.file));
            line.failure = error.to_string();
        }
    }
    Ok(line)
}

/// Waits until every caller was answered, and returns the region that answered most.
async fn region_of_most(
    fleet: &Fleet,
    edges: &BTreeMap<String, String>,
    narrator: &Narrator,
) -> anyhow::Result<String> {
    let began = Instant::now();
    let now = loop {
        let now = fleet.now();
        if now.iter().all(|caller| caller.answered > 0) {
            break now;
        }
        if began.elapsed() > FIRST_ANSWERS_MAX {
            let unanswered = now.iter().filter(|caller| caller.answered == 0).count();
            bail!(
                "{unanswered} of {} callers were not answered within {:.0} s",
                now.len(),
                FIRST_ANSWERS_MAX.as_secs_f64()
            );
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    };
    let mut served: BTreeMap<&str, usize> = BTreeMap::new();
    for caller in &now {
        *served.entry(caller.region.as_deref().unwrap_or_default()).or_default() += 1;
    }
    let told: Vec<String> = served
        .iter()
        .map(|(region, count)| format!("{count} by {region}"))
        .collect();
    narrator.say(format!(
        "every caller was answered: {} (through {} edges)",
        told.join(", "),
        edges.len()
    ));
    let most = served.iter().max_by_key(|(_, count)| **count);
    match most {
        Some((region, _)) if !region.is_empty() => Ok((*region).to_owned()),
        _ => bail!("the edges do not say which region answers"),
    }
}

/// How often shared state is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Callers talk for seconds and pause for one: the moment comes within a few turns.
const MID_CALL_MAX: Duration = Duration::from_secs(20);

/// Waits until at least half of a region's callers are in the middle of a turn.
async fn wait_until_mid_call(fleet: &Fleet, region: &str) -> anyhow::Result<()> {
    let began = Instant::now();
    while began.elapsed() < MID_CALL_MAX {
        let now = fleet.now();
        let here = now.iter().filter(|caller| caller.region.as_deref() == Some(region));
        let (all, talking) = here.fold((0, 0), |(all, talking), caller| {
            (all + 1, talking + usize::from(caller.talking))
        });
        if all > 0 && talking * 2 >= all {
            return Ok(());
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    bail!("no moment came at which half of the callers of {region} were talking")
}

fn tell_interruption(narrator: &Narrator, turn: &TurnRecord) {
    for moved in &turn.moves {
        let when = if moved.at_ms < turn.started_at_ms {
            "between two turns".to_owned()
        } else {
            format!("in a turn: \"{}\" → \"{}\"", turn.words, turn.reply)
        };
        let Moved { at_ms, from, to } = moved;
        let from = from.as_deref().unwrap_or("its region");
        narrator.say_at(
            *at_ms,
            format!("session {} goes on in {to} instead of {from}, {when}", turn.session),
        );
    }
    let Some(cut) = turn.interruptions.first() else {
        if !turn.completed() {
            narrator.say(format!(
                "session {}: \"{}\" failed: {}",
                turn.session, turn.words, turn.failure
            ));
        }
        return;
    };
    let how = match cut.code {
        Some(code) => format!("Close {code} \"{}\"", cut.reason),
        None => cut.reason.clone(),
    };
    let again = match (cut.reconnected_after(turn.started_at_ms), &cut.region) {
        (Some(after), region) => format!(
            "connected again{} after {:.2} s",
            region
                .as_ref()
                .map_or_else(String::new, |region| format!(" to {region}")),
            after.as_secs_f64()
        ),
        (None, _) => "could not call again".to_owned(),
    };
    let end = if turn.completed() {
        format!("\"{}\" → \"{}\"", turn.words, turn.reply)
    } else {
        format!("\"{}\" failed: {}", turn.words, turn.failure)
    };
    let when = if cut.at_ms < turn.started_at_ms {
        "between two turns"
    } else {
        "in a turn"
    };
    narrator.say_at(
        cut.at_ms,
        format!("session {} {when}: {how}; {again}; {end}", turn.session),
    );
}

/// The decision that moved the region's sessions.
async fn evacuation_decision(world: &World, region: &str, killed_at: Moment) -> anyhow::Result<Decision> {
    let history = world.operator().history(HISTORY_MAX).await?;
    let about = |decision: &&Decision| {
        let failover = |reason: &api::v1::Reason| reason.code == "failover" && reason.region == region;
        Moment(decision.at_ms) >= killed_at && decision.reasons.iter().any(failover)
    };
    let decision = history.iter().find(about).cloned();
    decision.with_context(|| format!("the history has no failover of {region}"))
}

fn tell_decision(
    narrator: &Narrator,
    region: &str,
    decision: &Decision,
    detected_at: Moment,
    published_at: Moment,
    status: &StatusReply,
) {
    narrator.say_at(detected_at, format!("{region} is judged down"));
    let number = decision.number.unwrap_or_default().generation;
    narrator.say_at(
        Moment(decision.at_ms),
        format!("plan {number} is decided by {}", decision.actor),
    );
    for reason in &decision.reasons {
        narrator.say_at(Moment(decision.at_ms), format!("{}: {}", reason.code, reason.text));
        for fact in &reason.evidence {
            // One vantage a line.
            narrator.say_at(Moment(decision.at_ms), format!("  {}", fact.replace(" · ", "\n    ")));
        }
    }
    for node in &status.nodes {
        narrator.say_at(
            Moment(node.acknowledged_at_ms),
            format!(
                "{} has plan {}",
                node.node,
                node.acknowledged.unwrap_or_default().generation
            ),
        );
    }
    let routes = status.regions.iter().find(|status| status.region == region);
    if let Some(routes) = routes {
        let shares: Vec<String> = (routes.routes.iter())
            .map(|share| format!("{} % to {}", share.percent, share.region))
            .collect();
        narrator.say_at(
            published_at,
            format!("sessions at home in {region} go {}", shares.join(", ")),
        );
    }
}

/// One call through each edge; whether all were answered outside `region`.
async fn call_elsewhere(
    recordings: &[Recording],
    resolver: &Resolver,
    options: &CallOptions,
    region: &str,
    narrator: &Narrator,
) -> anyhow::Result<bool> {
    let edges = resolver.callees(0).await?.len();
    let mut elsewhere = true;
    for spread in 0..edges {
        let recording = &recordings[spread % recordings.len()];
        let answered = call_once(recording, spread, resolver, options, narrator).await;
        elsewhere &= answered.is_some_and(|answered| answered != region);
    }
    Ok(elsewhere)
}

/// Calls until the region answers; one call through each edge suffices when its sessions are back.
async fn call_back_home(
    recordings: &[Recording],
    resolver: &Resolver,
    options: &CallOptions,
    region: &str,
    narrator: &Narrator,
) -> anyhow::Result<bool> {
    let edges = resolver.callees(0).await?.len();
    for spread in 0..edges {
        let recording = &recordings[spread % recordings.len()];
        if call_once(recording, spread, resolver, options, narrator)
            .await
            .as_deref()
            == Some(region)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn call_once(
    recording: &Recording,
    spread: usize,
    resolver: &Resolver,
    options: &CallOptions,
    narrator: &Narrator,
) -> Option<String> {
    match place(resolver, spread, options, PATIENCE, &recording.utterance).await {
        Ok(placed) => {
            let region = placed.turn.region.clone();
            narrator.say(format!(
                "a new call through {} is answered by {}: \"{}\"",
                placed.edge.map_or_else(String::new, |edge| edge.to_string()),
                region.as_deref().unwrap_or("an unnamed region"),
                placed.turn.reply_text
            ));
            region
        }
        Err(error) => {
            narrator.say(format!("a new call failed: {error}"));
            None
        }
    }
}

async fn restore(world: &World, region: &str, narrator: &Narrator) -> anyhow::Result<()> {
    let token = uuid::Uuid::new_v4().to_string();
    let request = operator::request(
        operator::restore(region),
        "the demo's drill is over",
        "demo",
        &token,
        None,
    );
    let reply = world.operator().act(request).await?;
    let reasons: Vec<&str> = reply.reasons.iter().map(|reason| reason.text.as_str()).collect();
    if reply.outcome() == Outcome::Refused {
        bail!("the restore of {region} was refused: {}", reasons.join("; "));
    }
    narrator.say(format!("meridian restore {region}: accepted"));
    Ok(())
}

/// Says what the planner waits for, whenever that changes, as far as it is about `region`.
fn tell_waiting(observer: &Observer, region: &str, narrator: &Arc<Narrator>) -> tokio::task::JoinHandle<()> {
    let (mut statuses, region, narrator) = (observer.follow(), region.to_owned(), Arc::clone(narrator));
    tokio::spawn(async move {
        let mut told = String::new();
        while statuses.changed().await.is_ok() {
            let text = statuses.borrow_and_update().as_ref().and_then(|status| {
                let reason = status.waiting.iter().find(|reason| reason.region == region)?;
                Some(format!("{}: {}", reason.code, reason.text))
            });
            if let Some(text) = text
                && text != told
            {
                narrator.say(&text);
                told = text;
            }
        }
    })
}

/// Says when a process dies that nobody asked to die.
fn watch_deaths(world: &World, narrator: &Arc<Narrator>) -> Deaths {
    let (mut deaths, narrator) = (world.deaths(), Arc::clone(narrator));
    let (sender, seen) = watch::channel(Vec::new());
    let task = tokio::spawn(async move {
        while let Ok(death) = deaths.recv().await {
            sender.send_modify(|seen| seen.push(death.name.clone()));
            narrator.say(format!(
                "{} died by itself ({}); log {}:\n{}",
                death.name,
                death.how,
                death.log.display(),
                death.last_words
            ));
        }
    });
    Deaths { seen, task }
}

/// Processes that ended though nobody asked them to.
struct Deaths {
    seen: watch::Receiver<Vec<String>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Deaths {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn edge_addresses(world: &World) -> Vec<SocketAddr> {
    let edges = world.layout().topology.edges.values();
    edges
        .flat_map(|edge| edge.addresses.iter().map(|ip| SocketAddr::new(*ip, edge.port)))
        .collect()
}

async fn sleep_until(at: Moment) {
    tokio::time::sleep(at.since(daemon::clock::now())).await;
}

fn generation(status: &StatusReply) -> u64 {
    status.number.unwrap_or_default().generation
}

fn state_of<'a>(status: &'a StatusReply, region: &str) -> &'a str {
    let found = status.regions.iter().find(|status| status.region == region);
    found.map_or("", |status| status.state.as_str())
}

fn health_of<'a>(status: &'a StatusReply, region: &str) -> &'a str {
    let found = status.regions.iter().find(|status| status.region == region);
    found.map_or("", |status| status.health.as_str())
}

fn count_sessions<'a>(turns: impl Iterator<Item = &'a TurnRecord>) -> usize {
    turns
        .map(|turn| turn.session)
        .collect::<std::collections::BTreeSet<_>>()
        .len()
}

fn longest_reconnect(turns: &[TurnRecord]) -> f64 {
    let waits = turns.iter().flat_map(|turn| {
        let cuts = turn.interruptions.iter();
        cuts.filter_map(|cut| cut.reconnected_after(turn.started_at_ms))
    });
    waits.map(|wait| wait.as_secs_f64()).fold(0.0, f64::max)
}

fn mark(at_ms: Moment, text: String) -> Mark {
    Mark { at_ms, text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demo_shortens_the_hold_of_a_restore_step_and_nothing_else() {
        let ours = topology::Policy::parse("demo", &policy()).unwrap();
        let mut products = topology::Policy::parse("policy.toml", world::settings::DEFAULT_POLICY).unwrap();
        assert_eq!(ours.restore.step_hold, Duration::from_secs(2));
        products.restore.step_hold = ours.restore.step_hold;
        assert_eq!(ours, products);
    }
}
