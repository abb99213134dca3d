//! Signatures of tokens, verified by ring, which TLS uses too: jsonwebtoken's own providers would bring a second library of
//! cryptography. Only algorithms with public keys: an edge has no business with a secret that could issue tokens.

use jsonwebtoken::{
    Algorithm, DecodingKey, DecodingKeyKind,
    crypto::{CryptoProvider, JwtVerifier, KeyUtils},
    errors::{Error, ErrorKind},
    signature::{Error as Unverified, Verifier},
};
use ring::signature::{self as ring_signature, RsaParameters, RsaPublicKeyComponents, VerificationAlgorithm};

/// Verifies only.
pub(crate) static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: |_, _| Err(ErrorKind::InvalidAlgorithm.into()),
    verifier_factory,
    key_utils: KeyUtils::new_unimplemented(),
};

/// The algorithms that a token may use.
pub(crate) const ALGORITHMS: [Algorithm; 6] = [
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
];

enum Kind {
    Point(&'static dyn VerificationAlgorithm),
    Rsa(&'static RsaParameters),
}

struct RingVerifier {
    algorithm: Algorithm,
    kind: Kind,
    key: DecodingKey,
}

fn verifier_factory(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>, Error> {
    let kind = match algorithm {
        Algorithm::ES256 => Kind::Point(&ring_signature::ECDSA_P256_SHA256_FIXED),
        Algorithm::ES384 => Kind::Point(&ring_signature::ECDSA_P384_SHA384_FIXED),
        Algorithm::EdDSA => Kind::Point(&ring_signature::ED25519),
        Algorithm::RS256 => Kind::Rsa(&ring_signature::RSA_PKCS1_2048_8192_SHA256),
        Algorithm::RS384 => Kind::Rsa(&ring_signature::RSA_PKCS1_2048_8192_SHA384),
        Algorithm::RS512 => Kind::Rsa(&ring_signature::RSA_PKCS1_2048_8192_SHA512),
        _ => return Err(ErrorKind::InvalidAlgorithm.into()),
    };
    if key.family() != algorithm.family() {
        return Err(ErrorKind::InvalidKeyFormat.into());
    }
    Ok(Box::new(RingVerifier {
        algorithm: *algorithm,
        kind,
        key: key.clone(),
    }))
}

impl Verifier<Vec<u8>> for RingVerifier {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), Unverified> {
        let verified = match (&self.kind, self.key.kind()) {
            (Kind::Point(algorithm), DecodingKeyKind::SecretOrDer(point)) => {
                ring_signature::UnparsedPublicKey::new(*algorithm, point).verify(message, signature)
            }
            (Kind::Rsa(parameters), DecodingKeyKind::RsaModulusExponent { n, e }) => {
                RsaPublicKeyComponents { n, e }.verify(parameters, message, signature)
            }
            _ => return Err(Unverified::new()),
        };
        verified.map_err(|_| Unverified::new())
    }
}

impl JwtVerifier for RingVerifier {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}
