//! The functions of a `session.update` or `response.create`, read and checked.

use serde_json::Value;

use super::tool::{Tool, ToolChoice};
use crate::realtime::{
    fields::{FieldError, flag, only, refuse, text},
    texts,
};

/// More than any agent has; each is looked at for each utterance that the assistant does not know.
const TOOLS_MAX: usize = 128;
const NAME_CHARS_MAX: usize = 64;
/// All of them together, as JSON: they travel with the session.
const BYTES_MAX: usize = 64 << 10;

/// The tools of a `session.update` or `response.create`.
pub(in crate::realtime) fn parse(tools: &Value, place: &str) -> Result<Vec<Tool>, FieldError> {
    let Some(list) = tools.as_array() else {
        return refuse(place, texts::no_list(place));
    };
    if list.len() > TOOLS_MAX || tools.to_string().len() > BYTES_MAX {
        return refuse(place, texts::too_many_tools(TOOLS_MAX, BYTES_MAX));
    }
    let mut parsed: Vec<Tool> = Vec::with_capacity(list.len());
    for (at, tool) in list.iter().enumerate() {
        let place = format!("{place}[{at}]");
        match tool.get("type") {
            None | Some(Value::Null) => {}
            Some(kind) if kind == "function" => {}
            Some(_) => {
                return refuse(format!("{place}.type"), texts::UNKNOWN_TOOL_TYPE);
            }
        }
        let fields = only(tool, &place, &["type", "name", "description", "parameters", "strict"])?;
        // Arguments follow the schema as far as they go, strict or not.
        flag(fields, &place, "strict")?;
        let name = text(fields, &place, "name")?.unwrap_or_default();
        let is_name = |name: &str| {
            (1..=NAME_CHARS_MAX).contains(&name.len())
                && name
                    .chars()
                    .all(|char| char.is_ascii_alphanumeric() || "_-".contains(char))
        };
        if !is_name(name) {
            return refuse(format!("{place}.name"), texts::bad_tool_name(NAME_CHARS_MAX));
        }
        if parsed.iter().any(|known| known.name == name) {
            return refuse(format!("{place}.name"), texts::second_tool(name));
        }
        let parameters = fields.get("parameters").cloned().unwrap_or_default();
        if !parameters.is_null() && !parameters.is_object() {
            return refuse(format!("{place}.parameters"), texts::PARAMETERS_ARE_NO_SCHEMA);
        }
        parsed.push(Tool {
            name: name.to_owned(),
            description: text(fields, &place, "description")?.unwrap_or_default().to_owned(),
            parameters,
        });
    }
    Ok(parsed)
}

/// The `tool_choice` of a `session.update` or `response.create`.
pub(in crate::realtime) fn parse_choice(choice: &Value, tools: &[Tool], place: &str) -> Result<ToolChoice, FieldError> {
    let named = |name: &str| match tools.iter().any(|tool| tool.name == name) {
        true => Ok(ToolChoice::Function(name.to_owned())),
        false => refuse(place, texts::no_such_tool(name)),
    };
    match choice {
        Value::Null => Ok(ToolChoice::Auto),
        Value::String(mode) => match mode.as_str() {
            "auto" => Ok(ToolChoice::Auto),
            "none" => Ok(ToolChoice::Never),
            "required" => Ok(ToolChoice::Required),
            name => named(name),
        },
        Value::Object(fields) if fields.get("type").and_then(Value::as_str) == Some("function") => {
            only(choice, place, &["type", "name"])?;
            match fields.get("name").and_then(Value::as_str) {
                Some(name) => named(name),
                None => refuse(format!("{place}.name"), texts::TOOL_WITHOUT_NAME),
            }
        }
        _ => refuse(place, texts::UNKNOWN_TOOL_CHOICE),
    }
}
