//! The configuration of a regional stack.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use daemon::config::{Problems, Rules};
use identity::{Mode, files::Files};
use serde::Deserialize;
use topology::{RegionId, document::Span};

use crate::{queue::Bounds, seal::CheckpointKey};

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
    #[serde(default)]
    pub engine: EngineKind,
    /// Folder with the models of the torch engine, `asr/` and `tts/`; relative to the configuration file.
    #[serde(default = "models_dir")]
    pub models_dir: PathBuf,
    /// The recognizers of the torch engine.
    #[serde(default)]
    pub recognition: Recognition,
    /// The city of a device that names no zone and whose home region has none in the topology: its time zone is that of clocks and
    /// alarms, and its weather answers "what is the weather".
    #[serde(default = "home_city")]
    pub home_city: dialogue::City,
    /// The key that seals the checkpoints of sessions, so that other regions can resume them; the same in all regions. Without it a
    /// session ends with its region.
    #[serde(default)]
    pub checkpoint_key: Option<CheckpointKey>,
    /// Folder for sessions with alarms or timers, which then outlive the process; relative to the configuration file. The stack makes it
    /// when it is missing, and shares it with no other stack. Without it such sessions end with the process.
    #[serde(default)]
    pub state_dir: Option<PathBuf>,
    /// The key that encrypts the files in `state_dir`, or the new and the old one. A key of this stack alone. Without it the files are
    /// sealed and not encrypted.
    #[serde(default)]
    pub state_key: Option<daemon::sealed::Keys>,
    /// The releases that can read the checkpoints.
    #[serde(default)]
    pub checkpoint_version: CheckpointVersion,
    /// The identity that this stack shows to edges, and the callers that it lets in. Without it the stack lets in everybody, in plain text.
    #[serde(default)]
    pub identity: Option<IdentitySection>,
    /// The listener of the Wyoming protocol. Without it the stack does not speak that protocol.
    #[serde(default)]
    pub wyoming: Option<Wyoming>,
    #[serde(default)]
    pub limits: Limits,
}

/// `[wyoming]`: the protocol of Home Assistant's satellites.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wyoming {
    /// Its address; port 0 takes any free one. The protocol has neither encryption nor a login.
    pub listen: SocketAddr,
    /// Connections at once; more wait in the kernel's backlog. Each may hold twenty seconds of audio.
    #[serde(default = "wyoming_connections_max")]
    pub connections_max: usize,
}

fn wyoming_connections_max() -> usize {
    64
}

/// `[identity]`: the certificate of this stack, and the callers that it lets in.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdentitySection {
    /// The callers that it lets in.
    #[serde(default)]
    pub mode: Mode,
    /// As in [`Files`].
    pub certificate: PathBuf,
    /// As in [`Files`].
    pub key: PathBuf,
    /// As in [`Files`].
    pub trust: PathBuf,
    /// Control planes that renew the certificate, `https://address:port`. Without them an operator or another program replaces the files.
    #[serde(default)]
    pub control_planes: Vec<String>,
}

impl IdentitySection {
    pub fn files(&self) -> Files {
        Files {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            trust: self.trust.clone(),
        }
    }
}

/// The releases that can read the checkpoints of a stack. The stack itself reads all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(try_from = "u32")]
pub enum CheckpointVersion {
    /// The previous release too, except for a state that fits only when it is deflated.
    #[default]
    One,
    /// This release and later ones: every state is deflated, to half or less.
    Two,
}

impl TryFrom<u32> for CheckpointVersion {
    type Error = String;

    fn try_from(number: u32) -> Result<Self, String> {
        match number {
            1 => Ok(Self::One),
            2 => Ok(Self::Two),
            _ => Err(format!("{number} is out of range; write 1 or 2")),
        }
    }
}

/// The recognizers of the torch engine.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recognition {
    pub engine: RecognitionEngine,
    /// Least confidence at which the cascade believes the small Conformer, 0 to 1.
    pub accepted_from: f32,
}

impl Default for Recognition {
    fn default() -> Self {
        Self {
            engine: RecognitionEngine::default(),
            accepted_from: 0.8,
        }
    }
}

/// The recognizer of the torch engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecognitionEngine {
    /// The choice of `meridian models use`. Without one: the cascade if its model is there, else the small Conformer.
    #[default]
    Auto,
    /// The small Conformer that ships with Meridian: synthetic voices and commands.
    Conformer,
    /// Moonshine tiny alone.
    Moonshine,
    /// The small Conformer where it is sure, else Moonshine tiny.
    Cascade,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EngineKind {
    /// The libtorch models.
    #[default]
    Torch,
    /// No models: this engine hears only the text that its own synthesizer wrote into the sound. Rehearsals of everything around speech
    /// use it.
    Scripted,
}

/// Every bound of the stack, with the reason for its default.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Largest HTTP request body, in bytes. 25 MiB is what clients of the OpenAI API expect.
    pub body_bytes_max: usize,
    /// Longest file transcribed.
    pub transcription_max: Span,
    /// Longest utterance in a session; the stack cuts a longer one there. Below the 30 s that the recognizer takes, so that it still
    /// understands a cut utterance.
    pub turn_max: Span,
    /// Longest text spoken, in characters: the OpenAI limit.
    pub speech_chars_max: usize,
    /// Longest speech made of one text. The longest text fits at its natural speed, and a quarter of it at the slowest: the time that an
    /// engine needs grows with the length of the speech.
    pub speech_max: Span,
    /// Largest WebSocket message, in bytes: the protocol's 15 MiB of audio as base64 in one event. The stack reads a larger one to its end
    /// and refuses it; from an eighth more on it reads no further and closes the session.
    pub frame_bytes_max: usize,
    /// WebSocket messages longer than 64 KiB of all sessions together, in bytes. An unfinished message counts with the bytes that came, a
    /// whole one until the session has worked on it. A session that finds no room is closed with 1013. A dozen of the longest fit.
    pub long_messages_bytes_max: usize,
    /// Request bodies read and worked on at once; the stack tells callers beyond it to retry. Times `body_bytes_max` it bounds the
    /// memory that uploads can take.
    pub uploads_max: usize,
    /// Open sockets, HTTP and WebSocket together. Further connections wait in the kernel's backlog.
    pub connections_max: usize,
    /// Open Realtime sessions.
    pub sessions_max: usize,
    /// Threads that recognise for live callers and probes. Two, so that one long utterance does not hold up all short ones.
    pub asr_workers: usize,
    /// Threads that speak for them.
    pub tts_workers: usize,
    /// Threads of either engine for uploads and for texts over HTTP. They get the processor time that live callers leave, at least a
    /// tenth. One, so that the other core of a small machine is free when a caller has spoken.
    pub bulk_workers: usize,
    /// Utterances, and likewise texts, that wait for a thread: so many of live callers, and so many of others. The stack tells callers
    /// beyond it to retry: a queue longer than callers wait only makes everybody late.
    pub queue_max: usize,
    /// The same bound in seconds of audio, heard or to be spoken: one core hears more than a hundred of them in a second, and speaks
    /// about forty.
    pub queue_audio_max: Span,
    /// Deadline of one engine's job, waiting and computing together.
    pub engine_max: Span,
    /// Time to send request headers, and idle time between requests.
    pub header_max: Span,
    /// Time to send a request body. A client has as long for a WebSocket message, and a second more for each 64 KiB that came of it; the
    /// stack closes a session whose message takes longer with 1008.
    pub body_max: Span,
    /// Period of the pings to a session.
    pub ping_every: Span,
    /// The stack closes a session from which nothing came for this long, not even a pong.
    pub idle_max: Span,
    /// The stack cuts off a client that takes nothing for this long while events wait for it.
    pub slow_client_max: Span,
    /// Time for current turns to end when the stack stops.
    pub drain_max: Span,
    /// Lifetime of the memory of a closed session.
    pub session_ttl: Span,
    /// Closed and open sessions remembered; the stack forgets the one that is idle longest first.
    pub sessions_kept_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        let seconds = |seconds: u64| Span(Duration::from_secs(seconds));
        let minutes = |minutes: u64| Span(Duration::from_secs(60 * minutes));
        Self {
            body_bytes_max: 25 << 20,
            transcription_max: minutes(5),
            turn_max: seconds(25),
            speech_chars_max: 4096,
            speech_max: minutes(10),
            frame_bytes_max: 21 << 20,
            long_messages_bytes_max: 256 << 20,
            uploads_max: 32,
            connections_max: 2048,
            sessions_max: 1024,
            asr_workers: 2,
            tts_workers: 2,
            bulk_workers: 1,
            queue_max: 32,
            queue_audio_max: minutes(10),
            engine_max: seconds(20),
            header_max: seconds(30),
            body_max: seconds(60),
            ping_every: seconds(30),
            idle_max: seconds(90),
            slow_client_max: seconds(10),
            drain_max: seconds(20),
            session_ttl: minutes(60),
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
    /// Checks a configuration that comes from no file; the error names all problems.
    pub fn check(&self) -> anyhow::Result<()> {
        Ok(self.problems().into_result()?)
    }
}

impl Rules for Config {
    const EXAMPLE: &'static str = include_str!("../../../configs/stack.toml");
    const ONCE_SECONDS: &'static [(&'static str, &'static str)] = &[
        ("limits.transcription_seconds_max", "limits.transcription_max"),
        ("limits.turn_seconds_max", "limits.turn_max"),
        ("limits.speech_seconds_max", "limits.speech_max"),
        ("limits.queue_seconds_max", "limits.queue_audio_max"),
        ("limits.engine_seconds_max", "limits.engine_max"),
        ("limits.header_seconds_max", "limits.header_max"),
        ("limits.body_seconds_max", "limits.body_max"),
        ("limits.ping_seconds", "limits.ping_every"),
        ("limits.idle_seconds_max", "limits.idle_max"),
        ("limits.slow_client_seconds_max", "limits.slow_client_max"),
        ("limits.drain_seconds_max", "limits.drain_max"),
        ("limits.session_ttl_seconds", "limits.session_ttl"),
    ];

    fn problems(&self) -> Problems {
        let limits = &self.limits;
        let mut problems = Problems::default();
        problems.add_unless_within("recognition.accepted_from", &self.recognition.accepted_from, 0.0..=1.0);
        for (key, value) in [
            ("body_bytes_max", limits.body_bytes_max as u64),
            ("speech_chars_max", limits.speech_chars_max as u64),
            ("uploads_max", limits.uploads_max as u64),
            ("connections_max", limits.connections_max as u64),
            ("sessions_max", limits.sessions_max as u64),
            ("queue_max", limits.queue_max as u64),
            ("sessions_kept_max", limits.sessions_kept_max as u64),
        ] {
            problems.add_if_zero(&format!("limits.{key}"), value);
        }
        for (key, span) in [
            ("transcription_max", limits.transcription_max),
            ("turn_max", limits.turn_max),
            ("queue_audio_max", limits.queue_audio_max),
            ("speech_max", limits.speech_max),
            ("engine_max", limits.engine_max),
            ("header_max", limits.header_max),
            ("body_max", limits.body_max),
            ("ping_every", limits.ping_every),
            ("slow_client_max", limits.slow_client_max),
        ] {
            problems.add_if_instant(&format!("limits.{key}"), span.0);
        }
        if let Some(wyoming) = self.wyoming {
            problems.add_if_zero("wyoming.connections_max", wyoming.connections_max as u64);
        }
        if limits.frame_bytes_max < 4096 {
            let text = format!(
                "{} is too small for a session.update; write 4096 or more",
                limits.frame_bytes_max
            );
            problems.add("limits.frame_bytes_max", text);
        }
        if limits.long_messages_bytes_max < limits.frame_read_max() {
            let text = format!(
                "{} has no room for one message of limits.frame_bytes_max and an eighth more; write {} or more",
                limits.long_messages_bytes_max,
                limits.frame_read_max()
            );
            problems.add("limits.long_messages_bytes_max", text);
        }
        let two_pings = Span(limits.ping_every.0.saturating_mul(2));
        if limits.idle_max.0 < two_pings.0 {
            let text = format!(
                "\"{}\" is less than twice limits.ping_every (\"{}\"), so one lost pong would close a session; write \
                 \"{two_pings}\" or more",
                limits.idle_max, limits.ping_every
            );
            problems.add("limits.idle_max", text);
        }
        if limits.sessions_max >= limits.connections_max {
            let text = format!(
                "{} leaves no connection of limits.connections_max ({}) for health checks; write less than that",
                limits.sessions_max, limits.connections_max
            );
            problems.add("limits.sessions_max", text);
        }
        if self.state_dir.is_some() && self.checkpoint_key.is_none() {
            let text = "the files there need checkpoint_key to seal them; write one, made with `openssl rand -hex 32`";
            problems.add("state_dir", text);
        }
        if self.state_key.is_some() && self.state_dir.is_none() {
            let text = "it encrypts the files in state_dir, and there is none; write state_dir = \"state\", or remove state_key";
            problems.add("state_key", text);
        }
        for endpoint in self.identity.iter().flat_map(|identity| &identity.control_planes) {
            if !(endpoint.starts_with("https://") && api::connect::is_url(endpoint)) {
                let text = format!("\"{endpoint}\" is not the URL of a control plane; write \"https://address:port\"");
                problems.add("identity.control_planes", text);
            }
        }
        for (key, threads) in [
            ("asr_workers", limits.asr_workers),
            ("tts_workers", limits.tts_workers),
            ("bulk_workers", limits.bulk_workers),
        ] {
            // Each worker is a thread, and with the small models a copy of its model.
            problems.add_unless_within(&format!("limits.{key}"), &threads, 1..=64);
        }
        problems
    }

    fn paths(&mut self) -> Vec<&mut PathBuf> {
        let identity = self.identity.iter_mut();
        let identity = identity.flat_map(|files| [&mut files.certificate, &mut files.key, &mut files.trust]);
        [&mut self.models_dir]
            .into_iter()
            .chain(&mut self.state_dir)
            .chain(identity)
            .collect()
    }
}

impl Limits {
    pub(crate) fn engine_limit(&self) -> Duration {
        self.engine_max.0
    }

    /// Largest WebSocket message that is read to the end, in bytes.
    pub(crate) fn frame_read_max(&self) -> usize {
        self.frame_bytes_max.saturating_add(self.frame_bytes_max / 8)
    }

    /// Deadline of a job whose beginning the caller already hears, queue and engine together: an end in the middle is worse than a pause.
    pub(crate) fn begun_limit(&self) -> Duration {
        3 * self.engine_limit()
    }

    pub(crate) fn bounds(&self) -> Bounds {
        Bounds {
            jobs_max: self.queue_max,
            seconds_max: self.queue_audio_max.0.as_secs_f32(),
        }
    }

    /// Time that a process needs to stop: the drain, and then the Close frames of the sessions that are left.
    pub fn stop_grace(&self) -> Duration {
        self.drain_max.0 + Duration::from_secs(5)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, topology::Problems> {
        daemon::config::read("stack.toml", text)
    }

    const LEAST: &str = "region = \"eu-west\"\nlisten = \"127.0.0.1:0\"\nadmin_listen = \"127.0.0.1:0\"\n";

    #[test]
    fn the_example_configuration_works_and_shows_the_defaults() {
        let shown = parse(include_str!("../../../configs/stack.toml")).unwrap();
        assert_eq!(shown.recognition, Recognition::default());
        assert_eq!(format!("{:?}", shown.limits), format!("{:?}", Limits::default()));
    }

    #[test]
    fn the_listener_for_home_assistant_is_off_unless_its_address_is_written() {
        assert!(parse(LEAST).unwrap().wyoming.is_none());
        let wyoming = parse(&format!("{LEAST}[wyoming]\nlisten = \"127.0.0.1:10300\"\n"))
            .unwrap()
            .wyoming;
        assert_eq!(wyoming.unwrap().connections_max, 64);
        let refused = parse(&format!(
            "{LEAST}[wyoming]\nlisten = \"127.0.0.1:0\"\nconnections_max = 0\n"
        ));
        assert_eq!(
            refused.unwrap_err().to_string(),
            "stack.toml:6: wyoming.connections_max: 0 is out of range; write 1 or more"
        );
    }

    #[test]
    fn three_lines_are_enough() {
        assert_eq!(parse(LEAST).unwrap().engine, EngineKind::Torch);
    }

    #[test]
    fn a_key_for_no_files_and_a_key_that_is_none_are_refused() {
        let key = "ab".repeat(32);
        let alone = format!("state_key = \"{key}\"\n{LEAST}");
        let with_files = format!("checkpoint_key = \"{key}\"\nstate_dir = \"state\"\n");
        assert!(parse(&format!("{with_files}{alone}")).unwrap().state_key.is_some());
        let error = parse(&alone).unwrap_err().to_string();
        assert!(
            error.contains("stack.toml:1: state_key: it encrypts the files in state_dir"),
            "{error}"
        );
        let short = format!("{with_files}state_key = \"abcd\"\n{LEAST}");
        let error = parse(&short).unwrap_err().to_string();
        assert!(error.contains("has 2 bytes and needs 32; make one with"), "{error}");
    }

    #[test]
    fn what_cannot_work_is_refused_all_at_once() {
        let text = "[limits]\nqueue_max = 0\nframe_bytes_max = 10\nidle_max = \"31s\"\ndrain_seconds_max = 7\n\
                    sessions_max = \"many\"\nqueue_mx = 1\nasr_workers = 65\nbody_max = \"0s\"\n";
        let text = format!("state_dir = \"state\"\ncheckpoint_version = 3\n{LEAST}{text}");
        assert_eq!(
            parse(&text).unwrap_err().to_string(),
            "stack.toml:1: state_dir: the files there need checkpoint_key to seal them; write one, made with \
             `openssl rand -hex 32`\n\
             stack.toml:2: checkpoint_version: 3 is out of range; write 1 or 2\n\
             stack.toml:7: limits.queue_max: 0 is out of range; write 1 or more\n\
             stack.toml:8: limits.frame_bytes_max: 10 is too small for a session.update; write 4096 or more\n\
             stack.toml:9: limits.idle_max: \"31s\" is less than twice limits.ping_every (\"30s\"), so one lost pong would \
             close a session; write \"1m\" or more\n\
             stack.toml:10: limits.drain_seconds_max: whole seconds are now written as a duration; write drain_max = \"7s\"\n\
             stack.toml:11: limits.sessions_max: invalid type: string \"many\", expected usize; write sessions_max = 1024\n\
             stack.toml:12: limits.queue_mx: unknown key; write queue_max, or remove it\n\
             stack.toml:13: limits.asr_workers: 65 is out of range; write 1 to 64\n\
             stack.toml:14: limits.body_max: must be greater than zero; write a duration, such as \"10s\""
        );
    }
}
