//! Session continuity: the data of a live session that lets another region continue it (docs/continuity.md).
//!
//! This module is pure: it takes bytes and messages and returns the data for the next region. The edge owns the
//! sockets. Three things are stored: the last checkpoint, the number of events that reached the device since, and the
//! device's messages from the first one that the checkpoint does not include. They suffice whenever a region dies: a
//! region sends a checkpoint before any event that follows from it, so the events since the last checkpoint are the
//! first ones that its successor would send again.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::{Mutex, MutexGuard};
use wire::{Checkpoint, Resume};

use crate::{admit::network, texts};

/// Most stacks that may accept a session and lose it before one of them makes progress with it. Three in a row are not
/// bad luck: the session itself kills them.
const ATTEMPTS_MAX: u32 = 3;
/// The same limit within one turn, even if each stack makes progress: an utterance that kills every stack that answers
/// it must not go through all stacks.
const ATTEMPTS_OF_TURN_MAX: u32 = 6;

/// Memory that a message costs besides its bytes: its length, in a list that doubles when it is full. Without this
/// cost, a device that sends empty messages would use memory that nothing counts.
const MESSAGE_BYTES: usize = 16;
/// Up to this many spare bytes, giving memory back is not worth the effort.
const SPARE_BYTES: usize = 4 << 10;

/// The reason for which a session leaves its region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, strum::IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub enum LeaveReason {
    /// The connection to the region broke.
    Lost,
    /// The region stopped answering.
    Silent,
    /// The region announced that it is closing the session.
    Closing,
    /// The plan evacuated the region.
    Evacuated,
    /// The plan no longer sends sessions to the region.
    Drained,
    /// The region does not continue a session of another region.
    Declined,
}

impl LeaveReason {
    /// The name of the reason in metrics and logs.
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// Whether the session can also stay for the moment.
    pub fn is_optional(self) -> bool {
        matches!(self, Self::Evacuated | Self::Drained)
    }
}

/// The memory that all sessions of an edge share for continuity.
#[derive(Debug)]
pub struct Budget {
    left: AtomicUsize,
    /// The bytes that each client with sessions holds.
    clients: Mutex<HashMap<IpAddr, Weak<AtomicUsize>>>,
}

impl Budget {
    /// A budget of this many bytes.
    pub fn new(bytes: usize) -> Self {
        Self {
            left: AtomicUsize::new(bytes),
            clients: Mutex::default(),
        }
    }

    /// The bytes that are left.
    pub fn remaining(&self) -> usize {
        self.left.load(Ordering::Relaxed)
    }

    /// The part of a client, for one of its sessions. All sessions of one client (see [`network`]) together hold at most as
    /// much as they leave to others: half of the budget while the client is alone. So no client takes all of it, and
    /// n clients that try leave one part in n + 1.
    pub fn share(self: &Arc<Self>, client: IpAddr) -> Share {
        let client = network(client);
        let mut clients = self.clients();
        let known = clients.get(&client).and_then(Weak::upgrade);
        let held = known.unwrap_or_else(|| {
            let held = Arc::default();
            clients.insert(client, Arc::downgrade(&held));
            held
        });
        drop(clients);
        Share {
            budget: self.clone(),
            of: Some((client, held)),
        }
    }

    fn clients(&self) -> MutexGuard<'_, HashMap<IpAddr, Weak<AtomicUsize>>> {
        self.clients.lock()
    }
}

/// A session's access to the [`Budget`], as one of its client's.
#[derive(Debug)]
pub struct Share {
    budget: Arc<Budget>,
    /// The client, and the bytes that all its sessions hold.
    of: Option<(IpAddr, Arc<AtomicUsize>)>,
}

/// The whole budget, for a session of no known client.
impl From<Arc<Budget>> for Share {
    fn from(budget: Arc<Budget>) -> Self {
        Self { budget, of: None }
    }
}

impl Share {
    fn take(&self, bytes: usize) -> bool {
        let held = self.of.as_ref().map(|(_, held)| held);
        // Counted first, so that two sessions of a client do not both take what is there for one.
        let holds = held.map_or(0, |held| held.fetch_add(bytes, Ordering::Relaxed) + bytes);
        let less = |left: usize| left.checked_sub(bytes).filter(|left| holds <= *left || held.is_none());
        let left = &self.budget.left;
        let is_taken = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok();
        if let Some(held) = held.filter(|_| !is_taken) {
            held.fetch_sub(bytes, Ordering::Relaxed);
        }
        is_taken
    }

    fn give_back(&self, bytes: usize) {
        if let Some((_, held)) = &self.of {
            held.fetch_sub(bytes, Ordering::Relaxed);
        }
        self.budget.left.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if let Some((client, held)) = &self.of {
            let mut clients = self.budget.clients();
            // Nobody else can get hold of it while the lock is held.
            if Arc::strong_count(held) == 1 {
                clients.remove(client);
            }
        }
    }
}

/// A contradiction in the messages of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RegionError {
    /// An event came before any checkpoint.
    #[error("{}", texts::EVENT_FIRST)]
    Event,
    /// A checkpoint includes messages that were never sent.
    #[error("{}", texts::CHECKPOINT_OF_FUTURE)]
    Future,
}

/// The continuity data of one session.
#[derive(Debug)]
pub struct Continuity {
    log: Log,
    last: Option<Last>,
    /// Number of events that reached the device since the last checkpoint.
    delivered: u64,
    /// Number of stacks that accepted the session and made no progress with it: no event, and no checkpoint with all
    /// messages.
    attempts: u32,
    /// Number of stacks that accepted the session during the current turn.
    attempts_of_turn: u32,
}

#[derive(Debug)]
struct Last {
    keep_from: u64,
    consumed: u64,
    busy: bool,
    state: Box<[u8]>,
}

/// The first data that the next region gets.
#[derive(Debug, PartialEq, Eq)]
pub struct Handover {
    /// The resume message, without a frame around it.
    pub message: Vec<u8>,
    /// The messages of the device that follow, as the device sent them.
    pub replay: Vec<u8>,
    /// Whether the rest of the device's unfinished message must not follow, because its beginning is lost.
    pub skips_rest: bool,
    /// Whether a part of the device's speech is lost, so that the user must be asked to repeat it.
    pub is_broken: bool,
}

impl Continuity {
    /// The state of a new session. `log_bytes_max` limits the stored bytes of the device's messages.
    pub fn new(log_bytes_max: usize, budget: impl Into<Share>) -> Self {
        Self {
            log: Log::new(log_bytes_max, budget.into()),
            last: None,
            delivered: 0,
            attempts: 0,
            attempts_of_turn: 0,
        }
    }

    /// Adds bytes of a message from the device. `ends` marks the last bytes of the message.
    pub fn append(&mut self, bytes: &[u8], ends: bool) {
        self.log.append(bytes, ends);
    }

    /// Stores a checkpoint of the region, and forgets the messages before it.
    pub fn checkpoint(&mut self, word: &Checkpoint<'_>) -> Result<(), RegionError> {
        // The region does not count a message whose beginning is lost; it begins after that message.
        if word.consumed > self.log.next() + u64::from(self.log.is_partial_lost) {
            return Err(RegionError::Future);
        }
        self.log.forget_before(word.keep_from);
        self.last = Some(Last {
            keep_from: word.keep_from,
            consumed: word.consumed,
            busy: word.busy,
            state: word.state.into(),
        });
        self.delivered = 0;
        if !self.awaits_region() {
            (self.attempts, self.attempts_of_turn) = (0, 0);
        }
        Ok(())
    }

    /// Counts an event that goes from the region to the device.
    pub fn delivered(&mut self) -> Result<(), RegionError> {
        if self.last.is_none() {
            return Err(RegionError::Event);
        }
        self.delivered += 1;
        self.attempts = 0;
        Ok(())
    }

    /// Whether a turn is in progress, by the last checkpoint.
    pub fn is_busy(&self) -> bool {
        self.last.as_ref().is_none_or(|last| last.busy)
    }

    /// Whether the region still has to finish a turn, or to confirm messages of the device by a checkpoint.
    pub fn awaits_region(&self) -> bool {
        self.is_busy() || self.last.as_ref().is_none_or(|last| last.consumed < self.log.next())
    }

    /// Whether another region can continue the session.
    pub fn can_move(&self) -> bool {
        let may_go_on = self.attempts < ATTEMPTS_MAX && self.attempts_of_turn < ATTEMPTS_OF_TURN_MAX;
        may_go_on && self.last.as_ref().is_some_and(|last| !last.state.is_empty())
    }

    /// Counts that the region which was offered the session declined it. That is no sign that the session kills
    /// regions.
    pub fn declined(&mut self) {
        self.attempts = self.attempts.saturating_sub(1);
        self.attempts_of_turn = self.attempts_of_turn.saturating_sub(1);
    }

    /// The sealed state of the last checkpoint. `None` while the session cannot move.
    pub fn state(&self) -> Option<&[u8]> {
        let state = self.last.as_ref().map(|last| &*last.state);
        state.filter(|state| !state.is_empty())
    }

    /// The data for the next region. `None` when [`can_move`](Self::can_move) is false.
    pub fn hand_over(&mut self) -> Option<Handover> {
        if !self.can_move() {
            return None;
        }
        let last = self.last.as_ref()?;
        let skips_rest = self.log.is_partial_lost;
        let is_broken = last.keep_from < self.log.base + u64::from(skips_rest);
        if is_broken {
            // The next region would take the rest of the turn for another turn.
            self.log.forget_whole();
        }
        let message = wire::Message::Resume(Resume {
            // `base` may have grown, because messages were forgotten above.
            first: self.log.base + u64::from(skips_rest),
            consumed: last.consumed,
            delivered: self.delivered,
            is_broken,
            state: &last.state,
        });
        self.attempts += 1;
        self.attempts_of_turn += 1;
        Some(Handover {
            message: message.to_bytes(),
            replay: self.log.bytes.iter().copied().collect(),
            skips_rest,
            is_broken,
        })
    }
}

/// The device's messages, from the first one that is still needed.
#[derive(Debug)]
struct Log {
    /// Number of the first stored message.
    base: u64,
    /// Lengths of the stored whole messages.
    lengths: VecDeque<usize>,
    /// The whole messages, followed by the first bytes of the unfinished message.
    bytes: VecDeque<u8>,
    partial: usize,
    /// Whether the unfinished message has bytes in here.
    has_begun: bool,
    /// Bytes that this log has taken from the budget.
    charged: usize,
    /// Whether the beginning of the unfinished message is lost.
    is_partial_lost: bool,
    bytes_max: usize,
    budget: Share,
}

impl Log {
    fn new(bytes_max: usize, budget: Share) -> Self {
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

    /// Number of the first message that is not complete.
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
            // A turn that cannot be replayed whole is useless, and other sessions need the memory.
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
        // Gives memory back: most sessions are silent most of the time, and one that is never silent still keeps its
        // last message.
        shrink(&mut self.bytes);
        shrink(&mut self.lengths);
    }
}

/// Shrinks a queue so that no more than about half of its memory is spare.
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
mod tests;
