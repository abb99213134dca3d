//! HTTP/1.1 messages (RFC 9112) as far as a proxy must understand them to pass them on. Nothing but [`head`] waits for a
//! socket.

pub mod body;
pub mod credential;
pub mod head;
pub mod headers;
pub mod request;
pub mod response;
pub mod upgrade;

pub use body::{Body, Broken, Chunks};
pub use headers::Peer;
pub use request::Request;
pub use response::Response;
