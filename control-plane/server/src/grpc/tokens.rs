//! Makes tokens with which new processes join; `joining` takes them.

use std::time::Duration;

use api::v1;
use identity::{Caller, Identity, Role, join::Token};
use planning::audit::AccessKind;
use tonic::Status;
use topology::Topology;

use super::{
    certificates::is_known,
    guard,
    parse::{REASON_BYTES_MAX, required_text},
};
use crate::{
    access::{self, Accesses},
    records::{self, JOINS_MAX, JoinToken, RecordError},
    store::Store,
};

/// Life of a token: long enough to walk to another machine.
const LIFE_DEFAULT: Duration = Duration::from_secs(15 * 60);
const LIFE_MIN: Duration = Duration::from_secs(60);
const LIFE_MAX: Duration = Duration::from_secs(3_600);

/// Makes a token for an admin, keeps its hash in the store, and tells the audit log of it.
pub(super) async fn make(
    store: &dyn Store,
    own: Option<&Identity>,
    accesses: &Accesses,
    topology: &Topology,
    caller: Option<&Caller>,
    request: v1::TokenRequest,
) -> Result<v1::Token, Status> {
    let v1::TokenRequest { role, life_ms, reason } = request;
    let reason = required_text("reason", &reason, REASON_BYTES_MAX)?;
    let life = match life_ms {
        0 => LIFE_DEFAULT,
        ms => Duration::from_millis(ms),
    };
    if !(LIFE_MIN..=LIFE_MAX).contains(&life) {
        return Err(Status::invalid_argument(
            "life: a token lives for one minute to one hour, so that a forgotten one is worth nothing; write 1m to 60m",
        ));
    }
    let role: Role = role
        .parse()
        .map_err(|error: identity::BadId| Status::invalid_argument(format!("role: {error}")))?;
    match role {
        Role::Operator(_) => {
            return Err(Status::invalid_argument(
                "role: operators log in; `meridian login NAME --roles ROLE`",
            ));
        }
        Role::Etcd(_) => {
            return Err(Status::invalid_argument(
                "role: etcd has an authority of its own; `meridian cert issue etcd/NAME --address IP --ca DIR --into DIR`",
            ));
        }
        _ if !is_known(topology, &role) => {
            let text = format!(
                "role: {role} is not in the topology; add it first with `meridian topology apply FILE --reason WHY`"
            );
            return Err(Status::not_found(text));
        }
        _ => {}
    }
    let by = guard::proven(caller).zip(own);
    let (peer, own) = by.ok_or_else(|| {
        Status::permission_denied(
            "a token is made for whoever shows a certificate, by a control plane that has one; use https://",
        )
    })?;
    let token = Token::new(role.clone(), own).ok_or_else(|| {
        Status::unavailable("the certificate of this control plane rests on none of its roots; renew it")
    })?;
    let now = daemon::clock::now();
    let kept = JoinToken {
        role: role.to_string(),
        until: now + life,
        by: peer.id.to_string(),
    };
    let text = format!("token for {role} until {:#} UTC: {reason}", kept.until);
    let made = accesses.once(AccessKind::TokenMade, caller, &text);
    let is_kept = records::keep_join_token(store, &token.hash(), &kept, (accesses.key(&made), &made), now).await;
    match is_kept {
        Ok(true) => {
            access::log(&made);
            Ok(v1::Token {
                token: token.to_string(),
                until_ms: kept.until.0,
            })
        }
        Ok(false) => Err(Status::resource_exhausted(format!(
            "{JOINS_MAX} tokens wait to be used; use them, or wait until they have ended"
        ))),
        Err(error @ RecordError::Unreadable { .. }) => Err(Status::data_loss(error.to_string())),
        Err(RecordError::Store(error)) => Err(Status::unavailable(error.to_string())),
    }
}
