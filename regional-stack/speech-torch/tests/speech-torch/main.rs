//! The shipped and the fetched models on recordings, alone and together with the dialogue.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod gates;
mod moonshine;
mod people;
mod shipped_models;

use std::{collections::BTreeSet, io::Write as _};

use parking_lot::Mutex;

/// Least confidence at which the cascade believes its small recognizer; the default of a stack.
const ACCEPTED_FROM: f32 = 0.8;

/// The lines of [`say_once`] so far.
static SAID: Mutex<BTreeSet<&str>> = Mutex::new(BTreeSet::new());

/// Writes a line, once for all tests, past the test harness, which shows no output of tests that pass.
fn say_once(line: &'static str) {
    if SAID.lock().insert(line) {
        let _ = writeln!(std::io::stderr(), "{line}");
    }
}

/// Moonshine for two threads; `None`, with a loud line, on a machine that could not fetch it.
fn fetched_moonshine() -> Option<speech_torch::Moonshine> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/moonshine-tiny-en");
    if !folder.exists() {
        say_once("SKIPPED: every test of the large recognizer, because it is not fetched; type `tools/fetch-models`");
        return None;
    }
    Some(speech_torch::Moonshine::load(&folder, tch::Device::Cpu, 2).expect("the fetched recognizer loads"))
}
