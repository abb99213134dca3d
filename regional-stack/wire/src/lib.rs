//! The private messages of session continuity between an edge and a regional stack (docs/continuity.md).
//!
//! They travel as binary messages on the session's own WebSocket, on which the Realtime protocol uses text only. They
//! are defined here because both sides speak them and neither may depend on the other.
//!
//! The codec is hand-written and not prost's: releases that run speak these bytes, their first byte begins no text, and a state of up to
//! 16 KiB, which goes out before most events, is borrowed from the frame and never copied. Proptest and a fuzz target read it.

mod texts;

use std::{fmt, str::FromStr};

use topology::{Component, Moment};

/// Header by which an edge offers these messages and a stack accepts the offer. Its value is [`VERSION`].
pub const HEADER: &str = "meridian-continuity";
/// Header by which an edge announces that its first message will be a [`Resume`].
pub const RESUME_HEADER: &str = "meridian-resume";
/// Header by which an edge asks for [`Turn`] and [`Trouble`] messages, which older edges would refuse as nonsense. Its
/// value is `1`.
pub const TURNS_HEADER: &str = "meridian-turns";
/// Header by which an edge sets the id of the new session: a token that leads the device back to the same stack.
pub const SESSION_HEADER: &str = "meridian-session-token";
/// Header by which an edge says how the stack must treat the session that a device asks to resume: a [`Resumes`].
pub const RESUMES_HEADER: &str = "meridian-resumes";
/// Header with the newest known revision of a session, in milliseconds as in [`Moment`]. An edge that looks for a
/// session sends the revision it knows of; a stack that declines ([`SESSION_UNKNOWN`]) answers with the revision it
/// remembers. With this header a stack accepts the device only if its memory is newer and it has no sign that the
/// session went on elsewhere.
pub const REVISION_HEADER: &str = "meridian-revision";
/// Header by which an edge names the time zone of the session's home region, an IANA name, for devices that name none. After a
/// failover another region serves the session, and its clock is that of another coast.
pub const HOME_ZONE_HEADER: &str = "meridian-home-zone";
/// Version of these messages, as both sides write it in [`HEADER`].
pub const VERSION: &str = "1";
/// Header by which an edge asks a stack for its load, with [`VERSION`] as the value. The stack answers with a [`Load`]
/// as text. A stack sends [`Message::Load`] only after it was asked.
pub const LOAD_HEADER: &str = "meridian-load";
/// Close code that an edge sends to a stack after the session moved to another stack. The stack then forgets the
/// session. No device sends this number by chance.
pub const MOVED: u16 = 4743;
/// The tenant of the device, by the edge's word. No device can say it.
pub const TENANT_HEADER: &str = "meridian-tenant";
/// Path to which an edge posts the last checkpoint of a session whose device left, at another stack of the session's region and at one
/// of another region.
/// No edge passes it on for a device.
pub const COPY_PATH: &str = "/meridian/session-copies";
/// Header by which an edge marks the second copy of a hedged request. A stack serves it behind live sessions. Its value
/// is `1`.
pub const COPY_HEADER: &str = "meridian-copy";
/// `User-Agent` of vantages that probe a stack. A stack serves probes behind live sessions.
pub const PROBE_AGENT: &str = "meridian-probe";
/// Largest state of a session, in bytes. An edge stores one state for every live session, so a state must stay small
/// beside the other memory of a session.
pub const STATE_BYTES_MAX: usize = 16 << 10;

/// First bytes of every message. The first byte never occurs in UTF-8, so that no text can look like one of these
/// messages.
const MAGIC: [u8; 5] = [0xff, b'M', b'R', b'D', 1];
const CHECKPOINT: u8 = 1;
const RESUME: u8 = 2;
const LOAD: u8 = 3;
const TURN: u8 = 4;
const TROUBLE: u8 = 5;

/// One message of session continuity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    /// The stack reports how far it has processed the session.
    Checkpoint(Checkpoint<'a>),
    /// The edge hands over a session from another stack.
    Resume(Resume<'a>),
    /// The stack reports its load.
    Load(Load),
    /// The stack reports a finished turn.
    Turn(Turn),
    /// The stack reports faults outside of turns.
    Trouble(Trouble),
}

/// The point up to which a stack has processed a session. The stack sends it before any event that follows from that
/// state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint<'a> {
    /// Index of the first device message that a restore of the session needs. The edge forgets all earlier ones.
    pub keep_from: u64,
    /// Number of device messages that the state includes.
    pub consumed: u64,
    /// Whether a turn is in progress.
    pub busy: bool,
    /// The session, opaque and signed. Empty when the session cannot move to another stack at the moment.
    pub state: &'a [u8],
}

/// A session from another stack: the first message after the upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resume<'a> {
    /// Index of the device message that comes next. Messages before `consumed` only rebuild details that the state
    /// leaves out.
    pub first: u64,
    /// Number of device messages that the state includes.
    pub consumed: u64,
    /// Number of events after the checkpoint that reached the device.
    pub delivered: u64,
    /// Whether messages before `first` that the restore needs are lost. If so, the turn in progress cannot be rebuilt.
    pub is_broken: bool,
    /// The state of the last checkpoint.
    pub state: &'a [u8],
}

/// The rule for the session that a device asks to resume, sent to the stack as the value of [`RESUMES_HEADER`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resumes {
    /// The stack resumes the session if it remembers it. Otherwise it declines (404, [`SESSION_UNKNOWN`]) and the edge
    /// asks another stack.
    IfKnown,
    /// The first message is a [`Resume`] with the last checkpoint of the session. A stack that accepts answers with the
    /// same value, and starts a session with the history in that state.
    State,
    /// The stack starts a new session and tells the device the reason.
    Lost(Lost),
}

/// The reason for which a session cannot be resumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::Display, strum::EnumString)]
#[strum(serialize_all = "kebab-case")]
pub enum Lost {
    /// None of the stacks that the edge asked remembers the session.
    Unknown,
    /// The stack that remembers the session is unreachable or serves nobody.
    Unreachable,
    /// The token of the session is too old.
    Expired,
    /// The token of the session does not come from this deployment.
    Forged,
}

/// Length of the authentication code, which stands before the time of sealing in a sealed state.
const SEAL_CODE_BYTES: usize = 32;

/// The moment at which a stack sealed this state, as the state claims. Readable without the key, but not verified.
pub fn sealed_at(state: &[u8]) -> Option<Moment> {
    let (sealed_at, _) = state.get(SEAL_CODE_BYTES..)?.split_first_chunk()?;
    Some(Moment(u64::from_be_bytes(*sealed_at)))
}

/// Error code with which a stack declines to resume a session that it does not remember.
pub const SESSION_UNKNOWN: &str = "session_unknown";

impl fmt::Display for Resumes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IfKnown => f.write_str("if-known"),
            Self::State => f.write_str("state"),
            Self::Lost(lost) => write!(f, "no; {lost}"),
        }
    }
}

impl Resumes {
    /// Reads the header. A reason that this version does not know becomes [`Lost::Unknown`]. Returns `None` for any
    /// other text.
    pub fn parse(header: &[u8]) -> Option<Self> {
        match header {
            b"if-known" => Some(Self::IfKnown),
            b"state" => Some(Self::State),
            other => {
                let reason = other.strip_prefix(b"no; ")?;
                let known = std::str::from_utf8(reason).ok().and_then(|name| name.parse().ok());
                Some(Self::Lost(known.unwrap_or(Lost::Unknown)))
            }
        }
    }
}

/// The load of a stack.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Load {
    /// Number of live sessions.
    pub sessions: u32,
    /// Most live sessions; the stack refuses more.
    pub sessions_max: u32,
    /// Jobs of live sessions that wait for a speech engine, in the fullest queue.
    pub waiting: u32,
    /// Most waiting jobs; the stack refuses more.
    pub waiting_max: u32,
    /// Uploads that the stack is processing, shown to operators. Uploads and sessions do not share slots, so uploads
    /// have no part in [`Load::is_full`]. A [`Message::Load`] leaves them out.
    pub uploads: u32,
    /// Most uploads; the stack refuses more. 0: not reported, as by older stacks.
    pub uploads_max: u32,
}

/// A text that is not a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", texts::not_a_load())]
pub struct LoadError;

impl Load {
    /// Whether sessions or waiting jobs have reached this percentage of their limit.
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

/// The pairs may come in any order. Names that this version does not know are skipped.
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

/// Whether the value of [`LOAD_HEADER`] asks for the load.
pub fn wants_load(header: Option<&[u8]>) -> bool {
    header == Some(VERSION.as_bytes())
}

/// The outcome of a finished turn. Turns that the user interrupted are not reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Turn {
    /// Time that recognition of the user's speech took. `None`: nothing was recognised.
    pub recognised_ms: Option<u32>,
    /// Time from the end of the user's speech to the first audio of the reply. `None`: the stack spoke nothing.
    pub first_audio_ms: Option<u32>,
    /// The component that failed. `None`: the turn succeeded.
    pub failed: Option<Component>,
}

/// Faults since the previous report, except failed turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Trouble {
    /// The number of times that the device ran out of audio to play.
    pub underruns: u32,
    /// The number of times that an engine ran out of GPU memory.
    pub gpu_memory_errors: u32,
}

/// The reason for which bytes are not a message of session continuity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// The message does not begin with the bytes of this protocol.
    #[error("{}", texts::FOREIGN)]
    Foreign,
    /// This version has no message of that kind.
    #[error("{}", texts::unknown_kind(*.0))]
    Kind(u8),
    /// The message ends too early.
    #[error("{}", texts::SHORT)]
    Short,
    /// The state is longer than [`STATE_BYTES_MAX`].
    #[error("{}", texts::state_too_long(*.0))]
    TooLong(usize),
    /// The fields of the message contradict each other.
    #[error("{}", texts::CONTRADICTION)]
    Contradiction,
}

/// Whether a binary message begins with the bytes of this protocol.
pub fn is_message(message: &[u8]) -> bool {
    message.starts_with(&MAGIC)
}

impl<'a> Message<'a> {
    /// Reads a message. The state borrows from `message`.
    pub fn parse(message: &'a [u8]) -> Result<Self, MessageError> {
        let rest = message.strip_prefix(&MAGIC).ok_or(MessageError::Foreign)?;
        let (kind, mut rest) = rest.split_first().ok_or(MessageError::Short)?;
        let mut number = || -> Result<u64, MessageError> {
            let (bytes, after) = rest.split_first_chunk().ok_or(MessageError::Short)?;
            rest = after;
            Ok(u64::from_be_bytes(*bytes))
        };
        match *kind {
            CHECKPOINT => {
                let (keep_from, consumed) = (number()?, number()?);
                let (busy, state) = tail(rest)?;
                if keep_from > consumed {
                    return Err(MessageError::Contradiction);
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
                    return Err(MessageError::Contradiction);
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
                let mut count = || u32::try_from(number()?).map_err(|_| MessageError::Contradiction);
                let load = Load {
                    sessions: count()?,
                    sessions_max: count()?,
                    waiting: count()?,
                    waiting_max: count()?,
                    ..Load::default()
                };
                match tail(rest)? {
                    (false, []) => Ok(Self::Load(load)),
                    _ => Err(MessageError::Contradiction),
                }
            }
            TURN => {
                let (recognised, first_audio) = (number()?, number()?);
                let (has_failed, component) = tail(rest)?;
                let failed = std::str::from_utf8(component).ok().and_then(Component::parse);
                if has_failed != failed.is_some() || (!has_failed && !component.is_empty()) {
                    return Err(MessageError::Contradiction);
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
                    return Err(MessageError::Contradiction);
                }
                Ok(Self::Trouble(Trouble {
                    underruns: small(underruns)?,
                    gpu_memory_errors: small(errors)?,
                }))
            }
            kind => Err(MessageError::Kind(kind)),
        }
    }

    /// The bytes of the message, which [`Message::parse`] reads.
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

/// A number that fits into 32 bits.
fn small(number: u64) -> Result<u32, MessageError> {
    u32::try_from(number).map_err(|_| MessageError::Contradiction)
}

/// The end of every message: a flag of one byte, then the state.
fn tail(rest: &[u8]) -> Result<(bool, &[u8]), MessageError> {
    let (flag, state) = rest.split_first().ok_or(MessageError::Short)?;
    if state.len() > STATE_BYTES_MAX {
        return Err(MessageError::TooLong(state.len()));
    }
    match *flag {
        0 => Ok((false, state)),
        1 => Ok((true, state)),
        _ => Err(MessageError::Contradiction),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_becomes_of_a_session_is_read_as_it_was_written() {
        for (rule, header) in [
            (Resumes::IfKnown, "if-known"),
            (Resumes::State, "state"),
            (Resumes::Lost(Lost::Unknown), "no; unknown"),
            (Resumes::Lost(Lost::Unreachable), "no; unreachable"),
            (Resumes::Lost(Lost::Expired), "no; expired"),
            (Resumes::Lost(Lost::Forged), "no; forged"),
        ] {
            assert_eq!(
                (rule.to_string().as_str(), Resumes::parse(header.as_bytes())),
                (header, Some(rule))
            );
        }
        assert_eq!(Resumes::parse(b"no; eaten"), Some(Resumes::Lost(Lost::Unknown)));
        assert_eq!(Resumes::parse(b"1"), None);
    }
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn words_are_read_as_they_were_written(
            (a, b, delivered) in any::<(u64, u64, u64)>(),
            flag in any::<bool>(),
            state in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let (keep_from, consumed) = (a.min(b), a.max(b));
            let checkpoint = Message::Checkpoint(Checkpoint { keep_from, consumed, busy: flag, state: &state });
            let resume = Message::Resume(Resume { first: keep_from, consumed, delivered, is_broken: flag, state: &state });
            for word in [checkpoint, resume] {
                let bytes = word.to_bytes();
                prop_assert!(is_message(&bytes));
                prop_assert_eq!(Message::parse(&bytes), Ok(word));
                let whole = bytes.len() - state.len();
                prop_assert!((0..whole).all(|len| Message::parse(&bytes[..len]).is_err()), "cut short");
            }
        }

        #[test]
        fn a_load_is_read_as_it_was_written_in_both_forms(
            (sessions, sessions_max, waiting, waiting_max) in any::<(u32, u32, u32, u32)>(),
            percent in 1..=100_u8,
        ) {
            let load = Load { sessions, sessions_max, waiting, waiting_max, ..Load::default() };
            let bytes = Message::Load(load).to_bytes();
            prop_assert_eq!(Message::parse(&bytes), Ok(Message::Load(load)));
            prop_assert!((0..bytes.len()).all(|len| Message::parse(&bytes[..len]).is_err()), "cut short");
            prop_assert!(Message::parse(&[&bytes[..], &[0]].concat()).is_err(), "too long");
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
            // On the wire 0 ms means `None`.
            let time = |ms: u32| (ms > 0).then_some(ms);
            let turn = Message::Turn(Turn {
                recognised_ms: time(times.0),
                first_audio_ms: time(times.1),
                failed,
            });
            let trouble = Message::Trouble(Trouble { underruns: times.0, gpu_memory_errors: times.1 });
            for word in [turn, trouble] {
                let bytes = word.to_bytes();
                prop_assert!(bytes.len() < 64, "it is small");
                prop_assert_eq!(Message::parse(&bytes), Ok(word));
                prop_assert!((0..bytes.len()).all(|len| Message::parse(&bytes[..len]).is_err()), "cut short");
            }
        }

        #[test]
        fn what_is_no_load_is_refused_and_never_panics(text in "\\PC{0,80}") {
            let _ = text.parse::<Load>();
        }

        #[test]
        fn what_a_peer_invents_is_refused_and_never_panics(tail in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Message::parse(&tail);
            let _ = Message::parse(&[&MAGIC[..], &tail].concat());
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
            Message::Checkpoint(Checkpoint {
                keep_from,
                consumed,
                busy,
                state,
            })
            .to_bytes()
        };
        let turn = |number: usize, byte: u8, state: &[u8]| {
            let mut bytes = Message::Turn(Turn::default()).to_bytes();
            bytes[MAGIC.len() + 1 + number] = byte;
            bytes.extend_from_slice(state);
            bytes
        };
        let too_long = vec![0; STATE_BYTES_MAX + 1];
        let mut flagged = word(0, 0, b"");
        *flagged.last_mut().unwrap() = 2;
        for (bytes, error) in [
            (b"{}".to_vec(), MessageError::Foreign),
            (MAGIC.to_vec(), MessageError::Short),
            ([&MAGIC[..], &[9]].concat(), MessageError::Kind(9)),
            (word(2, 1, b""), MessageError::Contradiction),
            (flagged, MessageError::Contradiction),
            (turn(0, 1, b""), MessageError::Contradiction),
            (turn(16, 1, b""), MessageError::Contradiction),
            (turn(16, 1, b"brain"), MessageError::Contradiction),
            (turn(16, 0, b"asr"), MessageError::Contradiction),
            (word(0, 0, &too_long), MessageError::TooLong(too_long.len())),
        ] {
            assert_eq!(Message::parse(&bytes), Err(error));
        }
    }
}
