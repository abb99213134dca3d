//! Verdicts as a control plane gets them: reports in, tick by tick, and what is believed.

mod properties;
mod story;
mod traffic;
mod triggers;
