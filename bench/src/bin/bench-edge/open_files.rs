//! Open files, of which every session takes one or two.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Asks for as many open files as the system allows.
pub(crate) fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    // A proxy that lacks open files says so itself.
    let _ = setrlimit(Resource::Nofile, raised);
}
