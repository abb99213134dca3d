//! Finds the side at fault when a system call fails: a process that is out of descriptors has learned nothing about its
//! peer.

use std::{
    error::Error,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
};

use identity::TrustError;
use rustix::io::Errno;

/// The side at fault when a system call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// This process or this machine lacks a resource, or its own set-up blocks the call.
    Local,
    /// This machine has no default route, so it has learned nothing about any distant peer. It does not lack a
    /// resource: peers on its own networks are still reachable.
    NoRoute,
    /// The peer does not accept the certificate of this process. It looks at it before anything else, so this process has learned
    /// nothing about the peer.
    Refused,
    /// The peer does not prove its id, or is another peer than was meant. A wrong clock on either side can cause this, and an old
    /// trust.
    Unproven,
    /// Every other error: the peer failed, or the network between this machine and the peer.
    Remote,
}

impl Cause {
    /// The side at fault, by the error number.
    pub fn of(error: &io::Error) -> Self {
        Self::by_routes(error, leads_far)
    }

    /// The side at fault when connecting to this address failed.
    pub fn of_connecting(error: &io::Error, to: SocketAddr) -> Self {
        Self::by_routes(error, || leads(to))
    }

    /// Whether this side is at fault, so that the failure says nothing about the peer.
    pub fn is_own(self) -> bool {
        matches!(self, Self::Local | Self::NoRoute | Self::Refused)
    }

    /// The kernel reports "network unreachable" for two reasons: this machine has no route, or a router on the way has
    /// none. A look at this machine's routes tells the two apart.
    fn by_routes(error: &io::Error, has_route: impl FnOnce() -> bool) -> Self {
        /// First the errors for a lack of descriptors, ports, buffers or memory; then those that only the set-up of
        /// this machine can cause: no protocol, no interface, a local packet filter.
        const LOCAL: [Errno; 12] = [
            Errno::MFILE,
            Errno::NFILE,
            Errno::ADDRNOTAVAIL,
            Errno::ADDRINUSE,
            Errno::NOBUFS,
            Errno::NOMEM,
            Errno::AGAIN,
            Errno::AFNOSUPPORT,
            Errno::PROTONOSUPPORT,
            Errno::NETDOWN,
            Errno::PERM,
            Errno::ACCESS,
        ];
        match TrustError::within(error) {
            Some(TrustError::Refused(_)) => return Self::Refused,
            Some(TrustError::Other(_) | TrustError::Unproven(_) | TrustError::Withdrawn) => return Self::Unproven,
            None => {}
        }
        let errno = Errno::from_io_error(error);
        if errno.is_some_and(|errno| LOCAL.contains(&errno)) || error.kind() == io::ErrorKind::OutOfMemory {
            Self::Local
        } else if errno == Some(Errno::NETUNREACH) && !has_route() {
            Self::NoRoute
        } else {
            Self::Remote
        }
    }

    /// The side at fault, by the system errors that `error` wraps at any depth. Without a system error it is the peer.
    pub fn within(error: &(dyn Error + 'static)) -> Self {
        let mut next = Some(error);
        while let Some(error) = next {
            next = error.source();
            if let Some(io) = error.downcast_ref::<io::Error>() {
                let cause = Self::of(io);
                if cause != Self::Remote {
                    return cause;
                }
                // `source` of an `io::Error` skips the error that it wraps and returns that error's source.
                next = io.get_ref().map(|wrapped| wrapped as &(dyn Error + 'static));
            }
        }
        Self::Remote
    }
}

/// Whether this machine has a default route. The two addresses are for documentation only (RFC 5737, RFC 3849), so no
/// other route leads to them.
fn leads_far() -> bool {
    let far: [IpAddr; 2] = [
        Ipv4Addr::new(192, 0, 2, 1).into(),
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
    ];
    far.into_iter().any(|far| leads(SocketAddr::new(far, 9)))
}

/// Whether this machine has a route to an address. Connecting a UDP socket sends no packet; the kernel only looks up
/// the route.
fn leads(to: SocketAddr) -> bool {
    let here: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    UdpSocket::bind((here, 0)).is_ok_and(|socket| socket.connect(to).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Regression: an edge that lost its default route blamed and ejected every region.
    #[test]
    fn an_unreachable_network_is_the_fault_of_the_side_without_a_route() {
        let error = |errno: Errno| io::Error::from_raw_os_error(errno.raw_os_error());
        let of = |errno, has_route| Cause::by_routes(&error(errno), || has_route);
        assert_eq!(of(Errno::NETUNREACH, false), Cause::NoRoute);
        assert_eq!(of(Errno::NETUNREACH, true), Cause::Remote);
        for has_route in [true, false] {
            assert_eq!(of(Errno::HOSTUNREACH, has_route), Cause::Remote);
            assert_eq!(of(Errno::NETDOWN, has_route), Cause::Local);
        }
        let here = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
        assert_eq!(Cause::of_connecting(&error(Errno::NETUNREACH), here), Cause::Remote);
    }

    #[test]
    fn an_error_of_the_system_is_found_however_deep_it_lies() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot connect")]
        struct Wrapped(#[source] io::Error);
        let of = |errno: Errno| Wrapped(io::Error::from_raw_os_error(errno.raw_os_error()));
        assert_eq!(Cause::within(&of(Errno::MFILE)), Cause::Local);
        assert_eq!(Cause::within(&io::Error::other(of(Errno::NOBUFS))), Cause::Local);
        assert_eq!(Cause::within(&io::Error::other(of(Errno::NOBUFS).0)), Cause::Local);
        assert_eq!(Cause::within(&of(Errno::CONNREFUSED)), Cause::Remote);
        assert_eq!(Cause::within(&std::fmt::Error), Cause::Remote);
        let trust_error = |trust_error| Cause::within(&Wrapped(io::Error::other(trust_error)));
        assert_eq!(
            trust_error(TrustError::Refused("CertificateExpired".to_owned())),
            Cause::Refused
        );
        assert_eq!(trust_error(TrustError::Withdrawn), Cause::Unproven);
        assert!(Cause::Refused.is_own() && !Cause::Unproven.is_own());
    }
}
