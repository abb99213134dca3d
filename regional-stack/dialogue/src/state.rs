//! What the assistant remembers of one device between turns.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use topology::Moment;

use crate::{
    command::{self, City, Room},
    skills::Reply,
};

/// Timers and alarms one device may have running; a bound because this state travels inside a 16 KiB checkpoint.
pub const PENDING_MAX: usize = 16;

/// The memory of one device's conversation. Small and serialisable, so that it can move to another region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DialogueState {
    /// Where the device is: its time zone, and the city of "what is the weather".
    pub home: City,
    /// Running timers, in the order they were set.
    pub timers: Vec<Timer>,
    /// Alarms to come, in the order they were set.
    pub alarms: Vec<Alarm>,
    /// Brightness per room in percent, for rooms that were ever switched.
    pub lights: BTreeMap<Room, u8>,
}

/// A running timer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timer {
    /// When it rings.
    pub ends_at: Moment,
    /// How long it was set for, in seconds.
    pub duration_s: u32,
}

/// An alarm to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alarm {
    /// When it rings.
    pub rings_at: Moment,
    /// The hour it was set for, 0..=23 in the device's zone.
    pub hour: u8,
    /// The minute it was set for.
    pub minute: u8,
}

impl DialogueState {
    /// A device that has said nothing yet.
    pub fn new(home: City) -> Self {
        Self {
            home,
            timers: Vec::new(),
            alarms: Vec::new(),
            lights: BTreeMap::new(),
        }
    }

    /// When the next timer or alarm rings.
    pub fn next_ring(&self) -> Option<Moment> {
        self.timers
            .iter()
            .map(|timer| timer.ends_at)
            .chain(self.alarms.iter().map(|alarm| alarm.rings_at))
            .min()
    }

    /// Takes what is due out of the memory and says so; `None` while nothing is due.
    pub fn ring(&mut self, now: Moment) -> Option<Reply> {
        let mut said = Vec::new();
        self.timers.retain(|timer| {
            let due = timer.ends_at <= now;
            if due {
                let length = command::speak_duration(u64::from(timer.duration_s));
                said.push(format!("your timer for {length} is done"));
            }
            !due
        });
        self.alarms.retain(|alarm| {
            let due = alarm.rings_at <= now;
            if due {
                let time = command::speak_clock(
                    i8::try_from(alarm.hour).unwrap_or(0),
                    i8::try_from(alarm.minute).unwrap_or(0),
                );
                said.push(format!("good day it is {time}"));
            }
            !due
        });
        (!said.is_empty()).then(|| Reply {
            text: said.join(" and "),
        })
    }

    /// Time left of the timer that rings first.
    pub(crate) fn timer_left(&self, now: Moment) -> Option<Duration> {
        self.timers.iter().map(|timer| timer.ends_at.since(now)).min()
    }
}
