//! An issuer of tokens, for tests.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _},
};
use serde_json::{Value, json};

/// An issuer with keys of two kinds: `p` on the curve P-256, and `e`, Ed25519.
#[derive(Debug)]
pub struct Provider {
    point: EcdsaKeyPair,
    edwards: Ed25519KeyPair,
}

impl Default for Provider {
    fn default() -> Self {
        Self::new()
    }
}

impl Provider {
    /// An issuer with new keys.
    ///
    /// # Panics
    ///
    /// The system has no random numbers.
    pub fn new() -> Self {
        let random = SystemRandom::new();
        let signing = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let point = EcdsaKeyPair::generate_pkcs8(signing, &random).expect("random numbers");
        let edwards = Ed25519KeyPair::generate_pkcs8(&random).expect("random numbers");
        Self {
            point: EcdsaKeyPair::from_pkcs8(signing, point.as_ref(), &random).expect("a new key"),
            edwards: Ed25519KeyPair::from_pkcs8(edwards.as_ref()).expect("a new key"),
        }
    }

    /// The set of keys that it publishes. It has two keys, a secret that nobody should publish, and a key of a kind that nobody knows.
    pub fn set(&self) -> Value {
        let point = self.point.public_key().as_ref();
        let (x, y) = (base64(&point[1..33]), base64(&point[33..]));
        json!({ "keys": [
            { "kty": "EC", "crv": "P-256", "kid": "p", "alg": "ES256", "use": "sig", "x": x, "y": y },
            { "kty": "OKP", "crv": "Ed25519", "kid": "e", "x": base64(self.edwards.public_key().as_ref()) },
            { "kty": "oct", "kid": "secret", "k": base64("published by mistake") },
            { "kty": "XYZ", "kid": "of tomorrow" },
        ]})
    }

    /// A token with this header and these claims. The algorithm `none` gets no signature, `EdDSA` that of `e`, any other that of `p`.
    ///
    /// # Panics
    ///
    /// The system has no random numbers.
    pub fn sign(&self, header: &Value, claims: &Value) -> String {
        let message = format!("{}.{}", base64(header.to_string()), base64(claims.to_string()));
        let signature = match header["alg"].as_str() {
            Some("none") => Vec::new(),
            Some("EdDSA") => self.edwards.sign(message.as_bytes()).as_ref().to_vec(),
            _ => {
                let signed = self.point.sign(&SystemRandom::new(), message.as_bytes());
                signed.expect("random numbers").as_ref().to_vec()
            }
        };
        format!("{message}.{}", base64(signature))
    }
}

fn base64(bytes: impl AsRef<[u8]>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}
