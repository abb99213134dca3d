//! A UDP socket whose replies leave from the address that the client used. On a socket that listens on every address,
//! the kernel would choose the source address by the route back, and resolvers drop a reply from another address than
//! the one they asked.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::AsRawFd as _,
};

use nix::{
    cmsg_space,
    libc::{in_addr, in_pktinfo, in6_pktinfo},
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
    },
};
use tokio::{io::Interest, net::UdpSocket};

/// A UDP socket that knows the local address of every datagram.
#[derive(Debug)]
pub(crate) struct Datagrams(UdpSocket);

/// A received datagram.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Received {
    pub(crate) length: usize,
    pub(crate) client: SocketAddr,
    pub(crate) asked: Asked,
}

/// The local address of a received datagram. `Socket` when the socket listens on one address only.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Asked {
    Socket,
    V4(in_pktinfo),
    V6(in6_pktinfo),
}

impl Datagrams {
    pub(crate) async fn bind(listen: SocketAddr) -> io::Result<Self> {
        let socket = UdpSocket::bind(listen).await?;
        match listen.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?,
            // An IPv6 socket also receives IPv4, and reports IPv4 addresses in their mapped form.
            IpAddr::V6(ip) if ip.is_unspecified() => setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?,
            IpAddr::V4(_) | IpAddr::V6(_) => {}
        }
        Ok(Self(socket))
    }

    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    pub(crate) async fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        let mut control = cmsg_space!(in_pktinfo, in6_pktinfo);
        let receive = || receive(&self.0, buffer, &mut control);
        self.0.async_io(Interest::READABLE, receive).await
    }

    /// Sends to the client, from the address that the client used.
    pub(crate) async fn reply(&self, bytes: &[u8], question: &Received) -> io::Result<()> {
        let to = SockaddrStorage::from(question.client);
        let from = match &question.asked {
            Asked::Socket => None,
            Asked::V4(asked) => Some(ControlMessage::Ipv4PacketInfo(asked)),
            Asked::V6(asked) => Some(ControlMessage::Ipv6PacketInfo(asked)),
        };
        let send = || {
            let (fd, data) = (self.0.as_raw_fd(), [IoSlice::new(bytes)]);
            Ok(sendmsg(fd, &data, from.as_slice(), MsgFlags::empty(), Some(&to))?)
        };
        self.0.async_io(Interest::WRITABLE, send).await.map(drop)
    }
}

fn receive(socket: &UdpSocket, buffer: &mut [u8], control: &mut [u8]) -> io::Result<Received> {
    let mut data = [IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut data, Some(control), MsgFlags::empty())?;
    let asked = (message.cmsgs()?)
        .find_map(|control| match control {
            ControlMessageOwned::Ipv4PacketInfo(info) => Some(from_v4(info)),
            ControlMessageOwned::Ipv6PacketInfo(info) => Some(from_v6(info)),
            _ => None,
        })
        .unwrap_or(Asked::Socket);
    let client = message.address.and_then(socket_address);
    let client = client.ok_or_else(|| io::Error::other("a datagram without a sender"))?;
    Ok(Received {
        length: message.bytes,
        client,
        asked,
    })
}

fn socket_address(address: SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| SocketAddrV4::from(*v4).into());
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddrV6::from(*v6).into()))
}

/// The routing table chooses the interface of the reply, not the interface of the question.
const ANY_INTERFACE: u8 = 0;

fn from_v4(info: in_pktinfo) -> Asked {
    Asked::V4(in_pktinfo {
        ipi_ifindex: ANY_INTERFACE.into(),
        // The local address of the datagram. It differs from the destination in the datagram when that was a broadcast.
        ipi_spec_dst: info.ipi_spec_dst,
        ipi_addr: in_addr { s_addr: 0 },
    })
}

fn from_v6(info: in6_pktinfo) -> Asked {
    let asked = std::net::Ipv6Addr::from(info.ipi6_addr.s6_addr);
    if asked.is_multicast() {
        return Asked::Socket;
    }
    // Every link has its own addresses in fe80::/10, so such an address means nothing without its interface.
    let interface = if asked.is_unicast_link_local() {
        info.ipi6_ifindex
    } else {
        ANY_INTERFACE.into()
    };
    Asked::V6(in6_pktinfo {
        ipi6_addr: info.ipi6_addr,
        ipi6_ifindex: interface,
    })
}
