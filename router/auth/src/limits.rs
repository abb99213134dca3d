//! The use that each tenant makes of this edge: its live sessions, its rate by the generic cell rate algorithm (ITU-T I.371 annex A.2),
//! and the bytes that its devices sent today.
//!
//! A count is one atomic number, so that sessions on all cores add to it without a lock.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use topology::Moment;

use crate::{Devices, Tenant};

const DAY_MS: u64 = 86_400_000;
const MINUTE_US: u64 = 60_000_000;

/// All tenants of the document.
#[derive(Debug, Default)]
pub struct Tenants(HashMap<Arc<str>, Arc<TenantUsage>>);

/// The use of one tenant, and its limits. 0: no limit.
#[derive(Debug, Default)]
pub struct TenantUsage {
    sessions: AtomicU32,
    sessions_max: AtomicU32,
    /// Theoretical arrival time of the next request, in microseconds since the epoch.
    next_us: AtomicU64,
    requests_per_minute: AtomicU32,
    /// The day of `bytes`, counted from the epoch.
    day: AtomicU64,
    bytes: AtomicU64,
    bytes_per_day: AtomicU64,
}

/// A live session of a tenant. Its count ends when this is dropped.
#[derive(Debug)]
pub struct SessionPlace(Arc<TenantUsage>);

/// The limit that a tenant has reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exceeded {
    /// Live sessions.
    Sessions {
        /// The limit.
        max: u32,
    },
    /// Requests per minute.
    Rate {
        /// The limit.
        per_minute: u32,
        /// The edge accepts the next request after this time.
        wait: Duration,
        /// The edge accepts all of them at once after this time.
        reset: Duration,
    },
    /// Bytes of this day.
    Bytes {
        /// The limit.
        per_day: u64,
        /// The next day (UTC) begins after this time.
        wait: Duration,
    },
}

impl Tenants {
    /// Takes over the tenants and limits of a document. Counts of tenants that stay are kept.
    pub fn follow(&mut self, devices: &Devices) {
        let mut usages = HashMap::new();
        for tenant in devices.tenants() {
            let usage = self.0.remove(&tenant.name).unwrap_or_default();
            usage.limit(tenant);
            usages.insert(tenant.name.clone(), usage);
        }
        self.0 = usages;
    }

    /// The use of a tenant.
    pub fn get(&self, tenant: &str) -> Option<&Arc<TenantUsage>> {
        self.0.get(tenant)
    }

    /// The use of each tenant, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<TenantUsage>)> {
        self.0.iter()
    }
}

impl TenantUsage {
    fn limit(&self, tenant: &Tenant) {
        self.sessions_max.store(tenant.sessions_max, Relaxed);
        self.requests_per_minute.store(tenant.requests_per_minute, Relaxed);
        self.bytes_per_day.store(tenant.bytes_per_day, Relaxed);
    }

    /// A request or a new session begins.
    ///
    /// # Errors
    ///
    /// The tenant's rate or its bytes of this day are used up.
    pub fn begin(&self, now: Moment) -> Result<(), Exceeded> {
        self.has_bytes(now)?;
        let per_minute = self.requests_per_minute.load(Relaxed);
        if per_minute == 0 {
            return Ok(());
        }
        let cell_us = MINUTE_US / u64::from(per_minute);
        let now_us = now.0.saturating_mul(1000);
        let one_more = |next_us: u64| {
            // A clock that was set back must not make a tenant wait for it.
            let known_us = if next_us > now_us + MINUTE_US { now_us } else { next_us };
            let next_us = known_us.max(now_us) + cell_us;
            (next_us <= now_us + MINUTE_US).then_some(next_us)
        };
        let next_us = match self.next_us.fetch_update(Relaxed, Relaxed, one_more) {
            Ok(_) => return Ok(()),
            Err(next_us) => next_us,
        };
        Err(Exceeded::Rate {
            per_minute,
            wait: Duration::from_micros((next_us + cell_us).saturating_sub(now_us + MINUTE_US)),
            reset: Duration::from_micros(next_us.saturating_sub(now_us)),
        })
    }

    /// A session begins, and lasts until its place is dropped.
    ///
    /// # Errors
    ///
    /// The tenant has as many as it may.
    pub fn session(self: &Arc<Self>) -> Result<SessionPlace, Exceeded> {
        let max = self.sessions_max.load(Relaxed);
        let one_more = |sessions| (max == 0 || sessions < max).then_some(sessions + 1);
        match self.sessions.fetch_update(Relaxed, Relaxed, one_more) {
            Ok(_) => Ok(SessionPlace(self.clone())),
            Err(_) => Err(Exceeded::Sessions { max }),
        }
    }

    /// Live sessions.
    pub fn sessions(&self) -> u32 {
        self.sessions.load(Relaxed)
    }

    /// A device of the tenant sent so many bytes. At midnight a few bytes may count for the wrong day.
    pub fn sent(&self, bytes: u64, now: Moment) {
        let today = now.0 / DAY_MS;
        if self.day.swap(today, Relaxed) != today {
            self.bytes.store(0, Relaxed);
        }
        self.bytes.fetch_add(bytes, Relaxed);
    }

    /// Whether the tenant's devices may send more today.
    ///
    /// # Errors
    ///
    /// They sent what they may.
    pub fn has_bytes(&self, now: Moment) -> Result<(), Exceeded> {
        let per_day = self.bytes_per_day.load(Relaxed);
        let is_today = self.day.load(Relaxed) == now.0 / DAY_MS;
        if per_day == 0 || !is_today || self.bytes.load(Relaxed) < per_day {
            return Ok(());
        }
        let wait = Duration::from_millis(DAY_MS - now.0 % DAY_MS);
        Err(Exceeded::Bytes { per_day, wait })
    }
}

impl SessionPlace {
    /// The use of its tenant.
    pub fn usage(&self) -> &Arc<TenantUsage> {
        &self.0
    }
}

impl Drop for SessionPlace {
    fn drop(&mut self) {
        self.0.sessions.fetch_sub(1, Relaxed);
    }
}

impl Exceeded {
    /// The reason's name in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sessions { .. } => "tenant-sessions",
            Self::Rate { .. } => "tenant-rate",
            Self::Bytes { .. } => "tenant-bytes",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Moment = Moment(1_796_000_000_000);

    fn tenants(lines: &str) -> (Tenants, Arc<TenantUsage>) {
        let mut tenants = Tenants::default();
        tenants.follow(&devices(lines));
        let acme = tenants.get("acme").unwrap().clone();
        (tenants, acme)
    }

    fn devices(lines: &str) -> Devices {
        Devices::parse("devices.toml", &format!("[[tenant]]\nname = \"acme\"\n{lines}\n")).unwrap()
    }

    #[test]
    fn a_tenant_has_so_many_sessions_and_a_new_document_changes_that_at_once() {
        let (mut tenants, acme) = tenants("sessions_max = 2");
        let first = acme.session().unwrap();
        let _second = acme.session().unwrap();
        assert_eq!(acme.session().unwrap_err(), Exceeded::Sessions { max: 2 });
        drop(first);
        let _third = acme.session().unwrap();
        tenants.follow(&devices("sessions_max = 3"));
        let _fourth = acme.session().unwrap();
        assert_eq!(
            (acme.sessions(), acme.session().unwrap_err().as_str()),
            (3, "tenant-sessions")
        );
        tenants.follow(&devices(""));
        assert!(acme.session().is_ok(), "no limit");
    }

    #[test]
    fn a_minute_of_requests_may_come_at_once_and_then_they_keep_to_the_rate() {
        let (_, acme) = tenants("requests_per_minute = 60");
        assert!((0..60).all(|_| acme.begin(NOW).is_ok()));
        let Err(Exceeded::Rate {
            per_minute,
            wait,
            reset,
        }) = acme.begin(NOW)
        else {
            panic!("the rate is used up");
        };
        assert_eq!(
            (per_minute, wait, reset),
            (60, Duration::from_secs(1), Duration::from_secs(60))
        );
        assert!(acme.begin(NOW + Duration::from_millis(999)).is_err());
        assert!(acme.begin(NOW + wait).is_ok());
        assert!((0..59).all(|_| acme.begin(NOW + Duration::from_secs(60)).is_ok()));
        assert!(acme.begin(NOW + Duration::from_secs(60)).is_err());
        // The clock is set back by an hour, and the tenant does not wait for it.
        assert!(acme.begin(Moment(NOW.0 - 3_600_000)).is_ok());
    }

    #[test]
    fn a_day_has_so_many_bytes_and_the_next_one_begins_at_midnight() {
        let (_, acme) = tenants("bytes_per_day = 1000");
        acme.sent(999, NOW);
        assert!(acme.begin(NOW).is_ok());
        acme.sent(1, NOW);
        let Err(Exceeded::Bytes { per_day: 1000, wait }) = acme.begin(NOW) else {
            panic!("the bytes are used up");
        };
        assert!(acme.has_bytes(NOW + (wait - Duration::from_millis(1))).is_err());
        assert!(acme.begin(NOW + wait).is_ok());
        acme.sent(5, NOW + wait);
        assert!(acme.has_bytes(NOW + wait).is_ok());
    }

    proptest! {
        /// However requests come, in no minute are there more than twice as many as a minute may have: a full bucket and its rate.
        #[test]
        fn no_minute_has_more_than_a_burst_and_its_rate(gaps in prop::collection::vec(0_u64..3000, 1..400), per_minute in 1_u32..100) {
            let (_, acme) = tenants(&format!("requests_per_minute = {per_minute}"));
            let mut now = NOW;
            let mut accepted = Vec::new();
            for gap in gaps {
                now = now + Duration::from_millis(gap);
                if acme.begin(now).is_ok() {
                    accepted.push(now.0);
                }
            }
            for (at, first) in accepted.iter().enumerate() {
                let within = accepted[at..].iter().take_while(|time| **time < first + 60_000).count();
                prop_assert!(within <= 2 * per_minute as usize);
            }
        }
    }
}
