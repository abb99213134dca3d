//! Parses requests of operators.

use std::time::Duration;

use api::v1;
use planning::REQUEST_LIFE;
use tonic::Status;
use topology::{Intent, IntentKind, RegionId};

use crate::{records::DocumentKind, texts::calls as texts, view::View};

/// Longest author or token, in bytes.
pub(super) const NAME_BYTES_MAX: usize = 64;
/// Longest reason, in bytes. The requests of a day are remembered, and each decision is recorded with all of them.
pub(super) const REASON_BYTES_MAX: usize = 300;
/// Longest duration of a freeze, override or drain. A longer one should be a change of policy.
const STANDING_MAX: Duration = Duration::from_secs(24 * 3600);

/// Parses a request into an intent for the planner. `author_of` finds its author from the name that it claims.
pub(super) fn intent(
    request: v1::ActRequest,
    author_of: impl FnOnce(&str) -> Result<String, Status>,
) -> Result<Intent, Status> {
    let v1::ActRequest {
        author,
        reason,
        token,
        duration_ms,
        kind,
    } = request;
    let kind = kind.ok_or_else(|| Status::invalid_argument(texts::kind_missing()))?;
    let kind = IntentKind::try_from(kind)?;
    let duration = Duration::from_millis(duration_ms);
    let life = if kind.stands() {
        if duration.is_zero() || duration > STANDING_MAX {
            return Err(Status::invalid_argument(texts::duration_out_of_range()));
        }
        duration
    } else {
        REQUEST_LIFE
    };
    let now = daemon::clock::now();
    Ok(Intent {
        id: required_text("token", &token, NAME_BYTES_MAX)?,
        kind,
        author: author_of(&author)?,
        reason: required_text("reason", &reason, REASON_BYTES_MAX)?,
        created_at: now,
        expires_at: now + life,
    })
}

pub(super) fn document_kind(kind: v1::DocumentKind) -> Result<DocumentKind, Status> {
    match kind {
        v1::DocumentKind::Topology => Ok(DocumentKind::Topology),
        v1::DocumentKind::Policy => Ok(DocumentKind::Policy),
        v1::DocumentKind::Unspecified => Err(Status::invalid_argument(texts::kind_missing())),
    }
}

pub(super) fn known_region(view: &View, name: &str) -> Result<RegionId, Status> {
    let regions = &view.input.topology.regions;
    RegionId::new(name)
        .ok()
        .filter(|region| regions.contains_key(region))
        .ok_or_else(|| {
            let known: Vec<&str> = regions.keys().map(RegionId::as_str).collect();
            Status::not_found(texts::no_such_region(name, &known))
        })
}

/// Trims a required text; an error if it is empty, too long or has hidden characters.
pub(super) fn required_text(field: &str, text: &str, bytes_max: usize) -> Result<String, Status> {
    let text = text.trim();
    let problem = match text.len() {
        0 => texts::missing(field),
        // The text is printed on other people's terminals, where control characters could mislead.
        _ if text.contains(topology::text::is_hidden) => texts::has_hidden_letters(field),
        bytes if bytes > bytes_max => texts::too_long(field, bytes, bytes_max),
        _ => return Ok(text.to_owned()),
    };
    Err(Status::invalid_argument(problem))
}
