//! The assistant's memory of one device between turns.
//!
//! The memory moves between regions, and stacks of two releases run side by side during a rollout. So every field added
//! later has a default and is left out while it is empty, and unknown fields are ignored.

mod zone;

use std::{collections::BTreeMap, time::Duration};

use jiff::{Timestamp, Zoned, tz::TimeZone};
use serde::{Deserialize, Deserializer, Serialize};
use topology::Moment;

pub use self::zone::{UnknownZone, Zone};
use crate::{
    command::{self, AlarmChoice, City, ClockTime, Day, DayPart, Room, TimerChoice},
    reply::Reply,
};

/// Most timers and alarms of one device. Bounded because this state travels inside a 16 KiB checkpoint.
pub const PENDING_MAX: usize = 16;

/// Time between two rings while nobody acknowledges: short enough to wake a sleeper, with time to answer between two
/// rings.
pub const RING_EVERY: Duration = Duration::from_secs(15);

/// Rings of one timer or alarm at that pace: ten minutes. After that nobody seems to be there, so it rings slowly, and
/// the assistant reports it to the next person who speaks.
pub const RINGS_MAX: u32 = 40;

/// Time between two rings after the first [`RINGS_MAX`].
pub const RING_SLOWLY_EVERY: Duration = Duration::from_secs(300);

/// "Thanks" or "done" acknowledges a ring this recent; later it is meant for something else.
const HEARD_WITHIN: Duration = Duration::from_secs(120);

/// Length of a snooze if none was said.
pub const SNOOZE: Duration = Duration::from_secs(600);

/// Longest timer, delay of an alarm and snooze: a day.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(24 * 3600);

/// A ring later than this says that it is late.
const LATE: Duration = Duration::from_secs(60);

/// Something that rang [`RINGS_MAX`] times and was due this long ago makes room for a new timer or alarm when the
/// memory is full.
const MISSED: Duration = Duration::from_secs(24 * 3600);

/// Deadline for the answer to a question: later, people have turned to something else.
const ANSWER_WITHIN: Duration = Duration::from_secs(120);

/// The memory of one device's conversation. Small and serialisable, so that it can move to another region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DialogueState {
    /// The device's city: its weather is the default, and its time zone applies while no zone is known.
    pub home: City,
    /// The device's own time zone, if it has announced one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<Zone>,
    /// The time zone of the device's home region, which applies while the device announces none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub home_zone: Option<Zone>,
    /// Timers that run or ring, in the order they were set.
    pub timers: Vec<Timer>,
    /// Alarms that are set or ring, in the order they were set.
    pub alarms: Vec<Alarm>,
    /// Brightness per room in percent, for rooms that were switched before.
    #[serde(deserialize_with = "known_rooms")]
    pub lights: BTreeMap<Room, u8>,
    /// The open question, if the assistant asked one.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "known_question"
    )]
    pub question: Option<Question>,
    /// The last turn's action in the assistant's own words, if it had one: "turn off the lights".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) done: Option<String>,
}

/// A timer that runs or rings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timer {
    /// Time at which it rings.
    pub ends_at: Moment,
    /// Its duration in seconds.
    pub duration_s: u32,
    /// Its name, if it has one: "pasta".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its rings so far; `None` while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ringing: Option<Ringing>,
}

/// An alarm that is set or rings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alarm {
    /// Time at which it rings.
    pub rings_at: Moment,
    /// The hour that it was set for, 0..=23 in the device's zone.
    pub hour: u8,
    /// The minute that it was set for.
    pub minute: u8,
    /// Its rings so far; `None` before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ringing: Option<Ringing>,
}

/// The rings of a timer or alarm that nobody has acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ringing {
    /// Time of the first ring.
    pub first_at: Moment,
    /// Time of the last ring.
    pub last_at: Moment,
    /// Number of rings.
    pub times: u32,
}

/// A timer or alarm whose time has come and that nobody has acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// A timer or an alarm.
    pub what: DueKind,
    /// Time at which it was due.
    pub at: Moment,
    /// Number of rings so far.
    pub times: u32,
}

/// The kinds of things that can be due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DueKind {
    /// A timer ran out.
    Timer,
    /// The time of an alarm came.
    Alarm,
}

/// A question of the assistant. The next turn answers or drops it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    pub(crate) asked_at: Moment,
    pub(crate) about: Topic,
}

/// The subject of a question.
///
/// `listed` has the times of the alarms or timers from which the question lets the user choose, in the order in which it named
/// them. Releases that listed all of them, in the order in which they were set, left it out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Topic {
    /// The duration of a new timer.
    TimerLength {
        #[serde(default)]
        name: Option<String>,
        /// The number of "set a timer for ten", whose unit may be the answer.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        number: Option<u32>,
    },
    /// The time of a new alarm.
    AlarmTime {
        #[serde(default)]
        day: Option<Day>,
        #[serde(default, rename = "half")]
        part: Option<DayPart>,
    },
    /// The new time of an alarm.
    AlarmMove {
        #[serde(default)]
        which: AlarmChoice,
    },
    /// The alarm to move, and its new time if it was said.
    WhichToMove {
        #[serde(default)]
        time: Option<ClockTime>,
        #[serde(default)]
        day: Option<Day>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        listed: Vec<Moment>,
    },
    /// The timer to cancel or to extend.
    WhichTimer {
        #[serde(default)]
        add_s: Option<u32>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        listed: Vec<Moment>,
    },
    /// The new duration of a timer.
    TimerChange {
        #[serde(default)]
        which: TimerChoice,
    },
    /// The timer to change, and its new duration if it was said.
    WhichToChange {
        #[serde(default)]
        duration_s: Option<u32>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        listed: Vec<Moment>,
    },
    /// The timer to shorten by so many seconds.
    WhichToShorten {
        take_s: u32,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        listed: Vec<Moment>,
    },
    /// The alarm to cancel.
    WhichAlarm {
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        listed: Vec<Moment>,
    },
    /// Confirmation of a command, in the assistant's own words.
    Confirm { command: String },
    /// A question of a newer release, whose answer this release cannot handle.
    #[serde(other)]
    Unknown,
}

/// Drops a question that only a newer release can read: the user has to ask again.
fn known_question<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Question>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Asked {
        Known(Question),
        Unknown(serde::de::IgnoredAny),
    }
    Ok(match Option::deserialize(from)? {
        Some(Asked::Known(question)) => Some(question),
        Some(Asked::Unknown(_)) | None => None,
    })
}

/// Drops rooms that only a newer release knows.
fn known_rooms<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<Room, u8>, D::Error> {
    let lights = BTreeMap::<String, u8>::deserialize(from)?;
    let known = lights.into_iter().filter_map(|(room, percent)| {
        let known = Room::ALL.iter().find(|known| known.name().replace(' ', "_") == room);
        Some((*known?, percent.min(100)))
    });
    Ok(known.collect())
}

impl Ringing {
    fn ring(ringing: Option<Self>, now: Moment) -> Self {
        let before = ringing.unwrap_or(Self {
            first_at: now,
            last_at: now,
            times: 0,
        });
        Self {
            last_at: now,
            times: before.times.saturating_add(1),
            ..before
        }
    }

    /// Whether words spoken at `now` may acknowledge the ring.
    fn is_recent(self, now: Moment) -> bool {
        now.since(self.last_at) <= HEARD_WITHIN
    }

    /// Whether it rang so often without an answer that nobody can have been there.
    fn is_missed(self, now: Moment) -> bool {
        self.times >= RINGS_MAX && !self.is_recent(now)
    }
}

/// Time of the next ring of something due at `at`.
fn next_ring(at: Moment, ringing: Option<Ringing>) -> Option<Moment> {
    match ringing {
        None | Some(Ringing { times: 0, .. }) => Some(at),
        Some(ringing) if ringing.times < RINGS_MAX => Some(ringing.last_at + RING_EVERY),
        Some(ringing) => Some(ringing.last_at + RING_SLOWLY_EVERY),
    }
}

impl Timer {
    /// "pasta timer", "timer for ten minutes".
    pub(crate) fn spoken_name(&self) -> String {
        match &self.name {
            Some(name) => format!("{name} timer"),
            None => format!("timer for {}", command::speak_duration(u64::from(self.duration_s))),
        }
    }

    fn speak(&self, now: Moment) -> String {
        let called = self.spoken_name();
        let late = now.since(self.ends_at);
        if late < LATE || self.ringing.is_some_and(|ringing| ringing.times > 0) {
            format!("your {called} is done")
        } else {
            format!("your {called} ended {} ago", speak_minutes(late))
        }
    }
}

impl Alarm {
    /// "seven thirty in the morning".
    pub(crate) fn spoken_name(&self) -> String {
        let hour = i8::try_from(self.hour).unwrap_or(0);
        format!("{} {}", self.clock(), command::part_of_day(hour))
    }

    fn clock(&self) -> String {
        let number = |number: u8| i8::try_from(number).unwrap_or(0);
        command::speak_clock(number(self.hour), number(self.minute))
    }

    fn speak(&self, now: Moment, local: &Zoned) -> String {
        let (set_for, clock) = (self.clock(), command::speak_clock(local.hour(), local.minute()));
        let late = now.since(self.rings_at);
        let rang = self.ringing.is_some_and(|ringing| ringing.times > 0);
        if late >= LATE && !rang {
            format!(
                "your alarm for {set_for} is {} late, it is {clock}",
                speak_minutes(late)
            )
        } else if set_for == clock {
            format!("good day it is {clock}")
        } else {
            format!("your alarm for {set_for}, it is {clock}")
        }
    }
}

/// A duration in words, to the minute.
fn speak_minutes(length: Duration) -> String {
    command::speak_duration(length.as_secs() / 60 * 60)
}

impl DialogueState {
    /// The memory of a new device.
    pub fn new(home: City) -> Self {
        Self {
            home,
            zone: None,
            home_zone: None,
            timers: Vec::new(),
            alarms: Vec::new(),
            lights: BTreeMap::new(),
            question: None,
            done: None,
        }
    }

    /// Sets the zone that the device announced. If a known city has that zone, the city becomes the device's home:
    /// without this, "what is the weather" after a failover answered for the city of the new region.
    pub fn set_zone(&mut self, zone: Option<Zone>) {
        self.zone = zone;
        self.move_home();
    }

    /// Sets the zone of the device's home region. It also decides the city, if the device announced no zone of its own.
    pub fn set_home_zone(&mut self, zone: Zone) {
        self.home_zone = Some(zone);
        self.move_home();
    }

    /// The zone that applies, if any is known.
    pub fn zone_in_force(&self) -> Option<&Zone> {
        self.zone.as_ref().or(self.home_zone.as_ref())
    }

    fn move_home(&mut self) {
        let name = self.zone_in_force().map(Zone::name);
        if let Some(city) = City::ALL.iter().find(|city| Some(city.zone()) == name) {
            self.home = *city;
        }
    }

    /// The local time of the device.
    pub(crate) fn local(&self, now: Moment) -> Zoned {
        let zone = self.zone_in_force().and_then(|zone| TimeZone::get(zone.name()).ok());
        match zone {
            Some(zone) => instant(now).to_zoned(zone),
            None => local(self.home, now),
        }
    }

    /// Number of timers and alarms, ringing ones included.
    pub fn pending(&self) -> usize {
        self.timers.len() + self.alarms.len()
    }

    /// Time at which [`DialogueState::ring`] next has something to say: a first ring or a repeated one.
    pub fn next_ring(&self) -> Option<Moment> {
        let timers = self.timers.iter().map(|timer| (timer.ends_at, timer.ringing));
        let alarms = self.alarms.iter().map(|alarm| (alarm.rings_at, alarm.ringing));
        timers
            .chain(alarms)
            .filter_map(|(at, ringing)| next_ring(at, ringing))
            .min()
    }

    /// Timers and alarms that are due and not acknowledged, whether they rang or not.
    pub fn due(&self, now: Moment) -> Vec<Due> {
        let timers = self
            .timers
            .iter()
            .map(|timer| (DueKind::Timer, timer.ends_at, timer.ringing));
        let alarms = self
            .alarms
            .iter()
            .map(|alarm| (DueKind::Alarm, alarm.rings_at, alarm.ringing));
        timers
            .chain(alarms)
            .filter(|(_, at, _)| *at <= now)
            .map(|(what, at, ringing)| Due {
                what,
                at,
                times: ringing.map_or(0, |ringing| ringing.times),
            })
            .collect()
    }

    /// The sentence for everything that is due, with its delay; `None` while nothing rings now. Counts as a ring.
    /// Everything due stays in the memory until it is acknowledged.
    pub fn ring(&mut self, now: Moment) -> Option<Reply> {
        if self.next_ring().is_none_or(|at| at > now) {
            return None;
        }
        let local = self.local(now);
        let mut said = Vec::new();
        // Everything that is due rings along: one sentence for all, instead of one after the other.
        for timer in self.timers.iter_mut().filter(|timer| timer.ends_at <= now) {
            said.push(timer.speak(now));
            timer.ringing = Some(Ringing::ring(timer.ringing, now));
        }
        for alarm in self.alarms.iter_mut().filter(|alarm| alarm.rings_at <= now) {
            said.push(alarm.speak(now, &local));
            alarm.ringing = Some(Ringing::ring(alarm.ringing, now));
        }
        (!said.is_empty()).then(|| Reply {
            text: said.join(" and "),
            acted: false,
        })
    }

    /// Whether something rang so recently that words spoken at `now` may be meant for it.
    pub fn is_ringing(&self, now: Moment) -> bool {
        self.ringing().any(|ringing| ringing.is_recent(now))
    }

    /// Whether something rang after the open question was asked.
    pub(crate) fn rang_since_asked(&self) -> bool {
        let asked_at = self.question.as_ref().map(|question| question.asked_at);
        asked_at.is_some_and(|asked_at| self.ringing().any(|ringing| ringing.last_at > asked_at))
    }

    fn ringing(&self) -> impl Iterator<Item = Ringing> {
        let timers = self.timers.iter().map(|timer| timer.ringing);
        timers.chain(self.alarms.iter().map(|alarm| alarm.ringing)).flatten()
    }

    /// Removes everything that rang recently, because somebody spoke. Older rings stay. Returns the number removed.
    pub(crate) fn acknowledge_recent(&mut self, now: Moment) -> usize {
        let before = self.pending();
        let stays = |ringing: Option<Ringing>| ringing.is_none_or(|ringing| !ringing.is_recent(now));
        self.timers.retain(|timer| stays(timer.ringing));
        self.alarms.retain(|alarm| stays(alarm.ringing));
        before - self.pending()
    }

    /// The announcement of missed timers and alarms, for the person who speaks now: "a missed alarm for seven o clock
    /// in the morning". Counts as a ring; they ring on until acknowledged.
    pub(crate) fn announce_missed(&mut self, now: Moment) -> Vec<String> {
        let is_missed = |ringing: Option<Ringing>| ringing.is_some_and(|ringing| ringing.is_missed(now));
        let mut missed = Vec::new();
        for timer in self.timers.iter_mut().filter(|timer| is_missed(timer.ringing)) {
            missed.push(format!("a missed {}", timer.spoken_name()));
            timer.ringing = Some(Ringing::ring(timer.ringing, now));
        }
        for alarm in self.alarms.iter_mut().filter(|alarm| is_missed(alarm.ringing)) {
            missed.push(format!("a missed alarm for {}", alarm.spoken_name()));
            alarm.ringing = Some(Ringing::ring(alarm.ringing, now));
        }
        missed
    }

    /// Removes everything that rings, because somebody heard it. Due things that have not rung yet stay. Returns the
    /// number removed.
    pub fn acknowledge(&mut self) -> usize {
        let before = self.pending();
        self.timers.retain(|timer| timer.ringing.is_none());
        self.alarms.retain(|alarm| alarm.ringing.is_none());
        before - self.pending()
    }

    /// Removes the timers that ring; alarms ring on. Returns the number removed.
    pub fn acknowledge_timers(&mut self) -> usize {
        let before = self.timers.len();
        self.timers.retain(|timer| timer.ringing.is_none());
        before - self.timers.len()
    }

    /// Silences everything that rings for `length`. Returns the number silenced.
    pub fn snooze(&mut self, length: Duration, now: Moment) -> usize {
        let mut snoozed = 0;
        for timer in self.timers.iter_mut().filter(|timer| timer.ringing.is_some()) {
            (timer.ends_at, timer.ringing) = (now + length, None);
            snoozed += 1;
        }
        for alarm in self.alarms.iter_mut().filter(|alarm| alarm.ringing.is_some()) {
            (alarm.rings_at, alarm.ringing) = (now + length, None);
            snoozed += 1;
        }
        snoozed
    }

    /// Makes everything ring anew, with its delay: the device lost its connection, so nobody can have heard the rings.
    pub fn ring_again(&mut self) {
        for timer in &mut self.timers {
            timer.ringing = None;
        }
        for alarm in &mut self.alarms {
            alarm.ringing = None;
        }
    }

    /// Drops missed timers and alarms older than [`MISSED`] if the memory is full. Returns whether one more fits.
    pub(crate) fn drop_missed(&mut self, now: Moment) -> bool {
        if self.pending() >= PENDING_MAX {
            let missed = |at: Moment, ringing: Option<Ringing>| {
                ringing.is_some_and(|ringing| ringing.times >= RINGS_MAX) && now.since(at) >= MISSED
            };
            self.timers.retain(|timer| !missed(timer.ends_at, timer.ringing));
            self.alarms.retain(|alarm| !missed(alarm.rings_at, alarm.ringing));
        }
        self.pending() < PENDING_MAX
    }

    /// Remembers a question and the time of asking.
    pub(crate) fn ask(&mut self, about: Topic, now: Moment) {
        self.question = Some(Question { asked_at: now, about });
    }

    /// The question that an utterance at `now` may answer.
    pub(crate) fn asked(&self, now: Moment) -> Option<&Topic> {
        let question = self.question.as_ref()?;
        (now.since(question.asked_at) <= ANSWER_WITHIN).then_some(&question.about)
    }
}

/// The local time in `city`.
pub(crate) fn local(city: City, now: Moment) -> Zoned {
    // Only a broken build lacks a city's zone; a test looks every city up.
    instant(now).to_zoned(TimeZone::get(city.zone()).unwrap_or(TimeZone::UTC))
}

/// `moment` in the time zone of `local`.
pub(crate) fn in_zone(moment: Moment, local: &Zoned) -> Zoned {
    instant(moment).to_zoned(local.time_zone().clone())
}

fn instant(now: Moment) -> Timestamp {
    let instant = i64::try_from(now.0).ok();
    instant
        .and_then(|ms| Timestamp::from_millisecond(ms).ok())
        .unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests;
