//! Engine threads: a fixed number of long-lived OS threads with one bounded queue.
//!
//! Never the async runtime's blocking pool: libtorch keeps memory per thread that ever ran a model, so threads that come
//! and go leak. A job whose caller has gone is dropped instead of run.

use std::{
    any::Any,
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use speech::SpeechError;
use tokio::sync::oneshot;

use crate::metrics::{EngineLabels, EngineName, JobLabels, JobOutcome, Metrics};

/// The threads of one engine.
pub(crate) struct Workers<I, O> {
    shared: Arc<Shared<I, O>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared<I, O> {
    engine: EngineName,
    queue: Mutex<Queue<I, O>>,
    wake: Condvar,
    waiting_max: usize,
    /// Failures since the last success.
    failures: AtomicU32,
    metrics: Metrics,
}

struct Queue<I, O> {
    waiting: VecDeque<Job<I, O>>,
    stopped: bool,
}

struct Job<I, O> {
    input: I,
    reply: oneshot::Sender<Result<O, SpeechError>>,
}

/// What one job came to.
#[derive(Debug)]
pub(crate) struct Done<O> {
    pub(crate) output: O,
    /// From submission to result, waiting included.
    pub(crate) took: Duration,
}

/// Why a job gave nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JobError {
    /// The queue is full; safe to retry.
    #[error("the speech engines of this region are busy; retry in a moment")]
    Busy,
    /// No result within the patience of the configuration; safe to retry.
    #[error("the speech engine took too long; retry in a moment")]
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
    deadline: tokio::time::Instant,
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
                // Closing makes the engine drop the job if it still waits.
                self.reply.close();
                Err(JobError::Late)
            }
        }
    }
}

/// Failures in a row after which an engine counts as broken rather than unlucky.
const FAILURES_MAX: u32 = 3;

impl<I: Send + 'static, O: Send + 'static> Workers<I, O> {
    /// Starts `threads` threads that all run `work`.
    pub(crate) fn start(
        engine: EngineName,
        threads: usize,
        waiting_max: usize,
        metrics: &Metrics,
        work: impl Fn(I) -> Result<O, SpeechError> + Send + Sync + 'static,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            engine,
            queue: Mutex::new(Queue {
                waiting: VecDeque::new(),
                stopped: false,
            }),
            wake: Condvar::new(),
            waiting_max,
            failures: AtomicU32::new(0),
            metrics: metrics.clone(),
        });
        let work = Arc::new(work);
        let threads = (0..threads)
            .map(|number| {
                let (shared, work) = (Arc::clone(&shared), Arc::clone(&work));
                let name = format!("{engine:?}-{number}");
                std::thread::Builder::new().name(name).spawn(move || shared.run(&*work))
            })
            .collect::<std::io::Result<Vec<_>>>()?;
        Ok(Self {
            shared,
            threads: Mutex::new(threads),
        })
    }

    /// Hands in a job that must be done within `patience`.
    pub(crate) fn submit(&self, input: I, patience: Duration) -> Result<Ticket<O>, JobError> {
        let (reply, receiver) = oneshot::channel();
        let since = Instant::now();
        {
            let mut queue = self.shared.lock();
            if queue.waiting.len() >= self.shared.waiting_max {
                // Callers that gave up must not keep out those who still wait.
                self.shared.drop_abandoned(&mut queue);
            }
            if queue.waiting.len() >= self.shared.waiting_max {
                self.shared.count(JobOutcome::rejected);
                return Err(JobError::Busy);
            }
            queue.waiting.push_back(Job { input, reply });
            self.shared.show_depth(&queue);
        }
        self.shared.wake.notify_one();
        Ok(Ticket {
            reply: receiver,
            since,
            deadline: tokio::time::Instant::now() + patience,
        })
    }

    /// Jobs waiting for a thread.
    pub(crate) fn waiting(&self) -> usize {
        self.shared.lock().waiting.len()
    }

    /// Whether the engine's recent jobs went well.
    pub(crate) fn is_healthy(&self) -> bool {
        self.shared.failures.load(Ordering::Relaxed) < FAILURES_MAX
    }

    /// Drops what waits, lets the threads finish what they do, and joins them. Blocks.
    pub(crate) fn stop(&self) {
        {
            let mut queue = self.shared.lock();
            queue.stopped = true;
            queue.waiting.clear();
            self.shared.show_depth(&queue);
        }
        self.shared.wake.notify_all();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // A panic in a job was caught in the thread and reported to the job's caller.
            let _ = thread.join();
        }
    }
}

impl<I, O> Shared<I, O> {
    fn run(&self, work: &(dyn Fn(I) -> Result<O, SpeechError> + Send + Sync)) {
        while let Some(job) = self.next() {
            // A bug or a poisoned model in one job must not take the thread from all the others.
            let result = catch_unwind(AssertUnwindSafe(|| work(job.input)))
                .unwrap_or_else(|panic| Err(SpeechError::of_engine(format!("panicked: {}", panic_text(&*panic)))));
            // Refusing bad input is the engine at work, not the engine broken.
            if let Err(SpeechError::Engine(_) | SpeechError::GpuMemory(_)) = result {
                self.failures.fetch_add(1, Ordering::Relaxed);
                self.count(JobOutcome::failed);
            } else {
                self.failures.store(0, Ordering::Relaxed);
                self.count(JobOutcome::done);
            }
            // An error here means that the caller left meanwhile.
            let _ = job.reply.send(result);
        }
    }

    /// The next job somebody still waits for; `None` when stopped.
    fn next(&self) -> Option<Job<I, O>> {
        let mut queue = self.lock();
        loop {
            if queue.stopped {
                return None;
            }
            while let Some(job) = queue.waiting.pop_front() {
                self.show_depth(&queue);
                if !job.reply.is_closed() {
                    return Some(job);
                }
                self.count(JobOutcome::cancelled);
            }
            queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn drop_abandoned(&self, queue: &mut Queue<I, O>) {
        queue.waiting.retain(|job| {
            let abandoned = job.reply.is_closed();
            if abandoned {
                self.count(JobOutcome::cancelled);
            }
            !abandoned
        });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Queue<I, O>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
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

    fn show_depth(&self, queue: &Queue<I, O>) {
        let depth = i64::try_from(queue.waiting.len()).unwrap_or(i64::MAX);
        self.metrics
            .queue_depth
            .get_or_create(&EngineLabels { engine: self.engine })
            .set(depth);
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

    const PATIENCE: Duration = Duration::from_secs(60);

    /// One thread that answers a job only when told to, and reports each job it begins.
    fn gated(waiting_max: usize) -> (Workers<u32, u32>, mpsc::Sender<()>, mpsc::Receiver<u32>) {
        let (open, gate) = mpsc::channel::<()>();
        let (begin, begun) = mpsc::channel();
        let gate = Mutex::new(gate);
        let metrics = Metrics::register(&mut Registry::default());
        let workers = Workers::start(EngineName::asr, 1, waiting_max, &metrics, move |job| {
            begin.send(job).unwrap();
            gate.lock().unwrap().recv().unwrap();
            Ok(job * 2)
        });
        (workers.unwrap(), open, begun)
    }

    #[tokio::test]
    async fn a_full_queue_rejects_and_an_abandoned_job_makes_room_and_is_never_run() {
        let (workers, open, begun) = gated(1);
        let mut running = workers.submit(1, PATIENCE).unwrap();
        assert_eq!(begun.recv().unwrap(), 1);
        let abandoned = workers.submit(2, PATIENCE).unwrap();
        assert!(matches!(workers.submit(3, PATIENCE), Err(JobError::Busy)));

        drop(abandoned);
        let mut waiting = workers.submit(4, PATIENCE).unwrap();
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
        let workers = Workers::start(EngineName::tts, 1, 4, &metrics, |job: u32| {
            assert!(job != 13, "unlucky");
            Ok(job)
        })
        .unwrap();
        let error = workers.submit(13, PATIENCE).unwrap().result().await.unwrap_err();
        assert!(error.to_string().contains("unlucky"), "{error}");
        assert_eq!(workers.submit(7, PATIENCE).unwrap().result().await.unwrap().output, 7);
        assert!(workers.is_healthy());
        workers.stop();
    }

    #[tokio::test]
    async fn patience_ends() {
        let (workers, open, _begun) = gated(4);
        let mut ticket = workers.submit(1, Duration::ZERO).unwrap();
        assert!(matches!(ticket.result().await, Err(JobError::Late)));
        open.send(()).unwrap();
        workers.stop();
    }
}
