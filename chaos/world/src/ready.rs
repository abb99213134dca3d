//! Asks a process's ready page. A few lines of HTTP by hand save this crate an HTTP client.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// The page is local and tiny; a process that needs longer is not ready.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Longest reply that is read: the status line and the reasons.
const REPLY_BYTES_MAX: u64 = 4 << 10;

/// `Ok` if the process takes work, or else the reasons on its page.
pub(crate) async fn is_ready(admin: SocketAddr) -> Result<(), String> {
    let ask = async {
        let mut stream = TcpStream::connect(admin).await?;
        let request = format!("GET /ready HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut reply = Vec::new();
        stream.take(REPLY_BYTES_MAX).read_to_end(&mut reply).await?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&reply).into_owned())
    };
    match tokio::time::timeout(TIMEOUT, ask).await {
        Ok(Ok(reply)) if reply.starts_with("HTTP/1.1 200") => Ok(()),
        Ok(Ok(reply)) => {
            let body = reply.split("\r\n\r\n").nth(1).unwrap_or_default();
            Err(format!("it says that it is not ready: {}", body.trim()))
        }
        Ok(Err(error)) => Err(format!("its ready page at {admin} cannot be read: {error}")),
        Err(_) => Err(format!("its ready page at {admin} does not answer")),
    }
}
