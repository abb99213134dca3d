//! The files of an identity, and the certificates in them.

use identity::{
    Grant, Identity, OperatorRole, PeerId, Rejected, Reload,
    ca::{self, Credential, Leaf},
    files,
};

use topology::Moment;

use crate::support::{Ca, HOUR, Place, ZONE, now};

#[tokio::test]
async fn a_bad_file_never_replaces_a_good_one() {
    let (ca, other) = (Ca::new(), Ca::new());
    let good = ca.leaf("control-plane/cp-1");
    let server = Place::new(&good, &[&ca.root]);
    let identity = server.identity();
    assert_eq!(identity.reload(), Reload::Unchanged);
    let serial = identity.own().serial;
    let foreign = other.leaf("control-plane/cp-1");
    let others = ca.leaf("control-plane/cp-2");
    let tomorrows = ca.leaf_of(ZONE, "control-plane/cp-1", now() + 24 * HOUR, HOUR);
    let long_ago = Moment(now().0 - 10 * HOUR.as_millis() as u64);
    for (what, certificate, key) in [
        ("no PEM", "nonsense", &*good.key),
        ("the key of another", &good.certificate, &foreign.key),
        ("another CA's", &foreign.certificate, &foreign.key),
        ("another process's", &others.certificate, &others.key),
        ("not yet valid", &tomorrows.certificate, &tomorrows.key),
        (
            "expired",
            &ca.leaf_of(ZONE, "control-plane/cp-1", long_ago, HOUR).certificate,
            &good.key,
        ),
        ("empty", "", ""),
    ] {
        let bad = Credential {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
        };
        server.files.write(&bad).unwrap();
        assert_eq!(identity.reload(), Reload::Refused, "{what}");
        assert_eq!(identity.reload(), Reload::Unchanged, "{what}: judged and logged once");
        assert_eq!(identity.own().serial, serial, "{what}");
    }
    std::fs::remove_file(server.path().join("identity.crt")).unwrap();
    assert_eq!(identity.reload(), Reload::Refused);
    let renewed = ca.leaf("control-plane/cp-1");
    server.files.write(&renewed).unwrap();
    assert_eq!(identity.reload(), Reload::Taken);
    assert_ne!(identity.own().serial, serial);
}

#[test]
fn a_request_is_signed_for_the_id_that_the_authority_says() {
    let ca = Ca::new();
    let (key, request) = ca::request().unwrap();
    let id = PeerId::new(ZONE, "edge/edge-dub".parse().unwrap()).unwrap();
    let certificate = ca.issuer.answer(&request, &Leaf::of(id.clone()), now()).unwrap();
    let place = Place::new(&Credential { certificate, key }, &[&ca.root]);
    let own = place.identity().own();
    assert_eq!(own.id, id);
    assert!(!own.is_due(now()) && own.is_due(now() + ca::NODE_LIFE / 3));
    for bad in ["", "nonsense", &ca.root.certificate] {
        assert!(ca.issuer.answer(bad, &Leaf::of(id.clone()), now()).is_err());
    }
    let forever = Leaf {
        life: 2 * ca::ISSUER_LIFE,
        ..Leaf::of(id)
    };
    let error = ca.issuer.issue(&forever, now()).unwrap_err();
    assert!(error.to_string().contains("out of range"), "{error}");
}

#[test]
fn an_operator_s_roles_stand_in_the_certificate() {
    let ca = Ca::new();
    let id = PeerId::new(ZONE, "operator/alice".parse().unwrap()).unwrap();
    let leaf = Leaf {
        grants: Grant::list("operator@us-*,approver").unwrap(),
        ..Leaf::of(id)
    };
    let credential = ca.issuer.issue(&leaf, now()).unwrap();
    let peer = ca::peer_of(&credential.certificate).unwrap();
    assert_eq!(peer.roles(), "operator@us-*,approver");
    assert_eq!(peer.grants[1], Grant::everywhere(OperatorRole::Approver));
    assert!(peer.until.since(now()) <= ca::OPERATOR_LIFE);
}

/// The machine went down between the two files.
#[test]
fn a_writing_that_was_interrupted_is_finished_at_the_next_start() {
    let ca = Ca::new();
    let place = Place::new(&ca.leaf("edge/edge-dub"), &[&ca.root]);
    let new = ca.leaf("edge/edge-dub");
    files::write(&place.files.key, &new.key, 0o600).unwrap();
    assert!(matches!(
        Identity::load(place.files.clone(), now),
        Err(Rejected::Key { .. })
    ));
    std::fs::write(place.path().join("identity.crt.new"), &new.certificate).unwrap();
    let identity = place.identity();
    assert_eq!(identity.own().serial, ca::peer_of(&new.certificate).unwrap().serial);
    assert_eq!(files::read(&place.files.certificate).unwrap(), new.certificate);
    assert_eq!(identity.reload(), Reload::Unchanged);
}

#[test]
fn a_process_shows_its_own_certificate_or_does_not_start() {
    let ca = Ca::new();
    let identity = Place::new(&ca.leaf("edge/edge-dub"), &[&ca.root]).identity();
    assert!(identity.must_be(&"edge/edge-dub".parse().unwrap()).is_ok());
    for other in ["edge/edge-iad", "dns/edge-dub"] {
        let error = identity.must_be(&other.parse().unwrap()).unwrap_err().to_string();
        assert!(
            error.starts_with("the certificate is spiffe://voice.example/edge/edge-dub's, and this process is"),
            "{error}"
        );
    }
}
