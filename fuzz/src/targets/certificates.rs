//! Certificates, requests for them, ids and roles: what another process shows before anybody believes it.

use std::sync::LazyLock;

use identity::{
    Grant, Peer, PeerId, Role,
    ca::{self, Authority, Leaf},
    certificate,
};
use topology::Moment;

const NOW: Moment = Moment(1_796_000_000_000);

static ISSUER: LazyLock<Authority> = LazyLock::new(|| {
    let root = ca::root("voice.example", NOW).expect("a root can be made");
    let root = Authority::load(&root).expect("it was just made");
    let issuer = root.issuer("voice.example", NOW).expect("an issuer can be made");
    Authority::load(&issuer).expect("it was just made")
});

/// Reads the bytes as a certificate in DER, and as text: certificates in PEM, a request, an id, a role and grants.
pub(crate) fn read(bytes: &[u8]) {
    if let Ok(peer) = Peer::of(bytes) {
        check(&peer);
    }
    let text = String::from_utf8_lossy(bytes);
    for seen in certificate::summaries(&text) {
        let again = certificate::summaries(&seen.pem);
        assert_eq!(again, [seen], "a certificate is read as it was written");
    }
    let _ = ca::addresses_of(&text);
    if let Some(peer) = ca::peer_of(&text) {
        check(&peer);
    }
    answer(&text);
    if let Ok(id) = text.parse::<PeerId>() {
        assert_eq!(id.to_string(), text, "an id has one form");
    }
    if let Ok(role) = text.parse::<Role>() {
        assert_eq!(role.to_string(), text, "a role has one form");
    }
    if let Ok(grants) = Grant::list(&text) {
        check_grants(&grants);
    }
}

fn check(peer: &Peer) {
    assert_eq!(
        peer.id.to_string().parse::<PeerId>().as_ref(),
        Ok(&peer.id),
        "an id is read as it was written"
    );
    assert!(peer.from <= peer.until, "a life has an order");
    let is_operator = matches!(peer.id.role, Role::Operator(_));
    assert!(is_operator || peer.grants.is_empty(), "only people have roles");
    check_grants(&peer.grants);
}

fn check_grants(grants: &[Grant]) {
    let written: Vec<String> = grants.iter().map(ToString::to_string).collect();
    assert_eq!(Grant::list(&written.join(",")).as_deref(), Ok(grants), "{written:?}");
}

/// A certificate has the id and the roles that the issuer says, against everything in its request.
fn answer(request: &str) {
    let id = PeerId::new("voice.example", Role::Edge("edge-dub".to_owned())).expect("it is an id");
    if let Ok(certificate) = ISSUER.answer(request, &Leaf::of(id.clone()), NOW) {
        let peer = ca::peer_of(&certificate).expect("the issuer signs what it can read");
        assert_eq!((peer.id, peer.grants), (id, Vec::new()));
        assert!(
            ca::addresses_of(&certificate).is_empty(),
            "no address comes from a request"
        );
    }
}
