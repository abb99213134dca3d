//! Vantages that contradict all others. A vantage that alone sees a region fail, or alone sees it work, has a broken network
//! or lies. People are told; and until it agrees with somebody again, what it alone claims is left out of the verdicts.
//!
//! One tick is no sign: a region that dies in the middle of a tick looks well to the vantage that probed first.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use topology::{Component, NodeId, Reason, ReasonCode, RegionId, Tick};

use crate::{region_seen::Counts, texts};

/// Ticks with a contradiction about one region that make a vantage suspect.
pub const SUSPECT_TICKS: u32 = 3;
/// Ticks without a contradiction after which it is forgotten: long enough that a vantage that lies in every other tick does
/// not escape.
pub const CALM_TICKS: u64 = 6;
/// Fewest attempts of a vantage in a tick that say something: a single probe is a matter of luck where a part of all requests
/// fails, and three of them in a row are luck as well.
const SAMPLES_MIN: u64 = 2;
/// Fewest other vantages that a vantage contradicts: of two that disagree, either may be right.
const OTHERS_MIN: u32 = 2;

/// The word of a vantage about a component of a region in one tick. In between it says neither.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Word {
    /// At most one attempt of twenty failed.
    Works,
    /// More than half of the attempts failed, and not by a single loss.
    Fails,
}

/// The contradictions of one vantage to all others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Contradiction {
    pub(crate) region: RegionId,
    pub(crate) component: Component,
    pub(crate) word: Word,
    /// Number of the others; all of them said the opposite.
    pub(crate) others: u32,
}

/// The contradictions of late.
#[derive(Debug, Clone, Default)]
pub struct Suspects(BTreeMap<NodeId, BTreeMap<RegionId, Record>>);

#[derive(Debug, Clone)]
struct Record {
    ticks: u32,
    newest: Tick,
    component: Component,
    word: Word,
    others: u32,
}

impl Word {
    pub(crate) fn of(counts: Counts<'_>) -> Option<Self> {
        let (failed, samples) = (counts.failed, counts.samples());
        if samples < SAMPLES_MIN {
            None
        } else if failed.saturating_mul(20) <= samples {
            Some(Self::Works)
        } else if failed.saturating_mul(2) > samples && (failed > 1 || counts.succeeded == 0) {
            Some(Self::Fails)
        } else {
            None
        }
    }
}

impl Word {
    fn opposite(self) -> Self {
        match self {
            Self::Works => Self::Fails,
            Self::Fails => Self::Works,
        }
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Works => "work",
            Self::Fails => "fail",
        })
    }
}

/// Number of the others if all of them contradict `word`, and are enough.
pub(crate) fn contradicted(word: Word, others: impl IntoIterator<Item = Option<Word>>) -> Option<u32> {
    let mut count = 0;
    for other in others {
        if other.is_none_or(|other| other == word) {
            return None;
        }
        count += 1;
    }
    (count >= OTHERS_MIN).then_some(count)
}

/// The only vantage that says something else than all others, with its word and their number.
pub(crate) fn alone<'v>(
    words: impl IntoIterator<Item = (&'v NodeId, Option<Word>)>,
) -> Option<(&'v NodeId, Word, u32)> {
    let mut said: [(u32, Option<&NodeId>); 2] = [(0, None); 2];
    for (vantage, word) in words {
        let (count, newest) = &mut said[word? as usize];
        (*count, *newest) = (*count + 1, Some(vantage));
        if said.iter().all(|(count, _)| *count > 1) {
            return None;
        }
    }
    let [works, fails] = said;
    for (word, (count, vantage), (others, _)) in [(Word::Works, works, fails), (Word::Fails, fails, works)] {
        if let Some(vantage) = vantage.filter(|_| count == 1 && others >= OTHERS_MIN) {
            return Some((vantage, word, others));
        }
    }
    None
}

impl Suspects {
    /// Adds the contradictions of one tick. Ticks come in order.
    pub(crate) fn note(&mut self, tick: Tick, said: impl IntoIterator<Item = (NodeId, Contradiction)>) {
        let mut counted: BTreeSet<(NodeId, RegionId)> = BTreeSet::new();
        for (vantage, said) in said {
            let Contradiction {
                region,
                component,
                word,
                others,
            } = said;
            // Several components of a region are one contradiction; the first is named.
            if !counted.insert((vantage.clone(), region.clone())) {
                continue;
            }
            let record = self.0.entry(vantage).or_default().entry(region).or_insert(Record {
                ticks: 0,
                newest: tick,
                component,
                word,
                others,
            });
            // A vantage that says one thing now and the other then sees a region that fails now and then.
            let ticks = if record.word == word {
                record.ticks.saturating_add(1)
            } else {
                1
            };
            *record = Record {
                ticks,
                newest: tick,
                component,
                word,
                others,
            };
        }
        for of_vantage in self.0.values_mut() {
            of_vantage.retain(|_, record| tick.0.saturating_sub(record.newest.0) < CALM_TICKS);
        }
        self.0.retain(|_, of_vantage| !of_vantage.is_empty());
    }

    /// Whether the word of a vantage counts only together with that of another one.
    pub fn is_suspect(&self, vantage: &NodeId) -> bool {
        let of_vantage = self.0.get(vantage);
        of_vantage.is_some_and(|regions| regions.values().any(|record| record.ticks >= SUSPECT_TICKS))
    }

    /// Every suspect vantage.
    pub fn iter(&self) -> impl Iterator<Item = &NodeId> {
        self.0.keys().filter(|vantage| self.is_suspect(vantage))
    }

    /// The reasons for operators: one for each suspect vantage and region that it is alone about.
    pub fn reasons(&self) -> Vec<Reason> {
        let mut reasons = Vec::new();
        for (vantage, regions) in &self.0 {
            for (region, record) in regions.iter().filter(|(_, record)| record.ticks >= SUSPECT_TICKS) {
                let Record {
                    component,
                    word,
                    others,
                    ..
                } = record;
                let text = texts::contradicts_all(vantage, *component, (word, word.opposite()), *others);
                reasons.push(Reason::of(ReasonCode::VantageSuspect, text).about(region));
            }
        }
        reasons
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    #[test]
    fn only_one_against_all_is_alone() {
        // One letter for each vantage: w says that it works, f that it fails, ? neither.
        for (words, expected) in [
            ("wwf", Some((2, Word::Fails, 2))),
            ("ffffw", Some((4, Word::Works, 4))),
            ("wf", None),
            ("wwff", None),
            ("www", None),
            ("ww?f", None),
            ("ff", None),
            ("", None),
        ] {
            let names: Vec<NodeId> = (0..words.len()).map(|it| node(&format!("edge-{it}"))).collect();
            let word = |letter| match letter {
                'w' => Some(Word::Works),
                'f' => Some(Word::Fails),
                _ => None,
            };
            let said = alone(names.iter().zip(words.chars().map(word)));
            let expected = expected.map(|(at, word, others)| (&names[at], word, others));
            assert_eq!(said, expected, "{words}");
        }
    }

    #[test]
    fn a_single_loss_and_a_mixed_result_say_nothing() {
        let word = |succeeded, failed| {
            Word::of(Counts {
                succeeded,
                failed,
                latency: None,
            })
        };
        assert_eq!((word(0, 0), word(1, 0), word(0, 1)), (None, None, None));
        assert_eq!(
            (word(2, 0), word(19, 1), word(18, 2)),
            (Some(Word::Works), Some(Word::Works), None)
        );
        assert_eq!(
            (word(0, 2), word(1, 2), word(1, 1)),
            (Some(Word::Fails), Some(Word::Fails), None)
        );
    }

    #[test]
    fn three_ticks_make_a_suspect_and_six_calm_ones_forget_it() {
        let iad = node("edge-iad");
        let said = || {
            let contradiction = Contradiction {
                region: RegionId::new("us-east").unwrap(),
                component: Component::Gateway,
                word: Word::Fails,
                others: 3,
            };
            [(iad.clone(), contradiction.clone()), (iad.clone(), contradiction)]
        };
        let mut suspects = Suspects::default();
        // Every other tick.
        for tick in [1, 3] {
            suspects.note(Tick(tick), said());
            suspects.note(Tick(tick + 1), []);
            assert!(!suspects.is_suspect(&iad), "tick {tick}");
        }
        suspects.note(Tick(5), said());
        assert!(suspects.is_suspect(&iad));
        let reasons = suspects.reasons();
        assert_eq!(
            (reasons.len(), reasons[0].code, reasons[0].text.as_str()),
            (
                1,
                ReasonCode::VantageSuspect,
                "edge-iad alone sees gateway fail, and 3 other vantages see it work; its word counts only where another agrees; check \
                 the network of edge-iad"
            )
        );
        suspects.note(Tick(10), []);
        assert!(suspects.is_suspect(&iad));
        suspects.note(Tick(11), []);
        assert_eq!((suspects.is_suspect(&iad), suspects.0.len()), (false, 0));
    }
}
