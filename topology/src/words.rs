//! The private words of session continuity, spoken between an edge and a regional stack (docs/continuity.md).
//!
//! They travel as binary messages on the session's own WebSocket, where the Realtime protocol uses text only. They are here
//! because both sides speak them and neither may depend on the other.

use std::{fmt, str::FromStr};

use crate::Component;

/// The header by which an edge offers to hear and speak these words, and a stack agrees; its value is [`VERSION`].
pub const HEADER: &str = "meridian-continuity";
/// The header by which an edge says that the first message will be a [`Resume`].
pub const RESUME_HEADER: &str = "meridian-resume";
/// The header by which an edge asks for [`Turn`]s and [`Trouble`], which older ones would take for nonsense; its value is `1`.
pub const TURNS_HEADER: &str = "meridian-turns";
/// The version of the words, as both sides write it in [`HEADER`].
pub const VERSION: &str = "1";
/// The header by which an edge asks a stack how loaded it is, with [`VERSION`] as its value, and a stack answers, with a
/// [`Load`] as text. Only a stack that was asked says [`Word::Load`].
pub const LOAD_HEADER: &str = "meridian-load";
/// Longest state of a session: it is kept for every live session, so it must stay small beside what a session costs anyway.
pub const STATE_BYTES_MAX: usize = 16 << 10;

/// What a word begins with. Its first byte is no character of UTF-8, so even a text would not be taken for a word.
const MAGIC: [u8; 5] = [0xff, b'M', b'R', b'D', 1];
const CHECKPOINT: u8 = 1;
const RESUME: u8 = 2;
const LOAD: u8 = 3;
const TURN: u8 = 4;
const TROUBLE: u8 = 5;

/// One word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word<'a> {
    /// From the stack.
    Checkpoint(Checkpoint<'a>),
    /// From the edge.
    Resume(Resume<'a>),
    /// From the stack.
    Load(Load),
    /// From the stack.
    Turn(Turn),
    /// From the stack.
    Trouble(Trouble),
}

/// Where a session stands: sent by a stack before any event that follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint<'a> {
    /// Messages of the device from this one on are needed to restore the session; the edge forgets all before.
    pub keep_from: u64,
    /// The state is that after this many messages of the device.
    pub consumed: u64,
    /// Whether a turn is in progress.
    pub busy: bool,
    /// The session, opaque and signed; empty when it can not be carried at the moment.
    pub state: &'a [u8],
}

/// A session comes from another stack: the first message after the upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resume<'a> {
    /// The message of the device that comes next; those before `consumed` only rebuild what the state leaves out.
    pub first: u64,
    /// The state is that after this many messages of the device.
    pub consumed: u64,
    /// This many events of those that followed the checkpoint reached the device.
    pub delivered: u64,
    /// Messages before `first` that would be needed are lost: the turn in progress can not be rebuilt.
    pub is_broken: bool,
    /// The state of the last checkpoint.
    pub state: &'a [u8],
}

/// How loaded a stack is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Load {
    /// Live sessions.
    pub sessions: u32,
    /// More are refused.
    pub sessions_max: u32,
    /// Jobs that wait for the speech engines, of the fullest of their queues.
    pub waiting: u32,
    /// More are refused.
    pub waiting_max: u32,
    /// Uploads in work, for people to see: sessions need none of their places, so they are no part of whether it is full. A
    /// [`Word::Load`] leaves them out.
    pub uploads: u32,
    /// More are refused. 0: not said, as by older stacks.
    pub uploads_max: u32,
}

/// Why a text does not say how loaded a stack is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a load is written {}", Load::default())]
pub struct LoadError;

impl Load {
    /// Whether this percentage of what the stack can hold is in use.
    pub fn is_full(&self, percent: u8) -> bool {
        let reaches = |used: u32, most: u32| u64::from(used) * 100 >= u64::from(most) * u64::from(percent);
        reaches(self.sessions, self.sessions_max) || reaches(self.waiting, self.waiting_max)
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            sessions,
            sessions_max,
            waiting,
            waiting_max,
            uploads,
            uploads_max,
        } = self;
        write!(
            f,
            "sessions={sessions}, sessions_max={sessions_max}, waiting={waiting}, waiting_max={waiting_max}"
        )?;
        match uploads_max {
            0 => Ok(()),
            _ => write!(f, ", uploads={uploads}, uploads_max={uploads_max}"),
        }
    }
}

/// In any order; what a later version adds is skipped.
impl FromStr for Load {
    type Err = LoadError;

    fn from_str(text: &str) -> Result<Self, LoadError> {
        let number = |name: &str| {
            let mut pairs = text.split(',').filter_map(|pair| pair.trim().split_once('='));
            let (_, number) = pairs.find(|(known, _)| *known == name).ok_or(LoadError)?;
            number.parse().map_err(|_| LoadError)
        };
        Ok(Self {
            sessions: number("sessions")?,
            sessions_max: number("sessions_max")?,
            waiting: number("waiting")?,
            waiting_max: number("waiting_max")?,
            uploads: number("uploads").unwrap_or(0),
            uploads_max: number("uploads_max").unwrap_or(0),
        })
    }
}

/// Whether an edge asks for the load, by the value of its [`LOAD_HEADER`].
pub fn asks_load(header: Option<&[u8]>) -> bool {
    header == Some(VERSION.as_bytes())
}

/// A turn is over, and this is what it came to. Turns that the user broke off are not told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Turn {
    /// How long its speech took to recognise; none when none was recognised.
    pub recognised_ms: Option<u32>,
    /// From the end of the user's speech to the first audio of the reply; none when nothing was spoken.
    pub first_audio_ms: Option<u32>,
    /// What failed, if it did.
    pub failed: Option<Component>,
}

/// What went wrong since the last time, besides turns that fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Trouble {
    /// Times the device ran out of audio to play.
    pub underruns: u32,
    /// Times an engine ran out of GPU memory.
    pub gpu_memory_errors: u32,
}

/// Why bytes are not a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WordError {
    /// A binary message of somebody else.
    #[error("not a word of session continuity")]
    Foreign,
    /// No such word in this version.
    #[error("no such word of session continuity: {0}")]
    Kind(u8),
    /// It ends too early.
    #[error("a word of session continuity is cut short")]
    Short,
    /// Its state is too long.
    #[error("a state of {0} bytes is too long")]
    TooLong(usize),
    /// It contradicts itself.
    #[error("a word of session continuity contradicts itself")]
    Contradiction,
}

/// Whether a binary message claims to be a word.
pub fn is_word(message: &[u8]) -> bool {
    message.starts_with(&MAGIC)
}

impl<'a> Word<'a> {
    /// Reads a word.
    pub fn parse(message: &'a [u8]) -> Result<Self, WordError> {
        let rest = message.strip_prefix(&MAGIC).ok_or(WordError::Foreign)?;
        let (kind, mut rest) = rest.split_first().ok_or(WordError::Short)?;
        let mut number = || -> Result<u64, WordError> {
            let (bytes, after) = rest.split_first_chunk().ok_or(WordError::Short)?;
            rest = after;
            Ok(u64::from_be_bytes(*bytes))
        };
        match *kind {
            CHECKPOINT => {
                let (keep_from, consumed) = (number()?, number()?);
                let (busy, state) = tail(rest)?;
                if keep_from > consumed {
                    return Err(WordError::Contradiction);
                }
                Ok(Self::Checkpoint(Checkpoint {
                    keep_from,
                    consumed,
                    busy,
                    state,
                }))
            }
            RESUME => {
                let (first, consumed, delivered) = (number()?, number()?, number()?);
                let (is_broken, state) = tail(rest)?;
                if first > consumed && !is_broken {
                    return Err(WordError::Contradiction);
                }
                Ok(Self::Resume(Resume {
                    first,
                    consumed,
                    delivered,
                    is_broken,
                    state,
                }))
            }
            LOAD => {
                let mut count = || u32::try_from(number()?).map_err(|_| WordError::Contradiction);
                let load = Load {
                    sessions: count()?,
                    sessions_max: count()?,
                    waiting: count()?,
                    waiting_max: count()?,
                    ..Load::default()
                };
                match tail(rest)? {
                    (false, []) => Ok(Self::Load(load)),
                    _ => Err(WordError::Contradiction),
                }
            }
            TURN => {
                let (recognised, first_audio) = (number()?, number()?);
                let (has_failed, component) = tail(rest)?;
                let failed = std::str::from_utf8(component).ok().and_then(Component::parse);
                if has_failed != failed.is_some() || (!has_failed && !component.is_empty()) {
                    return Err(WordError::Contradiction);
                }
                let time = |ms: u64| small(ms).map(|ms| (ms > 0).then_some(ms));
                Ok(Self::Turn(Turn {
                    recognised_ms: time(recognised)?,
                    first_audio_ms: time(first_audio)?,
                    failed,
                }))
            }
            TROUBLE => {
                let (underruns, errors) = (number()?, number()?);
                if tail(rest)? != (false, b"") {
                    return Err(WordError::Contradiction);
                }
                Ok(Self::Trouble(Trouble {
                    underruns: small(underruns)?,
                    gpu_memory_errors: small(errors)?,
                }))
            }
            kind => Err(WordError::Kind(kind)),
        }
    }

    /// Writes a word.
    pub fn to_bytes(self) -> Vec<u8> {
        let (kind, numbers, flag, state) = match self {
            Self::Checkpoint(word) => (CHECKPOINT, vec![word.keep_from, word.consumed], word.busy, word.state),
            Self::Resume(word) => (
                RESUME,
                vec![word.first, word.consumed, word.delivered],
                word.is_broken,
                word.state,
            ),
            Self::Load(word) => {
                let numbers = [word.sessions, word.sessions_max, word.waiting, word.waiting_max];
                (LOAD, numbers.map(u64::from).to_vec(), false, &[][..])
            }
            Self::Turn(word) => {
                let times = [word.recognised_ms, word.first_audio_ms].map(Option::unwrap_or_default);
                let failed = word.failed.map_or("", Component::as_str);
                (
                    TURN,
                    times.map(u64::from).to_vec(),
                    word.failed.is_some(),
                    failed.as_bytes(),
                )
            }
            Self::Trouble(word) => {
                let numbers = [word.underruns, word.gpu_memory_errors].map(u64::from);
                (TROUBLE, numbers.to_vec(), false, &b""[..])
            }
        };
        let mut bytes = MAGIC.to_vec();
        bytes.push(kind);
        bytes.extend(numbers.iter().flat_map(|number| number.to_be_bytes()));
        bytes.push(u8::from(flag));
        bytes.extend_from_slice(state);
        bytes
    }
}

/// A number that has 32 bits.
fn small(number: u64) -> Result<u32, WordError> {
    u32::try_from(number).map_err(|_| WordError::Contradiction)
}

/// What every word ends with: a flag, and a state.
fn tail(rest: &[u8]) -> Result<(bool, &[u8]), WordError> {
    let (flag, state) = rest.split_first().ok_or(WordError::Short)?;
    if state.len() > STATE_BYTES_MAX {
        return Err(WordError::TooLong(state.len()));
    }
    match *flag {
        0 => Ok((false, state)),
        1 => Ok((true, state)),
        _ => Err(WordError::Contradiction),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn words_are_read_as_they_were_written(
            (a, b, delivered) in any::<(u64, u64, u64)>(),
            flag in any::<bool>(),
            state in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let (keep_from, consumed) = (a.min(b), a.max(b));
            let checkpoint = Word::Checkpoint(Checkpoint { keep_from, consumed, busy: flag, state: &state });
            let resume = Word::Resume(Resume { first: keep_from, consumed, delivered, is_broken: flag, state: &state });
            for word in [checkpoint, resume] {
                let bytes = word.to_bytes();
                prop_assert!(is_word(&bytes));
                prop_assert_eq!(Word::parse(&bytes), Ok(word));
                let whole = bytes.len() - state.len();
                prop_assert!((0..whole).all(|len| Word::parse(&bytes[..len]).is_err()), "cut short");
            }
        }

        #[test]
        fn a_load_is_read_as_it_was_written_in_both_forms(
            (sessions, sessions_max, waiting, waiting_max) in any::<(u32, u32, u32, u32)>(),
            percent in 1..=100_u8,
        ) {
            let load = Load { sessions, sessions_max, waiting, waiting_max, ..Load::default() };
            let bytes = Word::Load(load).to_bytes();
            prop_assert_eq!(Word::parse(&bytes), Ok(Word::Load(load)));
            prop_assert!((0..bytes.len()).all(|len| Word::parse(&bytes[..len]).is_err()), "cut short");
            prop_assert!(Word::parse(&[&bytes[..], &[0]].concat()).is_err(), "too long");
            prop_assert_eq!(load.to_string().parse(), Ok(load));
            if sessions >= sessions_max || waiting >= waiting_max {
                prop_assert!(load.is_full(percent), "at its limit it is full, whatever the percentage");
            }
        }

        #[test]
        fn turns_are_read_as_they_were_written(
            times in any::<(u32, u32)>(),
            failed in proptest::option::of(proptest::sample::select(&Component::ALL[..])),
        ) {
            // None takes no time at all.
            let time = |ms: u32| (ms > 0).then_some(ms);
            let turn = Word::Turn(Turn {
                recognised_ms: time(times.0),
                first_audio_ms: time(times.1),
                failed,
            });
            let trouble = Word::Trouble(Trouble { underruns: times.0, gpu_memory_errors: times.1 });
            for word in [turn, trouble] {
                let bytes = word.to_bytes();
                prop_assert!(bytes.len() < 64, "it is small");
                prop_assert_eq!(Word::parse(&bytes), Ok(word));
                prop_assert!((0..bytes.len()).all(|len| Word::parse(&bytes[..len]).is_err()), "cut short");
            }
        }

        #[test]
        fn what_is_no_load_is_refused_and_never_panics(text in "\\PC{0,80}") {
            let _ = text.parse::<Load>();
        }

        #[test]
        fn what_a_peer_invents_is_refused_and_never_panics(tail in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Word::parse(&tail);
            let _ = Word::parse(&[&MAGIC[..], &tail].concat());
        }
    }

    #[test]
    fn a_load_of_a_later_version_is_understood_and_half_of_one_is_not() {
        let later = "waiting_max=4, mood=7, sessions=1, waiting=3,sessions_max=2";
        let load = later.parse::<Load>().unwrap();
        assert_eq!((load.sessions, load.sessions_max), (1, 2));
        assert!(!load.is_full(95) && load.is_full(75) && load.is_full(50));
        let uploading = Load {
            uploads: 32,
            uploads_max: 32,
            ..load
        };
        assert_eq!(uploading.to_string().parse(), Ok(uploading));
        assert!(!uploading.is_full(95), "sessions need no uploads");
        assert_eq!(load.uploads_max, 0, "an older stack does not say");
        for wrong in [
            "",
            "sessions=1",
            "sessions=-1, sessions_max=2, waiting=0, waiting_max=1",
        ] {
            assert_eq!(wrong.parse::<Load>(), Err(LoadError), "{wrong}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let word = |keep_from, consumed, state: &[u8]| {
            let busy = false;
            Word::Checkpoint(Checkpoint {
                keep_from,
                consumed,
                busy,
                state,
            })
            .to_bytes()
        };
        let turn = |number: usize, byte: u8, state: &[u8]| {
            let mut bytes = Word::Turn(Turn::default()).to_bytes();
            bytes[MAGIC.len() + 1 + number] = byte;
            bytes.extend_from_slice(state);
            bytes
        };
        let too_long = vec![0; STATE_BYTES_MAX + 1];
        let mut flagged = word(0, 0, b"");
        *flagged.last_mut().unwrap() = 2;
        for (bytes, error) in [
            (b"{}".to_vec(), WordError::Foreign),
            (MAGIC.to_vec(), WordError::Short),
            ([&MAGIC[..], &[9]].concat(), WordError::Kind(9)),
            (word(2, 1, b""), WordError::Contradiction),
            (flagged, WordError::Contradiction),
            (turn(0, 1, b""), WordError::Contradiction),
            (turn(16, 1, b""), WordError::Contradiction),
            (turn(16, 1, b"brain"), WordError::Contradiction),
            (turn(16, 0, b"asr"), WordError::Contradiction),
            (word(0, 0, &too_long), WordError::TooLong(too_long.len())),
        ] {
            assert_eq!(Word::parse(&bytes), Err(error));
        }
    }
}
