//! Decides whether a caller may make a call. Every service asks here before it does anything.

use std::sync::Arc;

use identity::{Call, Caller, Denied, OperatorRole, Peer, authorise};
use planning::audit::AccessKind;
use tonic::{Request, Status};
use topology::IntentKind;

use super::parse::{NAME_BYTES_MAX, required_text};
use crate::{
    access::Accesses,
    metrics::{CallLabel, Metrics},
    texts::calls as texts,
    view::View,
};

/// Allows calls by the table of `identity::authorise`. Callers without a certificate reach a service only while the listener lets
/// them in (`mode = "off"` or `"permissive"`); the names in their calls are claims then.
#[derive(Debug, Clone)]
pub struct Guard {
    /// Counts denied calls.
    pub metrics: Metrics,
    /// True if callers must have proven an id (`mode = "required"`). The listener sees to that; this is the second lock.
    pub must_prove: bool,
    /// Records denied calls.
    pub accesses: Arc<Accesses>,
}

/// The caller of a request.
pub(crate) fn caller<T>(request: &Request<T>) -> Option<Caller> {
    request.extensions().get::<Caller>().cloned()
}

impl Guard {
    /// Decides about one call.
    pub(crate) fn allow(&self, caller: Option<&Caller>, call: Call<'_>) -> Result<(), Status> {
        let Some(peer) = proven(caller) else {
            return match self.must_prove {
                true => Err(Status::permission_denied(texts::must_prove())),
                false => Ok(()),
            };
        };
        authorise(peer, call).map_err(|denied: Denied| self.deny(caller, call.kind(), denied.to_string()))?;
        if peer.grants.iter().any(|grant| grant.role == OperatorRole::BreakGlass) {
            self.metrics.break_glass.inc();
            let text = format!(
                "the sealed credential of {} is in use: {}",
                peer.id.role.name(),
                call.text()
            );
            self.accesses
                .tell(call.kind(), self.accesses.once(AccessKind::BreakGlass, caller, &text));
        }
        Ok(())
    }

    /// Counts a call that is denied, for the metrics, the log and the audit log. Returns the answer.
    pub(crate) fn deny(&self, caller: Option<&Caller>, call: &'static str, why: String) -> Status {
        self.metrics.calls_denied.get_or_create(&CallLabel { call }).inc();
        self.accesses.denied(caller, call, &why);
        Status::permission_denied(why)
    }

    /// The author of a request: the name in the connection's certificate. Without one it is the name that the request claims.
    pub(crate) fn author(&self, caller: Option<&Caller>, call: &'static str, claimed: &str) -> Result<String, Status> {
        let Some(peer) = proven(caller) else {
            return required_text("author", claimed, NAME_BYTES_MAX);
        };
        let name = peer.id.role.name();
        match claimed.trim() {
            "" => Ok(name.to_owned()),
            claimed if claimed == name => Ok(name.to_owned()),
            claimed => {
                let why = texts::other_author(name, claimed);
                Err(self.deny(caller, call, why))
            }
        }
    }

    /// Decides about an order of an operator.
    pub(crate) fn allow_order(&self, caller: Option<&Caller>, kind: &IntentKind, view: &View) -> Result<(), Status> {
        let region = region_of(kind, view);
        let region = region.as_deref();
        let call = match kind {
            IntentKind::Approve { .. } => Call::Approve { region },
            IntentKind::Override { .. } => Call::Rule { kind: kind.as_str() },
            _ => Call::Order {
                kind: kind.as_str(),
                region,
            },
        };
        self.allow(caller, call)
    }
}

/// The peer, if it proved its id.
pub(crate) fn proven(caller: Option<&Caller>) -> Option<&Peer> {
    caller?.peer.as_ref()
}

/// The only region that an order concerns.
fn region_of(kind: &IntentKind, view: &View) -> Option<String> {
    let actions = &view.input.memory.actions;
    match kind {
        IntentKind::Approve { action, .. } | IntentKind::Abort { action } => {
            // No action is an approval or an abort itself, so this ends.
            region_of(&actions.get(action)?.intent.kind, view)
        }
        IntentKind::DrainStack { stack } => {
            let regions = &view.input.topology.regions;
            let holds = |region: &&topology::Region| region.stacks.iter().any(|it| it.address == *stack);
            regions.values().find(holds).map(|region| region.id.to_string())
        }
        kind => kind.region().map(ToString::to_string),
    }
}
