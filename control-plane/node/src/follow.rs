//! Follows plans from every control plane at once, so that the first one to have a plan delivers it and a dead or
//! frozen one does no harm. One task per control plane receives updates. A single task decides which plan is applied,
//! so that streams with the same plan, or an older one, can never push each other back.
//!
//! Why it is so: docs/decisions/20-nodes-and-control-planes.md.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use identity::Identity;
use parking_lot::{Mutex, MutexGuard};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use topology::{NodeId, PlanNumber, Snapshot};

use api::{
    connect::{self, Backoff},
    v1::{self, plans_client::PlansClient, watch_request::Message},
};

use crate::{LastGood, texts};

/// Follows the plans of all control planes for one node.
pub struct Follower {
    /// URLs of the control planes, `https://address:port` or, without TLS, `http://address:port`. All are followed at once.
    pub endpoints: Vec<String>,
    /// The id of the node.
    pub node: NodeId,
    /// The kind of the node.
    pub kind: v1::NodeKind,
    /// The files that store the last good plans.
    pub last_good: LastGood,
    /// Records how many control planes are connected.
    pub contact: Contact,
    /// The identity that this node shows to control planes at `https://` URLs.
    pub identity: Option<Arc<Identity>>,
}

/// The number of connected control planes, and since when there has been none: the plan in force may then be out of
/// date. HTTP/2 pings check the connections, so one that is cut off counts as lost within seconds.
#[derive(Debug, Clone)]
pub struct Contact(Arc<Mutex<(usize, Instant)>>);

impl Default for Contact {
    fn default() -> Self {
        Self(Arc::new(Mutex::new((0, Instant::now()))))
    }
}

impl Contact {
    fn lock(&self) -> MutexGuard<'_, (usize, Instant)> {
        self.0.lock()
    }

    /// The number of connected control planes.
    pub fn count(&self) -> usize {
        self.lock().0
    }

    /// The time since which no control plane has been connected; zero while one is. Before the first contact, the time
    /// since the start.
    pub fn stale_for(&self) -> Duration {
        match *self.lock() {
            (0, lost_at) => lost_at.elapsed(),
            _ => Duration::ZERO,
        }
    }

    fn begins(&self) -> Following {
        self.lock().0 += 1;
        Following(self.clone())
    }
}

/// Counts a control plane as connected while this exists.
struct Following(Contact);

impl Drop for Following {
    fn drop(&mut self) {
        let mut contact = self.0.lock();
        contact.0 -= 1;
        contact.1 = Instant::now();
    }
}

/// The reason for which a snapshot was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// The plan is older than the plan in force. This is normal from a replica that lags for a moment, and an alarm if
    /// it continues.
    #[error("{}", texts::not_newer(*offered, *have))]
    NotNewer {
        /// The number of the received plan.
        offered: PlanNumber,
        /// The number of the plan in force.
        have: PlanNumber,
    },
    /// The plan has the number of the plan in force but different contents. Causes: two leaders, or a restored store.
    #[error("{}", texts::contradicts(*.0))]
    Contradicts(PlanNumber),
    /// The snapshot is unreadable, damaged, empty or contradictory.
    #[error("{}", texts::invalid(.0))]
    Invalid(#[from] topology::SnapshotError),
}

/// The result of a valid update.
#[derive(Debug, Clone, PartialEq)]
pub enum Accepted {
    /// The snapshot is newer and must be applied.
    Newer(Box<Snapshot>),
    /// The snapshot is in force already, from another stream or from before a reconnect.
    Same,
}

/// Decides whether an update replaces `have`: it must be whole, valid and strictly newer (invariants 1 and 2).
pub fn accept(update: &v1::SnapshotUpdate, have: Option<&Snapshot>) -> Result<Accepted, Rejected> {
    let snapshot = Snapshot::decode(&update.document, &update.checksum)?;
    let Some(have) = have else {
        return Ok(Accepted::Newer(Box::new(snapshot)));
    };
    let (offered, number) = (snapshot.plan.number(), have.plan.number());
    if offered > number {
        Ok(Accepted::Newer(Box::new(snapshot)))
    } else if offered < number {
        Err(Rejected::NotNewer { offered, have: number })
    } else if snapshot.plan == have.plan {
        Ok(Accepted::Same)
    } else {
        Err(Rejected::Contradicts(number))
    }
}

/// The snapshot in force. `None` before the first plan.
type Current = Option<Arc<Snapshot>>;

/// An update from a stream for the deciding task, with the channel for the answer: the plan in force afterwards, or the
/// refusal.
struct Offer {
    update: v1::SnapshotUpdate,
    answer: oneshot::Sender<Result<PlanNumber, Rejected>>,
}

impl Follower {
    /// Follows plans until `stop`. `current` receives the last good plan from disk first, and then every newer plan. It
    /// is never emptied, so its readers keep serving when all control planes are gone.
    pub async fn run(self, current: watch::Sender<Current>, stop: impl Future<Output = ()>) {
        if let Some(snapshot) = self.last_good.load() {
            tracing::info!(plan = %snapshot.plan.number(), "starting from the last good plan on disk");
            replace_older(&current, Arc::new(snapshot));
        }
        let last_good = self.last_good.clone();
        let adopted = tokio::task::spawn_blocking(move || last_good.adopt()).await;
        if let Err(error) = adopted.unwrap_or_else(|error| Err(error.into())) {
            tracing::error!(path = %self.last_good.path().display(), %error, "{}", texts::CANNOT_ADOPT);
        }
        tokio::select! {
            () = stop => {}
            () = self.follow_all(&current) => {}
        }
    }

    async fn follow_all(&self, current: &watch::Sender<Current>) {
        // The same URL twice is one control plane.
        let endpoints: BTreeSet<&String> = self.endpoints.iter().collect();
        // Room for one offer per stream: a stream reads on only after its offer was answered. The sender is kept open
        // here because, without control planes, the plan on disk must stay in force.
        let (offers, mut offered) = mpsc::channel(endpoints.len().max(1));
        // The streams end when this future is dropped.
        let mut streams = JoinSet::new();
        for endpoint in endpoints {
            let stream = Stream {
                endpoint: endpoint.clone(),
                node: self.node.clone(),
                kind: self.kind,
                current: current.subscribe(),
                offers: offers.clone(),
                contact: self.contact.clone(),
                identity: self.identity.clone(),
            };
            streams.spawn(stream.keep_following());
        }
        loop {
            tokio::select! {
                Some(Offer { update, answer }) = offered.recv() => {
                    let outcome = self.apply(&update, current).await;
                    // The connection may have ended in the meantime. The plan counts anyway.
                    let _ = answer.send(outcome);
                }
                // Streams never end, so this one panicked. A node that silently stopped listening would be worse than
                // one that stops.
                Some(Err(error)) = streams.join_next() => {
                    if let Ok(panic) = error.try_into_panic() {
                        std::panic::resume_unwind(panic);
                    }
                }
            }
        }
    }

    /// Applies an update if it is newer. Returns the number of the plan in force afterwards. The plan is written to
    /// disk first: a node that restarts must not serve an older plan than it has acknowledged.
    async fn apply(
        &self,
        update: &v1::SnapshotUpdate,
        current: &watch::Sender<Current>,
    ) -> Result<PlanNumber, Rejected> {
        let have = current.borrow().clone();
        let snapshot = match accept(update, have.as_deref())? {
            Accepted::Newer(snapshot) => Arc::<Snapshot>::from(snapshot),
            Accepted::Same => return Ok(number_of(&have)),
        };
        let (last_good, kept) = (self.last_good.clone(), snapshot.clone());
        let saved = tokio::task::spawn_blocking(move || last_good.save(&kept)).await;
        if let Err(error) = saved.unwrap_or_else(|error| Err(error.into())) {
            // The plan is valid. Only a restart without a control plane would suffer.
            tracing::error!(
                path = %self.last_good.path().display(),
                %error,
                "{}", texts::CANNOT_SAVE
            );
        }
        let number = snapshot.plan.number();
        replace_older(current, snapshot);
        tracing::info!(plan = %number, "plan applied");
        Ok(number)
    }
}

/// The only place that writes `current`. It never replaces a plan by an older one.
fn replace_older(current: &watch::Sender<Current>, snapshot: Arc<Snapshot>) {
    current.send_if_modified(|current| {
        let newer = snapshot.plan.number() > number_of(current);
        if newer {
            *current = Some(snapshot);
        }
        newer
    });
}

fn number_of(current: &Current) -> PlanNumber {
    current
        .as_ref()
        .map(|snapshot| snapshot.plan.number())
        .unwrap_or_default()
}

/// The connection of a node to one control plane.
struct Stream {
    endpoint: String,
    node: NodeId,
    kind: v1::NodeKind,
    current: watch::Receiver<Current>,
    offers: mpsc::Sender<Offer>,
    contact: Contact,
    identity: Option<Arc<Identity>>,
}

impl Stream {
    async fn keep_following(mut self) {
        let mut backoff = Backoff::of(&format!("{} {}", self.node, self.endpoint));
        let mut said = false;
        loop {
            let mut connected = false;
            let ended = self.follow(&mut connected).await;
            if connected {
                // Every stream ends at some time, so only an address that does not answer is tried less and less often.
                backoff.reset();
                said = false;
            }
            let endpoint = &self.endpoint;
            match ended {
                // Logged once: a control plane that is away for a day would otherwise fill the log.
                Err(error) if !said => {
                    tracing::warn!(%endpoint, %error, "{}", texts::CANNOT_FOLLOW);
                    said = true;
                }
                Err(error) => tracing::debug!(%endpoint, %error, "still cannot follow plans of this control plane"),
                Ok(()) => {}
            }
            tokio::time::sleep(backoff.wait()).await;
        }
    }

    /// Runs one connection until it ends. Sets `connected` once the control plane has answered.
    async fn follow(&mut self, connected: &mut bool) -> Result<(), Status> {
        let endpoint = self.endpoint.clone();
        let mut client = PlansClient::new(connect::connect(&endpoint, self.identity.as_ref()).await?)
            .max_decoding_message_size(2 * topology::snapshot::SNAPSHOT_BYTES_MAX);
        // Answers are tiny, and there is one per plan. Eight waiting answers mean that the control plane does not read.
        let (answers, requests) = mpsc::channel(8);
        let mut told = number_of(&self.current.borrow_and_update());
        let hello = v1::Hello {
            node: self.node.to_string(),
            kind: self.kind.into(),
            have: Some(told.into()),
        };
        send(&answers, Message::Hello(hello)).await?;
        let mut updates = client.watch(ReceiverStream::new(requests)).await?.into_inner();
        tracing::info!(%endpoint, "following plans");
        *connected = true;
        let _following = self.contact.begins();
        loop {
            tokio::select! {
                update = updates.message() => {
                    let Some(update) = update? else { return Ok(()) };
                    if update.send_yours {
                        // The store of the control plane lost the plan that it had published, so the node sends its
                        // copy.
                        let held = self.current.borrow().as_deref().map(v1::Held::from);
                        if let Some(held) = held {
                            send(&answers, Message::Held(held)).await?;
                        }
                        continue;
                    }
                    let number = update.number;
                    let answer = match self.offer(update).await? {
                        Ok(applied) => {
                            told = told.max(applied);
                            Message::Ack(v1::Ack { number: Some(applied.into()) })
                        }
                        Err(rejected) => {
                            tracing::warn!(%endpoint, %rejected, "{}", texts::REFUSED);
                            Message::Nack(v1::Nack { number, reason: rejected.to_string() })
                        }
                    };
                    send(&answers, answer).await?;
                }
                changed = self.current.changed() => {
                    changed.map_err(|_| Status::cancelled("the node stops"))?;
                    // The plan came by another stream. Every control plane must know the plan that each node applies.
                    let applied = number_of(&self.current.borrow_and_update());
                    if applied > told {
                        told = applied;
                        send(&answers, Message::Ack(v1::Ack { number: Some(applied.into()) })).await?;
                    }
                }
            }
        }
    }

    async fn offer(&self, update: v1::SnapshotUpdate) -> Result<Result<PlanNumber, Rejected>, Status> {
        let stops = || Status::cancelled("the node stops");
        let (answer, outcome) = oneshot::channel();
        self.offers.send(Offer { update, answer }).await.map_err(|_| stops())?;
        outcome.await.map_err(|_| stops())
    }
}

async fn send(answers: &mpsc::Sender<v1::WatchRequest>, message: Message) -> Result<(), Status> {
    let request = v1::WatchRequest { message: Some(message) };
    answers
        .send(request)
        .await
        .map_err(|_| Status::unavailable("the control plane stopped listening"))
}

#[cfg(test)]
mod tests {
    use topology::fixtures::three_primaries;

    use super::*;
    use crate::testing::{Watching, in_time, nobody, planes, silent};

    fn plan(generation: u64, epoch: u64) -> Snapshot {
        let mut snapshot = three_primaries();
        (snapshot.plan.generation, snapshot.plan.epoch) = (generation, epoch);
        snapshot
    }

    /// A node that follows some control planes until it is dropped.
    struct Node {
        current: watch::Receiver<Current>,
        last_good: LastGood,
        _stop: oneshot::Sender<()>,
        _folder: tempfile::TempDir,
    }

    impl Node {
        fn follows(endpoints: &[&str]) -> Self {
            Self::follows_from(endpoints, &[])
        }

        fn follows_from(endpoints: &[&str], on_disk: &[Snapshot]) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let last_good = LastGood::at(folder.path().join("plan"));
            for snapshot in on_disk {
                last_good.save(snapshot).unwrap();
            }
            let follower = Follower {
                endpoints: endpoints.iter().map(ToString::to_string).collect(),
                node: NodeId::new("edge-iad").unwrap(),
                kind: v1::NodeKind::Edge,
                last_good: last_good.clone(),
                contact: Contact::default(),
                identity: None,
            };
            let (sender, current) = watch::channel(None);
            let (stop, stopped) = oneshot::channel::<()>();
            tokio::spawn(follower.run(sender, async { drop(stopped.await) }));
            Self {
                current,
                last_good,
                _stop: stop,
                _folder: folder,
            }
        }

        async fn applies(&mut self, generation: u64) {
            let applied = self
                .current
                .wait_for(|current| number_of(current).generation == generation);
            in_time(applied).await.unwrap();
        }
    }

    impl Watching {
        async fn sends(&self, snapshot: &Snapshot) {
            self.updates.send(Ok(snapshot.into())).await.unwrap();
        }

        async fn is_told(&mut self, generation: u64) {
            match in_time(self.answers.message()).await.unwrap().unwrap().message {
                Some(Message::Ack(ack)) => assert_eq!(ack.number.unwrap().generation, generation),
                other => panic!("expected the acknowledgement of {generation}, got {other:?}"),
            }
        }

        async fn is_refused(&mut self, reason: &str) {
            match in_time(self.answers.message()).await.unwrap().unwrap().message {
                Some(Message::Nack(nack)) => assert!(nack.reason.contains(reason), "{}", nack.reason),
                other => panic!("expected a refusal, got {other:?}"),
            }
        }
    }

    #[test]
    fn only_strictly_newer_and_valid_plans_are_accepted() {
        let mut snapshot = plan(7, 3);
        let update = v1::SnapshotUpdate::from(&snapshot);
        for older in [None, Some(plan(6, 9)), Some(plan(7, 2))] {
            assert!(matches!(accept(&update, older.as_ref()), Ok(Accepted::Newer(_))));
        }
        for newer in [plan(7, 4), plan(8, 0)] {
            let refused = accept(&update, Some(&newer));
            assert!(matches!(refused, Err(Rejected::NotNewer { .. })));
        }
        assert_eq!(accept(&update, Some(&snapshot)), Ok(Accepted::Same));
        snapshot.plan.reasons[0].text = "another leader".into();
        assert!(matches!(
            accept(&update, Some(&snapshot)),
            Err(Rejected::Contradicts(_))
        ));
        snapshot.plan.routes.clear();
        assert!(matches!(accept(&(&snapshot).into(), None), Err(Rejected::Invalid(_))));
    }

    #[tokio::test]
    async fn whichever_control_plane_has_a_plan_first_brings_it_and_all_are_told() {
        let (first, mut watching_first) = planes().await;
        let (second, mut watching_second) = planes().await;
        let mut node = Node::follows(&[&first, &second]);
        let mut first = in_time(watching_first.recv()).await.unwrap();
        let mut second = in_time(watching_second.recv()).await.unwrap();

        first.sends(&plan(1, 1)).await;
        node.applies(1).await;
        first.is_told(1).await;
        second.is_told(1).await;

        second.sends(&plan(1, 1)).await;
        second.is_told(1).await;
        second.sends(&plan(2, 1)).await;
        second.is_told(2).await;
        first.is_told(2).await;

        first.sends(&plan(1, 1)).await;
        first.is_refused("plan 1@1 is older than plan 2@1").await;
        let mut empty = plan(3, 1);
        empty.plan.routes.clear();
        first.sends(&empty).await;
        first.is_refused("the plan has no routes").await;
        first.sends(&plan(2, 1)).await;
        first.is_told(2).await;
        assert_eq!(node.last_good.load(), Some(plan(2, 1)));
    }

    #[tokio::test]
    async fn control_planes_that_are_dead_or_frozen_harm_nobody() {
        let (frozen, _frozen) = silent();
        let (mute, mut watching_mute) = planes().await;
        let (good, mut watching_good) = planes().await;
        let mut node = Node::follows(&[&nobody(), &frozen, &mute, &good, "not a url"]);
        // This control plane accepts the stream and then sends nothing.
        let _mute = in_time(watching_mute.recv()).await.unwrap();
        let mut good = in_time(watching_good.recv()).await.unwrap();
        for generation in 1..=20 {
            good.sends(&plan(generation, 1)).await;
            good.is_told(generation).await;
        }
        node.applies(20).await;
    }

    #[tokio::test]
    async fn a_control_plane_that_returns_is_followed_again_and_told_at_once() {
        let (endpoint, mut watching) = planes().await;
        let mut node = Node::follows_from(&[&endpoint], &[plan(3, 1), plan(4, 1)]);
        node.applies(4).await;
        let before = in_time(watching.recv()).await.unwrap();
        assert_eq!(before.hello.have.unwrap().generation, 4);
        before.sends(&plan(5, 2)).await;
        node.applies(5).await;
        drop(before);
        let again = in_time(watching.recv()).await.unwrap();
        assert_eq!(again.hello.have.unwrap().generation, 5);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn plans_in_any_order_from_many_streams_only_go_forward() {
        const GENERATIONS: u64 = 40;
        let mut endpoints = Vec::new();
        let mut senders = Vec::new();
        for stride in [1, 3, 7, 9] {
            let (endpoint, mut watching) = planes().await;
            endpoints.push(endpoint);
            senders.push(tokio::spawn(async move {
                let mut node = in_time(watching.recv()).await.unwrap();
                // Each stream sends every generation once, in an order of its own.
                for step in 0..=GENERATIONS {
                    node.sends(&plan(1 + step * stride % (GENERATIONS + 1), 1)).await;
                    in_time(node.answers.message()).await.unwrap().unwrap();
                }
                // Kept until the end, so that no node has to connect again.
                node
            }));
        }
        let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
        let mut node = Node::follows(&endpoints);
        let mut seen = PlanNumber::default();
        while seen.generation <= GENERATIONS {
            in_time(node.current.changed()).await.unwrap();
            let now = number_of(&node.current.borrow_and_update());
            assert!(now > seen, "{now} after {seen}");
            // The plan is written to disk before it is applied, so the disk is never behind.
            assert!(node.last_good.load().unwrap().plan.number() >= now);
            seen = now;
        }
        for sender in senders {
            tokio::time::timeout(Duration::from_secs(30), sender)
                .await
                .unwrap()
                .unwrap();
        }
        assert_eq!(number_of(&node.current.borrow()).generation, GENERATIONS + 1);
        assert_eq!(node.last_good.load().unwrap().plan.generation, GENERATIONS + 1);
    }
}
