//! What a regional stack is told when it starts.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::bail;
use serde::Deserialize;
use topology::RegionId;

use crate::seal::CheckpointKey;

/// Configuration of `meridian-stack`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The region this stack serves.
    pub region: RegionId,
    /// Address for devices and edges; port 0 takes any free one.
    pub listen: SocketAddr,
    /// Address for metrics, health and readiness; port 0 takes any free one.
    pub admin_listen: SocketAddr,
    /// What recognises and speaks.
    #[serde(default)]
    pub engine: EngineKind,
    /// Folder with the models of the torch engine, `asr/` and `tts/`; relative to the configuration file.
    #[serde(default = "models_dir")]
    pub models_dir: PathBuf,
    /// Where devices are when they do not say: time zone of clocks and alarms, city of "what is the weather".
    #[serde(default = "home_city")]
    pub home_city: dialogue::City,
    /// Seals the checkpoints of sessions, so that other regions can go on with them; the same in all regions. Without it a
    /// session ends with its region.
    #[serde(default)]
    pub checkpoint_key: Option<CheckpointKey>,
    /// Every bound.
    #[serde(default)]
    pub limits: Limits,
}

/// What recognises and speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EngineKind {
    /// The libtorch models.
    #[default]
    Torch,
    /// No models: hears only what its own synthesizer wrote into the sound. For rehearsing everything around speech.
    Scripted,
}

/// Every bound of the stack, with the reason for its default.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Largest HTTP request body, in bytes. 25 MiB is what clients of the OpenAI API expect.
    pub body_bytes_max: usize,
    /// Longest file transcribed, in seconds.
    pub transcription_seconds_max: u32,
    /// Longest utterance in a session, in seconds; what goes on longer is cut there. Below the 30 s that the recognizer
    /// takes, so that a cut utterance is still understood.
    pub turn_seconds_max: u32,
    /// Longest text spoken, in characters: the OpenAI limit.
    pub speech_chars_max: usize,
    /// Largest WebSocket frame or message, in bytes: four seconds of audio in one event.
    pub frame_bytes_max: usize,
    /// Request bodies read and worked on at once; callers beyond it are told to retry. Times `body_bytes_max` it bounds the
    /// memory that uploads can take.
    pub uploads_max: usize,
    /// Open sockets, HTTP and WebSocket together. What lies beyond waits in the kernel's backlog.
    pub connections_max: usize,
    /// Open Realtime sessions.
    pub sessions_max: usize,
    /// Threads that recognise. Two, so that one long utterance does not hold up all short ones.
    pub asr_workers: usize,
    /// Threads that speak.
    pub tts_workers: usize,
    /// Utterances, and likewise texts, waiting for a thread. Beyond it callers are told to retry: a queue longer than a
    /// caller's patience only makes everybody late.
    pub queue_max: usize,
    /// Patience with one engine, waiting and computing together, in seconds.
    pub engine_seconds_max: u64,
    /// Time to send request headers, and idle time between requests, in seconds.
    pub header_seconds_max: u64,
    /// Time to send a request body, in seconds.
    pub body_seconds_max: u64,
    /// A session is pinged this often, in seconds.
    pub ping_seconds: u64,
    /// A session from which nothing came, not even a pong, is closed after this long, in seconds.
    pub idle_seconds_max: u64,
    /// A client that takes nothing for this long while there is something for it is cut off, in seconds.
    pub slow_client_seconds_max: u64,
    /// Time for current turns to end when the stack stops, in seconds.
    pub drain_seconds_max: u64,
    /// How long the state of a closed session is kept, in seconds.
    pub session_ttl_seconds: u64,
    /// Closed and open sessions remembered; the one idle longest is forgotten first.
    pub sessions_kept_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes_max: 25 << 20,
            transcription_seconds_max: 300,
            turn_seconds_max: 25,
            speech_chars_max: 4096,
            frame_bytes_max: 256 << 10,
            uploads_max: 32,
            connections_max: 2048,
            sessions_max: 1024,
            asr_workers: 2,
            tts_workers: 2,
            queue_max: 32,
            engine_seconds_max: 20,
            header_seconds_max: 30,
            body_seconds_max: 60,
            ping_seconds: 30,
            idle_seconds_max: 90,
            slow_client_seconds_max: 10,
            drain_seconds_max: 20,
            session_ttl_seconds: 3600,
            sessions_kept_max: 10_000,
        }
    }
}

fn models_dir() -> PathBuf {
    "../regional-stack/models".into()
}

fn home_city() -> dialogue::City {
    dialogue::City::London
}

impl Config {
    /// Refuses values that cannot work, all of them in one message.
    pub fn check(&self) -> anyhow::Result<()> {
        let limits = &self.limits;
        let mut problems = Vec::new();
        for (key, value) in [
            ("body_bytes_max", limits.body_bytes_max as u64),
            ("transcription_seconds_max", limits.transcription_seconds_max.into()),
            ("turn_seconds_max", limits.turn_seconds_max.into()),
            ("speech_chars_max", limits.speech_chars_max as u64),
            ("uploads_max", limits.uploads_max as u64),
            ("connections_max", limits.connections_max as u64),
            ("sessions_max", limits.sessions_max as u64),
            ("asr_workers", limits.asr_workers as u64),
            ("tts_workers", limits.tts_workers as u64),
            ("queue_max", limits.queue_max as u64),
            ("engine_seconds_max", limits.engine_seconds_max),
            ("header_seconds_max", limits.header_seconds_max),
            ("body_seconds_max", limits.body_seconds_max),
            ("ping_seconds", limits.ping_seconds),
            ("slow_client_seconds_max", limits.slow_client_seconds_max),
            ("sessions_kept_max", limits.sessions_kept_max as u64),
        ] {
            if value == 0 {
                problems.push(format!("limits.{key} must be at least 1"));
            }
        }
        if limits.frame_bytes_max < 4096 {
            problems.push("limits.frame_bytes_max must be at least 4096: a session.update must fit".to_owned());
        }
        if limits.idle_seconds_max < 2 * limits.ping_seconds {
            problems.push(
                "limits.idle_seconds_max must be at least twice limits.ping_seconds, or one lost pong closes a session"
                    .to_owned(),
            );
        }
        if limits.sessions_max >= limits.connections_max {
            problems.push(
                "limits.sessions_max must be below limits.connections_max, or sessions shut out health checks"
                    .to_owned(),
            );
        }
        if limits.asr_workers > 64 || limits.tts_workers > 64 {
            problems.push("limits.asr_workers and limits.tts_workers must be at most 64: each is a thread with its own model memory".to_owned());
        }
        if !problems.is_empty() {
            bail!("the configuration cannot work: {}", problems.join("; "));
        }
        Ok(())
    }
}

impl Limits {
    pub(crate) fn engine_patience(&self) -> Duration {
        Duration::from_secs(self.engine_seconds_max)
    }

    pub(crate) fn drain(&self) -> Duration {
        Duration::from_secs(self.drain_seconds_max)
    }

    /// How long a process must be given to stop: the drain, and time to say goodbye to who is left after it.
    pub fn stop_grace(&self) -> Duration {
        self.drain() + Duration::from_secs(5)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> anyhow::Result<Config> {
        let config: Config = daemon::config::parse("stack.toml", text)?;
        config.check()?;
        Ok(config)
    }

    const LEAST: &str = "region = \"eu-west\"\nlisten = \"127.0.0.1:0\"\nadmin_listen = \"127.0.0.1:0\"\n";

    #[test]
    fn the_example_configuration_works_and_shows_the_defaults() {
        let shown = parse(include_str!("../../../configs/stack.toml")).unwrap();
        assert_eq!(format!("{:?}", shown.limits), format!("{:?}", Limits::default()));
    }

    #[test]
    fn three_lines_are_enough() {
        assert_eq!(parse(LEAST).unwrap().engine, EngineKind::Torch);
    }

    #[test]
    fn what_cannot_work_is_refused_all_at_once() {
        let limits = "[limits]\nqueue_max = 0\nframe_bytes_max = 10\nidle_seconds_max = 31\n";
        let error = parse(&format!("{LEAST}{limits}")).unwrap_err().to_string();
        for key in ["queue_max", "frame_bytes_max", "idle_seconds_max"] {
            assert!(error.contains(key), "{error}");
        }
        let error = parse(&format!("{LEAST}[limits]\nqueue_mx = 1\n"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("unknown field `queue_mx`"), "{error}");
    }
}
