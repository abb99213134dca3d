//! Records of access for the audit log: who was denied what, and what tokens were made and used for.
//!
//! Nobody fills the log with denials: one principal's are told once a minute and kind of call, with their number, and all together at
//! a bounded rate. The same rate holds for lines in the process's log. What is told leaves this process through the store
//! (`records::access`), because only the leader writes the audit log.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use identity::Caller;
use parking_lot::Mutex;
use planning::audit::{Access, AccessKind, Principal};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    metrics::Metrics,
    pace::{Rate, TokenBucket},
    records,
    store::{Store, StoreError, Transaction},
};

/// The denials of one principal and kind of call are told at once, and then together at this interval.
const TOGETHER: Duration = Duration::from_secs(60);
/// Entries of denials by all principals of one control plane: attacks are told in the first minute and do not push decisions out of
/// the audit log, which keeps twenty thousand entries.
const TOLD: Rate = Rate {
    at_once: 20,
    every: Duration::from_secs(60),
};
/// Principals and kinds of call that are counted apart. Those above are counted together.
const APART_MAX: usize = 256;
/// Records that wait in this process for the store, and in the store for a leader. Further ones are only counted.
const WAITING_MAX: usize = 64;
const WAITING_IN_STORE_MAX: usize = 256;
/// The interval at which counted denials are looked at, and a store that was away is tried again.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The credential behind a call, for the audit log.
pub(crate) fn principal(caller: Option<&Caller>) -> Option<Principal> {
    let caller = caller?;
    let peer = caller.peer.as_ref()?;
    Some(Principal {
        id: peer.id.to_string(),
        serial: peer.serial.clone(),
        roles: peer.roles(),
        source: caller.source.to_string(),
    })
}

/// Denials that are counted until they are told.
#[derive(Debug, Default)]
struct Denials {
    by: BTreeMap<(AccessKind, &'static str, String), Counted>,
    told: Option<TokenBucket>,
}

#[derive(Debug)]
struct Counted {
    /// The newest denial, with the number of those that were not told.
    newest: Access,
    told_at: Option<Instant>,
}

impl Counted {
    fn is_quiet(&self, now: Instant) -> bool {
        let told = self.told_at.is_some_and(|at| now.duration_since(at) < TOGETHER);
        self.newest.times == 0 && !told
    }
}

impl Denials {
    fn count(&mut self, call: &'static str, denied: Access, now: Instant) {
        let id = match (denied.kind, denied.principal.as_ref()) {
            (_, None) => String::new(),
            // Every certificate is told: a thief's login must not hide behind its owner's next one.
            (AccessKind::LoggedIn, Some(it)) => format!("{} {}", it.id, it.serial),
            (_, Some(it)) => it.id.clone(),
        };
        let mut key = (denied.kind, call, id);
        if self.by.len() >= APART_MAX && !self.by.contains_key(&key) {
            self.by.retain(|_, counted| !counted.is_quiet(now));
            if self.by.len() >= APART_MAX {
                key = (denied.kind, "any", "others".to_owned());
            }
        }
        match self.by.get_mut(&key) {
            None => {
                let first = Counted {
                    newest: denied,
                    told_at: None,
                };
                self.by.insert(key, first);
            }
            Some(Counted { newest, .. }) => {
                let (times, first) = match newest.times {
                    0 => (1, denied.first),
                    untold => (untold + 1, newest.first),
                };
                *newest = Access { times, first, ..denied };
            }
        }
    }

    /// The denials to be told now.
    fn due(&mut self, now: Instant) -> Vec<Access> {
        let mut due = Vec::new();
        for ((kind, ..), counted) in &mut self.by {
            let waits = counted.told_at.is_some_and(|at| now.duration_since(at) < TOGETHER);
            if counted.newest.times == 0 || waits {
                continue;
            }
            // Emergencies and logins are told however many are denied meanwhile.
            if !matches!(*kind, AccessKind::BreakGlass | AccessKind::LoggedIn) {
                let told = self.told.get_or_insert(TokenBucket::new(now));
                if told.wait(TOLD, now).is_some() {
                    continue;
                }
                told.take(TOLD, now);
            }
            due.push(counted.newest.clone());
            (counted.newest.times, counted.told_at) = (0, Some(now));
        }
        self.by.retain(|_, counted| !counted.is_quiet(now));
        due
    }
}

/// The records of access of this control plane.
#[derive(Debug)]
pub struct Accesses {
    node: String,
    metrics: Metrics,
    denials: Mutex<Denials>,
    news: Notify,
}

impl Accesses {
    /// The records of the control plane with this name.
    pub fn new(node: &str, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self {
            node: node.to_owned(),
            metrics,
            denials: Mutex::default(),
            news: Notify::new(),
        })
    }

    /// A record of one call now.
    pub(crate) fn once(&self, kind: AccessKind, caller: Option<&Caller>, text: &str) -> Access {
        Access::once(kind, &self.node, principal(caller), text, daemon::clock::now())
    }

    /// Counts a record that is told at once, and then once a minute for each principal; `call` is one of few kinds.
    pub(crate) fn tell(&self, call: &'static str, access: Access) {
        self.denials.lock().count(call, access, Instant::now());
        self.news.notify_one();
    }

    /// Counts a denied call.
    pub(crate) fn denied(&self, caller: Option<&Caller>, call: &'static str, text: &str) {
        self.tell(call, self.once(AccessKind::Denied, caller, text));
    }

    /// Counts a process that was refused although it asked politely: strangers are told together.
    pub(crate) fn refused_to_join(&self, text: &str) {
        self.tell("join", self.once(AccessKind::JoinRefused, None, text));
    }

    /// The key under which a record waits in the store.
    pub(crate) fn key(&self, access: &Access) -> String {
        records::access_key(access.last, &self.node, rand::random())
    }

    /// Logs the entries that are due and puts them into the store, until `stop`.
    pub(crate) async fn keep(&self, store: Arc<dyn Store>, stop: CancellationToken) {
        let mut waiting = VecDeque::new();
        loop {
            let due = self.denials.lock().due(Instant::now());
            for access in due {
                log(&access);
                if waiting.len() < WAITING_MAX {
                    waiting.push_back((self.key(&access), access));
                } else {
                    self.metrics.refusals_unrecorded.inc();
                }
            }
            if !waiting.is_empty()
                && let Err(error) = put(store.as_ref(), &mut waiting).await
            {
                tracing::debug!(%error, "denied calls cannot be recorded in the audit log yet; they wait");
            }
            let next = async {
                tokio::select! {
                    () = self.news.notified() => {}
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                }
            };
            if stop.run_until_cancelled(next).await.is_none() {
                return;
            }
        }
    }
}

/// Puts records into the store while there is room for them.
async fn put(store: &dyn Store, waiting: &mut VecDeque<(String, Access)>) -> Result<(), StoreError> {
    let there = store.list(records::ACCESS).await?.entries.len();
    for _ in there..WAITING_IN_STORE_MAX {
        let Some((key, access)) = waiting.front() else { break };
        let transaction = Transaction {
            expect: vec![(key.clone(), None)],
            put: vec![(key.clone(), records::encode(access))],
            delete: Vec::new(),
        };
        match store.commit(transaction).await {
            // Under this key nobody else writes: an earlier attempt arrived after all.
            Ok(_) | Err(StoreError::Conflict { .. }) => drop(waiting.pop_front()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// One line for one entry.
pub(crate) fn log(access: &Access) {
    let by = access.principal.as_ref();
    let (id, serial) = (by.map(|it| it.id.as_str()), by.map(|it| it.serial.as_str()));
    let source = by.map(|it| it.source.as_str());
    let (kind, times) = (access.kind.as_str(), access.times);
    match access.kind {
        AccessKind::BreakGlass => tracing::error!(kind, id, serial, source, times, "{}", access.text),
        AccessKind::Denied | AccessKind::JoinRefused | AccessKind::LoginRefused => {
            tracing::warn!(kind, id, serial, source, times, "{}", access.text);
        }
        AccessKind::TokenMade | AccessKind::Joined | AccessKind::LoggedIn => {
            tracing::info!(kind, id, serial, source, times, "{}", access.text);
        }
    }
}

#[cfg(test)]
mod tests {
    use topology::Moment;

    use super::*;

    fn denied(name: &str, text: &str) -> Access {
        let by = Principal {
            id: format!("spiffe://z/edge/{name}"),
            serial: "01".to_owned(),
            roles: "edge".to_owned(),
            source: "127.0.0.1:1".to_owned(),
        };
        Access::once(AccessKind::Denied, "cp-1", Some(by), text, Moment(1_000))
    }

    #[test]
    fn the_first_denial_is_told_at_once_and_the_others_together_after_a_minute() {
        let (mut denials, now) = (Denials::default(), Instant::now());
        denials.count("report", denied("a", "first"), now);
        let told = denials.due(now);
        assert_eq!((told.len(), told[0].times, &*told[0].text), (1, 1, "first"));
        for number in 0..5_000 {
            denials.count("report", denied("a", &format!("{number}")), now);
        }
        assert!(denials.due(now + TOGETHER / 2).is_empty(), "not yet");
        let told = denials.due(now + TOGETHER);
        assert_eq!((told.len(), told[0].times, &*told[0].text), (1, 5_000, "4999"));
        assert!(denials.due(now + TOGETHER * 3).is_empty());
        assert!(denials.by.is_empty(), "and forgotten when it is over");
    }

    #[test]
    fn principals_and_kinds_of_call_are_told_apart() {
        let (mut denials, now) = (Denials::default(), Instant::now());
        for (call, name) in [("report", "a"), ("report", "b"), ("follow", "a"), ("report", "a")] {
            denials.count(call, denied(name, call), now);
        }
        let mut times: Vec<u64> = denials.due(now).iter().map(|it| it.times).collect();
        times.sort_unstable();
        assert_eq!(times, [1, 1, 2]);
    }

    #[test]
    fn an_emergency_is_told_among_a_thousand_denials() {
        let (mut denials, now) = (Denials::default(), Instant::now());
        for number in 0..1_000 {
            denials.count("report", denied(&format!("edge-{number}"), "lies"), now);
        }
        denials.due(now);
        let kind = AccessKind::BreakGlass;
        denials.count(
            "order",
            Access {
                kind,
                ..denied("safe", "failover")
            },
            now,
        );
        let told = denials.due(now);
        assert_eq!((told.len(), told[0].kind), (1, kind));
    }

    #[test]
    fn many_principals_fill_neither_the_log_nor_the_memory() {
        let (mut denials, now) = (Denials::default(), Instant::now());
        for number in 0..10_000 {
            denials.count("report", denied(&format!("edge-{number}"), "lies"), now);
        }
        assert!(denials.by.len() <= APART_MAX + 1);
        let told = denials.due(now);
        assert_eq!(told.len() as u32, TOLD.at_once);
        // All of them are told in the end, at the pace of the log.
        let mut times: u64 = told.iter().map(|it| it.times).sum();
        for minute in 1..400 {
            let due = denials.due(now + TOGETHER * minute);
            assert!(due.len() <= 1, "{}", due.len());
            times += due.iter().map(|it| it.times).sum::<u64>();
        }
        assert_eq!(times, 10_000);
    }
}
