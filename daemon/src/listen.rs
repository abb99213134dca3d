//! Listening where many may come at the same moment.

use std::{io, net::SocketAddr};

use tokio::net::{TcpListener, TcpSocket};

/// Connections that the kernel completes before they are accepted; it caps this to its own limit (`net.core.somaxconn`).
///
/// The standard library asks for 128. When a region dies, all of its sessions come to the next one within milliseconds; of
/// those that find this queue full the kernel drops the first packet, and they try again a second later.
pub const BACKLOG: u32 = 4096;

/// Listens there.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    bind(address, false)?.listen(BACKLOG)
}

/// Claims an address, with `reuse_port` beside other processes that do the same (`SO_REUSEPORT`).
pub fn bind(address: SocketAddr, reuse_port: bool) -> io::Result<TcpSocket> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    // Or a restarted process would wait for the connections of its predecessor to be forgotten.
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
            // In a queue that is full this takes a second at least.
            let connecting = tokio::time::timeout(std::time::Duration::from_millis(900), TcpStream::connect(address));
            waiting.push(connecting.await.expect("there is a place").unwrap());
        }
        listener.accept().await.unwrap();
    }
}
