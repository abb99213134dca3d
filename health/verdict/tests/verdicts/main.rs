//! Verdicts as a control plane gets them: reports in, tick by tick, and what is believed.

mod properties;
mod rounds;
mod story;
mod traffic;
mod triggers;
