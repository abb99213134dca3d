//! Mutual TLS between edges and stacks beside plain text. The two take turns within one run, so that a change of the machine's speed meets
//! both; no figure compares builds or days.
//!
//! Off is what an operator writes while stacks have no certificates: `mode = "off"` at stacks, `stacks = "off"` at edges and control planes.
//! On is the default. Control planes and their nodes use TLS in both.

mod figures;

use std::time::Duration;

use anyhow::Context as _;
use client::{Call, CallOptions, Pacing, TurnEnd, Utterance};
use drill::{recordings, report::percentile};
use identity::Mode;
use speech::scripted::sound_of;
use world::{Engine, World};

pub(crate) use self::figures::Comparison;
use self::figures::Figure;
use crate::{
    Stage,
    helpers::Upstream,
    proxies::{self, Kind, Over, Place, Proxy},
    regions::{self, Callers, EDGE, Fault, Scene},
    sessions,
    upstream::Behaviour,
};

/// Mutual TLS between edges and stacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mtls {
    Off,
    On,
}

impl Mtls {
    /// Both, in the order of their turns.
    const BOTH: [Self; 2] = [Self::Off, Self::On];

    fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::On => "on",
        }
    }

    /// Whom the stacks of a world let in; its edges follow.
    fn stacks_admit(self) -> Mode {
        match self {
            Self::Off => Mode::Off,
            Self::On => Mode::Required,
        }
    }
}

/// Frames of each session: six seconds, in which an edge uses a hundred of the kernel's ticks of 10 ms.
const FRAMES: u64 = 300;
/// Turns of a caller in each run.
const TURNS: usize = 12;
/// The sentence of every turn.
const WORDS: &str = "what time is it";
/// Longest wait for a reply.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);

/// Measures everything, in pairs.
pub(crate) async fn measure(stage: &Stage, comparison: &mut Comparison) -> anyhow::Result<()> {
    comparison.begins();
    let (stack, edge) =
        bench::stack::certificates(&stage.place.folder.join("identity"), &proxies::region(0), proxies::EDGE)?;
    let folder = stack.certificate.parent().context("the certificate lies in a folder")?;
    for (manner, frame, session) in [
        (Behaviour::Usual, Figure::Frame, Figure::Memory),
        (Behaviour::Keeping, Figure::KeptFrame, Figure::KeptMemory),
    ] {
        let mut pair = Vec::new();
        for mtls in Mtls::BOTH {
            let on = mtls == Mtls::On;
            // This stack refuses plain text where it has a certificate, and has no TLS where it has none, so no measurement can take one
            // for the other.
            let upstream = Upstream::start_with(manner, on.then_some(folder)).await?;
            let place = Place {
                to_stacks: on.then(|| edge.clone()),
                ..stage.place.within(mtls.as_str())
            };
            pair.push((mtls, upstream, place));
        }
        frames(stage, &pair, (manner, frame), comparison).await?;
        memory(stage, &pair, (manner, session), comparison).await?;
        for (_, upstream, _) in pair {
            upstream.end().await;
        }
    }
    turns(stage, Engine::Torch, comparison).await?;
    turns(stage, Engine::Scripted, comparison).await?;
    storms(stage, comparison).await?;
    comparison.ends();
    Ok(())
}

/// Processor time of an edge for a frame.
async fn frames(
    stage: &Stage,
    pair: &[(Mtls, Upstream, Place)],
    (manner, figure): (Behaviour, Figure),
    comparison: &mut Comparison,
) -> anyhow::Result<()> {
    let mut edges = Vec::new();
    for (mtls, upstream, place) in pair {
        edges.push((*mtls, Proxy::start(Kind::Meridian, &[upstream.address], place).await?));
    }
    for run in 1..=stage.runs {
        for (mtls, edge) in &edges {
            let cpu_us = sessions::frame_cpu_us(edge, Over::Plain, FRAMES).await?;
            let mtls_name = mtls.as_str();
            stage.say(&format!(
                "mtls {run}, {mtls_name}: {cpu_us:.2} µs of CPU a frame, {manner:?} stack"
            ));
            comparison.add(figure, *mtls, cpu_us);
        }
    }
    for (_, edge) in edges {
        edge.stop().await;
    }
    Ok(())
}

/// Memory of an edge for a silent session.
async fn memory(
    stage: &Stage,
    pair: &[(Mtls, Upstream, Place)],
    (manner, figure): (Behaviour, Figure),
    comparison: &mut Comparison,
) -> anyhow::Result<()> {
    for run in 1..=stage.runs {
        for (mtls, upstream, place) in pair {
            let kib = sessions::idle_kib(Kind::Meridian, Over::Plain, upstream, place).await?;
            let mtls_name = mtls.as_str();
            stage.say(&format!(
                "mtls {run}, {mtls_name}: {kib:.2} KiB a session, {manner:?} stack"
            ));
            comparison.add(figure, *mtls, kib);
        }
    }
    Ok(())
}

/// One caller of a world.
struct Caller {
    mtls: Mtls,
    world: World,
    call: Call,
}

/// The time from the last piece of speech to the first audio of the reply. Both worlds run, and their callers take turns to speak.
async fn turns(stage: &Stage, engine: Engine, comparison: &mut Comparison) -> anyhow::Result<()> {
    let (name, p50, p99, utterance) = match engine {
        Engine::Torch => ("models", Figure::TurnP50, Figure::TurnP99, recording()?),
        Engine::Scripted => {
            let sound = Utterance::from_16k(&sound_of(WORDS));
            ("script", Figure::ScriptP50, Figure::ScriptP99, sound)
        }
    };
    let mut worlds = Vec::new();
    for mtls in Mtls::BOTH {
        let folder = stage.place.folder.join(format!("{name}-{}", mtls.as_str()));
        let mut settings = world::Settings::new(folder);
        settings.engine = engine;
        settings.stacks_admit = mtls.stacks_admit();
        worlds.push((mtls, World::start(settings).await?));
    }
    for (_, world) in &worlds {
        // The work of a start is over then, in both.
        world.healthy().await?;
    }
    let mut callers = Vec::new();
    for (mtls, world) in worlds {
        let options = CallOptions {
            host: Some(world.layout().topology.zone.clone()),
            // The caller commits its speech, so that no wait for silence is part of the latency.
            turn_end: TurnEnd::Commit,
            turn_timeout: REPLY_TIMEOUT,
            ..CallOptions::default()
        };
        let mut call = Call::open(regions::edge_address(&world, EDGE)?, &options).await?;
        // The first turn fills caches.
        first_audio_ms(&mut call, &utterance).await?;
        callers.push(Caller { mtls, world, call });
    }
    for run in 1..=stage.runs {
        let mut heard = [Vec::new(), Vec::new()];
        for _ in 0..TURNS {
            for (caller, heard) in callers.iter_mut().zip(&mut heard) {
                heard.push(first_audio_ms(&mut caller.call, &utterance).await?);
            }
        }
        for (caller, mut heard) in callers.iter().zip(heard) {
            let [middle, slowest] = [0.5, 0.99].map(|q| percentile(&mut heard, q));
            let mtls = caller.mtls.as_str();
            stage.say(&format!(
                "mtls {run}, {mtls}: a turn takes {middle:.1} ms, the slowest {slowest:.1} ms, {name}"
            ));
            comparison.add(p50, caller.mtls, middle);
            comparison.add(p99, caller.mtls, slowest);
        }
    }
    for caller in callers {
        caller.call.hang_up().await;
        caller.world.shutdown().await;
    }
    Ok(())
}

fn recording() -> anyhow::Result<Utterance> {
    let recordings = recordings::load(&recordings::default_folder())?;
    let recording = recordings.into_iter().find(|recording| recording.words == WORDS);
    Ok(recording.context("the recorded calls have changed")?.utterance)
}

/// Milliseconds of silence after the speech of a turn.
async fn first_audio_ms(call: &mut Call, utterance: &Utterance) -> anyhow::Result<f64> {
    let turn = call.turn(utterance, Pacing::RealTime).await?;
    let first_audio = turn.first_audio.context("the reply had no audio")?;
    Ok(first_audio.as_secs_f64() * 1e3)
}

/// Loss of a region under all callers, each time in a world of its own, which remembers nothing of the one before.
async fn storms(stage: &Stage, comparison: &mut Comparison) -> anyhow::Result<()> {
    let utterances = regions::utterances();
    for run in 1..=stage.runs {
        for (fault, figures) in [
            (Fault::Kill, [Figure::KillP50, Figure::KillP99, Figure::KillLost]),
            (
                Fault::Freeze,
                [Figure::FreezeP50, Figure::FreezeP99, Figure::FreezeLost],
            ),
        ] {
            for mtls in Mtls::BOTH {
                let scene = Scene::set(&stage.place, &utterances, mtls.stacks_admit()).await?;
                let callers = scene.play(Kind::Meridian, fault).await?;
                scene.clear().await;
                let values = [callers.resume_ms(0.5), callers.resume_ms(0.99), callers.lost as f64];
                let Callers { sessions, why, .. } = &callers;
                let ([p50, p99, lost], mtls_name) = (values, mtls.as_str());
                stage.say(&format!(
                    "mtls {run}, {mtls_name}: {fault:?}, {lost} of {sessions} lost, resumed P50 {p50:.0} ms, P99 {p99:.0} ms {why:?}"
                ));
                for (figure, value) in figures.into_iter().zip(values) {
                    comparison.add(figure, mtls, value);
                }
            }
        }
    }
    Ok(())
}
