//! The story of `meridian demo`: real calls run, their region dies, the sessions move, and the region comes back.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use api::{
    operator,
    v1::{Decision, Outcome, StatusReply},
};
use client::CallOptions;
use topology::Moment;
use world::World;

mod calling;
mod measure;
mod telling;

use self::{
    calling::{call_back_home, call_elsewhere, place_recorded_calls},
    measure::{FAILOVER_MAX, Observed, measure},
    telling::{say_dns, tell_decision, tell_interruption, tell_waiting, watch_deaths},
};
use crate::{
    Narrator, Report, Resolver,
    fleet::{Fleet, TurnRecord},
    new_sessions::NewSessions,
    observe::{Observer, published},
    recordings, texts,
};

/// The settings of a demo.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Folder of the report and the replies, created if missing.
    pub report_dir: PathBuf,
    /// Folder of the recorded calls.
    pub calls_dir: PathBuf,
    /// Number of callers who talk throughout the story.
    pub sessions: usize,
    /// The settings of its world.
    pub world: world::Settings,
}

/// Deadline for every caller's first answer.
const FIRST_ANSWERS_MAX: Duration = Duration::from_secs(30);
/// Time between the published plan and the restart of the region, in which new sessions are counted.
const WATCH_ELSEWHERE: Duration = Duration::from_secs(3);
/// Deadline for the region's health after the restart: three good ticks, and room.
const HEALTHY_AGAIN_MAX: Duration = Duration::from_secs(60);
/// Deadline for the restore: five steps, each judged on closed ticks.
const RESTORE_MAX: Duration = Duration::from_secs(90);

/// The demo's policy: the product's, but with seconds instead of a minute between two restore steps.
pub fn policy() -> String {
    const HOLD: &str = "step_hold = \"1m\"";
    debug_assert!(world::settings::DEFAULT_POLICY.contains(HOLD));
    world::settings::DEFAULT_POLICY.replace(HOLD, "step_hold = \"2s\"")
}

/// Runs the whole story. The report tells whether every check passed; an error means that the story broke off.
pub async fn demo(settings: Settings, narrator: Arc<Narrator>) -> anyhow::Result<Report> {
    let began = Instant::now();
    let recordings = Arc::new(recordings::load(&settings.calls_dir)?);
    let replies = settings.report_dir.join("replies");
    std::fs::create_dir_all(&replies).with_context(|| texts::cannot_make(&replies))?;

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
        let on_turn: Arc<dyn Fn(&TurnRecord) + Send + Sync> = Arc::new(move |turn| tell_interruption(&narrator, turn));
        Fleet::start(sessions, &recordings, &resolver, &options, &on_turn)
    };
    let region = region_of_most(&fleet, &record.edges, &narrator).await?;
    let edges = edge_addresses(&world);
    let new_sessions = NewSessions::start(edges, &options);
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
    let deadline = FAILOVER_MAX + Duration::from_secs(15);
    let status = observer
        .until(&format!("the evacuation of {region}"), deadline, |status| {
            state_of(status, &region) == "evacuated"
        })
        .await?;
    let evacuation = generation(&status);
    let status = observer
        .until(
            &format!("the acknowledgement of plan {evacuation}"),
            deadline,
            |status| published(status, evacuation).is_some(),
        )
        .await?;
    let decision = evacuation_decision(&world, &region, killed_at).await?;
    let decided_at = Moment(decision.at_ms);
    let published_at = published(&status, evacuation).unwrap_or(decided_at).max(decided_at);
    // The decision includes the verdict, so the region was known to be down at the decision at the latest, even if a
    // status was read later.
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
    let new_sessions = new_sessions.finish().await;
    let history = world.operator().history(HISTORY_MAX).await?;
    drop(observer);
    let died = deaths.seen.borrow().clone();
    world.shutdown().await;

    let mut report = measure(&Observed {
        began_at: narrator.began(),
        started_s,
        healthy_s,
        region,
        sessions,
        killed_at,
        detected_at,
        decided_at,
        published_at,
        watched_until,
        restarted_at,
        commanded_at,
        restored_at,
        restore_s,
        evacuation,
        turns,
        new_sessions,
        history,
        calls,
        elsewhere,
        back,
        died,
    });
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

/// Decisions to read at the end; a demo makes about ten.
const HISTORY_MAX: u32 = 100;

/// Waits until every caller got an answer, and returns the region that answered most of them.
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
            bail!(texts::callers_unanswered(unanswered, now.len(), FIRST_ANSWERS_MAX));
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
        _ => bail!(texts::region_unknown()),
    }
}

/// Pause between two looks at shared state.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Deadline for the moment to kill. Callers talk for seconds and pause for one, so it comes within a few turns.
const MID_CALL_MAX: Duration = Duration::from_secs(20);

/// Waits until at least half of a region's callers are within a turn.
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
    bail!(texts::nobody_in_call(region, MID_CALL_MAX))
}

/// The decision that moved the region's sessions away.
async fn evacuation_decision(world: &World, region: &str, killed_at: Moment) -> anyhow::Result<Decision> {
    let history = world.operator().history(HISTORY_MAX).await?;
    let about = |decision: &&Decision| {
        let failover = |reason: &api::v1::Reason| reason.code == "failover" && reason.region == region;
        Moment(decision.at_ms) >= killed_at && decision.reasons.iter().any(failover)
    };
    let decision = history.iter().find(about).cloned();
    decision.with_context(|| texts::no_failover(region))
}

async fn restore(world: &World, region: &str, narrator: &Narrator) -> anyhow::Result<()> {
    let token = uuid::Uuid::new_v4().to_string();
    let request = operator::request(
        operator::restore(region),
        "the demo's drill is over",
        // The person who runs the demo, by the certificate.
        "",
        &token,
        None,
    );
    let reply = world.operator().act(request).await?;
    let reasons: Vec<&str> = reply.reasons.iter().map(|reason| reason.text.as_str()).collect();
    if reply.outcome() == Outcome::Refused {
        bail!(texts::restore_refused(region, &reasons.join("; ")));
    }
    narrator.say(format!("meridian restore {region}: accepted"));
    Ok(())
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
