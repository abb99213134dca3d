//! Engine threads: a fixed number of long-lived OS threads with one bounded queue.
//!
//! They are not the async runtime's blocking pool: libtorch keeps memory for each thread that ever ran a model, so threads that come
//! and go leak. A thread drops a job whose caller left. `queue` decides the order.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use speech::SpeechError;
use tokio::sync::{Notify, oneshot};

use crate::{
    metrics::{EngineLabels, EngineName, JobLabels, JobOutcome, JobPart, JobSecondsLabels, Metrics},
    queue::{Bounds, Class, Lane, Queue},
    texts,
};

/// The threads of one engine.
pub(crate) struct Workers<I, O> {
    shared: Arc<Shared<I, O>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared<I, O> {
    engine: EngineName,
    state: Mutex<State<I, O>>,
    /// One for each lane: a job must not wake a thread that may not take it.
    wake_live: Condvar,
    wake_bulk: Condvar,
    /// Notified whenever a job leaves the queue.
    room: Notify,
    /// Failures since the last success.
    failures: AtomicU32,
    /// Jobs that were done, well or not, on the threads of each lane.
    finished: [Arc<AtomicU64>; 2],
    metrics: Metrics,
}

struct State<I, O> {
    queue: Queue<Job<I, O>>,
    stopped: bool,
}

struct Job<I, O> {
    input: I,
    since: Instant,
    began: Arc<OnceLock<Instant>>,
    reply: oneshot::Sender<Result<O, SpeechError>>,
}

/// The number of threads that an engine has for each lane.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Crew {
    pub(crate) live: usize,
    pub(crate) bulk: usize,
}

/// The niceness of threads for uploads: beside a busy thread of live callers they get one tenth of its processor time.
const BULK_NICENESS: i32 = 10;

/// The result of one job.
#[derive(Debug)]
pub(crate) struct Done<O> {
    pub(crate) output: O,
    /// From submission to result, the wait included.
    pub(crate) took: Duration,
}

/// The reason why a job gave no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JobError {
    /// The queue is full, or the job waited there for most of `limits.engine_max` while others were done; safe to retry.
    #[error("{}", texts::ENGINES_BUSY)]
    Busy,
    /// No result within `limits.engine_max`, and the engine worked on this job for most of it, or was done with none; safe to retry.
    #[error("{}", texts::ENGINE_LATE)]
    Late,
    /// The engine refused the input or failed.
    #[error(transparent)]
    Speech(#[from] SpeechError),
}

/// A job under way. Dropping it cancels the job.
#[derive(Debug)]
pub(crate) struct Ticket<O> {
    reply: oneshot::Receiver<Result<O, SpeechError>>,
    since: Instant,
    began: Arc<OnceLock<Instant>>,
    others: Progress,
    limit: Duration,
    deadline: tokio::time::Instant,
}

/// The jobs that a lane's threads have done since another job began to wait for one.
#[derive(Debug)]
struct Progress {
    finished: Arc<AtomicU64>,
    before: u64,
}

impl Progress {
    /// The reason why a job waited in vain. Work for other callers is no fault of the engine, and a client that returns later finds
    /// another queue. An engine that finished nothing in the same time hangs.
    fn reason(&self) -> JobError {
        match self.finished.load(Ordering::Relaxed) > self.before {
            true => JobError::Busy,
            false => JobError::Late,
        }
    }
}

impl<O> Ticket<O> {
    /// Waits for the result. Safe to drop and call again.
    pub(crate) async fn result(&mut self) -> Result<Done<O>, JobError> {
        match tokio::time::timeout_at(self.deadline, &mut self.reply).await {
            Ok(Ok(result)) => Ok(Done {
                output: result?,
                took: self.since.elapsed(),
            }),
            Ok(Err(_)) => Err(SpeechError::Engine("the engine has stopped".to_owned()).into()),
            Err(_) => {
                // A closed channel makes the engine drop the job if it still waits.
                self.reply.close();
                let has_own_time = |began: &Instant| began.elapsed() * 2 >= self.limit;
                Err(match self.began.get() {
                    Some(began) if has_own_time(began) => JobError::Late,
                    _ => self.others.reason(),
                })
            }
        }
    }
}

/// Failures in a row after which an engine counts as broken.
const FAILURES_MAX: u32 = 3;

impl<I: Send + 'static, O: Send + 'static> Workers<I, O> {
    /// Starts threads that all run `work`.
    pub(crate) fn start(
        engine: EngineName,
        crew: Crew,
        bounds: Bounds,
        metrics: &Metrics,
        work: impl Fn(I) -> Result<O, SpeechError> + Send + Sync + 'static,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            engine,
            state: Mutex::new(State {
                queue: Queue::new(bounds),
                stopped: false,
            }),
            wake_live: Condvar::new(),
            wake_bulk: Condvar::new(),
            room: Notify::new(),
            failures: AtomicU32::new(0),
            finished: Default::default(),
            metrics: metrics.clone(),
        });
        let work = Arc::new(work);
        let lanes = std::iter::repeat_n(Lane::Live, crew.live).chain(std::iter::repeat_n(Lane::Bulk, crew.bulk));
        let threads = lanes
            .enumerate()
            .map(|(number, lane)| {
                let (shared, work) = (Arc::clone(&shared), Arc::clone(&work));
                let name = format!("{engine:?}-{number}-{lane:?}");
                std::thread::Builder::new().name(name).spawn(move || {
                    if lane == Lane::Bulk {
                        lower_priority();
                    }
                    shared.run(lane, &*work);
                })
            })
            .collect::<std::io::Result<Vec<_>>>()?;
        Ok(Self {
            shared,
            threads: Mutex::new(threads),
        })
    }

    /// Queues a job of so many seconds of audio that must be done within `limit`.
    pub(crate) fn submit(&self, class: Class, seconds: f32, input: I, limit: Duration) -> Result<Ticket<O>, JobError> {
        self.try_submit(class, seconds, input, limit).map_err(|_| {
            self.shared.count(JobOutcome::Rejected);
            JobError::Busy
        })
    }

    /// Queues a job too, but waits while the queue is full: the rest of a long job must not fail in the middle. `limit` is the deadline
    /// of the queue, and again of the engine.
    pub(crate) async fn submit_when_room(
        &self,
        class: Class,
        seconds: f32,
        mut input: I,
        limit: Duration,
    ) -> Result<Ticket<O>, JobError> {
        let deadline = tokio::time::Instant::now() + limit;
        let others = self.shared.progress(class.lane());
        loop {
            let mut room = pin!(self.shared.room.notified());
            // From here on no notice of room is missed.
            room.as_mut().enable();
            match self.try_submit(class, seconds, input, limit) {
                Ok(ticket) => return Ok(ticket),
                Err(back) => input = back,
            }
            if tokio::time::timeout_at(deadline, room).await.is_err() {
                self.shared.count(JobOutcome::Rejected);
                return Err(others.reason());
            }
        }
    }

    fn try_submit(&self, class: Class, seconds: f32, input: I, limit: Duration) -> Result<Ticket<O>, I> {
        let (reply, receiver) = oneshot::channel();
        let since = Instant::now();
        let began = Arc::new(OnceLock::new());
        let others = self.shared.progress(class.lane());
        let lane = class.lane();
        {
            let mut state = self.shared.lock();
            if !state.queue.has_room(lane, seconds) {
                // Jobs of callers that left must not keep out others.
                self.shared.drop_abandoned(&mut state);
            }
            let job = Job {
                input,
                since,
                began: Arc::clone(&began),
                reply,
            };
            state.queue.push(class, seconds, job).map_err(|job| job.input)?;
            self.shared.show_depth(&state);
        }
        self.shared.wake(lane).notify_one();
        Ok(Ticket {
            reply: receiver,
            since,
            began,
            others,
            limit,
            deadline: tokio::time::Instant::now() + limit,
        })
    }

    /// Jobs of a lane that wait for a thread.
    pub(crate) fn waiting(&self, lane: Lane) -> usize {
        self.shared.lock().queue.waiting(lane)
    }

    /// Whether the engine's recent jobs succeeded.
    pub(crate) fn is_healthy(&self) -> bool {
        self.shared.failures.load(Ordering::Relaxed) < FAILURES_MAX
    }

    /// Drops the waiting jobs, lets the threads finish their current ones, and joins them. Blocks.
    pub(crate) fn stop(&self) {
        {
            let mut state = self.shared.lock();
            state.stopped = true;
            state.queue.clear();
            self.shared.show_depth(&state);
        }
        self.shared.wake_live.notify_all();
        self.shared.wake_bulk.notify_all();
        self.shared.room.notify_waiters();
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            // A panic in a job was caught in the thread and reported to the job's caller.
            let _ = thread.join();
        }
    }
}

impl<I, O> Shared<I, O> {
    fn run(&self, lane: Lane, work: &(dyn Fn(I) -> Result<O, SpeechError> + Send + Sync)) {
        while let Some((class, job)) = self.next(lane) {
            let began = *job.began.get_or_init(Instant::now);
            self.observe(class, JobPart::Waiting, began - job.since);
            // A bug or a spoiled model in one job must not cost all other jobs their thread.
            let result = catch_unwind(AssertUnwindSafe(|| work(job.input)))
                .unwrap_or_else(|panic| Err(SpeechError::of_engine(format!("panicked: {}", panic_text(&*panic)))));
            self.observe(class, JobPart::Working, began.elapsed());
            // An engine that refuses bad input works.
            if let Err(SpeechError::Engine(_) | SpeechError::GpuMemory(_)) = result {
                self.failures.fetch_add(1, Ordering::Relaxed);
                self.count(JobOutcome::Failed);
            } else {
                self.failures.store(0, Ordering::Relaxed);
                self.count(JobOutcome::Done);
            }
            self.finished[lane as usize].fetch_add(1, Ordering::Relaxed);
            // An error here means that the caller left meanwhile.
            let _ = job.reply.send(result);
        }
    }

    /// The next job of a lane whose caller still waits; `None` when stopped.
    fn next(&self, lane: Lane) -> Option<(Class, Job<I, O>)> {
        let mut state = self.lock();
        loop {
            if state.stopped {
                return None;
            }
            while let Some((class, job)) = state.queue.pop(lane) {
                self.show_depth(&state);
                self.room.notify_waiters();
                if !job.reply.is_closed() {
                    return Some((class, job));
                }
                self.count(JobOutcome::Cancelled);
            }
            self.wake(lane).wait(&mut state);
        }
    }

    fn progress(&self, lane: Lane) -> Progress {
        let finished = Arc::clone(&self.finished[lane as usize]);
        let before = finished.load(Ordering::Relaxed);
        Progress { finished, before }
    }

    fn wake(&self, lane: Lane) -> &Condvar {
        match lane {
            Lane::Live => &self.wake_live,
            Lane::Bulk => &self.wake_bulk,
        }
    }

    fn drop_abandoned(&self, state: &mut State<I, O>) {
        state.queue.retain(|job| {
            let abandoned = job.reply.is_closed();
            if abandoned {
                self.count(JobOutcome::Cancelled);
            }
            !abandoned
        });
    }

    fn lock(&self) -> parking_lot::MutexGuard<'_, State<I, O>> {
        self.state.lock()
    }

    fn observe(&self, class: Class, part: JobPart, took: Duration) {
        self.metrics
            .job_seconds
            .get_or_create(&JobSecondsLabels {
                engine: self.engine,
                class,
                part,
            })
            .observe(took.as_secs_f64());
    }

    fn count(&self, outcome: JobOutcome) {
        self.metrics
            .engine_jobs
            .get_or_create(&JobLabels {
                engine: self.engine,
                outcome,
            })
            .inc();
    }

    fn show_depth(&self, state: &State<I, O>) {
        let waiting = state.queue.waiting(Lane::Live) + state.queue.waiting(Lane::Bulk);
        let depth = i64::try_from(waiting).unwrap_or(i64::MAX);
        self.metrics
            .queue_depth
            .get_or_create(&EngineLabels { engine: self.engine })
            .set(depth);
    }
}

/// Lowers the priority of this thread below every other. On Linux this concerns the calling thread alone.
fn lower_priority() {
    if let Err(error) = rustix::process::setpriority_process(None, BULK_NICENESS) {
        tracing::warn!(%error, "{}", texts::NO_PRIORITIES);
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use prometheus_client::registry::Registry;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);
    const ONE_EACH: Crew = Crew { live: 1, bulk: 1 };

    fn bounds(jobs_max: usize) -> Bounds {
        Bounds {
            jobs_max,
            seconds_max: 60.0,
        }
    }

    /// Threads that answer a job only when told to, and report each job that they begin.
    fn gated(jobs_max: usize) -> (Workers<u32, u32>, mpsc::Sender<()>, mpsc::Receiver<u32>) {
        let (open, gate) = mpsc::channel::<()>();
        let (begin, begun) = mpsc::channel();
        let gate = Mutex::new(gate);
        let metrics = Metrics::register(&mut Registry::default());
        let workers = Workers::start(EngineName::Asr, ONE_EACH, bounds(jobs_max), &metrics, move |job| {
            begin.send(job).unwrap();
            gate.lock().recv().unwrap();
            Ok(job * 2)
        });
        (workers.unwrap(), open, begun)
    }

    #[tokio::test]
    async fn a_full_queue_rejects_and_an_abandoned_job_makes_room_and_is_never_run() {
        let (workers, open, begun) = gated(1);
        let mut running = workers.submit(Class::Live, 1.0, 1, LIMIT).unwrap();
        assert_eq!(begun.recv().unwrap(), 1);
        let abandoned = workers.submit(Class::Live, 1.0, 2, LIMIT).unwrap();
        assert!(matches!(
            workers.submit(Class::Live, 1.0, 3, LIMIT),
            Err(JobError::Busy)
        ));

        drop(abandoned);
        let mut waiting = workers.submit(Class::Live, 1.0, 4, LIMIT).unwrap();
        open.send(()).unwrap();
        open.send(()).unwrap();
        assert_eq!(running.result().await.unwrap().output, 2);
        assert_eq!(waiting.result().await.unwrap().output, 8);
        assert_eq!(begun.recv().unwrap(), 4);
        workers.stop();
    }

    #[tokio::test]
    async fn a_panicking_job_fails_alone() {
        let metrics = Metrics::register(&mut Registry::default());
        let workers = Workers::start(EngineName::Tts, ONE_EACH, bounds(4), &metrics, |job: u32| {
            assert!(job != 13, "unlucky");
            Ok(job)
        })
        .unwrap();
        let error = workers
            .submit(Class::Live, 1.0, 13, LIMIT)
            .unwrap()
            .result()
            .await
            .unwrap_err();
        assert!(error.to_string().contains("unlucky"), "{error}");
        assert_eq!(
            workers
                .submit(Class::Live, 1.0, 7, LIMIT)
                .unwrap()
                .result()
                .await
                .unwrap()
                .output,
            7
        );
        assert!(workers.is_healthy());
        workers.stop();
    }

    #[tokio::test]
    async fn uploads_that_run_and_wait_keep_no_caller_waiting() {
        let (workers, open, begun) = gated(4);
        let uploads: Vec<_> = (1..=3)
            .map(|job| workers.submit(Class::Bulk, 1.0, job, LIMIT).unwrap())
            .collect();
        assert_eq!(begun.recv().unwrap(), 1);
        let _caller = workers.submit(Class::Live, 1.0, 9, LIMIT).unwrap();
        // The upload is still at work: nothing was let through the gate.
        assert_eq!(begun.recv().unwrap(), 9);
        assert_eq!(workers.waiting(Lane::Bulk), 2);
        drop((open, uploads));
        workers.stop();
    }

    #[tokio::test]
    async fn what_was_begun_waits_for_room_and_is_not_refused() {
        let (workers, open, begun) = gated(1);
        let mut first = workers.submit(Class::Bulk, 1.0, 1, LIMIT).unwrap();
        assert_eq!(begun.recv().unwrap(), 1);
        let mut second = workers.submit(Class::Bulk, 1.0, 2, LIMIT).unwrap();
        assert!(matches!(
            workers.submit(Class::Bulk, 1.0, 3, LIMIT),
            Err(JobError::Busy)
        ));
        let third = workers.submit_when_room(Class::Bulk, 1.0, 3, LIMIT);
        let gate = async {
            tokio::task::yield_now().await;
            for _ in 0..3 {
                open.send(()).unwrap();
            }
        };
        let (third, ()) = tokio::join!(third, gate);
        assert_eq!(first.result().await.unwrap().output, 2);
        assert_eq!(second.result().await.unwrap().output, 4);
        assert_eq!(third.unwrap().result().await.unwrap().output, 6);
        workers.stop();
    }

    #[tokio::test]
    async fn waiting_for_room_ends_too() {
        let (workers, open, begun) = gated(1);
        let running = workers.submit(Class::Bulk, 1.0, 1, LIMIT).unwrap();
        assert_eq!(begun.recv().unwrap(), 1);
        let waiting = workers.submit(Class::Bulk, 1.0, 2, LIMIT).unwrap();
        let third = workers.submit_when_room(Class::Bulk, 1.0, 3, Duration::ZERO).await;
        assert!(matches!(third, Err(JobError::Late)), "the engine did nothing");
        drop((open, running, waiting));
        workers.stop();
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn the_system_prefers_the_threads_of_live_callers() {
        let metrics = Metrics::register(&mut Registry::default());
        let workers = Workers::start(EngineName::Asr, ONE_EACH, bounds(4), &metrics, |_: ()| {
            rustix::process::getpriority_process(None).map_err(SpeechError::of_engine)
        })
        .unwrap();
        let mut niceness = Vec::new();
        for class in [Class::Live, Class::Probe, Class::Hedge, Class::Bulk] {
            let mut ticket = workers.submit(class, 1.0, (), LIMIT).unwrap();
            niceness.push(ticket.result().await.unwrap().output);
        }
        let own = rustix::process::getpriority_process(None).unwrap();
        assert_eq!(niceness[..2], [own, own]);
        assert!(niceness[2] > own && niceness[3] > own, "{niceness:?}");
        workers.stop();
    }

    #[tokio::test]
    async fn the_limit_ends_the_wait_and_only_an_engine_at_work_is_late() {
        let (workers, open, begun) = gated(4);
        let mut at_work = workers.submit(Class::Bulk, 1.0, 1, Duration::ZERO).unwrap();
        assert_eq!(begun.recv().unwrap(), 1);
        let mut behind_it = workers.submit(Class::Bulk, 1.0, 2, LIMIT).unwrap();
        let mut behind_both = workers.submit(Class::Bulk, 1.0, 3, Duration::ZERO).unwrap();
        let mut behind_all = workers.submit(Class::Bulk, 1.0, 4, Duration::ZERO).unwrap();
        assert!(matches!(at_work.result().await, Err(JobError::Late)));
        // Nothing was done since it began to wait: the engine hangs.
        assert!(matches!(behind_all.result().await, Err(JobError::Late)));
        open.send(()).unwrap();
        assert_eq!(begun.recv().unwrap(), 2);
        assert!(matches!(behind_both.result().await, Err(JobError::Busy)));
        open.send(()).unwrap();
        assert_eq!(behind_it.result().await.unwrap().output, 4);
        open.send(()).unwrap();
        workers.stop();
    }
}
