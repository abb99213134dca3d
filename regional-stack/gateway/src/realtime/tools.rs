//! The functions that a client offers, and the choice of the one to call.
//!
//! There is no language model here that could weigh what a user wants: a function is called when the assistant does not know
//! the command itself and the user orders what the function's name says, in all of its words, or when the client insists. Its arguments
//! are words of the user, picked by the types and names of the function's parameters. Parameters that the words do not name are left out.

mod arguments;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::fields::{FieldError, flag, only, refuse, text};

/// A function that the client offers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Tool {
    pub(super) name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) description: String,
    /// JSON schema of the arguments; null when the client gave none.
    #[serde(default)]
    pub(super) parameters: Value,
}

/// Whether functions are called.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) enum ToolChoice {
    /// When the words ask for one.
    #[default]
    Auto,
    Never,
    /// Always the one that fits best.
    Required,
    /// Always this one.
    Function(String),
}

/// A function to be called.
#[derive(Debug, PartialEq)]
pub(super) struct Choice {
    pub(super) name: String,
    /// A JSON object, as text.
    pub(super) arguments: String,
}

/// More than any agent has; each is looked at for each utterance that the assistant does not know.
const TOOLS_MAX: usize = 128;
const NAME_CHARS_MAX: usize = 64;
/// All of them together, as JSON: they travel with the session.
const BYTES_MAX: usize = 64 << 10;

/// The tools of a `session.update` or `response.create`.
pub(super) fn parse(tools: &Value, place: &str) -> Result<Vec<Tool>, FieldError> {
    let Some(list) = tools.as_array() else {
        return refuse(place, format!("{place} must be a list"));
    };
    if list.len() > TOOLS_MAX || tools.to_string().len() > BYTES_MAX {
        return refuse(
            place,
            format!("use at most {TOOLS_MAX} tools, {} KiB together", BYTES_MAX >> 10),
        );
    }
    let mut parsed: Vec<Tool> = Vec::with_capacity(list.len());
    for (at, tool) in list.iter().enumerate() {
        let place = format!("{place}[{at}]");
        match tool.get("type") {
            None | Some(Value::Null) => {}
            Some(kind) if kind == "function" => {}
            Some(_) => {
                return refuse(
                    format!("{place}.type"),
                    "only tools of type \"function\" exist here; call other servers from the client",
                );
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
            return refuse(
                format!("{place}.name"),
                format!("name the function with up to {NAME_CHARS_MAX} letters, digits, _ and -"),
            );
        }
        if parsed.iter().any(|known| known.name == name) {
            return refuse(format!("{place}.name"), format!("there are two functions {name:?}"));
        }
        let parameters = fields.get("parameters").cloned().unwrap_or_default();
        if !parameters.is_null() && !parameters.is_object() {
            return refuse(
                format!("{place}.parameters"),
                "parameters must be a JSON schema of an object",
            );
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
pub(super) fn parse_choice(choice: &Value, tools: &[Tool], place: &str) -> Result<ToolChoice, FieldError> {
    let named = |name: &str| match tools.iter().any(|tool| tool.name == name) {
        true => Ok(ToolChoice::Function(name.to_owned())),
        false => refuse(place, format!("there is no tool {name:?}; offer it in tools first")),
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
                None => refuse(format!("{place}.name"), "name the function to call"),
            }
        }
        _ => refuse(
            place,
            "use \"auto\", \"none\", \"required\" or {\"type\": \"function\", \"name\": …}",
        ),
    }
}

impl Tool {
    pub(super) fn describe(&self) -> Value {
        json!({
            "type": "function", "name": self.name, "description": self.description, "parameters": self.parameters,
        })
    }
}

impl ToolChoice {
    pub(super) fn describe(&self) -> Value {
        match self {
            Self::Auto => json!("auto"),
            Self::Never => json!("none"),
            Self::Required => json!("required"),
            Self::Function(name) => json!({ "type": "function", "name": name }),
        }
    }
}

/// Words that say nothing about what a sentence is about.
const COMMON: &[&str] = &[
    "a", "about", "all", "am", "an", "and", "any", "are", "as", "at", "be", "by", "can", "could", "do", "does", "for",
    "from", "give", "has", "have", "how", "i", "in", "is", "it", "its", "let", "like", "me", "my", "now", "of", "on",
    "or", "our", "please", "should", "some", "that", "the", "their", "them", "there", "this", "to", "up", "us", "want",
    "was", "we", "what", "when", "where", "which", "who", "will", "with", "would", "you", "your", "s",
];
/// Words in the names of functions that only read. A user need not say them.
const READS: &[&str] = &[
    "check", "data", "describe", "fetch", "find", "function", "get", "info", "list", "look", "lookup", "query", "read",
    "retrieve", "search", "show", "tell", "tool",
];
/// Words in the names of functions that speech leaves out. "All" and "off" are not among them, because they change the meaning.
const SMALL: &[&str] = &[
    "a", "an", "the", "of", "for", "to", "in", "at", "my", "me", "your", "and", "by", "with",
];

/// Chooses the function that the words ask for, if any. `known` means that the assistant has an answer of its own.
pub(super) fn choose(tools: &[Tool], choice: &ToolChoice, words: &str, known: bool) -> Option<Choice> {
    let said = tokens(words);
    let tool = match choice {
        ToolChoice::Never => return None,
        ToolChoice::Function(name) => tools.iter().find(|tool| tool.name == *name)?,
        ToolChoice::Required => {
            // The first of the best: `max_by_key` would give the last.
            tools.iter().rev().max_by_key(|tool| tool.score(&said))?
        }
        ToolChoice::Auto => {
            if known {
                return None;
            }
            let wanted = dialogue::client_request(words)?;
            let asked = tools.iter().rev().filter(|tool| tool.is_wanted(&wanted));
            let tool = asked.max_by_key(|tool| tool.score(&said))?;
            // An incomplete call is no call: its answer would be about something that the user did not ask for.
            let arguments = tool.arguments(&said);
            if !tool.lacks(&arguments).is_empty() {
                return None;
            }
            // Nor is one that does something else than was said; a question may get an answer about less.
            if !tool.reads() && (arguments::has_odd_number(words) || tool.leaves_out(&said, &arguments)) {
                return None;
            }
            tool
        }
    };
    Some(Choice {
        name: tool.name.clone(),
        arguments: Value::Object(tool.arguments(&said)).to_string(),
    })
}

impl Tool {
    /// The words of its name that have to be said.
    fn name_words(&self) -> BTreeSet<String> {
        let all: Vec<String> = name_tokens(&self.name);
        let own: BTreeSet<String> = all
            .iter()
            .filter(|word| !READS.contains(&word.as_str()) && !SMALL.contains(&word.as_str()))
            .map(|word| stem(word))
            .collect();
        if own.is_empty() {
            all.iter().map(|word| stem(word)).collect()
        } else {
            own
        }
    }

    /// Whether the request is for what its name says. A function that finds something out may be asked for it; any other is
    /// called by an order that begins with the name's own first word: "somebody opened the door" orders nothing.
    fn is_wanted(&self, wanted: &dialogue::ClientRequest) -> bool {
        let said: BTreeSet<String> = wanted.words.iter().map(|word| stem(word)).collect();
        let (Some(first), name) = (wanted.words.first(), name_tokens(&self.name)) else {
            return false;
        };
        if !self.name_words().is_subset(&said) {
            return false;
        }
        if self.reads() {
            wanted.is_question
                || wanted.is_requested
                || ["give", "what's", "tell", "show"].contains(&first.as_str())
                || name.iter().any(|word| word == first)
        } else {
            name.first() == Some(first) && !wanted.is_question
        }
    }

    /// Whether it only finds something out, by its name.
    fn reads(&self) -> bool {
        name_tokens(&self.name)
            .first()
            .is_some_and(|verb| READS.contains(&verb.as_str()))
    }

    /// How well it fits the words.
    fn score(&self, said: &[String]) -> usize {
        let said: BTreeSet<String> = said.iter().map(|word| stem(word)).collect();
        let content = tokens(&self.description).into_iter();
        let description: BTreeSet<String> = content
            .filter(|word| !COMMON.contains(&word.as_str()))
            .map(|word| stem(&word))
            .collect();
        3 * self.name_words().intersection(&said).count() + description.intersection(&said).count()
    }
}

/// Lower-case words.
fn tokens(text: &str) -> Vec<String> {
    text.split(|char: char| !(char.is_alphanumeric() || char == '\''))
        .map(|word| word.trim_matches('\'').to_lowercase())
        .filter(|word| !word.is_empty())
        .collect()
}

/// The words of a name like `orderPizza`, `order_pizza` or `order-pizza`.
fn name_tokens(name: &str) -> Vec<String> {
    let mut spaced = String::with_capacity(name.len() + 4);
    let mut before = ' ';
    for char in name.chars() {
        if char.is_uppercase() && before.is_lowercase() {
            spaced.push(' ');
        }
        spaced.push(char);
        before = char;
    }
    tokens(&spaced)
}

/// Singular and plural, "order" and "ordering", are the same word.
fn stem(word: &str) -> String {
    // "News" is not the plural of "new".
    if ["lens", "news", "series", "species"].contains(&word) {
        return word.to_owned();
    }
    for ending in ["ing", "ed", "es", "s"] {
        if let Some(stem) = word.strip_suffix(ending).filter(|stem| stem.len() >= 3) {
            return stem.to_owned();
        }
    }
    word.strip_suffix('e')
        .filter(|stem| stem.len() >= 3)
        .unwrap_or(word)
        .to_owned()
}

/// The words with which the assistant reads out a function's output. No language model phrases it: text is read as it is, and a
/// JSON object by the one text in it that is meant for people, or else whole.
pub(super) fn spoken_output(output: &str) -> String {
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

#[cfg(test)]
mod tests {
    use super::{arguments::numbers_in, *};

    fn tools() -> Vec<Tool> {
        parse(
            &json!([
                { "type": "function", "name": "order_pizza", "description": "Orders a pizza.", "parameters": {
                    "type": "object", "required": ["size"], "properties": {
                        "size": { "type": "string", "enum": ["small", "large"] },
                        "count": { "type": "integer" },
                    },
                } },
                { "type": "function", "name": "getStockPrice", "description": "Price of a share", "parameters": {
                    "type": "object", "required": ["company"], "properties": { "company": { "type": "string" } },
                } },
            ]),
            "session.tools",
        )
        .unwrap()
    }

    fn call(words: &str) -> Option<(String, Value)> {
        let choice = choose(&tools(), &ToolChoice::Auto, words, false)?;
        Some((choice.name, serde_json::from_str(&choice.arguments).unwrap()))
    }

    #[test]
    fn a_function_is_called_when_the_words_name_it() {
        let pizza = |arguments| Some(("order_pizza".to_owned(), arguments));
        let price = |company: &str| Some(("getStockPrice".to_owned(), json!({ "company": company })));
        for (words, called) in [
            ("order a large pizza", pizza(json!({ "size": "large" }))),
            (
                "please order twenty two small pizzas",
                pizza(json!({ "size": "small", "count": 22 })),
            ),
            ("what is the stock price of acme", price("acme")),
            ("what is the stock price for acme motors", price("acme motors")),
            ("could you order a large pizza", pizza(json!({ "size": "large" }))),
            // Not named, not complete, not wanted, or the opposite.
            ("order a pizza", None),
            ("order something large", None),
            ("nobody ordered a large pizza", None),
            ("did you order a large pizza", None),
            ("order a large pizza?", None),
            ("she will order a large pizza", None),
            ("without me order no large pizza", None),
            ("i like the stock price of acme", None),
            ("why would anybody order a large pizza", None),
            ("i like large cats", None),
            ("don't order a large pizza", None),
            ("", None),
        ] {
            assert_eq!(call(words), called, "{words}");
        }
    }

    #[test]
    fn functions_do_nothing_that_was_not_said() {
        let tools = [
            "open_door",
            "delete_all_files",
            "turn_off_heating",
            "sendMail",
            "get_news",
        ];
        let tools: Vec<Value> = tools.iter().map(|name| json!({ "name": name })).collect();
        let tools = parse(&json!(tools), "session.tools").unwrap();
        let called = |words: &str| {
            let known = dialogue::interpret(words).command.intent() != "unknown";
            choose(&tools, &ToolChoice::Auto, words, known).map(|choice| choice.name)
        };
        for (words, name) in [
            ("open the door", Some("open_door")),
            ("delete all the files please", Some("delete_all_files")),
            ("turn off the heating", Some("turn_off_heating")),
            ("what is the news", Some("get_news")),
            ("somebody is at the door", None),
            ("nobody opened the door", None),
            ("somebody opened the door", None),
            ("is the door open", None),
            ("i lost my file", None),
            ("delete the file", None),
            ("turn off the radio", None),
            ("turn the heating up", None),
            ("open everything but the door", None),
        ] {
            assert_eq!(called(words).as_deref(), name, "{words}");
        }
        let ordinary = include_str!("../../../dialogue/testdata/ordinary.txt").lines();
        let traps = include_str!("../../../dialogue/testdata/traps.tsv").lines();
        let traps = traps.filter_map(|row| row.split('\t').nth(1));
        let said: Vec<&str> = ordinary.filter(|row| !row.starts_with('#')).chain(traps).collect();
        assert!(said.len() > 600);
        for words in said {
            // The one that orders a function in so many words.
            if words != "turn off the heating" {
                assert_eq!(called(words), None, "{words}");
            }
        }
    }

    /// Each of these was carried out in part, or as something else.
    #[test]
    fn what_a_function_cannot_take_is_not_left_out_of_the_order() {
        let amount = json!({ "type": "integer", "maximum": 10 });
        let tools = parse(
            &json!([
                { "name": "unlock_door" },
                { "name": "set_volume", "parameters": { "required": ["level"], "properties": { "level": amount } } },
                { "name": "order_pizza", "parameters": {
                    "required": ["size"], "properties": { "size": { "type": "string", "enum": ["small", "large"] } },
                } },
                { "name": "pay_person", "parameters": {
                    "required": ["person"],
                    "properties": { "person": { "type": "string" }, "amount": { "type": "integer" } },
                } },
            ]),
            "session.tools",
        )
        .unwrap();
        let called = |words: &str| {
            let choice = choose(&tools, &ToolChoice::Auto, words, false)?;
            Some(serde_json::from_str::<Value>(&choice.arguments).unwrap())
        };
        for (words, arguments) in [
            ("unlock the door", json!({})),
            ("could you unlock my door please", json!({})),
            ("i want you to unlock the door now", json!({})),
            ("set volume to 3", json!({ "level": 3 })),
            ("set the volume to ten", json!({ "level": 10 })),
            ("order a large pizza for me", json!({ "size": "large" })),
            ("pay person anna", json!({ "person": "anna" })),
        ] {
            assert_eq!(called(words), Some(arguments), "{words}");
        }
        for words in [
            "unlock the door at seven",
            "unlock the door in ten minutes",
            "unlock the door when i say so",
            "unlock the back door",
            "unlock my neighbour's door",
            "unlock all the doors",
            "unlock the door and turn on the kitchen light",
            "set volume to minus 3",
            "set volume to -3",
            "set volume to .5",
            "set the volume to 1/2",
            "set the volume to 3.7",
            "set the volume to 3 or 4",
            "set the volume between 3 and 7",
            "set the volume to 70",
            "set the volume to three percent less",
            "order two large pizzas",
            "order a small and a large pizza",
            "order a large pizza tomorrow",
            "pay person anna 5 dollars",
        ] {
            assert_eq!(called(words), None, "{words}");
        }
    }

    #[test]
    fn the_assistants_own_skills_come_first_unless_the_client_insists() {
        let words = "order a large pizza";
        assert_eq!(choose(&tools(), &ToolChoice::Auto, words, true), None);
        assert_eq!(choose(&tools(), &ToolChoice::Never, words, false), None);
        let required = choose(&tools(), &ToolChoice::Required, words, true).unwrap();
        assert_eq!(required.name, "order_pizza");
        let unfit = choose(&tools(), &ToolChoice::Required, "hello", true).unwrap();
        assert_eq!((unfit.name.as_str(), unfit.arguments.as_str()), ("order_pizza", "{}"));
        let named = ToolChoice::Function("getStockPrice".to_owned());
        let named = choose(&tools(), &named, "acme", true).unwrap();
        assert_eq!(named.arguments, r#"{"company":"acme"}"#);
    }

    #[test]
    fn what_is_no_tool_is_refused_with_its_place() {
        for (tools, param) in [
            (json!({}), "session.tools"),
            (json!([{ "type": "mcp", "server_label": "x" }]), "session.tools[0].type"),
            (json!([{ "type": "function" }]), "session.tools[0].name"),
            (json!([{ "name": "a" }, { "name": "a" }]), "session.tools[1].name"),
            (json!([{ "name": "a", "parameters": 5 }]), "session.tools[0].parameters"),
            (json!([{ "name": "a", "depth": 5 }]), "session.tools[0].depth"),
            (json!([{ "name": "a", "strict": "x" }]), "session.tools[0].strict"),
            (json!([{ "name": "a", "type": 5 }]), "session.tools[0].type"),
        ] {
            assert_eq!(parse(&tools, "session.tools").unwrap_err().param, param, "{tools}");
        }
        let unknown = json!({ "type": "function", "name": "fly" });
        assert!(parse_choice(&unknown, &tools(), "session.tool_choice").is_err());
        let more = json!({ "type": "function", "name": "getStockPrice", "times": 2 });
        let refused = parse_choice(&more, &tools(), "session.tool_choice").unwrap_err();
        assert_eq!(refused.param, "session.tool_choice.times");
    }

    #[test]
    fn numbers_are_read_in_digits_and_in_words() {
        let numbers = |text: &str| -> Vec<i64> {
            numbers_in(&tokens(text))
                .into_iter()
                .map(|(number, _)| number)
                .collect()
        };
        assert_eq!(numbers("two and 30 or one hundred and five"), [2, 30, 105]);
        assert_eq!(numbers("twenty one forty"), [21, 40]);
        assert_eq!(numbers("none"), [] as [i64; 0]);
    }

    #[test]
    fn an_output_is_read_out_as_plainly_as_it_can_be() {
        for (output, said) in [
            ("it is raining", "it is raining"),
            (r#"{"message": "done", "id": 7}"#, "done"),
            (r#"{"priceEuro": 7, "stock": ["a", "b"]}"#, "price euro 7, stock a, b"),
            (r#""sunny""#, "sunny"),
            ("", "okay"),
        ] {
            assert_eq!(spoken_output(output), said);
        }
    }
}
