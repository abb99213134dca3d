//! The answers to those who have no certificate yet, and to admins who make tokens for them; and the lines of the audit log about both.
//!
//! A refusal says after a semicolon or a colon what to do.

use std::fmt::Display;

use topology::Moment;

// Tokens that admins make.

pub(crate) fn life_out_of_range() -> &'static str {
    "life: a token lives for one minute to one hour, so that a forgotten one is worth nothing; write 1m to 60m"
}

pub(crate) fn bad_role(why: &str) -> String {
    format!("role: {why}")
}

pub(crate) fn operators_log_in() -> &'static str {
    "role: operators log in; `meridian login NAME --roles ROLE`"
}

pub(crate) fn etcd_is_issued() -> &'static str {
    "role: etcd has an authority of its own; `meridian cert issue etcd/NAME --address IP --ca DIR --into DIR`"
}

/// A control plane's certificate orders everybody, and the topology does not name control planes: nobody could take it back.
pub(crate) fn control_planes_are_issued() -> &'static str {
    "role: a control plane gets its certificate where the authority's key is; `meridian cert issue control-plane/NAME --ca DIR --into DIR`"
}

pub(crate) fn role_not_in_topology(role: impl Display) -> String {
    format!("role: {role} is not in the topology; add it first with `meridian topology apply FILE --reason WHY`")
}

pub(crate) fn maker_proves_nothing() -> &'static str {
    "this control plane makes tokens only for an admin with a certificate, and must have one itself; use https://"
}

pub(crate) fn own_root_unknown() -> &'static str {
    "the certificate of this control plane rests on none of its roots; renew it"
}

pub(crate) fn too_many_tokens(most: usize) -> String {
    format!("{most} tokens wait to be used; use them, or wait until they have ended")
}

pub(crate) fn token_made(role: impl Display, until: Moment, reason: &str) -> String {
    format!("token for {role} until {until:#} UTC: {reason}")
}

// Those who join or log in.

/// The answer to a token that is not there.
pub(crate) fn unknown_token() -> &'static str {
    "the token is not known: it was used, it has ended, or it is another deployment's; an admin makes another with \
     `meridian cert token --role KIND/NAME --reason WHY`"
}

/// The answer to a token that another process used.
pub(crate) fn used_token(role: &str) -> String {
    format!(
        "the token was used with another key; if that was none of your machines, somebody else is {role} now: take it out of the topology, \
         and give the process another name (`meridian history` says when it joined, and from which address)"
    )
}

pub(crate) fn used_often(times: u32) -> String {
    format!(
        "this process has shown the token {times} times; look why it does not take the answer (`meridian history` has each), and make another \
         token with `meridian cert token --role KIND/NAME --reason WHY`"
    )
}

/// The answer to a token that is in the store and was not put there by a control plane.
pub(crate) fn unvouched_token(why: impl Display) -> String {
    format!(
        "no control plane vouches for the token in the store: {why}; find out who writes into the store, and make another token with \
         `meridian cert token --role KIND/NAME --reason WHY`"
    )
}

/// Reasons for [`unvouched_token`].
pub(crate) fn signed_by_other(id: impl Display) -> String {
    format!("{id} signed it")
}

pub(crate) fn not_signed_by(id: impl Display) -> String {
    format!("it shows the certificate of {id}, whose key did not sign it")
}

pub(crate) fn signer_untrusted() -> &'static str {
    "it shows a certificate that has ended or leads to no trusted root"
}

pub(crate) fn token_unreadable(problem: &str) -> String {
    format!("it cannot be read ({problem})")
}

pub(crate) fn token_unsigned(why: impl Display) -> String {
    format!("the token cannot be signed: {why}")
}

pub(crate) fn token_of_other(role: &str) -> String {
    format!("the token is for {role}; an admin makes another with `meridian cert token --role KIND/NAME --reason WHY`")
}

pub(crate) fn left_the_topology(role: impl Display) -> String {
    format!("{role} is not in the topology; an admin adds it with `meridian topology apply FILE --reason WHY`")
}

pub(crate) fn no_credential() -> &'static str {
    "credential: missing; send a token, as `meridian login --token TOKEN` does"
}

pub(crate) fn no_provider() -> &'static str {
    "this control plane knows no identity provider; add [operators.oidc], or log in where the authority's key is"
}

/// A fault of the provider, which says nothing about the person.
pub(crate) fn provider_is_away(why: impl Display) -> String {
    format!("{why}; sign in again in a minute, or use a sealed credential (`meridian --identity DIR status`)")
}

pub(crate) fn no_issuer() -> &'static str {
    "this control plane signs no certificates; ask one that has issuer_certificate and issuer_key in [identity]"
}

pub(crate) fn cannot_sign_now() -> &'static str {
    "this control plane cannot sign now; its log says why. Try again, or ask another one"
}

pub(crate) fn bad_request(why: impl Display) -> String {
    format!("request: {why}")
}

pub(crate) fn no_plan_yet() -> &'static str {
    "this control plane has no plan yet; try again, or ask another one"
}

pub(crate) fn too_many_strangers() -> &'static str {
    "too many ask to join or to log in; try again in a few seconds"
}

pub(crate) fn store_is_away() -> &'static str {
    "the store does not answer; try again"
}

pub(crate) fn unreadable_certificate() -> &'static str {
    "the new certificate cannot be read; this is a fault of the control plane, whose log says more: report it"
}

/// `what` is a step that ended in a panic.
pub(crate) fn broke_off(what: &str) -> String {
    format!("{what} broke off; this is a fault of the control plane, whose log says more: report it")
}

pub(crate) fn head_unsigned(why: impl Display) -> String {
    format!("the head of the audit log cannot be signed: {why}")
}

// Lines of the audit log.

pub(crate) fn may_not_join(source: &str, role: &str, why: &str) -> String {
    format!("a process at {source} may not join as {role:.100}: {why}")
}

pub(crate) fn joined(role: impl Display, by: &str) -> String {
    format!("{role} joined with a token of {by}")
}

pub(crate) fn joined_again(role: impl Display, by: &str) -> String {
    format!("{role} joined again, with the same key and the same token of {by}")
}

pub(crate) fn may_not_log_in(source: &str, why: &str) -> String {
    format!("a person or program at {source} may not log in: {why}")
}

/// `how` is the credential, in words.
pub(crate) fn logged_in(name: &str, how: &str, until: Moment) -> String {
    format!("{name} logged in with {how}, until {until:#} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_says_what_to_do() {
        let refusals = [
            life_out_of_range().to_owned(),
            operators_log_in().to_owned(),
            etcd_is_issued().to_owned(),
            control_planes_are_issued().to_owned(),
            no_plan_yet().to_owned(),
            too_many_strangers().to_owned(),
            role_not_in_topology("edge/edge-dub"),
            maker_proves_nothing().to_owned(),
            own_root_unknown().to_owned(),
            too_many_tokens(64),
            unknown_token().to_owned(),
            used_token("edge/edge-dub"),
            used_often(10),
            unvouched_token(signed_by_other("spiffe://z/edge/edge-dub")),
            unvouched_token(not_signed_by("spiffe://z/control-plane/cp-1")),
            unvouched_token(signer_untrusted()),
            unvouched_token(token_unreadable("no JSON")),
            provider_is_away("the keys cannot be read"),
            token_of_other("edge/edge-dub"),
            left_the_topology("edge/edge-dub"),
            no_credential().to_owned(),
            no_provider().to_owned(),
            no_issuer().to_owned(),
            cannot_sign_now().to_owned(),
            store_is_away().to_owned(),
            unreadable_certificate().to_owned(),
            broke_off("signing"),
        ];
        for text in &refusals {
            assert!(text.contains("; "), "does not say what to do: {text}");
            assert!(!text.ends_with(['.', ';', ':']), "{text}");
        }
        // One of the above, or another crate's refusal, stands at the end of these.
        let refusal = unknown_token();
        for text in [
            bad_role(refusal),
            bad_request(refusal),
            head_unsigned(refusal),
            token_unsigned(refusal),
            may_not_join("192.0.2.1", "edge/edge-dub", refusal),
            may_not_log_in("192.0.2.1", refusal),
        ] {
            assert!(text.ends_with(&format!(": {refusal}")), "{text}");
        }
    }

    #[test]
    fn a_line_of_the_audit_log_names_who_got_in_and_by_what() {
        let noon = Moment(43_200_000);
        for (line, by) in [
            (token_made("edge/edge-dub", noon, "a new edge"), "a new edge"),
            (joined("edge/edge-dub", "ada"), "a token of ada"),
            (joined_again("edge/edge-dub", "ada"), "token of ada"),
            (logged_in("ada", "the provider", noon), "the provider"),
        ] {
            assert!(line.contains(by) && !line.ends_with('.'), "{line}");
        }
    }
}
