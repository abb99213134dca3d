//! Events of clients. An unknown event or field gets an error event, which names it, and ends nothing.

use serde_json::{Map, Value};

use super::{
    fields::{FieldError, flag, given, inside, missing, only, refuse, text},
    format::AudioFormat,
    items::Role,
    settings::{self, Modality},
    texts,
    tools::{self, Tool},
};

/// One event of a client.
#[derive(Debug)]
pub(super) struct ClientEvent {
    /// The client's own id of the event, which errors about it repeat.
    pub(super) event_id: Option<String>,
    pub(super) body: Body,
}

#[derive(Debug)]
pub(super) enum Body {
    SessionUpdate {
        session: Value,
    },
    Append {
        audio: String,
    },
    Commit,
    Clear,
    ItemCreate {
        item: NewItem,
        after: After,
    },
    ItemDelete {
        item_id: String,
    },
    ItemRetrieve {
        item_id: String,
    },
    ItemTruncate {
        item_id: String,
        content_index: u64,
        audio_end_ms: u64,
    },
    ResponseCreate {
        response: Box<NewResponse>,
    },
    ResponseCancel {
        response_id: Option<String>,
    },
    /// Meridian's own: the playback of the reply. `underruns` counts the times that the device ran out of audio since its last report;
    /// `played` is the item that it played to its end.
    Playback {
        underruns: u32,
        played: Option<String>,
    },
    /// Meridian's own: somebody heard the ring.
    RingAcknowledge,
    /// Meridian's own: somebody put the ring off.
    RingSnooze {
        minutes: Option<u64>,
    },
}

/// The position of a new item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum After {
    /// Behind all items.
    Everything,
    /// Before all items.
    Nothing,
    Item(String),
}

/// An item of a `conversation.item.create`, or of the input of a `response.create`.
#[derive(Debug, PartialEq)]
pub(super) struct NewItem {
    pub(super) id: Option<String>,
    pub(super) kind: NewKind,
}

#[derive(Debug, PartialEq)]
pub(super) enum NewKind {
    Text {
        role: Role,
        text: String,
    },
    /// Base64 of the user's voice.
    Audio(String),
    /// A call that the client names as history.
    Call {
        call_id: String,
        name: String,
        arguments: String,
    },
    Output {
        call_id: String,
        output: String,
    },
    /// An item of the conversation, as input of a response.
    Reference,
}

/// The options of a `response.create`.
#[derive(Debug, Default, PartialEq)]
pub(super) struct NewResponse {
    pub(super) modality: Option<Modality>,
    /// Whether the response stays out of the conversation.
    pub(super) aside: bool,
    /// Items to answer instead of the conversation's last one.
    pub(super) input: Option<Vec<NewItem>>,
    /// The format of its audio, instead of the session's.
    pub(super) format: Option<AudioFormat>,
    /// The client's own fields, which the response repeats.
    pub(super) metadata: Option<Map<String, Value>>,
    pub(super) tools: Option<Vec<Tool>>,
    /// Names one of the tools in force: those here, or else the session's.
    pub(super) tool_choice: Option<Value>,
}

/// The reason why a message is no event.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct EventError {
    pub(super) code: &'static str,
    pub(super) message: String,
    pub(super) param: Option<String>,
    pub(super) event_id: Option<String>,
}

/// All known types of events.
const KNOWN: &[&str] = &[
    "session.update",
    "input_audio_buffer.append",
    "input_audio_buffer.commit",
    "input_audio_buffer.clear",
    "conversation.item.create",
    "conversation.item.delete",
    "conversation.item.retrieve",
    "conversation.item.truncate",
    "response.create",
    "response.cancel",
    "meridian.playback",
    "meridian.ring.acknowledge",
    "meridian.ring.snooze",
];
/// Longest id of an event; errors repeat it to the client.
const ID_CHARS_MAX: usize = 128;
/// Longest id of an item or a call.
const ITEM_ID_CHARS_MAX: usize = 64;
/// Items in the input of one response.
pub(super) const INPUT_MAX: usize = 64;
/// Most bytes of a call's arguments or output.
const FUNCTION_BYTES_MAX: usize = 64 << 10;

impl ClientEvent {
    pub(super) fn parse(message: &str) -> Result<Self, EventError> {
        let value: Value = serde_json::from_str(message).map_err(|error| EventError {
            code: "invalid_json",
            message: texts::not_json(&error),
            param: None,
            event_id: None,
        })?;
        let event_id = value.get("event_id").and_then(Value::as_str);
        let event_id: Option<String> = event_id.map(|id| id.chars().take(ID_CHARS_MAX).collect());
        match Body::parse(value) {
            Ok(body) => Ok(Self { event_id, body }),
            Err(FieldError { code, param, message }) => Err(EventError {
                code,
                message,
                param: Some(param),
                event_id,
            }),
        }
    }
}

impl Body {
    fn parse(mut event: Value) -> Result<Self, FieldError> {
        let Some(kind) = event.get("type").and_then(Value::as_str).map(str::to_owned) else {
            return missing("", "type");
        };
        let fields: &[&str] = match kind.as_str() {
            "session.update" => &["session"],
            "input_audio_buffer.append" => &["audio"],
            "input_audio_buffer.commit" | "input_audio_buffer.clear" => &[],
            "conversation.item.create" => &["item", "previous_item_id"],
            "conversation.item.delete" | "conversation.item.retrieve" => &["item_id"],
            "conversation.item.truncate" => &["item_id", "content_index", "audio_end_ms"],
            "response.create" => &["response"],
            "response.cancel" => &["response_id"],
            "meridian.playback" => &["underruns", "played"],
            "meridian.ring.acknowledge" => &[],
            "meridian.ring.snooze" => &["minutes"],
            _ => {
                let kind: String = kind.chars().take(ID_CHARS_MAX).collect();
                return refuse("type", texts::unknown_event(&kind, KNOWN));
            }
        };
        let fields = [&["type", "event_id"], fields].concat();
        only(&event, "", &fields)?;
        // Moved and not cloned, because most incoming bytes are audio.
        let mut take = |name: &str| event.get_mut(name).map(Value::take).filter(|value| !value.is_null());
        Ok(match kind.as_str() {
            "session.update" => Self::SessionUpdate {
                session: take("session").map_or_else(|| missing("", "session"), Ok)?,
            },
            "input_audio_buffer.append" => Self::Append {
                audio: string(take("audio"), "audio")?,
            },
            "input_audio_buffer.commit" => Self::Commit,
            "input_audio_buffer.clear" => Self::Clear,
            "conversation.item.create" => Self::ItemCreate {
                item: NewItem::parse(take("item").map_or_else(|| missing("", "item"), Ok)?, "item")?,
                after: match take("previous_item_id") {
                    None => After::Everything,
                    Some(Value::String(root)) if root == "root" => After::Nothing,
                    Some(id) => After::Item(string(Some(id), "previous_item_id")?),
                },
            },
            "conversation.item.delete" => Self::ItemDelete {
                item_id: string(take("item_id"), "item_id")?,
            },
            "conversation.item.retrieve" => Self::ItemRetrieve {
                item_id: string(take("item_id"), "item_id")?,
            },
            "conversation.item.truncate" => Self::ItemTruncate {
                item_id: string(take("item_id"), "item_id")?,
                content_index: whole(take("content_index"), "content_index")?,
                audio_end_ms: whole(take("audio_end_ms"), "audio_end_ms")?,
            },
            "response.create" => Self::ResponseCreate {
                response: Box::new(take("response").map_or_else(|| Ok(NewResponse::default()), NewResponse::parse)?),
            },
            "response.cancel" => Self::ResponseCancel {
                response_id: take("response_id")
                    .map(|id| string(Some(id), "response_id"))
                    .transpose()?,
            },
            "meridian.ring.acknowledge" => Self::RingAcknowledge,
            "meridian.ring.snooze" => Self::RingSnooze {
                minutes: take("minutes")
                    .map(|minutes| whole(Some(minutes), "minutes"))
                    .transpose()?,
            },
            _ => {
                let played = take("played").map(|item| string(Some(item), "played")).transpose()?;
                // A report has at least one of the two.
                let underruns = match take("underruns") {
                    None if played.is_some() => 0,
                    underruns => whole(underruns, "underruns")?,
                };
                Self::Playback {
                    underruns: u32::try_from(underruns).unwrap_or(u32::MAX),
                    played,
                }
            }
        })
    }
}

fn string(value: Option<Value>, place: &str) -> Result<String, FieldError> {
    match value {
        Some(Value::String(text)) => Ok(text),
        Some(_) => refuse(place, texts::no_string(place)),
        None => missing("", place),
    }
}

fn whole(value: Option<Value>, place: &str) -> Result<u64, FieldError> {
    match value {
        Some(value) => match value.as_u64() {
            Some(number) => Ok(number),
            None => refuse(place, texts::no_whole_number(place, &value)),
        },
        None => missing("", place),
    }
}

impl NewItem {
    fn parse(mut item: Value, place: &str) -> Result<Self, FieldError> {
        if !item.is_object() {
            return refuse(place, texts::ITEM_IS_NO_OBJECT);
        }
        let kind = item
            .get("type")
            .map_or("message", |kind| kind.as_str().unwrap_or_default());
        let kind = kind.to_owned();
        let known: &[&str] = match kind.as_str() {
            "message" => &["role", "content"],
            "function_call" => &["call_id", "name", "arguments"],
            "function_call_output" => &["call_id", "output"],
            "item_reference" => &[],
            _ => {
                return refuse(inside(place, "type"), texts::UNKNOWN_ITEM_TYPE);
            }
        };
        // A client may send an item back with the fields that a server added.
        let known = [&["type", "id", "object", "status"], known].concat();
        let content = item.get_mut("content").map(Value::take);
        let fields = only(&item, place, &known)?;
        let id = text(fields, place, "id")?.map(str::to_owned);
        if id
            .as_ref()
            .is_some_and(|id| !(1..=ITEM_ID_CHARS_MAX).contains(&id.chars().count()))
        {
            return refuse(inside(place, "id"), texts::bad_id(ITEM_ID_CHARS_MAX));
        }
        let required = |name: &str| match text(fields, place, name)? {
            Some(value) if value.len() <= FUNCTION_BYTES_MAX => Ok(value.to_owned()),
            Some(_) => refuse(inside(place, name), texts::too_many_bytes(FUNCTION_BYTES_MAX)),
            None => missing(place, name),
        };
        let kind = match kind.as_str() {
            "message" => message(text(fields, place, "role")?, content.unwrap_or_default(), place)?,
            "function_call" => NewKind::Call {
                call_id: call_id(fields, place)?,
                name: required("name")?,
                arguments: required("arguments")?,
            },
            "function_call_output" => NewKind::Output {
                call_id: call_id(fields, place)?,
                output: required("output")?,
            },
            _ if id.is_none() => return missing(place, "id"),
            _ => NewKind::Reference,
        };
        Ok(Self { id, kind })
    }
}

fn call_id(fields: &Map<String, Value>, place: &str) -> Result<String, FieldError> {
    match text(fields, place, "call_id")? {
        Some(id) if (1..=ITEM_ID_CHARS_MAX).contains(&id.chars().count()) => Ok(id.to_owned()),
        Some(_) => refuse(inside(place, "call_id"), texts::bad_id(ITEM_ID_CHARS_MAX)),
        None => missing(place, "call_id"),
    }
}

/// The kind of content in a part of a message.
enum Part {
    Text,
    Audio,
    Transcript,
}

fn message(role: Option<&str>, content: Value, place: &str) -> Result<NewKind, FieldError> {
    let role = match role {
        None | Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some("system" | "developer") => Role::System,
        Some(_) => return refuse(inside(place, "role"), texts::UNKNOWN_ROLE),
    };
    let content_place = inside(place, "content");
    let parts = match content {
        Value::Array(parts) => parts,
        Value::Null => return missing(place, "content"),
        _ => return refuse(content_place, texts::CONTENT_IS_NO_LIST),
    };
    let (mut texts, mut audio) = (Vec::new(), None);
    for (at, mut part) in parts.into_iter().enumerate() {
        let place = format!("{content_place}[{at}]");
        let (sound, kind) = (
            part.get_mut("audio").map(Value::take),
            part.get("type").and_then(Value::as_str),
        );
        let kind = match (role, kind) {
            (Role::User | Role::System, Some("input_text")) | (Role::Assistant, Some("output_text")) => Part::Text,
            (Role::User, Some("input_audio")) => Part::Audio,
            // The transcript stands for the audio of earlier speech.
            (Role::Assistant, Some("output_audio")) => Part::Transcript,
            (role, _) => {
                let parts = match role {
                    Role::User => "input_text and input_audio",
                    Role::Assistant => "output_text and output_audio",
                    Role::System => "input_text",
                };
                return refuse(inside(&place, "type"), texts::unknown_part(parts));
            }
        };
        let fields = only(&part, &place, &["type", "text", "audio", "transcript"])?;
        match kind {
            Part::Text => match text(fields, &place, "text")? {
                Some(text) => texts.push(text.to_owned()),
                None => return missing(&place, "text"),
            },
            Part::Transcript => texts.extend(text(fields, &place, "transcript")?.map(str::to_owned)),
            Part::Audio => match sound {
                Some(Value::String(sound)) if audio.is_none() => audio = Some(sound),
                Some(Value::String(_)) => return refuse(place, texts::SECOND_AUDIO_IN_ITEM),
                Some(Value::Null) | None => return missing(&place, "audio"),
                Some(_) => return refuse(inside(&place, "audio"), "audio must be a string"),
            },
        }
    }
    match audio {
        Some(_) if !texts.is_empty() => refuse(content_place, texts::TEXT_AND_AUDIO_IN_ITEM),
        Some(audio) => Ok(NewKind::Audio(audio)),
        None => Ok(NewKind::Text {
            role,
            text: texts.join(" "),
        }),
    }
}

impl NewResponse {
    fn parse(mut response: Value) -> Result<Self, FieldError> {
        const PLACE: &str = "response";
        const KNOWN: &[&str] = &[
            "audio",
            "conversation",
            "input",
            "instructions",
            "max_output_tokens",
            "metadata",
            "output_modalities",
            "parallel_tool_calls",
            "prompt",
            "reasoning",
            "tool_choice",
            "tools",
        ];
        let input = response
            .get_mut("input")
            .map(Value::take)
            .filter(|input| !input.is_null());
        let fields = only(&response, PLACE, KNOWN)?;
        let modality = given(fields, "output_modalities");
        if let Some(instructions) = fields.get("instructions") {
            settings::instructions_of(instructions, "response.instructions")?;
        }
        if let Some(tokens) = given(fields, "max_output_tokens") {
            settings::output_tokens(tokens, "response.max_output_tokens")?;
        }
        settings::check_reasoning(fields, "response.reasoning")?;
        flag(fields, PLACE, "parallel_tool_calls")?;
        if given(fields, "prompt").is_some() {
            return refuse("response.prompt", texts::NO_PROMPTS);
        }
        let mut format = None;
        if let Some(audio) = given(fields, "audio") {
            let audio = only(audio, "response.audio", &["output"])?;
            if let Some(output) = given(audio, "output") {
                let output = only(output, "response.audio.output", &["format", "voice"])?;
                format = settings::format_of(output, "response.audio.output.format")?;
                settings::check_voice(output, "response.audio.output.voice")?;
            }
        }
        let tools = given(fields, "tools").map(|tools| tools::parse(tools, "response.tools"));
        Ok(Self {
            modality: modality
                .map(|names| Modality::of(names, "response.output_modalities"))
                .transpose()?,
            aside: match text(fields, PLACE, "conversation")? {
                None | Some("auto") => false,
                Some("none") => true,
                Some(_) => return refuse("response.conversation", texts::UNKNOWN_CONVERSATION),
            },
            metadata: given(fields, "metadata").map(metadata).transpose()?,
            format,
            tools: tools.transpose()?,
            tool_choice: given(fields, "tool_choice").cloned(),
            input: input.map(input_items).transpose()?,
        })
    }
}

fn input_items(input: Value) -> Result<Vec<NewItem>, FieldError> {
    let items = match input {
        Value::Array(items) if items.len() <= INPUT_MAX => items,
        _ => {
            return refuse("response.input", texts::bad_input(INPUT_MAX));
        }
    };
    let items = items.into_iter().enumerate();
    let items: Vec<NewItem> = items
        .map(|(at, item)| NewItem::parse(item, &format!("response.input[{at}]")))
        .collect::<Result<_, _>>()?;
    if items
        .iter()
        .filter(|item| matches!(item.kind, NewKind::Audio(_)))
        .count()
        > 1
    {
        return refuse("response.input", texts::SECOND_AUDIO_IN_INPUT);
    }
    Ok(items)
}

/// Sixteen pairs of short texts, as the protocol has it.
fn metadata(value: &Value) -> Result<Map<String, Value>, FieldError> {
    let pairs = value.as_object().filter(|pairs| pairs.len() <= 16);
    let is_short = |text: &str, chars_max: usize| text.chars().count() <= chars_max;
    let pairs = pairs.filter(|pairs| {
        let mut pairs = pairs.iter();
        pairs.all(|(key, value)| is_short(key, 64) && value.as_str().is_some_and(|value| is_short(value, 512)))
    });
    match pairs {
        Some(pairs) => Ok(pairs.clone()),
        None => refuse("response.metadata", texts::METADATA),
    }
}

#[cfg(test)]
mod tests;
