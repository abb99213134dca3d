//! A pool of copies of one network, for several threads.

use parking_lot::{Condvar, Mutex};

/// Lends one copy to each caller. A caller waits while all copies are lent.
///
/// libtorch's tensors may move between threads but must not be shared by them, and the networks have a few megabytes.
/// One copy per core is simpler than a proof that sharing is safe.
#[derive(Debug)]
pub(crate) struct Pool<T> {
    free: Mutex<Vec<T>>,
    returned: Condvar,
}

impl<T> Pool<T> {
    pub(crate) fn new(copies: Vec<T>) -> Self {
        assert!(
            !copies.is_empty(),
            "an empty pool would make every caller wait for ever"
        );
        Self {
            free: Mutex::new(copies),
            returned: Condvar::new(),
        }
    }

    /// The default number of copies: one per core, from 1 to 8; more are never in use at once. A program whose threads
    /// must not wait for each other passes its number of threads instead.
    pub(crate) fn size() -> usize {
        std::thread::available_parallelism().map_or(1, |n| n.get().min(8))
    }

    pub(crate) fn with<R>(&self, work: impl FnOnce(&T) -> R) -> R {
        let mut free = self.free.lock();
        let copy = loop {
            match free.pop() {
                Some(copy) => break copy,
                None => self.returned.wait(&mut free),
            }
        };
        drop(free);
        // The copy returns even if `work` panics; otherwise repeated failures would empty the pool.
        let loan = Loan {
            pool: self,
            copy: Some(copy),
        };
        work(loan.copy.as_ref().expect("a loan holds its copy until it is dropped"))
    }
}

struct Loan<'a, T> {
    pool: &'a Pool<T>,
    copy: Option<T>,
}

impl<T> Drop for Loan<'_, T> {
    fn drop(&mut self) {
        if let Some(copy) = self.copy.take() {
            self.pool.free.lock().push(copy);
            self.pool.returned.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_comes_back_even_from_a_panic() {
        let pool = Pool::new(vec![1]);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| pool.with(|_| panic!("bad call"))));
        assert!(panicked.is_err());
        assert_eq!(pool.with(|n| *n), 1);
    }

    #[test]
    fn callers_wait_for_their_turn() {
        let pool = Pool::new(vec![(), ()]);
        let done = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|s| {
            for _ in 0..8 {
                s.spawn(|| pool.with(|()| done.fetch_add(1, std::sync::atomic::Ordering::Relaxed)));
            }
        });
        assert_eq!(done.into_inner(), 8);
    }
}
