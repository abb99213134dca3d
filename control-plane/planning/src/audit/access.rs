//! Entries of the audit log about access: calls that were denied, tokens, and what they were given for. They hold no decision.

use serde::{Deserialize, Serialize};
use topology::Moment;

/// Longest text of an entry, in bytes: callers have a hand in it.
const TEXT_BYTES_MAX: usize = 400;

/// The caller, as the certificate of the connection proved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Principal {
    /// SPIFFE id.
    pub id: String,
    /// Serial number of the certificate, in hex.
    pub serial: String,
    /// The roles in the certificate, separated by commas.
    pub roles: String,
    /// Address and port of the connection.
    pub source: String,
}

/// The kinds of access that are recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AccessKind {
    /// A call that the caller's certificate does not allow.
    Denied,
    /// An admin made a token with which one node may join.
    TokenMade,
    /// A node got its first certificate for a token.
    Joined,
    /// A token was no good.
    JoinRefused,
    /// An operator got a certificate for a token.
    LoggedIn,
    /// An operator's token was no good.
    LoginRefused,
    /// The sealed credential for emergencies was used.
    BreakGlass,
}

impl AccessKind {
    /// The kind as reasons of decisions are written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::TokenMade => "token-made",
            Self::Joined => "joined",
            Self::JoinRefused => "join-refused",
            Self::LoggedIn => "logged-in",
            Self::LoginRefused => "login-refused",
            Self::BreakGlass => "break-glass",
        }
    }
}

/// One use of access, or the same one several times.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Access {
    /// Its kind.
    pub kind: AccessKind,
    /// The control plane that was called.
    pub control_plane: String,
    /// The caller; none for a stranger who showed a token. Of several calls: that of the newest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<Principal>,
    /// The call and its outcome. Of several calls: that of the newest.
    pub text: String,
    /// The number of calls.
    pub times: u64,
    /// Time of the first.
    pub first: Moment,
    /// Time of the newest.
    pub last: Moment,
}

impl Access {
    /// One call at this moment.
    pub fn once(kind: AccessKind, control_plane: &str, principal: Option<Principal>, text: &str, now: Moment) -> Self {
        Self {
            kind,
            control_plane: control_plane.to_owned(),
            principal,
            text: harmless(text),
            times: 1,
            first: now,
            last: now,
        }
    }
}

/// The text as it may stand on other people's terminals: short, and without control characters.
fn harmless(text: &str) -> String {
    let visible = text.chars().map(|c| match topology::text::is_hidden(c) {
        true => '?',
        false => c,
    });
    let mut kept = String::new();
    for c in visible {
        if kept.len() + c.len_utf8() > TEXT_BYTES_MAX {
            break;
        }
        kept.push(c);
    }
    kept
}

/// An entry of the audit log about access.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessEntry {
    /// Grows by one, with those of decisions.
    pub number: u64,
    /// Hash of the entry before.
    pub previous: String,
    /// Time of recording.
    pub at: Moment,
    /// The record.
    pub access: Access,
    /// The oldest entry that was kept when this one was written.
    pub oldest: u64,
}

impl AccessEntry {
    /// The bytes that are stored and hashed.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("an entry holds only maps with text keys, which JSON can write")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callers_text_is_short_and_moves_no_cursor() {
        let text = format!("report as \u{1b}[2J{}", "é".repeat(400));
        let access = Access::once(AccessKind::Denied, "cp-1", None, &text, Moment(1));
        assert!(access.text.starts_with("report as ?[2Jé"), "{}", access.text);
        assert!(access.text.len() <= TEXT_BYTES_MAX);
    }
}
