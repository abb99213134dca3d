//! Turns the recognizer's letter probabilities into words: the most likely sentence of known words, or the plain
//! letters when no such sentence is near.
//!
//! This is a prefix beam search over CTC output (Hannun and others, 2014). It walks a tree of the known words and adds
//! the statistics of word sequences. Hand-written: the decoders that know words bind C++ (Flashlight,
//! KenLM), and none weighs a sentence against the plain letters.

use std::collections::HashMap;

use crate::texts;

mod negation;

/// Hypotheses kept after each frame. Half as many lose one transcript in fifty; twice as many gain nothing.
const BEAM: usize = 48;
/// A hypothesis this much less likely than the best one (in nats) is dropped; it would never win.
const BEAM_NATS: f32 = 14.0;
/// Letters less likely than this in a frame (in nats) are not tried there.
const LETTER_NATS: f32 = -8.0;
/// The weight of the word statistics relative to the sound, and the bonus for each word, since every word costs
/// probability. These two and the next were chosen on recordings that are used neither for training nor for reports.
const LANGUAGE_WEIGHT: f32 = 1.0;
const WORD_BONUS: f32 = 3.5;
/// The share of a word's own frequency in its probability after another word.
const ALONE_SHARE: f32 = 0.08;
/// If a sentence of known words explains the sound this much worse per letter (in nats) than free spelling, it was not
/// said. A misspelled name is better than a wrong word.
const TRUST_NATS_PER_LETTER: f32 = 1.6;

/// A line of the word statistics that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{}", texts::bad_statistics(line))]
pub struct LanguageError {
    /// Line number, from 1.
    pub line: usize,
}

/// The known words, and how often one follows another.
#[derive(Debug)]
pub struct Language {
    characters: String,
    space: u8,
    tree: Vec<Node>,
    words: Vec<String>,
    alone: Vec<f32>,
    pairs: HashMap<(u32, u32), f32>,
}

#[derive(Debug, Default)]
struct Node {
    /// Token of the letter that leads to this node; 0 at the root.
    token: u8,
    children: Vec<u32>,
    word: Option<u32>,
}

const ROOT: u32 = 0;
/// The markers before the first word and after the last.
const START: u32 = u32::MAX;
const END: &str = "</s>";
const BEGIN: &str = "<s>";

impl Language {
    /// Reads counts, separated by tabs: the preceding word (empty for the word alone), the word, and the count.
    /// `characters` are the letters of tokens 1, 2, … and include a space.
    pub fn parse(text: &str, characters: &str) -> Result<Self, LanguageError> {
        let token_of = |c: char| characters.find(c).and_then(|at| u8::try_from(at + 1).ok());
        let space = token_of(' ').ok_or(LanguageError { line: 0 })?;
        let mut language = Self {
            characters: characters.to_owned(),
            space,
            tree: vec![Node::default()],
            words: Vec::new(),
            alone: Vec::new(),
            pairs: HashMap::new(),
        };
        let mut numbers: HashMap<&str, u32> = HashMap::from([(BEGIN, START)]);
        let mut pairs: Vec<(u32, u32, f32)> = Vec::new();
        for (at, line) in text.lines().enumerate() {
            let bad = || LanguageError { line: at + 1 };
            let [before, word, count] = line.split('\t').collect::<Vec<_>>()[..] else {
                return Err(bad());
            };
            let count: u32 = count.parse().map_err(|_| bad())?;
            if before.is_empty() {
                let number = language.words.len() as u32;
                if word != END {
                    let tokens: Option<Vec<u8>> = word.chars().map(token_of).collect();
                    let tokens = tokens
                        .filter(|t| !t.is_empty() && !t.contains(&space))
                        .ok_or_else(bad)?;
                    language.insert(&tokens, number);
                }
                language.words.push(word.to_owned());
                language.alone.push(count as f32);
                numbers.insert(word, number);
            } else {
                // The counts of single words come first in the file, so both words are known here.
                let (Some(&before), Some(&word)) = (numbers.get(before), numbers.get(word)) else {
                    return Err(bad());
                };
                pairs.push((before, word, count as f32));
            }
        }
        if language.words.is_empty() {
            return Err(LanguageError { line: 1 });
        }
        let all: f32 = language.alone.iter().sum();
        let mut after: HashMap<u32, f32> = HashMap::new();
        for (before, _, count) in &pairs {
            *after.entry(*before).or_default() += count;
        }
        language.pairs = pairs
            .into_iter()
            .map(|(b, w, count)| ((b, w), count / after[&b].max(1.0)))
            .collect();
        for count in &mut language.alone {
            *count /= all.max(1.0);
        }
        Ok(language)
    }

    fn insert(&mut self, tokens: &[u8], word: u32) {
        let mut node = ROOT;
        for &token in tokens {
            let found = self.tree[node as usize]
                .children
                .iter()
                .copied()
                .find(|&c| self.tree[c as usize].token == token);
            node = found.unwrap_or_else(|| {
                let new = self.tree.len() as u32;
                self.tree.push(Node {
                    token,
                    ..Node::default()
                });
                self.tree[node as usize].children.push(new);
                new
            });
        }
        self.tree[node as usize].word = Some(word);
    }

    fn score(&self, before: u32, word: u32) -> f32 {
        let alone = self.alone.get(word as usize).copied().unwrap_or(0.0);
        let pair = self.pairs.get(&(before, word)).copied().unwrap_or(0.0);
        LANGUAGE_WEIGHT * ((1.0 - ALONE_SHARE) * pair + ALONE_SHARE * alone).max(1e-9).ln() + WORD_BONUS
    }

    fn end_score(&self, before: u32) -> f32 {
        match self.words.iter().position(|w| w == END) {
            Some(end) => self.score(before, end as u32) - WORD_BONUS,
            None => 0.0,
        }
    }

    /// The most likely sentence of known words, if it explains the sound nearly as well as free spelling.
    /// `log_probabilities` contains one frame after another; within a frame, the blank comes first and then the
    /// characters.
    pub fn decode(&self, log_probabilities: &[f32]) -> Option<String> {
        let tokens = self.characters.chars().count() + 1;
        let mut histories = Histories::default();
        let mut beam = vec![Hypothesis {
            history: 0,
            node: ROOT,
            blank: 0.0,
            letter: f32::NEG_INFINITY,
            language: 0.0,
        }];
        let mut free = 0.0;
        let mut free_letters = 0u32;
        let mut last_best = 0;
        for frame in log_probabilities.chunks_exact(tokens) {
            let best = (0..tokens).max_by(|&a, &b| frame[a].total_cmp(&frame[b])).unwrap_or(0);
            free += frame[best];
            free_letters += u32::from(best != 0 && best != last_best);
            last_best = best;
            beam = self.step(beam, frame, &mut histories);
        }
        let finished = beam.iter().filter_map(|h| {
            let total = h.total();
            let (history, language) = match self.tree[h.node as usize].word {
                Some(word) => {
                    let before = histories.last_word(h.history);
                    (histories.with(h.history, word), h.language + self.score(before, word))
                }
                None if h.node == ROOT => (h.history, h.language),
                None => return None,
            };
            Some((
                total + language + self.end_score(histories.last_word(history)),
                total,
                history,
            ))
        });
        let finished: Vec<_> = finished.collect();
        let (_, sound, history) = finished.into_iter().max_by(|a, b| a.0.total_cmp(&b.0))?;
        // Written so that NaN is rejected too.
        let trusted = sound >= free - TRUST_NATS_PER_LETTER * free_letters as f32;
        trusted.then(|| histories.text(history, &self.words))
    }

    fn step(&self, beam: Vec<Hypothesis>, frame: &[f32], histories: &mut Histories) -> Vec<Hypothesis> {
        let mut next: HashMap<(u32, u32), Hypothesis> = HashMap::with_capacity(beam.len() * 4);
        let mut add = |history: u32, node: u32, language: f32, blank: f32, letter: f32| {
            let none = Hypothesis {
                history,
                node,
                blank: f32::NEG_INFINITY,
                letter: f32::NEG_INFINITY,
                language,
            };
            let h = next.entry((history, node)).or_insert(none);
            h.blank = log_sum(h.blank, blank);
            h.letter = log_sum(h.letter, letter);
        };
        for h in beam {
            let last = if h.node == ROOT && h.history != 0 {
                self.space
            } else {
                self.tree[h.node as usize].token
            };
            let total = h.total();
            let stay = if last == 0 {
                f32::NEG_INFINITY
            } else {
                h.letter + frame[usize::from(last)]
            };
            add(h.history, h.node, h.language, total + frame[0], stay);
            // A repeated letter counts as a new one only after a blank.
            let before = |token: u8| if token == last { h.blank } else { total };
            for &child in &self.tree[h.node as usize].children {
                let token = self.tree[child as usize].token;
                let p = frame[usize::from(token)];
                if p > LETTER_NATS {
                    add(h.history, child, h.language, f32::NEG_INFINITY, before(token) + p);
                }
            }
            let p = frame[usize::from(self.space)];
            if let Some(word) = self.tree[h.node as usize].word
                && p > LETTER_NATS
            {
                let language = h.language + self.score(histories.last_word(h.history), word);
                add(
                    histories.with(h.history, word),
                    ROOT,
                    language,
                    f32::NEG_INFINITY,
                    before(self.space) + p,
                );
            }
        }
        let mut beam: Vec<Hypothesis> = next.into_values().collect();
        // Ties are broken by identity, so that the order of a hash map never affects a transcript.
        beam.sort_by(|a, b| {
            b.rank()
                .total_cmp(&a.rank())
                .then((a.history, a.node).cmp(&(b.history, b.node)))
        });
        beam.truncate(BEAM);
        let enough = beam.first().map_or(0.0, Hypothesis::rank) - BEAM_NATS;
        beam.retain(|h| h.rank() >= enough);
        beam
    }
}

#[derive(Debug, Clone)]
struct Hypothesis {
    /// The words so far, as a number in [`Histories`].
    history: u32,
    /// The node in the tree, which stands for the beginning of the current word.
    node: u32,
    /// Log-probability of all alignments that end in a blank, and of those that end in a letter.
    blank: f32,
    letter: f32,
    language: f32,
}

impl Hypothesis {
    fn total(&self) -> f32 {
        log_sum(self.blank, self.letter)
    }

    fn rank(&self) -> f32 {
        self.total() + self.language
    }
}

/// Sequences of words as numbers. Each extends another sequence; 0 is the empty one.
#[derive(Debug, Default)]
struct Histories {
    list: Vec<(u32, u32)>,
    known: HashMap<(u32, u32), u32>,
}

impl Histories {
    fn with(&mut self, history: u32, word: u32) -> u32 {
        let list = &mut self.list;
        *self.known.entry((history, word)).or_insert_with(|| {
            list.push((history, word));
            list.len() as u32
        })
    }

    fn last_word(&self, history: u32) -> u32 {
        history.checked_sub(1).map_or(START, |at| self.list[at as usize].1)
    }

    fn text(&self, mut history: u32, words: &[String]) -> String {
        let mut out = Vec::new();
        while let Some(at) = history.checked_sub(1) {
            let (before, word) = self.list[at as usize];
            out.push(words[word as usize].as_str());
            history = before;
        }
        out.reverse();
        out.join(" ")
    }
}

fn log_sum(a: f32, b: f32) -> f32 {
    let (high, low) = if a >= b { (a, b) } else { (b, a) };
    if low == f32::NEG_INFINITY {
        high
    } else {
        high + (low - high).exp().ln_1p()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHARACTERS: &str = "abcdefghijklmnopqrstuvwxyz' ";

    pub(super) fn language() -> Language {
        let counts = "\tturn\t50\n\tthe\t90\n\tlight\t40\n\tnight\t30\n\ton\t60\n\t</s>\t80\n\
                      turn\ton\t30\non\tthe\t30\nthe\tlight\t40\nlight\t</s>\t40\n<s>\tturn\t50\n";
        Language::parse(counts, CHARACTERS).unwrap()
    }

    /// Frames that spell `text`, with a blank between any two letters. The probability `doubt` goes to the letter of
    /// the other text.
    pub(super) fn frames(text: &str, other: &str, doubt: f32) -> Vec<f32> {
        let mut out = Vec::new();
        for (a, b) in text.chars().zip(other.chars()) {
            let mut letter = vec![0.001f32; CHARACTERS.len() + 1];
            letter[CHARACTERS.find(b).unwrap() + 1] += doubt;
            letter[CHARACTERS.find(a).unwrap() + 1] += 0.95 - doubt;
            let mut blank = vec![0.001f32; CHARACTERS.len() + 1];
            blank[0] = 0.97;
            out.extend(letter.into_iter().chain(blank).map(f32::ln));
        }
        out
    }

    #[test]
    fn clear_words_stay_as_they_are() {
        let text = "turn on the light";
        assert_eq!(language().decode(&frames(text, text, 0.0)).as_deref(), Some(text));
    }

    #[test]
    fn a_misheard_letter_is_put_right_by_the_words_around_it() {
        // "nighd" is not a word. Of the two nearest words, one follows "the", and the sound favours the other.
        let heard = frames("turn on the nighd", "turn on the light", 0.3);
        assert_eq!(language().decode(&heard).as_deref(), Some("turn on the light"));
    }

    #[test]
    fn what_is_no_known_word_is_left_to_free_spelling() {
        let name = "zweibruecken";
        assert_eq!(language().decode(&frames(name, name, 0.0)), None);
    }

    #[test]
    fn nothing_and_nonsense_do_no_harm() {
        let quiet = frames("", "", 0.0);
        assert_eq!(language().decode(&quiet).as_deref(), Some(""));
        assert!(language().decode(&vec![f32::NAN; 29 * 5]).is_none());
        for bad in ["", "word", "\tword\tmany", "a\tb\t1", "\tüber\t3"] {
            assert!(Language::parse(bad, CHARACTERS).is_err(), "{bad}");
        }
    }
}
