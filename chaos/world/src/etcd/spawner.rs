use std::{
    process::{Child, Command},
    sync::mpsc,
    thread,
};

use super::error::{EtcdError, failed};

/// Starts processes on a thread of its own. The kernel sends the parent-death signal when the *thread* that started a
/// process ends, and a runtime may end its threads early.
#[derive(Debug)]
pub(super) struct Spawner {
    /// Dropped first: the closed channel ends the thread.
    wanted: Option<mpsc::Sender<Wanted>>,
    thread: Option<thread::JoinHandle<()>>,
}

type Wanted = (Command, mpsc::Sender<std::io::Result<Child>>);

impl Spawner {
    pub(super) fn start() -> Result<Self, EtcdError> {
        let (wanted, wishes) = mpsc::channel::<Wanted>();
        let thread = thread::Builder::new()
            .name("etcd spawner".to_owned())
            .spawn(move || {
                for (mut command, reply) in wishes {
                    // If the requester is gone, the child ends with this thread.
                    let _ = reply.send(command.spawn());
                }
            })
            .map_err(|error| failed("start a thread", error))?;
        Ok(Self {
            wanted: Some(wanted),
            thread: Some(thread),
        })
    }

    /// Returns once the program runs or has failed to start: a matter of milliseconds.
    pub(super) fn spawn(&self, command: Command) -> Result<Child, EtcdError> {
        let (reply, answer) = mpsc::channel();
        let gone = || failed("start etcd", std::io::Error::other("the spawning thread is gone"));
        let wanted = self.wanted.as_ref().ok_or_else(gone)?;
        wanted.send((command, reply)).map_err(|_| gone())?;
        let child = answer.recv().map_err(|_| gone())?;
        child.map_err(|error| failed("start etcd", error))
    }
}

impl Drop for Spawner {
    fn drop(&mut self) {
        self.wanted = None;
        if let Some(thread) = self.thread.take() {
            // The thread has no code that panics.
            let _ = thread.join();
        }
    }
}
