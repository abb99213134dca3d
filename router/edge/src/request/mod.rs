//! HTTP requests and gRPC calls.
//!
//! Requests of HTTP/1.1 to regions begin on the [`fast_path`], and most end there. [`attempts`] serves requests of HTTP/2, and those
//! that have a long body or need a second region at once; a [`requester`] is its device. [`pingora`] reads HTTP/2, and serves gRPC
//! and operators' upstreams. All three hold a [`chooser`], and each request has a [`ctx`] with its [`choice`].

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
