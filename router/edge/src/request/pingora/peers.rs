//! The stack or server that pingora asks next.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use pingora_core::{
    Error, ErrorType, Result,
    protocols::ALPN,
    upstreams::peer::{H1UpgradePolicy, HttpPeer, HttpUpstreamRequestPolicy},
};
use pingora_proxy::Session;
use routing::breaker::Demand;
use topology::RegionId;

use crate::{
    request::chooser::Chooser,
    request::ctx::Ctx,
    request::limits::Group,
    request::pingora_requester::requester_of,
    request::upload::{Connector, OF_REGIONS, Proof},
};

/// gRPC calls at the same time on one connection to a stack. More take another connection.
const GRPC_STREAMS_MAX: usize = 100;

/// A connection of HTTP/2 to a stack that does not answer a ping within this time is closed: its calls would wait for the
/// whole `timeouts.answer`.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// A region for the next attempt. When all regions failed, the edge asks them again after a pause, a few times.
pub(super) async fn region(chooser: &Chooser, session: &Session, ctx: &mut Ctx) -> Result<Box<HttpPeer>> {
    let requester = requester_of(chooser, session, ctx.choice.table.as_deref());
    loop {
        let wanted = Demand {
            has_connection: !ctx.is_grpc,
            is_extra: ctx.choice.retries > 0,
        };
        if let Some((decision, in_flight)) = chooser.choose(ctx, &requester, wanted) {
            let mut peer = peer(chooser, decision.stack, ctx.is_grpc);
            prove(chooser, &mut peer, &decision.region);
            (ctx.choice.decision, ctx.choice.in_flight) = (Some(decision), Some(in_flight));
            return Ok(peer);
        }
        match chooser.another_round(&mut ctx.choice) {
            Some(pause) => tokio::time::sleep(pause).await,
            None => return Err(Error::explain(ErrorType::HTTPStatus(503), "no region took the request")),
        }
    }
}

/// One of the operator's servers for the next attempt.
pub(super) fn server(chooser: &Chooser, ctx: &mut Ctx, group: &Arc<Group>) -> Result<Box<HttpPeer>> {
    let serving = group
        .pick(&ctx.proxied.servers_tried, daemon::clock::now())
        .ok_or_else(|| Error::explain(ErrorType::HTTPStatus(503), "no server took the request"))?;
    ctx.proxied.servers_tried.push(serving.index);
    let peer = peer(chooser, serving.address, ctx.is_grpc);
    ctx.proxied.serving = Some(serving);
    Ok(peer)
}

/// Makes both ends of a connection to a stack prove their identity, below pingora.
fn prove(chooser: &Chooser, peer: &mut HttpPeer, region: &RegionId) {
    let Some(identity) = chooser.edge.identity() else {
        return;
    };
    // A connection that was proven for one region serves no other.
    let mut hasher = DefaultHasher::new();
    region.hash(&mut hasher);
    peer.group_key = hasher.finish() | OF_REGIONS;
    let limit = chooser.edge.config.timeouts.connect.0;
    let proof = Proof {
        identity: identity.clone(),
        region: region.clone(),
    };
    peer.options.custom_l4 = Some(Arc::new(Connector::proving(limit, proof)));
}

fn peer(chooser: &Chooser, address: SocketAddr, is_grpc: bool) -> Box<HttpPeer> {
    let timeouts = &chooser.edge.config.timeouts;
    let mut peer = HttpPeer::new(address, false, String::new());
    let options = &mut peer.options;
    options.connection_timeout = Some(timeouts.connect.0);
    options.total_connection_timeout = Some(timeouts.connect.0);
    options.read_timeout = Some(timeouts.answer.0);
    options.write_timeout = Some(timeouts.answer.0);
    // Shorter than a stack keeps its end open, so that a request rarely meets a connection that is being closed.
    options.idle_timeout = Some(Duration::from_secs(15));
    options.http_upstream_request_policy = HttpUpstreamRequestPolicy {
        // The edge serves sessions without pingora, and no other request becomes one.
        h1_upgrade: H1UpgradePolicy::Deny,
        ..HttpUpstreamRequestPolicy::standard()
    };
    if is_grpc {
        options.alpn = ALPN::H2;
        options.max_h2_streams = GRPC_STREAMS_MAX;
        options.h2_ping_interval = Some(PING_INTERVAL);
    }
    Box::new(peer)
}
