//! JSON Web Tokens (RFC 7519) of one issuer, verified with the keys that it publishes (RFC 7517).
//!
//! The defences are those of RFC 8725: the algorithm comes from a list and has to be that of the key, a token without `exp`, `iss` or
//! `aud` is none, and the header's own ideas of where a key may be found (`jku`, `jwk`, `x5u`) are ignored.

use std::{
    collections::{BTreeMap, HashMap},
    str::FromStr as _,
    time::Duration,
};

use jsonwebtoken::{
    Algorithm, DecodingKey, Validation, decode, decode_header,
    errors::ErrorKind,
    jwk::{AlgorithmParameters, Jwk, JwkSet, PublicKeyUse},
};
use serde_json::Value;
use topology::Moment;

use crate::{Credential, Denied, Device, document::NAME_BYTES_MAX, ring_provider, texts};

/// Longest set of keys that is read, in bytes. Large providers publish ten keys in 10 kB.
pub const SET_BYTES_MAX: usize = 1 << 20;
/// Most keys of a set.
const KEYS_MAX: usize = 100;
/// Longest token, in bytes: request heads end at 16 KiB anyway.
const TOKEN_BYTES_MAX: usize = 8 << 10;

/// The kind of tokens that count, as `typ` in their header says it (RFC 8725 §3.11): a token that was made for something else, such as a
/// logout, must not pass for one. "JWT" or no `typ` at all says nothing, and counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Tokens with which a client uses a service: `at+jwt` too (RFC 9068).
    Access,
    /// Tokens that tell a client who signed in. They have no type of their own (OpenID Connect Core 1.0).
    Id,
}

impl Kind {
    fn has(self, typ: Option<&str>) -> bool {
        let typ = typ.unwrap_or("JWT").to_ascii_lowercase();
        // RFC 7515 §4.1.9: the prefix may be left out.
        match typ.strip_prefix("application/").unwrap_or(&typ) {
            "jwt" => true,
            "at+jwt" => self == Self::Access,
            _ => false,
        }
    }
}

/// The issuer of tokens, and what its tokens have to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issuer {
    /// `iss`.
    pub issuer: String,
    /// `aud` names one of these.
    pub audience: Vec<String>,
    /// The kind of its tokens.
    pub kind: Kind,
    /// The claim that names the tenant.
    pub tenant_claim: String,
    /// The clocks of issuer and edge may differ by this.
    pub leeway: Duration,
}

/// An issuer and the keys that it publishes.
#[derive(Debug)]
pub struct Tokens {
    issuer: Issuer,
    /// By `kid`; a key without one is at "".
    keys: HashMap<String, Known>,
}

#[derive(Debug)]
struct Known {
    key: DecodingKey,
    /// The claims that its tokens must have, and the algorithms: those of its kind, or the one that the set binds it to.
    validation: Validation,
}

/// A set of keys that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadSet {
    /// The text is too long.
    #[error("{}", texts::set_too_long(*.0, SET_BYTES_MAX))]
    TooLong(usize),
    /// The text is no set.
    #[error("{}", texts::not_a_set(.0))]
    Malformed(#[from] serde_json::Error),
    /// No key is usable.
    #[error("{}", texts::no_key_for_signatures(*.0))]
    NoKey(usize),
}

impl Tokens {
    /// Takes the keys of an issuer from the set that it publishes. Keys for other purposes and of other kinds are passed over, as RFC
    /// 7517 §5 asks for; above all secrets, which a published set would give to everybody.
    ///
    /// # Errors
    ///
    /// The text is no set, or has no key that can verify a token.
    pub fn parse(issuer: Issuer, set: &str) -> Result<Self, BadSet> {
        // Another part of the process may have done so.
        let _ = ring_provider::PROVIDER.install_default();
        if set.len() > SET_BYTES_MAX {
            return Err(BadSet::TooLong(set.len()));
        }
        let set: JwkSet = serde_json::from_str(set)?;
        let keys = set.keys.iter().take(KEYS_MAX);
        let keys: HashMap<String, Known> = keys.filter_map(|jwk| known(&issuer, jwk)).collect();
        if keys.is_empty() {
            return Err(BadSet::NoKey(set.keys.len()));
        }
        Ok(Self { issuer, keys })
    }

    /// The device that shows this token.
    ///
    /// # Errors
    ///
    /// As [`Tokens::claims`], or the token names no tenant.
    pub fn recognise(&self, token: &str, now: Moment) -> Result<Device, Denied> {
        let claims = self.claims(token, now)?;
        self.device(&claims)
    }

    /// The claims of a token that is good now. A signature costs 50 to 100 µs, so tokens that cannot be right are refused before.
    ///
    /// # Errors
    ///
    /// The token is malformed, signed by another, for another service, or out of date.
    pub fn claims(&self, token: &str, now: Moment) -> Result<BTreeMap<String, Value>, Denied> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(Denied::BadToken);
        }
        let header = decode_header(token).map_err(|_| Denied::BadToken)?;
        if !ring_provider::ALGORITHMS.contains(&header.alg) || !self.issuer.kind.has(header.typ.as_deref()) {
            return Err(Denied::BadToken);
        }
        let known = match &header.kid {
            Some(kid) => self.keys.get(kid),
            // RFC 7515 §4.1.4: without `kid` there must be no choice.
            None => self.keys.values().next().filter(|_| self.keys.len() == 1),
        };
        let known = known.ok_or(Denied::UnknownSigner)?;
        let claims = decode::<BTreeMap<String, Value>>(token, &known.key, &known.validation).map_err(|error| {
            match error.kind() {
                ErrorKind::InvalidAudience | ErrorKind::InvalidIssuer | ErrorKind::MissingRequiredClaim(_) => {
                    Denied::WrongAudience
                }
                _ => Denied::BadToken,
            }
        })?;
        self.is_in_time(&claims.claims, now)?;
        Ok(claims.claims)
    }

    fn is_in_time(&self, claims: &BTreeMap<String, Value>, now: Moment) -> Result<(), Denied> {
        let (now_s, leeway_s) = (now.0 as f64 / 1000.0, self.issuer.leeway.as_secs_f64());
        let expires = at(claims, "exp")?.ok_or(Denied::BadToken)?;
        if expires + leeway_s <= now_s {
            return Err(Denied::Expired);
        }
        if at(claims, "nbf")?.is_some_and(|from| from > now_s + leeway_s) {
            return Err(Denied::NotYetValid);
        }
        Ok(())
    }

    fn device(&self, claims: &BTreeMap<String, Value>) -> Result<Device, Denied> {
        let expires = at(claims, "exp")?.ok_or(Denied::BadToken)?;
        let text = |name: &str| {
            let text = claims.get(name).and_then(Value::as_str)?;
            (!text.is_empty() && text.len() <= NAME_BYTES_MAX && !text.contains(char::is_control)).then_some(text)
        };
        Ok(Device {
            tenant: text(&self.issuer.tenant_claim).ok_or(Denied::UnknownTenant)?.into(),
            name: text("sub").ok_or(Denied::BadToken)?.into(),
            credential: Credential::Token(text("jti").map(Into::into)),
            until: Some(Moment((expires * 1000.0) as u64) + self.issuer.leeway),
        })
    }
}

/// A time in the claims, in seconds.
fn at(claims: &BTreeMap<String, Value>, name: &str) -> Result<Option<f64>, Denied> {
    match claims.get(name) {
        None => Ok(None),
        // A time that is none must not pass for a missing one.
        Some(said) => said.as_f64().filter(|it| *it >= 0.0).map(Some).ok_or(Denied::BadToken),
    }
}

/// The key and its `kid`. `None` for a key that verifies no token.
fn known(issuer: &Issuer, jwk: &Jwk) -> Option<(String, Known)> {
    let for_signatures = !matches!(
        jwk.common.public_key_use,
        Some(PublicKeyUse::Encryption | PublicKeyUse::Other(_))
    );
    let is_public = !matches!(jwk.algorithm, AlgorithmParameters::OctetKey(_));
    if !for_signatures || !is_public {
        return None;
    }
    let only = match jwk.common.key_algorithm {
        // An algorithm that no token may use.
        Some(named) => Some(
            Algorithm::from_str(&named.to_string())
                .ok()
                .filter(|named| ring_provider::ALGORITHMS.contains(named))?,
        ),
        None => None,
    };
    let key = DecodingKey::from_jwk(jwk).ok()?;
    let is_of_key =
        |algorithm: &Algorithm| algorithm.family() == key.family() && only.is_none_or(|it| it == *algorithm);
    let mut validation = Validation {
        algorithms: ring_provider::ALGORITHMS.into_iter().filter(is_of_key).collect(),
        // `recognise` compares times with its own `now`.
        validate_exp: false,
        ..Validation::default()
    };
    validation.set_issuer(&[&issuer.issuer]);
    validation.set_audience(&issuer.audience);
    validation.set_required_spec_claims(&["iss", "aud"]);
    let kid = jwk.common.key_id.clone().unwrap_or_default();
    Some((kid, Known { key, validation }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fixtures::Provider;

    const NOW: Moment = Moment(1_796_000_000_000);

    fn tokens(provider: &Provider) -> Tokens {
        let issuer = Issuer {
            issuer: "https://id.example".to_owned(),
            audience: vec!["voice".to_owned()],
            kind: Kind::Access,
            tenant_claim: "org".to_owned(),
            leeway: Duration::from_secs(30),
        };
        Tokens::parse(issuer, &provider.set().to_string()).unwrap()
    }

    fn claims() -> Value {
        json!({ "iss": "https://id.example", "aud": ["voice", "mail"], "sub": "ada", "org": "acme", "jti": "7", "exp": NOW.0 / 1000 + 60 })
    }

    fn changed(name: &str, value: Value) -> Value {
        let mut claims = claims();
        claims[name] = value;
        claims
    }

    #[test]
    fn a_token_of_the_issuer_names_tenant_and_user() {
        let provider = Provider::new();
        let known = tokens(&provider);
        for (algorithm, kid) in [("ES256", "p"), ("EdDSA", "e")] {
            let token = provider.sign(&json!({ "alg": algorithm, "kid": kid, "typ": "JWT" }), &claims());
            let device = known.recognise(&token, NOW).unwrap();
            assert_eq!((&*device.tenant, &*device.name), ("acme", "ada"));
            assert_eq!(device.credential, Credential::Token(Some("7".into())));
        }
    }

    #[test]
    fn a_token_that_says_something_else_is_refused_for_what_it_says() {
        let provider = Provider::new();
        let known = tokens(&provider);
        let now_s = NOW.0 / 1000;
        let of = |name: &str, value: Value| {
            let token = provider.sign(&json!({ "alg": "ES256", "kid": "p" }), &changed(name, value));
            known.recognise(&token, NOW).err()
        };
        assert_eq!(of("exp", json!(now_s - 29)), None, "clocks differ");
        assert_eq!(of("exp", json!(now_s - 30)), Some(Denied::Expired));
        assert_eq!(of("exp", json!("tomorrow")), Some(Denied::BadToken));
        assert_eq!(of("exp", Value::Null), Some(Denied::BadToken));
        assert_eq!(of("nbf", json!(now_s + 31)), Some(Denied::NotYetValid));
        assert_eq!(
            of("nbf", json!("soon")),
            Some(Denied::BadToken),
            "a time that is none counts"
        );
        assert_eq!(of("nbf", json!(now_s + 30)), None);
        assert_eq!(of("aud", json!("mail")), Some(Denied::WrongAudience));
        assert_eq!(of("aud", json!("voice")), None);
        assert_eq!(of("iss", json!("https://id.example.evil")), Some(Denied::WrongAudience));
        assert_eq!(of("org", json!(7)), Some(Denied::UnknownTenant));
        assert_eq!(of("sub", json!("a\nb")), Some(Denied::BadToken));
        let mut bare = claims();
        bare.as_object_mut().unwrap().remove("aud");
        let token = provider.sign(&json!({ "alg": "ES256", "kid": "p" }), &bare);
        assert_eq!(known.recognise(&token, NOW), Err(Denied::WrongAudience));
    }

    #[test]
    fn a_token_for_something_else_is_none() {
        let provider = Provider::new();
        let access = tokens(&provider);
        let id = Issuer {
            kind: Kind::Id,
            ..access.issuer.clone()
        };
        let id = Tokens::parse(id, &provider.set().to_string()).unwrap();
        for (typ, is_access, is_id) in [
            ("JWT", true, true),
            ("jwt", true, true),
            ("application/JWT", true, true),
            ("at+jwt", true, false),
            ("application/at+jwt", true, false),
            ("logout+jwt", false, false),
            ("dpop+jwt", false, false),
            ("secevent+jwt", false, false),
            ("JOSE", false, false),
            ("", false, false),
        ] {
            let token = provider.sign(&json!({ "alg": "ES256", "kid": "p", "typ": typ }), &claims());
            assert_eq!(access.claims(&token, NOW).is_ok(), is_access, "access: {typ}");
            assert_eq!(id.claims(&token, NOW).is_ok(), is_id, "id: {typ}");
            if !is_access {
                assert_eq!(access.claims(&token, NOW), Err(Denied::BadToken), "{typ}");
            }
        }
    }

    #[test]
    fn nobody_else_makes_a_token() {
        let (provider, stranger) = (Provider::new(), Provider::new());
        let known = tokens(&provider);
        let denied = |header: Value| {
            let token = provider.sign(&header, &claims());
            known.recognise(&token, NOW).unwrap_err()
        };
        assert_eq!(denied(json!({ "alg": "none" })), Denied::BadToken);
        assert_eq!(denied(json!({ "alg": "none", "kid": "p" })), Denied::BadToken);
        assert_eq!(denied(json!({ "alg": "HS256", "kid": "secret" })), Denied::BadToken);
        assert_eq!(denied(json!({ "alg": "HS256", "kid": "p" })), Denied::BadToken);
        assert_eq!(denied(json!({ "alg": "ES384", "kid": "p" })), Denied::BadToken);
        assert_eq!(denied(json!({ "alg": "ES256", "kid": "e" })), Denied::BadToken);
        assert_eq!(
            denied(json!({ "alg": "ES256", "kid": "secret" })),
            Denied::UnknownSigner
        );
        assert_eq!(
            denied(json!({ "alg": "ES256", "kid": "of tomorrow" })),
            Denied::UnknownSigner
        );
        assert_eq!(
            denied(json!({ "alg": "ES256" })),
            Denied::UnknownSigner,
            "two keys are a choice"
        );
        let forged = stranger.sign(&json!({ "alg": "ES256", "kid": "p" }), &claims());
        assert_eq!(known.recognise(&forged, NOW), Err(Denied::BadToken));
        let own = json!({ "alg": "ES256", "jwk": stranger.set()["keys"][0] });
        assert_eq!(
            known.recognise(&stranger.sign(&own, &claims()), NOW),
            Err(Denied::UnknownSigner)
        );

        let token = provider.sign(&json!({ "alg": "ES256", "kid": "p" }), &claims());
        for at in (0..token.len()).step_by(7) {
            let mut changed = token.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            assert!(known.recognise(&changed, NOW).is_err(), "{changed}");
            assert!(known.recognise(&token[..at], NOW).is_err());
        }
        assert_eq!(
            known.recognise(&"a".repeat(TOKEN_BYTES_MAX + 1), NOW),
            Err(Denied::BadToken)
        );
    }

    /// ring makes no keys of RSA, so this one, its token and its signature are openssl's. The token names no key: the set has but one.
    #[test]
    fn a_token_signed_by_rsa_counts_too() {
        let modulus = "tPs0nF6v75VgDzMq6eRYI0fXVy5APYzOXXD2IP2n3ZotRIpfiQI7fk_jYR80BAAaO8u3Mw2PkGCXzrCwB_9k0bqHf2Fm-Kp2xz3cXEkFZqKx-r\
         jwGTsr-xJjgHc5dh1Oixe7LIRRTNRGMOafIYb1b1NbNR3yCFHSGSOZ5HSy2LPugxBz832RvWVAnoRm9qcjPmLchvAoxNMz9TPdXG_LYSZBKpMp\
         Q272AzmW398MiZjb5r4BKh2NPiNC-QDi4zIH_PcXo18yNGPy2kIyrxdLZEtyMnDp9hAe26PJg21mrb5vFJP4e7bMbZ-dhVdTaeHQdf2lyITzSx\
         i5gaqASQiXoQ";
        let token = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJodHRwczovL2lkLmV4YW1wbGUiLCJhdWQiOiJ2b2ljZSIsInN1YiI6ImFkYSIsIm9yZyI6ImFjbWUiL\
         CJleHAiOjE3OTYwMDAwNjB9.mjGPPFZRrw_P7FIkhTyZ910DuhXi-9oeKfAR9Cdepr67lAsfrUEQDtJzjPA-1lS-mpmfgEyKFqg5Eho-7f-45K\
         HTZd-3aMt3B8p-NNzzsdnkD5-9xwiDHVFC4rIwal_2BDbO3ILK-14o6Agb64un0Ij6TRb4QB7Ujhm-ZI0VUVlcqWtWxXy2UMJ-UNB3xlEAN8DY\
         ITI7Dtc5wUGiT09fuFOECIPn-dTIfFwvoMgw2M1TndbenhGCkQUneuiAdLMMU18-5pjBbrp161vQPzvd-L98wGrlPWHePWBd3Gj8hvaVyAdHUs\
         otRGyZKPOPW8RMTgiD8sgMSn6ZiypclcGFuA";
        let set = json!({ "keys": [{ "kty": "RSA", "alg": "RS256", "n": modulus, "e": "AQAB" }] });
        let issuer = tokens(&Provider::new()).issuer;
        let known = Tokens::parse(issuer.clone(), &set.to_string()).unwrap();
        assert_eq!(&*known.recognise(token, NOW).unwrap().name, "ada");
        let (message, _) = token.rsplit_once('.').unwrap();
        let forged = format!("{message}.{}", "A".repeat(342));
        assert_eq!(known.recognise(&forged, NOW), Err(Denied::BadToken));
        let mut other = set;
        other["keys"][0]["alg"] = json!("RS512");
        let bound = Tokens::parse(issuer, &other.to_string()).unwrap();
        assert_eq!(
            bound.recognise(token, NOW),
            Err(Denied::BadToken),
            "the key is for another algorithm"
        );
    }

    #[test]
    fn a_set_without_a_usable_key_is_no_set() {
        let provider = Provider::new();
        let parse = |set: &str| Tokens::parse(tokens(&provider).issuer, set).unwrap_err().to_string();
        assert!(parse("<html>").contains("no JSON Web Key Set"));
        let mut set = provider.set();
        set["keys"].as_array_mut().unwrap().drain(..2);
        assert!(parse(&set.to_string()).contains("none of its 2 keys"));
        assert!(parse(&" ".repeat(SET_BYTES_MAX + 1)).contains("bytes"));
        let mut set = provider.set();
        set["keys"][0]["use"] = json!("enc");
        set["keys"][1]["alg"] = json!("RSA-OAEP");
        assert!(parse(&set.to_string()).contains("none of its 4 keys"));
    }
}
