//! Sentence templates and how far an utterance is from one.
//!
//! A template is written as people speak, with `[optional]` parts, `(one|of|several)` parts, `<slots>`, and `!` before a
//! word that carries the meaning and may therefore never be missing: without it "turn the lights" would be both on and off.
//!
//! Distance is counted in characters, because that is how a recognizer errs: it drops letters, splits a word in two or
//! joins two into one. Each of these costs what it got wrong, not a whole word.
//!
//! Hundreds of sentences share some hundred words. So every word of the templates is compared with every word of an
//! utterance once, and fitting a sentence only looks the costs up.

use std::collections::HashMap;

use crate::slot::{self, Captured, SlotKind, SlotMatch};

/// One way to say something, with every optional part decided.
#[derive(Debug)]
pub(crate) struct Sentence {
    items: Vec<Item>,
}

#[derive(Debug, Clone, Copy)]
enum Item {
    Word {
        text: &'static str,
        id: usize,
        /// This word and the next one, written as one; absent before a slot and at the end.
        with_next: Option<usize>,
        need: Need,
    },
    Slot(SlotKind),
}

/// The words of all templates, numbered.
#[derive(Debug, Default)]
pub(crate) struct Vocabulary {
    words: Vec<String>,
    ids: HashMap<String, usize>,
}

impl Vocabulary {
    fn id(&mut self, word: &str) -> usize {
        if let Some(&id) = self.ids.get(word) {
            return id;
        }
        self.words.push(word.to_owned());
        self.ids.insert(word.to_owned(), self.words.len() - 1);
        self.words.len() - 1
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    Required,
    MayBeMissing,
}

/// An utterance fitted to a sentence.
#[derive(Debug)]
pub(crate) struct Fit {
    /// 1 for word-for-word, falling with each wrong character.
    pub(crate) similarity: f32,
    /// What the slots hold.
    pub(crate) captured: Captured,
}

/// Small words around a request say nothing about what is wanted, so saying or missing one is nearly free.
const FILLERS: &[&str] = &[
    "a", "an", "the", "please", "hey", "hi", "hello", "ok", "okay", "meridian", "can", "could", "would", "you", "uh",
    "um", "now", "me", "my", "for", "to", "of", "i", "and", "so", "just", "right", "there", "in", "at", "is",
];
const FILLER_WEIGHT: f32 = 0.3;

/// All sentences a template stands for.
pub(crate) fn expand(template: &'static str, vocabulary: &mut Vocabulary) -> Vec<Sentence> {
    let mut sentences: Vec<Vec<Item>> = vec![Vec::new()];
    let mut rest = template;
    while !rest.is_empty() {
        let (options, after): (Vec<&'static str>, &'static str) = match rest.as_bytes()[0] {
            b'[' => {
                let (inside, after) = rest[1..].split_once(']').unwrap_or((&rest[1..], ""));
                (inside.split('|').chain([""]).collect(), after)
            }
            b'(' => {
                let (inside, after) = rest[1..].split_once(')').unwrap_or((&rest[1..], ""));
                (inside.split('|').collect(), after)
            }
            _ => {
                let end = rest.find(['[', '(']).unwrap_or(rest.len());
                (vec![&rest[..end]], &rest[end..])
            }
        };
        let mut longer = Vec::new();
        for head in &sentences {
            for option in &options {
                let mut sentence = head.clone();
                sentence.extend(option.split_whitespace().map(|word| item(word, vocabulary)));
                longer.push(sentence);
            }
        }
        sentences = longer;
        rest = after;
    }
    sentences
        .into_iter()
        .map(|items| Sentence {
            items: join_neighbours(items, vocabulary),
        })
        .collect()
}

fn item(word: &'static str, vocabulary: &mut Vocabulary) -> Item {
    if let Some(slot) = word.strip_prefix('<').and_then(|word| word.strip_suffix('>')) {
        return Item::Slot(SlotKind::named(slot));
    }
    let (text, need) = match word.strip_prefix('!') {
        Some(text) => (text, Need::Required),
        None => (word, Need::MayBeMissing),
    };
    Item::Word {
        text,
        id: vocabulary.id(text),
        with_next: None,
        need,
    }
}

/// Numbers each pair of neighbouring words as well.
fn join_neighbours(mut items: Vec<Item>, vocabulary: &mut Vocabulary) -> Vec<Item> {
    for at in 1..items.len() {
        if let Item::Word { text: next, .. } = items[at]
            && let Item::Word { text, with_next, .. } = &mut items[at - 1]
        {
            *with_next = Some(vocabulary.id(&format!("{text}{next}")));
        }
    }
    items
}

/// An utterance compared with every word of the templates, and searched for slots.
pub(crate) struct Heard {
    /// What it costs to leave each of its words unexplained.
    unexplained: Vec<f32>,
    chars: usize,
    slots: Vec<SlotMatch>,
    /// Per template word and utterance word, one row per template word.
    costs: Vec<Costs>,
}

/// What it costs to take something heard for a template word; infinite when they differ too much.
#[derive(Clone, Copy)]
struct Costs {
    /// For the utterance's word.
    misheard: f32,
    /// For the utterance's word, when the template word is two written as one.
    joined: f32,
    /// For the utterance's word and the one after it.
    split: f32,
}

impl Heard {
    pub(crate) fn new(words: &[&str], vocabulary: &Vocabulary) -> Self {
        let pairs: Vec<String> = words.windows(2).map(<[&str]>::concat).collect();
        let costs = vocabulary.words.iter().flat_map(|meant| {
            let pairs = &pairs;
            words.iter().enumerate().map(move |(at, heard)| Costs {
                misheard: misheard(meant, heard),
                joined: respaced(meant, heard),
                split: pairs.get(at).map_or(f32::INFINITY, |pair| respaced(meant, pair)),
            })
        });
        Self {
            unexplained: words.iter().map(|word| missing(word)).collect(),
            chars: words.iter().map(|word| word.len()).sum(),
            slots: slot::find_all(words),
            costs: costs.collect(),
        }
    }

    /// The cheapest way to explain the utterance with `sentence`; `None` when something it needs is missing.
    pub(crate) fn fit(&self, sentence: &Sentence) -> Option<Fit> {
        let (rows, columns) = (sentence.items.len() + 1, self.unexplained.len() + 1);
        let mut cells: Vec<Cell> = vec![Cell::UNREACHED; rows * columns];
        cells[0].cost = 0.0;
        // Every step goes right or down, so one sweep in reading order settles each cell before it is left.
        for row in 0..rows {
            for column in 0..columns {
                let here = row * columns + column;
                let cost = cells[here].cost;
                if cost.is_infinite() {
                    continue;
                }
                let mut reach = |down: usize, right: usize, step: f32, slot: Option<usize>| {
                    let Some(target) = cells.get_mut((row + down) * columns + column + right) else {
                        return;
                    };
                    if cost + step < target.cost {
                        *target = Cell {
                            cost: cost + step,
                            from: here,
                            slot,
                        };
                    }
                };
                let unexplained = self.unexplained.get(column);
                if let Some(step) = unexplained {
                    reach(0, 1, *step, None);
                }
                match sentence.items.get(row) {
                    Some(Item::Word {
                        text,
                        id,
                        with_next,
                        need,
                    }) => {
                        if *need == Need::MayBeMissing {
                            reach(1, 0, missing(text), None);
                        }
                        if unexplained.is_some() {
                            let cost_of = |id: usize| &self.costs[id * self.unexplained.len() + column];
                            reach(1, 1, cost_of(*id).misheard, None);
                            // Infinite when there is no word after this one, so it never leaves the row.
                            reach(1, 2, cost_of(*id).split, None);
                            if let Some(both) = with_next {
                                reach(2, 1, cost_of(*both).joined, None);
                            }
                        }
                    }
                    Some(Item::Slot(kind)) => {
                        for (at, found) in self.slots.iter().enumerate() {
                            if found.start == column && found.value.kind() == *kind {
                                reach(1, found.words, found.cost, Some(at));
                            }
                        }
                    }
                    None => {}
                }
            }
        }

        let end = cells.len() - 1;
        if cells[end].cost.is_infinite() {
            return None;
        }
        let mut captured = Captured::default();
        let mut at = end;
        while at != 0 {
            if let Some(slot) = cells[at].slot {
                captured.keep(self.slots[slot].value);
            }
            at = cells[at].from;
        }
        let chars = self.chars.max(sentence.chars()).max(1);
        Some(Fit {
            similarity: (1.0 - cells[end].cost / chars as f32).max(0.0),
            captured,
        })
    }
}

#[derive(Clone, Copy)]
struct Cell {
    cost: f32,
    from: usize,
    slot: Option<usize>,
}

impl Cell {
    const UNREACHED: Self = Self {
        cost: f32::INFINITY,
        from: 0,
        slot: None,
    };
}

impl Sentence {
    fn chars(&self) -> usize {
        self.items
            .iter()
            .map(|item| {
                if let Item::Word { text, .. } = item {
                    text.len()
                } else {
                    0
                }
            })
            .sum()
    }
}

/// What it costs that `word` stands on one side only.
fn missing(word: &str) -> f32 {
    let weight = if FILLERS.contains(&word) { FILLER_WEIGHT } else { 1.0 };
    word.len() as f32 * weight
}

/// What it costs to take `heard` for `meant`; infinite when more than half of the word would be wrong.
fn misheard(meant: &str, heard: &str) -> f32 {
    // A lost ending is the commonest error: "of" is more likely "off" than "on", though both are one letter away.
    let weight = if meant.starts_with(heard) { 0.5 } else { 1.0 };
    within(meant, heard, meant.len() / 2).map_or(f32::INFINITY, |distance| distance as f32 * weight)
}

/// What it costs that only the space was put wrongly, in the middle of one word or missing between two. Stricter than
/// [`misheard`]: the joined pair must be nearly right, or "turn" alone would pass for "turn on".
fn respaced(meant: &str, heard: &str) -> f32 {
    within(meant, heard, meant.len() / 5).map_or(f32::INFINITY, |distance| distance as f32 + 1.0)
}

/// The distance, if it is at most `distance_max`.
fn within(meant: &str, heard: &str, distance_max: usize) -> Option<usize> {
    // Most words differ by more than that in length alone.
    if meant.len().abs_diff(heard.len()) > distance_max {
        return None;
    }
    Some(edits(meant, heard)).filter(|distance| *distance <= distance_max)
}

/// Levenshtein distance in bytes; the words of a transcript are ASCII.
pub(crate) fn edits(left: &str, right: &str) -> usize {
    if left == right {
        return 0;
    }
    let (left, right) = (left.as_bytes(), right.as_bytes());
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (at, byte) in left.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = at + 1;
        for (column, other) in right.iter().enumerate() {
            let substituted = diagonal + usize::from(byte != other);
            diagonal = row[column + 1];
            row[column + 1] = substituted.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_stands_for_every_choice_in_it() {
        let mut vocabulary = Vocabulary::default();
        assert_eq!(expand("set (a|the) timer [please]", &mut vocabulary).len(), 4);
        assert_eq!(expand("stop", &mut vocabulary).len(), 1);
        assert_eq!(vocabulary.id("stop"), vocabulary.words.len() - 1);
    }

    #[test]
    fn distances_are_counted_in_characters() {
        assert_eq!(edits("kitchen", "kitchen"), 0);
        assert_eq!(edits("kitchen", "kitten"), 2);
        assert_eq!(edits("on", "off"), 2);
        assert!(misheard("on", "off").is_infinite());
        assert_eq!(misheard("weather", "whether"), 2.0);
        assert_eq!(misheard("off", "of"), 0.5);
        assert!(respaced("turnon", "turn").is_infinite());
    }
}
