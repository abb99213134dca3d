//! New processes join with tokens: once, in time, as what the token says, and at nobody else's control plane.

use std::time::Duration;

use api::{
    Operator, OperatorError,
    join::{JoinError, Joined},
    v1::{self, operator_client::OperatorClient},
};
use identity::{
    Identity, ca,
    files::{self, Files},
    join::{RootHash, Token},
    signature,
};
use oidc::fixtures::TestProvider;
use server::{
    records::{self, JoinToken},
    store::{Embedded, Store as _, Transaction},
};
use tonic::Code;
use topology::Moment;

use crate::{
    access::{history_with, is},
    identity::{Place, ZONE, lies, report},
};

fn asked(role: &str) -> v1::TokenRequest {
    v1::TokenRequest {
        role: role.to_owned(),
        life_ms: 0,
        reason: "a new machine".to_owned(),
    }
}

async fn token(admin: &Operator, role: &str) -> Token {
    admin.make_token(asked(role)).await.unwrap().token.parse().unwrap()
}

pub(crate) async fn join(place: &Place, token: &Token) -> Result<Joined, JoinError> {
    join_with(place, token, &ca::request().unwrap().0).await
}

async fn join_with(place: &Place, token: &Token, key: &str) -> Result<Joined, JoinError> {
    api::join::join(&[place.url()], token, key.to_owned(), daemon::clock::now()).await
}

pub(crate) fn refusal(joined: Result<Joined, JoinError>) -> String {
    match joined.unwrap_err() {
        JoinError::Refused { why, .. } => why,
        other => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_edge_joins_once_and_is_that_edge() {
    let place = Place::new().await;
    place.leads().await;
    let ada = place.operator("ada", "admin");
    let token = token(&ada, "edge/edge-iad").await;
    let joined = join(&place, &token).await.unwrap();
    assert_eq!(joined.peer.id.to_string(), format!("spiffe://{ZONE}/edge/edge-iad"));

    // The new process has an identity: its reports count, and only as its own.
    let folder = place.folder.path().join("joined");
    std::fs::create_dir_all(&folder).unwrap();
    let files = Files::in_folder(&folder);
    files::write(&files.trust, &joined.trust, 0o644).unwrap();
    files.write(&joined.credential).unwrap();
    let iad = Identity::load(files, daemon::clock::now).unwrap();
    let receipt = report(&place.url(), Some(&iad), lies("edge-iad")).await.unwrap();
    assert_eq!(receipt.unwanted, "");
    let denied = report(&place.url(), Some(&iad), lies("edge-dub")).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);

    // A replay by somebody else gets nothing.
    let again = refusal(join(&place, &token).await);
    assert!(again.contains("the token was used with another key"), "{again}");

    // Making, use and replay are in the audit log, with the credential of each who has one, and never with the secret.
    let made = history_with(&ada, |it| is(it, "token-made", "operator/ada")).await;
    let made = made
        .iter()
        .find(|it| is(it, "token-made", "operator/ada"))
        .unwrap()
        .clone();
    assert!(
        made.reasons[0].text.contains("token for edge/edge-iad until"),
        "{made:?}"
    );
    assert!(made.reasons[0].text.ends_with("a new machine"), "{made:?}");
    let history = history_with(&ada, |it| is(it, "joined", "edge/edge-iad")).await;
    let new = history.iter().find(|it| is(it, "joined", "edge/edge-iad")).unwrap();
    assert_eq!(new.principal.as_ref().unwrap().serial, joined.peer.serial);
    assert!(
        new.reasons[0]
            .text
            .ends_with(&format!("with a token of spiffe://{ZONE}/operator/ada"))
    );
    let refused = history_with(&ada, |it| it.reasons[0].code == "join-refused").await;
    let refused = refused.iter().find(|it| it.reasons[0].code == "join-refused").unwrap();
    assert!(
        refused.principal.is_none() && refused.reasons[0].text.contains("127.0.0.1:"),
        "{refused:?}"
    );
    let secret = token.to_string()[9..73].to_owned();
    assert!(!format!("{history:?}").contains(&secret));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_was_changed_is_worth_nothing_and_of_many_who_show_one_one_joins() {
    let place = Place::new().await;
    place.leads().await;
    let ada = place.operator("ada", "admin");
    let good = token(&ada, "edge/edge-iad").await;
    let text = good.to_string();
    for (another, complaint) in [
        ("edge/edge-dub", "the token is for edge/edge-iad;"),
        (
            "control-plane/cp-9",
            "a control plane gets its certificate where the authority's key is",
        ),
    ] {
        let as_another: Token = text.replace("edge/edge-iad", another).parse().unwrap();
        let refused = refusal(join(&place, &as_another).await);
        assert!(refused.contains(complaint), "{another}: {refused}");
    }
    let guessed: Token = text.replace(&text[9..73], &"ab".repeat(32)).parse().unwrap();
    assert!(refusal(join(&place, &guessed).await).contains("the token is not known"));
    // It is still good for the one that it names, and for no second one at the same time.
    let (a, b, c) = tokio::join!(join(&place, &good), join(&place, &good), join(&place, &good));
    let joined = [a, b, c].into_iter().filter(Result::is_ok).count();
    assert_eq!(joined, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_admin_makes_tokens_and_only_for_processes_of_the_topology() {
    let place = Place::new().await;
    place.leads().await;
    for (name, grants) in [("vera", "viewer"), ("olaf", "operator"), ("anne", "approver")] {
        let denied = place
            .operator(name, grants)
            .make_token(asked("edge/edge-iad"))
            .await
            .unwrap_err();
        assert!(denied.to_string().contains("it needs the role admin"), "{denied}");
    }
    let ada = place.operator("ada", "admin");
    for (role, complaint) in [
        ("edge/edge-sold", "edge/edge-sold is not in the topology; add it first"),
        ("stack/us-sold/a", "is not in the topology"),
        ("operator/eve", "operators log in"),
        ("control-plane/cp-9", "where the authority's key is"),
        ("etcd/etcd-1", "etcd has an authority of its own"),
        ("king/arthur", "is not an id"),
    ] {
        let refused = ada.make_token(asked(role)).await.unwrap_err();
        assert!(
            matches!(&refused, OperatorError::Rejected(why) if why.contains(complaint)),
            "{role}: {refused}"
        );
    }
    for life in [Duration::from_secs(59), Duration::from_secs(3_601)] {
        let request = v1::TokenRequest {
            life_ms: u64::try_from(life.as_millis()).unwrap(),
            ..asked("edge/edge-iad")
        };
        let refused = ada.make_token(request).await.unwrap_err();
        assert!(refused.to_string().contains("write 1m to 60m"), "{refused}");
    }
}

/// The answer may be lost on its way, and the token is bound to the key by then.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_missed_the_answer_asks_again_with_the_same_key() {
    let place = Place::new().await;
    place.leads().await;
    let ada = place.operator("ada", "admin");
    let token = token(&ada, "edge/edge-iad").await;
    let (key, _) = ca::request().unwrap();
    let first = join_with(&place, &token, &key).await.unwrap();
    let again = join_with(&place, &token, &key).await.unwrap();
    assert!(
        first.peer.serial != again.peer.serial,
        "each certificate has its own entry"
    );
    assert!(refusal(join(&place, &token).await).contains("used with another key"));
    let as_dub: Token = token.to_string().replace("edge-iad", "edge-dub").parse().unwrap();
    assert!(refusal(join_with(&place, &as_dub, &key).await).contains("the token is for edge/edge-iad"));
    let again = |it: &v1::Decision| it.reasons[0].code == "joined" && it.reasons[0].text.contains("joined again");
    let history = history_with(&ada, again).await;
    let again: Vec<_> = history.iter().filter(|it| again(it)).collect();
    assert_eq!(again.len(), 1, "{history:?}");
}

/// The store admits every writer with one of its certificates, so what it holds is worth what its signature is.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_somebody_wrote_into_the_store_lets_nobody_in() {
    let mut place = Place::new().await;
    place.leads().await;
    let ada = place.operator("ada", "admin");
    let genuine = token(&ada, "edge/edge-iad").await;
    place.identity("edge/edge-dub", "");
    place.stop();
    let another = |role: &str| {
        let token = Token::under(role.parse().unwrap(), &place.root.certificate).unwrap();
        (token.hash(), token)
    };
    let soon = daemon::clock::now() + Duration::from_secs(600);
    let forged = {
        let store = Embedded::open(&place.folder.path().join("meridian.redb")).unwrap();
        let entry = store.get(&records::join_key(&genuine.hash())).await.unwrap().unwrap();
        let kept: JoinToken = serde_json::from_slice(&entry.value).unwrap();
        let mut forged = Vec::new();
        let (hash, token) = another("edge/edge-dub");
        let unsigned = serde_json::json!({ "role": "edge/edge-dub", "until": soon, "by": kept.by.clone() });
        forged.push(("unsigned", token, hash, unsigned.to_string().into_bytes()));
        let (hash, token) = another("edge/edge-iad");
        forged.push(("a copy", token, hash, records::encode(&kept)));
        let (hash, token) = another("stack/us-east/a");
        let by_an_edge = signed(&place, "edge/edge-dub", (&hash, "stack/us-east/a"), soon);
        forged.push(("signed by an edge", token, hash, records::encode(&by_an_edge)));
        let (hash, token) = another("dns/ns1");
        let mut no_signature = signed(&place, "control-plane/control-plane", (&hash, "dns/ns1"), soon);
        no_signature.signature = "00".to_owned();
        forged.push(("no signature", token, hash, records::encode(&no_signature)));
        let longer = JoinToken {
            until: soon + Duration::from_secs(86_400),
            ..kept
        };
        forged.push(("made longer", genuine.clone(), genuine.hash(), records::encode(&longer)));
        for (_, _, hash, record) in &forged {
            let transaction = Transaction {
                put: vec![(records::join_key(hash), record.clone())],
                ..Transaction::default()
            };
            store.commit(transaction).await.unwrap();
        }
        forged
    };
    place.start_again().await;
    place.leads().await;
    let ada = place.operator("ada", "admin");
    for (what, token, ..) in &forged {
        let refused = refusal(join(&place, token).await);
        assert!(
            refused.contains("no control plane vouches for the token"),
            "{what}: {refused}"
        );
    }
    let refused = |it: &v1::Decision| it.reasons[0].code == "join-refused";
    let history = history_with(&ada, refused).await;
    let told = history.iter().find(|it| refused(it)).unwrap();
    assert!(told.reasons[0].text.contains("no control plane vouches"), "{told:?}");
}

/// The record of a token, signed with the key of one of this place's identities.
fn signed(place: &Place, signer: &str, (hash, role): (&str, &str), until: Moment) -> JoinToken {
    let by = format!("spiffe://{ZONE}/operator/ada");
    let files = Files::in_folder(&place.folder.path().join("identities").join(signer));
    let signed = signature::sign(&files, &records::join_statement(hash, role, until, &by)).unwrap();
    JoinToken {
        role: role.to_owned(),
        until,
        by,
        certificate: signed.certificate,
        signature: signed.bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        used: None,
    }
}

/// A new machine that was sent to a wrong address tells its token to nobody.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_shown_under_its_own_root_only_and_a_newcomer_calls_nothing_else() {
    let (place, elsewhere) = (Place::new().await, Place::new().await);
    place.leads().await;
    let token = token(&place.operator("ada", "admin"), "edge/edge-iad").await;
    let error = join(&elsewhere, &token).await.unwrap_err();
    assert!(
        error.to_string().contains("is not under the root that is known"),
        "{error}"
    );
    let in_plain = std::slice::from_ref(&place.control_plane.endpoint);
    let (key, _) = ca::request().unwrap();
    let plain = api::join::join(in_plain, &token, key, daemon::clock::now()).await;
    assert!(plain.unwrap_err().to_string().contains("over TLS only"));

    let address = place.url().replace("https://", "");
    let (dialled, shown) = (address.clone(), token.clone());
    let connector = tower::service_fn(move |_: tonic::transport::Uri| {
        let (address, token) = (dialled.clone(), shown.clone());
        async move {
            let tcp = tokio::net::TcpStream::connect(address).await?;
            let tls = identity::join::connect(tcp, token.root).await?;
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(tls))
        }
    });
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
    let channel = endpoint.connect_with_connector(connector).await.unwrap();
    let answer = OperatorClient::new(channel).status(v1::StatusRequest::default()).await;
    assert_eq!(answer.unwrap_err().code(), Code::Unimplemented);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_has_ended_is_worth_nothing() {
    let mut place = Place::new().await;
    place.leads().await;
    let ada = place.operator("ada", "admin");
    let token = token(&ada, "edge/edge-iad").await;
    history_with(&ada, |it| is(it, "token-made", "operator/ada")).await;
    // A record whose end has passed, while nobody has the store open.
    place.stop();
    {
        let store = Embedded::open(&place.folder.path().join("meridian.redb")).unwrap();
        let key = records::join_key(&token.hash());
        let entry = store.get(&key).await.unwrap().unwrap();
        let kept: JoinToken = serde_json::from_slice(&entry.value).unwrap();
        assert!(
            !String::from_utf8_lossy(&entry.value).contains(&token.to_string()[9..73]),
            "only its hash is kept"
        );
        assert_eq!(kept.role, "edge/edge-iad");
        let signer = "control-plane/control-plane";
        let ended = signed(&place, signer, (&token.hash(), &kept.role), Moment(1));
        let transaction = Transaction {
            put: vec![(key, records::encode(&ended))],
            ..Transaction::default()
        };
        store.commit(transaction).await.unwrap();
    }
    place.start_again().await;
    place.leads().await;
    let refused = refusal(join(&place, &token).await);
    assert!(refused.contains("it has ended"), "{refused}");
}

/// A place whose control plane knows the token of a program.
async fn with_operators(lines: &str) -> Place {
    let mut place = Place::new().await;
    place.leads().await;
    place.stop();
    std::fs::write(place.folder.path().join("operators.toml"), lines).unwrap();
    place.add_section("[operators]\ntokens = \"operators.toml\"\n");
    place.start_again().await;
    place.leads().await;
    place
}

fn known(token: &Token, name: &str, roles: &str, expires: &str) -> String {
    let hash = token.hash();
    format!("[[token]]\nname = \"{name}\"\nroles = \"{roles}\"\nsha256 = \"{hash}\"\nexpires = \"{expires}\"\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_exchanges_its_token_for_a_certificate_with_its_roles() {
    let mut place = with_operators("").await;
    let ci = Token::under("operator/ci".parse().unwrap(), &place.root.certificate).unwrap();
    let file = place.folder.path().join("operators.toml");
    let refused = refusal(join(&place, &ci).await);
    assert!(refused.contains("the token is not known"), "{refused}");
    // The file is read at each login.
    std::fs::write(&file, known(&ci, "ci", "operator@us-*", "2099-01-01T00:00:00Z")).unwrap();
    let joined = join(&place, &ci).await.unwrap();
    assert_eq!(joined.peer.roles(), "operator@us-*");
    let life = joined.peer.until.since(daemon::clock::now());
    assert!(life <= identity::ca::OPERATOR_LIFE, "{life:?}");
    let folder = place.folder.path().join("ci");
    std::fs::create_dir_all(&folder).unwrap();
    let files = Files::in_folder(&folder);
    files::write(&files.trust, &joined.trust, 0o644).unwrap();
    files.write(&joined.credential).unwrap();
    let identity = Identity::load(files, daemon::clock::now).unwrap();
    let program = Operator::at([place.url()]).with_identity(Some(identity));
    assert!(program.status().await.is_ok());
    let denied = program
        .act(crate::identity::request(api::operator::failover("eu-west"), "t", None))
        .await;
    assert!(
        denied
            .unwrap_err()
            .to_string()
            .contains("it needs the role operator in eu-west")
    );
    let ada = place.operator("ada", "admin");
    let history = history_with(&ada, |it| is(it, "logged-in", "operator/ci")).await;
    let told = history.iter().find(|it| is(it, "logged-in", "operator/ci")).unwrap();
    assert_eq!(told.principal.as_ref().unwrap().serial, joined.peer.serial);
    assert!(
        history.iter().any(|it| it.reasons[0].code == "login-refused"),
        "{history:?}"
    );

    // Under another name, after its end, and once it is removed, it is worth nothing; a mistake in the file changes nothing.
    let as_another: Token = ci.to_string().replace("operator/ci", "operator/ada").parse().unwrap();
    assert!(refusal(join(&place, &as_another).await).contains("is not known"));
    std::fs::write(&file, "[[token]]\nname = \"half of a").unwrap();
    assert!(join(&place, &ci).await.is_ok());
    std::fs::write(&file, known(&ci, "ci", "operator@us-*", "2020-01-01T00:00:00Z")).unwrap();
    assert!(refusal(join(&place, &ci).await).contains("the token has ended"));
    std::fs::write(&file, "").unwrap();
    assert!(refusal(join(&place, &ci).await).contains("is not known"));
    place.stop();
}

/// The sealed credential works when nobody else can act, and everybody sees it.
#[tokio::test(flavor = "multi_thread")]
async fn the_use_of_a_sealed_credential_is_an_alarm() {
    let place = Place::new().await;
    place.leads().await;
    let safe = place.operator("safe-1", "break-glass");
    let drain = v1::act_request::Kind::DrainEdge(v1::DrainEdge {
        edge: "edge-iad".to_owned(),
    });
    let order = crate::identity::request(drain, "t1", Some(Duration::from_secs(600)));
    safe.act(order).await.unwrap();
    let ada = place.operator("ada", "admin");
    let history = history_with(&ada, |it| {
        is(it, "break-glass", "operator/safe-1") && it.reasons[0].text.contains("order drain")
    });
    let history = history.await;
    let alarm = history
        .iter()
        .find(|it| is(it, "break-glass", "operator/safe-1"))
        .unwrap();
    assert!(
        alarm.reasons[0]
            .text
            .contains("the sealed credential of safe-1 is in use"),
        "{alarm:?}"
    );
    let used = place
        .control_plane
        .metric("meridian_control_plane_break_glass_calls_total");
    assert!(used >= Some(1.0), "{used:?}");
}

/// A person signs in elsewhere, and the control plane exchanges the id token for the same certificate.
#[tokio::test(flavor = "multi_thread")]
async fn a_person_of_the_identity_provider_gets_a_certificate_with_the_roles_of_the_groups() {
    let provider = TestProvider::start();
    let mut place = Place::new().await;
    place.leads().await;
    place.stop();
    place.add_section(&format!(
        "[operators.oidc]\nissuer = {:?}\nclient_id = \"meridian\"\n[[operators.oidc.role]]\ngroup = \"sre\"\nroles = \"operator@us-*\"\n",
        provider.issuer
    ));
    place.start_again().await;
    place.leads().await;
    let (urls, root) = ([place.url()], RootHash::of_only(&place.root.certificate).unwrap());
    let described = api::join::describe_login(&urls, root).await.unwrap();
    assert_eq!(
        (described.issuer, described.client_id),
        (provider.issuer.clone(), "meridian".to_owned())
    );
    let now_s = daemon::clock::now().0 / 1_000;
    let log_in = async |claims: serde_json::Value| {
        let token = provider.id_token(&claims, now_s);
        api::join::log_in(&urls, root, &token, daemon::clock::now()).await
    };
    let uma = log_in(serde_json::json!({ "sub": "uma", "groups": ["sre", "chess"] }))
        .await
        .unwrap();
    assert_eq!(uma.peer.id.to_string(), format!("spiffe://{ZONE}/operator/uma"));
    assert_eq!(uma.peer.roles(), "operator@us-*");
    let life = uma.peer.until.since(daemon::clock::now());
    assert!(
        life <= identity::ca::OPERATOR_LIFE && life > identity::ca::OPERATOR_LIFE / 2,
        "{life:?}"
    );
    for (claims, complaint) in [
        (
            serde_json::json!({ "sub": "uma", "groups": ["sre"], "aud": "another" }),
            "was issued for another service",
        ),
        (
            serde_json::json!({ "sub": "uma", "groups": ["sre"], "exp": now_s - 60 }),
            "expired",
        ),
        (
            serde_json::json!({ "sub": "uma", "groups": ["chess"] }),
            "none of the groups of uma has a role here",
        ),
        (
            serde_json::json!({ "sub": "uma/../ada", "groups": ["sre"] }),
            "is no operator's name",
        ),
    ] {
        let refused = refusal(log_in(claims.clone()).await);
        assert!(refused.contains(complaint), "{claims}: {refused}");
    }
    // Known keys stay while the provider is away; new ones are taken once they are needed.
    provider.set_ill(true);
    assert!(
        log_in(serde_json::json!({ "sub": "uma", "groups": ["sre"] }))
            .await
            .is_ok()
    );
    let ada = place.operator("ada", "admin");
    let history = history_with(&ada, |it| is(it, "logged-in", "operator/uma")).await;
    let told = history.iter().find(|it| is(it, "logged-in", "operator/uma")).unwrap();
    assert!(told.reasons[0].text.contains("with the identity provider"), "{told:?}");
}
