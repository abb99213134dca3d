//! Ids of sessions and of their items, responses and calls. The id of a session names its stack too; its name is the part that stays.

use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// The first characters of a session's name.
const PREFIX: &str = "sess_";
/// Longest name: stacks and edges make names, and make no longer ones.
const NAME_BYTES_MAX: usize = 64;

/// A new id of an item, a response or a call.
pub(crate) fn new_id(kind: &str) -> String {
    format!("{kind}_{}", Uuid::new_v4().simple())
}

/// A new name of a session. Any client that knows the name can resume the session, so nobody may guess it.
pub(crate) fn new_session_name() -> String {
    format!("{PREFIX}{}", Uuid::new_v4().simple())
}

/// The session's own name, the part that stays when its id changes with its stack.
pub(crate) fn name_of(id: &str) -> &str {
    id.split_once('.').map_or(id, |(name, _)| name)
}

/// Id of the one conversation of a session.
pub(crate) fn conversation_of(id: &str) -> String {
    format!("conv_{}", name_of(id).trim_start_matches(PREFIX))
}

/// Whether a session can have this name: it is safe in a header and as the name of a file.
pub(crate) fn is_session_name(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    text.starts_with(PREFIX) && text.len() <= NAME_BYTES_MAX && text.bytes().all(is_word)
}

/// A session's name in logs: a hash, because any client that knows the name can resume the session.
pub(crate) fn logged(name: &str) -> String {
    /// Enough digits to tell a day's sessions of one stack apart.
    const BYTES: usize = 6;
    hex::encode(&Sha256::digest(name_of(name))[..BYTES])
}
