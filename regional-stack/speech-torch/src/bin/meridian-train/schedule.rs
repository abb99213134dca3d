//! The progress of a training run, and the learning rate that follows from it.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// The end of a run: a number of steps, a time, or the first of both.
pub(crate) struct Schedule {
    steps: Option<u64>,
    length: Option<Duration>,
    started: Instant,
    step: u64,
    rate_max: f64,
    bar: ProgressBar,
    last_checkpoint: Instant,
}

/// Number of steps with a rising rate. Before that, AdamW's second moments mean nothing.
const WARMUP_STEPS: f64 = 300.0;
/// Often enough that an interrupted run leaves a usable model.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(150);

impl Schedule {
    pub(crate) fn new(minutes: Option<f64>, steps: Option<u64>, rate_max: f64) -> Self {
        let length = minutes.map(|m| Duration::from_secs_f64(m.max(0.0) * 60.0));
        let bar = ProgressBar::new(1_000);
        let style = ProgressStyle::with_template("{bar:30} {percent}% {elapsed}/{duration} {msg}")
            .expect("the template is a constant");
        bar.set_style(style);
        Self {
            steps,
            length,
            started: Instant::now(),
            step: 0,
            rate_max,
            bar,
            last_checkpoint: Instant::now(),
        }
    }

    /// The share of the run that is done, 0..=1.
    pub(crate) fn done(&self) -> f64 {
        let by_steps = self.steps.map(|steps| self.step as f64 / steps.max(1) as f64);
        let by_time = self
            .length
            .map(|length| self.started.elapsed().as_secs_f64() / length.as_secs_f64().max(1e-9));
        by_steps.unwrap_or(0.0).max(by_time.unwrap_or(0.0)).min(1.0)
    }

    /// The rate for the next step: warm-up, then half a cosine down to a hundredth.
    pub(crate) fn next_rate(&mut self) -> f64 {
        self.step += 1;
        let warm = (self.step as f64 / WARMUP_STEPS).min(1.0);
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * self.done()).cos());
        self.rate_max * warm * cosine.max(0.01)
    }

    pub(crate) fn step(&self) -> u64 {
        self.step
    }

    pub(crate) fn minutes(&self) -> f64 {
        self.started.elapsed().as_secs_f64() / 60.0
    }

    pub(crate) fn show(&self, message: String) {
        self.bar.set_position((self.done() * 1_000.0) as u64);
        self.bar.set_message(message);
    }

    /// Prints a line that stays, even where no terminal shows the progress bar.
    pub(crate) fn report(&self, line: &str) {
        self.bar
            .suspend(|| println!("{:6.1} min  step {:6}  {line}", self.minutes(), self.step));
    }

    pub(crate) fn checkpoint_due(&mut self) -> bool {
        let due = self.last_checkpoint.elapsed() >= CHECKPOINT_EVERY;
        if due {
            self.last_checkpoint = Instant::now();
        }
        due
    }
}
