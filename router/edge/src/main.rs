//! `meridian-edge`: one edge.

use std::process::ExitCode;

fn main() -> ExitCode {
    daemon::main_with(
        "meridian-edge",
        "Routes the voice sessions and requests of devices to the regional stacks that the plan names",
        edge::run,
    )
}
