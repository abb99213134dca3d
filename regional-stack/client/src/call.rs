//! One conversation over the Realtime WebSocket, from the side of a device.
//!
//! One file, although it is long: a turn is one loop over events and deadlines, and its parts share what it measured.

use std::{
    fmt, io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use futures_util::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
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
    error::{CallError, Stage, call_error, closed},
    event::{self, Event, Notice, Timings},
    playout::{JitterBuffer, Playout},
    texts,
    utterance::{self, RATE, Utterance, silence},
};

/// Length of one piece of audio, as a microphone delivers it. Shorter pieces would cost more messages; longer ones
/// would delay the recognizer.
const CHUNK: Duration = Duration::from_millis(40);
/// Longest silence sent after the speech while the server has not detected its end: six times the usual wait of
/// servers.
const SILENCE_MAX: Duration = Duration::from_secs(3);
/// Longest wait for `meridian.turn`, which follows `response.done`. A server that does not send it delays each turn by
/// this much.
const TURN_REPORT_WAIT: Duration = Duration::from_millis(500);
/// Bytes of one read. The library clears as many before each read: with its default, 128 KiB, clearing takes a third of the
/// time of a caller.
const READ_BUFFER_BYTES: usize = 16 << 10;
/// Largest message accepted from a server, in bytes. A second of audio in base64 takes 64 KB.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Longest reply, in bytes: two minutes, longer than any skill speaks.
const REPLY_BYTES_MAX: usize = 120 * 2 * RATE as usize;
/// Most notices stored per turn. A failover sends two or three.
const NOTICES_MAX: usize = 32;
/// Longest wait for the server's Close frame when hanging up. The reply is complete by then.
const CLOSE_WAIT: Duration = Duration::from_secs(1);

/// The settings of a call.
#[derive(Debug, Clone)]
pub struct CallOptions {
    /// The model that the call asks for.
    pub model: String,
    /// The Host header. `None`: the address.
    pub host: Option<String>,
    /// Further request headers, such as `Meridian-Affinity`.
    pub headers: Vec<(String, String)>,
    /// Deadline for connection, handshake and `session.created` together.
    pub connect_timeout: Duration,
    /// Deadline for the end of the reply, from the end of the speech.
    pub turn_timeout: Duration,
    /// The side that ends an utterance.
    pub turn_end: TurnEnd,
}

impl Default for CallOptions {
    /// The settings of a device: the server detects the end of the utterance.
    fn default() -> Self {
        Self {
            model: "meridian".to_owned(),
            host: None,
            headers: Vec::new(),
            connect_timeout: Duration::from_secs(5),
            // A server speaks the longest reply faster than real time.
            turn_timeout: Duration::from_secs(15),
            turn_end: TurnEnd::ServerVad,
        }
    }
}

impl CallOptions {
    /// Sets the device name of the call (`Meridian-Session`). Edges choose the region and the stack of a session by
    /// this name. Calls without a name are placed by the caller's address, so all calls of a rehearsal, which come from
    /// one machine, would go to the same stack.
    #[must_use]
    pub fn with_device_name(mut self, device: &str) -> Self {
        self.headers.push(("Meridian-Session".to_owned(), device.to_owned()));
        self
    }
}

/// The side that ends an utterance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TurnEnd {
    /// The server, when it detects silence (`server_vad`).
    ServerVad,
    /// The caller, by `input_audio_buffer.commit` and `response.create`.
    Commit,
}

/// The speed at which an utterance is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pacing {
    /// At the speed of speech.
    RealTime,
    /// All at once.
    Immediate,
}

/// The result of one turn.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Turn {
    /// The words that the server recognised.
    pub transcript: String,
    /// Length of the recognised speech, as the server counted it.
    pub heard: Option<Duration>,
    /// The intent of the words. Empty if the server named none.
    pub intent: String,
    /// The reply as text.
    pub reply_text: String,
    /// The reply as audio, 24 kHz mono.
    pub reply_audio: Vec<i16>,
    /// The durations of the stages, as the server measured them.
    pub timings: Timings,
    /// Time from the end of the speech to the first audio of the reply, as the caller measured it.
    pub first_audio: Option<Duration>,
    /// Longest time without a message from the server after the end of the speech: the delay that a failover costs the
    /// user.
    pub gap_max: Duration,
    /// The playback of the reply through the jitter buffer of a device.
    pub playout: Playout,
    /// The region that answered.
    pub region: Option<String>,
    /// The notices that the server sent during the turn.
    pub notices: Vec<Notice>,
}

/// A move of the session to another region while the call stayed open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// Arrival time of the notice.
    pub at: Moment,
    /// The region that the session left, if it was known.
    pub from: Option<String>,
    /// The region that the session is in now.
    pub to: String,
}

/// A connection to a server.
pub trait Connection: AsyncRead + AsyncWrite + fmt::Debug + Send + Unpin {}
impl<C: AsyncRead + AsyncWrite + fmt::Debug + Send + Unpin> Connection for C {}

/// An open conversation. After an error of [`Call::turn`] its state is unknown: hang up and call again.
#[derive(Debug)]
pub struct Call {
    socket: WebSocketStream<Box<dyn Connection>>,
    options: CallOptions,
    address: SocketAddr,
    connect_time: Duration,
    session: Option<String>,
    region: Option<String>,
    affinity: Option<String>,
    moves: Vec<Move>,
    /// Plays the replies, and the moment from which its time counts.
    jitter: JitterBuffer,
    opened: tokio::time::Instant,
}

impl Call {
    /// Connects to a server. Returns once the server has opened a session.
    pub async fn open(address: SocketAddr, options: &CallOptions) -> Result<Self, CallError> {
        let connecting = async {
            let stream = TcpStream::connect(address).await?;
            // Pieces of audio must not wait for each other. If setting the option fails, the call is only slower.
            let _ = stream.set_nodelay(true);
            Ok(stream)
        };
        Self::open_by(address, options, connecting).await
    }

    /// The same over a connection that the caller opens in its own way.
    pub async fn open_by<C: Connection + 'static>(
        address: SocketAddr,
        options: &CallOptions,
        connecting: impl Future<Output = io::Result<C>>,
    ) -> Result<Self, CallError> {
        let waited = options.connect_timeout;
        timeout(waited, Self::open_unbounded(address, options, connecting))
            .await
            .unwrap_or(Err(CallError::ConnectTimeout { address, waited }))
    }

    async fn open_unbounded<C: Connection + 'static>(
        address: SocketAddr,
        options: &CallOptions,
        connecting: impl Future<Output = io::Result<C>>,
    ) -> Result<Self, CallError> {
        let request = request(address, options)?;
        let started = Instant::now();
        let stream = connecting
            .await
            .map_err(|source| CallError::Connect { address, source })?;
        let stream: Box<dyn Connection> = Box::new(stream);
        let connect_time = started.elapsed();
        let config = WebSocketConfig::default()
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX))
            .read_buffer_size(READ_BUFFER_BYTES)
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
            jitter: JitterBuffer::default(),
            opened: tokio::time::Instant::now(),
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

    /// Speaks an utterance and returns the reply.
    pub async fn turn(&mut self, utterance: &Utterance, pacing: Pacing) -> Result<Turn, CallError> {
        let speaking = match pacing {
            Pacing::RealTime => utterance.duration(),
            Pacing::Immediate => Duration::ZERO,
        };
        let mut progress = Progress::default();
        let waited = self.options.turn_timeout;
        let before = self.jitter.totals();
        let result = timeout(
            speaking + waited,
            self.speak_and_listen(utterance, pacing, &mut progress),
        )
        .await;
        match result {
            Ok(Ok(())) => {
                let playout = self.play_out(before);
                if playout.underruns > 0 {
                    let report = json!({ "type": "meridian.playback", "underruns": playout.underruns });
                    self.send(&report).await?;
                }
                Ok(progress.finish(self.region.clone(), playout))
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(CallError::TurnTimeout {
                waited,
                stage: progress.stage(),
            }),
        }
    }

    /// Plays the reply to its end, and returns what was heard of it since `before`. Nothing is late any more, so nobody has to wait for it.
    fn play_out(&mut self, before: Playout) -> Playout {
        self.jitter.finish(self.opened.elapsed());
        let rest = self.jitter.buffered();
        self.jitter.advance(self.opened.elapsed() + rest);
        self.opened = self.opened.checked_sub(rest).unwrap_or(self.opened);
        let after = self.jitter.totals();
        Playout {
            underruns: after.underruns - before.underruns,
            stalled: after.stalled - before.stalled,
            played: after.played - before.played,
        }
    }

    /// Stays connected for `length` without speaking, and answers pings. Fails if the connection is cut.
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

    /// Closes the call with a Close frame.
    pub async fn hang_up(mut self) {
        let goodbye = CloseFrame {
            code: CloseCode::Normal,
            reason: "bye".into(),
        };
        // The call is over whether or not the server receives the frame.
        let _ = timeout(CLOSE_WAIT, async {
            self.socket.close(Some(goodbye)).await?;
            while self.socket.next().await.transpose()?.is_some() {}
            Ok::<(), tungstenite::Error>(())
        })
        .await;
    }

    /// The address of the server.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Time that the TCP connection took: one round trip.
    pub fn connect_time(&self) -> Duration {
        self.connect_time
    }

    /// The id of the session, if the server gave one.
    pub fn session(&self) -> Option<&str> {
        self.session.as_deref()
    }

    /// The moves of the session since the previous call of this method.
    pub fn take_moves(&mut self) -> Vec<Move> {
        std::mem::take(&mut self.moves)
    }

    /// The region that the server named when the call was opened (`Meridian-Region`), or when the session last moved.
    pub fn region(&self) -> Option<&str> {
        self.region.as_deref()
    }

    /// The affinity token that leads a later call to the same region (`Meridian-Affinity`).
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
                    let event = event?;
                    self.listen(&event);
                    progress.take(event)?;
                    // The server has detected the end of the utterance; a person would be listening by now.
                    speaking &= !progress.end_heard;
                    if progress.complete() {
                        return Ok(());
                    }
                }
                () = sleep_until(next_chunk), if speaking => {
                    let chunk = match speech.next() {
                        Some(chunk) => {
                            if pacing == Pacing::RealTime {
                                // A microphone has a piece only after it was spoken.
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

    /// Gives the audio of a reply to the jitter buffer.
    fn listen(&mut self, event: &Event) {
        let now = self.opened.elapsed();
        match event {
            Event::Audio(audio) => self.jitter.push(now, utterance::length(audio.len() / 2)),
            Event::ResponseDone { .. } => self.jitter.finish(now),
            _ => {}
        }
    }

    async fn send(&mut self, event: &Value) -> Result<(), CallError> {
        self.socket
            .send(Message::text(event.to_string()))
            .await
            .map_err(call_error)
    }

    /// Records the region and the affinity token when the session moves.
    fn record_move(&mut self, event: &Event) {
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
                    self.record_move(&event);
                    return Ok(event);
                }
                Some(Ok(Message::Close(frame))) => return Err(closed(frame)),
                // Binary messages are for edge and stack only. The library answers pings.
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(call_error(error)),
                None => {
                    return Err(CallError::Closed {
                        code: None,
                        reason: "ended without a Close frame".to_owned(),
                        source: None,
                    });
                }
            }
        }
    }
}

/// The parts of a turn that have arrived so far.
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
                    return Err(CallError::Protocol(texts::reply_too_long(REPLY_BYTES_MAX)));
                }
                self.audio.extend(audio);
            }
            Event::ReplyText(text) => {
                self.replied |= !text.is_empty();
                self.turn.reply_text = text;
            }
            Event::ResponseDone { status, .. } if status == "completed" => self.done = Some(now),
            Event::ResponseDone { status, detail } => {
                return Err(self.failed(texts::response_is(&status, &detail), false));
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
                let message = texts::server_error(&error.message, &error.code);
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

    fn finish(self, region: Option<String>, playout: Playout) -> Turn {
        let reply_audio = self
            .audio
            .chunks_exact(2)
            .map(|pair| i16::from_le_bytes([pair[0], pair[1]]))
            .collect();
        Turn {
            reply_audio,
            playout,
            region: self.turn.region.or(region),
            ..self.turn
        }
    }
}

fn request(address: SocketAddr, options: &CallOptions) -> Result<http::Request<()>, CallError> {
    let unsayable = |what: &str| CallError::Protocol(texts::unsayable(what));
    let mut request = format!("ws://{address}/v1/realtime?model={}&meridian=1", options.model)
        .into_client_request()
        .map_err(|_| unsayable(texts::MODEL_NAME))?;
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

#[cfg(test)]
mod tests {
    use tokio::time::sleep;
    use tokio_tungstenite::accept_async;

    use super::*;

    /// A server that speaks a reply in two halves of 200 ms, with a pause in between, and then returns the next event of the client.
    async fn pausing_server(connection: tokio::io::DuplexStream, pause: Duration) -> Value {
        let mut socket = accept_async(connection).await.unwrap();
        let half = BASE64.encode(silence(Duration::from_millis(200)));
        let audio = json!({ "type": "response.output_audio.delta", "delta": half });
        let created = json!({ "type": "session.created", "session": { "id": "s" } });
        socket.send(Message::text(created.to_string())).await.unwrap();
        while next_of(&mut socket).await["type"] != "response.create" {}
        for event in [
            json!({ "type": "input_audio_buffer.committed" }),
            json!({ "type": "conversation.item.input_audio_transcription.completed", "transcript": "stop" }),
            audio.clone(),
        ] {
            socket.send(Message::text(event.to_string())).await.unwrap();
        }
        sleep(pause).await;
        let done = json!({ "type": "response.done", "response": { "status": "completed" } });
        let report = json!({ "type": "meridian.turn", "reply": "okay" });
        for event in [audio, done, report] {
            socket.send(Message::text(event.to_string())).await.unwrap();
        }
        next_of(&mut socket).await
    }

    async fn next_of<C: Connection>(socket: &mut WebSocketStream<C>) -> Value {
        loop {
            match socket.next().await.expect("the client goes on").unwrap() {
                Message::Text(text) => return serde_json::from_str(&text).unwrap(),
                Message::Close(_) => return json!({ "type": "close" }),
                _ => {}
            }
        }
    }

    /// The playout of a turn with such a server, and the event that follows it.
    async fn with_pause(pause: Duration) -> (Playout, Value) {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let server = tokio::spawn(pausing_server(theirs, pause));
        let options = CallOptions {
            turn_end: TurnEnd::Commit,
            ..CallOptions::default()
        };
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let mut call = Call::open_by(address, &options, async { Ok(ours) }).await.unwrap();
        let turn = call.turn(Utterance::probe(), Pacing::Immediate).await.unwrap();
        call.hang_up().await;
        (turn.playout, server.await.unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_gap_in_a_reply_is_found_and_the_server_is_told() {
        let (playout, told) = with_pause(Duration::from_millis(500)).await;
        assert_eq!((playout.underruns, playout.played), (1, Duration::from_millis(400)));
        let stalled = playout.stalled.as_millis();
        assert!((300..310).contains(&stalled), "{stalled} ms of silence");
        assert_eq!(told, json!({ "type": "meridian.playback", "underruns": 1 }));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_shorter_than_what_is_buffered_is_not_heard() {
        let (playout, told) = with_pause(Duration::from_millis(150)).await;
        let expected = Playout {
            played: Duration::from_millis(400),
            ..Playout::default()
        };
        assert_eq!(playout, expected);
        assert_eq!(told["type"], "close", "nothing has to be told");
    }
}
