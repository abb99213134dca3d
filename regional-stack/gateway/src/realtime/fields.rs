//! Fields of client events: the known ones, those of the beta protocol, and the error for any other. The server ignores no request in
//! silence.

use serde_json::{Map, Value};

use super::texts;

/// The reason to refuse a field.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct FieldError {
    pub(super) code: &'static str,
    pub(super) param: String,
    pub(super) message: String,
}

/// The refusal of a value.
pub(super) fn refuse<T>(param: impl Into<String>, message: impl Into<String>) -> Result<T, FieldError> {
    Err(FieldError {
        code: "invalid_value",
        param: param.into(),
        message: message.into(),
    })
}

/// Names of the beta protocol in `session` and `response`, and the place of the field today; none for a field without a successor.
const BETA: [(&str, Option<&str>); 11] = [
    ("modalities", Some("output_modalities")),
    ("input_audio_format", Some("audio.input.format")),
    ("output_audio_format", Some("audio.output.format")),
    ("input_audio_transcription", Some("audio.input.transcription")),
    ("input_audio_noise_reduction", Some("audio.input.noise_reduction")),
    ("turn_detection", Some("audio.input.turn_detection")),
    ("voice", Some("audio.output.voice")),
    ("speed", Some("audio.output.speed")),
    ("max_response_output_tokens", Some("max_output_tokens")),
    ("temperature", None),
    ("client_secret", None),
];

/// Longest name of a field that an error repeats.
const NAME_CHARS_MAX: usize = 64;

/// The object at `place`, which may have no field but these.
pub(super) fn only<'a>(value: &'a Value, place: &str, known: &[&str]) -> Result<&'a Map<String, Value>, FieldError> {
    let Some(fields) = value.as_object() else {
        return refuse(place, texts::no_object(place));
    };
    let root = place.split('.').next().unwrap_or(place);
    let beta = |name: &str| {
        let beta = BETA.iter().find(|(beta, _)| *beta == name);
        beta.filter(|_| place == root && !place.is_empty())
    };
    // A null field asks for nothing, except where it turned something off in the beta protocol.
    let strange = fields.iter().find(|(name, value)| {
        !known.contains(&name.as_str()) && (!value.is_null() || matches!(beta(name), Some((_, Some(_)))))
    });
    let Some((name, _)) = strange else { return Ok(fields) };
    let message = match beta(name) {
        Some((_, Some(now))) => texts::beta_field(name, root, now),
        Some((_, None)) => texts::beta_field_without_successor(name),
        None => {
            let name: String = name.chars().take(NAME_CHARS_MAX).collect();
            texts::unknown_field(&name, known)
        }
    };
    let name: String = name.chars().take(NAME_CHARS_MAX).collect();
    Err(FieldError {
        code: "unknown_parameter",
        param: inside(place, &name),
        message,
    })
}

/// The full name of a field, as clients know it. Fields of the event itself have no prefix.
pub(super) fn inside(place: &str, name: &str) -> String {
    if place.is_empty() {
        name.to_owned()
    } else {
        format!("{place}.{name}")
    }
}

/// A required field.
pub(super) fn missing<T>(place: &str, name: &str) -> Result<T, FieldError> {
    Err(FieldError {
        code: "missing_required_parameter",
        param: inside(place, name),
        message: texts::missing_field(&inside(place, name)),
    })
}

/// The field, unless it is missing or null.
pub(super) fn given<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    fields.get(name).filter(|value| !value.is_null())
}

/// The text of a field, if the field is there.
pub(super) fn text<'a>(fields: &'a Map<String, Value>, place: &str, name: &str) -> Result<Option<&'a str>, FieldError> {
    match given(fields, name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => refuse(inside(place, name), texts::no_string(name)),
    }
}

/// The flag of a field, if the field is there.
pub(super) fn flag(fields: &Map<String, Value>, place: &str, name: &str) -> Result<Option<bool>, FieldError> {
    match given(fields, name) {
        None => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(*flag)),
        Some(_) => refuse(inside(place, name), texts::no_flag(name)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_field_of_the_beta_protocol_is_refused_with_its_successor() {
        for (field, successor) in BETA {
            let error = only(&json!({ field: 1 }), "session", &["type"]).unwrap_err();
            assert_eq!(error.param, format!("session.{field}"));
            assert_eq!(error.code, "unknown_parameter");
            if let Some(successor) = successor {
                assert!(error.message.contains(&format!("use session.{successor}")), "{error}");
            }
        }
    }

    #[test]
    fn a_null_asks_for_nothing_but_where_the_beta_protocol_turned_something_off() {
        assert!(only(&json!({ "anything": null, "client_secret": null }), "session", &[]).is_ok());
        for (field, successor) in BETA {
            let change = json!({ field: null });
            assert_eq!(only(&change, "session", &[]).is_err(), successor.is_some(), "{field}");
        }
        assert!(only(&json!([]), "session", &[]).is_err());
    }
}
