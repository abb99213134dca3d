//! `meridian call`: say something to the running world and hear the reply.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::{ArgGroup, Args};
use client::{CallError, CallOptions, Playout, Utterance};
use drill::{Resolver, calls};
use jiff::tz::TimeZone;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    exit::Failure,
    output::Output,
    output::print,
    present::{document, plain, table},
    say::say,
};

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("speech").required(true).args(["file", "say"])))]
pub(crate) struct CallArgs {
    /// A recording to send: WAV, mono or stereo, 8 to 48 kHz, 25 s at most.
    #[arg(value_name = "FILE.wav")]
    file: Option<PathBuf>,
    /// A text to send; espeak-ng speaks it.
    #[arg(long, value_name = "TEXT")]
    say: Option<String>,
    /// Number of callers who speak at the same time.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=200))]
    sessions: u16,
    /// Write the first reply to this file (WAV).
    #[arg(long, value_name = "FILE.wav")]
    out: Option<PathBuf>,
    /// The caller's time zone, such as Europe/Dublin; this machine's by default.
    #[arg(long, value_name = "ZONE", value_parser = known_zone)]
    zone: Option<String>,
    /// Seconds to keep trying when the call is cut off or not answered.
    #[arg(long, alias = "patience", default_value_t = 35, value_parser = clap::value_parser!(u64).range(1..=600))]
    deadline: u64,
}

pub(crate) async fn call(args: CallArgs, state_dir: &Path, output: Output) -> Result<ExitCode, Failure> {
    let utterance = match (&args.file, &args.say) {
        (Some(file), _) => {
            let sound = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
            Utterance::from_wav(&sound).with_context(|| file.display().to_string())?
        }
        (None, Some(text)) => say(text)?,
        (None, None) => unreachable!("clap requires one of them"),
    };
    let record = world::find(state_dir)?;
    let resolver = Resolver::new(record.dns, &record.zone, record.edge_port).context("cannot create a resolver")?;
    let zone = args.zone.clone().or_else(machine_zone);
    let options = CallOptions {
        host: Some(record.zone.clone()),
        headers: zone
            .map(|zone| ("Meridian-Zone".to_owned(), zone))
            .into_iter()
            .collect(),
        ..CallOptions::default()
    };
    let deadline = Duration::from_secs(args.deadline);

    // Callers of one command take the edges in turn. The process id picks the first edge, so that commands spread too.
    let first_edge = std::process::id() as usize;
    let mut callers = JoinSet::new();
    for caller in 0..usize::from(args.sessions) {
        let (resolver, options, utterance) = (resolver.clone(), options.clone(), utterance.clone());
        callers.spawn(async move {
            let placed = calls::place(&resolver, first_edge + caller, &options, deadline, &utterance).await;
            (caller, placed)
        });
    }
    let mut placed = Vec::new();
    while let Some(joined) = callers.join_next().await {
        placed.push(joined.context("a caller panicked")?);
    }
    placed.sort_by_key(|(caller, _)| *caller);

    if let Some(out) = &args.out
        && let Some(reply) = placed.iter().find_map(|(_, placed)| placed.as_ref().ok())
    {
        drill::recordings::write_reply(out, &reply.turn.reply_audio)?;
    }
    match output {
        Output::Json => print(&document(json!({ "calls": as_json(&placed) }))),
        Output::Table if placed.len() == 1 => print_one(&placed),
        Output::Table => print(&as_table(&placed)),
    }
    // Every call is shown above; the first failure decides the exit code.
    match placed.into_iter().find_map(|(_, placed)| placed.err()) {
        Some(error) => Err(error.into()),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// The IANA name of this machine's time zone, or `None` where TZ and /etc/localtime name none.
fn machine_zone() -> Option<String> {
    let zone = TimeZone::try_system().ok().filter(|zone| !zone.is_unknown())?;
    zone.iana_name().map(str::to_owned)
}

/// The zone's name in the spelling of the database; an error for an unknown zone.
fn known_zone(name: &str) -> Result<String, String> {
    let zone = TimeZone::get(name).ok();
    let known = zone.as_ref().and_then(TimeZone::iana_name);
    known.map_or_else(
        || Err("not a time zone; write a name of the IANA database, such as Europe/Dublin".to_owned()),
        |known| Ok(known.to_owned()),
    )
}

type Results = [(usize, Result<calls::Placed, CallError>)];

fn print_one(placed: &Results) {
    let Some((_, Ok(placed))) = placed.first() else { return };
    let turn = &placed.turn;
    for cut in &placed.interruptions {
        print(&format!("cut off: {}; called again", cut.reason));
    }
    for notice in &turn.notices {
        print(&format!("notice:  {}", notice.message));
    }
    print(&format!("heard:   {}", turn.transcript));
    print(&format!("meant:   {}", turn.intent));
    print(&format!("reply:   {}", turn.reply_text));
    let edge = placed.edge.map_or_else(String::new, |edge| format!(" through {edge}"));
    let region = turn.region.as_deref().unwrap_or("an unnamed region");
    print(&format!("by:      {region}{edge}"));
    print(&format!("latency: {}", calls::stages(turn)));
    if turn.playout.underruns > 0 {
        print(&format!("gaps:    {}", gaps(turn.playout)));
    }
}

/// The silence that a person would have heard in the middle of a reply.
fn gaps(playout: Playout) -> String {
    let times = match playout.underruns {
        1 => "once".to_owned(),
        times => format!("{times} times"),
    };
    format!(
        "the audio ran out {times}, for {} ms in all",
        playout.stalled.as_millis()
    )
}

fn as_table(placed: &Results) -> String {
    let mut table = table([
        "CALL",
        "REGION",
        "HEARD",
        "MEANT",
        "FIRST AUDIO",
        "GAPS",
        "CUT OFF",
        "ERROR",
    ]);
    for (caller, placed) in placed {
        match placed {
            Ok(placed) => {
                let first = placed.turn.first_audio;
                table.add_row([
                    caller.to_string(),
                    placed.turn.region.clone().unwrap_or_default(),
                    placed.turn.transcript.clone(),
                    placed.turn.intent.clone(),
                    first.map_or_else(String::new, |first| format!("{:.0} ms", first.as_secs_f64() * 1000.0)),
                    placed.turn.playout.underruns.to_string(),
                    placed.interruptions.len().to_string(),
                    String::new(),
                ]);
            }
            Err(error) => {
                let empty = String::new;
                table.add_row([
                    caller.to_string(),
                    empty(),
                    empty(),
                    empty(),
                    empty(),
                    empty(),
                    empty(),
                    error.to_string(),
                ]);
            }
        }
    }
    let answered = placed.iter().filter(|(_, placed)| placed.is_ok()).count();
    let mut first_audio: Vec<f64> = (placed.iter())
        .filter_map(|(_, placed)| Some(placed.as_ref().ok()?.turn.first_audio?.as_secs_f64() * 1000.0))
        .collect();
    let p50 = drill::report::percentile(&mut first_audio, 0.5);
    let p99 = drill::report::percentile(&mut first_audio, 0.99);
    format!(
        "{}\n\n{answered} of {} calls answered; first audio P50 {p50:.0} ms, P99 {p99:.0} ms",
        plain(&table),
        placed.len()
    )
}

fn as_json(placed: &Results) -> Vec<Value> {
    let one = |(caller, placed): &(usize, Result<calls::Placed, CallError>)| match placed {
        Ok(placed) => {
            let turn = &placed.turn;
            let timings = &turn.timings;
            json!({
                "call": caller,
                "edge": placed.edge.map(|edge| edge.to_string()),
                "region": turn.region,
                "transcript": turn.transcript,
                "intent": turn.intent,
                "reply": turn.reply_text,
                "first_audio_ms": turn.first_audio.map(|first| first.as_secs_f64() * 1000.0),
                "playout": { "underruns": turn.playout.underruns, "stalled_ms": turn.playout.stalled.as_millis() as u64 },
                "timings_ms": {
                    "asr": timings.asr_ms, "nlu": timings.nlu_ms, "skill": timings.skill_ms, "tts": timings.tts_ms,
                },
                "interruptions": placed.interruptions.iter().map(|cut| json!({
                    "code": cut.code, "reason": cut.reason,
                })).collect::<Vec<_>>(),
            })
        }
        Err(error) => json!({ "call": caller, "error": error.to_string() }),
    };
    placed.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_in_a_reply_are_told_in_words() {
        let playout = |underruns| Playout {
            underruns,
            stalled: Duration::from_millis(120),
            played: Duration::from_secs(3),
        };
        assert_eq!(gaps(playout(1)), "the audio ran out once, for 120 ms in all");
        assert_eq!(gaps(playout(3)), "the audio ran out 3 times, for 120 ms in all");
    }

    #[test]
    fn a_caller_is_in_a_zone_that_the_assistant_knows() {
        assert_eq!(known_zone("europe/dublin").as_deref(), Ok("Europe/Dublin"));
        for wrong in ["", "Mars/Olympus", "../../etc/passwd"] {
            assert!(
                known_zone(wrong).is_err_and(|error| error.contains("Europe/Dublin")),
                "{wrong}"
            );
        }
        // The test machine may have any zone: its name must be one that `--zone` accepts.
        if let Some(zone) = machine_zone() {
            assert_eq!(known_zone(&zone), Ok(zone));
        }
    }
}
