//! The forms of a checkpoint's state, and the releases that read them.
//!
//! During a rollout stacks of two releases take over each other's sessions, so a state names its form, readers skip
//! fields that they do not know, and every state must be readable to the release before. That release reads the plain form. A
//! deflated state begins with a byte that no JSON begins with. It is for states that do not fit otherwise, and for a fleet that
//! has moved on (`checkpoint_version` in stack.toml).

use std::{
    borrow::Cow,
    io::{Read as _, Write as _},
};

use dialogue::{City, DialogueState};
use flate2::{Compression, read::DeflateDecoder, write::DeflateEncoder};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// First byte of a deflated state.
const DEFLATED: u8 = 2;
/// Largest state, inflated: the longest instructions in the widest characters, and their items. Without the bound a stranger's 16 KiB
/// would inflate to gigabytes.
const PLAIN_BYTES_MAX: usize = 256 << 10;

/// The form that this release writes. Every change of the written fields counts it up.
pub(crate) const TODAY: u32 = 3;
/// Releases that read this form, or a later one, understand the states of this release.
pub(crate) const NEEDED: u32 = 1;
/// The first form with formats of audio, and with sessions that only transcribe. A stack that does not know it would take G.711 for PCM, and
/// answer whoever wants no answer.
pub(crate) const WITH_FORMATS: u32 = 3;

/// The form of the first releases, whose states name none.
pub(crate) fn first() -> u32 {
    1
}

/// Whether this release understands a state of this form, of which readers must know at least the form `needed`.
pub(crate) fn check(form: u32, needed: u32) -> Result<(), FormError> {
    if needed <= TODAY {
        return Ok(());
    }
    Err(FormError::Newer(form))
}

/// The fault of a state that cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FormError {
    #[error("the state cannot be read: {0}")]
    Unreadable(#[from] serde_json::Error),
    #[error("the state cannot be inflated: {0}")]
    Corrupt(#[from] std::io::Error),
    #[error("the state is larger than {PLAIN_BYTES_MAX} bytes when it is inflated")]
    TooLarge,
    #[error("the state counts what cannot be")]
    Impossible,
    #[error("the state has form {0}, of a newer release")]
    Newer(u32),
}

/// The packing of a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    /// Readable for the release before this one, too.
    Plain,
    Deflated,
}

impl Packing {
    /// Packs a state; `None` for one so large that no stack would unpack it.
    pub(crate) fn pack(self, plain: Vec<u8>) -> Option<Vec<u8>> {
        if plain.len() > PLAIN_BYTES_MAX {
            return None;
        }
        match self {
            Self::Plain => Some(plain),
            Self::Deflated => {
                // A state goes out before every event, so speed counts more than the last tenth of its size.
                let mut encoder = DeflateEncoder::new(vec![DEFLATED], Compression::fast());
                encoder.write_all(&plain).and_then(|()| encoder.finish()).ok()
            }
        }
    }
}

/// A state as JSON, plain or deflated before.
pub(crate) fn unpack(state: &[u8]) -> Result<Cow<'_, [u8]>, FormError> {
    let [DEFLATED, deflated @ ..] = state else {
        return Ok(Cow::Borrowed(state));
    };
    let mut plain = Vec::new();
    let bytes_max = PLAIN_BYTES_MAX as u64 + 1;
    DeflateDecoder::new(deflated).take(bytes_max).read_to_end(&mut plain)?;
    if plain.len() > PLAIN_BYTES_MAX {
        return Err(FormError::TooLarge);
    }
    Ok(Cow::Owned(plain))
}

/// A device's memory, written by a release that may know more cities than this one.
pub(crate) struct Remembered {
    state: DialogueState,
    knows_home: bool,
}

impl Remembered {
    /// The memory. The stack's own city stands for a city that this release does not know.
    pub(crate) fn at(mut self, home: City) -> DialogueState {
        if !self.knows_home {
            self.state.home = home;
        }
        self.state
    }
}

impl<'de> Deserialize<'de> for Remembered {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let mut written = Value::deserialize(from)?;
        let home = written.get("home").map(City::deserialize);
        let knows_home = matches!(home, Some(Ok(_)));
        if let (false, Some(fields)) = (knows_home, written.as_object_mut()) {
            // Any city will do: the stack sets its own.
            fields.insert("home".to_owned(), City::ALL[0].name().into());
        }
        let state = DialogueState::deserialize(written).map_err(serde::de::Error::custom)?;
        Ok(Self { state, knows_home })
    }
}

/// The exact form that the release before this one reads: it refuses fields here that it does not know.
pub(crate) mod previous {
    use std::collections::BTreeMap;

    use dialogue::{City, DialogueState, Room};
    use serde::Serialize;
    use topology::Moment;

    /// The memory of a device. That form has no zone: a city with the same zone stands for it, if there is one. It also loses the names
    /// of timers, and the rings so far.
    #[derive(Serialize)]
    pub(crate) struct Dialogue {
        home: City,
        timers: Vec<Timer>,
        alarms: Vec<Alarm>,
        lights: BTreeMap<Room, u8>,
    }

    #[derive(Serialize)]
    struct Timer {
        ends_at: Moment,
        duration_s: u32,
    }

    #[derive(Serialize)]
    struct Alarm {
        rings_at: Moment,
        hour: u8,
        minute: u8,
    }

    impl Dialogue {
        pub(crate) fn of(state: &DialogueState) -> Self {
            let zone = state.zone_in_force().map(dialogue::Zone::name);
            let mut cities = City::ALL.iter().copied();
            let there = zone.and_then(|zone| cities.find(|city| city.zone() == zone));
            let timers = state.timers.iter().map(|timer| Timer {
                ends_at: timer.ends_at,
                duration_s: timer.duration_s,
            });
            let alarms = state.alarms.iter().map(|alarm| Alarm {
                rings_at: alarm.rings_at,
                hour: alarm.hour,
                minute: alarm.minute,
            });
            Self {
                home: there.unwrap_or(state.home),
                timers: timers.collect(),
                alarms: alarms.collect(),
                lights: state.lights.clone(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_deflated_is_inflated_again_and_never_to_more_than_there_may_be() {
        let text = "{\"instructions\": \"be brief\"}".repeat(1000).into_bytes();
        let packed = Packing::Deflated.pack(text.clone()).unwrap();
        assert!(packed.len() < text.len() / 10, "{}", packed.len());
        assert_eq!(unpack(&packed).unwrap(), text);
        assert_eq!(unpack(&text).unwrap(), text, "a plain one is as it was");

        assert_eq!(Packing::Deflated.pack(vec![b' '; 64 << 20]), None);
        let mut bomb = DeflateEncoder::new(vec![DEFLATED], Compression::best());
        bomb.write_all(&vec![b' '; 64 << 20]).unwrap();
        let bomb = bomb.finish().unwrap();
        assert!(matches!(unpack(&bomb), Err(FormError::TooLarge)));
        assert!(matches!(
            unpack(&packed[..packed.len() / 2]),
            Err(FormError::Corrupt(_))
        ));
    }

    #[test]
    fn a_form_that_would_be_misunderstood_is_refused() {
        for (form, needed) in [(first(), first()), (TODAY, NEEDED), (9, TODAY)] {
            assert!(check(form, needed).is_ok(), "{form}");
        }
        assert!(matches!(check(9, TODAY + 1), Err(FormError::Newer(9))));
    }
}
