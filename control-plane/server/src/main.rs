//! `meridian-control-plane`: judges health, decides, and publishes plans.

use std::process::ExitCode;

fn main() -> ExitCode {
    daemon::main("meridian-control-plane", server::serve)
}
