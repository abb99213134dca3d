//! The order in which callers get an engine. Pure: the threads are in `workers`.
//!
//! Nothing can interrupt a job that runs, so live callers and everybody else have threads of their own, and the operating
//! system prefers the threads of live callers. Within a lane the better class comes first, and the other class gets every few jobs one.
//!
//! Why it is so: docs/decisions/13-live-speech-has-its-own-threads.md.

use std::collections::VecDeque;

use tokio::task::futures::TaskLocalFuture;

/// The kind of caller of a job, in the order of service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub(crate) enum Class {
    /// A caller who waits for the answer: Realtime sessions, and the first sentence of a gRPC stream.
    Live,
    /// A vantage that asks whether the stack works. It measures what live callers get, so it shares their threads.
    Probe,
    /// The second copy of an upload for which a device waits longer than others.
    Hedge,
    /// Uploads and texts over HTTP.
    Bulk,
}

tokio::task_local! {
    /// The class of the session that this task runs: all jobs of a session have the same.
    static OF_TASK: Class;
}

/// Threads that work on the same classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    Live,
    Bulk,
}

impl Class {
    pub(crate) fn lane(self) -> Lane {
        match self {
            Self::Live | Self::Probe => Lane::Live,
            Self::Hedge | Self::Bulk => Lane::Bulk,
        }
    }

    /// The class of the rest of a long job, once its caller has the beginning. A vantage keeps its class, because it measures the service
    /// for live callers.
    pub(crate) fn after_the_first(self) -> Self {
        match self {
            Self::Live => Self::Bulk,
            other => other,
        }
    }

    /// Runs a session whose jobs are of this class.
    pub(crate) fn scope<F: Future>(self, session: F) -> TaskLocalFuture<Self, F> {
        OF_TASK.scope(self, session)
    }

    /// The class of the session whose task this is.
    pub(crate) fn of_task() -> Self {
        OF_TASK.try_with(|class| *class).unwrap_or(Self::Live)
    }
}

impl Lane {
    fn classes(self) -> [Class; 2] {
        match self {
            Self::Live => [Class::Live, Class::Probe],
            Self::Bulk => [Class::Hedge, Class::Bulk],
        }
    }
}

/// Limits of the jobs that wait in each lane.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) jobs_max: usize,
    /// Seconds of audio, heard or to be spoken: the cost of a job follows its length.
    pub(crate) seconds_max: f32,
}

/// After so many jobs of the better class a lane serves one of the other.
const PASSED_OVER_MAX: u32 = 4;

#[derive(Debug)]
pub(crate) struct Queue<T> {
    bounds: Bounds,
    lines: [Jobs<T>; 4],
}

#[derive(Debug)]
struct Jobs<T> {
    jobs: VecDeque<(f32, T)>,
    /// Jobs of the better class that were served while one waited here.
    passed_over: u32,
}

impl<T> Queue<T> {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            lines: std::array::from_fn(|_| Jobs {
                jobs: VecDeque::new(),
                passed_over: 0,
            }),
        }
    }

    /// Whether a job of so many seconds of audio finds room. A job that alone is longer than the bound finds room in an empty lane.
    pub(crate) fn has_room(&self, lane: Lane, seconds: f32) -> bool {
        let waiting = self.waiting(lane);
        waiting == 0 || waiting < self.bounds.jobs_max && self.seconds(lane) + seconds <= self.bounds.seconds_max
    }

    /// Queues a job, or gives it back when its lane is full.
    pub(crate) fn push(&mut self, class: Class, seconds: f32, job: T) -> Result<(), T> {
        if !self.has_room(class.lane(), seconds) {
            return Err(job);
        }
        self.lines[class as usize].jobs.push_back((seconds, job));
        Ok(())
    }

    /// Takes the next job for a thread of this lane.
    pub(crate) fn pop(&mut self, lane: Lane) -> Option<(Class, T)> {
        let [better, other] = lane.classes();
        let other_waits = !self.lines[other as usize].jobs.is_empty();
        let is_turn_of_other = self.lines[better as usize].jobs.is_empty()
            || other_waits && self.lines[other as usize].passed_over >= PASSED_OVER_MAX;
        let class = if is_turn_of_other { other } else { better };
        let (_, job) = self.lines[class as usize].jobs.pop_front()?;
        let passed_over = &mut self.lines[other as usize].passed_over;
        *passed_over = if other_waits && !is_turn_of_other {
            *passed_over + 1
        } else {
            0
        };
        Some((class, job))
    }

    /// Takes out the jobs whose callers left.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        for line in &mut self.lines {
            line.jobs.retain(|(_, job)| keep(job));
        }
    }

    pub(crate) fn clear(&mut self) {
        self.retain(|_| false);
    }

    /// Jobs waiting in a lane.
    pub(crate) fn waiting(&self, lane: Lane) -> usize {
        lane.classes()
            .iter()
            .map(|class| self.lines[*class as usize].jobs.len())
            .sum()
    }

    /// Seconds of audio waiting in a lane.
    fn seconds(&self, lane: Lane) -> f32 {
        let jobs = lane
            .classes()
            .into_iter()
            .flat_map(|class| &self.lines[class as usize].jobs);
        jobs.map(|(seconds, _)| seconds).sum()
    }
}

daemon::label_values!(Class);

#[cfg(test)]
mod tests {
    use super::{Class::*, *};

    const ROOMY: Bounds = Bounds {
        jobs_max: 100,
        seconds_max: 1_000.0,
    };

    #[test]
    fn label_values_are_in_lower_case() {
        assert_eq!(
            [Live, Probe, Hedge, Bulk].map(<&str>::from),
            ["live", "probe", "hedge", "bulk"]
        );
    }

    fn waiting(jobs: &[(Class, &'static str)]) -> Queue<&'static str> {
        let mut queue = Queue::new(ROOMY);
        for (class, job) in jobs {
            queue.push(*class, 1.0, *job).unwrap();
        }
        queue
    }

    fn served(queue: &mut Queue<&'static str>, lane: Lane) -> Vec<&'static str> {
        std::iter::from_fn(|| queue.pop(lane)).map(|(_, job)| job).collect()
    }

    #[test]
    fn the_better_class_is_next_and_within_a_class_who_came_first() {
        let mut queue = waiting(&[
            (Bulk, "upload 1"),
            (Probe, "probe"),
            (Hedge, "copy"),
            (Live, "caller 1"),
            (Bulk, "upload 2"),
            (Live, "caller 2"),
        ]);
        assert_eq!(served(&mut queue, Lane::Live), ["caller 1", "caller 2", "probe"]);
        assert_eq!(served(&mut queue, Lane::Bulk), ["copy", "upload 1", "upload 2"]);
    }

    #[test]
    fn a_thread_for_live_callers_waits_for_them_however_many_uploads_there_are() {
        let mut queue = waiting(&[(Bulk, "upload"), (Hedge, "copy")]);
        assert_eq!(queue.pop(Lane::Live), None);
        queue.push(Live, 1.0, "caller").unwrap();
        assert_eq!(queue.pop(Lane::Live), Some((Live, "caller")));
    }

    #[test]
    fn nobody_is_passed_over_for_ever() {
        for (better, other, lane) in [(Live, Probe, Lane::Live), (Hedge, Bulk, Lane::Bulk)] {
            let mut queue = Queue::new(ROOMY);
            for _ in 0..10 {
                queue.push(better, 1.0, "better").unwrap();
            }
            queue.push(other, 1.0, "other").unwrap();
            queue.push(other, 1.0, "other").unwrap();
            let order = served(&mut queue, lane);
            let places: Vec<usize> = (0..order.len()).filter(|at| order[*at] == "other").collect();
            assert_eq!(places, [4, 9], "{order:?}");
        }
    }

    #[test]
    fn who_begins_to_wait_has_been_passed_over_by_nobody() {
        let mut queue = Queue::new(ROOMY);
        for _ in 0..20 {
            queue.push(Live, 1.0, "caller").unwrap();
        }
        for _ in 0..10 {
            queue.pop(Lane::Live);
        }
        queue.push(Probe, 1.0, "probe").unwrap();
        assert_eq!(served(&mut queue, Lane::Live)[4], "probe");
    }

    #[test]
    fn a_lane_is_full_by_jobs_or_by_seconds_and_does_not_fill_the_other() {
        let mut queue = Queue::new(Bounds {
            jobs_max: 3,
            seconds_max: 60.0,
        });
        assert_eq!(
            queue.push(Bulk, 300.0, "an hour"),
            Ok(()),
            "alone it would never find room"
        );
        assert_eq!(queue.push(Bulk, 0.1, "short"), Err("short"));
        queue.pop(Lane::Bulk);
        assert_eq!(queue.push(Bulk, 40.0, "one"), Ok(()));
        assert_eq!(queue.push(Bulk, 30.0, "two"), Err("two"));
        assert_eq!(queue.push(Hedge, 20.0, "two"), Ok(()));
        assert_eq!(queue.push(Bulk, 0.0, "three"), Ok(()));
        assert_eq!(queue.push(Bulk, 0.0, "four"), Err("four"));
        assert_eq!(queue.push(Live, 25.0, "caller"), Ok(()));
        queue.retain(|job| *job != "one");
        assert_eq!(queue.push(Bulk, 30.0, "five"), Ok(()));
    }
}
