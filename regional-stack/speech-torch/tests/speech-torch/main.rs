//! The shipped models, alone and together with the dialogue.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod gates;
mod shipped_models;
