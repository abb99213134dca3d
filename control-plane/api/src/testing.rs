//! Servers for tests of gRPC clients, in the process of the test.

use std::{net::TcpListener, time::Duration};

use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::server::Router;

/// Far longer than anything in these tests takes. Only a hang reaches it.
const HANGS_AFTER: Duration = Duration::from_secs(30);

/// The result of a future.
///
/// # Panics
///
/// If it takes too long.
pub async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(HANGS_AFTER, future)
        .await
        .expect("it should have happened long ago")
}

/// A URL at which no server listens.
pub fn nobody() -> String {
    "http://127.0.0.1:1".to_owned()
}

/// A process that was stopped: the kernel accepts connections for it, and nothing answers.
///
/// # Panics
///
/// If no port is free.
pub fn silent() -> (String, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("a bound socket has an address");
    (format!("http://{address}"), listener)
}

/// Serves until the runtime of the test ends, and returns the URL.
///
/// # Panics
///
/// If no port is free.
pub async fn serve(router: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("a port is free");
    let address = listener.local_addr().expect("a bound socket has an address");
    tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
    format!("http://{address}")
}
