//! Sentence templates, and the distance of an utterance from one.
//!
//! A template is written as people speak, with `[optional]` parts, `(one|of|several)` parts, `<slots>`, and `!` before
//! a word that must be heard because it carries the meaning: without it "turn the lights" would be both on and off.
//!
//! Distance counts characters, because a recognizer errs in characters: it drops letters, splits a word in two or joins
//! two into one. Such an error costs the wrong characters, not a whole word.
//!
//! Hundreds of sentences share about a hundred words. So each utterance word is compared with each template word once,
//! and fitting a sentence only looks costs up.

use std::collections::HashMap;

use crate::{
    edit_distance::edit_distance,
    lexicon,
    slot::{self, Captured, SlotKind, SlotMatch},
};

/// One way to say something, with every optional part present or absent.
#[derive(Debug)]
pub(crate) struct Sentence {
    items: Vec<Item>,
}

#[derive(Debug, Clone, Copy)]
enum Item {
    Word {
        text: &'static str,
        id: usize,
        /// Number of this word and the next one written as one; `None` before a slot and at the end.
        with_next: Option<usize>,
        need: Need,
    },
    Slot(SlotKind),
}

/// The words of all templates, with their numbers.
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

/// The result of fitting an utterance to a sentence.
#[derive(Debug)]
pub(crate) struct Fit {
    /// 1 for word-for-word; each wrong character lowers it.
    pub(crate) similarity: f32,
    /// The values of the slots.
    pub(crate) captured: Captured,
    /// Positions of the words that the sentence does not explain, without fillers.
    pub(crate) leftover: Vec<usize>,
    /// Whether a filler is unexplained too. It may be the remainder of a misheard "no".
    pub(crate) has_unexplained_filler: bool,
}

/// Below this similarity an utterance has nothing to do with the sentence, and its leftover words do not matter.
const SIMILARITY_MIN: f32 = 0.4;

/// Small words of a template carry no meaning, so their absence costs nearly nothing.
const SMALL: &[&str] = &[
    "a", "an", "the", "please", "you", "now", "me", "my", "for", "to", "of", "i", "and", "right", "in", "at", "is",
    "up", "it",
];
/// Fillers may stand anywhere and change nothing. Any other unexplained word is reported, because it may reverse the
/// request.
const FILLERS: &[&str] = &[
    "a", "an", "the", "please", "my", "now", "just", "hey", "okay", "ok", "meridian", "uh", "um", "er", "erm",
];
const SMALL_WEIGHT: f32 = 0.3;

/// Expands a template into every sentence that it stands for.
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

/// Gives each pair of neighbouring words, written as one, a number too.
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

/// An utterance compared with every word of the templates and searched for slots.
pub(crate) struct Utterance {
    /// Per utterance word, the cost of leaving it unexplained.
    unexplained: Vec<f32>,
    /// Per utterance word, whether it is a filler.
    fillers: Vec<bool>,
    chars: usize,
    slots: Vec<SlotMatch>,
    /// Costs of every template word for every utterance word, one row per template word.
    costs: Vec<Costs>,
    /// Per template word, whether the utterance contains it in some form.
    presence: Vec<Presence>,
}

/// Whether the utterance contains a template word, as a word alone or as two words joined.
#[derive(Clone, Copy)]
struct Presence {
    alone: bool,
    joined: bool,
}

/// Costs of hearing a template word in the utterance; infinite if they differ too much.
#[derive(Clone, Copy)]
struct Costs {
    /// As this utterance word.
    misheard: f32,
    /// As this utterance word, for a template entry of two words written as one.
    joined: f32,
    /// As this utterance word and the next one together.
    split: f32,
}

impl Utterance {
    pub(crate) fn new(words: &[&str], vocabulary: &Vocabulary) -> Self {
        // Real words count as pieces of a longer word only without correction: "light is" is not "lights".
        let common: Vec<bool> = words.iter().map(|word| lexicon::is_common(word)).collect();
        let pairs: Vec<(String, bool)> = (words.windows(2).zip(common.windows(2)))
            .map(|(pair, common)| (pair.concat(), common.contains(&true)))
            .collect();
        let costs: Vec<Costs> = (vocabulary.words.iter())
            .flat_map(|meant| {
                let (pairs, common) = (&pairs, &common);
                words.iter().enumerate().map(move |(at, heard)| Costs {
                    misheard: misheard(meant, heard, common[at]),
                    joined: respaced(meant, heard, common[at]),
                    split: (pairs.get(at)).map_or(f32::INFINITY, |(pair, common)| respaced(meant, pair, *common)),
                })
            })
            .collect();
        let presence = costs.chunks(words.len().max(1)).map(|costs| Presence {
            alone: (costs.iter()).any(|cost| cost.misheard.is_finite() || cost.split.is_finite()),
            joined: costs.iter().any(|cost| cost.joined.is_finite()),
        });
        Self {
            unexplained: words.iter().map(|word| unexplained(word)).collect(),
            fillers: words.iter().map(|word| FILLERS.contains(word)).collect(),
            chars: words.iter().map(|word| word.len()).sum(),
            slots: slot::find_all(words),
            presence: presence.collect(),
            costs,
        }
    }

    /// Whether the utterance contains every required word in some form: a cheap check that spares most fits.
    fn has_needed(&self, sentence: &Sentence) -> bool {
        let mut joined_before = false;
        sentence.items.iter().all(|item| {
            let Item::Word {
                id, with_next, need, ..
            } = item
            else {
                joined_before = false;
                return true;
            };
            let joined_after = with_next.is_some_and(|both| self.presence[both].joined);
            let there = *need == Need::MayBeMissing || self.presence[*id].alone || joined_before || joined_after;
            joined_before = joined_after;
            there
        })
    }

    /// The cheapest way to explain the utterance with `sentence`; `None` if a required word is missing.
    pub(crate) fn fit(&self, sentence: &Sentence) -> Option<Fit> {
        if !self.has_needed(sentence) {
            return None;
        }
        let (rows, columns) = (sentence.items.len() + 1, self.unexplained.len() + 1);
        let mut cells: Vec<Cell> = vec![Cell::UNREACHED; rows * columns];
        cells[0].cost = 0.0;
        // Every step goes right or down, so one pass in reading order has the final cost of each cell before leaving
        // it.
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
                // No word may stand between a name and the word that belongs to it: in "forget the timer", "forget" is
                // no timer's name.
                let is_named = row > 0
                    && matches!(sentence.items[row - 1], Item::Slot(SlotKind::Name))
                    && matches!(sentence.items.get(row), Some(Item::Word { .. }));
                if let Some(step) = unexplained.filter(|_| !is_named) {
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
                            // The cost is infinite for the last word, so the step never leaves the row.
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
        let chars = self.chars.max(sentence.chars()).max(1);
        let similarity = 1.0 - cells[end].cost / chars as f32;
        // Also true if the end was not reached: its cost is infinite.
        if similarity < SIMILARITY_MIN {
            return None;
        }
        let (mut slots, mut leftover, mut has_unexplained_filler) = (Vec::new(), Vec::new(), false);
        let mut at = end;
        while at != 0 {
            let from = cells[at].from;
            match cells[at].slot {
                Some(slot) => slots.push(slot),
                // A step to the right within a row left a word unexplained.
                None if at / columns == from / columns => {
                    if self.fillers[from % columns] {
                        has_unexplained_filler = true;
                    } else {
                        leftover.push(from % columns);
                    }
                }
                None => {}
            }
            at = from;
        }
        let mut captured = Captured::default();
        for slot in slots.into_iter().rev() {
            captured.keep(&self.slots[slot].value);
        }
        Some(Fit {
            similarity,
            captured,
            leftover,
            has_unexplained_filler,
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

/// The cost of a template word that was not said.
fn missing(word: &str) -> f32 {
    let weight = if SMALL.contains(&word) { SMALL_WEIGHT } else { 1.0 };
    word.len() as f32 * weight
}

/// The cost of an utterance word that the template does not explain.
fn unexplained(word: &str) -> f32 {
    let weight = if FILLERS.contains(&word) { SMALL_WEIGHT } else { 1.0 };
    word.len() as f32 * weight
}

/// The cost of hearing `heard` as `meant`; infinite if more than a third of the word would be wrong, or if `heard` is a
/// real word (`common`).
fn misheard(meant: &str, heard: &str, common: bool) -> f32 {
    if meant == heard {
        return 0.0;
    }
    if common {
        return f32::INFINITY;
    }
    // Lost endings are the commonest error: "of" is more likely "off" than "on", though both are one letter away.
    let weight = if meant.starts_with(heard) { 0.5 } else { 1.0 };
    within(meant, heard, meant.len() / 3).map_or(f32::INFINITY, |distance| distance as f32 * weight)
}

/// The cost of a misplaced space: within a word, or missing between two. Stricter than [`misheard`], or "turn" alone
/// would pass for "turn on".
fn respaced(meant: &str, heard: &str, common: bool) -> f32 {
    let allowed = if common { 0 } else { meant.len() / 5 };
    within(meant, heard, allowed).map_or(f32::INFINITY, |distance| distance as f32 + 1.0)
}

/// The edit distance, if it is at most `distance_max`.
fn within(meant: &str, heard: &str, distance_max: usize) -> Option<usize> {
    if distance_max == 0 {
        return (meant == heard).then_some(0);
    }
    // Most words differ by more than that in length alone, which is cheap to compare.
    if meant.len().abs_diff(heard.len()) > distance_max {
        return None;
    }
    Some(edit_distance(meant, heard)).filter(|distance| *distance <= distance_max)
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
    fn the_cost_of_a_word_is_counted_in_characters() {
        assert!(misheard("on", "off", true).is_infinite());
        assert_eq!(misheard("weather", "whether", false), 2.0);
        assert!(misheard("hall", "all", true).is_infinite());
        assert!(misheard("cancel", "can", false).is_infinite());
        assert_eq!(misheard("off", "of", false), 0.5);
        assert!(respaced("lights", "lightis", true).is_infinite());
        assert!(respaced("turnon", "turn", false).is_infinite());
    }
}
