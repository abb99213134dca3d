//! Makes tokens with which new processes join; `joining` takes them.

use std::{sync::Arc, time::Duration};

use api::v1;
use identity::{
    Caller, Identity, Role,
    join::Token,
    signature::{self, Signature},
};
use planning::audit::AccessKind;
use tonic::Status;
use topology::{Moment, Topology};

use super::{
    certificates::is_known,
    guard,
    parse::{REASON_BYTES_MAX, required_text},
};
use crate::{
    access::{self, Accesses},
    records::{self, JOINS_MAX, JoinToken, RecordError},
    store::Store,
    texts::joining as texts,
};

/// Life of a token: long enough to walk to another machine.
const LIFE_DEFAULT: Duration = Duration::from_secs(15 * 60);
const LIFE_MIN: Duration = Duration::from_secs(60);
const LIFE_MAX: Duration = Duration::from_secs(3_600);

/// Makes a token for an admin, keeps its hash in the store with the signature of this control plane, and tells the audit log of it.
pub(super) async fn make(
    store: &dyn Store,
    own: Option<&Arc<Identity>>,
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
        return Err(Status::invalid_argument(texts::life_out_of_range()));
    }
    let role: Role = role
        .parse()
        .map_err(|error: identity::BadId| Status::invalid_argument(texts::bad_role(&error.to_string())))?;
    match role {
        Role::Operator(_) => {
            return Err(Status::invalid_argument(texts::operators_log_in()));
        }
        Role::ControlPlane(_) => {
            return Err(Status::invalid_argument(texts::control_planes_are_issued()));
        }
        Role::Etcd(_) => {
            return Err(Status::invalid_argument(texts::etcd_is_issued()));
        }
        _ if !is_known(topology, &role) => {
            return Err(Status::not_found(texts::role_not_in_topology(&role)));
        }
        _ => {}
    }
    let by = guard::proven(caller).zip(own);
    let (peer, own) = by.ok_or_else(|| Status::permission_denied(texts::maker_proves_nothing()))?;
    let token = Token::new(role.clone(), own).ok_or_else(|| Status::unavailable(texts::own_root_unknown()))?;
    let now = daemon::clock::now();
    // The signature is worth as much as its certificate, and as long.
    let until = (now + life).min(own.own().until);
    let kept = vouched(own.clone(), &token.hash(), (&role, until), &peer.id.to_string()).await?;
    let text = texts::token_made(&role, kept.until, &reason);
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
        Ok(false) => Err(Status::resource_exhausted(texts::too_many_tokens(JOINS_MAX))),
        Err(error @ RecordError::Unreadable { .. }) => Err(Status::data_loss(error.to_string())),
        Err(RecordError::Store(error)) => Err(Status::unavailable(error.to_string())),
    }
}

/// The record of a token, signed by this control plane.
async fn vouched(
    own: Arc<Identity>,
    hash: &str,
    (role, until): (&Role, Moment),
    by: &str,
) -> Result<JoinToken, Status> {
    let statement = records::join_statement(hash, &role.to_string(), until, by);
    let signing = tokio::task::spawn_blocking(move || signature::sign(own.files(), &statement));
    let signed = signing
        .await
        .map_err(|_| Status::internal(texts::broke_off("signing")))?;
    let Signature { certificate, bytes } = signed.map_err(|error| Status::unavailable(texts::token_unsigned(error)))?;
    Ok(JoinToken {
        role: role.to_string(),
        until,
        by: by.to_owned(),
        certificate,
        signature: hex::encode(bytes),
        used: None,
    })
}
