//! The sentences of refused credentials, for the developers of devices, and of sets of keys that cannot be used, for operators. The
//! problems of a document of devices stand beside its rules.
//!
//! A refusal says what is wrong and, after a semicolon, what the device or its developer does.

// Refusals.

pub(crate) const NO_CREDENTIAL: &str = "this service needs a credential; send Authorization: Bearer KEY, or the WebSocket subprotocol \
                                        openai-insecure-api-key.KEY";
pub(crate) const UNKNOWN_KEY: &str = "this key is not known; check it, or ask its operator for another";
pub(crate) const EXPIRED: &str = "this credential has expired; ask for a new one";
pub(crate) const NOT_YET_VALID: &str = "this token is not valid yet; check the clock of its issuer";
pub(crate) const BAD_TOKEN: &str = "this token is not one of the issuer that this service believes; sign in again";
pub(crate) const UNKNOWN_SIGNER: &str =
    "this token is signed with a key that its issuer does not publish; sign in again";
pub(crate) const WRONG_AUDIENCE: &str =
    "this token was issued for another service, or by another issuer; ask for one for this service";
pub(crate) const NO_KEYS: &str = "this edge has not got the keys of the tokens' issuer yet; try again";
pub(crate) const UNKNOWN_TENANT: &str =
    "this credential names a tenant that this service does not know; ask its operator";
pub(crate) const REVOKED: &str = "this credential was revoked; ask its operator";

// Sets of keys. The edge says before it that the last keys stay in force, and what to check.

pub(crate) fn set_too_long(bytes: usize, bytes_max: usize) -> String {
    format!("it has {bytes} bytes, and a set of keys at most {bytes_max}")
}

pub(crate) fn not_a_set(why: impl std::fmt::Display) -> String {
    format!("it is no JSON Web Key Set (RFC 7517): {why}")
}

pub(crate) fn no_key_for_signatures(keys: usize) -> String {
    format!("none of its {keys} keys is for signatures by ES256, ES384, EdDSA or RS256 to RS512")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_says_what_is_wrong_and_what_to_do() {
        for text in [
            NO_CREDENTIAL,
            UNKNOWN_KEY,
            EXPIRED,
            NOT_YET_VALID,
            BAD_TOKEN,
            UNKNOWN_SIGNER,
            WRONG_AUDIENCE,
            NO_KEYS,
            UNKNOWN_TENANT,
            REVOKED,
        ] {
            assert_eq!(text.split("; ").count(), 2, "not two parts: {text}");
            assert!(text.starts_with("this ") && !text.ends_with('.'), "{text}");
        }
    }

    #[test]
    fn a_set_of_keys_is_named_with_its_fault() {
        for text in [
            set_too_long(70_000, 65_536),
            not_a_set("no object"),
            no_key_for_signatures(2),
        ] {
            assert!(!text.contains("; ") && !text.ends_with(['.', ':']), "{text}");
        }
    }
}
