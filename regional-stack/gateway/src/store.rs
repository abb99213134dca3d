//! Where sessions are remembered between turns and between connections. Region-local by design: session data never
//! leaves its region through here.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use dialogue::DialogueState;
use topology::Moment;

/// A place to keep sessions.
#[async_trait]
pub trait SessionStore: Send + Sync {
    /// The state of a session, unless it is unknown or too old.
    async fn load(&self, session: &str, now: Moment) -> anyhow::Result<Option<DialogueState>>;
    /// Keeps the state of a session.
    async fn save(&self, session: &str, state: &DialogueState, now: Moment) -> anyhow::Result<()>;
}

/// Sessions in this process's memory, bounded in number and age.
#[derive(Debug)]
pub struct MemoryStore {
    kept: Mutex<HashMap<String, Kept>>,
    kept_max: usize,
    ttl: Duration,
}

#[derive(Debug)]
struct Kept {
    state: DialogueState,
    saved_at: Moment,
}

impl MemoryStore {
    /// Keeps at most `kept_max` sessions, each for `ttl` after it was last saved.
    pub fn new(kept_max: usize, ttl: Duration) -> Self {
        Self {
            kept: Mutex::default(),
            kept_max,
            ttl,
        }
    }
}

#[async_trait]
impl SessionStore for MemoryStore {
    async fn load(&self, session: &str, now: Moment) -> anyhow::Result<Option<DialogueState>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept.get(session).filter(|kept| now.since(kept.saved_at) < self.ttl);
        Ok(found.map(|kept| kept.state.clone()))
    }

    async fn save(&self, session: &str, state: &DialogueState, now: Moment) -> anyhow::Result<()> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= self.kept_max && !kept.contains_key(session) {
            kept.retain(|_, kept| now.since(kept.saved_at) < self.ttl);
            // Down to nine tenths at once, so that a full store does not search for its oldest on every save.
            if kept.len() >= self.kept_max {
                let mut ages: Vec<(Moment, String)> = kept
                    .iter()
                    .map(|(session, kept)| (kept.saved_at, session.clone()))
                    .collect();
                ages.sort_unstable();
                for (_, oldest) in ages.into_iter().take(self.kept_max.div_ceil(10)) {
                    kept.remove(&oldest);
                }
            }
        }
        kept.insert(
            session.to_owned(),
            Kept {
                state: state.clone(),
                saved_at: now,
            },
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use dialogue::City;

    use super::*;

    #[tokio::test]
    async fn sessions_are_forgotten_by_age_and_the_oldest_when_there_are_too_many() {
        let store = MemoryStore::new(2, Duration::from_secs(60));
        let state = DialogueState::new(City::Rome);
        store.save("a", &state, Moment(0)).await.unwrap();
        store.save("b", &state, Moment(1)).await.unwrap();
        assert_eq!(store.load("a", Moment(59_999)).await.unwrap(), Some(state.clone()));
        assert_eq!(store.load("a", Moment(60_000)).await.unwrap(), None);
        store.save("c", &state, Moment(2)).await.unwrap();
        assert_eq!(store.load("a", Moment(2)).await.unwrap(), None);
        assert!(store.load("b", Moment(2)).await.unwrap().is_some());
    }
}
