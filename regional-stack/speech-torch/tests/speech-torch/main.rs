//! Everything but the units: the shipped and the fetched models on recordings, and what the dialogue makes of what they hear.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod gates;
mod moonshine;
mod people;
mod shipped_models;

/// Least confidence at which the cascade believes its small recognizer; the default of a stack.
const ACCEPTED_FROM: f32 = 0.8;

/// Moonshine for two threads; `None`, said loudly, on a machine that could not fetch it.
fn fetched_moonshine() -> Option<speech_torch::Moonshine> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/moonshine-tiny-en");
    if !folder.exists() {
        println!(
            "SKIPPED: {} is not here; `meridian models fetch` gets it",
            folder.display()
        );
        return None;
    }
    Some(speech_torch::Moonshine::load(&folder, tch::Device::Cpu, 2).expect("the fetched recognizer loads"))
}
