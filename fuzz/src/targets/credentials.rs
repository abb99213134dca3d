//! Tokens that devices show, the keys that an issuer publishes, and the document of devices.

use std::{sync::LazyLock, time::Duration};

use auth::{Devices, Issuer, Kind, Tokens, fixtures::Provider};
use topology::Moment;

static PROVIDER: LazyLock<Provider> = LazyLock::new(Provider::new);

fn issuer() -> Issuer {
    Issuer {
        issuer: "https://id.example".to_owned(),
        audience: vec!["voice".to_owned()],
        kind: Kind::Access,
        tenant_claim: "tenant".to_owned(),
        leeway: Duration::from_secs(30),
    }
}

/// Nobody but the issuer makes a token that counts, and nothing that is read panics.
pub(crate) fn recognise(bytes: &[u8]) {
    static KNOWN: LazyLock<Tokens> =
        LazyLock::new(|| Tokens::parse(issuer(), &PROVIDER.set().to_string()).expect("a set with keys"));
    let text = String::from_utf8_lossy(bytes);
    // The keys are new in each process, so no input has their signature.
    assert!(KNOWN.recognise(&text, Moment(0)).is_err(), "nobody signed {text}");
    if let Ok(tokens) = Tokens::parse(issuer(), &text) {
        let _ = tokens.recognise(&text, Moment(0));
    }
    if let Ok(devices) = Devices::parse("devices.toml", &text) {
        assert!(
            devices.recognise(&text, Moment(0)).is_err(),
            "the document has hashes and no keys"
        );
    }
}
