//! The search for the next stack of a session that leaves its own.

use std::{pin::pin, sync::Arc, time::Duration};

use bytes::BytesMut;
use identity::Link;
use routing::{Affinity, Decision, Tried, User, continuity::LeaveReason, pick};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, timeout_at},
};
use topology::Moment;

use crate::{
    Edge,
    edge::AtStack,
    fault::Fault,
    session::ask::{Asked, ask, not_taken},
    session::caller::Caller,
    stacks::fleet_view::Picked,
};

/// When no region takes a session that lost its own, the edge asks them again after a pause: one may just be starting. Each
/// session draws a pause of its own, up to this long at first ("full jitter"), so that sessions that lost a region together do
/// not ask together.
const ROUND_PAUSE: Duration = Duration::from_millis(100);
/// It doubles with every round, up to this: a region that comes back is found within a second or two.
const ROUND_PAUSE_MAX: Duration = Duration::from_secs(2);
/// A session in the queue of a stack checks this often whether the stack is still the right one. Short against the wait for an
/// answer (`timeouts.upgrade`), or the sessions behind a frozen stack run out of time in its queue.
const GATE_LOOK_EVERY: Duration = Duration::from_millis(200);

/// The stack that a session needs which leaves its own.
pub(super) struct Wanted<'a> {
    pub(super) caller: &'a Caller,
    /// The version of the stack that it leaves.
    pub(super) version: &'a str,
    /// The region that it leaves, if another stack of that region may take it.
    pub(super) stays: Option<Affinity>,
    /// Whether only a region that the plan gives its home may take it.
    pub(super) planned_only: bool,
    pub(super) why: LeaveReason,
}

/// A stack that goes on with a session.
pub(super) struct Found {
    pub(super) decision: Box<Decision>,
    pub(super) at_stack: AtStack,
    pub(super) stream: Link,
    pub(super) early: BytesMut,
    /// Issue time of the session's id at that stack.
    pub(super) issued_at: Moment,
}

/// Asks stacks until one goes on with the session, or until the deadline. A session that still has a stack does not wait.
pub(super) async fn find_next(
    edge: &Arc<Edge>,
    wanted: &Wanted<'_>,
    request: &[u8],
    tried: &mut Tried,
) -> Option<Found> {
    let Wanted {
        caller,
        version,
        stays,
        planned_only,
        why,
    } = wanted;
    let user = User {
        name: &caller.user,
        version: Some(version),
    };
    let give_up_at = Instant::now() + edge.config.continuity.deadline.0;
    let (mut pause_max, mut failed) = (ROUND_PAUSE, Vec::new());
    loop {
        let table = edge.table()?;
        let picked = edge.fleet.pick_and_look(
            &table,
            &caller.session_key,
            user,
            stays.as_ref(),
            tried,
            daemon::clock::now(),
        );
        // A round is over when the edge has asked every stack, or has no room to ask any.
        let (picked, lacks_room) = match picked {
            Some(picked) if !edge.admission.is_exhausted() => (Some(Box::new(picked)), false),
            picked => (None, picked.is_some()),
        };
        let Some(picked) = picked else {
            let pause = rand::random_range(Duration::ZERO..=pause_max);
            let session = caller.logged_key();
            let asked = std::mem::take(&mut failed).join("; ");
            let gives_up = why.is_optional() || Instant::now() + pause > give_up_at;
            let request_id = caller.id.as_str();
            tracing::info!(
                %request_id,
                session,
                asked,
                lacks_room,
                gives_up,
                "no region goes on with a session"
            );
            if gives_up {
                return None;
            }
            tokio::time::sleep(pause).await;
            pause_max = (2 * pause_max).min(ROUND_PAUSE_MAX);
            // The edge asked no stack while it lacked room, so the tried stacks stay tried: the lost one, for example.
            if !lacks_room {
                tried.clear();
            }
            continue;
        };
        if *planned_only && !matches!(picked.decision.why, pick::Rule::Share(_) | pick::Rule::Overflow) {
            return None;
        }
        let gate = edge.fleet.gate(picked.decision.stack);
        let Some(_permit) = wait_for_slot(edge, &picked, &gate, give_up_at).await else {
            if Instant::now() >= give_up_at {
                return None;
            }
            continue;
        };
        let decision = Box::new(picked.decision);
        let at_stack = edge.begins(&decision);
        let issued_at = daemon::clock::now().max(caller.issued_at + Duration::from_millis(1));
        let id = caller.session_id(edge, &decision, issued_at);
        // Before the empty line that ends the head.
        let lines = request.strip_suffix(b"\r\n").unwrap_or(request);
        let request = [lines, format!("{}: {id}\r\n\r\n", wire::SESSION_HEADER).as_bytes()].concat();
        match ask(edge, &decision, &request, &caller.id).await {
            Ok(Asked::Accepted(accepted)) if accepted.carries_on => {
                return Some(Found {
                    decision,
                    at_stack,
                    stream: accepted.stream,
                    early: accepted.early,
                    issued_at,
                });
            }
            Ok(_) => failed.push(format!("{} does not go on with sessions of others", decision.region)),
            Err(failure) => {
                let fault = not_taken(edge, &decision, &failure);
                failed.push(format!("{} {failure}", decision.region));
                if fault == Fault::Edge && why.is_optional() {
                    return None;
                }
                // This edge had no descriptor or port to ask the stack. The loop pauses until it may have one.
                if failure.is_local() {
                    continue;
                }
            }
        }
        tried.stack(&decision.region, decision.stack);
    }
}

/// Waits for a slot among the sessions that ask a stack at once. `None` when the time is up, or when the decision no longer
/// holds: there is a newer plan, or this edge ejected the stack or lost sight of its region since it picked the stack.
async fn wait_for_slot<'g>(
    edge: &Edge,
    Picked { decision, was_out }: &Picked,
    gate: &'g Semaphore,
    give_up_at: Instant,
) -> Option<SemaphorePermit<'g>> {
    let is_out = || {
        let now = daemon::clock::now();
        edge.fleet.is_out(&decision.region, decision.stack, now)
    };
    let mut slot = pin!(gate.acquire());
    loop {
        let look_at = (Instant::now() + GATE_LOOK_EVERY).min(give_up_at);
        let taken = timeout_at(look_at, slot.as_mut()).await;
        let is_planned = edge.table().is_some_and(|table| table.number() == decision.plan);
        if !is_planned || (!*was_out && is_out()) {
            return None;
        }
        match taken {
            Ok(permit) => return permit.ok(),
            Err(_) if Instant::now() >= give_up_at => return None,
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use daemon::config::Rules as _;
    use parking_lot::Mutex;
    use prometheus_client::registry::Registry;
    use topology::{fixtures::three_primaries, snapshot::digest};
    use tracing::{Event, Subscriber, field::Visit};
    use tracing_subscriber::{Layer, layer::Context, layer::SubscriberExt as _};

    use super::*;
    use crate::{Config, metrics::Metrics, request_id::RequestId};

    fn edge() -> Arc<Edge> {
        let config: Config = daemon::config::parse("test", Config::EXAMPLE).unwrap();
        let edge = Edge::new(config, Metrics::new(&mut Registry::default()));
        let mut snapshot = three_primaries();
        snapshot.plan.documents = digest(&snapshot.topology, snapshot.dns_ttl_s, &snapshot.probe);
        edge.apply(&snapshot);
        Arc::new(edge)
    }

    /// The times of the log lines about rounds in which no region took a session.
    #[derive(Clone, Default)]
    struct Rounds(Arc<Mutex<Vec<Instant>>>);

    impl<S: Subscriber> Layer<S> for Rounds {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            event.record(&mut self.clone());
        }
    }

    impl Visit for Rounds {
        fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
            if field.name() == "message" && format!("{value:?}") == "no region goes on with a session" {
                self.0.lock().push(Instant::now());
            }
        }
    }

    /// A region that comes back is found within two seconds, and not by all of its sessions at once.
    #[tokio::test(start_paused = true)]
    async fn a_session_asks_in_rounds_whose_pauses_are_random_and_bounded_with_one_log_line_each() {
        let rounds = Rounds::default();
        let _log = tracing::subscriber::set_default(tracing_subscriber::registry().with(rounds.clone()));
        let mut edge = edge();
        let give_up_after = Duration::from_secs(600);
        Arc::get_mut(&mut edge).unwrap().config.continuity.deadline = topology::document::Span(give_up_after);
        let caller = Caller {
            id: RequestId::random(),
            session_key: "anna".into(),
            user: "anna".into(),
            holder: "anna".into(),
            device: None,
            place: None,
            session: "sess_1".into(),
            issued_at: daemon::clock::now(),
            takes_events: false,
        };
        let wanted = Wanted {
            caller: &caller,
            version: "",
            stays: None,
            planned_only: false,
            why: LeaveReason::Lost,
        };
        // A round without room ends before the network.
        let has_no_room = async {
            loop {
                edge.admission.exhausted();
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let began = Instant::now();
        let mut tried = Tried::default();
        let found = tokio::select! {
            biased;
            () = has_no_room => unreachable!("it never ends"),
            found = find_next(&edge, &wanted, b"", &mut tried) => found,
        };
        assert!(found.is_none());
        let times = rounds.0.lock().clone();
        let pauses: Vec<Duration> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        // About a second each, from the sixth on: 600 in all.
        assert!((400..1_200).contains(&pauses.len()), "{} rounds", pauses.len());
        assert!(times[0] == began && times[times.len() - 1] + ROUND_PAUSE_MAX >= began + give_up_after);
        let mut longest = ROUND_PAUSE;
        for (round, pause) in pauses.iter().enumerate() {
            // A timer is on time to the millisecond.
            assert!(*pause <= longest + Duration::from_millis(1), "round {round}: {pause:?}");
            assert!(!pause.is_zero(), "round {round} has two lines");
            longest = (2 * longest).min(ROUND_PAUSE_MAX);
        }
        assert_eq!(longest, Duration::from_secs(2));
        let share = |low: f64, high: f64| {
            let within = |pause: &&Duration| (low..=high).contains(&(pause.as_secs_f64() / 2.0));
            pauses.iter().filter(within).count() as f64 / pauses.len() as f64
        };
        for quarter in [0.0, 0.25, 0.5, 0.75] {
            let share = share(quarter, quarter + 0.2501);
            assert!(
                (0.15..0.35).contains(&share),
                "{share} of the pauses from {quarter}: {pauses:?}"
            );
        }
    }

    /// Regression: a stack that the edge ejected between the choice and the wait counted as one that was out all along. The session
    /// waited for it until its deadline, while other stacks worked.
    #[tokio::test(start_paused = true)]
    async fn a_stack_that_went_out_since_it_was_picked_is_not_waited_for() {
        let edge = edge();
        let (table, tried, now) = (edge.table().unwrap(), Tried::default(), daemon::clock::now());
        let picked = edge
            .fleet
            .pick_and_look(&table, "anna", User::default(), None, &tried, now);
        let mut picked = picked.unwrap();
        assert!(!picked.was_out);
        let (region, stack) = (picked.decision.region.clone(), picked.decision.stack);
        let ejected = (0..100).any(|_| edge.fleet.refused(&region, stack, "no answer", now).is_some());
        assert!(ejected);

        // Other sessions have all slots and give none back.
        let gate = Semaphore::new(0);
        let began = Instant::now();
        let deadline = began + Duration::from_secs(5);
        assert!(wait_for_slot(&edge, &picked, &gate, deadline).await.is_none());
        assert!(Instant::now() <= began + 2 * GATE_LOOK_EVERY, "{:?}", began.elapsed());
        // The edge picks a stack that is out only when there is no other.
        picked.was_out = true;
        assert!(wait_for_slot(&edge, &picked, &gate, deadline).await.is_none());
        assert!(Instant::now() >= deadline, "{:?}", began.elapsed());
    }
}
