//! Listening sockets for servers to which many clients connect at the same moment.
//!
//! Why it is so: docs/decisions/06-a-long-accept-queue.md.

use std::{io, net::SocketAddr};

use tokio::net::{TcpListener, TcpSocket};

/// Most connections that the kernel completes before the process accepts them. The kernel caps this at its own limit
/// (`net.core.somaxconn`).
///
/// The standard library asks for 128. When a region dies, all of its sessions connect to the next region within
/// milliseconds. If this queue is full, the kernel drops the first packet of a connection, and the client tries again a
/// second later.
pub const BACKLOG: u32 = 4096;

/// Listens on this address.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    bind(address, false)?.listen(BACKLOG)
}

/// Binds a socket to an address. With `reuse_port`, other processes may bind the same address (`SO_REUSEPORT`).
pub fn bind(address: SocketAddr, reuse_port: bool) -> io::Result<TcpSocket> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    // Otherwise a restarted process could not bind until the kernel forgets the connections of its predecessor.
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(reuse_port)?;
    socket.bind(address)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpStream;

    #[tokio::test]
    async fn hundreds_may_wait_to_be_accepted() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let mut waiting = Vec::new();
        for _ in 0..300 {
            // With a full queue, this takes at least a second.
            let connecting = tokio::time::timeout(std::time::Duration::from_millis(900), TcpStream::connect(address));
            waiting.push(connecting.await.expect("there is a place").unwrap());
        }
        listener.accept().await.unwrap();
    }
}
