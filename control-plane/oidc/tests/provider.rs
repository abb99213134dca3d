//! People sign in at a provider on this machine, and a control plane recognises them.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use auth::Denied;
use identity::Grant;
use oidc::{
    Metadata, Provider, Rules, Settings, Unasked, Unrecognised,
    fixtures::TestProvider,
    flow::{NotSignedIn, sign_in},
};
use serde_json::{Value, json};
use topology::Moment;

const NOW: Moment = Moment(1_800_000_000_000);
const NOW_S: u64 = NOW.0 / 1_000;

fn settings(issuer: &str) -> Settings {
    Settings {
        issuer: issuer.to_owned(),
        client_id: "meridian".to_owned(),
        scope: "openid groups".to_owned(),
        rules: Rules {
            name_claim: "sub".to_owned(),
            groups_claim: "groups".to_owned(),
            roles: [("sre".to_owned(), Grant::list("operator").unwrap())].into(),
        },
    }
}

/// The token, or the error, and the waits between questions.
fn signed_in(provider: &TestProvider, answers: Vec<Value>) -> (Result<String, NotSignedIn>, Vec<u64>) {
    provider.will_answer(answers);
    let metadata = Metadata::of(&provider.issuer).unwrap();
    let (mut shown, mut waits) = (None, Vec::new());
    let signed_in = sign_in(
        &metadata,
        "meridian",
        "openid groups",
        |begun| shown = Some(begun.user_code.clone()),
        |wait| waits.push(wait.as_secs()),
    );
    assert_eq!(shown.as_deref(), Some("WDJB-MJHT"));
    (signed_in, waits)
}

fn error(code: &str) -> Value {
    json!({ "error": code })
}

#[test]
fn a_person_signs_in_on_another_device_at_the_pace_of_the_provider() {
    let provider = TestProvider::start();
    let done = json!({ "access_token": "a", "id_token": "the token" });
    let answers = vec![
        error("authorization_pending"),
        error("slow_down"),
        error("authorization_pending"),
        done,
    ];
    let (token, waits) = signed_in(&provider, answers);
    assert_eq!(token.unwrap(), "the token");
    assert_eq!(waits, [1, 1, 6, 6]);
    assert_eq!(
        provider.form_for("/device").unwrap(),
        "client_id=meridian&scope=openid+groups"
    );
    let asked = provider.form_for("/token").unwrap();
    assert!(
        asked.contains("device_code=D") && asked.contains("client_id=meridian"),
        "{asked}"
    );
    assert!(
        asked.contains("grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Adevice_code"),
        "{asked}"
    );
}

#[test]
fn nobody_is_in_before_the_provider_says_so() {
    let provider = TestProvider::start();
    let of = |code: &str| signed_in(&provider, vec![error("authorization_pending"), error(code)]).0;
    assert!(matches!(of("access_denied"), Err(NotSignedIn::Denied)));
    assert!(matches!(of("expired_token"), Err(NotSignedIn::Ended)));
    assert!(matches!(of("invalid_client"), Err(NotSignedIn::Refused(_))));
    let (without, _) = signed_in(&provider, vec![json!({ "access_token": "a" })]);
    assert!(matches!(without, Err(NotSignedIn::NoIdToken)));
    // A person who never comes: the code ends, and so does the asking.
    let (never, waits) = signed_in(&provider, vec![error("authorization_pending")]);
    assert!(matches!(never, Err(NotSignedIn::Ended)));
    assert_eq!(waits.len(), 600);
}

#[test]
fn a_provider_is_the_one_that_it_says_it_is_and_is_asked_by_tls() {
    let provider = TestProvider::start();
    let other = provider.issuer.replace("127.0.0.1", "localhost");
    assert!(matches!(Metadata::of(&other), Err(Unasked::OtherIssuer { .. })));
    assert!(matches!(Metadata::of("http://id.example"), Err(Unasked::Plain(_))));
    provider.set_ill(true);
    assert!(matches!(Metadata::of(&provider.issuer), Err(Unasked::Http { .. })));
}

#[test]
fn only_a_token_of_the_provider_for_this_deployment_names_an_operator() {
    let test = TestProvider::start();
    let provider = Provider::new(settings(&test.issuer));
    let ada = json!({ "sub": "ada", "groups": ["sre"] });
    let of = |claims: &Value| provider.recognise(&test.id_token(claims, NOW_S), NOW);
    assert_eq!(of(&ada).unwrap().name, "ada");
    let with = |name: &str, value: Value| {
        let mut claims = ada.clone();
        claims[name] = value;
        of(&claims).unwrap_err()
    };
    let is = |error: &Unrecognised, why: Denied| matches!(error, Unrecognised::Token(it) if *it == why);
    assert!(is(&with("aud", json!("another")), Denied::WrongAudience));
    assert!(is(&with("iss", json!("https://id.example")), Denied::WrongAudience));
    assert!(is(&with("exp", json!(NOW_S - 60)), Denied::Expired));
    assert!(is(&with("nbf", json!(NOW_S + 60)), Denied::NotYetValid));
    assert!(matches!(with("groups", json!(["chess"])), Unrecognised::Nobody(_)));
    assert!(matches!(with("sub", json!("a/b")), Unrecognised::Nobody(_)));

    // Another provider signs with a key of the same name; `none` signs nothing.
    let stranger = auth::fixtures::Provider::new();
    let claims = json!({ "iss": test.issuer, "aud": "meridian", "exp": NOW_S + 60, "sub": "ada", "groups": ["sre"] });
    for header in [
        json!({ "alg": "ES256", "kid": "p" }),
        json!({ "alg": "none", "kid": "p" }),
    ] {
        let refused = provider.recognise(&stranger.sign(&header, &claims), NOW).unwrap_err();
        assert!(is(&refused, Denied::BadToken), "{header}: {refused}");
    }
    // Unknown keys by the hundred: the provider is asked once.
    for number in 0..100 {
        let header = json!({ "alg": "ES256", "kid": format!("k{number}") });
        let refused = provider.recognise(&stranger.sign(&header, &claims), NOW).unwrap_err();
        assert!(is(&refused, Denied::UnknownSigner), "{refused}");
    }
    assert_eq!(test.asked_for("/keys"), 1);
    // The keys are known, so the provider need not be there.
    test.set_ill(true);
    assert!(of(&ada).is_ok());
}

#[test]
fn without_keys_nobody_is_recognised_and_the_reason_is_said() {
    let test = TestProvider::start();
    test.set_ill(true);
    let provider = Provider::new(settings(&test.issuer));
    let token = test.id_token(&json!({ "sub": "ada", "groups": ["sre"] }), NOW_S);
    for _ in 0..3 {
        assert!(matches!(provider.recognise(&token, NOW), Err(Unrecognised::NoKeys(_))));
    }
    assert_eq!(
        test.asked_for("/.well-known/openid-configuration"),
        1,
        "an ill provider is left alone"
    );
}
