//! One call as a device makes it: resolve the service name, call an edge, say one thing, listen, hang up.

use std::{net::SocketAddr, time::Duration};

use client::{CallError, CallEventKind, CallOptions, Pacing, ReconnectingCall, Turn, Utterance};

use crate::{
    Resolver,
    fleet::{Interruption, interruptions},
};

/// The outcome of an answered call.
#[derive(Debug, Clone)]
pub struct Placed {
    /// The edge that answered.
    pub edge: Option<SocketAddr>,
    /// Time from the start of connecting to an open session.
    pub connected_in: Option<Duration>,
    /// The transcript, the intent, the reply, and the timings.
    pub turn: Turn,
    /// Losses of the session, each with the connection that followed.
    pub interruptions: Vec<Interruption>,
}

/// Calls, says one thing in real time, and hangs up. Keeps trying for `deadline`. Callers with different `spread` begin
/// with different edges.
pub async fn place(
    resolver: &Resolver,
    spread: usize,
    options: &CallOptions,
    deadline: Duration,
    utterance: &Utterance,
) -> Result<Placed, CallError> {
    let resolver = resolver.clone();
    let resolve = move || {
        let resolver = resolver.clone();
        async move { resolver.callees(spread).await }
    };
    let mut call = ReconnectingCall::new(
        options.clone().with_device_name(&format!("call-{spread}")),
        deadline,
        resolve,
    );
    let turn = call.turn(utterance, Pacing::RealTime).await?;
    let events = call.take_events();
    call.hang_up().await;
    let connected = events.iter().rev().find_map(|event| match &event.kind {
        CallEventKind::Connected { address, took, .. } => Some((*address, *took)),
        _ => None,
    });
    Ok(Placed {
        edge: connected.map(|(address, _)| address),
        connected_in: connected.map(|(_, took)| took),
        turn,
        interruptions: interruptions(&events, None),
    })
}

/// The duration of each stage of a turn, in one line.
pub fn stages(turn: &Turn) -> String {
    let ms = |name: &str, value: Option<f64>| value.map(|value| format!("{name} {value:.0}"));
    let timings = &turn.timings;
    let stages: Vec<String> = [
        ms("asr", timings.asr_ms),
        ms("nlu", timings.nlu_ms),
        ms("skill", timings.skill_ms),
        ms("tts", timings.tts_ms),
    ]
    .into_iter()
    .flatten()
    .collect();
    let heard = turn.first_audio.map_or_else(
        || "no audio".to_owned(),
        |first| format!("first audio {:.0} ms after the last word", first.as_secs_f64() * 1000.0),
    );
    if stages.is_empty() {
        heard
    } else {
        format!("{heard} ({} ms)", stages.join(", "))
    }
}
