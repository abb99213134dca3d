//! Verdicts as a control plane makes them: from reports, tick by tick.

mod histories;
mod liars;
mod needs;
mod properties;
mod reach;
mod rounds;
mod stacks;
mod story;
mod traffic;
mod triggers;
