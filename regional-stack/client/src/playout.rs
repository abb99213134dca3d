//! The jitter buffer of a device: it decides when the audio of a reply is played, and finds the moments in which there is none.
//!
//! Pure: time is an argument, counted from any fixed moment. The buffer holds lengths and no sound, so a caller that plays nothing, such as a
//! rehearsal, knows what a person would have heard.

use std::time::Duration;

/// The bounds of a jitter buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JitterConfig {
    /// Audio that the buffer aims at having when playback begins.
    pub target: Duration,
    /// Share of the target at which playback begins, in percent: the rest mostly comes while the first is played.
    pub start_percent: u32,
    /// Share by which an underrun raises the target, in percent. Playback then goes on when all of the target is there: with less, the next
    /// delay that is a little longer would be heard too, and two gaps disturb more than one that is longer.
    pub refill_percent: u32,
    /// Least target. The target shrinks to it while nothing is late.
    pub min: Duration,
    /// Largest target, to which underruns raise it. It bounds the wait, and not the audio: a server may send a reply faster than it is played.
    pub max: Duration,
}

impl Default for JitterConfig {
    /// Begins at 128 ms of a target of 160 ms, which stays between 40 and 240 ms.
    fn default() -> Self {
        Self {
            target: Duration::from_millis(160),
            start_percent: 80,
            refill_percent: 30,
            min: Duration::from_millis(40),
            max: Duration::from_millis(240),
        }
    }
}

/// The change of the target for calm, smaller than for an underrun: a person notices a gap, and hardly a later beginning.
const LOWERED_BY: Duration = Duration::from_millis(10);
/// So much played audio without an underrun is calm.
const CALM: Duration = Duration::from_secs(2);

/// A jitter buffer, for the replies of one session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JitterBuffer {
    config: JitterConfig,
    target: Duration,
    /// The moment up to which the fields below hold.
    at: Duration,
    state: Playback,
    buffered: Duration,
    /// Whether all audio of the reply has come.
    is_whole: bool,
    /// Audio played since the last underrun that lowered no target yet.
    calm: Duration,
    totals: Playout,
}

/// The state of playback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Playback {
    /// No reply is under way.
    Idle,
    /// Not enough audio has come to begin.
    Starting,
    /// Audio is played.
    Playing,
    /// The audio ran out in the middle of the reply.
    Refilling,
}

/// The playback so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Playout {
    /// Times that audio ran out in the middle of a reply.
    pub underruns: u32,
    /// Silence in the middle of replies.
    pub stalled: Duration,
    /// Audio that was played.
    pub played: Duration,
}

impl JitterBuffer {
    /// An empty buffer.
    pub fn new(config: JitterConfig) -> Self {
        Self {
            config,
            target: config.target.clamp(config.min, config.max),
            at: Duration::ZERO,
            state: Playback::Idle,
            buffered: Duration::ZERO,
            is_whole: false,
            calm: Duration::ZERO,
            totals: Playout::default(),
        }
    }

    /// Takes audio that has come. The first of it begins a reply.
    pub fn push(&mut self, now: Duration, length: Duration) {
        self.advance(now);
        if self.state == Playback::Idle {
            self.state = Playback::Starting;
        }
        self.buffered += length;
        self.begin_if_enough();
    }

    /// Notes that all audio of the reply has come: what is there is played, however little it is.
    pub fn finish(&mut self, now: Duration) {
        self.advance(now);
        self.is_whole = true;
        self.begin_if_enough();
        if self.buffered.is_zero() {
            self.end_reply();
        }
    }

    /// Drops what was not played, for a reply that is interrupted.
    pub fn interrupt(&mut self, now: Duration) {
        self.advance(now);
        self.buffered = Duration::ZERO;
        self.end_reply();
    }

    /// Plays up to `now`. A time before the last one changes nothing.
    pub fn advance(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.at);
        self.at = self.at.max(now);
        match self.state {
            Playback::Idle | Playback::Starting => {}
            Playback::Refilling => self.totals.stalled += passed,
            Playback::Playing => {
                let played = passed.min(self.buffered);
                self.buffered -= played;
                self.note_played(played);
                if self.buffered.is_zero() && self.is_whole {
                    self.end_reply();
                } else if passed > played {
                    self.totals.underruns += 1;
                    self.totals.stalled += passed - played;
                    self.state = Playback::Refilling;
                    let raised = self.target * (100 + self.config.refill_percent) / 100;
                    self.target = raised.min(self.config.max);
                    self.calm = Duration::ZERO;
                }
            }
        }
    }

    /// The state of playback.
    pub fn playback(&self) -> Playback {
        self.state
    }

    /// Audio that has come and was not played.
    pub fn buffered(&self) -> Duration {
        self.buffered
    }

    /// Audio that the buffer aims at now.
    pub fn target(&self) -> Duration {
        self.target
    }

    /// The playback of all replies so far.
    pub fn totals(&self) -> Playout {
        self.totals
    }

    fn note_played(&mut self, played: Duration) {
        self.totals.played += played;
        self.calm += played;
    }

    fn begin_if_enough(&mut self) {
        let enough = match self.state {
            Playback::Starting => self.target * self.config.start_percent / 100,
            Playback::Refilling => self.target,
            Playback::Idle | Playback::Playing => return,
        };
        if !self.buffered.is_zero() && (self.is_whole || self.buffered >= enough) {
            self.state = Playback::Playing;
        }
    }

    /// Ends a reply. Only now calm lowers the target: in the middle of a reply an underrun would raise it from less than what was not enough.
    fn end_reply(&mut self) {
        while self.calm >= CALM {
            self.calm -= CALM;
            self.target = self.target.saturating_sub(LOWERED_BY).max(self.config.min);
        }
        self.state = Playback::Idle;
        self.is_whole = false;
    }
}

impl Default for JitterBuffer {
    fn default() -> Self {
        Self::new(JitterConfig::default())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{Rng as _, SeedableRng as _};

    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn playback_begins_at_its_start_and_goes_on_at_its_refill() {
        let mut buffer = JitterBuffer::default();
        buffer.push(ms(0), ms(127));
        assert_eq!(buffer.playback(), Playback::Starting);
        buffer.push(ms(10), ms(1));
        assert_eq!(buffer.playback(), Playback::Playing);
        buffer.advance(ms(137));
        assert_eq!((buffer.playback(), buffer.buffered()), (Playback::Playing, ms(1)));
        // It ran out at 138 ms, so the target is 208 ms now.
        buffer.push(ms(238), ms(207));
        assert_eq!(buffer.playback(), Playback::Refilling);
        buffer.push(ms(248), ms(1));
        assert_eq!(buffer.playback(), Playback::Playing);
        let expected = Playout {
            underruns: 1,
            stalled: ms(110),
            played: ms(128),
        };
        assert_eq!((buffer.totals(), buffer.target()), (expected, ms(208)));
    }

    #[test]
    fn a_short_reply_is_played_whole_and_its_end_is_no_underrun() {
        let mut buffer = JitterBuffer::default();
        buffer.push(ms(0), ms(50));
        buffer.finish(ms(1));
        assert_eq!(buffer.playback(), Playback::Playing);
        buffer.advance(ms(500));
        assert_eq!((buffer.playback(), buffer.totals().underruns), (Playback::Idle, 0));
        assert_eq!(buffer.totals().played, ms(50));
        // The next reply begins as the first one did.
        buffer.push(ms(600), ms(100));
        assert_eq!(buffer.playback(), Playback::Starting);
        buffer.interrupt(ms(601));
        assert_eq!((buffer.playback(), buffer.buffered()), (Playback::Idle, ms(0)));
    }

    #[test]
    fn the_target_follows_the_network() {
        let mut buffer = JitterBuffer::default();
        let mut now = ms(0);
        for _ in 0..10 {
            buffer.push(now, ms(300));
            now += ms(400);
            buffer.advance(now);
        }
        assert_eq!(buffer.target(), ms(240), "underruns raise it to its bound");
        let underruns = buffer.totals().underruns;
        buffer.push(now, Duration::from_secs(60));
        buffer.finish(now);
        buffer.advance(now + Duration::from_secs(60));
        assert_eq!(
            (buffer.target(), buffer.totals().underruns),
            (ms(40), underruns),
            "calm lowers it"
        );
    }

    /// One session of a minute whose frames of 20 ms come at the pace of speech. A late frame holds up those behind it, as TCP does.
    fn underruns(seed: u64, late_percent: u32, late_by_max: Duration) -> u32 {
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let mut buffer = JitterBuffer::default();
        let mut last = ms(0);
        for frame in 0..3_000u64 {
            let is_late = random.random_ratio(late_percent, 100);
            let late_by = if is_late {
                late_by_max.mul_f64(random.random())
            } else {
                ms(0)
            };
            last = last.max(ms(20 * frame) + late_by);
            buffer.push(last, ms(20));
        }
        buffer.finish(last);
        buffer.totals().underruns
    }

    #[test]
    fn a_session_with_one_late_frame_in_twenty_has_less_than_three_underruns() {
        for seed in 0..200 {
            let seen = underruns(seed, 5, ms(200));
            assert!(seen < 3, "{seen} underruns with seed {seed}");
        }
        assert_eq!(
            (0..200).map(|seed| underruns(seed, 5, ms(100))).max(),
            Some(0),
            "less late than the start is never heard"
        );
        // The measure can see a bad network.
        assert!(underruns(1, 20, ms(2_000)) >= 3);
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Push(u64),
        Finish,
        Interrupt,
        Wait,
    }

    fn steps() -> impl Strategy<Value = Vec<(u64, Step)>> {
        let step = prop_oneof![
            8 => (0u64..400).prop_map(Step::Push),
            1 => Just(Step::Finish),
            1 => Just(Step::Interrupt),
            2 => Just(Step::Wait),
        ];
        prop::collection::vec((0u64..500, step), 0..100)
    }

    proptest! {
        #[test]
        fn no_audio_is_made_or_lost_and_time_only_goes_on(steps in steps()) {
            let mut buffer = JitterBuffer::default();
            let config = JitterConfig::default();
            let (mut now, mut pushed, mut dropped) = (ms(0), ms(0), ms(0));
            for (passed, step) in steps {
                now += ms(passed);
                let before = buffer.clone();
                buffer.advance(now);
                prop_assert!(buffer.totals().underruns - before.totals().underruns <= 1);
                prop_assert!(buffer.totals().played + buffer.totals().stalled <= now);
                match step {
                    Step::Push(length) => {
                        pushed += ms(length);
                        buffer.push(now, ms(length));
                    }
                    Step::Finish => buffer.finish(now),
                    Step::Interrupt => {
                        dropped += buffer.buffered();
                        buffer.interrupt(now);
                    }
                    Step::Wait => {}
                }
                prop_assert_eq!(buffer.totals().played + buffer.buffered() + dropped, pushed);
                prop_assert!((config.min..=config.max).contains(&buffer.target()));
                prop_assert!(buffer.playback() != Playback::Idle || buffer.buffered().is_zero());
                // To advance in two steps is to advance in one.
                let (mut once, mut twice) = (before.clone(), before);
                once.advance(now);
                twice.advance(now.saturating_sub(ms(passed / 2)));
                twice.advance(now);
                prop_assert_eq!(once, twice);
            }
        }

        #[test]
        fn a_reply_that_comes_faster_than_it_is_played_has_no_gap(lengths in prop::collection::vec(1u64..200, 1..50)) {
            let mut buffer = JitterBuffer::default();
            let mut now = ms(0);
            for length in &lengths {
                buffer.push(now, ms(*length));
                now += ms(*length / 2);
            }
            buffer.finish(now);
            buffer.advance(now + Duration::from_secs(60));
            prop_assert_eq!(buffer.totals().underruns, 0);
            prop_assert_eq!(buffer.totals().played, ms(lengths.iter().sum()));
        }
    }
}
