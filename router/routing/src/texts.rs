//! The sentences of refused keys and tokens, and of regions whose messages contradict each other. The edge logs a refused token and
//! routes the device like a new one; a key that is refused is a problem of its configuration.

pub(crate) fn key_too_short(bytes_min: usize) -> String {
    format!("an affinity key needs at least {bytes_min} bytes; make one with `openssl rand -hex 32`")
}

// Tokens.

pub(crate) const NOT_AFFINITY: &str = "not an affinity token";
pub(crate) const AFFINITY_FORGED: &str = "the affinity token is not signed with this key";
pub(crate) const AFFINITY_OLD: &str = "the affinity token is out of date";
pub(crate) const NOT_SESSION: &str = "not a session token";
pub(crate) const SESSION_FORGED: &str = "the session token is not signed with this key";
pub(crate) const SESSION_OLD: &str = "the session token is out of date";

// A region's messages. The edge moves the session to another region.

pub(crate) const EVENT_FIRST: &str = "an event came before any checkpoint";
pub(crate) const CHECKPOINT_OF_FUTURE: &str = "a checkpoint stands for messages that were never sent";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sentence_names_the_thing_that_is_refused() {
        assert!(key_too_short(32).contains("; make one with `openssl rand -hex 32`"));
        for (text, thing) in [
            (NOT_AFFINITY, "affinity token"),
            (AFFINITY_FORGED, "affinity token"),
            (AFFINITY_OLD, "affinity token"),
            (NOT_SESSION, "session token"),
            (SESSION_FORGED, "session token"),
            (SESSION_OLD, "session token"),
            (EVENT_FIRST, "event"),
            (CHECKPOINT_OF_FUTURE, "checkpoint"),
        ] {
            assert!(text.contains(thing) && !text.ends_with(['.', ';', ':']), "{text}");
        }
    }
}
