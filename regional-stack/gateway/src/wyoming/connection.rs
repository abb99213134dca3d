//! One connection: requests one after the other, each read, worked on and answered.

use std::{io, sync::Arc, time::Duration};

use axum::http::StatusCode;
use serde_json::{Value, json};
use speech::{SAMPLE_RATE, pcm};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::timeout,
};

use super::{
    assistant::{self, Answer, Intent},
    describing,
    event::{self, Event, Head, LINE_BYTES_MAX, Malformed},
    hearing::Hearing,
};
use crate::{
    error::ApiError,
    metrics::{WyomingLabels, WyomingOutcome, WyomingRequest},
    queue::Class,
    script::Script,
    spoken::{self, Sentences},
    stack::Stack,
    texts,
};

/// Audio in one event: a fifth of a second, so that a player can begin early.
const CHUNK_SAMPLES: usize = SAMPLE_RATE as usize / 5;

pub(super) struct Connection<'a> {
    stack: &'a Arc<Stack>,
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    /// The utterance that is coming.
    hearing: Option<Hearing>,
    /// The text that is coming, sentence by sentence.
    speaking: Option<Speaking>,
}

/// A text that a client sends while it is being spoken.
#[derive(Default)]
struct Speaking {
    sentences: Sentences,
    chars: usize,
    /// Whether the client already has audio of it.
    begun: bool,
}

/// The reason for which a request got no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    /// The peer hung up, or takes nothing.
    #[error(transparent)]
    Socket(#[from] io::Error),
    /// The peer sent no event for too long, or one too slowly.
    #[error("{}", texts::WYOMING_SILENT)]
    Silent,
    /// The peer sent no Wyoming.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// A request that the stack refuses, or the end of the connection.
enum Failed {
    Refused(ApiError),
    Ended(Ended),
}

impl From<ApiError> for Failed {
    fn from(error: ApiError) -> Self {
        Self::Refused(error)
    }
}

impl From<Ended> for Failed {
    fn from(ended: Ended) -> Self {
        Self::Ended(ended)
    }
}

impl<'a> Connection<'a> {
    pub(super) fn new(stack: &'a Arc<Stack>, socket: TcpStream) -> Self {
        let (reader, writer) = socket.into_split();
        Self {
            stack,
            reader: BufReader::new(reader),
            writer,
            hearing: None,
            speaking: None,
        }
    }

    /// Answers requests until the peer hangs up or the stack drains.
    pub(super) async fn run(mut self) -> Result<(), Ended> {
        loop {
            let event = match self.next().await {
                Ok(Some(event)) => event,
                Ok(None) => return Ok(()),
                Err(Ended::Malformed(fault)) => {
                    // The next event cannot be found behind it, so the connection ends with the reason.
                    let error = ApiError::new(StatusCode::BAD_REQUEST, "malformed_event", fault.to_string());
                    self.tell(&error).await?;
                    return Err(fault.into());
                }
                Err(ended) => return Err(ended),
            };
            let Some(request) = WyomingRequest::of(&event.kind) else {
                // The protocol grows by events that older servers pass over.
                continue;
            };
            let outcome = match self.answer(request, &event).await {
                Ok(outcome) => outcome,
                Err(Failed::Refused(error)) => {
                    (self.hearing, self.speaking) = (None, None);
                    self.tell(&error).await?;
                    Some(WyomingOutcome::Refused)
                }
                Err(Failed::Ended(ended)) => {
                    self.count(request, WyomingOutcome::Abandoned);
                    return Err(ended);
                }
            };
            if let Some(outcome) = outcome {
                self.count(request, outcome);
            }
        }
    }

    fn count(&self, request: WyomingRequest, outcome: WyomingOutcome) {
        let labels = WyomingLabels { request, outcome };
        self.stack.metrics.wyoming_requests.get_or_create(&labels).inc();
    }

    /// The next event. `None` when there is none to come: the peer hung up, or the stack drains and no request is under way.
    async fn next(&mut self) -> Result<Option<Event>, Ended> {
        let limits = &self.stack.config.limits;
        let is_between = self.hearing.is_none() && self.speaking.is_none();
        tokio::select! {
            begun = timeout(limits.idle_max.0, self.reader.fill_buf()) => {
                if begun.map_err(|_| Ended::Silent)??.is_empty() {
                    return Ok(None);
                }
            }
            () = self.stack.draining.cancelled(), if is_between => return Ok(None),
        }
        let whole = timeout(limits.body_max.0, self.read_event()).await;
        whole.map_err(|_| Ended::Silent)?.map(Some)
    }

    async fn read_event(&mut self) -> Result<Event, Ended> {
        let mut line = Vec::new();
        let mut bounded = (&mut self.reader).take(LINE_BYTES_MAX as u64);
        bounded.read_until(b'\n', &mut line).await?;
        if line.last() != Some(&b'\n') {
            return Err(Malformed::Line.into());
        }
        let head = Head::read(&line)?;
        let data = self.read_bytes(head.data_bytes()).await?;
        let payload = self.read_bytes(head.payload_bytes()).await?;
        Ok(head.complete(&data, payload)?)
    }

    async fn read_bytes(&mut self, length: usize) -> Result<Vec<u8>, Ended> {
        let mut bytes = vec![0; length];
        self.reader.read_exact(&mut bytes).await?;
        Ok(bytes)
    }

    /// Works on an event. Returns the outcome of a request that it completes.
    async fn answer(&mut self, request: WyomingRequest, event: &Event) -> Result<Option<WyomingOutcome>, Failed> {
        match event.kind.as_str() {
            "ping" => self.write("pong", &json!({ "text": event.text("text") }), &[]).await?,
            "describe" => {
                let info = describing::info(&self.stack.recognizes_with);
                self.write("info", &info, &[]).await?;
            }
            "transcribe" => {
                self.hearing = None;
                check_language(event)?;
                return Ok(None);
            }
            "audio-start" => {
                self.hearing = Some(Hearing::begin(event)?);
                return Ok(None);
            }
            "audio-chunk" => {
                self.hear(event).await?;
                return Ok(None);
            }
            "audio-stop" => {
                let Some(mut hearing) = self.hearing.take() else {
                    return Err(no_audio().into());
                };
                let last = hearing.end();
                if !last.is_empty() {
                    let text = self.recognise(last).await?;
                    hearing.add(text);
                }
                let transcript = json!({ "text": hearing.text(), "language": "en" });
                self.write("transcript", &transcript, &[]).await?;
            }
            "transcript" | "recognize" => return self.assist(event).await.map(Some),
            // A client that streams a text also sends it whole, for servers that cannot take it in parts.
            "synthesize" if self.speaking.is_some() => return Ok(None),
            "synthesize" => {
                check_text_format(event)?;
                let text = event.text("text").unwrap_or_default();
                let script = Script::read(self.stack, Class::Live, "text", text, None)?;
                self.speak(script).await?;
            }
            "synthesize-start" => {
                check_text_format(event)?;
                self.speaking = Some(Speaking::default());
                return Ok(None);
            }
            "synthesize-chunk" => {
                self.speak_on(event.text("text").unwrap_or_default()).await?;
                return Ok(None);
            }
            _ => {
                debug_assert_eq!(
                    (event.kind.as_str(), request),
                    ("synthesize-stop", WyomingRequest::Synthesize)
                );
                let Some(speaking) = &mut self.speaking else {
                    return Err(no_text().into());
                };
                let last = speaking.sentences.finish();
                self.speak_if_any(&last).await?;
                self.speaking = None;
                self.write("synthesize-stopped", &json!({}), &[]).await?;
            }
        }
        Ok(Some(WyomingOutcome::Answered))
    }

    async fn hear(&mut self, event: &Event) -> Result<(), Failed> {
        let hearing = match &mut self.hearing {
            Some(hearing) => hearing,
            // Some clients leave out `audio-start`.
            None => self.hearing.insert(Hearing::begin(event)?),
        };
        let seconds_max = self.stack.config.limits.transcription_max.0.as_secs_f32();
        let Some(piece) = hearing.take(event, seconds_max)? else {
            return Ok(());
        };
        // Nothing is read meanwhile, so a client that sends faster than the recognizer hears has to wait.
        let text = self.recognise(piece).await?;
        if let Some(hearing) = &mut self.hearing {
            hearing.add(text);
        }
        Ok(())
    }

    async fn recognise(&mut self, samples: Vec<f32>) -> Result<String, Failed> {
        let mut ticket = self.stack.hear_for(Class::Live, samples).map_err(ApiError::from)?;
        let heard = until_gone(&mut self.reader, ticket.result()).await?;
        let transcript = heard.map_err(ApiError::from)?.output;
        // Home Assistant acts on words alone, so it gets none that the recognizer doubts.
        let is_sure = transcript.confidence >= dialogue::CONFIDENCE_MIN;
        Ok(if is_sure { transcript.text } else { String::new() })
    }

    /// Has the assistant answer words.
    async fn assist(&mut self, event: &Event) -> Result<WyomingOutcome, Failed> {
        check_language(event)?;
        let text = event.text("text").unwrap_or_default();
        let chars_max = self.stack.config.limits.speech_chars_max;
        let chars = text.chars().count();
        if chars > chars_max {
            let message = texts::too_many_characters("text", chars, chars_max);
            return Err(ApiError::bad_request("string_above_max_length", "text", message).into());
        }
        let context = event.data.get("context").cloned().unwrap_or(Value::Null);
        let with_context = |mut data: Value| {
            if !context.is_null() {
                data["context"] = context.clone();
            }
            data
        };
        let home = self.stack.config.home_city;
        match assistant::answer(text, home, daemon::clock::now()) {
            Answer::Handled(reply) => {
                let data = with_context(json!({ "text": reply }));
                self.write("handled", &data, &[]).await?;
            }
            Answer::NotHandled(reply) => {
                let data = with_context(json!({ "text": reply }));
                self.write("not-handled", &data, &[]).await?;
                return Ok(WyomingOutcome::Declined);
            }
            Answer::NotRecognized(reply) => {
                let data = with_context(json!({ "text": reply }));
                self.write("not-recognized", &data, &[]).await?;
                return Ok(WyomingOutcome::Declined);
            }
            Answer::Intents(intents) => {
                let are_several = intents.len() > 1;
                if are_several {
                    self.write("intents-start", &with_context(json!({})), &[]).await?;
                }
                for intent in intents {
                    self.write("intent", &with_context(described(intent)), &[]).await?;
                }
                if are_several {
                    self.write("intents-stop", &with_context(json!({})), &[]).await?;
                }
            }
        }
        Ok(WyomingOutcome::Answered)
    }

    /// Speaks the part of a text that has come, as far as it has whole sentences.
    async fn speak_on(&mut self, text: &str) -> Result<(), Failed> {
        let chars_max = self.stack.config.limits.speech_chars_max;
        let Some(speaking) = &mut self.speaking else {
            return Err(no_text().into());
        };
        speaking.chars += text.chars().count();
        if speaking.chars > chars_max {
            let message = texts::too_many_characters("text", speaking.chars, chars_max);
            return Err(ApiError::bad_request("string_above_max_length", "text", message).into());
        }
        for sentence in speaking.sentences.push(text) {
            self.speak_if_any(&sentence).await?;
        }
        Ok(())
    }

    /// Speaks a part of a text; nothing, if it has no words.
    async fn speak_if_any(&mut self, text: &str) -> Result<(), Failed> {
        if spoken::sentences(text).is_empty() {
            return Ok(());
        }
        let mut script = Script::read(self.stack, Class::Live, "text", text, None)?;
        if let Some(speaking) = &mut self.speaking {
            if speaking.begun {
                script.follow_another();
            }
            speaking.begun = true;
        }
        self.speak(script).await
    }

    /// Speaks a text, sentence by sentence.
    async fn speak(&mut self, mut script: Script) -> Result<(), Failed> {
        let stack = self.stack;
        let format = json!({ "rate": SAMPLE_RATE, "width": 2, "channels": 1, "timestamp": 0 });
        let mut sent = 0usize;
        // An error until the first sentence is an `error` event without any audio.
        let mut spoken = until_gone(&mut self.reader, script.speak_next(stack, SAMPLE_RATE)).await??;
        self.write("audio-start", &format, &[]).await?;
        while let Some(samples) = spoken {
            for chunk in samples.chunks(CHUNK_SAMPLES) {
                let timestamp = sent * 1000 / SAMPLE_RATE as usize;
                let data = json!({ "rate": SAMPLE_RATE, "width": 2, "channels": 1, "timestamp": timestamp });
                self.write("audio-chunk", &data, &pcm::to_s16le(chunk)).await?;
                sent += chunk.len();
            }
            spoken = until_gone(&mut self.reader, script.speak_next(stack, SAMPLE_RATE)).await??;
        }
        let data = json!({ "timestamp": sent * 1000 / SAMPLE_RATE as usize });
        self.write("audio-stop", &data, &[]).await?;
        Ok(())
    }

    async fn tell(&mut self, error: &ApiError) -> Result<(), Ended> {
        let data = json!({ "text": error.message, "code": error.code });
        self.write("error", &data, &[]).await
    }

    async fn write(&mut self, kind: &str, data: &Value, payload: &[u8]) -> Result<(), Ended> {
        let bytes = event::encode(kind, data, payload);
        let limit: Duration = self.stack.config.limits.slow_client_max.0;
        let written = timeout(limit, self.writer.write_all(&bytes)).await;
        Ok(written.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??)
    }
}

/// Waits for work of an engine. Hanging up ends the wait, and with it the work.
async fn until_gone<T>(reader: &mut BufReader<OwnedReadHalf>, work: impl Future<Output = T>) -> Result<T, Ended> {
    let gone = async {
        match reader.fill_buf().await {
            Ok([]) => io::Error::from(io::ErrorKind::UnexpectedEof),
            Err(error) => error,
            // The next request waits for its turn.
            Ok(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        done = work => Ok(done),
        error = gone => Err(error.into()),
    }
}

/// The data of an `intent` event.
fn described(intent: Intent) -> Value {
    let entities: Vec<Value> = intent
        .slots
        .into_iter()
        .map(|(name, value)| json!({ "name": name, "value": value }))
        .collect();
    json!({ "name": intent.name, "entities": entities, "text": intent.text })
}

/// Refuses languages other than English: English words for German speech would look like an answer.
fn check_language(event: &Event) -> Result<(), ApiError> {
    let language = event.text("language").unwrap_or_default().to_ascii_lowercase();
    let primary = language.split(['-', '_']).next().unwrap_or_default();
    if matches!(primary, "" | "en" | "eng" | "english") {
        return Ok(());
    }
    // The text comes from a stranger, so the echo is bounded.
    let shown: String = language.chars().take(20).collect();
    let message = texts::unknown_language(&shown);
    Err(ApiError::bad_request("unsupported_value", "language", message))
}

fn check_text_format(event: &Event) -> Result<(), ApiError> {
    match event.text("text_format") {
        None | Some("text") => Ok(()),
        Some(_) => Err(ApiError::bad_request(
            "unsupported_value",
            "text_format",
            texts::WYOMING_TEXT_FORMAT,
        )),
    }
}

fn no_audio() -> ApiError {
    ApiError::bad_request("missing_audio", "audio", texts::WYOMING_NO_AUDIO)
}

fn no_text() -> ApiError {
    ApiError::bad_request("missing_text", "text", texts::WYOMING_NO_TEXT)
}
