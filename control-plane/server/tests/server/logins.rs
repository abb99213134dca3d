//! People log in at several control planes of one deployment, not all of which know their identity provider.

use api::{Operator, join::JoinError, v1};
use identity::{
    files,
    join::{RootHash, Token},
};
use oidc::fixtures::TestProvider;
use serde_json::{Value, json};

use crate::{
    access::{history_with, is},
    identity::{Place, ZONE},
    joining::refusal,
};

fn knowing(provider: &TestProvider, more: &str) -> String {
    format!(
        "[operators.oidc]\nissuer = {:?}\nclient_id = \"meridian\"\n{more}[[operators.oidc.role]]\ngroup = \"sre\"\nroles = \"operator\"\n",
        provider.issuer
    )
}

async fn log_in(urls: &[String], place: &Place, token: &str) -> Result<api::join::Joined, JoinError> {
    let root = RootHash::of_only(&place.root.certificate).unwrap();
    api::join::log_in(urls, root, token, daemon::clock::now()).await
}

fn uma() -> Value {
    json!({ "sub": "uma", "groups": ["sre"] })
}

fn https(endpoint: &str) -> String {
    endpoint.replacen("http", "https", 1)
}

/// The first control plane of the list has no provider; the other one asks it by TLS, under the root that its configuration names.
#[tokio::test(flavor = "multi_thread")]
async fn a_login_goes_on_to_the_control_plane_that_knows_the_provider() {
    let place = Place::new().await;
    place.leads().await;
    let (provider, id_root) = TestProvider::start_tls(daemon::clock::now());
    let trust = place.folder.path().join("id-root.crt");
    files::write(&trust, &id_root, 0o644).unwrap();
    let another = place
        .another(&knowing(&provider, &format!("trust = {trust:?}\n")))
        .await;
    let urls = [place.url(), https(&another.endpoint)];
    let root = RootHash::of_only(&place.root.certificate).unwrap();
    let described = api::join::describe_login(&urls, root).await.unwrap();
    assert_eq!(described.issuer, provider.issuer);
    assert_eq!(described.trust, id_root, "the person's command needs it too");
    let nobody = api::join::describe_login(&urls[..1], root).await.unwrap_err();
    assert!(nobody.to_string().contains("knows no identity provider"), "{nobody}");

    let token = provider.id_token(&uma(), daemon::clock::now().0 / 1_000);
    let joined = log_in(&urls, &place, &token).await.unwrap();
    assert_eq!(joined.peer.id.to_string(), format!("spiffe://{ZONE}/operator/uma"));
    // That the first one knows no provider was no refusal of uma.
    refused_token(&place, &urls[0]).await;
    let history = first_refusal(&place.operator("ada", "admin")).await;
    assert!(
        history.reasons[0].text.contains("the token is not known"),
        "{history:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_is_away_refuses_nobody() {
    let place = Place::new().await;
    place.leads().await;
    let provider = TestProvider::start();
    provider.set_ill(true);
    let another = place.another(&knowing(&provider, "")).await;
    let url = https(&another.endpoint);
    let token = provider.id_token(&uma(), daemon::clock::now().0 / 1_000);
    let error = log_in(std::slice::from_ref(&url), &place, &token).await.unwrap_err();
    let JoinError::Unanswered(why) = &error else {
        panic!("{error}");
    };
    assert!(
        why.contains("status 503") && why.contains("sign in again in a minute"),
        "{why}"
    );
    // Nor did a provider that cannot be trusted.
    let (untrusted, _) = TestProvider::start_tls(daemon::clock::now());
    drop(another);
    std::fs::remove_dir_all(place.folder.path().join("another")).unwrap();
    let another = place.another(&knowing(&untrusted, "")).await;
    let url = https(&another.endpoint);
    let token = untrusted.id_token(&uma(), daemon::clock::now().0 / 1_000);
    let error = log_in(std::slice::from_ref(&url), &place, &token).await.unwrap_err();
    assert!(
        matches!(&error, JoinError::Unanswered(why) if why.contains("ertificate")),
        "{error}"
    );
    // The first refusal in its audit log is that of a token that it does not know.
    refused_token(&place, &url).await;
    let identity = place.identity("operator/ada", "admin");
    let ada = Operator::at([url]).with_identity(Some(identity));
    let refusal = first_refusal(&ada).await;
    assert!(
        refusal.reasons[0].text.contains("the token is not known"),
        "{refusal:?}"
    );
}

/// Shows a token that no control plane knows.
async fn refused_token(place: &Place, url: &str) {
    let stranger = Token::under("operator/ci".parse().unwrap(), &place.root.certificate).unwrap();
    let (key, _) = identity::ca::request().unwrap();
    let refused = api::join::join(&[url.to_owned()], &stranger, key, daemon::clock::now()).await;
    assert!(refusal(refused).contains("the token is not known"));
}

/// The oldest refusal of a login in the audit log.
async fn first_refusal(people: &Operator) -> v1::Decision {
    let refused = |it: &v1::Decision| it.reasons[0].code == "login-refused";
    let history = history_with(people, refused).await;
    assert!(!history.iter().any(|it| is(it, "login-refused", "operator/uma")));
    history.into_iter().rfind(refused).unwrap()
}
