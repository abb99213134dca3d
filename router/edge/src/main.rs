//! `meridian-edge`: one edge.

use std::process::ExitCode;

fn main() -> ExitCode {
    daemon::main_with("meridian-edge", edge::run)
}
