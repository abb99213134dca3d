//! The events of the Wyoming protocol as bytes: a line of JSON, then further JSON, then audio, with the lengths of both in the line.
//!
//! Pure; `connection` reads and writes the bytes.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::texts;

/// Longest line. Clients write an event's data behind it, so it holds little more than two lengths.
pub(super) const LINE_BYTES_MAX: usize = 64 << 10;
/// Most data behind a line: the longest text in the widest characters, and the names that Home Assistant adds to a request so that a
/// recognizer may know them.
pub(super) const DATA_BYTES_MAX: usize = 1 << 20;
/// Most audio in one event: more than a second in the richest format. Clients send tenths of a second.
pub(super) const PAYLOAD_BYTES_MAX: usize = 1 << 20;

/// An event, whole.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Event {
    pub(super) kind: String,
    pub(super) data: Map<String, Value>,
    pub(super) payload: Vec<u8>,
}

/// An event's line, before the bytes that it announces.
#[derive(Debug, Deserialize)]
pub(super) struct Head {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    data: Option<Map<String, Value>>,
    #[serde(default)]
    data_length: Option<usize>,
    #[serde(default)]
    payload_length: Option<usize>,
}

/// Bytes that are no event. The next event cannot be found behind them, so the connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("{}", texts::WYOMING_BAD_LINE)]
    Line,
    #[error("{}", texts::WYOMING_BAD_DATA)]
    Data,
    #[error("{}", texts::wyoming_event_too_long(DATA_BYTES_MAX, PAYLOAD_BYTES_MAX))]
    TooLong,
}

impl Head {
    /// Reads a line, with or without its end.
    pub(super) fn read(line: &[u8]) -> Result<Self, Malformed> {
        let head: Self = serde_json::from_slice(line).map_err(|_| Malformed::Line)?;
        if head.data_bytes() > DATA_BYTES_MAX || head.payload_bytes() > PAYLOAD_BYTES_MAX {
            return Err(Malformed::TooLong);
        }
        Ok(head)
    }

    /// Length of the data behind the line.
    pub(super) fn data_bytes(&self) -> usize {
        self.data_length.unwrap_or(0)
    }

    /// Length of the audio behind the data.
    pub(super) fn payload_bytes(&self) -> usize {
        self.payload_length.unwrap_or(0)
    }

    /// The whole event. Data behind the line replaces data of the same name in it.
    pub(super) fn complete(self, data: &[u8], payload: Vec<u8>) -> Result<Event, Malformed> {
        let mut all = self.data.unwrap_or_default();
        if !data.is_empty() {
            let more: Map<String, Value> = serde_json::from_slice(data).map_err(|_| Malformed::Data)?;
            all.extend(more);
        }
        Ok(Event {
            kind: self.kind,
            data: all,
            payload,
        })
    }
}

impl Event {
    /// A text of the event; `None` if it has none of this name.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.data.get(name).and_then(Value::as_str)
    }

    /// A whole number of the event that is not negative.
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.data.get(name).and_then(Value::as_u64)
    }
}

/// The bytes of an event.
pub(super) fn encode(kind: &str, data: &Value, payload: &[u8]) -> Vec<u8> {
    let data = match data {
        Value::Object(fields) if fields.is_empty() => String::new(),
        data => data.to_string(),
    };
    let mut line = json!({ "type": kind, "version": env!("CARGO_PKG_VERSION") });
    if !data.is_empty() {
        line["data_length"] = data.len().into();
    }
    if !payload.is_empty() {
        line["payload_length"] = payload.len().into();
    }
    let mut bytes = line.to_string().into_bytes();
    bytes.push(b'\n');
    bytes.extend_from_slice(data.as_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// Reads every event in `bytes`, for the fuzzer: nothing but an error may come of a stranger's bytes, and an event survives its way
/// through our own writer.
pub(crate) fn read_all(bytes: &[u8]) {
    let mut rest = bytes;
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let (line, behind) = (&rest[..end], &rest[end + 1..]);
        let Ok(head) = Head::read(line) else { return };
        let lengths = (head.data_bytes(), head.payload_bytes());
        let Some((data, behind)) = behind.split_at_checked(lengths.0) else {
            return;
        };
        let Some((payload, behind)) = behind.split_at_checked(lengths.1) else {
            return;
        };
        rest = behind;
        let Ok(event) = head.complete(data, payload.to_vec()) else {
            return;
        };
        let written = encode(&event.kind, &Value::Object(event.data.clone()), &event.payload);
        assert_eq!(read_one(&written).as_ref(), Ok(&event));
    }
}

/// Reads one event that `bytes` hold exactly.
fn read_one(bytes: &[u8]) -> Result<Event, Malformed> {
    let end = bytes.iter().position(|byte| *byte == b'\n').ok_or(Malformed::Line)?;
    let head = Head::read(&bytes[..end])?;
    let behind = &bytes[end + 1..];
    let (data, payload) = behind.split_at_checked(head.data_bytes()).ok_or(Malformed::Data)?;
    if payload.len() != head.payload_bytes() {
        return Err(Malformed::Data);
    }
    head.complete(data, payload.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_stands_in_the_line_or_behind_it() {
        let in_line = br#"{"type":"transcript","data":{"text":"stop","language":"en"}}"#;
        let event = Head::read(in_line).unwrap().complete(b"", Vec::new()).unwrap();
        assert_eq!((event.kind.as_str(), event.text("text")), ("transcript", Some("stop")));

        let behind = br#"{"text":"go"}"#;
        let line = format!(
            r#"{{"type":"transcript","data":{{"text":"stop"}},"data_length":{}}}"#,
            behind.len()
        );
        let event = Head::read(line.as_bytes())
            .unwrap()
            .complete(behind, Vec::new())
            .unwrap();
        assert_eq!(event.text("text"), Some("go"), "the later one counts");

        let event = read_one(&encode("audio-chunk", &json!({ "rate": 16_000 }), &[1, 2, 3])).unwrap();
        assert_eq!((event.number("rate"), event.payload), (Some(16_000), vec![1, 2, 3]));
        assert_eq!(event.data.len(), 1);
    }

    #[test]
    fn what_is_no_event_is_refused_and_never_waited_for() {
        for (line, fault) in [
            (&b"GET / HTTP/1.1"[..], Malformed::Line),
            (b"{}", Malformed::Line),
            (b"[]", Malformed::Line),
            (br#"{"type":7}"#, Malformed::Line),
            (br#"{"type":"x","data_length":-1}"#, Malformed::Line),
            (br#"{"type":"x","data":[]}"#, Malformed::Line),
            (br#"{"type":"x","data_length":99999999}"#, Malformed::TooLong),
            (
                br#"{"type":"x","payload_length":18446744073709551615}"#,
                Malformed::TooLong,
            ),
        ] {
            assert_eq!(
                Head::read(line).unwrap_err(),
                fault,
                "{}",
                String::from_utf8_lossy(line)
            );
        }
        for data in [&b"[1]"[..], b"7", b"{", b"\xff\xff"] {
            let head = Head::read(br#"{"type":"x"}"#).unwrap();
            assert_eq!(head.complete(data, Vec::new()).unwrap_err(), Malformed::Data);
        }
    }
}
