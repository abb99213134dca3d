//! Requests that must never be carried out and commands that must always be understood, as lists that are easy to
//! extend: `testdata/traps.tsv`, `testdata/commands.tsv`, `testdata/changes.tsv` and `testdata/questions.tsv`. Prints its scores: `cargo test -p dialogue --test gates --
//! --nocapture`.

use std::time::Instant;

use dialogue::{Command, DialogueState, act, interpret, understand};
use topology::Moment;

/// Saturday 21 November 2026, 10:35 in London.
const NOW: Moment = Moment(1_795_257_300_000);

fn rows(list: &str) -> Vec<Vec<&str>> {
    let lines = list.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split('\t').collect()).collect()
}

/// Intent and slots in the format of the lists.
fn understood(command: &Command) -> String {
    let slots = command
        .slots()
        .into_iter()
        .map(|(name, value)| format!(" {name}={value}"));
    command.intent().to_owned() + &slots.collect::<String>()
}

#[test]
fn nothing_acts_on_what_was_not_said() {
    let traps = rows(include_str!("../testdata/traps.tsv"));
    let negated = traps.iter().filter(|trap| trap[0] == "negated").count();
    assert!(negated >= 200, "{negated} negated commands");
    let (mut wrong, mut asked) = (Vec::new(), 0);
    for trap in &traps {
        let [kind, text, right] = trap.as_slice() else {
            panic!("three columns: {trap:?}")
        };
        let command = interpret(text).command;
        let is_right = understood(&command) == *right;
        if command.changes_state() && !is_right {
            wrong.push(format!("{kind}: {text:?} does {}", understood(&command)));
        }
        // Without an action the memory stays as it was, except for an open question.
        let mut state = DialogueState::new(dialogue::City::London);
        let before = state.clone();
        let heard = understand(&state, text, None, NOW);
        act(&mut state, &heard, NOW);
        // People say "yes" without listening, so the question back must not offer what the row forbids.
        if matches!(heard.command, Command::Unsure { .. }) {
            let confirmed = understand(&state, "yes", None, NOW).command;
            let is_forbidden = *kind == "negated" || !right.is_empty();
            if confirmed.changes_state() && is_forbidden && understood(&confirmed) != *right {
                wrong.push(format!("{kind}: {text:?} and \"yes\" does {}", understood(&confirmed)));
            }
        }
        state.question = None;
        if right.is_empty() && state != before {
            wrong.push(format!("{kind}: {text:?} changes the memory"));
        }
        asked += usize::from(!right.is_empty() && !is_right);
        if !right.is_empty() && !is_right {
            println!("not understood: {text:?} is {right:?}, was {:?}", understood(&command));
        }
    }
    println!(
        "{} negated, asked and half understood commands: {} wrongly acted on; {asked} that have a right answer did not get it",
        traps.len(),
        wrong.len()
    );
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(
        asked <= traps.len() / 100,
        "{asked} of {} answers are not understood",
        traps.len()
    );
}

#[test]
fn commands_mean_what_they_say() {
    let mut commands = rows(include_str!("../testdata/commands.tsv"));
    commands.extend(rows(include_str!("../testdata/changes.tsv")));
    commands.extend(rows(include_str!("../testdata/questions.tsv")));
    let wrong: Vec<String> = commands
        .iter()
        .filter_map(|row| {
            let was = understood(&interpret(row[0]).command);
            (was != row[1]).then(|| format!("{:?} is {:?}, was {was:?}", row[0], row[1]))
        })
        .collect();
    let began = Instant::now();
    for row in &commands {
        interpret(row[0]);
    }
    let each = began.elapsed() / u32::try_from(commands.len()).unwrap_or(1);
    println!(
        "{} commands: {} not understood, {each:.1?} each",
        commands.len(),
        wrong.len()
    );
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn ordinary_sentences_start_no_skill() {
    let sentences = rows(include_str!("../testdata/ordinary.txt"));
    let started: Vec<String> = sentences
        .iter()
        .filter_map(|row| {
            let command = interpret(row[0]).command;
            let answered = !matches!(
                command,
                Command::Unknown | Command::Unsure { .. } | Command::Declined { .. }
            );
            answered.then(|| format!("{:?} is {:?}", row[0], understood(&command)))
        })
        .collect();
    println!(
        "{} ordinary sentences: {} start a skill",
        sentences.len(),
        started.len()
    );
    assert!(started.is_empty(), "{started:#?}");
}
