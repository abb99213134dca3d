//! Entry points of the fuzzer (`fuzz/`): the parsers of this crate that read what strangers send.

use std::sync::{Arc, OnceLock};

use speech::scripted::{ScriptedRecognizer, ScriptedSynthesizer};
use tokio_util::sync::CancellationToken;

use crate::{
    config::Config,
    realtime, recording,
    stack::{Engines, Stack},
    store::MemoryStore,
    wyoming,
};

/// The state of a checkpoint without its seal, as another release or anybody with the key may write it. The stack refuses it, or
/// restores a session whose next checkpoint can be restored as well.
///
/// # Panics
///
/// The stack accepts bytes that it cannot write again.
pub fn checkpoint(state: &[u8]) {
    realtime::restore_and_write(stack(), state);
}

/// A session's file without its seal, as another release or anybody with the key may write it.
///
/// # Panics
///
/// The stack accepts bytes that it cannot write again.
pub fn session_file(state: &[u8]) {
    realtime::reopen(stack(), state);
}

/// The messages of a client in a Realtime session, one in each line.
///
/// # Panics
///
/// The session does something that it must not.
pub fn conversation(messages: &[u8]) {
    realtime::converse(stack(), messages);
}

/// A recording in Opus, as devices upload it.
///
/// # Panics
///
/// The decoder gives more than it may, or no numbers.
pub fn ogg_opus(file: &[u8]) {
    recording::decode_ogg(file);
}

/// The events of a client that speaks Wyoming, one behind the other.
///
/// # Panics
///
/// An event does not survive being written and read again.
pub fn wyoming_events(bytes: &[u8]) {
    wyoming::event::read_all(bytes);
}

fn stack() -> &'static Arc<Stack> {
    static STACK: OnceLock<Arc<Stack>> = OnceLock::new();
    STACK.get_or_init(start)
}

fn start() -> Arc<Stack> {
    let document =
        "region = \"eu-west\"\nlisten = \"127.0.0.1:0\"\nadmin_listen = \"127.0.0.1:0\"\nengine = \"scripted\"";
    let config: Config = daemon::config::parse("fuzzing", document).expect("the document is complete");
    let engines = Engines {
        recognizer: Arc::new(ScriptedRecognizer::new()),
        synthesizer: Arc::new(ScriptedSynthesizer::new()),
    };
    let store = Box::new(MemoryStore::new(1, config.limits.session_ttl.0));
    let stack = Stack::new(config, engines, store, identity::Expiry(None), CancellationToken::new());
    Arc::new(stack.expect("threads can be started"))
}
