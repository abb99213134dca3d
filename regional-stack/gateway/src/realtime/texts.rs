//! Every text that a client of the Realtime protocol reads: refusals of its events, and the reasons at the beginning and the end of
//! a session. A text begins in lower case, has no full stop, says what is wrong, and then what to send or do.

use std::fmt::Display;

use wire::Lost;

// Fields of events.

pub(super) fn unknown_event(kind: &str, known: &[&str]) -> String {
    format!("unknown event type {kind:?}; known are {}", known.join(", "))
}

pub(super) fn not_json(error: &impl Display) -> String {
    format!("the message is not JSON: {error}; send one JSON object per message")
}

pub(super) fn no_object(place: &str) -> String {
    format!(
        "{} must be an object",
        if place.is_empty() { "the event" } else { place }
    )
}

pub(super) fn unknown_field(name: &str, known: &[&str]) -> String {
    format!("unknown field {name:?}; known are {}", known.join(", "))
}

pub(super) fn beta_field(name: &str, root: &str, now: &str) -> String {
    format!("\"{name}\" is a field of the beta protocol; use {root}.{now}")
}

pub(super) fn beta_field_without_successor(name: &str) -> String {
    format!("\"{name}\" is a field of the beta protocol and has no successor; leave it out")
}

pub(super) fn missing_field(name: &str) -> String {
    format!("\"{name}\" is missing; add it")
}

pub(super) fn no_string(field: &str) -> String {
    format!("{field} must be a string")
}

pub(super) fn no_flag(field: &str) -> String {
    format!("{field} must be true or false")
}

pub(super) fn no_list(field: &str) -> String {
    format!("{field} must be a list")
}

pub(super) fn no_whole_number(field: &str, value: &impl Display) -> String {
    format!("{field} must be a whole number, and not {value}")
}

pub(super) fn bad_id(chars_max: usize) -> String {
    format!("use an id of 1 to {chars_max} characters")
}

pub(super) fn too_many_bytes(bytes_max: usize) -> String {
    format!("use at most {} KiB", bytes_max >> 10)
}

pub(super) fn too_many_characters(max: usize) -> String {
    format!("use at most {max} characters")
}

pub(super) const BETA_PROTOCOL: &str = "this is the protocol of general availability; leave out the header OpenAI-Beta, and use its names of \
    events and fields, as in session.audio.input.turn_detection";
pub(super) const BINARY_MESSAGE: &str =
    "binary messages are not part of this protocol; send audio as base64 in input_audio_buffer.append";

pub(super) fn message_too_large(kib_max: usize) -> String {
    format!("the message is larger than {kib_max} KiB; send audio in shorter pieces")
}

// The session and its settings.

pub(super) const UNKNOWN_SESSION_TYPE: &str =
    "sessions of type \"realtime\" and \"transcription\" exist here; use one of them";
pub(super) const ONLY_TRANSCRIBES: &str =
    "this session only transcribes; update it to the type \"realtime\" for responses";
pub(super) const NO_PROMPTS: &str = "there are no stored prompts here; leave it out";
pub(super) const UNKNOWN_MODALITY: &str = "use [\"audio\"] or [\"text\"]";
pub(super) const UNKNOWN_TRUNCATION: &str = "use \"auto\": the last items are kept, and no tokens are counted";

pub(super) fn unknown_include(name: &str) -> String {
    format!("use [\"{name}\"]; there is nothing else to include")
}

pub(super) const NO_NOISE_REDUCTION: &str = "there is no noise reduction here; use null or leave it out";
pub(super) const SPEED: &str = "use a speed between 0.25 and 1.5";
pub(super) const INSTRUCTIONS_ARE_NO_TEXT: &str = "instructions must be a string";
pub(super) const UNKNOWN_FORMAT: &str = "use {\"type\": \"audio/pcm\", \"rate\": 24000}: 16-bit little-endian, mono; or G.711: {\"type\": \"audio/pcmu\"}, {\"type\": \"audio/pcma\"}";

pub(super) fn unknown_voice(voice: &str) -> String {
    format!("there is one voice here; use \"{voice}\" or leave it out")
}

pub(super) const NO_TRACING: &str = "nothing is traced here; use null or \"auto\", or leave it out";
pub(super) const NO_REASONING: &str = "nothing reasons here; use null or leave it out";
pub(super) const NO_TOKEN_LIMIT: &str =
    "replies are short and are not cut to a number of tokens; use \"inf\" or leave it out";

pub(super) fn without_effect(field: &str) -> String {
    format!("{field} would have no effect here; leave it out")
}

pub(super) fn unknown_recognizer(name: &str) -> String {
    format!("there is one recognizer here; use \"{name}\" or leave it out")
}

pub(super) const ONLY_ENGLISH: &str = "only English is understood here; use \"en\" or leave it out";
pub(super) const ONLY_ENGLISH_LIST: &str = "only English is understood here; use [\"en\"] or leave it out";
pub(super) const EAGERNESS_ELSEWHERE: &str = "eagerness belongs to \"semantic_vad\"; use that type, or leave it out";
pub(super) const UNKNOWN_EAGERNESS: &str = "use low, medium, high or auto";
pub(super) const UNKNOWN_TURN_DETECTION: &str =
    "use {\"type\": \"server_vad\"} or {\"type\": \"semantic_vad\"}, or null to commit turns yourself";
pub(super) const THRESHOLD: &str = "use a threshold between 0 and 1";
pub(super) const NO_IDLE_TIMEOUT: &str =
    "the assistant does not speak to a silent user by itself; use null or leave it out";

pub(super) fn milliseconds(field: &str, max: u64) -> String {
    format!("use a {field} between 0 and {max}")
}

// Tools.

pub(super) fn too_many_tools(max: usize, bytes_max: usize) -> String {
    format!("use at most {max} tools, {} KiB together", bytes_max >> 10)
}

pub(super) const UNKNOWN_TOOL_TYPE: &str =
    "only tools of type \"function\" exist here; call other servers from the client";

pub(super) fn bad_tool_name(chars_max: usize) -> String {
    format!("name the function with up to {chars_max} letters, digits, _ and -")
}

pub(super) fn second_tool(name: &str) -> String {
    format!("there are two functions {name:?}; give each its own name")
}

pub(super) const PARAMETERS_ARE_NO_SCHEMA: &str = "parameters must be a JSON schema of an object";

pub(super) fn no_such_tool(name: &str) -> String {
    format!("there is no tool {name:?}; offer it in tools first")
}

pub(super) const TOOL_WITHOUT_NAME: &str = "name the function to call";
pub(super) const UNKNOWN_TOOL_CHOICE: &str =
    "use \"auto\", \"none\", \"required\" or {\"type\": \"function\", \"name\": …}";

// Items.

pub(super) const ITEM_IS_NO_OBJECT: &str = "an item must be an object";
pub(super) const UNKNOWN_ITEM_TYPE: &str = "items are of type message, function_call, function_call_output or, as input of a response, \
    item_reference; use one of these";
pub(super) const ITEM_IS_EMPTY: &str = "the item has no content; add {\"type\": \"input_text\", \"text\": …}";
pub(super) const UNKNOWN_ROLE: &str = "use user, assistant, system or developer";
pub(super) const CONTENT_IS_NO_LIST: &str = "content must be a list of parts";

pub(super) fn unknown_part(parts: &str) -> String {
    format!("such an item has parts of type {parts}; use one of these")
}

pub(super) const SECOND_AUDIO_IN_ITEM: &str = "an item holds one piece of audio; send two items";
pub(super) const TEXT_AND_AUDIO_IN_ITEM: &str = "an item holds either text or audio; send two items";
pub(super) const TEXT_TOO_LONG: &str = "the text is too long; shorten it";
pub(super) const ITEM_EXISTS: &str = "there is an item with this id; choose another";
pub(super) const NO_PREVIOUS_ITEM: &str =
    "there is no item with this id; leave it out to append, or use \"root\" to begin with it";
pub(super) const NO_SUCH_ITEM: &str =
    "there is no item with this id; it may have been forgotten; use the id of conversation.item.done";
pub(super) const NO_SUCH_CALL: &str =
    "there is no call with this id; use the call_id of response.function_call_arguments.done";
pub(super) const REFERENCE_OUTSIDE_INPUT: &str =
    "only the input of a response refers to other items; send the item itself";
pub(super) const NOT_TRUNCATABLE: &str =
    "only items of the assistant that have audio can be truncated; name one of those";
pub(super) const ONE_PART: &str = "the item has one part of content; use content_index 0";

pub(super) fn truncated_too_late(ms: u64) -> String {
    format!("the item has {ms} ms of audio; use an audio_end_ms up to that")
}

// Audio.

pub(super) fn not_base64(error: &impl Display) -> String {
    format!("the audio is not base64: {error}; use standard base64 with padding")
}

pub(super) fn audio_too_long(ms: u64, seconds_max: f32) -> String {
    format!("the audio has {ms} ms, and one turn may have {seconds_max} s; send it in several items")
}

pub(super) fn audio_too_short(ms_min: u64) -> String {
    format!("the audio is too short to be speech; send {ms_min} ms or more")
}

pub(super) fn buffer_full(seconds_max: u64) -> String {
    format!(
        "with this the audio buffer would hold more than {seconds_max} s, the most one turn may have; commit or clear it before"
    )
}

pub(super) fn commit_too_short(ms: u64, ms_min: u64) -> String {
    format!("the audio buffer holds {ms} ms, at least {ms_min} ms are needed; append audio before committing")
}

pub(super) const NOTHING_TO_COMMIT: &str =
    "nobody has spoken since the last utterance; set turn_detection to null to commit whatever comes";
pub(super) const SPEECH_LOST: &str = "the region was lost, and what was said last with it; say it again";

// Responses and rings.

pub(super) const RESPONSE_IS_ACTIVE: &str =
    "there is an active response; wait for response.done or send response.cancel";

pub(super) fn too_many_responses(max: usize) -> String {
    format!("{max} responses wait already; wait for response.done")
}

pub(super) const NO_ACTIVE_RESPONSE: &str =
    "there is no such active response; it may have ended already; use the id of response.created";
pub(super) const UNKNOWN_CONVERSATION: &str = "use \"auto\" or \"none\"";

pub(super) fn bad_input(max: usize) -> String {
    format!("input must be a list of at most {max} items")
}

pub(super) const SECOND_AUDIO_IN_INPUT: &str = "one piece of audio can be answered at once; send two responses";
pub(super) const METADATA: &str = "use at most 16 pairs of texts, keys of up to 64 characters and values of up to 512";
pub(super) const QUESTION_NOT_RECOGNISED: &str =
    "the recognizer understood no question for this response; say it again";

pub(super) fn snooze(least: u64, most: u64) -> String {
    format!("snooze for {least} to {most} minutes")
}

pub(super) const NOTHING_RINGS: &str = "nothing rings; somebody may have acknowledged it already";

// The beginning of a session.

pub(super) fn no_upgrade(fault: &str) -> String {
    format!("{fault}; connect to /v1/realtime with a WebSocket client")
}

pub(super) const DRAINING: &str = "this region takes no new sessions; connect again to reach another";
pub(super) const TOO_MANY_SESSIONS: &str = "this region has no room for another session; retry in a moment";
pub(super) const UNKNOWN_INTENT: &str =
    "the intent of a session is \"conversation\" or \"transcription\"; use one of them, or leave it out";
pub(super) const NOT_REMEMBERED: &str = "this stack does not remember the session; another one may";
pub(super) const REMEMBERED_TOO_OLD: &str =
    "the memory of the session here is out of date; another stack may have a newer one";
pub(super) const MAY_BE_ELSEWHERE: &str = "the session may have gone on at another stack; come back when none has it";

/// For a device whose session is lost, so that its user sets alarms and timers again.
pub(super) fn not_resumed(lost: Lost) -> String {
    let why = match lost {
        Lost::Unknown => "no stack remembers it any more",
        Lost::Unreachable => "the stack that remembers it cannot be reached",
        Lost::Expired => "its id is too old",
        Lost::Forged => "its id was changed, or is not of this deployment",
    };
    format!(
        "the session cannot be resumed: {why}. A new one began, without the alarms, timers, lights, settings and conversation of \
         the old one: set them again"
    )
}

// The end of a session: error events, and the shorter texts of Close frames, which have 123 bytes at most.

pub(super) const TAKEN_OVER: &str =
    "a newer connection resumed this session; this one ends, and does not have to connect again";
pub(super) const TAKEN_OVER_CLOSE: &str = "a newer connection resumed this session; do not connect again";
pub(super) const UNFINISHED: &str =
    "a message that you began is not whole yet; send it faster, or audio in shorter pieces";
pub(super) const UNFINISHED_CLOSE: &str = "a message that you began did not end in time; send it faster";
pub(super) const NO_ROOM: &str = "the long messages of other sessions leave no room for this one; send audio in shorter pieces, or \
    connect again in a moment";
pub(super) const NO_ROOM_CLOSE: &str = "no room for long messages; send audio in shorter pieces";
pub(super) const UNREADABLY_LARGE: &str = "the message is too large to be read; send audio in shorter pieces";
pub(super) const UNREADABLY_LARGE_CLOSE: &str = "message too large; send audio in shorter pieces";
pub(super) const NOT_UTF8_CLOSE: &str = "a text message is not UTF-8; send UTF-8";
pub(super) const NOT_WEBSOCKET_CLOSE: &str = "the frames are not the WebSocket protocol; use a WebSocket client";
pub(super) const NOT_RESUMED_CLOSE: &str = "the session cannot go on here; connect again";
pub(super) const OVERFULL_CLOSE: &str = "too many events wait for you; read faster";
pub(super) const DRAINING_CLOSE: &str = "region draining";
pub(super) const IDLE_CLOSE: &str = "no sign of life; answer pings or send audio";
pub(super) const SLOW_CLOSE: &str = "you take no events; read faster";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_says_what_is_wrong_and_what_to_do() {
        let lost = [Lost::Unknown, Lost::Unreachable, Lost::Expired, Lost::Forged].map(not_resumed);
        let made = [
            unknown_event("x", &["a", "b"]),
            not_json(&"x"),
            no_object("x"),
            unknown_field("x", &["a", "b"]),
            beta_field("x", "session", "y"),
            beta_field_without_successor("x"),
            missing_field("x"),
            no_string("x"),
            no_flag("x"),
            no_list("x"),
            no_whole_number("x", &1.5),
            bad_id(1),
            too_many_bytes(1),
            too_many_characters(1),
            message_too_large(1),
            unknown_include("x"),
            unknown_voice("x"),
            without_effect("x"),
            unknown_recognizer("x"),
            milliseconds("x", 1),
            too_many_tools(1, 1),
            bad_tool_name(1),
            second_tool("x"),
            no_such_tool("x"),
            unknown_part("a and b"),
            truncated_too_late(1),
            not_base64(&"x"),
            audio_too_long(1, 30.0),
            audio_too_short(1),
            buffer_full(1),
            commit_too_short(1, 1),
            too_many_responses(1),
            bad_input(1),
            snooze(1, 1),
            no_upgrade("x is missing"),
        ];
        let fixed = [
            BETA_PROTOCOL,
            BINARY_MESSAGE,
            UNKNOWN_SESSION_TYPE,
            ONLY_TRANSCRIBES,
            NO_PROMPTS,
            UNKNOWN_MODALITY,
            UNKNOWN_TRUNCATION,
            NO_NOISE_REDUCTION,
            SPEED,
            INSTRUCTIONS_ARE_NO_TEXT,
            UNKNOWN_FORMAT,
            NO_TRACING,
            NO_REASONING,
            NO_TOKEN_LIMIT,
            ONLY_ENGLISH,
            ONLY_ENGLISH_LIST,
            EAGERNESS_ELSEWHERE,
            UNKNOWN_EAGERNESS,
            UNKNOWN_TURN_DETECTION,
            THRESHOLD,
            NO_IDLE_TIMEOUT,
            UNKNOWN_TOOL_TYPE,
            PARAMETERS_ARE_NO_SCHEMA,
            TOOL_WITHOUT_NAME,
            UNKNOWN_TOOL_CHOICE,
            ITEM_IS_NO_OBJECT,
            UNKNOWN_ITEM_TYPE,
            ITEM_IS_EMPTY,
            UNKNOWN_ROLE,
            CONTENT_IS_NO_LIST,
            SECOND_AUDIO_IN_ITEM,
            TEXT_AND_AUDIO_IN_ITEM,
            TEXT_TOO_LONG,
            ITEM_EXISTS,
            NO_PREVIOUS_ITEM,
            NO_SUCH_ITEM,
            NO_SUCH_CALL,
            REFERENCE_OUTSIDE_INPUT,
            NOT_TRUNCATABLE,
            ONE_PART,
            NOTHING_TO_COMMIT,
            SPEECH_LOST,
            RESPONSE_IS_ACTIVE,
            NO_ACTIVE_RESPONSE,
            UNKNOWN_CONVERSATION,
            SECOND_AUDIO_IN_INPUT,
            METADATA,
            QUESTION_NOT_RECOGNISED,
            NOTHING_RINGS,
            DRAINING,
            TOO_MANY_SESSIONS,
            UNKNOWN_INTENT,
            NOT_REMEMBERED,
            REMEMBERED_TOO_OLD,
            MAY_BE_ELSEWHERE,
            TAKEN_OVER,
            UNFINISHED,
            NO_ROOM,
            UNREADABLY_LARGE,
        ];
        let closes = [
            TAKEN_OVER_CLOSE,
            UNFINISHED_CLOSE,
            NO_ROOM_CLOSE,
            UNREADABLY_LARGE_CLOSE,
            NOT_UTF8_CLOSE,
            NOT_WEBSOCKET_CLOSE,
            NOT_RESUMED_CLOSE,
            OVERFULL_CLOSE,
            DRAINING_CLOSE,
            IDLE_CLOSE,
            SLOW_CLOSE,
        ];
        for text in closes {
            assert!(text.len() <= 123, "{text}");
        }
        let texts = lost.iter().chain(&made).map(String::as_str).chain(fixed).chain(closes);
        for text in texts {
            let begins = text.split(' ').next().unwrap_or_default();
            assert!(
                !["what", "who", "which", "whatever", "whoever"].contains(&begins),
                "{text}"
            );
            assert!(
                !begins.starts_with(char::is_uppercase) && !text.ends_with(['.', ';', ':']),
                "{text}"
            );
            // The fault and the remedy; a text of a field may be the remedy alone.
            let is_remedy = ["use ", "name ", "snooze ", "send "]
                .iter()
                .any(|verb| text.starts_with(verb));
            let parts = [";", ": set them", " must be ", "known are", "are needed", " draining"];
            assert!(is_remedy || parts.iter().any(|part| text.contains(part)), "{text}");
        }
    }
}
