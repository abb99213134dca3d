//! The store of sessions between turns and between connections. Local to the region by design: session data never leaves
//! its region through the store.
//!
//! A memory ages only after its session: a connected session touches it. A memory with an alarm or a timer lives until a day after the
//! last of them: a device that was off at seven gets its alarm at nine.

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use dialogue::DialogueState;
use parking_lot::{Mutex, MutexGuard};
use topology::Moment;

mod durable;
mod folder;
mod marks;

pub(crate) use self::{
    durable::{DurableStore, Writer},
    folder::{read_state, write_state},
};

/// The stack tells a device of an alarm that nobody acknowledged for this long after it was due.
const OVERDUE_MAX: Duration = Duration::from_secs(86_400);

/// The memory of a session.
#[derive(Debug, Clone, PartialEq)]
pub struct Memory {
    /// Alarms, timers, lights and the zone of the device.
    pub dialogue: DialogueState,
    /// Its settings and its conversation as JSON. Only the Realtime protocol writes and reads it.
    pub session: Option<Arc<str>>,
    /// The time at which the stack took the session over, later than the revision of the stack before it. Of two memories the later
    /// revision is in force.
    pub revision: Moment,
    /// The edge that relayed the session vanished without a Close, or this process was down: the session may have gone on in
    /// another stack.
    pub may_go_on_elsewhere: bool,
}

/// The revision of a session that a stack takes over at `now`, after one with the revision `before`.
pub(crate) fn revision_after(before: Moment, now: Moment) -> Moment {
    now.max(Moment(before.0.saturating_add(1)))
}

impl Memory {
    /// Whether the session holds an alarm or a timer, for which it must outlive this process.
    pub(crate) fn owes_something(&self) -> bool {
        self.dialogue.pending() > 0
    }

    /// The end of its life, if the session ends now.
    fn kept_until(&self, now: Moment, ttl: Duration) -> Moment {
        let timers = self.dialogue.timers.iter().map(|timer| timer.ends_at);
        let alarms = self.dialogue.alarms.iter().map(|alarm| alarm.rings_at);
        let last_due = timers.chain(alarms).max();
        let overdue = last_due.map_or(Moment(0), |due| due + OVERDUE_MAX);
        overdue.max(now + ttl)
    }
}

/// A store of sessions.
#[async_trait]
pub trait SessionStore: Send + Sync {
    /// The memory of a session, unless it is unknown or too old.
    async fn load(&self, session: &str, now: Moment) -> anyhow::Result<Option<Memory>>;
    /// Keeps the memory of a session, unless the store has one of a later revision.
    async fn save(&self, session: &str, memory: Memory, now: Moment) -> anyhow::Result<()>;
    /// Notes that the session is still connected, so that its memory does not age.
    async fn touch(&self, session: &str, now: Moment) -> anyhow::Result<()>;
    /// Drops the memory of a session that goes on elsewhere, or under another name, up to `revision`. A later memory stays: the session
    /// has come back since.
    async fn forget(&self, session: &str, revision: Moment) -> anyhow::Result<()>;
    /// Whether memories outlive this process.
    fn durability(&self) -> Durability {
        Durability::None
    }
}

/// Whether memories outlive the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// None does.
    None,
    /// Those with an alarm or a timer do.
    OnDisk,
    /// They should, but the disk does not take them.
    Failing {
        /// Sessions whose file is out of date.
        unwritten: usize,
    },
}

/// Sessions in this process's memory, bounded in number and age.
#[derive(Debug)]
pub struct MemoryStore {
    kept: Mutex<HashMap<String, StoredSession>>,
    kept_max: usize,
    ttl: Duration,
}

#[derive(Debug)]
struct StoredSession {
    memory: Memory,
    until: Moment,
}

impl MemoryStore {
    /// A store of at most `kept_max` sessions, each for `ttl` after its end, or longer while it holds alarms and timers.
    pub fn new(kept_max: usize, ttl: Duration) -> Self {
        Self {
            kept: Mutex::default(),
            kept_max,
            ttl,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, StoredSession>> {
        self.kept.lock()
    }

    /// The memory of a session, unless it is unknown or too old.
    fn get(&self, session: &str, now: Moment) -> Option<Memory> {
        let kept = self.lock();
        let found = kept.get(session).filter(|kept| now < kept.until);
        found.map(|kept| kept.memory.clone())
    }

    /// Keeps a memory saved at `saved_at`. Returns the names of the sessions that it dropped for room.
    fn keep(&self, session: &str, memory: Memory, saved_at: Moment, now: Moment) -> Vec<String> {
        let mut kept = self.lock();
        let is_stale = |known: &StoredSession| known.memory.revision > memory.revision && now < known.until;
        if kept.get(session).is_some_and(is_stale) {
            return Vec::new();
        }
        let mut dropped = Vec::new();
        if kept.len() >= self.kept_max && !kept.contains_key(session) {
            dropped = drop_expired(&mut kept, now);
            // Down to nine tenths at once, so that a full store does not search for its oldest on every save. The memories that age
            // first go first: never a session with an alarm before one without.
            if kept.len() >= self.kept_max {
                let ends = kept.iter().map(|(session, kept)| (kept.until, session.clone()));
                let mut ends: Vec<(Moment, String)> = ends.collect();
                ends.sort_unstable();
                for (_, first) in ends.into_iter().take(self.kept_max.div_ceil(10)) {
                    kept.remove(&first);
                    dropped.push(first);
                }
            }
        }
        let until = memory.kept_until(saved_at, self.ttl);
        kept.insert(session.to_owned(), StoredSession { memory, until });
        dropped
    }

    /// Drops memories that are too old, and returns their names.
    fn expire(&self, now: Moment) -> Vec<String> {
        drop_expired(&mut self.lock(), now)
    }
}

fn drop_expired(kept: &mut HashMap<String, StoredSession>, now: Moment) -> Vec<String> {
    let expired = kept.extract_if(|_, kept| now >= kept.until);
    expired.map(|(session, _)| session).collect()
}

#[async_trait]
impl SessionStore for MemoryStore {
    async fn load(&self, session: &str, now: Moment) -> anyhow::Result<Option<Memory>> {
        Ok(self.get(session, now))
    }

    async fn save(&self, session: &str, memory: Memory, now: Moment) -> anyhow::Result<()> {
        self.keep(session, memory, now, now);
        Ok(())
    }

    async fn touch(&self, session: &str, now: Moment) -> anyhow::Result<()> {
        if let Some(kept) = self.lock().get_mut(session) {
            kept.until = kept.memory.kept_until(now, self.ttl);
        }
        Ok(())
    }

    async fn forget(&self, session: &str, revision: Moment) -> anyhow::Result<()> {
        let mut kept = self.lock();
        if kept.get(session).is_some_and(|kept| kept.memory.revision <= revision) {
            kept.remove(session);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use dialogue::City;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn nothing() -> Memory {
        Memory {
            dialogue: DialogueState::new(City::Rome),
            session: None,
            revision: Moment(0),
            may_go_on_elsewhere: false,
        }
    }

    fn with_alarm(at: Moment) -> Memory {
        let mut memory = nothing();
        dialogue::act(
            &mut memory.dialogue,
            &dialogue::interpret("set a timer for ten minutes"),
            at,
        );
        memory
    }

    #[tokio::test]
    async fn sessions_are_forgotten_by_age_and_the_oldest_when_there_are_too_many() {
        let store = MemoryStore::new(2, MINUTE);
        store.save("a", nothing(), Moment(0)).await.unwrap();
        store.save("b", nothing(), Moment(1)).await.unwrap();
        assert_eq!(store.load("a", Moment(59_999)).await.unwrap(), Some(nothing()));
        assert_eq!(store.load("a", Moment(60_000)).await.unwrap(), None);
        store.save("c", nothing(), Moment(2)).await.unwrap();
        assert_eq!(store.load("a", Moment(2)).await.unwrap(), None);
        assert!(store.load("b", Moment(2)).await.unwrap().is_some());
    }

    /// "Wake me at seven", eight hours of silence on an open connection, and the Wi-Fi is gone for a moment.
    #[tokio::test]
    async fn a_session_ages_only_once_it_is_over() {
        let store = MemoryStore::new(2, MINUTE);
        store.save("a", nothing(), Moment(0)).await.unwrap();
        let mut now = Moment(0);
        for _ in 0..100 {
            now = now + MINUTE / 2;
            store.touch("a", now).await.unwrap();
        }
        let soon = now + (MINUTE - Duration::from_millis(1));
        assert!(store.load("a", soon).await.unwrap().is_some());
        assert_eq!(store.load("a", now + MINUTE).await.unwrap(), None);
    }

    #[tokio::test]
    async fn an_alarm_is_remembered_for_a_day_after_it_was_due() {
        let store = MemoryStore::new(2, MINUTE);
        store.save("a", with_alarm(Moment(0)), Moment(0)).await.unwrap();
        let due = Moment(600_000);
        assert!(store.load("a", due + OVERDUE_MAX / 2).await.unwrap().is_some());
        assert_eq!(store.load("a", due + OVERDUE_MAX).await.unwrap(), None);
    }

    #[tokio::test]
    async fn who_has_an_alarm_is_forgotten_last() {
        let store = MemoryStore::new(2, MINUTE);
        store.save("alarm", with_alarm(Moment(0)), Moment(0)).await.unwrap();
        for other in 1..50 {
            store.save(&other.to_string(), nothing(), Moment(other)).await.unwrap();
        }
        assert!(store.load("alarm", Moment(50)).await.unwrap().is_some());
    }

    /// A connection that hung for minutes ends, and saves what it knew before the device came back.
    #[tokio::test]
    async fn what_is_out_of_date_replaces_nothing() {
        let store = MemoryStore::new(2, MINUTE);
        let first = revision_after(Moment(0), Moment(5));
        // The clock of the stack that had it before may be ahead.
        let second = revision_after(first, Moment(3));
        assert_eq!((first, second), (Moment(5), Moment(6)));
        let at = |revision| Memory { revision, ..nothing() };
        for revision in [second, first] {
            store.save("a", at(revision), Moment(7)).await.unwrap();
            assert_eq!(store.load("a", Moment(7)).await.unwrap(), Some(at(second)));
        }
    }

    #[tokio::test]
    async fn a_session_that_goes_on_under_another_name_is_forgotten_under_the_first() {
        let store = MemoryStore::new(2, MINUTE);
        store.save("a", nothing(), Moment(0)).await.unwrap();
        store.forget("a", Moment(0)).await.unwrap();
        assert_eq!(store.load("a", Moment(0)).await.unwrap(), None);
    }

    /// The edge's message that the session moved comes late, from a connection that hung: the session was back by then.
    #[tokio::test]
    async fn a_late_word_that_a_session_moved_does_not_drop_what_is_newer() {
        let store = MemoryStore::new(2, MINUTE);
        let (first, second) = (Moment(5), Moment(6));
        let newer = Memory {
            revision: second,
            ..with_alarm(Moment(0))
        };
        store.save("a", newer.clone(), Moment(7)).await.unwrap();
        store.forget("a", first).await.unwrap();
        assert_eq!(store.load("a", Moment(7)).await.unwrap(), Some(newer));
        store.forget("a", second).await.unwrap();
        assert_eq!(store.load("a", Moment(7)).await.unwrap(), None);
    }
}
