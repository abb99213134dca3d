//! The ends of a session, and the effect of each on the device, the region and the session.

use std::io;

use routing::continuity::LeaveReason;
use tungstenite::protocol::frame::coding::CloseCode;

use crate::{
    fault::{Cause, Event},
    session::frames::{CANNOT_RESUME, Violation},
    session::registry::Leave,
    texts,
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    DeviceClosed,
    RegionClosed,
    DeviceLost,
    /// The device sent nothing, not even a heartbeat.
    DeviceSilent,
    /// The device takes the bytes that wait for it too slowly, or not at all.
    DeviceSlow,
    /// The device sends a frame that it began too slowly.
    DeviceTrickles,
    /// The device broke the WebSocket protocol, or sent a frame that is too long.
    DeviceViolation(Violation),
    /// The region's connection broke, or the region broke the WebSocket protocol.
    RegionLost(Lost),
    /// The region neither reads nor sends, although it owes one of them.
    RegionSilent,
    /// The region announced by its Close frame that it stops.
    RegionClosing,
    /// The region does not resume a session of another region.
    RegionDeclined(String),
    /// The plan wants the session elsewhere.
    Planned(LeaveReason),
    EdgeDraining,
    /// The edge has not enough memory.
    EdgeOverloaded,
    /// The operator revoked the device's credential.
    Revoked,
    /// The devices of the tenant used their bytes of the day.
    QuotaUsed,
}

impl End {
    /// The end of a session that the edge asked to leave.
    pub fn of(leave: Leave) -> Self {
        match leave {
            Leave::Draining => Self::EdgeDraining,
            Leave::Overloaded => Self::EdgeOverloaded,
            Leave::Revoked => Self::Revoked,
            Leave::QuotaUsed => Self::QuotaUsed,
        }
    }

    /// The end's name in metrics and logs.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::DeviceClosed => "device-closed",
            Self::RegionClosed => "region-closed",
            Self::DeviceLost => "device-lost",
            Self::DeviceSilent => "device-silent",
            Self::DeviceSlow => "device-slow",
            Self::DeviceTrickles => "device-trickles",
            Self::DeviceViolation(_) => "device-violation",
            Self::RegionLost(_) => "region-lost",
            Self::RegionSilent => "region-silent",
            Self::RegionClosing => "region-closing",
            Self::RegionDeclined(_) => "region-declined",
            Self::Planned(_) => "planned",
            Self::EdgeDraining => "edge-draining",
            Self::EdgeOverloaded => "edge-overloaded",
            Self::Revoked => "revoked",
            Self::QuotaUsed => "quota-used",
        }
    }

    /// The reason for which the session may go on in another region.
    pub fn why_to_move(&self) -> Option<LeaveReason> {
        match self {
            Self::RegionLost(_) => Some(LeaveReason::Lost),
            Self::RegionSilent => Some(LeaveReason::Silent),
            Self::RegionClosing => Some(LeaveReason::Closing),
            Self::RegionDeclined(_) => Some(LeaveReason::Declined),
            Self::Planned(why) => Some(*why),
            _ => None,
        }
    }

    /// Whether the edge ends the session because the device is slow, silent, or breaks the protocol.
    pub fn is_of_device(&self) -> bool {
        matches!(
            self,
            Self::DeviceSlow | Self::DeviceTrickles | Self::DeviceSilent | Self::DeviceViolation(_)
        )
    }

    /// The code and the reason of the Close frame for the device. `None` if the device closed the session or left, or has the
    /// Close frame of the region.
    pub(super) fn close_reason(&self, region: &str) -> Option<(CloseCode, String)> {
        let (code, reason) = match self {
            Self::RegionLost(_)
            | Self::RegionSilent
            | Self::RegionClosing
            | Self::RegionDeclined(_)
            | Self::Planned(_) => (CloseCode::Restart, texts::region_lost(region)),
            Self::EdgeDraining => (CloseCode::Restart, texts::CLOSE_DRAINING.to_owned()),
            Self::EdgeOverloaded => (CloseCode::Again, texts::CLOSE_OVERLOADED.to_owned()),
            Self::Revoked => (CloseCode::Policy, texts::CLOSE_REVOKED.to_owned()),
            Self::QuotaUsed => (CloseCode::Policy, texts::CLOSE_QUOTA_USED.to_owned()),
            Self::DeviceViolation(violation @ Violation::TooLarge(_)) => (CloseCode::Size, violation.to_string()),
            Self::DeviceViolation(violation) => (CloseCode::Protocol, violation.to_string()),
            Self::DeviceSilent => (CloseCode::Away, "session idle".to_owned()),
            Self::DeviceSlow => (CloseCode::Policy, texts::CLOSE_DEVICE_SLOW.to_owned()),
            Self::DeviceTrickles => (CloseCode::Policy, texts::CLOSE_DEVICE_TRICKLES.to_owned()),
            Self::DeviceClosed | Self::RegionClosed | Self::DeviceLost => return None,
        };
        Some((code, reason))
    }

    /// The failure at the region, if there was one. The blame depends on the device too, see
    /// [`super::relay::Relay::facts`].
    pub fn failure(&self) -> Option<(Event, &str)> {
        match self {
            Self::RegionLost(lost) => Some((lost.event, &lost.why)),
            Self::RegionSilent => Some((Event::TimedOut, "session silent")),
            Self::RegionDeclined(why) => Some((Event::Closed(CANNOT_RESUME), why)),
            _ => None,
        }
    }
}

/// The loss of a session at a region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    pub event: Event,
    pub why: String,
}

impl Lost {
    pub(super) fn io(error: &io::Error) -> End {
        let (event, why) = (Event::Io(Cause::of(error)), format!("session lost: {error}"));
        End::RegionLost(Self { event, why })
    }

    pub(super) fn ended() -> End {
        let why = "session lost: the connection ended without a Close frame".to_owned();
        let event = Event::Ended;
        End::RegionLost(Self { event, why })
    }

    pub(super) fn broken(what: impl std::fmt::Display) -> End {
        let (event, why) = (Event::Nonsense, format!("session broken: {what}"));
        End::RegionLost(Self { event, why })
    }
}

/// The result of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub end: End,
    /// The code in the first Close frame of either side.
    pub code: Option<CloseCode>,
    pub from_device: u64,
    pub from_region: u64,
}

/// The reason for which the bytes of a direction end the session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    Violation(Violation),
    /// The region announced that it stops.
    Closing,
    /// The region broke the rules of session continuity.
    RegionError(String),
    /// The region does not resume a session of another region: it has another key, or another version.
    Declined(String),
}

impl From<Violation> for Stop {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation)
    }
}

pub(super) fn region_stop(stop: Stop) -> End {
    match stop {
        Stop::Violation(violation) => Lost::broken(violation),
        Stop::RegionError(why) => Lost::broken(why),
        Stop::Closing => End::RegionClosing,
        Stop::Declined(why) => End::RegionDeclined(why),
    }
}

pub(super) fn device_stop(stop: Stop) -> End {
    match stop {
        Stop::Violation(violation) => End::DeviceViolation(violation),
        // Only regions send such messages.
        other @ (Stop::RegionError(_) | Stop::Closing | Stop::Declined(_)) => region_stop(other),
    }
}
