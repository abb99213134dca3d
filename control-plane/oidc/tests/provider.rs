//! People sign in at a provider on this machine, and a control plane recognises them.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use auth::Denied;
use identity::{Grant, files};
use oidc::{
    Client, Metadata, Provider, Rules, Settings, Unasked, Unrecognised,
    fixtures::TestProvider,
    flow::{NotSignedIn, sign_in},
};
use serde_json::{Value, json};
use topology::Moment;

const NOW: Moment = Moment(1_800_000_000_000);
const NOW_S: u64 = NOW.0 / 1_000;
const MINUTE: Duration = Duration::from_secs(60);

fn settings(issuer: &str) -> Settings {
    Settings {
        issuer: issuer.to_owned(),
        client_id: "meridian".to_owned(),
        scope: "openid groups".to_owned(),
        trust: None,
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
    let client = Client::new(None).unwrap();
    let metadata = Metadata::of(&client, &provider.issuer).unwrap();
    let (mut shown, mut waits) = (None, Vec::new());
    let signed_in = sign_in(
        &client,
        &metadata,
        ("meridian", "openid groups"),
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
fn a_provider_is_the_one_that_it_says_it_is() {
    let provider = TestProvider::start();
    let of = |issuer: &str| Metadata::of(&Client::new(None).unwrap(), issuer);
    let other = provider.issuer.replace("127.0.0.1", "localhost");
    assert!(matches!(of(&other), Err(Unasked::OtherIssuer { .. })));
    for issuer in ["http://id.example", "http://127.0.0.1:80@id.example"] {
        assert!(matches!(of(issuer), Err(Unasked::Plain(_))), "{issuer}");
    }
    provider.set_ill(true);
    assert!(matches!(of(&provider.issuer), Err(Unasked::Http { .. })));
}

/// A provider whose certificate this machine does not know is asked under the roots that the configuration names, by the command and by
/// control planes.
#[test]
fn a_provider_proves_its_name_by_tls_under_the_roots_that_are_named() {
    let ((provider, root), (_, other_root)) = (TestProvider::start_tls(now()), TestProvider::start_tls(now()));
    let of = |trust: Option<&str>| Metadata::of(&Client::new(trust).unwrap(), &provider.issuer);
    of(Some(&root)).unwrap_or_else(|error| panic!("{error}"));
    of(Some(&(other_root.clone() + &root))).unwrap_or_else(|error| panic!("{error}"));
    for (roots, trust) in [("another root", Some(other_root.as_str())), ("the machine's", None)] {
        let error = of(trust).unwrap_err();
        assert!(
            matches!(&error, Unasked::Http { why, .. } if why.contains("ertificate")),
            "{roots}: {error}"
        );
    }
    // Its certificate is for its address, and for no name.
    let by_name = provider.issuer.replace("127.0.0.1", "localhost");
    let by_name = Metadata::of(&Client::new(Some(&root)).unwrap(), &by_name);
    assert!(matches!(by_name, Err(Unasked::Http { .. })), "{by_name:?}");

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("id-root.crt");
    files::write(&file, &other_root, 0o644).unwrap();
    let trusting = Provider::new(Settings {
        trust: Some(file.clone()),
        ..settings(&provider.issuer)
    });
    let now = now();
    let token = provider.id_token(&json!({ "sub": "ada", "groups": ["sre"] }), now.0 / 1_000);
    assert!(matches!(trusting.recognise(&token, now), Err(Unrecognised::NoKeys(_))));
    assert_eq!(provider.asked_for("/keys"), 0, "a stranger is asked for nothing");
    // The file is read for each question.
    files::write(&file, &root, 0o644).unwrap();
    let later = now + Duration::from_secs(61);
    assert_eq!(trusting.recognise(&token, later).unwrap().name, "ada");
}

fn now() -> Moment {
    let since_epoch = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis();
    Moment(u64::try_from(since_epoch).unwrap())
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
    // Of several audiences `azp` names the one that the token is for, and it names no other.
    for (aud, azp, is_good) in [
        (json!("meridian"), Value::Null, true),
        (json!("meridian"), json!("meridian"), true),
        (json!(["meridian"]), Value::Null, true),
        (json!(["meridian", "mail"]), json!("meridian"), true),
        (json!(["meridian", "mail"]), Value::Null, false),
        (json!(["meridian", "mail"]), json!("mail"), false),
        (json!("meridian"), json!("mail"), false),
        (json!("meridian"), json!(["meridian"]), false),
    ] {
        let mut claims = ada.clone();
        claims["aud"] = aud;
        if !azp.is_null() {
            claims["azp"] = azp;
        }
        match (of(&claims), is_good) {
            (Ok(_), true) => {}
            (Err(error), false) => assert!(is(&error, Denied::WrongAudience), "{claims}: {error}"),
            (found, _) => panic!("{claims}: {found:?}"),
        }
    }
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

/// The faults of a provider pass, and say nothing about a person: none of them is a refusal.
#[test]
fn without_keys_nobody_is_recognised_and_nobody_refused() {
    type Fault = fn(&TestProvider, bool);
    for (what, fault) in [
        ("it answers 503", TestProvider::set_ill as Fault),
        ("it has no metadata", TestProvider::set_unannounced),
    ] {
        let test = TestProvider::start();
        fault(&test, true);
        let provider = Provider::new(settings(&test.issuer));
        let token = test.id_token(&json!({ "sub": "ada", "groups": ["sre"] }), NOW_S);
        for _ in 0..3 {
            let error = provider.recognise(&token, NOW).unwrap_err();
            assert!(
                matches!(&error, Unrecognised::NoKeys(why) if why.contains("status")),
                "{what}: {error}"
            );
        }
        let asked = test.asked_for("/.well-known/openid-configuration");
        assert_eq!(asked, 1, "{what}: it is left alone for a while");
        fault(&test, false);
        assert_eq!(provider.recognise(&token, NOW + MINUTE).unwrap().name, "ada", "{what}");
    }
}

/// A token with an unknown key is refused when the keys of today are known, and not while they are unknown.
#[test]
fn a_new_key_is_no_stranger_while_the_provider_is_away() {
    let test = TestProvider::start();
    let provider = Provider::new(settings(&test.issuer));
    let ada = json!({ "sub": "ada", "groups": ["sre"] });
    provider.recognise(&test.id_token(&ada, NOW_S), NOW).unwrap();
    let with_new_key = test.id_token_by("new", &ada, NOW_S);
    let stranger = provider.recognise(&with_new_key, NOW + MINUTE).unwrap_err();
    assert!(
        matches!(stranger, Unrecognised::Token(Denied::UnknownSigner)),
        "{stranger}"
    );
    test.set_ill(true);
    let later = NOW + MINUTE * 2;
    let unknown = provider.recognise(&with_new_key, later).unwrap_err();
    assert!(matches!(unknown, Unrecognised::NoKeys(_)), "{unknown}");
    assert!(
        provider.recognise(&test.id_token(&ada, NOW_S), later).is_ok(),
        "known keys go on"
    );
}
