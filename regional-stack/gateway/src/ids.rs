//! Ids: of sessions, and of what is in them. An id of a session says where the session is, and its name is the part that stays.

use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// First characters of a session's name.
const PREFIX: &str = "sess_";
/// Stacks and edges make names; neither makes longer ones.
const NAME_BYTES_MAX: usize = 64;

/// A new id of an item, a response or a call.
pub(crate) fn new_id(kind: &str) -> String {
    format!("{kind}_{}", Uuid::new_v4().simple())
}

/// A new name of a session. Any client that knows it can resume the session, so it must not be guessable.
pub(crate) fn new_session_name() -> String {
    format!("{PREFIX}{}", Uuid::new_v4().simple())
}

/// The session's own name: what stays when its id, which says where it is, changes.
pub(crate) fn name_of(id: &str) -> &str {
    id.split_once('.').map_or(id, |(name, _)| name)
}

/// Id of the conversation of a session: there is one for each.
pub(crate) fn conversation_of(id: &str) -> String {
    format!("conv_{}", name_of(id).trim_start_matches(PREFIX))
}

/// Whether a session can have this name: it is safe in a header, and as that of a file.
pub(crate) fn is_session_name(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    text.starts_with(PREFIX) && text.len() <= NAME_BYTES_MAX && text.bytes().all(is_word)
}

/// A session's name in logs. Any client that knows the name can resume the session, so logs have a hash of it.
pub(crate) fn logged(name: &str) -> String {
    /// Enough to tell a day's sessions of one stack apart.
    const BYTES: usize = 6;
    hex::encode(&Sha256::digest(name_of(name))[..BYTES])
}
