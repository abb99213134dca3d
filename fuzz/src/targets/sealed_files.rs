//! Encrypted files: exports of the audit log, sessions of a stack. Whoever can write where they lie chooses their bytes.

use std::sync::LazyLock;

use daemon::sealed::{self, Keys};

static KEYS: LazyLock<Keys> =
    LazyLock::new(|| serde_json::from_value("5a".repeat(32).into()).expect("32 bytes are a key"));

/// Nobody without the key makes a file that opens, and a file that was changed anywhere does not open.
pub(crate) fn open(bytes: &[u8]) {
    assert!(
        sealed::open(bytes, &*KEYS).is_err(),
        "these bytes were made without the key"
    );
    let file = sealed::seal(bytes, &*KEYS).expect("the key is there");
    assert!(sealed::is_sealed(&file) && KEYS.is_newest_of(&file));
    assert_eq!(sealed::open(&file, &*KEYS).ok().as_deref(), Some(bytes));
    // The input says where to change and where to cut.
    let at = bytes.iter().fold(7_usize, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(usize::from(*byte))
    }) % file.len();
    let mut changed = file.clone();
    changed[at] ^= 1 << (at % 8);
    assert!(sealed::open(&changed, &*KEYS).is_err(), "byte {at} was changed");
    assert!(sealed::open(&file[..at], &*KEYS).is_err(), "cut after {at} bytes");
    let longer = [&file[..], bytes, b"x"].concat();
    assert!(sealed::open(&longer, &*KEYS).is_err(), "something follows");
}
