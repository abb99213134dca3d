//! The blame for a failure at a region. No other file decides it.
//!
//! Pure: facts go in, one of four answers comes out. Only [`Fault::Region`] counts against a stack, that is towards its
//! ejection at this edge and towards the verdict that moves the fleet. A device that does not read, a full edge or a
//! declined request must never look like an ill region: thirty-two phones that stopped reading once evacuated a healthy one.
//!
//! Why it is so: docs/decisions/11-only-what-a-region-did-counts.md.

use std::io;

pub use probe::Cause;
use tungstenite::protocol::frame::coding::CloseCode;

/// The words for a stack that demands a certificate of an edge that shows none.
pub(crate) const WANTS_PROOF: &str = "it wants TLS and a certificate, and this edge shows it none: write [identity] in edge.toml, \
                                      without stacks = \"off\" (docs/security.md)";

/// The party that has to answer for a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub enum Fault {
    /// The device does not read, left, or asked for too much.
    Device,
    /// The region, or the network on the way to it.
    Region,
    /// This edge is out of descriptors, ports or memory, has no network or no valid certificate, or is too busy to be on time.
    Edge,
    /// Nobody: the region declined in order, or the event cannot be told apart from that.
    Nobody,
}

impl Fault {
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// The event at a stack, or at the connection to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A system call on the connection failed: connecting, reading or writing.
    Io(Cause),
    /// The connection, an answer or a sign of life did not come in time.
    TimedOut,
    /// The stack said nothing for long, and another region answered the same request meanwhile. `is_silent`: its region
    /// answers none of this edge's own probes either.
    Outrun {
        /// The result of the probes of its region.
        is_silent: bool,
    },
    /// A stack that answers the probes of this edge did not answer one request in time.
    Unanswered,
    /// The connection ended before the answer or the session was complete.
    Ended,
    /// The stack closed a connection that it had kept for the next request, before it began to answer one.
    KeptConnectionClosed,
    /// The stack broke the protocol.
    Nonsense,
    /// The stack closed the session with this code.
    Closed(CloseCode),
    /// The stack answered with this HTTP status. `says_full`: its `Meridian-Load` says that it has no room.
    Answered {
        status: u16,
        /// Whether the load that it reported leaves no room.
        says_full: bool,
    },
}

/// The state of the device of a session or request at that moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Device {
    #[default]
    Reads,
    /// The device takes nothing, or took nothing a moment ago: meanwhile the edge did not read from the region either.
    Blocked,
    Gone,
}

/// Everything that the decision needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    pub event: Event,
    pub device: Device,
    /// Whether this edge was too busy to be on time itself; see [`daemon::lag`].
    pub edge_is_late: bool,
}

impl From<Event> for Facts {
    fn from(event: Event) -> Self {
        Self {
            event,
            device: Device::Reads,
            edge_is_late: false,
        }
    }
}

impl Facts {
    pub fn io(error: &io::Error) -> Self {
        Event::Io(Cause::of(error)).into()
    }

    /// Something did not come in time.
    pub fn timed_out(edge_is_late: bool) -> Self {
        Self {
            edge_is_late,
            ..Event::TimedOut.into()
        }
    }

    /// The stack answered with a status.
    pub fn answered(status: u16, says_full: bool) -> Self {
        Event::Answered { status, says_full }.into()
    }

    /// The same with a device in this state.
    pub fn with(self, device: Device) -> Self {
        Self { device, ..self }
    }

    pub fn fault(&self) -> Fault {
        match (self.event, self.device) {
            // A stack looks at the certificate of an edge before anything else: an edge whose own is bad would eject every region.
            (Event::Io(Cause::Local | Cause::NoRoute | Cause::Refused), _) => Fault::Edge,
            // The edge uses another stack. A wrong clock or an old trust on either side may be the cause, so the probes of several
            // vantages have to agree before sessions leave the region.
            (Event::Io(Cause::Unproven), _) => Fault::Nobody,
            // The stack says itself why it ended the session. Slow readers, silent devices and bad frames get a Close from
            // it, and it is free to decline any request.
            (Event::Closed(CloseCode::Policy | CloseCode::Size | CloseCode::Protocol | CloseCode::Invalid), _) => {
                Fault::Device
            }
            // Slow is not dead, and at night no other client's traffic shows the difference: the probes have to agree.
            (Event::Closed(_) | Event::KeptConnectionClosed | Event::Outrun { is_silent: false }, _) => Fault::Nobody,
            (Event::Answered { status, says_full }, _) => of_status(status, says_full),
            (Event::Nonsense, _) => Fault::Region,
            // While the edge holds a region back it sees neither its Close frame nor its signs of life, and when the device
            // no longer waits, the end of the answer remains unknown.
            (_, Device::Blocked | Device::Gone) => Fault::Device,
            (Event::TimedOut | Event::Unanswered | Event::Outrun { .. }, Device::Reads) if self.edge_is_late => {
                Fault::Edge
            }
            // A device chooses how much it asks for: a long text to speak takes longer than any deadline.
            (Event::Unanswered, Device::Reads) => Fault::Nobody,
            (Event::Io(Cause::Remote) | Event::TimedOut | Event::Ended | Event::Outrun { .. }, Device::Reads) => {
                Fault::Region
            }
        }
    }
}

/// A stack that reports that it is full works, and 429 means the same. Outlier detection exists for the other errors of a server
/// (Envoy counts 5xx too); 501 and 505 are about the request.
fn of_status(status: u16, says_full: bool) -> Fault {
    match status {
        503 if says_full => Fault::Nobody,
        500 | 502 | 503 | 504 => Fault::Region,
        _ => Fault::Nobody,
    }
}

#[cfg(test)]
mod tests {
    use identity::TrustError;
    use rustix::io::Errno;

    use super::*;
    use crate::session::frames::CANNOT_RESUME;

    fn errno(errno: Errno) -> Facts {
        Facts::io(&io::Error::from_raw_os_error(errno.raw_os_error()))
    }

    #[test]
    fn a_fault_has_its_name_in_metrics() {
        use Fault::{Device, Edge, Nobody, Region};
        let names = [Device, Region, Edge, Nobody].map(Fault::as_str);
        assert_eq!(names, ["device", "region", "edge", "nobody"]);
    }

    /// The table of docs/edge.md, "Who is blamed".
    #[test]
    fn each_failure_has_one_who_answers_for_it() {
        use Device::{Blocked, Gone, Reads};
        use Fault::{Device as OfDevice, Edge, Nobody, Region};
        let of = |event: Event, device| Facts::from(event).with(device);
        let late = |facts: Facts| Facts {
            edge_is_late: true,
            ..facts
        };
        let trust_error = |trust_error: TrustError| Facts::io(&io::Error::other(trust_error));
        let remote = Event::Io(Cause::Remote);
        for (facts, fault) in [
            // The edge is out of a resource.
            (errno(Errno::MFILE), Edge),
            (errno(Errno::NFILE), Edge),
            (errno(Errno::ADDRNOTAVAIL), Edge),
            (errno(Errno::NOBUFS), Edge),
            (errno(Errno::NOMEM), Edge),
            (errno(Errno::MFILE).with(Blocked), Edge),
            (errno(Errno::PERM), Edge),
            (errno(Errno::NETDOWN), Edge),
            (of(Event::Io(Cause::NoRoute), Reads), Edge),
            (of(Event::Io(Cause::NoRoute), Blocked), Edge),
            (trust_error(TrustError::Refused("CertificateExpired".to_owned())), Edge),
            (
                trust_error(TrustError::Refused("UnknownCA".to_owned())).with(Blocked),
                Edge,
            ),
            (trust_error(TrustError::Unproven("expired".to_owned())), Nobody),
            (trust_error(TrustError::Withdrawn).with(Blocked), Nobody),
            (late(Facts::timed_out(true)), Edge),
            (of(Event::Outrun { is_silent: false }, Reads), Nobody),
            (of(Event::Outrun { is_silent: true }, Reads), Region),
            (late(of(Event::Outrun { is_silent: true }, Reads)), Edge),
            (of(Event::Unanswered, Reads), Nobody),
            (late(of(Event::Unanswered, Reads)), Edge),
            (of(Event::Unanswered, Gone), OfDevice),
            // The region, or the network to it, failed.
            (errno(Errno::CONNREFUSED), Region),
            (errno(Errno::CONNRESET), Region),
            (errno(Errno::PIPE), Region),
            (errno(Errno::HOSTUNREACH), Region),
            (errno(Errno::TIMEDOUT), Region),
            (late(errno(Errno::CONNREFUSED)), Region),
            (Facts::timed_out(false), Region),
            (of(Event::Ended, Reads), Region),
            (late(of(Event::Ended, Reads)), Region),
            (of(Event::Nonsense, Reads), Region),
            (of(Event::Nonsense, Blocked), Region),
            (Facts::answered(500, false), Region),
            (Facts::answered(502, false), Region),
            (Facts::answered(503, false), Region),
            (Facts::answered(504, false), Region),
            // While the device takes nothing the region cannot be seen.
            (of(remote, Blocked), OfDevice),
            (of(Event::TimedOut, Blocked), OfDevice),
            (of(Event::Ended, Blocked), OfDevice),
            (of(remote, Gone), OfDevice),
            (of(Event::TimedOut, Gone), OfDevice),
            (of(Event::Ended, Gone), OfDevice),
            (of(Event::Closed(CloseCode::Policy), Blocked), OfDevice),
            (of(Event::Closed(CloseCode::Policy), Reads), OfDevice),
            (of(Event::Closed(CloseCode::Size), Reads), OfDevice),
            // The region declined, or ended in order.
            (of(Event::Closed(CloseCode::Normal), Reads), Nobody),
            (of(Event::Closed(CloseCode::Away), Blocked), Nobody),
            (of(Event::Closed(CloseCode::Restart), Reads), Nobody),
            (of(Event::Closed(CANNOT_RESUME), Reads), Nobody),
            (of(Event::KeptConnectionClosed, Reads), Nobody),
            (Facts::answered(503, true), Nobody),
            (Facts::answered(429, false), Nobody),
            (Facts::answered(429, true), Nobody),
            (Facts::answered(401, false), Nobody),
            (Facts::answered(501, false), Nobody),
            (Facts::answered(200, true), Nobody),
        ] {
            assert_eq!(facts.fault(), fault, "{facts:?}");
        }
    }
}
