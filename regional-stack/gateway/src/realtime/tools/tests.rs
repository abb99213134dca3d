use serde_json::{Value, json};

use super::{arguments::numbers_in, words::tokens, *};

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
    let ordinary = include_str!("../../../../dialogue/testdata/ordinary.txt").lines();
    let traps = include_str!("../../../../dialogue/testdata/traps.tsv").lines();
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
fn a_required_call_is_not_made_for_words_that_forbid_it() {
    let tools = json!([
        { "type": "function", "name": "turn_on_the_light", "description": "Turns on the light." },
        { "type": "function", "name": "get_light_state", "description": "Whether the light is on." },
    ]);
    let tools = parse(&tools, "session.tools").unwrap();
    let (acts, reads) = ("turn_on_the_light", "get_light_state");
    let called = |choice: &ToolChoice, words: &str| choose(&tools, choice, words, false).map(|choice| choice.name);
    let long = format!("please {} do not turn on the light", "really ".repeat(30));
    for (words, acting, required) in [
        ("turn on the light", Some(acts), Some(acts)),
        ("could you turn on the light", Some(acts), Some(acts)),
        ("light", Some(acts), Some(acts)),
        ("do not turn on the light", None, None),
        ("Don’t turn on the light!", None, None),
        ("never turn on the light", None, None),
        ("turn on nothing but the light", None, None),
        (&long, None, None),
        ("is the light on", None, Some(reads)),
        ("did you turn on the light", None, Some(reads)),
        ("turn on the light?", None, Some(reads)),
    ] {
        let named = ToolChoice::Function(acts.to_owned());
        assert_eq!(called(&named, words).as_deref(), acting, "{words}");
        assert_eq!(called(&ToolChoice::Required, words).as_deref(), required, "{words}");
    }
    let named = ToolChoice::Function(reads.to_owned());
    assert_eq!(called(&named, "is the light on").as_deref(), Some(reads));
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
