//! The opening of a session, new or with the memory of an earlier one, and the error for a device whose session is lost.

use std::{sync::Arc, time::Duration};

use axum::http::{HeaderMap, StatusCode};
use dialogue::Zone;
use serde_json::Value;
use topology::Moment;
use wire::{Lost, RESUMES_HEADER, REVISION_HEADER, Resumes, SESSION_HEADER, SESSION_UNKNOWN};

use super::{
    fields::{FieldError, only, refuse, text},
    texts,
};
use crate::{
    error::ApiError,
    ids::{is_session_name, logged, name_of, new_session_name},
    live::Claim,
    stack::Stack,
    store::Memory,
    texts as log,
};

/// Deadline of the store: the conversation does not wait longer for it.
pub(super) const STORE_LIMIT: Duration = Duration::from_millis(500);
/// Longest id that an edge gives a session.
const ID_BYTES_MAX: usize = 256;
/// The header with the time zone of the device.
const ZONE_HEADER: &str = "meridian-zone";

/// The options with which a client connects.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ClientOptions {
    /// The client wants the events named `meridian.*`.
    pub(super) ours: bool,
    /// The client asks for the beta protocol, which no stack speaks.
    pub(super) beta: bool,
    /// The client wants a session that hears and never answers.
    pub(super) only_transcribes: bool,
}

/// A session about to begin.
pub(super) struct Opening {
    /// The id for the client: behind an edge a token that leads back to this stack.
    pub(super) id: String,
    pub(super) model: String,
    /// The memory of the earlier connection of a resumed session.
    pub(super) memory: Option<Memory>,
    /// The reason why the stack does not resume the session that the device asked for.
    pub(super) lost: Option<Lost>,
    /// The zone that the device names.
    pub(super) zone: Option<Zone>,
    /// The zone of its home region.
    pub(super) home_zone: Option<Zone>,
    pub(super) options: ClientOptions,
    pub(super) claim: Claim,
    pub(super) opened_at: Moment,
}

impl Opening {
    /// A new session, for tests and the fuzzer.
    pub(super) fn of_new(stack: &Stack, id: &str) -> Self {
        use futures_util::FutureExt as _;
        Self {
            id: id.to_owned(),
            model: "m".to_owned(),
            memory: None,
            lost: None,
            zone: None,
            home_zone: None,
            options: ClientOptions::default(),
            claim: stack.live.claim(id).now_or_never().expect("nobody is waited for"),
            opened_at: Moment(0),
        }
    }
}

/// The zone that a device names, by header or by `?zone=`.
pub(super) fn zone(headers: &HeaderMap, parameter: Option<&str>) -> Result<Option<Zone>, ApiError> {
    let header = headers
        .get(ZONE_HEADER)
        .map(|value| String::from_utf8_lossy(value.as_bytes()));
    let Some(named) = header.as_deref().or(parameter) else {
        return Ok(None);
    };
    let refused =
        |error: dialogue::UnknownZone| ApiError::new(StatusCode::BAD_REQUEST, "invalid_zone", error.to_string());
    Zone::parse(named).map(Some).map_err(refused)
}

/// The zone of the device's home region, which the edge names. A stack ignores an unknown one: the device did nothing wrong.
fn home_zone(headers: &HeaderMap) -> Option<Zone> {
    let named = headers.get(wire::HOME_ZONE_HEADER)?.to_str().ok()?;
    Zone::parse(named).ok()
}

/// Prepares a session: loads the memory of the one to resume, and takes it over from another connection that may still have it. An error
/// when this stack does not remember it and the edge asks another stack then.
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
    let wanted = match (rule, given) {
        (Some(Resumes::IfKnown), _) | (None, None) => resume.map(name_of).filter(|name| is_session_name(name)),
        // The edge that names this session vouches for no earlier one.
        (Some(Resumes::Lost(_) | Resumes::State), _) | (None, Some(_)) => None,
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
    // Without an edge the name is the whole id.
    let id = match (given, known) {
        (Some(id), _) => id.to_owned(),
        (None, Some(name)) => name.to_owned(),
        (None, None) => new_session_name(),
    };
    let name = name_of(&id);
    let claim = stack.live.claim(name).await;
    let mut memory = None;
    if let Some(known) = known {
        // An edge gives a new name to a session that began without one: the other connection has the old name.
        let _older = match known == name {
            true => None,
            false => Some(stack.live.claim(known).await),
        };
        // Loaded once more: the connection that had it may have saved it just now.
        memory = load(stack, known).await;
        if known != name
            && let Some(memory) = &memory
            && stack.store.forget(known, memory.revision).await.is_err()
        {
            tracing::warn!(session = logged(known), "{}", log::TWO_NAMES);
        }
    }
    let lost = match (rule, resume) {
        (Some(Resumes::Lost(lost)), _) => Some(lost),
        // In force until the checkpoint is read.
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
        home_zone: home_zone(headers),
        options,
        claim,
        opened_at: daemon::clock::now(),
    })
}

/// An error when the edge must look for the session at other stacks: this one does not remember it, the edge knows of a newer memory, or
/// the session may have gone on elsewhere. `newest` is the newest revision that the edge knows of; without one there is no other stack
/// to ask.
fn look_elsewhere(memory: Option<&Memory>, newest: Option<Moment>) -> Result<(), ApiError> {
    let message = match (memory, newest) {
        (None, _) => texts::NOT_REMEMBERED,
        (Some(memory), Some(newest)) if memory.revision <= newest => texts::REMEMBERED_TOO_OLD,
        (Some(memory), Some(_)) if memory.may_go_on_elsewhere => texts::MAY_BE_ELSEWHERE,
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
    (given.len() <= ID_BYTES_MAX && is_session_name(name_of(given))).then_some(given)
}

async fn load(stack: &Stack, name: &str) -> Option<Memory> {
    match tokio::time::timeout(STORE_LIMIT, stack.store.load(name, daemon::clock::now())).await {
        Ok(Ok(memory)) => memory,
        Ok(Err(error)) => {
            tracing::warn!(
                session = logged(name),
                error = format!("{error:#}"),
                "{}",
                log::NOT_RESTORED
            );
            None
        }
        Err(_) => {
            tracing::warn!(session = logged(name), error = log::STORE_LATE, "{}", log::NOT_RESTORED);
            None
        }
    }
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
