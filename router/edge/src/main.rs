//! `meridian-edge`: one edge.

use std::process::ExitCode;

fn main() -> ExitCode {
    daemon::main("meridian-edge", edge::run)
}
