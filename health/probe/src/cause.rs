//! Which side of a failed system call is at fault: a process that is out of descriptors has learned nothing of its peer.

use std::{error::Error, io};

use rustix::io::Errno;

/// Which side of a failed system call is at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// This process or this machine is out of something, or does not let it through.
    Local,
    /// Everything else: the peer, or the network on the way to it.
    Remote,
}

impl Cause {
    /// By the number of the error.
    pub fn of(error: &io::Error) -> Self {
        /// Out of descriptors, ports, buffers or memory; then what only this machine's own set-up can bring about: no
        /// protocol, no interface, a local packet filter.
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
        let errno = Errno::from_io_error(error);
        if errno.is_some_and(|errno| LOCAL.contains(&errno)) || error.kind() == io::ErrorKind::OutOfMemory {
            Self::Local
        } else {
            Self::Remote
        }
    }

    /// The same for an error that wraps one of the system, however deep; one that wraps none is the peer's.
    pub fn within(error: &(dyn Error + 'static)) -> Self {
        let mut next = Some(error);
        while let Some(error) = next {
            next = error.source();
            if let Some(io) = error.downcast_ref::<io::Error>() {
                if Self::of(io) == Self::Local {
                    return Self::Local;
                }
                // Its source is that of the error it wraps, and not that error.
                next = io.get_ref().map(|wrapped| wrapped as &(dyn Error + 'static));
            }
        }
        Self::Remote
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    }
}
