//! Every text of this crate that callers over HTTP and gRPC read, and every text for operators in its log. `realtime::texts` has those
//! for clients of the Realtime protocol, `config` the problems of a configuration, each beside its rule, and `recognition` those about
//! the choice of a recognizer. A text begins in lower case, has no full stop at its end, and says what is wrong, what the stack does
//! about it, and what to send, type or do.

use std::{fmt::Display, net::SocketAddr, path::Path, time::Duration};

use axum::http::Method;

// Callers.

pub(crate) const TOO_MANY_UPLOADS: &str = "this region works on as many uploads as it can hold; retry in a moment";
pub(crate) const BODY_CUT: &str = "the request body ended early; send it again";
pub(crate) const UNKNOWN_STREAM_FORMAT: &str =
    "stream_format must be \"audio\" or \"sse\"; use one of them, or leave it out";
pub(crate) const NO_STREAMED_FORMAT: &str =
    "only json and text can be streamed; set response_format to one of them, or leave out stream";
pub(crate) const TIMES_WITHOUT_VERBOSE: &str =
    "only verbose_json has timestamps; set response_format to it, or leave out timestamp_granularities";
pub(crate) const FORM_WITHOUT_FILE: &str = "the form has no file; send the audio as the multipart field \"file\"";
pub(crate) const NO_FORM: &str =
    "send multipart/form-data with the fields file and model; a bare WAV goes to /api/v1/voice/transcribe";
pub(crate) const SECOND_FILE: &str = "send one file in a request";
pub(crate) const NO_INCLUDE: &str = "there is nothing to include here; leave out include";
pub(crate) const TEMPERATURE: &str = "temperature must be between 0 and 1";
pub(crate) const SPEED: &str = "speed must be between 0.25 and 4.0";
pub(crate) const NO_CHECKPOINT_KEY: &str = "this stack has no checkpoint_key and takes no sessions of others; write the key of all regions into its \
    configuration";
pub(crate) const COPY_TOO_SLOW: &str = "the request body did not arrive in time; send it faster";

pub(crate) const WYOMING_BAD_LINE: &str =
    "the bytes are no line of a Wyoming event, so the connection ends; send a line of JSON with a type";
pub(crate) const WYOMING_BAD_DATA: &str =
    "the data of a Wyoming event is no JSON object, so the connection ends; send one object of data_length bytes";
pub(crate) const WYOMING_SILENT: &str = "no whole event came in time, so the connection ends; connect again";
pub(crate) const WYOMING_AUDIO_FORMAT: &str =
    "this format of audio is not available; send rate 4000 to 192000, width 1 to 4 and channels 1 to 8";
pub(crate) const WYOMING_FORMAT_CHANGED: &str =
    "the format of the audio changed within an utterance, which is dropped; send audio-start before another format";
pub(crate) const WYOMING_NO_AUDIO: &str = "audio-stop came without audio; send audio-start and audio-chunk before it";
pub(crate) const WYOMING_NO_TEXT: &str = "a part of a text came without its beginning; send synthesize-start before it";
pub(crate) const WYOMING_TEXT_FORMAT: &str =
    "only plain text can be spoken here; send text_format \"text\", or leave it out";

pub(crate) fn wyoming_event_too_long(data_bytes_max: usize, payload_bytes_max: usize) -> String {
    format!(
        "a Wyoming event may have {data_bytes_max} bytes of data and {payload_bytes_max} of audio, so the connection ends; send \
         shorter pieces"
    )
}

pub(crate) fn wyoming_too_long(seconds_max: f32) -> String {
    format!("the audio is longer than {seconds_max} s, so it is dropped; send audio-stop earlier")
}

pub(crate) const OGG_WITHOUT_OPUS: &str =
    "the Ogg file does not begin with Opus of one or two channels; send that, or a WAV file";
pub(crate) const OPUS_DAMAGED: &str = "the Opus recording is damaged or cut short; send it again";
pub(crate) const OPUS_EMPTY: &str = "the Opus recording has no samples; send speech";
pub(crate) const UNKNOWN_SERVICE: &str = "there is no such service; ask for \"meridian.voice.v1.Voice\", or for \"\"";

pub(crate) fn body_too_slow(limit: Duration) -> String {
    format!(
        "the request body did not arrive within {} s; send it faster",
        limit.as_secs()
    )
}

pub(crate) fn body_too_large(bytes_max: usize) -> String {
    format!("the request body is larger than the {bytes_max} byte limit; send shorter audio, or mono 16 kHz 16-bit")
}

pub(crate) fn unknown_path(method: &Method, path: &str) -> String {
    format!("there is no {method} {path}; see /v1/models, /v1/audio/*, /v1/realtime, /api/v1/voice/*")
}

pub(crate) fn wrong_method(method: &Method) -> String {
    format!("{method} is not supported here; use the method in the Allow header")
}

pub(crate) fn unknown_model(known: &[&str]) -> String {
    format!("there is no such model; there are {}", known.join(", "))
}

pub(crate) fn unknown_field(name: &str, known: &str) -> String {
    format!("unknown field {name:?}; known are {known}")
}

pub(crate) fn unknown_speech_format(format: &str, known: &str) -> String {
    // The text comes from a stranger, so the echo is bounded.
    let shown: String = format.chars().take(20).collect();
    format!("response_format {shown:?} is not available; set response_format to {known}")
}

pub(crate) fn opus_too_long(limit_s: f32) -> String {
    format!("the recording is longer than the {limit_s} s limit; send it in parts")
}

pub(crate) fn cannot_encode(cause: &str) -> String {
    format!("the speech cannot be written in this format ({cause}); retry, or set another response_format")
}

pub(crate) fn bad_json(error: &impl Display) -> String {
    format!("the body is not the JSON expected here: {error}; send one JSON object")
}

pub(crate) fn unknown_transcription_format(format: &str) -> String {
    format!("response_format {format:?} is not available; use json, text, verbose_json, srt or vtt")
}

pub(crate) fn bad_form(fault: &str) -> String {
    format!("the multipart form cannot be read: {fault}; send it again as multipart/form-data")
}

pub(crate) fn no_flag(field: &str) -> String {
    format!("{field} must be true or false")
}

pub(crate) fn one_value(field: &str, known: &str) -> String {
    format!("{field} can only be {known:?} here; use that, or leave it out")
}

pub(crate) fn unknown_language(language: &str) -> String {
    format!("language {language:?} is not available; this region understands English, \"en\"")
}

pub(crate) fn too_many_characters(field: &str, chars: usize, chars_max: usize) -> String {
    format!("{field} has {chars} characters, the limit is {chars_max}; send it in parts")
}

pub(crate) fn nothing_to_speak(field: &str) -> String {
    format!("{field} has nothing to speak; send English words")
}

pub(crate) fn too_long_to_say(field: &str, seconds: f32, speed: f32, seconds_max: f32) -> String {
    format!(
        "{field} may take {seconds:.0} s to say at speed {speed}, the limit is {seconds_max} s; send it in parts, or faster"
    )
}

pub(crate) fn checkpoint_too_large(bytes_max: usize) -> String {
    format!("send one checkpoint of at most {bytes_max} bytes")
}

// Operators, in the log.

pub(crate) const FOLDER_UNUSABLE: &str = "the folder of sessions cannot be used: alarms and timers from before this start are missing, and new \
    ones end with this process; the stack serves on and tries again. Check the disk, and state_dir";
pub(crate) const FILES_LEFT_ALONE: &str = "files in the folder of sessions hold no session for this stack, which leaves \
    them alone; `first` names the fault of the first: correct checkpoint_key or state_key, or move the files away";
pub(crate) const UNSAVED_AT_THE_END: &str = "the stack ends, and the disk lacks alarms and timers of its sessions; they are lost unless their edges \
    resume the sessions elsewhere. Check the disk of state_dir before the next start";
pub(crate) const DISK_REFUSES: &str = "sessions cannot be written to disk: their alarms and timers end with this process; the stack serves on \
    and tries again. Check the disk of state_dir";
pub(crate) const OPEN_TO_ALL: &str = "anyone who reaches this stack can talk to it and read what sessions say, because it demands no \
    certificate; write mode = \"required\" in [identity] once every edge has a certificate \
    (docs/security.md)";
pub(crate) const WYOMING_OPEN: &str = "everybody who reaches the Wyoming address is heard and spoken to, because that protocol has no login; let only \
    Home Assistant reach it, with a firewall or a private network (docs/clients.md)";
pub(crate) const NO_PRIORITIES: &str = "the operating system refuses a lower priority, so uploads run at that of live \
    callers and delay them; allow the process to call setpriority";

pub(crate) const CANNOT_ACCEPT: &str = "the stack cannot accept a connection; it tries again after a pause. Check its open files (LimitNOFILE) \
    and the memory of this machine";
pub(crate) const TURNS_CUT: &str =
    "turns were left when limits.drain_max had passed, so the stack cut them; a longer drain_max lets them finish";
pub(crate) const NOT_SAVED: &str = "a session was not saved, so it is lost if its device comes back; the stack serves on. Check the store of \
    sessions: state_dir and its disk";
pub(crate) const NOT_RESTORED: &str = "a session cannot be read back, so its device begins a new one. Check the store of sessions; the disk of state_dir \
    first";
/// A cause, beside the two before.
pub(crate) const STORE_LATE: &str = "the store does not answer";
pub(crate) const STILL_REMEMBERED: &str =
    "a session that moved is still remembered here; it ages out, and its edge asks for the newest copy";
pub(crate) const AGES: &str = "a connected session ages in the store, which does not take the note that it lives; if it stays, the session is \
    forgotten. Check the store of sessions";
pub(crate) const TWO_NAMES: &str =
    "a session is remembered under two names; the older one ages out. Nothing to type unless it comes again";
pub(crate) const COPY_USELESS: &str = "the copy of a session is of no use; its device goes on with an older memory. Check that all stacks have one \
    checkpoint_key";
pub(crate) const COPY_LATE: &str = "the copy of a session did not come in time; its device goes on with an older memory. Check the network to the edge";
pub(crate) const NOT_RESUMED: &str = "a session from another stack cannot go on here; its edge tries the next stack. Check that all stacks have one \
    checkpoint_key and releases that know each other";
pub(crate) const SETTINGS_UNREADABLE: &str = "this release cannot read the settings of a session; the session goes on with the defaults. Start stacks of one \
    release if it stays";
pub(crate) const NOT_TRANSCRIBED: &str = "a transcription failed; the device was told, and the session goes on. Look at the load and the engines: \
    `meridian why REGION`";
pub(crate) const NOT_SPOKEN: &str = "a reply was not spoken; the device was told, and the session goes on. Look at the load and the engines: \
    `meridian why REGION`";

// The start.

pub(crate) fn cannot_listen(address: SocketAddr, purpose: &str) -> String {
    format!("cannot listen on {address} for {purpose}; write a free address in its listen or admin_listen")
}

pub(crate) fn cannot_use_state_dir(folder: &Path) -> String {
    format!(
        "cannot use state_dir {}; check its rights (`ls -l`) and its disk (`df`)",
        folder.display()
    )
}

pub(crate) const NO_THREADS: &str =
    "cannot start engine threads; raise the limit on threads (LimitNPROC), or write fewer in [limits]";
pub(crate) const ENGINES_FAIL: &str =
    "the speech engines do not work, so the stack does not start; check the models: `meridian models list`";
pub(crate) const STOPPED_EARLY: &str = "the stack was told to stop while the engines were starting; start it again";
// Jobs of engines, which callers read.

pub(crate) const ENGINES_BUSY: &str = "the speech engines of this region are busy; retry in a moment";
pub(crate) const ENGINE_LATE: &str = "the speech engine took too long; retry in a moment";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_says_what_is_wrong_and_what_to_do() {
        let made = [
            body_too_slow(Duration::from_secs(30)),
            body_too_large(1024),
            unknown_path(&Method::GET, "/x"),
            wrong_method(&Method::GET),
            unknown_model(&["a", "b"]),
            unknown_field("x", "y"),
            unknown_speech_format("mp3", "x"),
            opus_too_long(300.0),
            cannot_encode("x"),
            bad_json(&"x"),
            unknown_transcription_format("mp3"),
            bad_form("x"),
            no_flag("x"),
            one_value("x", "y"),
            unknown_language("de"),
            too_many_characters("x", 5000, 4096),
            nothing_to_speak("x"),
            too_long_to_say("x", 700.0, 1.0, 600.0),
            checkpoint_too_large(1024),
            wyoming_event_too_long(1, 1),
            wyoming_too_long(300.0),
            cannot_listen("127.0.0.1:80".parse().unwrap(), "devices"),
            cannot_use_state_dir(Path::new("state")),
        ];
        let callers = [
            TOO_MANY_UPLOADS,
            BODY_CUT,
            UNKNOWN_STREAM_FORMAT,
            NO_STREAMED_FORMAT,
            TIMES_WITHOUT_VERBOSE,
            FORM_WITHOUT_FILE,
            NO_FORM,
            SECOND_FILE,
            NO_INCLUDE,
            TEMPERATURE,
            SPEED,
            NO_CHECKPOINT_KEY,
            COPY_TOO_SLOW,
            WYOMING_BAD_LINE,
            WYOMING_BAD_DATA,
            WYOMING_SILENT,
            WYOMING_AUDIO_FORMAT,
            WYOMING_FORMAT_CHANGED,
            WYOMING_NO_AUDIO,
            WYOMING_NO_TEXT,
            WYOMING_TEXT_FORMAT,
            OGG_WITHOUT_OPUS,
            OPUS_DAMAGED,
            OPUS_EMPTY,
            UNKNOWN_SERVICE,
            ENGINES_BUSY,
            ENGINE_LATE,
        ];
        let operators = [
            FOLDER_UNUSABLE,
            FILES_LEFT_ALONE,
            UNSAVED_AT_THE_END,
            DISK_REFUSES,
            OPEN_TO_ALL,
            WYOMING_OPEN,
            NO_PRIORITIES,
            CANNOT_ACCEPT,
            TURNS_CUT,
            NOT_SAVED,
            NOT_RESTORED,
            STILL_REMEMBERED,
            AGES,
            TWO_NAMES,
            COPY_USELESS,
            COPY_LATE,
            NOT_RESUMED,
            SETTINGS_UNREADABLE,
            NOT_TRANSCRIBED,
            NOT_SPOKEN,
            NO_THREADS,
            ENGINES_FAIL,
            STOPPED_EARLY,
        ];
        for text in made.iter().map(String::as_str).chain(callers).chain(operators) {
            let begins = text.split(' ').next().unwrap_or_default();
            assert!(
                !["what", "who", "which", "whatever", "whoever"].contains(&begins),
                "{text}"
            );
            assert!(!text.ends_with(['.', ';', ':']), "{text}");
            let says_both = ["; ", " must be "].iter().any(|part| text.contains(part)) || begins == "send";
            assert!(says_both, "{text}");
        }
        assert!(
            STORE_LATE.starts_with("the store "),
            "a cause stands beside one of these"
        );
    }
}
