//! Certificates that have ended: worth nothing while new ones are issued, and between edges and stacks no reason to stop when nobody
//! issues any.

use std::{sync::Arc, time::Duration};

use identity::{Event, Expiry, GRACE, Identity, Link, Mode, RECOVERY, Reload, TrustError};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use topology::Moment;

use crate::{
    stacks::{Events, dial, stack_with_events},
    support::{Ca, HOUR, Listener, Place, ZONE, line, now, set_clock, soon},
};

const SECOND: Duration = Duration::from_secs(1);
const EDGE: &str = "edge/edge-dub";
const STACK: &str = "stack/us-east/a";

/// Stops the clock at a whole second, as certificates have them.
fn start() -> Moment {
    let start = Moment(now().0 / 1_000 * 1_000);
    set_clock(start);
    start
}

/// The identity of a role with a certificate of this life, which began at `from`.
fn holder(ca: &Ca, role: &str, from: Moment, life: Duration) -> (Place, Arc<Identity>) {
    let place = Place::new(&ca.leaf_of(ZONE, role, from, life), &[&ca.root]);
    let identity = place.identity();
    (place, identity)
}

/// The metrics page of a process with this identity.
fn metrics(identity: &Arc<Identity>) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Expiry(Some(identity.clone()))));
    let mut page = String::new();
    encode(&mut page, &registry).unwrap();
    page
}

/// Says something, and hears the stack.
async fn check_open(link: &mut Link) {
    line(link).await;
    link.write_all(b"hello\n").await.unwrap();
    assert_eq!(line(link).await, "hello\n");
}

#[tokio::test]
async fn while_nobody_issues_certificates_the_ends_of_edges_and_stacks_do_not_count() {
    let start = start();
    let ca = Ca::new();
    let (stack_files, stacks) = holder(&ca, STACK, start, HOUR);
    // It was renewed just before nobody could any more.
    set_clock(start + HOUR / 3);
    let (edge_files, edges) = holder(&ca, EDGE, start + HOUR / 3, HOUR);
    let events = Events::default();
    let address = stack_with_events(stacks.clone(), events.clone()).await;
    let mut first = dial(&edges, "us-east", address).await.unwrap();
    check_open(&mut first).await;
    assert_eq!((edges.expired_peers(), stacks.expired_peers()), (0, 0));

    // The stack's certificate has ended.
    set_clock(start + HOUR + SECOND);
    let mut second = dial(&edges, "us-east", address).await.unwrap();
    check_open(&mut second).await;
    assert_eq!(
        (second.is_resumed(), edges.expired_peers(), stacks.expired_peers()),
        (true, 1, 0)
    );
    // Both have, and the edge has lost its sessions of TLS.
    set_clock(start + 2 * HOUR);
    let restarted = edge_files.identity();
    let mut third = dial(&restarted, "us-east", address).await.unwrap();
    check_open(&mut third).await;
    assert_eq!(
        (third.is_resumed(), restarted.expired_peers(), stacks.expired_peers()),
        (false, 1, 1)
    );
    assert!(metrics(&stacks).contains("\nmeridian_identity_expired_peers_total 1\n"));
    let region = topology::RegionId::new("us-east").unwrap();
    for link in [&mut first, &mut second, &mut third] {
        link.write_all(b"still\n").await.unwrap();
        assert_eq!(line(link).await, "still\n");
        assert!(link.is_ready_for(&region), "a connection that waits serves again");
    }
    // People issue certificates anew, one by one: the first ones go on believing the others, for half a day.
    let renewed = ca.leaf_of(ZONE, STACK, now(), 100 * HOUR);
    stack_files.files.write(&renewed).unwrap();
    assert_eq!(stacks.reload(), Reload::Taken);
    for (after, wanted) in [(RECOVERY, true), (RECOVERY + SECOND, false)] {
        set_clock(start + 2 * HOUR + after);
        let mut link = dial(&edge_files.identity(), "us-east", address).await.unwrap();
        assert_eq!(soon(link.read_u8()).await.is_ok(), wanted, "{after:?}");
    }
}

#[tokio::test]
async fn a_week_after_its_end_no_certificate_opens_a_link() {
    let start = start();
    let ca = Ca::new();
    let (_kept, stacks) = holder(&ca, STACK, start, HOUR);
    let (edge_files, edges) = holder(&ca, EDGE, start, HOUR);
    let events = Events::default();
    let address = stack_with_events(stacks, events.clone()).await;
    set_clock(start + HOUR + GRACE);
    check_open(&mut dial(&edge_files.identity(), "us-east", address).await.unwrap()).await;
    let mut waits = dial(&edges, "us-east", address).await.unwrap();
    check_open(&mut waits).await;
    let region = topology::RegionId::new("us-east").unwrap();
    assert!(waits.is_ready_for(&region));
    assert!(events.lock().iter().all(|event| *event == Event::Proven));

    // A week is over, for new handshakes, for sessions that are resumed, and for connections that wait.
    set_clock(start + HOUR + GRACE + SECOND);
    for edge in [&edges, &edge_files.identity()] {
        let error = dial(edge, "us-east", address).await.unwrap_err();
        assert!(
            matches!(TrustError::within(&error), Some(TrustError::Unproven(_))),
            "{error}"
        );
    }
    assert!(!waits.is_ready_for(&region));
}

#[tokio::test]
async fn while_certificates_are_issued_one_that_has_ended_opens_no_link() {
    let start = start();
    let ca = Ca::new();
    for (edge_life, stack_life) in [(HOUR, 24 * HOUR), (24 * HOUR, HOUR)] {
        set_clock(start);
        let (_stack, stacks) = holder(&ca, STACK, start, stack_life);
        let (edge, edges) = holder(&ca, EDGE, start, edge_life);
        let events = Events::default();
        let address = stack_with_events(stacks.clone(), events.clone()).await;
        let mut link = dial(&edges, "us-east", address).await.unwrap();
        check_open(&mut link).await;
        set_clock(start + HOUR + SECOND);
        // With a session of an earlier connection, and without one.
        for edge in [edges, edge.identity()] {
            let refused = match dial(&edge, "us-east", address).await {
                Err(error) => matches!(TrustError::within(&error), Some(TrustError::Unproven(_))),
                Ok(mut link) => soon(link.read_u8()).await.is_err(),
            };
            assert!(refused, "{edge_life:?}");
        }
        if edge_life == HOUR {
            assert_eq!(events.lock()[1..], [Event::Refused("expired"); 2]);
        }
        assert_eq!(stacks.expired_peers(), 0);
    }
}

/// Only the end of a certificate may be forgiven.
#[tokio::test]
async fn a_peer_that_was_never_believed_is_not_believed_after_its_end() {
    let start = start();
    let (ca, other) = (Ca::new(), Ca::new());
    let (_kept, stacks) = holder(&ca, STACK, start, HOUR);
    let events = Events::default();
    let address = stack_with_events(stacks, events.clone()).await;
    let later = start + 3 * HOUR;
    for (reason, caller) in [
        ("unknown-issuer", other.leaf(EDGE)),
        ("not-allowed", ca.leaf("dns/ns1")),
    ] {
        set_clock(start + 2 * HOUR);
        let edge = Place::new(&caller, &[&ca.root]).identity();
        let mut link = dial(&edge, "us-east", address).await.unwrap();
        let error = soon(link.read_u8()).await.unwrap_err();
        assert!(
            matches!(TrustError::within(&error), Some(TrustError::Refused(_))),
            "{reason}: {error}"
        );
        assert_eq!(events.lock().pop(), Some(Event::Refused(reason)));
    }
    // The same, as seen by an edge.
    for (what, server) in [
        ("another authority's", other.leaf_of(ZONE, STACK, start, HOUR)),
        ("not yet valid", ca.leaf_of(ZONE, STACK, later, HOUR)),
        ("another region's", ca.leaf_of(ZONE, "stack/us-west/a", start, HOUR)),
        ("an edge's", ca.leaf_of(ZONE, "edge/edge-iad", start, HOUR)),
    ] {
        let impostor = Place::new(&server, &[&ca.root]);
        let (_kept, edge) = holder(&ca, EDGE, start, HOUR);
        let address = stack_with_events(impostor.identity(), Events::default()).await;
        match dial(&edge, "us-east", address).await {
            Err(error) => assert!(TrustError::within(&error).is_some(), "{what}: {error}"),
            Ok(_) => panic!("{what} was believed"),
        }
    }
}

/// A control plane that is there can renew, so it believes no certificate that has ended.
#[tokio::test]
async fn a_control_plane_believes_no_certificate_that_has_ended() {
    let start = start();
    let ca = Ca::new();
    let (_kept, control_plane) = holder(&ca, "control-plane/cp-1", start, HOUR);
    let (_files, edge) = holder(&ca, EDGE, start, HOUR);
    let listener = Listener::new(control_plane, Mode::Required).await;
    soon(edge.connect(listener.dial().await)).await.unwrap();
    // webpki counts the last second in.
    set_clock(start + HOUR + SECOND);
    // The edge looks first.
    assert!(soon(edge.connect(listener.dial().await)).await.is_err());
    let (_renewed, control_plane) = holder(&ca, "control-plane/cp-1", start + HOUR, HOUR);
    let listener = Listener::new(control_plane, Mode::Required).await;
    assert!(soon(edge.connect(listener.dial().await)).await.is_err());
    assert_eq!(listener.events(), [Event::Refused("expired")]);
}
