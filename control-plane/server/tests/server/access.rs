//! The audit log about access: denied calls, with their callers. It stays short, however often a caller tries.

use std::time::Duration;

use api::{Operator, v1};
use identity::signature::Signature;
use planning::audit::{self, AnyEntry};

use crate::{
    common::{self, DEADLINE, fleet::verified},
    identity::{Place, ZONE, lies, report, request},
};

/// The decisions of the history about access, once `wanted` is among them.
pub(crate) async fn history_with(people: &Operator, wanted: impl Fn(&v1::Decision) -> bool) -> Vec<v1::Decision> {
    let found = async {
        loop {
            let history = people.history(100).await.unwrap_or_default();
            if history.iter().any(&wanted) {
                return history;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(DEADLINE, found).await.expect("an entry")
}

pub(crate) fn is(decision: &v1::Decision, code: &str, id: &str) -> bool {
    let by = decision.principal.as_ref().map(|it| it.id.as_str());
    decision.reasons[0].code == code && by == Some(&*format!("spiffe://{ZONE}/{id}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_attempt_is_an_entry_of_the_audit_log_and_many_are_one() {
    let place = Place::new().await;
    place.leads().await;
    let ada = place.operator("ada", "admin");
    let iad = place.identity("edge/edge-iad", "");
    for _ in 0..50 {
        report(&place.url(), Some(&iad), lies("edge-dub")).await.unwrap_err();
    }
    let vera = place.operator("vera", "viewer");
    let failover = request(api::operator::failover("us-east"), "t1", None);
    vera.act(failover).await.unwrap_err();
    let as_bob = v1::ActRequest {
        author: "bob".to_owned(),
        ..request(api::operator::failover("us-east"), "t2", None)
    };
    let olaf = place.operator("olaf", "operator");
    olaf.act(as_bob).await.unwrap_err();

    for (who, says) in [
        ("edge/edge-iad", "may not report as edge-dub"),
        ("operator/vera", "it needs the role operator in us-east"),
        (
            "operator/olaf",
            "the certificate is olaf's, and the request says \"bob\"",
        ),
    ] {
        let history = history_with(&ada, |it| is(it, "denied", who)).await;
        let of_one: Vec<_> = history.iter().filter(|it| is(it, "denied", who)).collect();
        assert_eq!(of_one.len(), 1, "{who}: {of_one:?}");
        let (denied, by) = (&of_one[0], of_one[0].principal.clone().unwrap());
        assert!(denied.reasons[0].text.contains(says), "{denied:?}");
        assert!(denied.number.is_none(), "it changed no plan");
        assert!(by.serial.len() >= 30 && by.source.starts_with("127.0.0.1:"), "{by:?}");
        assert!(!by.roles.is_empty(), "{by:?}");
    }
    // The chain has decisions and denials, and the decisions come out the same.
    let items = ada.audit(0).await.unwrap();
    let entries = items.iter().filter_map(|it| match &it.item {
        Some(v1::audit_item::Item::Entry(bytes)) => Some(bytes.clone()),
        _ => None,
    });
    let entries: Vec<_> = entries.collect();
    let read = audit::chain(entries.iter().map(AsRef::as_ref), None).unwrap();
    let denials = read.iter().filter(|it| matches!(it, AnyEntry::Access(_))).count();
    assert_eq!(denials, 3, "{read:?}");
    assert_eq!(verified(items).len() + denials, read.len());
    // An entry about access that somebody changed breaks the chain as well.
    let forged: Vec<Vec<u8>> = entries
        .iter()
        .map(|bytes| {
            String::from_utf8_lossy(bytes)
                .replace("operator/vera", "operator/olaf")
                .into_bytes()
        })
        .collect();
    let broken = audit::chain(forged.iter().map(Vec::as_slice), None).map(drop);
    let head = audit::chain(
        forged.iter().map(Vec::as_slice),
        Some(&audit::hash(entries.last().unwrap())),
    )
    .map(drop);
    assert!(broken.is_err() || head.is_err(), "{broken:?}, {head:?}");
}

/// A decision after a denial goes on in the same chain, and a restart finds it whole.
#[tokio::test(flavor = "multi_thread")]
async fn decisions_follow_denials_in_one_chain() {
    let place = Place::new().await;
    place.leads().await;
    let ada = place.operator("ada", "admin");
    let vera = place.operator("vera", "viewer");
    let drain = |token: &str, edge: &str| {
        let kind = v1::act_request::Kind::DrainEdge(v1::DrainEdge { edge: edge.to_owned() });
        request(kind, token, Some(Duration::from_secs(600)))
    };
    vera.act(drain("t1", "edge-iad")).await.unwrap_err();
    history_with(&ada, |it| is(it, "denied", "operator/vera")).await;
    ada.act(drain("t2", "edge-iad")).await.unwrap();
    let history = ada.history(100).await.unwrap();
    let at = |wanted: &dyn Fn(&v1::Decision) -> bool| history.iter().position(wanted).unwrap();
    let (denied, drained) = (at(&|it| is(it, "denied", "operator/vera")), at(&|it| it.actor == "ada"));
    assert!(drained < denied, "newest first: {history:?}");
    verified(ada.audit(0).await.unwrap());
}

/// A writer of the store can write a whole chain anew. A signed head that an operator kept shows it.
#[tokio::test(flavor = "multi_thread")]
async fn the_head_of_the_audit_log_is_signed_by_the_control_plane() {
    let place = Place::new().await;
    place.leads().await;
    let ada = place.operator("ada", "admin");
    // Beyond the newest entry there is only the head.
    for from in [0, u64::MAX] {
        let items = ada.audit(from).await.unwrap();
        let Some(v1::audit_item::Item::SignedHead(head)) = items.last().and_then(|it| it.item.clone()) else {
            panic!("{items:?}");
        };
        let at = topology::Moment(head.at_ms);
        let statement = audit::head_to_sign(head.number, &head.hash, at);
        let signature = Signature {
            certificate: head.certificate,
            bytes: head.signature.to_vec(),
        };
        let by = signature.check(&statement, &place.root.certificate, at).unwrap();
        assert_eq!(by.id.role.to_string(), "control-plane/control-plane");
        assert!(head.number >= 1);
        if from == 0 {
            let entries = items.iter().filter_map(|it| match &it.item {
                Some(v1::audit_item::Item::Entry(bytes)) => Some(bytes),
                _ => None,
            });
            let newest = entries.last().unwrap();
            assert_eq!(head.hash, audit::hash(newest));
        }
    }
    // A control plane that proves nothing signs nothing.
    let folder = tempfile::tempdir().unwrap();
    let plain = common::ControlPlane::start(folder.path()).await;
    let people = plain.operator();
    common::status_of(&people).await;
    let items = people.audit(0).await.unwrap();
    let signed = items
        .iter()
        .any(|it| matches!(it.item, Some(v1::audit_item::Item::SignedHead(_))));
    assert!(!signed, "{items:?}");
}

/// Nobody asks for these heads: they are in the folder when the log is rewritten.
#[tokio::test(flavor = "multi_thread")]
async fn the_control_plane_writes_signed_heads_by_itself() {
    let mut place = Place::new().await;
    place.stop();
    place.add_section("[audit]\nheads = \"heads\"\n");
    place.start_again().await;
    place.leads().await;
    let ada = place.operator("ada", "admin");
    let folder = place.folder.path().join("heads");
    let newest = || {
        let files = std::fs::read_dir(&folder).into_iter().flatten();
        let files = files.map(|entry| entry.unwrap().path());
        let newest = files
            .filter(|path| path.extension().is_some_and(|it| it == "jsonl"))
            .max()?;
        let line: serde_json::Value = serde_json::from_slice(&std::fs::read(newest).unwrap()).unwrap();
        Some(line["signed-head"].clone())
    };
    let drain = v1::act_request::Kind::DrainEdge(v1::DrainEdge {
        edge: "edge-iad".to_owned(),
    });
    ada.act(request(drain, "t1", Some(Duration::from_secs(600))))
        .await
        .unwrap();
    let wanted = async {
        loop {
            let ends_with = ada
                .audit(u64::MAX)
                .await
                .unwrap()
                .into_iter()
                .find_map(|it| match it.item {
                    Some(v1::audit_item::Item::SignedHead(head)) => Some(head.hash),
                    _ => None,
                });
            match newest() {
                Some(head) if head["hash"].as_str() == ends_with.as_deref() => return head,
                _ => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    };
    let head = tokio::time::timeout(DEADLINE, wanted)
        .await
        .expect("the head of the order");
    let at = topology::Moment(head["at_ms"].as_u64().unwrap());
    let (number, hash) = (head["number"].as_u64().unwrap(), head["hash"].as_str().unwrap());
    let signature = Signature {
        certificate: head["certificate"].as_str().unwrap().to_owned(),
        bytes: hex::decode(head["signature"].as_str().unwrap()).unwrap(),
    };
    let statement = audit::head_to_sign(number, hash, at);
    let by = signature.check(&statement, &place.root.certificate, at).unwrap();
    assert_eq!(by.id.role.to_string(), "control-plane/control-plane");
}
