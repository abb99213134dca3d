//! One conversation over the Realtime WebSocket, from the device's side.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use futures_util::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use tokio::{
    net::TcpStream,
    time::{sleep_until, timeout},
};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{
        self, Message,
        client::IntoClientRequest as _,
        protocol::{CloseFrame, WebSocketConfig, frame::coding::CloseCode},
    },
};
use topology::Moment;

use crate::{
    event::{self, Event, bounded},
    utterance::{RATE, Utterance, silence},
};

/// What a microphone delivers at once. Shorter pieces would cost more messages, longer ones delay the recognizer.
const CHUNK: Duration = Duration::from_millis(40);
/// Silence sent after the speech until the server notices its end: six times what servers usually wait for.
const SILENCE_MAX: Duration = Duration::from_secs(3);
/// `meridian.turn` may follow `response.done`; a server that does not send it costs a turn this much.
const TURN_REPORT_WAIT: Duration = Duration::from_millis(500);
/// Largest message taken from a server: a second of audio in base64 is 64 KB.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Longest reply kept: two minutes, longer than any skill speaks.
const REPLY_BYTES_MAX: usize = 120 * 2 * RATE as usize;
/// Notices kept per turn; a failover sends two or three.
const NOTICES_MAX: usize = 32;
/// Longest wait for the other side's Close when hanging up: the reply is heard already.
const CLOSE_WAIT: Duration = Duration::from_secs(1);

/// How a call is made.
#[derive(Debug, Clone)]
pub struct CallOptions {
    /// The model asked for.
    pub model: String,
    /// The Host header; the address when not given.
    pub host: Option<String>,
    /// Further request headers, such as `Meridian-Affinity`.
    pub headers: Vec<(String, String)>,
    /// Longest wait for connection, handshake and `session.created` together.
    pub connect_timeout: Duration,
    /// Longest wait from the end of the speech to the end of the reply.
    pub turn_timeout: Duration,
    /// Who says that an utterance has ended.
    pub turn_end: TurnEnd,
}

impl Default for CallOptions {
    /// As a device calls: the server hears the end of the utterance.
    fn default() -> Self {
        Self {
            model: "meridian".to_owned(),
            host: None,
            headers: Vec::new(),
            connect_timeout: Duration::from_secs(5),
            // The longest reply is spoken faster than real time.
            turn_timeout: Duration::from_secs(15),
            turn_end: TurnEnd::ServerVad,
        }
    }
}

impl CallOptions {
    /// As a device of this name calls: edges keep its place by it. Devices without a name share that of their network, and
    /// a rehearsal calls from one machine.
    #[must_use]
    pub fn named(mut self, device: &str) -> Self {
        self.headers.push(("Meridian-Session".to_owned(), device.to_owned()));
        self
    }
}

/// Who says that an utterance has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TurnEnd {
    /// The server, by the silence after it (`server_vad`).
    ServerVad,
    /// The caller, by `input_audio_buffer.commit` and `response.create`.
    Commit,
}

/// How fast an utterance is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pacing {
    /// As it would be spoken.
    RealTime,
    /// At once.
    Immediate,
}

/// What one turn brought.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Turn {
    /// What was heard.
    pub transcript: String,
    /// How much speech that was made of, as the server counted it.
    pub heard: Option<Duration>,
    /// What it was taken to mean; empty when the server did not say.
    pub intent: String,
    /// The reply in words.
    pub reply_text: String,
    /// The reply as audio, 24 kHz mono.
    pub reply_audio: Vec<i16>,
    /// How long the stages took, as the server measured them.
    pub timings: Timings,
    /// From the end of the speech to the first audio of the reply, as the caller saw it.
    pub first_audio: Option<Duration>,
    /// The longest time without any message from the server after the end of the speech: what a failover costs the
    /// listener.
    pub gap_max: Duration,
    /// The region that answered.
    pub region: Option<String>,
    /// What the server told the caller meanwhile.
    pub notices: Vec<Notice>,
}

/// Stages of a turn in milliseconds, as the server measured them.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Timings {
    /// Speech to text, from the end of the speech.
    pub asr_ms: Option<f64>,
    /// Text to intent.
    pub nlu_ms: Option<f64>,
    /// Acting on it.
    pub skill_ms: Option<f64>,
    /// Text to the first audio.
    pub tts_ms: Option<f64>,
    /// All of it.
    pub first_audio_ms: Option<f64>,
}

/// A `meridian.notice`: something the person may want to know.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Notice {
    /// Its kind.
    pub code: String,
    /// In words, such as "Connecting to backup".
    pub message: String,
    /// Where the session goes on, if it moved.
    pub to: Option<String>,
    /// What brings a later call there.
    pub affinity: Option<String>,
}

/// The session went on in another region while the call stayed open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// When the caller was told.
    pub at: Moment,
    /// The region it was in, if it was known.
    pub from: Option<String>,
    /// The region it is in.
    pub to: String,
}

/// How far a turn came: what the caller waits for next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The words that were heard.
    Transcript,
    /// The reply in words.
    Reply,
    /// The first audio of the reply.
    Audio,
    /// The end of the reply.
    End,
}

impl Stage {
    fn as_str(self) -> &'static str {
        match self {
            Self::Transcript => "the transcript; is there speech in the recording?",
            Self::Reply => "the reply",
            Self::Audio => "the reply's audio",
            Self::End => "the end of the reply",
        }
    }
}

/// Why a call or a turn failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No connection.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// Who was called.
        address: SocketAddr,
        /// What went wrong.
        source: io::Error,
    },
    /// No session within the time given.
    #[error("no session from {address} within {waited:?}")]
    ConnectTimeout {
        /// Who was called.
        address: SocketAddr,
        /// The time given.
        waited: Duration,
    },
    /// The server answered the handshake with an HTTP error.
    #[error("refused with {status}: {message}")]
    Refused {
        /// The HTTP status.
        status: StatusCode,
        /// When to come again, if the server said so in seconds.
        retry_after: Option<Duration>,
        /// What the server said.
        message: String,
    },
    /// The connection ended.
    #[error("closed{}: {reason}", code.map(|code| format!(" with {code}")).unwrap_or_default())]
    Closed {
        /// The code of the Close frame (RFC 6455 §7.4); `None` when there was none.
        code: Option<u16>,
        /// The reason in it, or what the network said.
        reason: String,
    },
    /// The other side does not speak the protocol, or the caller asked for something unsayable.
    #[error("protocol error: {0}")]
    Protocol(String),
    /// The turn did not finish in time.
    #[error("no answer within {waited:?}: still waiting for {}", stage.as_str())]
    TurnTimeout {
        /// The time given after the end of the speech.
        waited: Duration,
        /// What was missing.
        stage: Stage,
    },
    /// The server gave the turn up.
    #[error("the turn failed while waiting for {}: {message}", stage.as_str())]
    TurnFailed {
        /// What was missing.
        stage: Stage,
        /// What the server said.
        message: String,
        /// Whether the server blames the request.
        callers_fault: bool,
    },
}

/// Whether saying it again can help, and what it may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Nothing was heard yet: calling again is free of side effects.
    Safe,
    /// The utterance may have been acted on already; people say it again all the same.
    MayRepeat,
    /// It would fail the same way.
    Useless,
}

impl CallError {
    /// Whether saying it again can help.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Connect { .. } | Self::ConnectTimeout { .. } => Retry::Safe,
            Self::Refused { status, .. } => match *status {
                StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => Retry::Safe,
                status if status.is_server_error() => Retry::Safe,
                _ => Retry::Useless,
            },
            // The codes that say the caller misbehaved (RFC 6455 §7.4.1): protocol, data, policy, size, extension.
            Self::Closed {
                code: Some(1002 | 1003 | 1007..=1010),
                ..
            }
            | Self::Protocol(_)
            | Self::TurnFailed {
                callers_fault: true, ..
            } => Retry::Useless,
            Self::Closed { .. } | Self::TurnTimeout { .. } | Self::TurnFailed { .. } => Retry::MayRepeat,
        }
    }
}

/// An open conversation. After an error of [`Call::turn`] its state is unknown: hang up and call again.
#[derive(Debug)]
pub struct Call {
    socket: WebSocketStream<TcpStream>,
    options: CallOptions,
    address: SocketAddr,
    connect_time: Duration,
    session: Option<String>,
    region: Option<String>,
    affinity: Option<String>,
    moves: Vec<Move>,
}

impl Call {
    /// Calls; returns when the server has opened a session.
    pub async fn open(address: SocketAddr, options: &CallOptions) -> Result<Self, CallError> {
        let waited = options.connect_timeout;
        timeout(waited, Self::open_unbounded(address, options))
            .await
            .unwrap_or(Err(CallError::ConnectTimeout { address, waited }))
    }

    async fn open_unbounded(address: SocketAddr, options: &CallOptions) -> Result<Self, CallError> {
        let request = request(address, options)?;
        let started = Instant::now();
        let stream = TcpStream::connect(address)
            .await
            .map_err(|source| CallError::Connect { address, source })?;
        let connect_time = started.elapsed();
        // Audio comes in small pieces that should not wait for each other; without the option it only gets slower.
        let _ = stream.set_nodelay(true);
        let config = WebSocketConfig::default()
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX))
            .write_buffer_size(0)
            .max_write_buffer_size(MESSAGE_BYTES_MAX);
        let (socket, response) = client_async_with_config(request, stream, Some(config))
            .await
            .map_err(call_error)?;
        let mut call = Self {
            socket,
            options: options.clone(),
            address,
            connect_time,
            session: None,
            region: header_text(response.headers(), "meridian-region"),
            affinity: header_text(response.headers(), "meridian-affinity"),
            moves: Vec::new(),
        };
        loop {
            match call.next_event().await? {
                Event::SessionCreated { session } => {
                    call.session = session;
                    break;
                }
                Event::Error(error) => {
                    return Err(CallError::TurnFailed {
                        stage: Stage::Transcript,
                        message: error.message,
                        callers_fault: error.kind == "invalid_request_error",
                    });
                }
                _ => {}
            }
        }
        call.send(&call.session_update()).await?;
        Ok(call)
    }

    /// Says something and listens to the reply.
    pub async fn turn(&mut self, utterance: &Utterance, pacing: Pacing) -> Result<Turn, CallError> {
        let speaking = match pacing {
            Pacing::RealTime => utterance.duration(),
            Pacing::Immediate => Duration::ZERO,
        };
        let mut progress = Progress::default();
        let waited = self.options.turn_timeout;
        let result = timeout(
            speaking + waited,
            self.speak_and_listen(utterance, pacing, &mut progress),
        )
        .await;
        match result {
            Ok(Ok(())) => Ok(progress.finish(self.region.clone())),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(CallError::TurnTimeout {
                waited,
                stage: progress.stage(),
            }),
        }
    }

    /// Stays on the line for `length` without a word, answering pings; an error when the line was cut.
    pub async fn idle(&mut self, length: Duration) -> Result<(), CallError> {
        let end = tokio::time::Instant::now() + length;
        loop {
            match tokio::time::timeout_at(end, self.next_event()).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => return Ok(()),
            }
        }
    }

    /// Says goodbye.
    pub async fn hang_up(mut self) {
        let goodbye = CloseFrame {
            code: CloseCode::Normal,
            reason: "bye".into(),
        };
        // Whether the other side hears it or not, the call is over.
        let _ = timeout(CLOSE_WAIT, async {
            self.socket.close(Some(goodbye)).await?;
            while self.socket.next().await.transpose()?.is_some() {}
            Ok::<(), tungstenite::Error>(())
        })
        .await;
    }

    /// Who was called.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How long TCP took to connect: one round trip.
    pub fn connect_time(&self) -> Duration {
        self.connect_time
    }

    /// The session's id, if the server gave one.
    pub fn session(&self) -> Option<&str> {
        self.session.as_deref()
    }

    /// Where the session went since the last time this was asked.
    pub fn take_moves(&mut self) -> Vec<Move> {
        std::mem::take(&mut self.moves)
    }

    /// The region that the server named when the call was opened (`Meridian-Region`), or when the session last moved.
    pub fn region(&self) -> Option<&str> {
        self.region.as_deref()
    }

    /// What brings a later call to the same region (`Meridian-Affinity`).
    pub fn affinity(&self) -> Option<&str> {
        self.affinity.as_deref()
    }

    fn session_update(&self) -> Value {
        let mut input = json!({ "format": { "type": "audio/pcm", "rate": RATE } });
        if self.options.turn_end == TurnEnd::Commit {
            input["turn_detection"] = Value::Null;
        }
        json!({
            "type": "session.update",
            "session": {
                "type": "realtime",
                "output_modalities": ["audio"],
                "audio": { "input": input, "output": { "format": { "type": "audio/pcm", "rate": RATE } } },
            },
        })
    }

    async fn speak_and_listen(
        &mut self,
        utterance: &Utterance,
        pacing: Pacing,
        progress: &mut Progress,
    ) -> Result<(), CallError> {
        let quiet = silence(CHUNK);
        let mut speech = utterance.chunks(CHUNK);
        let mut silences_left = SILENCE_MAX.div_duration_f64(CHUNK) as u32;
        let mut speaking = true;
        let mut next_chunk = tokio::time::Instant::now();
        loop {
            tokio::select! {
                event = self.next_event() => {
                    progress.take(event?)?;
                    // The server has heard the end: a person would be listening by now.
                    speaking &= !progress.end_heard;
                    if progress.complete() {
                        return Ok(());
                    }
                }
                () = sleep_until(next_chunk), if speaking => {
                    let chunk = match speech.next() {
                        Some(chunk) => {
                            if pacing == Pacing::RealTime {
                                // A piece exists once it has been spoken.
                                next_chunk += CHUNK;
                            }
                            chunk
                        }
                        None => {
                            progress.speech_ended();
                            if self.options.turn_end == TurnEnd::Commit {
                                self.send(&json!({ "type": "input_audio_buffer.commit" })).await?;
                                self.send(&json!({ "type": "response.create" })).await?;
                                speaking = false;
                                continue;
                            }
                            next_chunk += CHUNK;
                            silences_left = silences_left.saturating_sub(1);
                            speaking = silences_left > 0;
                            &quiet
                        }
                    };
                    self.send(&json!({ "type": "input_audio_buffer.append", "audio": BASE64.encode(chunk) })).await?;
                }
                () = sleep_until(progress.report_due()), if progress.done.is_some() => return Ok(()),
            }
        }
    }

    async fn send(&mut self, event: &Value) -> Result<(), CallError> {
        self.socket
            .send(Message::text(event.to_string()))
            .await
            .map_err(call_error)
    }

    /// Takes note of where the session is.
    fn follow(&mut self, event: &Event) {
        if let Event::Notice(Notice {
            to: Some(to), affinity, ..
        }) = event
        {
            let from = self.region.replace(to.clone());
            self.affinity = affinity.clone().or(self.affinity.take());
            if self.moves.len() < NOTICES_MAX {
                let (at, to) = (daemon::clock::now(), to.clone());
                self.moves.push(Move { at, from, to });
            }
        }
    }

    async fn next_event(&mut self) -> Result<Event, CallError> {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Text(text))) => {
                    let event = event::read(&text).map_err(CallError::Protocol)?;
                    self.follow(&event);
                    return Ok(event);
                }
                Some(Ok(Message::Close(frame))) => return Err(closed(frame)),
                // Binary frames are between edge and stack; pings are answered by the library.
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(call_error(error)),
                None => {
                    return Err(CallError::Closed {
                        code: None,
                        reason: "ended without a Close frame".to_owned(),
                    });
                }
            }
        }
    }
}

/// What a turn has brought so far.
#[derive(Debug, Default)]
struct Progress {
    turn: Turn,
    audio: Vec<u8>,
    transcribed: bool,
    replied: bool,
    reported: bool,
    end_heard: bool,
    done: Option<Instant>,
    speech_ended: Option<Instant>,
    last_message: Option<Instant>,
}

impl Progress {
    fn stage(&self) -> Stage {
        match (self.transcribed, self.replied, self.audio.is_empty()) {
            (_, _, false) => Stage::End,
            (_, true, true) => Stage::Audio,
            (true, false, true) => Stage::Reply,
            (false, false, true) => Stage::Transcript,
        }
    }

    fn speech_ended(&mut self) {
        self.speech_ended.get_or_insert_with(Instant::now);
    }

    fn complete(&self) -> bool {
        self.done.is_some() && self.reported
    }

    fn report_due(&self) -> tokio::time::Instant {
        (self.done.unwrap_or_else(Instant::now) + TURN_REPORT_WAIT).into()
    }

    fn take(&mut self, event: Event) -> Result<(), CallError> {
        let now = Instant::now();
        if let Some(since) = self.last_message.max(self.speech_ended) {
            self.turn.gap_max = self.turn.gap_max.max(now - since);
        }
        self.last_message = self.speech_ended.map(|_| now);
        match event {
            Event::SpeechEnded => self.end_heard = true,
            Event::Transcribed { text, heard } => {
                self.transcribed = true;
                self.turn.transcript = text;
                self.turn.heard = heard;
            }
            Event::TranscriptionFailed(message) => return Err(self.failed(message, false)),
            Event::Audio(audio) => {
                self.turn
                    .first_audio
                    .get_or_insert_with(|| self.speech_ended.map_or(Duration::ZERO, |end| now - end));
                if self.audio.len() + audio.len() > REPLY_BYTES_MAX {
                    return Err(CallError::Protocol(format!(
                        "the reply is longer than {REPLY_BYTES_MAX} bytes"
                    )));
                }
                self.audio.extend(audio);
            }
            Event::ReplyText(text) => {
                self.replied |= !text.is_empty();
                self.turn.reply_text = text;
            }
            Event::ResponseDone { status, .. } if status == "completed" => self.done = Some(now),
            Event::ResponseDone { status, detail } => {
                return Err(self.failed(format!("the response is {status}: {detail}"), false));
            }
            Event::TurnReport(report) => {
                self.reported = true;
                self.turn.intent = report.intent;
                self.turn.timings = report.timings;
                self.turn.region = report.region;
                if let Some(transcript) = report.transcript {
                    self.transcribed = true;
                    self.turn.transcript = transcript;
                }
                if let Some(reply) = report.reply {
                    self.replied |= !reply.is_empty();
                    self.turn.reply_text = reply;
                }
            }
            Event::Notice(notice) if self.turn.notices.len() < NOTICES_MAX => self.turn.notices.push(notice),
            Event::Error(error) => {
                let callers_fault = error.kind == "invalid_request_error";
                let message = format!("{} ({})", error.message, error.code);
                return Err(self.failed(message, callers_fault));
            }
            Event::Notice(_) | Event::SessionCreated { .. } | Event::ResponseCreated | Event::Other => {}
        }
        Ok(())
    }

    fn failed(&self, message: String, callers_fault: bool) -> CallError {
        CallError::TurnFailed {
            stage: self.stage(),
            message,
            callers_fault,
        }
    }

    fn finish(self, region: Option<String>) -> Turn {
        let reply_audio = self
            .audio
            .chunks_exact(2)
            .map(|pair| i16::from_le_bytes([pair[0], pair[1]]))
            .collect();
        Turn {
            reply_audio,
            region: self.turn.region.or(region),
            ..self.turn
        }
    }
}

fn request(address: SocketAddr, options: &CallOptions) -> Result<http::Request<()>, CallError> {
    let unsayable = |what: &str| CallError::Protocol(format!("{what} cannot be part of an HTTP request"));
    let mut request = format!("ws://{address}/v1/realtime?model={}", options.model)
        .into_client_request()
        .map_err(|_| unsayable("the model's name"))?;
    let headers = request.headers_mut();
    if let Some(host) = &options.host {
        headers.insert(header::HOST, HeaderValue::from_str(host).map_err(|_| unsayable(host))?);
    }
    for (name, value) in &options.headers {
        let value = HeaderValue::from_str(value).map_err(|_| unsayable(name))?;
        headers.insert(
            HeaderName::from_bytes(name.as_bytes()).map_err(|_| unsayable(name))?,
            value,
        );
    }
    Ok(request)
}

fn header_text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

fn closed(frame: Option<CloseFrame>) -> CallError {
    match frame {
        Some(frame) => CallError::Closed {
            code: Some(frame.code.into()),
            reason: bounded(&frame.reason),
        },
        // 1005 says exactly this: a Close frame without a code.
        None => CallError::Closed {
            code: Some(1005),
            reason: String::new(),
        },
    }
}

fn call_error(error: tungstenite::Error) -> CallError {
    match error {
        tungstenite::Error::Http(response) => {
            let retry_after = response
                .headers()
                .get(header::RETRY_AFTER)
                .and_then(|seconds| seconds.to_str().ok()?.parse().ok())
                .map(Duration::from_secs);
            let body = response.body().as_deref().unwrap_or_default();
            let message = serde_json::from_slice::<Value>(body)
                .ok()
                .and_then(|body| body.pointer("/error/message")?.as_str().map(str::to_owned))
                .unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
            CallError::Refused {
                status: response.status(),
                retry_after,
                message: bounded(message.trim()),
            }
        }
        tungstenite::Error::Io(error) => CallError::Closed {
            code: None,
            reason: error.to_string(),
        },
        tungstenite::Error::ConnectionClosed
        | tungstenite::Error::AlreadyClosed
        | tungstenite::Error::Protocol(
            tungstenite::error::ProtocolError::ResetWithoutClosingHandshake
            | tungstenite::error::ProtocolError::HandshakeIncomplete,
        ) => CallError::Closed {
            code: None,
            reason: "reset".to_owned(),
        },
        other => CallError::Protocol(bounded(&other.to_string())),
    }
}
