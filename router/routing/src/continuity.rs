//! Session continuity: what is kept of a live session so that another region can go on with it (docs/continuity.md).
//!
//! Pure: bytes and words go in, and what the next region needs comes out. The socket side is the edge's. Three things are
//! kept: the last checkpoint, how many events reached the device since, and the device's messages from the first that the
//! checkpoint does not stand for. They are enough at any moment, whoever dies when: a region says a checkpoint before any
//! event that follows from it, so the events since the last one are the first that its successor would send again.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use topology::words::{Checkpoint, Resume, Word};

/// Stacks that may take a session and lose it again before one of them gets anywhere with it. Three in a row are not bad luck:
/// it is the session that kills them.
const ATTEMPTS_MAX: u32 = 3;
/// The same within one turn, however far each of them gets: an utterance that kills every stack that answers it shall not go
/// through all of them.
const ATTEMPTS_OF_TURN_MAX: u32 = 6;

/// What a message costs beside its bytes: its length, in a list that doubles when it is full. Without it a device that sends
/// empty messages would hold memory that nobody counts.
const MESSAGE_BYTES: usize = 16;
/// Spare room up to here is not worth giving back.
const SPARE_BYTES: usize = 4 << 10;

/// Why a session leaves its region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Why {
    /// Its connection broke.
    Lost,
    /// It stopped answering.
    Silent,
    /// It said that it goes away.
    Closing,
    /// The plan evacuated it.
    Evacuated,
    /// The plan sends no sessions there any more.
    Drained,
    /// It does not go on with a session of another region.
    Declined,
}

impl Why {
    /// The reason's name in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::Silent => "silent",
            Self::Closing => "closing",
            Self::Evacuated => "evacuated",
            Self::Drained => "drained",
            Self::Declined => "declined",
        }
    }

    /// Whether the session may as well stay for the moment.
    pub fn is_optional(self) -> bool {
        matches!(self, Self::Evacuated | Self::Drained)
    }
}

/// Memory that all sessions of an edge share for what they keep.
#[derive(Debug)]
pub struct Budget(AtomicUsize);

impl Budget {
    /// So many bytes.
    pub fn new(bytes: usize) -> Self {
        Self(AtomicUsize::new(bytes))
    }

    /// How much is left.
    pub fn left(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: usize) -> bool {
        let less = |left: usize| left.checked_sub(bytes);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// What a region said that cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Confused {
    /// An event came before any checkpoint.
    #[error("an event came before any checkpoint")]
    Event,
    /// A checkpoint stands for messages that were never sent.
    #[error("a checkpoint stands for messages that were never sent")]
    Future,
}

/// What is kept of one session.
#[derive(Debug)]
pub struct Continuity {
    log: Log,
    last: Option<Last>,
    /// Events that reached the device since the last checkpoint.
    delivered: u64,
    /// Stacks that took the session and got nowhere with it: no event, and no word that it took in all there was.
    attempts: u32,
    /// Stacks that took it in the turn that is in progress.
    attempts_of_turn: u32,
}

#[derive(Debug)]
struct Last {
    keep_from: u64,
    consumed: u64,
    busy: bool,
    state: Box<[u8]>,
}

/// What the next region is sent first.
#[derive(Debug, PartialEq, Eq)]
pub struct Handover {
    /// The word, without a frame around it.
    pub word: Vec<u8>,
    /// The device's bytes that follow it, as the device sent them.
    pub replay: Vec<u8>,
    /// The rest of the message under way must not follow: its beginning is lost.
    pub skips_rest: bool,
    /// What the device said is lost in part: it must be told to say it again.
    pub is_broken: bool,
}

impl Continuity {
    /// Nothing yet. `log_bytes_max` bounds what is kept of the device's messages.
    pub fn new(log_bytes_max: usize, budget: Arc<Budget>) -> Self {
        Self {
            log: Log::new(log_bytes_max, budget),
            last: None,
            delivered: 0,
            attempts: 0,
            attempts_of_turn: 0,
        }
    }

    /// The device sent these bytes of a message; `ends` with the last of them.
    pub fn said(&mut self, bytes: &[u8], ends: bool) {
        self.log.append(bytes, ends);
    }

    /// The region said how the session stands.
    pub fn checkpoint(&mut self, word: &Checkpoint<'_>) -> Result<(), Confused> {
        // A message whose beginning is lost is none to the region, which begins behind it.
        if word.consumed > self.log.next() + u64::from(self.log.is_partial_lost) {
            return Err(Confused::Future);
        }
        self.log.forget_before(word.keep_from);
        self.last = Some(Last {
            keep_from: word.keep_from,
            consumed: word.consumed,
            busy: word.busy,
            state: word.state.into(),
        });
        self.delivered = 0;
        if !self.is_owed() {
            (self.attempts, self.attempts_of_turn) = (0, 0);
        }
        Ok(())
    }

    /// An event of the region goes to the device.
    pub fn delivered(&mut self) -> Result<(), Confused> {
        if self.last.is_none() {
            return Err(Confused::Event);
        }
        self.delivered += 1;
        self.attempts = 0;
        Ok(())
    }

    /// Whether a turn is in progress, as far as the region said.
    pub fn is_busy(&self) -> bool {
        self.last.as_ref().is_none_or(|last| last.busy)
    }

    /// Whether the region owes something: the rest of a turn, or its word that it took in what the device said.
    pub fn is_owed(&self) -> bool {
        self.is_busy() || self.last.as_ref().is_none_or(|last| last.consumed < self.log.next())
    }

    /// Whether another region can go on with the session.
    pub fn can_move(&self) -> bool {
        let may_go_on = self.attempts < ATTEMPTS_MAX && self.attempts_of_turn < ATTEMPTS_OF_TURN_MAX;
        may_go_on && self.last.as_ref().is_some_and(|last| !last.state.is_empty())
    }

    /// The region that the session was handed to does not go on with it. That is no sign that the session is what harms regions.
    pub fn declined(&mut self) {
        self.attempts = self.attempts.saturating_sub(1);
        self.attempts_of_turn = self.attempts_of_turn.saturating_sub(1);
    }

    /// What the next region needs; `None` when [`can_move`](Self::can_move) says no.
    pub fn hand_over(&mut self) -> Option<Handover> {
        if !self.can_move() {
            return None;
        }
        let last = self.last.as_ref()?;
        let skips_rest = self.log.is_partial_lost;
        let is_broken = last.keep_from < self.log.base + u64::from(skips_rest);
        if is_broken {
            // What is left of the turn would be taken for another one.
            self.log.forget_whole();
        }
        let word = Word::Resume(Resume {
            // It may have grown with what was forgotten.
            first: self.log.base + u64::from(skips_rest),
            consumed: last.consumed,
            delivered: self.delivered,
            is_broken,
            state: &last.state,
        });
        self.attempts += 1;
        self.attempts_of_turn += 1;
        Some(Handover {
            word: word.to_bytes(),
            replay: self.log.bytes.iter().copied().collect(),
            skips_rest,
            is_broken,
        })
    }
}

/// The device's messages, from the first that is still needed.
#[derive(Debug)]
struct Log {
    /// Number of the first message in here.
    base: u64,
    /// Lengths of the whole messages in here.
    lengths: VecDeque<usize>,
    /// The messages, and behind them what came of the one under way.
    bytes: VecDeque<u8>,
    partial: usize,
    /// The message under way has begun in here.
    has_begun: bool,
    /// What all of that takes of the budget.
    charged: usize,
    /// The beginning of the message under way is not in here.
    is_partial_lost: bool,
    bytes_max: usize,
    budget: Arc<Budget>,
}

impl Log {
    fn new(bytes_max: usize, budget: Arc<Budget>) -> Self {
        Self {
            base: 0,
            lengths: VecDeque::new(),
            bytes: VecDeque::new(),
            partial: 0,
            has_begun: false,
            charged: 0,
            is_partial_lost: false,
            bytes_max,
            budget,
        }
    }

    /// Number of the first message that is not whole yet.
    fn next(&self) -> u64 {
        self.base + self.lengths.len() as u64
    }

    fn append(&mut self, bytes: &[u8], ends: bool) {
        let begins = self.partial == 0 && !self.has_begun;
        let cost = bytes.len() + if begins { MESSAGE_BYTES } else { 0 };
        let fits = self.charged + cost <= self.bytes_max;
        if !self.is_partial_lost && fits && self.budget.take(cost) {
            self.charged += cost;
            self.bytes.extend(bytes);
            self.partial += bytes.len();
            self.has_begun = true;
        } else if !self.is_partial_lost {
            // A turn that cannot be replayed whole is of no use, and others need the memory.
            self.forget_whole();
            self.drop_front(self.partial, usize::from(self.has_begun));
            self.partial = 0;
            self.is_partial_lost = true;
        }
        self.has_begun &= !ends && !self.is_partial_lost;
        if ends && self.is_partial_lost {
            self.is_partial_lost = false;
            self.base += 1;
        } else if ends {
            self.lengths.push_back(std::mem::take(&mut self.partial));
        }
        debug_assert_eq!(self.lengths.iter().sum::<usize>() + self.partial, self.bytes.len());
        let messages = self.lengths.len() + usize::from(self.has_begun);
        debug_assert_eq!(self.bytes.len() + messages * MESSAGE_BYTES, self.charged);
    }

    fn forget_before(&mut self, message: u64) {
        while self.base < message
            && let Some(length) = self.lengths.pop_front()
        {
            self.base += 1;
            self.drop_front(length, 1);
        }
    }

    fn forget_whole(&mut self) {
        self.forget_before(self.next());
    }

    fn drop_front(&mut self, bytes: usize, messages: usize) {
        self.bytes.drain(..bytes);
        let cost = bytes + messages * MESSAGE_BYTES;
        self.charged -= cost;
        self.budget.give_back(cost);
        // Gives the memory back: a session is silent most of the time, and one that never is keeps its last message.
        shrink(&mut self.bytes);
        shrink(&mut self.lengths);
    }
}

/// No more than about half of what is held is spare.
fn shrink<T>(held: &mut VecDeque<T>) {
    let spare_max = held.len().max(SPARE_BYTES / size_of::<T>());
    if held.is_empty() {
        *held = VecDeque::new();
    } else if held.capacity() - held.len() > spare_max {
        held.shrink_to(held.len() + held.len() / 2);
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.budget.give_back(self.charged);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Messages of the device in one turn.
    const TURN: u64 = 3;

    /// A region that answers every third message with three events, and says checkpoints as it must.
    #[derive(Default)]
    struct Region {
        /// Bytes on their way to it.
        inbound: VecDeque<u8>,
        /// Words and events on their way from it.
        outbound: VecDeque<Said>,
        /// Its state: the device's messages of the turn in progress, and events not yet sent.
        consumed: u64,
        turn: Vec<u8>,
        outbox: VecDeque<String>,
        has_changed: bool,
        /// Messages up to here only rebuild what the state leaves out.
        quiet_until: u64,
    }

    enum Said {
        Word(Vec<u8>),
        Event(String),
    }

    impl Region {
        fn new() -> Self {
            Self {
                has_changed: true,
                ..Self::default()
            }
        }

        fn resumed(handover: &Handover) -> Self {
            let Word::Resume(word) = Word::parse(&handover.word).unwrap() else {
                panic!("it is a resume");
            };
            let state = std::str::from_utf8(word.state).unwrap();
            let mut outbox: VecDeque<String> = state.split_terminator(';').skip(1).map(str::to_owned).collect();
            for _ in 0..word.delivered {
                outbox.pop_front().expect("what was delivered had been in there");
            }
            if word.is_broken {
                outbox.push_back("repeat".to_owned());
            }
            Self {
                inbound: handover.replay.iter().copied().collect(),
                consumed: word.first,
                outbox,
                has_changed: true,
                quiet_until: if word.is_broken { word.first } else { word.consumed },
                ..Self::default()
            }
        }

        /// Takes a message in if a whole one came: its length, then its bytes.
        fn read(&mut self) {
            let Some(length) = self.inbound.front().map(|length| usize::from(*length)) else {
                return;
            };
            if self.inbound.len() <= length {
                return;
            }
            let message: Vec<u8> = self.inbound.drain(..=length).collect();
            self.consumed += 1;
            self.turn.extend(message);
            if self.consumed.is_multiple_of(TURN) {
                let turn = hex::encode(std::mem::take(&mut self.turn));
                if self.consumed > self.quiet_until {
                    self.outbox.extend((0..3).map(|part| format!("{turn}.{part}")));
                    self.has_changed = true;
                }
            }
        }

        /// Says the next thing; with nothing to say, how far it has come.
        fn speak(&mut self) {
            if self.consumed < self.quiet_until {
                return;
            }
            if !self.has_changed
                && let Some(event) = self.outbox.pop_front()
            {
                return self.outbound.push_back(Said::Event(event));
            }
            let events: Vec<&str> = self.outbox.iter().map(String::as_str).collect();
            let state = format!(
                ";{}",
                events.iter().map(|event| format!("{event};")).collect::<String>()
            );
            self.has_changed = false;
            self.outbound.push_back(Said::Word(
                Word::Checkpoint(Checkpoint {
                    keep_from: self.consumed - self.consumed % TURN,
                    consumed: self.consumed,
                    busy: !self.outbox.is_empty(),
                    state: state.as_bytes(),
                })
                .to_bytes(),
            ));
        }
    }

    struct Edge {
        continuity: Continuity,
        region: Region,
        device: Vec<String>,
        skips_rest: bool,
        repeats: usize,
    }

    impl Edge {
        fn hear(&mut self) {
            match self.region.outbound.pop_front() {
                Some(Said::Event(event)) => {
                    self.continuity.delivered().unwrap();
                    self.device.push(event);
                }
                Some(Said::Word(word)) => {
                    let Word::Checkpoint(word) = Word::parse(&word).unwrap() else {
                        panic!("it is a checkpoint");
                    };
                    self.continuity.checkpoint(&word).unwrap();
                }
                None => {}
            }
        }

        fn say(&mut self, bytes: &[u8], ends: bool) {
            self.continuity.said(bytes, ends);
            if !self.skips_rest {
                self.region.inbound.extend(bytes);
            }
            self.skips_rest &= !ends;
        }

        /// The region dies, and with it all that is on its way to and from it.
        fn lose_region(&mut self) {
            if let Some(handover) = self.continuity.hand_over() {
                self.repeats += usize::from(handover.is_broken);
                self.skips_rest = handover.skips_rest;
                self.region = Region::resumed(&handover);
            }
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        /// The device sends so many bytes of what it has to say.
        Device(usize),
        RegionReads,
        RegionSpeaks,
        EdgeHears,
        RegionDies,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => (1..6_usize).prop_map(Step::Device),
            6 => Just(Step::RegionReads),
            8 => Just(Step::RegionSpeaks),
            8 => Just(Step::EdgeHears),
            1 => Just(Step::RegionDies),
        ];
        proptest::collection::vec(step, 0..400)
    }

    fn messages() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let message = proptest::collection::vec(any::<u8>(), 0..6).prop_map(|mut payload| {
            payload.insert(0, u8::try_from(payload.len()).unwrap());
            payload
        });
        proptest::collection::vec(message, 30)
    }

    /// Plays the steps, then lets everything arrive. What the device heard, and how often it was asked to repeat.
    fn play(messages: &[Vec<u8>], steps: Vec<Step>, log_bytes_max: usize) -> (Vec<String>, usize) {
        let budget = Arc::new(Budget::new(1 << 20));
        let mut edge = Edge {
            continuity: Continuity::new(log_bytes_max, budget.clone()),
            region: Region::new(),
            device: Vec::new(),
            skips_rest: false,
            repeats: 0,
        };
        let bytes = messages.iter().flat_map(|message| {
            message
                .iter()
                .enumerate()
                .map(|(at, byte)| (*byte, at + 1 == message.len()))
        });
        let mut bytes = bytes.collect::<VecDeque<(u8, bool)>>();
        let send = |edge: &mut Edge, bytes: &mut VecDeque<(u8, bool)>, count: usize| {
            for (byte, ends) in bytes.drain(..count.min(bytes.len())) {
                edge.say(&[byte], ends);
            }
        };
        for step in steps {
            match step {
                Step::Device(count) => send(&mut edge, &mut bytes, count),
                Step::RegionReads => edge.region.read(),
                Step::RegionSpeaks => edge.region.speak(),
                Step::EdgeHears => edge.hear(),
                Step::RegionDies => edge.lose_region(),
            }
        }
        while !bytes.is_empty() {
            send(&mut edge, &mut bytes, 1);
            edge.region.read();
        }
        for _ in 0..400 {
            edge.region.read();
            edge.region.speak();
            edge.hear();
        }
        let kept = edge.continuity.log.charged;
        assert_eq!(budget.left() + kept, 1 << 20, "the budget is what is kept");
        drop(edge.continuity);
        assert_eq!(budget.left(), 1 << 20);
        (edge.device, edge.repeats)
    }

    proptest! {
        #[test]
        fn every_message_is_consumed_once_and_every_event_arrives_once_whoever_dies_when(
            messages in messages(),
            steps in steps(),
        ) {
            let (undisturbed, _) = play(&messages, Vec::new(), 1 << 20);
            prop_assert_eq!(undisturbed.len(), 30);
            let (heard, repeats) = play(&messages, steps, 1 << 20);
            prop_assert_eq!(repeats, 0);
            prop_assert_eq!(heard, undisturbed);
        }

        #[test]
        fn what_does_not_fit_is_lost_and_said_and_nothing_else_is(
            messages in messages(),
            steps in steps(),
            log_bytes_max in 0..90_usize,
        ) {
            let (undisturbed, _) = play(&messages, Vec::new(), 1 << 20);
            let (heard, repeats) = play(&messages, steps, log_bytes_max);
            let known = heard.iter().filter(|event| undisturbed.contains(event));
            // A turn that lost its beginning is another turn to this simple region, but none is told twice.
            let mut once: Vec<&String> = known.clone().collect();
            once.dedup();
            prop_assert!(known.eq(once));
            if repeats == 0 {
                prop_assert_eq!(heard, undisturbed);
            }
        }
    }

    #[test]
    fn a_region_that_contradicts_itself_is_not_believed() {
        let mut continuity = Continuity::new(100, Arc::new(Budget::new(100)));
        assert_eq!(continuity.delivered(), Err(Confused::Event));
        assert!(!continuity.can_move() && continuity.is_owed());
        continuity.said(b"one", true);
        let checkpoint = |consumed| Checkpoint {
            keep_from: 0,
            consumed,
            busy: false,
            state: b"s",
        };
        assert_eq!(continuity.checkpoint(&checkpoint(2)), Err(Confused::Future));
        continuity.checkpoint(&checkpoint(0)).unwrap();
        assert!(continuity.is_owed(), "what was said is not taken in yet");
        continuity.checkpoint(&checkpoint(1)).unwrap();
        assert!(!continuity.is_owed());
    }

    #[test]
    fn a_session_that_no_region_survives_is_given_up() {
        let mut continuity = Continuity::new(100, Arc::new(Budget::new(100)));
        continuity.said(b"a word that kills", true);
        let word = |consumed| Checkpoint {
            keep_from: 0,
            consumed,
            busy: false,
            state: b"s",
        };
        let survives = |continuity: &mut Continuity| {
            continuity.checkpoint(&word(0)).unwrap();
            continuity.hand_over().is_some()
        };
        let taken = (0..10).filter(|_| survives(&mut continuity)).count();
        assert_eq!(taken, 3);
        continuity.checkpoint(&word(1)).unwrap();
        assert!(
            continuity.can_move(),
            "one that says that all is well makes good for all before"
        );
    }

    #[test]
    fn sessions_share_one_budget() {
        let budget = Arc::new(Budget::new(10 + MESSAGE_BYTES));
        let mut one = Continuity::new(100, budget.clone());
        let mut two = Continuity::new(100, budget.clone());
        one.said(b"12345678", true);
        two.said(b"123", true);
        assert_eq!(two.log.next(), 1, "it counts, though it is not kept");
        assert_eq!(budget.left(), 2);
        drop(one);
        assert_eq!(budget.left(), 10 + MESSAGE_BYTES);
    }

    /// A device sent a million bytes in empty messages once, and its session held 2.4 MB of uncounted memory for hours.
    #[test]
    fn what_a_session_holds_is_counted_and_given_back() {
        let budget = Arc::new(Budget::new(1 << 20));
        let mut continuity = Continuity::new(1 << 20, budget.clone());
        let words = 40_000;
        for _ in 0..words {
            continuity.said(b"1234", true);
        }
        let held = |log: &Log| log.bytes.capacity() + log.lengths.capacity() * size_of::<usize>();
        let counted = (1 << 20) - budget.left();
        assert_eq!(counted, words * (4 + MESSAGE_BYTES));
        assert!(held(&continuity.log) <= 2 * counted);
        // All but the last is consumed, as by a device that streams without a pause.
        continuity.log.forget_before(words as u64 - 1);
        assert!(held(&continuity.log) <= 4 * SPARE_BYTES, "{}", held(&continuity.log));
        continuity.log.forget_before(words as u64);
        assert_eq!((held(&continuity.log), budget.left()), (0, 1 << 20));
        // More than may be kept is forgotten whole, and counted no more.
        for _ in 0..60_000 {
            continuity.said(b"1234", true);
        }
        assert!(budget.left() <= 1 << 20);
        drop(continuity);
        assert_eq!(budget.left(), 1 << 20);
    }

    #[test]
    fn regions_that_get_somewhere_are_not_counted_with_those_that_do_not_but_a_turn_does_not_go_through_all() {
        let mut continuity = Continuity::new(100, Arc::new(Budget::new(100)));
        let word = |busy| Checkpoint {
            keep_from: 0,
            consumed: 1,
            busy,
            state: b"s",
        };
        continuity.said(b"tell me a long story", true);
        continuity.checkpoint(&word(true)).unwrap();
        let mut moves = 0;
        while continuity.hand_over().is_some() {
            moves += 1;
            continuity.delivered().unwrap();
        }
        assert_eq!(
            moves, ATTEMPTS_OF_TURN_MAX,
            "each of them had an event more for the device"
        );
        continuity.checkpoint(&word(false)).unwrap();
        assert!(continuity.can_move(), "the turn is over");
        // A stack that declines says nothing about the session.
        for _ in 0..10 {
            assert!(continuity.hand_over().is_some());
            continuity.declined();
        }
    }
}
