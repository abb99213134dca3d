//! The steps of a fetch, as a caller shows them.

/// Takes the progress of a fetch, for a bar or a log.
pub trait Progress: Sync {
    /// So many bytes of the package are here.
    fn downloaded(&self, bytes: u64, of: u64);
    /// The next step began.
    fn step(&self, what: &str);
}
