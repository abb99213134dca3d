//! Decides whether a caller may make a call. Every service asks here before it does anything.

use api::v1;
use identity::{Call, Caller, Denied, Peer, authorise};
use planning::audit::Principal;
use tonic::{Request, Status};
use topology::IntentKind;

use crate::{
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
        authorise(peer, call).map_err(|denied: Denied| {
            let label = CallLabel { call: call.kind() };
            self.metrics.calls_denied.get_or_create(&label).inc();
            let source = caller.map(|caller| caller.source);
            tracing::warn!(?source, serial = %peer.serial, %denied, "a call was denied");
            Status::permission_denied(denied.to_string())
        })
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

/// The credential behind a request, for the audit log.
pub(crate) fn principal(caller: Option<&Caller>) -> Option<Principal> {
    let caller = caller?;
    let peer = caller.peer.as_ref()?;
    Some(Principal {
        id: peer.id.to_string(),
        serial: peer.serial.clone(),
        roles: peer.roles(),
        source: caller.source.to_string(),
    })
}

/// The only region that an order concerns.
fn region_of(kind: &IntentKind, view: &View) -> Option<String> {
    let actions = &view.input.memory.actions;
    match kind {
        IntentKind::Approve { action } | IntentKind::Abort { action } => {
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

/// The principal of a decision, for operators.
pub(crate) fn principal_message(principal: Principal) -> v1::Principal {
    let Principal {
        id,
        serial,
        roles,
        source,
    } = principal;
    v1::Principal {
        id,
        serial,
        roles,
        source,
    }
}
