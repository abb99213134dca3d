//! Properties of budgets, pauses, hedging, breakers and groups of servers, over many histories.

use std::time::Duration;

use proptest::prelude::*;
use routing::{
    breaker::{Breaker, Demand, Limit, Limits},
    budget::{Budget, WINDOW_S},
    hedge::Hedging,
    retry::Backoff,
    upstream::Upstream,
};
use topology::Moment;

/// Random events, each with the milliseconds since the one before.
fn history<T: std::fmt::Debug>(thing: impl Strategy<Value = T>) -> impl Strategy<Value = Vec<(u64, T)>> {
    prop::collection::vec((prop_oneof![Just(0), 0..50_u64, 0..15_000_u64], thing), 0..200)
}

/// Otherwise requests that failed together would return together, and fail together again.
#[test]
fn requests_that_failed_together_come_back_apart() {
    let backoff = Backoff {
        base: Duration::from_millis(100),
        cap: Duration::from_secs(5),
    };
    // Consecutive seeds, as an edge draws them.
    let pauses: Vec<u128> = (0..1_000).map(|seed| backoff.pause(0, seed).as_millis()).collect();
    for from in (50..150).step_by(10) {
        let within = pauses.iter().filter(|ms| (from..from + 10).contains(*ms)).count();
        assert!(
            (50..=150).contains(&within),
            "{within} of 1,000 within {from} to {} ms",
            from + 10
        );
    }
}

proptest! {
    #[test]
    fn extra_requests_stay_within_their_share(percent in 0..=100_u32, reserve in 0..5_u32, history in history(any::<bool>())) {
        let mut budget = Budget::new(percent, reserve);
        let mut now = Moment(1_700_000_000_000);
        let (mut asked_total, mut extra_total) = (0_u64, 0_u64);
        for (later, is_extra) in history {
            now = now + Duration::from_millis(later);
            if is_extra {
                let granted = budget.try_spend(now);
                let (asked, extra) = budget.window(now);
                let allowed = (asked * u64::from(percent) / 100).max(u64::from(reserve));
                prop_assert!(!granted || extra <= allowed, "{extra} of {asked}");
                prop_assert!(granted || extra >= allowed, "refused {extra} of {asked}");
                extra_total += u64::from(granted);
            } else {
                budget.count_request(now);
                asked_total += 1;
            }
        }
        if reserve == 0 {
            prop_assert!(extra_total * 100 <= asked_total * u64::from(percent));
        }
    }

    #[test]
    fn pauses_double_to_their_cap_and_spread(retry in 0..200_u32, seed in any::<u64>()) {
        let backoff = Backoff { base: Duration::from_millis(100), cap: Duration::from_secs(5) };
        let middle = Duration::from_millis(100).mul_f64(2_f64.powi(retry.min(10) as i32)).min(Duration::from_secs(5));
        let pause = backoff.pause(retry, seed);
        prop_assert!(pause >= middle.mul_f64(0.5) && pause < middle.mul_f64(1.5), "{pause:?} around {middle:?}");
    }

    #[test]
    fn a_copy_waits_for_the_median_and_no_less_than_the_floor(took in prop::collection::vec(0..10_000_u64, 1..300)) {
        let floor = Duration::from_millis(100);
        let mut hedging = Hedging::new(floor, 10);
        for ms in &took {
            hedging.answered(Duration::from_millis(*ms));
        }
        let mut last: Vec<u64> = took.iter().rev().take(128).copied().collect();
        last.sort_unstable();
        let median = Duration::from_millis(last[last.len() / 2]);
        prop_assert_eq!(hedging.delay(), median.max(floor));
    }

    #[test]
    fn copies_are_a_tenth_at_most_and_one_in_ten_seconds(history in history(any::<bool>())) {
        let mut hedging = Hedging::new(Duration::from_millis(100), 10);
        let mut now = Moment(1_700_000_000_000);
        let began = now;
        let (mut begun, mut copied) = (0_u64, 0_u64);
        for (later, is_slow) in history {
            now = now + Duration::from_millis(later);
            hedging.begin(now);
            begun += 1;
            copied += u64::from(is_slow && hedging.try_copy(now));
            let windows = now.since(began).as_secs() / 10 + 2;
            prop_assert!(copied <= begun / 10 + windows, "{copied} of {begun} in {windows} windows");
        }
    }

    #[test]
    fn a_breaker_never_lets_more_in_than_its_limits_and_forgets_nothing(
        limits in (1..4_u32, 1..4_u32, 1..6_u32, 1..3_u32),
        steps in prop::collection::vec((0..3_u8, any::<bool>(), any::<bool>(), any::<prop::sample::Index>()), 0..200),
    ) {
        let limits = Limits {
            max_connections: limits.0, max_pending_requests: limits.1, max_requests: limits.2, max_retries: limits.3,
        };
        let mut breaker = Breaker::default();
        // The uses in progress, and whether each still waits for a connection.
        let mut live: Vec<(Demand, bool)> = Vec::new();
        for (step, has_connection, is_extra, which) in steps {
            let count = |of: &dyn Fn(&(Demand, bool)) -> bool| live.iter().filter(|one| of(one)).count() as u32;
            match step {
                0 => {
                    let wanted = Demand { has_connection, is_extra };
                    let expected = if live.len() as u32 >= limits.max_requests {
                        Err(Limit::Requests)
                    } else if count(&|one| one.1) >= limits.max_pending_requests {
                        Err(Limit::Pending)
                    } else if has_connection && count(&|one| one.0.has_connection) >= limits.max_connections {
                        Err(Limit::Connections)
                    } else if is_extra && count(&|one| one.0.is_extra) >= limits.max_retries {
                        Err(Limit::Retries)
                    } else {
                        Ok(())
                    };
                    prop_assert_eq!(breaker.begin(&limits, wanted), expected);
                    if expected.is_ok() {
                        live.push((wanted, true));
                    }
                }
                1 if !live.is_empty() => {
                    let one = which.get(&live);
                    let at = live.iter().position(|other| std::ptr::eq(one, other)).unwrap_or(0);
                    if std::mem::replace(&mut live[at].1, false) {
                        breaker.connected();
                    }
                }
                2 if !live.is_empty() => {
                    let (had, waiting) = live.swap_remove(which.index(live.len()));
                    breaker.end(had, waiting);
                }
                _ => {}
            }
        }
        for (had, waiting) in live {
            breaker.end(had, waiting);
        }
        prop_assert!(breaker.is_idle());
    }

    #[test]
    fn some_server_is_always_asked_and_one_that_is_down_only_when_all_are(
        servers in 1..5_usize,
        max_fails in 0..4_u32,
        history in history((any::<bool>(), any::<bool>(), any::<prop::sample::Index>())),
    ) {
        let fail_timeout = Duration::from_secs(WINDOW_S);
        let mut upstream = Upstream::new(servers, max_fails, fail_timeout);
        let mut now = Moment(1_700_000_000_000);
        let mut flying: Vec<usize> = Vec::new();
        for (later, (begins, fails, which)) in history {
            now = now + Duration::from_millis(later);
            if begins {
                let down: Vec<bool> = (0..servers).map(|server| upstream.is_down(server, now)).collect();
                let in_flight = |server| flying.iter().filter(|other| **other == server).count();
                let picked = upstream.pick(&[], now);
                let picked = picked.ok_or_else(|| TestCaseError::fail("nobody was asked"))?;
                prop_assert!(!down[picked] || down.iter().all(|down| *down));
                for server in (0..servers).filter(|server| down[*server] == down[picked]) {
                    prop_assert!(in_flight(picked) <= in_flight(server), "{picked} is busier than {server}");
                }
                flying.push(picked);
            } else if !flying.is_empty() {
                let server = flying.swap_remove(which.index(flying.len()));
                let marked = upstream.finish(server, fails, now);
                prop_assert!(!marked || fails && max_fails > 0);
                prop_assert!(!marked || upstream.is_down(server, now));
                prop_assert!(fails || !upstream.is_down(server, now));
            }
        }
    }
}

#[test]
fn three_failures_within_the_time_take_a_server_out_for_as_long() {
    let mut upstream = Upstream::new(2, 3, Duration::from_secs(30));
    let at = |s: u64| Moment(1_700_000_000_000 + s * 1000);
    let mut fail = |s: u64| {
        // The other server is excluded, so this one is picked as long as it is up.
        let tried = [1];
        let picked = upstream.pick(&tried, at(s));
        assert_eq!(picked, Some(0));
        upstream.finish(0, true, at(s))
    };
    assert!(!fail(0) && !fail(10), "two are not three");
    assert!(!fail(41), "the first two were too long ago");
    assert!(!fail(50) && fail(60));
    assert!(upstream.is_down(0, at(89)) && !upstream.is_down(0, at(90)));
    assert_eq!(upstream.pick(&[], at(61)), Some(1));
    assert_eq!(upstream.pick(&[], at(61)), Some(1), "though it is busy");
    assert_eq!(upstream.pick(&[1], at(61)), Some(0), "there is nobody else");
    assert!(!upstream.finish(0, false, at(62)));
    assert!(!upstream.is_down(0, at(62)), "it was asked, and works");
    assert_eq!(upstream.pick(&[0, 1], at(62)), None);
}
