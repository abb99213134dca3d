//! The responses of a session, in order: the active one, those that wait for it, and the reply that the user interrupted.
//! At most one is active. This value decides the response that comes next; [`super::answering`] opens, makes and ends it.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use topology::Moment;

use super::{
    conversation::Items,
    items::{Content, Item},
    recognising::HEARING_MAX,
    response::{Asked, Question, Response, ResponseStage, Turn},
    settings::Modality,
};
use crate::ids::new_id;

#[derive(Default)]
pub(super) struct Responses {
    /// Boxed, like the interrupted one: most sessions are silent most of the time.
    active: Option<Box<Response>>,
    /// Items to answer after the active response. Only clients that do not allow interruptions have some.
    wanted: VecDeque<String>,
    /// Responses that the client asked for, which wait: those beside the conversation, and the ones behind them.
    asked: VecDeque<Asked>,
    /// The reply that somebody who seemed to speak interrupted. It does not travel: a session that moves loses only this.
    interrupted: Option<Box<Interrupted>>,
    /// Number of turns so far.
    turns: u64,
    /// Number of the newest response.
    number: u64,
}

/// The part that travels between regions, as a stack reads it.
pub(super) struct CarriedResponses {
    pub(super) active: Option<Box<Response>>,
    pub(super) wanted: VecDeque<String>,
    pub(super) asked: VecDeque<Asked>,
    pub(super) turns: u64,
    pub(super) number: u64,
}

/// The part that travels between regions, as a stack writes it.
pub(super) struct WrittenResponses<'a> {
    pub(super) active: &'a Option<Box<Response>>,
    pub(super) wanted: &'a VecDeque<String>,
    pub(super) asked: &'a VecDeque<Asked>,
    pub(super) turns: u64,
    pub(super) number: u64,
}

/// The assistant repeats an interrupted reply within this time or not at all: later the user no longer knows its question.
const INTERRUPTED_MAX: Duration = Duration::from_secs(10);

/// A response that ended early because somebody seemed to speak.
pub(super) struct Interrupted {
    pub(super) at: Moment,
    pub(super) item: String,
    /// Empty if the recognizer did not have the words of its utterance yet.
    pub(super) reply: String,
    /// None if nobody must answer again: the client already got a call of a function.
    pub(super) answers: Option<String>,
    /// Items that waited for an answer behind it.
    pub(super) wanted: VecDeque<String>,
    /// Utterances that were interrupted themselves before the recognizer had their words. If one of them had words, the assistant does
    /// not repeat the reply.
    pub(super) doubtful: VecDeque<String>,
}

/// The reason to refuse a request for a response now.
pub(super) enum Busy {
    /// Another one writes to the conversation, or will.
    Active,
    /// Too many wait already.
    Full,
}

impl Responses {
    pub(super) fn restore(carried: CarriedResponses) -> Self {
        Self {
            active: carried.active,
            wanted: carried.wanted,
            asked: carried.asked,
            interrupted: None,
            turns: carried.turns,
            number: carried.number,
        }
    }

    pub(super) fn carry(&self) -> WrittenResponses<'_> {
        WrittenResponses {
            active: &self.active,
            wanted: &self.wanted,
            asked: &self.asked,
            turns: self.turns,
            number: self.number,
        }
    }

    pub(super) fn active(&self) -> Option<&Response> {
        self.active.as_deref()
    }

    pub(super) fn active_mut(&mut self) -> Option<&mut Response> {
        self.active.as_deref_mut()
    }

    /// Whether no response is active and none waits.
    pub(super) fn is_idle(&self) -> bool {
        self.active.is_none() && self.wanted.is_empty() && self.asked.is_empty()
    }

    /// Whether the active response waits for the words of this item.
    pub(super) fn is_waiting_for(&self, item: &str) -> bool {
        self.active().is_some_and(|response| {
            response.stage == ResponseStage::Waiting && response.answers.as_deref() == Some(item)
        })
    }

    /// Number of turns so far.
    pub(super) fn turns(&self) -> u64 {
        self.turns
    }

    /// Admits another response, and returns whether it has to wait. One response at a time writes to the conversation. Those beside it
    /// wait too, because all speak with one voice.
    pub(super) fn admit(&self, aside: bool) -> Result<bool, Busy> {
        let is_active = self.active().is_some_and(|active| !active.options.aside);
        if !aside && (is_active || self.asked.iter().any(|asked| !asked.options.aside)) {
            return Err(Busy::Active);
        }
        if self.asked.len() >= HEARING_MAX {
            return Err(Busy::Full);
        }
        Ok(self.active.is_some() || !self.asked.is_empty())
    }

    /// Queues a response that the client asked for.
    pub(super) fn queue(&mut self, asked: Asked) {
        self.asked.push_back(asked);
    }

    /// Returns the item if its answer can begin now; else queues it, unless too many wait.
    pub(super) fn want(&mut self, item: String) -> Option<String> {
        if self.active.is_none() {
            return Some(item);
        }
        if self.wanted.len() < HEARING_MAX {
            self.wanted.push_back(item);
        }
        None
    }

    /// The response to open next; `None` while one is active, or if none waits.
    pub(super) fn next(&mut self, items: &Items, modality: Modality) -> Option<Asked> {
        if self.active.is_some() {
            return None;
        }
        if let Some(asked) = self.asked.pop_front() {
            return Some(asked);
        }
        while let Some(item) = self.wanted.pop_front() {
            if items.get(&item).is_some_and(|item| !item.answered) {
                return Some(Asked::about(Some(item), modality));
            }
        }
        None
    }

    /// Makes a response the active one, and marks its item as answered.
    pub(super) fn open(&mut self, asked: Asked, items: &mut Items) -> &Response {
        self.turns += 1;
        self.number += 1;
        let Asked {
            answers,
            modality,
            options,
        } = asked;
        let item = answers.as_ref().and_then(|id| items.get_mut(id));
        let (at, heard_ms) = item.map_or_else(
            || (Instant::now(), None),
            |item| {
                item.answered = true;
                (item.at, (item.content == Content::Audio).then_some(item.audio_ms))
            },
        );
        self.active.insert(Box::new(Response {
            number: self.number,
            id: new_id("resp"),
            item: new_id("item"),
            answers,
            modality,
            stage: ResponseStage::Waiting,
            speaking: None,
            samples: 0,
            sent: 0,
            added: false,
            previous: None,
            turn: Turn {
                number: self.turns,
                at,
                transcript: String::new(),
                intent: "unknown".into(),
                acted: false,
                slots: BTreeMap::new(),
                reply: String::new(),
                asr: None,
                nlu: None,
                skill: None,
                tts: None,
                first_audio: None,
                heard_ms,
            },
            options,
            call: None,
            cut: None,
        }))
    }

    /// Ends the active response. Dropping it takes its job out of the engine's queue.
    pub(super) fn end(&mut self) -> Option<Box<Response>> {
        self.active.take()
    }

    /// Gives the response that waits for this sound the recognised words.
    pub(super) fn give_words(&mut self, id: &str, words: String, asr_confidence: f32) {
        let is_it = |answers: &Option<String>| answers.as_deref() == Some(id);
        let active = self.active.as_mut().filter(|response| is_it(&response.answers));
        let options = active.map(|response| &mut response.options).or_else(|| {
            let asked = self.asked.iter_mut().find(|asked| is_it(&asked.answers));
            asked.map(|asked| &mut asked.options)
        });
        if let Some(options) = options {
            options.question = Some(Question::Words(words));
            options.asr_confidence = Some(asr_confidence);
        }
    }

    /// Notes that the user begins to speak over the reply to the conversation, which the caller must cancel next. False if there is no
    /// such reply: a response beside the conversation goes on.
    pub(super) fn interrupt(&mut self, now: Moment) -> bool {
        let Some(response) = self.active.as_ref().filter(|response| !response.options.aside) else {
            return false;
        };
        let wanted = std::mem::take(&mut self.wanted);
        let earlier = self.interrupted.take().filter(|earlier| earlier.holds_at(now));
        self.interrupted = Some(match earlier {
            // One cough behind the other: the reply that the first one cut off is still the one to repeat.
            Some(mut earlier) if response.stage == ResponseStage::Waiting => {
                earlier.doubtful.extend(response.answers.clone());
                earlier.wanted.extend(wanted);
                earlier
            }
            _ => Box::new(Interrupted {
                at: now,
                item: response.item.clone(),
                reply: response.turn.reply.clone(),
                answers: response.answers.clone(),
                wanted,
                doubtful: VecDeque::new(),
            }),
        });
        true
    }

    /// Notes that nobody must answer the interrupted utterance again.
    pub(super) fn settle_interrupted(&mut self) {
        if let Some(interrupted) = &mut self.interrupted {
            interrupted.answers = None;
        }
    }

    #[cfg(test)]
    pub(super) fn has_interrupted(&self) -> bool {
        self.interrupted.is_some()
    }

    /// Takes the interrupted reply, unless it is too old.
    pub(super) fn take_interrupted(&mut self, now: Moment) -> Option<Box<Interrupted>> {
        self.interrupted.take().filter(|interrupted| interrupted.holds_at(now))
    }

    /// Drops the interrupted reply: the assistant does not repeat it.
    pub(super) fn forget_interrupted(&mut self) {
        self.interrupted = None;
    }

    /// Queues the items that waited behind an interrupted reply.
    pub(super) fn want_after(&mut self, interrupted: Interrupted) {
        self.wanted.extend(interrupted.wanted);
    }

    /// Queues the next item to answer: first an utterance that may have had words, then the one that it interrupted.
    pub(super) fn queue_interrupted(&mut self, mut interrupted: Box<Interrupted>, items: &mut Items) {
        let doubtful = interrupted.doubtful.pop_front();
        let next = if doubtful.is_some() {
            &doubtful
        } else {
            &interrupted.answers
        };
        if let Some(item) = next.as_ref().and_then(|id| items.get_mut(id)) {
            item.answered = false;
            self.wanted.push_front(item.id.clone());
        }
        if doubtful.is_some() {
            self.interrupted = Some(interrupted);
        } else {
            self.want_after(*interrupted);
        }
    }
}

impl Interrupted {
    fn holds_at(&self, now: Moment) -> bool {
        now.since(self.at) <= INTERRUPTED_MAX
    }

    /// Whether the assistant can repeat the reply as it was. Drops interrupted utterances without words: they came before the one without
    /// words, so the recognizer has theirs.
    pub(super) fn can_be_repeated(&mut self, items: &Items) -> bool {
        let has_words = |item: &Item| item.text.as_ref().is_some_and(|text| !text.is_empty());
        self.doubtful.retain(|id| items.get(id).is_some_and(has_words));
        self.is_certain()
    }

    /// Whether there is a reply, and no utterance that may have had words interrupted it.
    pub(super) fn is_certain(&self) -> bool {
        !self.reply.is_empty() && self.doubtful.is_empty()
    }
}
