//! Measures one stack: the memory of a session that says nothing, in plain text and over TLS with identity required, and the cost of
//! uploads for a live caller, who speaks in real time, alone, beside thirty uploads at once, and beside twenty long texts to speak. Writes docs/benchmarks/stack.json and a section of
//! docs/benchmarks.md. Run it in a release build on a machine that does nothing else: `make bench-stack` takes five minutes. A
//! development build prints its figures and writes none; `--runs 1` is enough to see that it works.

use std::{
    net::SocketAddr,
    path::Path,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use bench::{
    Bench, build, docs, median, memory_kib,
    stack::{self, request, transcription},
    table, texts, write,
};
use client::{Call, CallOptions, Pacing, TurnEnd};
use drill::{Recording, recordings};
use identity::{Identity, Speaks};
use serde::Serialize;
use speech::{SAMPLE_RATE, wav};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};
use topology::RegionId;

/// Pairs of a caller alone and one beside the load, which take turns.
const RUNS: usize = 5;
/// Turns of the caller in each: a median of them is one figure. Two seconds each.
const TURNS: usize = 7;
/// Batches of idle sessions: the memory of each gives one figure. All sessions stay open, and with the other descriptors of the stack they
/// stay below the 1,024 that a process usually may have.
const IDLE_BATCHES: usize = 5;
const IDLE_SESSIONS: usize = 100;
/// Pause after which a new session has finished its work.
const IDLE_SETTLE: Duration = Duration::from_secs(1);
/// Largest memory of an idle session that the bench accepts, in kB.
const IDLE_GOAL_KB: f64 = 16.0;
const UPLOADS: usize = 30;
const UPLOAD_SECONDS: f32 = 19.0;
const TEXTS: usize = 20;
/// Time between the start of a load and the caller's first word: by then every queue is full.
const SETTLE: Duration = Duration::from_secs(2);
/// Longest wait for a stack to empty its queues after a load: the limit of an engine, and the time of a development build.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(120);

#[derive(Debug, Serialize)]
struct Figures {
    #[serde(flatten)]
    bench: Bench<Run>,
    /// Of each batch, in plain text.
    idle_session_kb: Vec<f64>,
    /// Of each batch, over TLS: the stack requires an identity.
    idle_tls_session_kb: Vec<f64>,
}

/// One caller alone and beside each load.
#[derive(Debug, Serialize)]
struct Run {
    alone: Measured,
    beside_uploads: Measured,
    beside_texts: Measured,
}

/// The measurement of one of the three.
type Which = fn(&Run) -> &Measured;

/// Medians of the turns of one caller.
#[derive(Debug, Serialize)]
struct Measured {
    /// The stack's own measurement, including the wait in its queues.
    recognition_ms: f64,
    /// The caller's measurement: from the end of the speech to the first audio of the reply.
    first_audio_ms: f64,
    turns: usize,
    failed: usize,
    /// Results of the load in that time.
    answers: usize,
    refusals: usize,
    seconds: f64,
}

#[tokio::main]
async fn main() -> ExitCode {
    bench::main("bench-stack", RUNS, run).await
}

async fn run(runs: usize) -> anyhow::Result<()> {
    let began = Instant::now();
    let folder = recordings::default_folder();
    let recordings = recordings::load(&folder)?;
    let upload = Arc::new(upload(&folder, &recordings)?);
    let text = Arc::new(long_text(&recordings));
    let state_dir = std::env::temp_dir().join(format!("meridian-bench-stack-{}", std::process::id()));
    std::fs::create_dir_all(&state_dir).with_context(|| texts::cannot_make(&state_dir))?;
    let idle_tls_session_kb = idle_tls_sessions(&state_dir.join("tls")).await?;
    let began_plain = Instant::now();
    let (mut running, address) = stack::start(&state_dir, "").await?;
    println!(
        "the stack takes work after {:.1} s",
        began_plain.elapsed().as_secs_f64()
    );
    let pid = running.pid().context("the stack died at once")?;
    let mut figures = Figures {
        bench: Bench::new(),
        // First of all: later there is memory that a load left behind, and sessions would seem to take none.
        idle_session_kb: idle_sessions(address, pid, None).await?,
        idle_tls_session_kb,
    };
    // The first turns of a process have cold caches, and so has the first use of a sentence.
    caller(address, &recordings, TURNS, &Load::default()).await?;
    for number in 1..=runs {
        let alone = caller(address, &recordings, TURNS, &Load::default()).await?;
        let beside_uploads = beside(address, &recordings, UPLOADS, &upload).await?;
        let beside_texts = beside(address, &recordings, TEXTS, &text).await?;
        for (name, measured) in [
            ("alone", &alone),
            ("beside uploads", &beside_uploads),
            ("beside texts", &beside_texts),
        ] {
            println!(
                "run {number} of {runs}, {name}: recognition {:.1} ms, first audio {:.0} ms, {} of {} turns failed; {} answers, {} refusals of the load in {:.0} s",
                measured.recognition_ms,
                measured.first_audio_ms,
                measured.failed,
                measured.turns + measured.failed,
                measured.answers,
                measured.refusals,
                measured.seconds,
            );
        }
        let run = Run {
            alone,
            beside_uploads,
            beside_texts,
        };
        println!(
            "run {number} of {runs}, beside uploads as against alone: recognition {:.2} times, first audio {:.2} times",
            run.beside_uploads.recognition_ms / run.alone.recognition_ms,
            run.beside_uploads.first_audio_ms / run.alone.first_audio_ms,
        );
        figures.bench.runs.push(run);
    }
    running.terminate(Duration::from_secs(30)).await?;
    // Only a log is left.
    let _ = std::fs::remove_dir_all(state_dir);
    let section = section(&figures);
    println!("\n{section}\n");
    if build() == "release" {
        write(&docs()?, "bench-stack", "stack.json", &figures, &section)?;
        println!("written to docs/benchmarks.md and docs/benchmarks/stack.json");
    }
    println!("all of it took {:.0} s", began.elapsed().as_secs_f64());
    Ok(())
}

/// Memory of silent sessions in a stack of its own, to which edges prove who they are.
async fn idle_tls_sessions(state_dir: &Path) -> anyhow::Result<Vec<f64>> {
    std::fs::create_dir_all(state_dir).with_context(|| texts::cannot_make(state_dir))?;
    let (section, edge) = stack::required_identity(state_dir)?;
    let (mut running, address) = stack::start(state_dir, &section).await?;
    let pid = running.pid().context("the stack died at once")?;
    let each_kb = idle_sessions(address, pid, Some(&edge)).await?;
    running.terminate(Duration::from_secs(30)).await?;
    Ok(each_kb)
}

/// Memory of sessions of devices that are connected and say nothing, in kB: that of each batch, for one of it.
async fn idle_sessions(address: SocketAddr, pid: u32, edge: Option<&Arc<Identity>>) -> anyhow::Result<Vec<f64>> {
    let options = CallOptions::default();
    let region = RegionId::new(stack::REGION)?;
    let over = if edge.is_some() { "TLS" } else { "plain text" };
    let mut open = Vec::new();
    let mut held = None;
    let mut each_kb = Vec::new();
    // The first session also pays for the memory that all share.
    for batch in 0..=IDLE_BATCHES {
        for _ in 0..IDLE_SESSIONS {
            let link = identity::dial(edge, &region, address, Speaks::Http1);
            let call = Call::open_by(address, &options, link).await;
            open.push(call.with_context(|| format!("cannot open an idle session over {over}"))?);
        }
        tokio::time::sleep(IDLE_SETTLE).await;
        let now = memory_kib(pid, "RssAnon:").context("the stack is gone")?;
        if let Some(before) = held.replace(now) {
            let kb = (now - before) * 1.024 / IDLE_SESSIONS as f64;
            println!("batch {batch} of {IDLE_BATCHES} of {IDLE_SESSIONS} idle sessions over {over}: {kb:.1} kB each");
            each_kb.push(kb);
        }
    }
    let closing: JoinSet<()> = open.into_iter().map(Call::hang_up).collect();
    closing.join_all().await;
    Ok(each_kb)
}

/// The results of the load so far.
#[derive(Debug, Default)]
struct Load {
    answers: AtomicUsize,
    refusals: AtomicUsize,
}

/// A caller beside this many requesters that send the same request again and again.
async fn beside(
    address: SocketAddr,
    recordings: &[Recording],
    parallel: usize,
    request: &Arc<Vec<u8>>,
) -> anyhow::Result<Measured> {
    let load = Arc::new(Load::default());
    let mut loading = JoinSet::new();
    for _ in 0..parallel {
        let (load, request) = (Arc::clone(&load), Arc::clone(request));
        loading.spawn(async move {
            loop {
                if matches!(ask(address, &request).await, Ok(true)) {
                    load.answers.fetch_add(1, Ordering::Relaxed);
                } else {
                    load.refusals.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        });
    }
    tokio::time::sleep(SETTLE).await;
    let measured = caller(address, recordings, TURNS, &load).await?;
    loading.shutdown().await;
    if measured.answers == 0 && load.answers.load(Ordering::Relaxed) == 0 && parallel == UPLOADS {
        bail!("no upload was answered, so there was no load");
    }
    // Otherwise the rest of this load would disturb the next caller.
    timeout(DRAIN_TIMEOUT, until_queues_are_empty(address))
        .await
        .context("the stack is not done with the load")??;
    tokio::time::sleep(SETTLE).await;
    Ok(measured)
}

async fn until_queues_are_empty(address: SocketAddr) -> anyhow::Result<()> {
    const ASKS: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: stack\r\nConnection: close\r\n\r\n";
    loop {
        let mut socket = TcpStream::connect(address).await?;
        socket.write_all(ASKS).await?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await?;
        let mut depths = answer
            .lines()
            .filter(|line| line.starts_with("meridian_stack_queue_depth{"));
        if depths.clone().count() == 0 {
            bail!(
                "the stack says nothing of its queues: {}",
                answer.lines().next().unwrap_or_default()
            );
        }
        if depths.all(|line| line.ends_with(" 0")) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// One caller's turns, each after the reply to the one before.
async fn caller(address: SocketAddr, recordings: &[Recording], turns: usize, load: &Load) -> anyhow::Result<Measured> {
    let options = CallOptions {
        // The caller commits its speech, so that no wait for silence is part of the latency.
        turn_end: TurnEnd::Commit,
        turn_timeout: Duration::from_secs(60),
        ..CallOptions::default()
    };
    let began = Instant::now();
    let (answers, refusals) = (
        load.answers.load(Ordering::Relaxed),
        load.refusals.load(Ordering::Relaxed),
    );
    let (mut recognition, mut first_audio) = (Vec::new(), Vec::new());
    let mut open: Option<Call> = None;
    for turn in 0..turns {
        let recording = &recordings[turn % recordings.len()];
        let mut call = match open.take() {
            Some(call) => call,
            None => match Call::open(address, &options).await {
                Ok(call) => call,
                Err(error) => {
                    println!("a call failed: {error}");
                    continue;
                }
            },
        };
        let turn = match call.turn(&recording.utterance, Pacing::RealTime).await {
            Ok(turn) => turn,
            Err(error) => {
                println!("the turn of {} failed: {error}", recording.file);
                continue;
            }
        };
        let audio = turn.first_audio.context("a reply had no audio")?;
        recognition.push(
            turn.timings
                .asr_ms
                .context("the stack did not say how long recognition took")?,
        );
        first_audio.push(audio.as_secs_f64() * 1000.0);
        open = Some(call);
    }
    if let Some(call) = open {
        call.hang_up().await;
    }
    if first_audio.is_empty() {
        bail!("no turn of the caller succeeded");
    }
    Ok(Measured {
        turns: first_audio.len(),
        failed: turns - first_audio.len(),
        recognition_ms: median(recognition),
        first_audio_ms: median(first_audio),
        answers: load.answers.load(Ordering::Relaxed) - answers,
        refusals: load.refusals.load(Ordering::Relaxed) - refusals,
        seconds: began.elapsed().as_secs_f64(),
    })
}

/// Sends a request and reads the answer to its end. Returns whether it was the right answer.
async fn ask(address: SocketAddr, request: &[u8]) -> std::io::Result<bool> {
    let mut socket = TcpStream::connect(address).await?;
    socket.write_all(request).await?;
    let mut answer = vec![0; 64 << 10];
    let mut head = Vec::new();
    loop {
        match socket.read(&mut answer).await? {
            0 => break,
            read if head.len() < 64 => head.extend_from_slice(&answer[..read]),
            _ => {}
        }
    }
    Ok(head.starts_with(b"HTTP/1.1 200"))
}

/// Sentences for nineteen seconds, without pauses long enough to be cut at.
fn upload(folder: &Path, recordings: &[Recording]) -> anyhow::Result<Vec<u8>> {
    let mut samples: Vec<f32> = Vec::new();
    for recording in recordings.iter().cycle() {
        let file = std::fs::read(folder.join(&recording.file)).context("cannot read a recording again")?;
        samples.extend(wav::decode(&file, 60.0)?);
        samples.resize(samples.len() + SAMPLE_RATE as usize / 10, 0.0);
        if samples.len() as f32 >= UPLOAD_SECONDS * SAMPLE_RATE as f32 {
            break;
        }
    }
    samples.truncate((UPLOAD_SECONDS * SAMPLE_RATE as f32) as usize);
    Ok(transcription(&wav::encode(&samples, SAMPLE_RATE)))
}

/// A text about as long as the API allows.
fn long_text(recordings: &[Recording]) -> Vec<u8> {
    let mut text = String::new();
    for recording in recordings.iter().cycle() {
        if text.len() + recording.words.len() > 4_000 {
            break;
        }
        text.push_str(&recording.words);
        text.push_str(". ");
    }
    let body =
        serde_json::json!({ "model": "meridian-tts", "voice": "meridian", "input": text, "response_format": "pcm" });
    request("/v1/audio/speech", "application/json", body.to_string().as_bytes())
}

fn section(figures: &Figures) -> String {
    let bench = &figures.bench;
    let runs = &bench.runs;
    let mut rows = table([
        "one live caller",
        "recognition",
        "first audio",
        "turns failed",
        "answers of the load a second",
    ]);
    let of = |which: Which, value: fn(&Measured) -> f64| median(runs.iter().map(|run| value(which(run))));
    let whiches: [(&str, Which); 3] = [
        ("alone", |run| &run.alone),
        ("beside uploads", |run| &run.beside_uploads),
        ("beside texts", |run| &run.beside_texts),
    ];
    for (name, which) in whiches {
        rows.add_row([
            name.to_owned(),
            format!("{:.1} ms", of(which, |one| one.recognition_ms)),
            format!("{:.0} ms", of(which, |one| one.first_audio_ms)),
            format!("{:.0} of {TURNS}", of(which, |one| one.failed as f64)),
            format!("{:.1}", of(which, |one| one.answers as f64 / one.seconds)),
        ]);
    }
    let ratio = |which: Which, value: fn(&Measured) -> f64| {
        let ratios = runs.iter().map(|run| value(which(run)) / value(&run.alone));
        (median(ratios) - 1.0) * 100.0
    };
    format!(
        "## A live caller beside uploads, and silent sessions\n\n\
         {command}; medians of {count} run{plural} of {TURNS} turns in which the caller is alone, beside {UPLOADS} parallel uploads of \
         {UPLOAD_SECONDS:.0} s, and beside {TEXTS} parallel texts of 4,000 characters. Machine: {machine}; the load generator shares \
         the cores with the stack.\n\n\
         {rows}\n\n\
         Beside uploads recognition takes {:+.0} % and the first audio {:+.0} % of what the caller alone waits for, beside texts \
         {:+.0} % and {:+.0} % (medians of the ratios of each run). The goal is at most +20 % beside uploads.\n\n\
         A session that says nothing takes {idle:.1} kB of the stack's memory, and {idle_tls:.1} kB over TLS where the stack requires an \
         identity (medians of {IDLE_BATCHES} batches of {IDLE_SESSIONS}); the goal is at most {IDLE_GOAL_KB:.0} kB.\n\n\
         Raw values: [benchmarks/stack.json](benchmarks/stack.json).",
        ratio(|run| &run.beside_uploads, |one| one.recognition_ms),
        ratio(|run| &run.beside_uploads, |one| one.first_audio_ms),
        ratio(|run| &run.beside_texts, |one| one.recognition_ms),
        ratio(|run| &run.beside_texts, |one| one.first_audio_ms),
        command = bench.command(),
        machine = bench.machine(),
        count = runs.len(),
        plural = if runs.len() == 1 { "" } else { "s" },
        idle = median(figures.idle_session_kb.iter().copied()),
        idle_tls = median(figures.idle_tls_session_kb.iter().copied()),
    )
}
