//! Tickets with which an edge resumes TLS at the stacks of a region (RFC 8446 §2.2): no signature is made or verified then.
//!
//! The memory of rustls holds eight for an address. After the loss of a region an edge opens a connection for each of its
//! sessions at once, and a ticket serves for one connection.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
};

use parking_lot::Mutex;
use tokio_rustls::rustls::{
    NamedGroup,
    client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue},
    pki_types::ServerName,
};

/// Most tickets of one address. Each takes some 2 KiB, most of it the certificates of this process, which only the stack can read.
const TICKETS_MAX: usize = 512;
/// Most addresses; beyond it the memory begins anew. A region has tens of stacks.
const ADDRESSES_MAX: usize = 128;

/// The tickets of a region's stacks, by address.
#[derive(Default)]
pub(crate) struct Tickets(Mutex<HashMap<ServerName<'static>, Known>>);

#[derive(Default)]
struct Known {
    group: Option<NamedGroup>,
    /// The newest is last, and is used first: a stack that restarted knows no older one.
    tickets: VecDeque<Tls13ClientSessionValue>,
}

impl Tickets {
    fn change(&self, stack: ServerName<'static>, change: impl FnOnce(&mut Known)) {
        let mut known = self.0.lock();
        if known.len() >= ADDRESSES_MAX && !known.contains_key(&stack) {
            known.clear();
        }
        change(known.entry(stack).or_default());
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").finish_non_exhaustive()
    }
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, stack: ServerName<'static>, group: NamedGroup) {
        self.change(stack, |known| known.group = Some(group));
    }

    fn kx_hint(&self, stack: &ServerName<'_>) -> Option<NamedGroup> {
        self.0.lock().get(stack)?.group
    }

    // Only TLS 1.3 is spoken between processes.

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, stack: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        self.change(stack, |known| {
            if known.tickets.len() >= TICKETS_MAX {
                known.tickets.pop_front();
            }
            known.tickets.push_back(ticket);
        });
    }

    fn take_tls13_ticket(&self, stack: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.0.lock().get_mut(stack)?.tickets.pop_back()
    }
}
