//! Datagrams in batches: one system call receives up to 32 of them, one sends their replies.
//!
//! On a socket that listens on every address, a reply leaves from the address that was asked. The kernel would choose the
//! source by the route back, and resolvers drop a reply from another address than the one they asked. So the control
//! message with which a question came goes back out with its reply.
//!
//! This is the only unsafe code of the crate. The safe wrappers of nix send all messages of a batch from one address, and do
//! not reset the room for control messages between two calls.

#![expect(unsafe_code, reason = "recvmmsg and sendmmsg take pointers to buffers")]

use std::{
    io,
    mem::{size_of, zeroed},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
    ptr,
};

use nix::libc::{
    AF_INET, AF_INET6, CMSG_DATA, CMSG_FIRSTHDR, IP_PKTINFO, IPPROTO_IP, IPPROTO_IPV6, IPV6_PKTINFO, MSG_WAITFORONE,
    in_pktinfo, in6_pktinfo, iovec, mmsghdr, recvmmsg, sendmmsg, sockaddr_in, sockaddr_in6, sockaddr_storage,
};

use crate::reply::UDP_BYTES_MAX;

/// Datagrams in one system call. Beyond a few dozen the call itself is no longer what costs.
pub(crate) const BATCH: usize = 32;
/// Largest question over UDP, in bytes. A longer one is cut, and a cut question is malformed. Real questions have fewer
/// than 300 bytes.
const QUESTION_BYTES_MAX: usize = 2048;
/// Room for the control messages of one datagram: a header of 16 bytes and an `in6_pktinfo` of 20.
const CONTROL_BYTES: usize = 64;

/// Aligned as control messages must be.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);

/// The buffers of one thread, allocated once.
pub(crate) struct Batch {
    questions: Box<[[u8; QUESTION_BYTES_MAX]; BATCH]>,
    replies: Box<[[u8; UDP_BYTES_MAX as usize]; BATCH]>,
    names: Box<[sockaddr_storage; BATCH]>,
    controls: Box<[Control; BATCH]>,
    received: Box<[mmsghdr; BATCH]>,
    sending: Box<[mmsghdr; BATCH]>,
    vectors: Box<[iovec; BATCH]>,
}

/// The parts of one datagram and its reply.
pub(crate) struct Slot<'b> {
    /// The asker. `None`: no family that we know.
    pub(crate) client: Option<SocketAddr>,
    pub(crate) question: &'b [u8],
    pub(crate) reply: &'b mut [u8; UDP_BYTES_MAX as usize],
}

impl Batch {
    pub(crate) fn new() -> Self {
        // SAFETY: all of these are plain C structures, for which zeroes are a valid value.
        let (names, received, sending, vectors) = unsafe { (zeroed(), zeroed(), zeroed(), zeroed()) };
        Self {
            questions: Box::new([[0; QUESTION_BYTES_MAX]; BATCH]),
            replies: Box::new([[0; UDP_BYTES_MAX as usize]; BATCH]),
            names: Box::new(names),
            controls: Box::new([Control([0; CONTROL_BYTES]); BATCH]),
            received: Box::new(received),
            sending: Box::new(sending),
            vectors: Box::new(vectors),
        }
    }

    /// Waits for datagrams, at most as long as the socket's read timeout. Returns their number.
    pub(crate) fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        for at in 0..BATCH {
            self.vectors[at] = iovec {
                iov_base: self.questions[at].as_mut_ptr().cast(),
                iov_len: QUESTION_BYTES_MAX,
            };
            let header = &mut self.received[at].msg_hdr;
            header.msg_name = ptr::from_mut(&mut self.names[at]).cast();
            header.msg_namelen = size_of::<sockaddr_storage>() as u32;
            header.msg_iov = &raw mut self.vectors[at];
            header.msg_iovlen = 1;
            header.msg_control = self.controls[at].0.as_mut_ptr().cast();
            header.msg_controllen = CONTROL_BYTES;
            header.msg_flags = 0;
        }
        // SAFETY: each of the BATCH headers points to buffers of its own in this structure, with their true lengths, and
        // nothing else uses them during the call.
        let count = unsafe {
            recvmmsg(
                socket.as_raw_fd(),
                self.received.as_mut_ptr(),
                BATCH as u32,
                MSG_WAITFORONE as _,
                ptr::null_mut(),
            )
        };
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    }

    /// The datagram at `at`, which is less than the number received.
    pub(crate) fn slot(&mut self, at: usize) -> Slot<'_> {
        let length = (self.received[at].msg_len as usize).min(QUESTION_BYTES_MAX);
        Slot {
            client: address(&self.names[at]),
            question: &self.questions[at][..length],
            reply: &mut self.replies[at],
        }
    }

    /// Sends the replies of these lengths, one for each received datagram; 0 means none. Returns the number that could not
    /// be sent: their clients ask again, and nothing else helps against a fault of their network.
    pub(crate) fn send(&mut self, socket: &UdpSocket, lengths: &[usize]) -> usize {
        let mut count = 0;
        for (at, length) in lengths.iter().enumerate().filter(|(_, length)| **length > 0) {
            self.vectors[at] = iovec {
                iov_base: self.replies[at].as_mut_ptr().cast(),
                iov_len: (*length).min(UDP_BYTES_MAX as usize),
            };
            let mut message = self.received[at];
            message.msg_hdr.msg_iov = &raw mut self.vectors[at];
            message.msg_hdr.msg_flags = 0;
            if message.msg_hdr.msg_controllen > 0 {
                answer_from(&mut message);
            }
            self.sending[count] = message;
            count += 1;
        }
        let (mut sent, mut failed) = (0, 0);
        while sent < count {
            // SAFETY: the headers from `sent` to `count` point to names, controls and replies in this structure, with their
            // true lengths, and nothing else uses them during the call.
            let now = unsafe {
                sendmmsg(
                    socket.as_raw_fd(),
                    self.sending[sent..count].as_mut_ptr(),
                    (count - sent) as u32,
                    0,
                )
            };
            match usize::try_from(now) {
                Ok(now) if now > 0 => sent += now,
                // The first of them cannot be sent; the others may.
                _ => {
                    failed += 1;
                    sent += 1;
                }
            }
        }
        failed
    }
}

/// Makes the control message of a question into that of its reply: from the address that was asked, by the interface that
/// the routing table chooses.
fn answer_from(message: &mut mmsghdr) {
    let header = &mut message.msg_hdr;
    // SAFETY: the kernel wrote `msg_controllen` bytes of control messages into the aligned buffer, and CMSG_FIRSTHDR
    // returns null unless a whole header is there. Only the two kinds that were asked for are read, after their length
    // was checked, and their structures have no invalid values.
    unsafe {
        let control = CMSG_FIRSTHDR(header);
        let Some(kind) = control.as_ref() else {
            header.msg_controllen = 0;
            return;
        };
        let data_bytes = kind
            .cmsg_len
            .saturating_sub(CMSG_DATA(control).offset_from(control.cast::<u8>()) as usize);
        match (kind.cmsg_level, kind.cmsg_type) {
            (IPPROTO_IP, IP_PKTINFO) if data_bytes >= size_of::<in_pktinfo>() => {
                let info = CMSG_DATA(control).cast::<in_pktinfo>();
                // `ipi_spec_dst` stays: the local address, also when the datagram went to a broadcast.
                (*info).ipi_ifindex = 0;
                (*info).ipi_addr.s_addr = 0;
            }
            (IPPROTO_IPV6, IPV6_PKTINFO) if data_bytes >= size_of::<in6_pktinfo>() => {
                let info = CMSG_DATA(control).cast::<in6_pktinfo>();
                let asked = Ipv6Addr::from((*info).ipi6_addr.s6_addr);
                if asked.is_multicast() {
                    header.msg_controllen = 0;
                } else if !asked.is_unicast_link_local() {
                    // Every link has its own addresses in fe80::/10, so only there the interface stays.
                    (*info).ipi6_ifindex = 0;
                }
            }
            _ => header.msg_controllen = 0,
        }
    }
}

fn address(name: &sockaddr_storage) -> Option<SocketAddr> {
    match i32::from(name.ss_family) {
        AF_INET => {
            // SAFETY: sockaddr_storage is large and aligned enough for every kind of address, and the family says which
            // one the kernel wrote.
            let v4 = unsafe { &*ptr::from_ref(name).cast::<sockaddr_in>() };
            let ip = IpAddr::V4(Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes()));
            Some(SocketAddr::new(ip, u16::from_be(v4.sin_port)))
        }
        AF_INET6 => {
            // SAFETY: as above.
            let v6 = unsafe { &*ptr::from_ref(name).cast::<sockaddr_in6>() };
            let ip = IpAddr::V6(Ipv6Addr::from(v6.sin6_addr.s6_addr));
            Some(SocketAddr::new(ip, u16::from_be(v6.sin6_port)))
        }
        _ => None,
    }
}
