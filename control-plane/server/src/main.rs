//! `meridian-control-plane`: judges health, decides, and publishes plans.

use std::process::ExitCode;

fn main() -> ExitCode {
    daemon::main(
        "meridian-control-plane",
        "Judges the health of regions and edges, decides the plan and publishes it to all nodes",
        server::serve,
    )
}
