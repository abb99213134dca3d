//! HTTP requests and gRPC calls.
//!
//! Requests of HTTP/1.1 to regions begin on the [`fast_path`], and most end there. [`attempts`] serves those that need a second
//! region at once or have a long body, and those of HTTP/2; a [`requester`] is its device. [`pingora`] reads HTTP/2, and
//! serves gRPC and operators' upstreams. All of them hold a [`chooser`].

pub mod attempts;
pub mod choice;
pub mod chooser;
pub mod ctx;
pub mod device_connection;
pub mod downstream;
pub mod exchange;
pub mod fast_path;
pub mod grpc;
pub mod limits;
pub mod long_body;
pub mod pass_on;
pub mod pingora;
pub mod pingora_requester;
pub mod pool;
pub mod requester;
pub mod route;
pub mod upload;
