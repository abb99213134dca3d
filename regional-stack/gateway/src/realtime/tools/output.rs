//! The words with which the assistant reads out the output of a function.

use serde_json::Value;

use super::words::name_tokens;

/// The words with which the assistant reads out a function's output. No language model phrases it: text is read as it is, and a
/// JSON object by the one text in it that is meant for people, or else whole.
pub(in crate::realtime) fn spoken_output(output: &str) -> String {
    const FOR_PEOPLE: &[&str] = &[
        "answer", "content", "message", "output", "reply", "response", "result", "speech", "text",
    ];
    let said = match serde_json::from_str::<Value>(output) {
        Ok(Value::Object(fields)) => {
            let for_people = FOR_PEOPLE
                .iter()
                .find_map(|name| fields.get(*name).and_then(Value::as_str));
            for_people.map_or_else(|| flat(&Value::Object(fields.clone())), str::to_owned)
        }
        Ok(value) => flat(&value),
        Err(_) => output.to_owned(),
    };
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    if said.is_empty() { "okay".to_owned() } else { said }
}

fn flat(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(flat).collect::<Vec<_>>().join(", "),
        Value::Object(fields) => {
            let each = fields
                .iter()
                .map(|(name, value)| format!("{} {}", name_tokens(name).join(" "), flat(value)));
            each.collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    }
}
