//! Edges and stacks: sessions of TLS that are resumed, certificates that are refused, roots that are taken away.

use std::{net::SocketAddr, sync::Arc};

use identity::{Acceptor, Event, Identity, Mode, Reload, Speaks, TrustError};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinSet,
};

use crate::support::{Ca, Place, line, soon};

/// A stack that says who called, and sends back what it hears.
async fn stack(identity: Arc<Identity>) -> SocketAddr {
    stack_with_events(identity, Events::default()).await
}

/// The events at a listener.
pub(crate) type Events = Arc<Mutex<Vec<Event>>>;

/// The same, and keeps the events at its listener.
pub(crate) async fn stack_with_events(identity: Arc<Identity>, events: Events) -> SocketAddr {
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    let acceptor = Arc::new(Acceptor::new(Some((identity, Mode::Required)), move |event| {
        events.lock().push(event);
    }));
    tokio::spawn(async move {
        while let Ok((tcp, source)) = tcp.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut link = acceptor.admit_to_stack(tcp, source).await?;
                let greeting = format!("{}\n", link.peer()?.id);
                link.write_all(greeting.as_bytes()).await.ok()?;
                let mut buffer = [0; 64];
                while let Ok(count @ 1..) = link.read(&mut buffer).await {
                    link.write_all(&buffer[..count]).await.ok()?;
                }
                Some(())
            });
        }
    });
    address
}

pub(crate) async fn dial(edge: &Arc<Identity>, region: &str, stack: SocketAddr) -> std::io::Result<identity::Link> {
    let region = topology::RegionId::new(region).unwrap();
    soon(identity::dial(Some(edge), &region, stack, Speaks::Http1)).await
}

/// After the loss of a region its sessions come to others at once.
#[tokio::test]
async fn an_edge_resumes_its_tls_sessions_with_a_stack_while_nothing_changes() {
    let (ca, next) = (Ca::new(), Ca::new());
    let own = Place::new(&ca.leaf("stack/us-east/a"), &[&ca.root]);
    let edge = Place::new(&ca.leaf("edge/edge-dub"), &[&ca.root]);
    let (stacks, edges) = (own.identity(), edge.identity());
    let address = stack(stacks.clone()).await;
    let connect = async || {
        let mut link = dial(&edges, "us-east", address).await.unwrap();
        // Tickets come with it.
        assert_eq!(line(&mut link).await, "spiffe://voice.example/edge/edge-dub\n");
        assert_eq!(
            link.peer().unwrap().id.to_string(),
            "spiffe://voice.example/stack/us-east/a"
        );
        link.is_resumed()
    };
    assert_eq!([connect().await, connect().await, connect().await], [false, true, true]);
    // The edge does not believe the same address for another region, although it resumed a session with it before.
    let error = dial(&edges, "us-west", address).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "spiffe://voice.example/stack/us-east/a may not serve as a stack of us-west: its address in topology.toml leads to another \
         process; check the address, and the certificate of the stack"
    );
    assert!(matches!(TrustError::within(&error), Some(TrustError::Other(_))));
    // With another trust, at either end, both ends prove their ids again.
    own.trusts(&[&ca.root, &next.root]);
    assert_eq!(stacks.reload(), Reload::Taken);
    assert_eq!([connect().await, connect().await], [false, true]);
    edge.trusts(&[&ca.root, &next.root]);
    assert_eq!(edges.reload(), Reload::Taken);
    assert_eq!([connect().await, connect().await], [false, true]);
}

/// Each connection brings two tickets and uses one. The store of rustls forgets all but the last eight.
#[tokio::test]
async fn an_edge_whose_sessions_move_at_once_resumes_tls_for_as_many_as_it_has_tickets() {
    let ca = Ca::new();
    let stacks = Place::new(&ca.leaf("stack/us-east/a"), &[&ca.root]).identity();
    let edges = Place::new(&ca.leaf("edge/edge-dub"), &[&ca.root]).identity();
    let address = stack(stacks).await;
    for _ in 0..19 {
        // Probes, one after the other.
        line(&mut dial(&edges, "us-east", address).await.unwrap()).await;
    }
    let mut all_at_once = JoinSet::new();
    for _ in 0..25 {
        let edges = edges.clone();
        all_at_once.spawn(async move { dial(&edges, "us-east", address).await.unwrap() });
    }
    let links = all_at_once.join_all().await;
    let resumed = links.iter().filter(|link| link.is_resumed()).count();
    assert_eq!(resumed, 20);
}

/// In TLS 1.3 the caller is done before the stack has looked at its certificate.
#[tokio::test]
async fn an_edge_hears_that_a_stack_refuses_its_certificate_in_place_of_an_answer() {
    let (ca, other) = (Ca::new(), Ca::new());
    let address = stack(Place::new(&ca.leaf("stack/us-east/a"), &[&ca.root]).identity()).await;
    let edges = Place::new(&other.leaf("edge/edge-dub"), &[&ca.root]).identity();
    let mut link = dial(&edges, "us-east", address).await.unwrap();
    link.write_all(&[0; 4096]).await.unwrap();
    link.flush().await.unwrap();
    let error = soon(link.read_u8()).await.unwrap_err();
    let refused = TrustError::Refused("UnknownCA".to_owned());
    assert_eq!(
        (TrustError::within(&error), link.trust_error()),
        (Some(&refused), Some(&refused)),
        "{error}"
    );
}

#[tokio::test]
async fn a_link_ends_when_the_root_of_its_peer_is_taken_away_and_not_before() {
    let (ca, next) = (Ca::new(), Ca::new());
    let own = Place::new(&ca.leaf("stack/us-east/a"), &[&ca.root]);
    let edge = Place::new(&next.leaf("edge/edge-dub"), &[&ca.root, &next.root]);
    own.trusts(&[&ca.root, &next.root]);
    let edges = edge.identity();
    let address = stack(own.identity()).await;
    let mut link = dial(&edges, "us-east", address).await.unwrap();
    line(&mut link).await;
    let region = topology::RegionId::new("us-east").unwrap();
    assert!(link.is_ready_for(&region));
    assert!(!link.is_ready_for(&topology::RegionId::new("us-west").unwrap()));
    edge.files.write(&next.leaf("edge/edge-dub")).unwrap();
    assert_eq!(edges.reload(), Reload::Taken);
    link.write_all(b"renewed\n").await.unwrap();
    assert_eq!(line(&mut link).await, "renewed\n");
    edge.trusts(&[&next.root]);
    assert_eq!(edges.reload(), Reload::Taken);
    assert!(!link.is_ready_for(&region));
    let error = link.write_all(b"gone\n").await.unwrap_err();
    assert_eq!(TrustError::within(&error), Some(&TrustError::Withdrawn));
}
