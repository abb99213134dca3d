//! The limits of every store: those of etcd, so that all stores refuse the same.

/// Longest value, in bytes: etcd's default limit on a request, less room for keys.
pub const VALUE_BYTES_MAX: usize = 1_400_000;
/// Longest transaction, keys and values together: the same limit, less the size of etcd's own fields.
pub const TRANSACTION_BYTES_MAX: usize = 1_500_000;
/// Most keys that a transaction may expect, and most that it may write: etcd's default limit.
pub const OPERATIONS_MAX: usize = 128;
