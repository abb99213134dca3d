//! Measures how well a stack hears people: word errors and processor time of each recognizer on the same recordings, through
//! the same requests. Writes docs/benchmarks/speech.json and a section of docs/benchmarks.md. Run it in a release build:
//! `make bench-speech` takes two minutes. A development build prints its figures and writes none.

use std::{collections::BTreeMap, net::SocketAddr, path::Path, process::ExitCode, time::Duration};

use anyhow::{Context as _, bail};
use bench::{Bench, build, docs, median, memory_kib, stack, table, texts, write};
use serde::{Deserialize, Serialize};
use speech::{people, score::Score, wav};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

const RUNS: usize = 3;
/// The recognizers, as a stack's configuration names them.
const ENGINES: [&str; 3] = ["conformer", "moonshine", "cascade"];
/// Recordings about as long as a command of three seconds, in seconds.
const COMMAND_SECONDS: std::ops::Range<f32> = 2.5..3.5;

/// The recordings of one part and kind, heard by one recognizer.
#[derive(Debug, Serialize)]
struct Heard {
    engine: &'static str,
    part: String,
    kind: String,
    recordings: usize,
    exact: usize,
    word_error_percent: f64,
}

#[derive(Debug, Serialize)]
struct Figures {
    #[serde(flatten)]
    bench: Bench<Run>,
    /// One run is enough: the recognizers always give the same answer.
    heard: Vec<Heard>,
    /// Resident memory of a stack with each recognizer, in MiB.
    memory_mib: BTreeMap<&'static str, f64>,
}

/// Processor time for a command of three seconds, by recognizer, in milliseconds.
#[derive(Debug, Serialize)]
struct Run {
    command_cpu_ms: BTreeMap<&'static str, f64>,
}

struct Recording {
    row: people::Row,
    file: Vec<u8>,
    seconds: f32,
}

#[tokio::main]
async fn main() -> ExitCode {
    bench::main("bench-speech", RUNS, run).await
}

async fn run(runs: usize) -> anyhow::Result<()> {
    let recordings = recordings()?;
    let mut figures = Figures {
        bench: Bench::new(),
        heard: Vec::new(),
        memory_mib: BTreeMap::new(),
    };
    for number in 1..=runs {
        let mut command_cpu_ms = BTreeMap::new();
        for engine in ENGINES {
            let state_dir = std::env::temp_dir().join(format!("meridian-bench-speech-{}", std::process::id()));
            std::fs::create_dir_all(&state_dir).with_context(|| texts::cannot_make(&state_dir))?;
            let more = format!("[recognition]\nengine = \"{engine}\"\n");
            let (mut running, address) = stack::start(&state_dir, &more).await?;
            let pid = running.pid().context("the stack died at once")?;
            if number == 1 {
                figures.heard.extend(hear(engine, address, &recordings).await?);
                let memory = memory_kib(pid, "VmRSS:").context("the stack is gone")? / 1024.0;
                figures.memory_mib.insert(engine, memory);
            }
            command_cpu_ms.insert(engine, command_cpu_ms_of(pid, address, &recordings).await?);
            running.terminate(Duration::from_secs(30)).await?;
            // The folder has only a log.
            let _ = std::fs::remove_dir_all(state_dir);
        }
        println!("run {number} of {runs}: processor time of a command in ms: {command_cpu_ms:.1?}");
        figures.bench.runs.push(Run { command_cpu_ms });
    }
    let section = section(&figures);
    println!("\n{section}\n");
    if build() == "release" {
        write(&docs()?, "bench-speech", "speech.json", &figures, &section)?;
        println!("written to docs/benchmarks.md and docs/benchmarks/speech.json");
    }
    Ok(())
}

fn recordings() -> anyhow::Result<Vec<Recording>> {
    let models = stack::models_dir()?;
    let folder = models.join("../../.people");
    let rows = people::rows();
    let read = |row: people::Row| {
        let path = folder.join(&row.file);
        let file = std::fs::read(&path).with_context(|| texts::no_recording(&path))?;
        let seconds = wav::decode(&file, 60.0)?.len() as f32 / speech::SAMPLE_RATE as f32;
        Ok(Recording { row, file, seconds })
    };
    rows.into_iter().map(read).collect()
}

/// Transcribes all recordings, one after the other.
async fn hear(engine: &'static str, address: SocketAddr, recordings: &[Recording]) -> anyhow::Result<Vec<Heard>> {
    let mut scores: BTreeMap<(String, String), Score> = BTreeMap::new();
    for Recording { row, file, .. } in recordings {
        let text = transcribe(address, file).await.with_context(|| row.file.clone())?;
        for kind in [row.kind.as_str(), "all"] {
            let score = scores.entry((row.part.clone(), kind.to_owned())).or_default();
            score.add(&people::comparable(&row.transcript), &people::comparable(&text));
        }
    }
    let heard = scores.into_iter().map(|((part, kind), score)| Heard {
        engine,
        part,
        kind,
        recordings: score.utterances,
        exact: score.exact,
        word_error_percent: score.word_error_percent(),
    });
    Ok(heard.collect())
}

/// Processor time of the stack for one recording of about three seconds, in milliseconds.
async fn command_cpu_ms_of(pid: u32, address: SocketAddr, recordings: &[Recording]) -> anyhow::Result<f64> {
    let commands = recordings
        .iter()
        .filter(|recording| COMMAND_SECONDS.contains(&recording.seconds));
    let commands: Vec<&Recording> = commands.collect();
    let before = cpu_ms(pid)?;
    for recording in &commands {
        transcribe(address, &recording.file).await?;
    }
    Ok((cpu_ms(pid)? - before) / commands.len() as f64)
}

/// Processor time of a process so far, user and system, in milliseconds.
fn cpu_ms(pid: u32) -> anyhow::Result<f64> {
    let text = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"))?;
    // The name before the bracket may have spaces.
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| {
        fields
            .get(at)
            .and_then(|field| field.parse::<f64>().ok())
            .context("no such process time")
    };
    Ok((ticks(11)? + ticks(12)?) * 1000.0 / rustix::param::clock_ticks_per_second() as f64)
}

#[derive(Deserialize)]
struct Answer {
    text: String,
}

async fn transcribe(address: SocketAddr, file: &[u8]) -> anyhow::Result<String> {
    let mut socket = TcpStream::connect(address).await?;
    socket.write_all(&stack::transcription(file)).await?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer has no body")?;
    if !head.starts_with("HTTP/1.1 200") {
        bail!("the stack refused: {answer}");
    }
    Ok(serde_json::from_str::<Answer>(body)?.text)
}

fn section(
    Figures {
        bench,
        heard,
        memory_mib,
    }: &Figures,
) -> String {
    let mut rows = table(["recordings", "conformer", "moonshine", "cascade"]);
    let mut groups: Vec<(&str, &str)> = heard.iter().map(|one| (one.part.as_str(), one.kind.as_str())).collect();
    groups.sort_unstable();
    groups.dedup();
    for (part, kind) in groups {
        let of = |engine: &str| {
            let one = heard
                .iter()
                .find(|one| (one.engine, one.part.as_str(), one.kind.as_str()) == (engine, part, kind));
            one.map(|one| format!("{:.1} % ({} of {})", one.word_error_percent, one.exact, one.recordings))
        };
        rows.add_row([
            format!("{part}, {kind}"),
            text(of("conformer")),
            text(of("moonshine")),
            text(of("cascade")),
        ]);
    }
    let cpu = |engine: &str| {
        format!(
            "{:.0} ms",
            median(bench.runs.iter().map(|run| run.command_cpu_ms[engine]))
        )
    };
    rows.add_row([
        "processor time of 3 s".to_owned(),
        cpu("conformer"),
        cpu("moonshine"),
        cpu("cascade"),
    ]);
    let memory = |engine: &str| format!("{:.0} MiB", memory_mib[engine]);
    rows.add_row([
        "memory of the stack".to_owned(),
        memory("conformer"),
        memory("moonshine"),
        memory("cascade"),
    ]);
    format!(
        "## People\n\n{}; word errors (recordings without an error) by recognizer, each a stack of its own that is asked over HTTP; processor \
         time is the median of {} runs over recordings of 2.5 to 3.5 s. Machine: {}.\n\nThe recordings are those of \
         `regional-stack/speech/testdata/people.tsv`: \"dev\" was looked at while the recognizer was chosen and its thresholds set, \"kept\" was \
         not. Numbers are compared in words.\n\n{rows}\n\nRaw values: [benchmarks/speech.json](benchmarks/speech.json).",
        bench.command(),
        bench.runs.len(),
        bench.machine(),
    )
}

fn text(cell: Option<String>) -> String {
    cell.unwrap_or_default()
}
