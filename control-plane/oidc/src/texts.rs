//! The sentences about identity providers and their people. The person who logs in reads those of the device flow; that person and the
//! operator of the control plane read those about tokens.
//!
//! A sentence says what is wrong and, after a semicolon, what to do. Sentences without a semicolon are causes: they stand behind a
//! sentence of the command or of the control plane, which says what to do.

use std::fmt::Display;

// The provider.

pub(crate) fn not_private(url: &str) -> String {
    format!("{url:.200} is no address of a provider; write https:// and a host, without a name or a password before it")
}

pub(crate) fn bad_roots(why: &dyn Display) -> String {
    format!("the provider's roots cannot be read: {why}; name a file with certificates in PEM")
}

/// The cause in [`bad_roots`] for a file in PEM without a certificate.
pub(crate) const NO_ROOT: &str = "there is none";

pub(crate) fn no_answer(url: &str, why: &dyn Display) -> String {
    format!("{url}: {why}")
}

/// The cause in [`no_answer`] for an answer that is an error of HTTP.
pub(crate) fn bad_status(status: u16) -> String {
    format!("status {status}")
}

pub(crate) fn malformed(url: &str, what: &str, why: &dyn Display) -> String {
    format!(
        "{url} answered with something else than {what}: {why}; check that the issuer is a provider of OpenID Connect"
    )
}

/// The kinds of content in [`malformed`].
pub(crate) const METADATA: &str = "metadata";
pub(crate) const OAUTH_ANSWER: &str = "an answer of OAuth 2.0";
pub(crate) const DEVICE_CODE: &str = "a device code";

pub(crate) fn other_issuer(asked: &str, found: &str) -> String {
    format!("{asked} calls itself {found}; write that as the issuer, or another address")
}

pub(crate) fn no_device_flow(issuer: &str) -> String {
    format!(
        "{issuer} offers no device flow (device_authorization_endpoint); turn it on for this client at the provider"
    )
}

// The device flow.

pub(crate) const DENIED: &str =
    "the provider says that access was denied; log in again, or ask the provider's administrator to let you";
pub(crate) const ENDED: &str = "the code has ended before anybody signed in; log in again";
pub(crate) const NO_ID_TOKEN: &str =
    "the provider gave no id token; write a scope with openid in it in [operators.oidc]";

pub(crate) fn provider_refuses(error: &str) -> String {
    format!("the provider refuses: {error}; compare client_id and scope in [operators.oidc] with the provider's client")
}

/// The cause in [`provider_refuses`] for a device flow that did not begin.
pub(crate) const BEGAN_NONE: &str = "it began no device flow";

// Tokens and people.

/// The control plane's log says what to do.
pub(crate) fn no_keys(why: &str) -> String {
    format!("the keys of the identity provider cannot be read: {why}")
}

/// The cause in [`no_keys`] while another login waits for the provider's first answer.
pub(crate) const IS_ASKED: &str = "it is being asked";

/// The cause, a sentence of the crate `auth`, says what to do.
pub(crate) fn token_refused(why: &dyn Display) -> String {
    format!("the id token is refused: {why}")
}

pub(crate) fn no_operator_name(claim: &str, found: &str) -> String {
    format!(
        "the claim {claim} is no operator's name ({found}); names have letters, digits, '.', '-' and '_', at most 64: set name_claim in \
         [operators.oidc] to a claim that fits and that nobody chooses"
    )
}

/// The content in [`no_operator_name`] of a token without the claim.
pub(crate) const MISSING: &str = "missing";

pub(crate) fn no_role(name: &str) -> String {
    format!(
        "none of the groups of {name} has a role here; add one to [[operators.oidc.role]], or the person to a group"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sentence_says_what_is_wrong_and_what_to_do() {
        for text in [
            not_private("http://id.example"),
            bad_roots(&NO_ROOT),
            malformed("https://id.example", METADATA, &"no object"),
            malformed("https://id.example", OAUTH_ANSWER, &"no object"),
            malformed("https://id.example", DEVICE_CODE, &"no object"),
            other_issuer("https://id.example", "https://other.example"),
            no_device_flow("https://id.example"),
            DENIED.to_owned(),
            ENDED.to_owned(),
            NO_ID_TOKEN.to_owned(),
            provider_refuses(BEGAN_NONE),
            no_operator_name("sub", MISSING),
            no_role("ada"),
            token_refused(&auth::Denied::Expired),
        ] {
            assert_eq!(text.split("; ").count(), 2, "not two parts: {text}");
            assert!(!text.ends_with(['.', ';', ':']) && text.len() < 240, "{text}");
        }
    }

    #[test]
    fn every_cause_names_what_failed_and_leaves_the_advice_to_the_sentence_before_it() {
        for text in [no_answer("https://id.example", &bad_status(503)), no_keys(IS_ASKED)] {
            assert!(
                text.contains(": ") && !text.contains("; ") && !text.ends_with(['.', ':']),
                "{text}"
            );
        }
    }
}
