//! Live sessions, the work that a stopping process waits for, and the order in which sessions leave.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use auth::Device;
use futures_util::{Stream, stream};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};
use topology::{Moment, RegionId};

use crate::metrics::Metrics;

/// Pace at which sessions leave when they are few: fifty reconnects a second harm no other edge.
const RECONNECT_PACE: Duration = Duration::from_millis(20);
/// While memory is short, one part in `SHED_ROUNDS` of the sessions leaves at a time.
const SHED_ROUNDS: u64 = 20;
/// Fractional part of the golden ratio: multiples of it spread evenly over 0..1, however many there are.
const GOLDEN: f64 = 0.618_033_988_749_895;

/// The live sessions of this edge.
#[derive(Debug)]
pub struct Sessions {
    live: Mutex<BTreeMap<u64, Live>>,
    next: AtomicU64,
    /// Sessions, upgrades under way and HTTP requests in flight: what a stopping edge waits for.
    busy: TaskTracker,
    orders: watch::Sender<Order>,
    shed_rounds: AtomicU64,
    /// Connections that the edge accepted and that have sent no request yet.
    arriving: TaskTracker,
    http2: TaskTracker,
    metrics: Metrics,
}

/// The order to all sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Stay,
    /// Some sessions must leave, others with every round.
    Shed {
        round: u64,
    },
    /// All sessions must leave within this time, and the edge takes no new one. No other order follows.
    Leave(Duration),
    /// The same, but the edge takes sessions of connections that it accepted before its successor took over.
    LeaveToSuccessor(Duration),
}

/// The reason for which a session is asked to leave its edge. It leaves when no turn is in progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    Draining,
    /// The edge has not enough memory.
    Overloaded,
    /// The credential of the device was revoked.
    Revoked,
    /// The devices of its tenant used their bytes of the day.
    QuotaUsed,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Live {
    pub region: RegionId,
    /// Its stack in that region.
    pub stack: SocketAddr,
    pub since: Moment,
    /// Its device, where this edge recognises devices.
    pub device: Option<Arc<Device>>,
    /// The credential of the device was revoked.
    pub is_revoked: bool,
}

/// Keeps the process busy while it exists.
pub type Busy = TaskTrackerToken;

/// Keeps a session in the registry while it exists.
#[derive(Debug)]
pub struct Registered {
    sessions: Arc<Sessions>,
    pub id: u64,
}

impl Sessions {
    pub fn new(metrics: Metrics) -> Self {
        Self {
            live: Mutex::default(),
            next: AtomicU64::new(1),
            busy: TaskTracker::new(),
            orders: watch::Sender::new(Order::Stay),
            shed_rounds: AtomicU64::new(0),
            arriving: TaskTracker::new(),
            http2: TaskTracker::new(),
            metrics,
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Live>> {
        self.live.lock()
    }

    /// A token that makes a stopping edge wait until it is dropped.
    pub fn busy(&self) -> Busy {
        self.busy.token()
    }

    pub fn register(
        self: &Arc<Self>,
        region: &RegionId,
        stack: SocketAddr,
        since: Moment,
        device: Option<Arc<Device>>,
    ) -> Registered {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let region = region.clone();
        self.metrics.session_began(&region);
        let live = Live {
            region,
            stack,
            since,
            device,
            is_revoked: false,
        };
        self.lock().insert(id, live);
        Registered {
            sessions: self.clone(),
            id,
        }
    }

    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// The number of live sessions at each stack.
    pub fn by_stack(&self) -> BTreeMap<RegionId, BTreeMap<SocketAddr, usize>> {
        let mut regions: BTreeMap<RegionId, BTreeMap<SocketAddr, usize>> = BTreeMap::new();
        for live in self.lock().values() {
            let stacks = regions.entry(live.region.clone()).or_default();
            *stacks.entry(live.stack).or_default() += 1;
        }
        regions
    }

    /// The number of live sessions in each region, and the start of the oldest.
    pub fn by_region(&self) -> BTreeMap<RegionId, (usize, Moment)> {
        let mut regions = BTreeMap::new();
        for live in self.lock().values() {
            let (count, oldest) = regions.entry(live.region.clone()).or_insert((0, live.since));
            *count += 1;
            *oldest = live.since.min(*oldest);
        }
        regions
    }

    /// Tells all sessions to leave within `window`, and refuses new ones.
    pub fn begin_drain(&self, window: Duration) {
        self.orders.send_replace(Order::Leave(self.paced(window)));
    }

    /// Tells all sessions to leave within `window`. Connections that were accepted before the successor took over may still
    /// begin one.
    pub fn begin_drain_to_successor(&self, window: Duration) {
        self.orders.send_replace(Order::LeaveToSuccessor(self.paced(window)));
    }

    fn paced(&self, window: Duration) -> Duration {
        let live = u32::try_from(self.count()).unwrap_or(u32::MAX);
        window.min(RECONNECT_PACE.saturating_mul(live))
    }

    /// Tells some of the sessions to leave, others with every call. It spares sessions that begin later.
    pub fn shed(&self) {
        let round = self.shed_rounds.fetch_add(1, Ordering::Relaxed);
        self.orders.send_if_modified(|order| {
            let may = matches!(order, Order::Stay | Order::Shed { .. });
            if may {
                *order = Order::Shed { round };
            }
            may
        });
    }

    /// Tells the sessions of revoked devices to end. Returns how many there are.
    pub fn revoke(&self, is_revoked: impl Fn(&Device) -> bool) -> usize {
        let mut revoked = 0;
        for live in self.lock().values_mut() {
            let is_meant = live.device.as_deref().is_some_and(&is_revoked);
            revoked += usize::from(is_meant && !live.is_revoked);
            // A corrected document spares sessions that have not ended yet.
            live.is_revoked = is_meant;
        }
        if revoked > 0 {
            // The same order again makes every session check whether it is revoked.
            self.orders.send_modify(|_| {});
        }
        revoked
    }

    fn is_revoked(&self, id: u64) -> bool {
        self.lock().get(&id).is_some_and(|live| live.is_revoked)
    }

    /// Whether sessions are told to leave.
    pub fn is_draining(&self) -> bool {
        matches!(*self.orders.borrow(), Order::Leave(_) | Order::LeaveToSuccessor(_))
    }

    /// Whether new sessions are refused.
    pub fn refuses(&self) -> bool {
        matches!(*self.orders.borrow(), Order::Leave(_))
    }

    /// Resolves when the edge begins to stop.
    pub async fn draining(&self) -> Duration {
        let mut orders = self.orders.subscribe();
        loop {
            if let Order::Leave(window) | Order::LeaveToSuccessor(window) = *orders.borrow_and_update() {
                return window;
            }
            // The sender lives in `self`, so the wait cannot fail.
            let _ = orders.changed().await;
        }
    }

    /// Resolves when new sessions are refused.
    pub async fn refusing(&self) {
        let mut orders = self.orders.subscribe();
        while !matches!(*orders.borrow_and_update(), Order::Leave(_)) {
            // The sender lives in `self`, so the wait cannot fail.
            let _ = orders.changed().await;
        }
    }

    /// The orders to session `id` to leave. After one to make room for others a second may follow: a turn that goes on for
    /// long must not keep a revoked device, nor an edge that stops. Nothing follows that one.
    pub fn orders_to_leave(&self, id: u64) -> impl Stream<Item = Leave> {
        stream::unfold(false, move |is_shed| async move {
            let leave = self.turn_to_leave(id, is_shed).await;
            Some((leave, leave == Leave::Overloaded))
        })
    }

    /// Resolves when it is session `id`'s turn to leave. Each session has its own time in the window, so that the devices do not all
    /// reconnect at once. `is_shed`: it leaves to make room already.
    async fn turn_to_leave(&self, id: u64, is_shed: bool) -> Leave {
        let mut orders = self.orders.subscribe();
        let (mut is_new, mut seen, mut leaves) = (true, None, None);
        loop {
            let order = *orders.borrow_and_update();
            if self.is_revoked(id) {
                return Leave::Revoked;
            }
            // An order to shed from before the session began is for other sessions, and the session follows each order once.
            let counts = !std::mem::take(&mut is_new) && seen != Some(order);
            seen = Some(order);
            match order {
                Order::Leave(window) | Order::LeaveToSuccessor(window) => {
                    // In boxes: most sessions never come here, and each would have the memory in its future.
                    let by = match leaves.as_deref() {
                        Some(&(known, by)) if known == window => by,
                        _ => tokio::time::Instant::now() + place(id, window),
                    };
                    leaves = Some(Box::new((window, by)));
                    let waited = Box::pin(tokio::time::timeout_at(by, orders.changed())).await;
                    match waited {
                        Err(_) => return Leave::Draining,
                        // The order may have a shorter window.
                        Ok(_) => continue,
                    }
                }
                Order::Shed { round } if counts && !is_shed && id % SHED_ROUNDS == round % SHED_ROUNDS => {
                    return Leave::Overloaded;
                }
                Order::Shed { .. } | Order::Stay => {}
            }
            // As above, the wait cannot fail.
            let _ = orders.changed().await;
        }
    }

    /// Resolves when it is session `id`'s turn to move, of all sessions that a plan sends away at once.
    pub async fn turn_to_move(&self, id: u64, window: Duration) {
        tokio::time::sleep(place(id, self.paced(window))).await;
    }

    /// A token of a connection that the edge accepted. The caller keeps it until the device has sent a request.
    pub fn arrives(&self) -> TaskTrackerToken {
        self.arriving.token()
    }

    /// Resolves when every accepted connection has sent a request or ended. The edge accepts no new ones.
    pub async fn all_arrived(&self) {
        self.arriving.close();
        self.arriving.wait().await;
    }

    /// A token of a connection of HTTP/2. The caller keeps it until the connection ends.
    pub fn speaks_http2(&self) -> TaskTrackerToken {
        self.http2.token()
    }

    /// Resolves when the connections of HTTP/2 have ended, or after `limit`: a device that vanished never answers.
    pub async fn http2_ended(&self, limit: Duration) {
        self.http2.close();
        let _ = tokio::time::timeout(limit, self.http2.wait()).await;
    }

    /// Resolves when no session, upgrade or request is left.
    pub async fn idle(&self) {
        // A closed tracker goes on counting, and only a closed one reports that it is empty.
        self.busy.close();
        self.busy.wait().await;
    }
}

impl Registered {
    /// Records that the session goes on at another stack.
    pub fn moved(&self, region: &RegionId, stack: SocketAddr) {
        if let Some(live) = self.sessions.lock().get_mut(&self.id) {
            self.sessions.metrics.session_gone(&live.region);
            self.sessions.metrics.session_began(region);
            live.region = region.clone();
            live.stack = stack;
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        if let Some(live) = self.sessions.lock().remove(&self.id) {
            self.sessions.metrics.session_gone(&live.region);
        }
    }
}

/// The time of session `id` in a window.
fn place(id: u64, window: Duration) -> Duration {
    window.mul_f64((id as f64 * GOLDEN).fract())
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;
    use prometheus_client::registry::Registry;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn sessions_leave_evenly_over_the_window_and_few_leave_sooner() {
        for (count, longest) in [(10_u64, 200), (10_000, 10_000)] {
            let sessions = Arc::new(Sessions::new(Metrics::new(&mut Registry::default())));
            let region = RegionId::new("us-east").unwrap();
            let stack = "127.0.0.1:9001".parse().unwrap();
            let register = |_| sessions.register(&region, stack, Moment(0), None);
            let live: Vec<Registered> = (0..count).map(register).collect();
            assert_eq!(sessions.by_region()[&region].0 as u64, count);
            let began = tokio::time::Instant::now();
            sessions.begin_drain(Duration::from_secs(10));
            for registered in &live {
                assert_eq!(sessions.turn_to_leave(registered.id, false).await, Leave::Draining);
            }
            // One after the other here, so each waits for its own place: none is beyond the window.
            let mean = began.elapsed() / u32::try_from(count).unwrap();
            let expected = Duration::from_millis(longest) / 2;
            assert!(mean.abs_diff(expected) < expected / 4, "{count}: {mean:?}");
        }
    }

    #[tokio::test]
    async fn sessions_are_shed_a_few_at_a_time() {
        let sessions = Arc::new(Sessions::new(Metrics::new(&mut Registry::default())));
        let region = RegionId::new("us-east").unwrap();
        let stack = "127.0.0.1:9001".parse().unwrap();
        let register = |_| sessions.register(&region, stack, Moment(0), None);
        let live: Vec<Registered> = (0..100).map(register).collect();
        let mut waiting: Vec<_> = live
            .iter()
            .map(|registered| Box::pin(sessions.turn_to_leave(registered.id, false)))
            .collect();
        let mut left = Vec::new();
        for turn in &mut waiting {
            assert!(futures_util::poll!(turn).is_pending());
        }
        for _ in 0..SHED_ROUNDS {
            sessions.shed();
            // Or tokio lets the hundreds of polls in here wait for the next turn of this task.
            tokio::task::yield_now().await;
            let before = waiting.len();
            let mut stay = Vec::new();
            for mut turn in waiting {
                match futures_util::poll!(&mut turn) {
                    std::task::Poll::Ready(leave) => assert_eq!(leave, Leave::Overloaded),
                    std::task::Poll::Pending => stay.push(turn),
                }
            }
            waiting = stay;
            left.push(before - waiting.len());
        }
        assert_eq!(left, vec![5; 20]);
        // The order is over, and new sessions stay.
        for id in 200..200 + SHED_ROUNDS {
            let mut turn = Box::pin(sessions.turn_to_leave(id, false));
            assert!(futures_util::poll!(&mut turn).is_pending());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_makes_room_is_still_told_that_its_device_was_revoked_or_the_edge_stops() {
        for (last, told) in [(true, Leave::Revoked), (false, Leave::Draining)] {
            let sessions = Arc::new(Sessions::new(Metrics::new(&mut Registry::default())));
            let device = Device {
                tenant: "acme".into(),
                name: "kitchen".into(),
                credential: auth::Credential::Key([0; 32]),
                until: None,
            };
            let region = RegionId::new("us-east").unwrap();
            let stack = "127.0.0.1:9001".parse().unwrap();
            let registered = sessions.register(&region, stack, Moment(0), Some(Arc::new(device)));
            let mut orders = std::pin::pin!(sessions.orders_to_leave(registered.id));
            assert!(futures_util::poll!(orders.next()).is_pending());
            while futures_util::poll!(orders.next()) != std::task::Poll::Ready(Some(Leave::Overloaded)) {
                sessions.shed();
                tokio::task::yield_now().await;
            }
            // It is told once to make room.
            for _ in 0..2 * SHED_ROUNDS {
                sessions.shed();
                tokio::task::yield_now().await;
                assert!(futures_util::poll!(orders.next()).is_pending());
            }
            match last {
                true => assert_eq!(sessions.revoke(|device| &*device.name == "kitchen"), 1),
                false => sessions.begin_drain(Duration::from_secs(10)),
            }
            assert_eq!(orders.next().await, Some(told));
        }
    }
}
