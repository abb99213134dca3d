//! Calls that the story places: the recorded ones, and single ones that show which region answers.

use std::{path::Path, sync::Arc};

use anyhow::Context as _;
use client::CallOptions;
use tokio::task::JoinSet;

use crate::{
    Narrator, Recording, Resolver,
    calls::{place, stages},
    fleet::TURN_DEADLINE,
    recordings,
    report::CallLine,
    texts,
};

/// Recorded calls at a time, because two cores also run everything else.
const CALLS_AT_ONCE: usize = 3;

pub(super) async fn place_recorded_calls(
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
        let (index, line) = joined.context(texts::CALLER_PANICKED)?;
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
    match place(resolver, index, options, TURN_DEADLINE, &recording.utterance).await {
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

/// Places one call through each edge. Returns whether regions other than `region` answered all of them.
pub(super) async fn call_elsewhere(
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

/// Calls until the region answers. One call through each edge is enough, since its sessions are back.
pub(super) async fn call_back_home(
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
    match place(resolver, spread, options, TURN_DEADLINE, &recording.utterance).await {
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
