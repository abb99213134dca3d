//! The opening of a session, new or with the memory of an earlier one, and the error for a device whose session is lost.

use std::{sync::Arc, time::Duration};

use axum::http::{HeaderMap, StatusCode};
use dialogue::Zone;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use topology::Moment;
use uuid::Uuid;
use wire::{Lost, RESUMES_HEADER, REVISION_HEADER, Resumes, SESSION_HEADER, SESSION_UNKNOWN};

use super::{
    fields::{FieldError, only, refuse, text},
    session::Snapshot,
};
use crate::{error::ApiError, live::Claim, stack::Stack, store::Memory};

/// A store that answers later than this does not hold up the conversation.
pub(super) const STORE_PATIENCE: Duration = Duration::from_millis(500);
/// First characters of a session's name.
const PREFIX: &str = "sess_";
/// Names are ours, or an edge's; longer ones are neither's.
const NAME_BYTES_MAX: usize = 64;
/// Longest id that an edge gives a session.
const ID_BYTES_MAX: usize = 256;
/// The header by which a device says in which time zone it is.
const ZONE_HEADER: &str = "meridian-zone";

/// The options with which a client connects.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ClientOptions {
    /// The client wants the events named `meridian.*`.
    pub(super) ours: bool,
    /// The client asks for the beta protocol, which no stack speaks.
    pub(super) beta: bool,
}

/// A session about to begin.
pub(super) struct Opening {
    /// As its client sees it: with an edge in front, a token that leads back to this stack.
    pub(super) id: String,
    pub(super) model: String,
    /// The memory of the earlier connection, when the session is resumed.
    pub(super) memory: Option<Memory>,
    /// The reason why a session that the device asked for is not resumed.
    pub(super) lost: Option<Lost>,
    pub(super) zone: Option<Zone>,
    pub(super) options: ClientOptions,
    pub(super) claim: Claim,
    pub(super) opened_at: Moment,
}

impl Opening {
    /// A session that nobody had before, for tests and the fuzzer.
    pub(super) fn of_new(stack: &Stack, id: &str) -> Self {
        use futures_util::FutureExt as _;
        Self {
            id: id.to_owned(),
            model: "m".to_owned(),
            memory: None,
            lost: None,
            zone: None,
            options: ClientOptions::default(),
            claim: stack.live.claim(id).now_or_never().expect("nobody is waited for"),
            opened_at: Moment(0),
        }
    }
}

/// The session's own name: what stays when its id, which says where it is, changes.
pub(super) fn name_of(id: &str) -> &str {
    id.split_once('.').map_or(id, |(name, _)| name)
}

/// A session's name in logs. Any client that knows the name can resume the session, so logs have a hash of it.
pub(super) fn logged(name: &str) -> String {
    /// Enough to tell a day's sessions of one stack apart.
    const BYTES: usize = 6;
    hex::encode(&Sha256::digest(name_of(name))[..BYTES])
}

/// The zone that a device says it is in, by header or by `?zone=`; of a device that names none, the zone of its home region, which the
/// edge says.
pub(super) fn zone(headers: &HeaderMap, parameter: Option<&str>) -> Result<Option<Zone>, ApiError> {
    let header = headers
        .get(ZONE_HEADER)
        .map(|value| String::from_utf8_lossy(value.as_bytes()));
    let Some(named) = header.as_deref().or(parameter) else {
        // Not the device's fault if this stack knows no such zone.
        let home = headers.get(wire::HOME_ZONE_HEADER).and_then(|zone| zone.to_str().ok());
        return Ok(home.and_then(|name| Zone::parse(name).ok()));
    };
    let refused =
        |error: dialogue::UnknownZone| ApiError::new(StatusCode::BAD_REQUEST, "invalid_zone", error.to_string());
    Zone::parse(named).map(Some).map_err(refused)
}

/// Prepares a session: loads what is remembered of the one to resume, and takes that one over from another connection that may
/// still have it. An error when this stack does not remember it and the edge would rather ask another one.
pub(super) async fn prepare(
    stack: &Arc<Stack>,
    headers: &HeaderMap,
    resume: Option<&str>,
    zone: Option<Zone>,
    options: ClientOptions,
    model: String,
) -> Result<Opening, ApiError> {
    let rule = headers
        .get(RESUMES_HEADER)
        .and_then(|rule| Resumes::parse(rule.as_bytes()));
    let given = given_id(headers);
    let wanted = match rule {
        Some(Resumes::Lost(_) | Resumes::State) => None,
        Some(Resumes::IfKnown) | None => resume.map(name_of).filter(|name| is_name(name)),
    };
    let found = match wanted {
        Some(name) => load(stack, name).await.map(|memory| (name, memory)),
        None => None,
    };
    if rule == Some(Resumes::IfKnown) {
        let newest = headers
            .get(REVISION_HEADER)
            .and_then(|at| at.to_str().ok()?.parse().ok());
        look_elsewhere(found.as_ref().map(|(_, memory)| memory), newest.map(Moment))?;
    }
    let known = found.map(|(name, _)| name);
    // Without an edge the name is all there is. With one of an earlier version too.
    let id = match (given, known) {
        (Some(id), _) => id.to_owned(),
        (None, Some(name)) => name.to_owned(),
        // Any client that knows the id can resume the session, so it must not be guessable.
        (None, None) => format!("{PREFIX}{}", Uuid::new_v4().simple()),
    };
    let name = name_of(&id);
    let claim = stack.live.claim(name).await;
    let mut memory = None;
    if let Some(known) = known {
        // An edge gives a session that began without one a name of its own: the other connection has the old one.
        let _older = match known == name {
            true => None,
            false => Some(stack.live.claim(known).await),
        };
        // Once more: the connection that had it may have saved it just now.
        memory = load(stack, known).await;
        if known != name
            && let Some(memory) = &memory
            && stack.store.forget(known, memory.revision).await.is_err()
        {
            tracing::warn!(session = logged(known), "session is remembered under two names");
        }
    }
    let lost = match (rule, resume) {
        (Some(Resumes::Lost(lost)), _) => Some(lost),
        // Until the checkpoint has been read.
        (Some(Resumes::State), _) => Some(Lost::Unreachable),
        (_, Some(_)) if memory.is_none() => Some(Lost::Unknown),
        _ => None,
    };
    Ok(Opening {
        id,
        model,
        memory,
        lost,
        zone,
        options,
        claim,
        opened_at: daemon::clock::now(),
    })
}

/// An error when the edge should look for the session at other stacks: this one does not remember it, or the edge knows of a newer
/// memory, or the session may have gone on elsewhere. `newest`: the newest revision that the edge knows of; it says none when
/// there is nobody else to ask.
fn look_elsewhere(memory: Option<&Memory>, newest: Option<Moment>) -> Result<(), ApiError> {
    let message = match (memory, newest) {
        (None, _) => "this stack does not remember the session; another one may",
        (Some(memory), Some(newest)) if memory.revision <= newest => {
            "what this stack remembers of the session is out of date; another one may have it"
        }
        (Some(memory), Some(_)) if memory.may_go_on_elsewhere => {
            "the session may have gone on at another stack; come back when none has it"
        }
        (Some(_), _) => return Ok(()),
    };
    Err(ApiError {
        revision: memory.map(|memory| memory.revision),
        ..ApiError::new(StatusCode::NOT_FOUND, SESSION_UNKNOWN, message)
    })
}

/// The id that an edge gives a session.
pub(super) fn given_id(headers: &HeaderMap) -> Option<&str> {
    let given = headers.get(SESSION_HEADER)?.to_str().ok()?;
    (given.len() <= ID_BYTES_MAX && is_name(name_of(given))).then_some(given)
}

/// Whether a session can have this name: it is safe in a header, and as that of a file.
pub(crate) fn is_name(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    text.starts_with(PREFIX) && text.len() <= NAME_BYTES_MAX && text.bytes().all(is_word)
}

async fn load(stack: &Stack, name: &str) -> Option<Memory> {
    match tokio::time::timeout(STORE_PATIENCE, stack.store.load(name, daemon::clock::now())).await {
        Ok(Ok(memory)) => memory,
        Ok(Err(error)) => {
            tracing::warn!(session = logged(name), "session cannot be restored: {error:#}");
            None
        }
        Err(_) => {
            tracing::warn!(
                session = logged(name),
                "session cannot be restored: the store does not answer"
            );
            None
        }
    }
}

/// The message for a device whose session could not be resumed, so that its user sets alarms and timers again.
pub(super) fn loss(lost: Lost) -> String {
    let why = match lost {
        Lost::Unknown => "no stack remembers it any more",
        Lost::Unreachable => "the stack that remembers it cannot be reached",
        Lost::Expired => "its id is too old",
        Lost::Forged => "its id was changed, or is not of this deployment",
    };
    format!(
        "the session cannot be resumed: {why}. A new one began, without the alarms, timers, lights, settings and conversation of \
         the old one: set them again"
    )
}

/// Most items that are remembered: enough for "delete that".
const ITEMS_REMEMBERED: usize = 16;
/// A memory larger than this is kept without its items: there are thousands of them.
const REMEMBERED_BYTES_MAX: usize = 64 << 10;

/// Settings and items of a session, as the store keeps them beside the dialogue.
pub(super) fn remember(mut snapshot: Snapshot) -> Option<Arc<str>> {
    // Utterances that are not recognised yet are lost with the connection.
    snapshot.items.keep_known(ITEMS_REMEMBERED);
    let text = serde_json::to_string(&snapshot).ok();
    let text = text.filter(|text| text.len() <= REMEMBERED_BYTES_MAX).or_else(|| {
        snapshot.items.clear();
        serde_json::to_string(&snapshot).ok()
    });
    text.map(Arc::from)
}

/// Reads the settings and items of an earlier connection. They are empty if another version wrote what this one cannot read.
pub(super) fn recall(text: &str) -> Snapshot {
    serde_json::from_str(text).unwrap_or_else(|error| {
        tracing::warn!(%error, "the settings of a session are not understood");
        Snapshot::default()
    })
}

/// The zone of the device after a `session.update`.
pub(super) fn zone_in(change: &Value, zone: Option<&Zone>) -> Result<Option<Zone>, FieldError> {
    const PLACE: &str = "session.meridian";
    let ours = match change.get("meridian") {
        None | Some(Value::Null) => return Ok(zone.cloned()),
        Some(ours) => only(ours, PLACE, &["zone"])?,
    };
    match ours.get("zone") {
        None => Ok(zone.cloned()),
        Some(Value::Null) => Ok(None),
        Some(_) => {
            let named = text(ours, PLACE, "zone")?.unwrap_or_default();
            Zone::parse(named)
                .map(Some)
                .or_else(|error| refuse("session.meridian.zone", error.to_string()))
        }
    }
}
