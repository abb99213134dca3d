//! The memory of a session and its alarms when devices lose their connections, stacks lose their sessions, and regions die.
//! Devices type here; other files test speech.

mod ids;
pub(crate) mod zones;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use edge::{Edge, accept::documents::Documents, accept::listener, metrics::Metrics};
use futures_util::{SinkExt as _, StreamExt as _};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Error, Message, client::IntoClientRequest as _, http::HeaderMap},
};
use tokio_util::sync::CancellationToken;
use topology::{RegionId, RegionState, Snapshot, fixtures::three_primaries, snapshot::digest};

use crate::region::{HANGS_AFTER, Region, engines};

pub(crate) const CHECKPOINT_KEY: &str = "5a112233445566778899aabbccddeeff5a112233445566778899aabbccddeeff";

/// A device that types and reads.
pub(crate) struct Device {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    headers: HeaderMap,
    /// The session in `session.created`.
    pub(crate) session: Value,
}

impl Device {
    pub(crate) async fn call(address: SocketAddr, parameters: &str) -> Self {
        Self::call_with(address, parameters, &[])
            .await
            .expect("the session opens")
    }

    pub(crate) async fn call_with(
        address: SocketAddr,
        parameters: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<Self, (u16, Value)> {
        let url = format!("ws://{address}/v1/realtime?model=m&meridian=1{parameters}");
        let mut request = url.into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        let (socket, answer) = match timeout(HANGS_AFTER, connect_async(request)).await.unwrap() {
            Ok(opened) => opened,
            Err(Error::Http(answer)) => {
                let body = serde_json::from_slice(answer.body().as_deref().unwrap_or_default());
                return Err((answer.status().as_u16(), body.unwrap_or_default()));
            }
            Err(error) => panic!("{error}"),
        };
        let mut device = Self {
            socket,
            headers: answer.headers().clone(),
            session: Value::Null,
        };
        let created = device.next().await;
        assert_eq!(created["type"], "session.created");
        device.session = created["session"].clone();
        Ok(device)
    }

    pub(crate) fn id(&self) -> &str {
        self.session["id"].as_str().unwrap()
    }

    /// Connects again with its id, as the openai client does.
    pub(crate) async fn resume(&self, address: SocketAddr) -> Self {
        Self::call(address, &format!("&resume={}", self.id())).await
    }

    /// A header of the answer to its upgrade.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }

    pub(crate) fn region(&self) -> &str {
        self.headers["meridian-region"].to_str().unwrap()
    }

    async fn send(&mut self, event: Value) {
        self.socket.send(Message::text(event.to_string())).await.unwrap();
    }

    async fn next(&mut self) -> Value {
        loop {
            match timeout(HANGS_AFTER, self.socket.next())
                .await
                .expect("an event comes")
                .unwrap()
                .unwrap()
            {
                Message::Text(text) => return serde_json::from_str(&text).unwrap(),
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    pub(crate) async fn until(&mut self, kind: &str) -> Value {
        loop {
            let event = self.next().await;
            if event["type"] == kind {
                return event;
            }
        }
    }

    /// Types a text. Returns the reply.
    pub(crate) async fn say(&mut self, text: &str) -> String {
        let content = json!([{ "type": "input_text", "text": text }]);
        let item = json!({ "type": "message", "role": "user", "content": content });
        self.send(json!({ "type": "conversation.item.create", "item": item }))
            .await;
        self.answer().await
    }

    async fn answer(&mut self) -> String {
        let answer = json!({ "type": "response.create", "response": { "output_modalities": ["text"] } });
        self.send(answer.clone()).await;
        let mut reply = None;
        loop {
            let event = self.next().await;
            match event["type"].as_str().unwrap() {
                // The response before, or a ring, has not ended yet.
                "error" if event["error"]["code"] == "conversation_already_has_active_response" => {
                    self.send(answer.clone()).await;
                }
                "response.output_text.done" => reply = Some(event["text"].as_str().unwrap().to_owned()),
                "response.done" if reply.is_some() => return reply.unwrap(),
                _ => {}
            }
        }
    }

    /// Waits for a ring. Returns its text and its item.
    pub(crate) async fn rings(&mut self) -> (String, String) {
        let said = self.until("response.output_text.done").await;
        self.until("response.done").await;
        let text = |field: &str| said[field].as_str().unwrap().to_owned();
        (text("text"), text("item_id"))
    }

    /// Asks the assistant for text from here on.
    pub(crate) async fn reads(&mut self) {
        self.send(
            json!({ "type": "session.update", "session": { "type": "realtime", "output_modalities": ["text"] } }),
        )
        .await;
        self.until("session.updated").await;
    }
}

/// A stack in a region, with the key of all regions.
async fn stack(region: &str, home: &str) -> Region {
    let lines = format!("home_city = \"{home}\"\ncheckpoint_key = \"{CHECKPOINT_KEY}\"");
    Region::start_in(region, &lines, engines(), |_| {}).await
}

/// Stacks in their regions, and edges that know them all. The home of the edges is eu-west; its backups are eu-central and us-west, in
/// this order.
pub(crate) struct World {
    pub(crate) edges: Vec<(Arc<Edge>, SocketAddr)>,
    snapshot: Snapshot,
    _stop: tokio_util::sync::DropGuard,
}

impl World {
    pub(crate) fn new(edges: usize, stacks: &[(&str, SocketAddr)]) -> Self {
        Self::with(edges, stacks, |_| {})
    }

    pub(crate) fn with(edges: usize, stacks: &[(&str, SocketAddr)], change: impl Fn(&mut edge::Config)) -> Self {
        let mut snapshot: Snapshot = three_primaries();
        for known in snapshot.topology.regions.values_mut() {
            known.stacks.clear();
        }
        for (region, address) in stacks {
            let region = RegionId::new(region).unwrap();
            let known = snapshot.topology.regions.get_mut(&region).unwrap();
            known.stacks.push((*address).into());
        }
        snapshot.plan.documents = digest(&snapshot.topology, snapshot.dns_ttl_s, &snapshot.probe);
        let stop = CancellationToken::new();
        let edges = (0..edges).map(|_| {
            let example = include_str!("../../../../configs/edge.toml").replace("127.0.0.1:8080", "127.0.0.1:0");
            let mut config: edge::Config = daemon::config::parse("edge.toml", &example).unwrap();
            change(&mut config);
            let listeners = listener::claim(&config, None, None).unwrap().listen().unwrap();
            let address = listeners[0].address().unwrap();
            let metrics = Metrics::new(&mut Registry::default());
            let documents = Documents::load(&config.auth, &config.state_dir, metrics.clone()).unwrap();
            let access = documents.map(|documents| documents.access());
            let edge = Arc::new(Edge::new(config, metrics).with_access(access));
            edge.apply(&snapshot);
            tokio::spawn(listener::serve(
                edge.clone(),
                edge::accept::workers::Workers::start(&edge).unwrap(),
                listeners,
                Default::default(),
                stop.clone(),
                std::future::pending(),
            ));
            (edge, address)
        });
        Self {
            edges: edges.collect(),
            snapshot: snapshot.clone(),
            _stop: stop.drop_guard(),
        }
    }

    /// Changes the plan for all edges.
    fn plan(&mut self, change: impl FnOnce(&mut topology::Plan)) {
        change(&mut self.snapshot.plan);
        self.snapshot.plan.generation += 1;
        for (edge, _) in &self.edges {
            edge.apply(&self.snapshot);
        }
    }

    /// Publishes a topology that names the time zone of a region.
    fn lies_in(&mut self, region: &str, zone: &str) {
        let topology = &mut self.snapshot.topology;
        topology
            .regions
            .get_mut(&RegionId::new(region).unwrap())
            .unwrap()
            .time_zone = Some(zone.to_owned());
        let documents = digest(topology, self.snapshot.dns_ttl_s, &self.snapshot.probe);
        self.plan(|plan| plan.documents = documents);
    }

    fn evacuate(&mut self, from: &str, to: &str) {
        let [from, to] = [from, to].map(|name| RegionId::new(name).unwrap());
        self.plan(|plan| {
            plan.regions.get_mut(&from).unwrap().state = RegionState::Evacuated;
            let shares = plan.routes.get_mut(&from).unwrap();
            shares[0].region = to;
        });
    }

    fn restore(&mut self, home: &str) {
        let home = RegionId::new(home).unwrap();
        self.plan(|plan| {
            plan.regions.get_mut(&home).unwrap().state = RegionState::Serving;
            plan.routes.get_mut(&home).unwrap()[0].region = home.clone();
        });
    }
}

/// The network between the edges and a stack, which can break.
struct Wire {
    address: SocketAddr,
    is_cut: Arc<tokio::sync::watch::Sender<bool>>,
}

impl Wire {
    async fn to(stack: SocketAddr) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let is_cut = Arc::new(tokio::sync::watch::Sender::new(false));
        let cut = is_cut.clone();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut cut = cut.subscribe();
                if *cut.borrow_and_update() {
                    continue;
                }
                tokio::spawn(async move {
                    let mut far = TcpStream::connect(stack).await.unwrap();
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = cut.wait_for(|is_cut| *is_cut) => {}
                    }
                });
            }
        });
        Self { address, is_cut }
    }

    fn cut(&self) {
        self.is_cut.send_replace(true);
    }

    fn mend(&self) {
        self.is_cut.send_replace(false);
    }
}

/// The edge loses sight of a region that lives, and the id of the session still names that region when it is back.
#[tokio::test]
async fn a_region_that_was_cut_off_does_not_bring_back_what_was_before() {
    let first = stack("eu-west", "london").await;
    let wire = Wire::to(first.http).await;
    let second = stack("eu-central", "berlin").await;
    let world = World::new(2, &[("eu-west", wire.address), ("eu-central", second.http)]);
    let (here, there) = (world.edges[0].1, world.edges[1].1);
    let mut device = Device::call(here, "").await;
    device.reads().await;
    device.say("set a timer for ten minutes").await;
    let id = device.id().to_owned();
    wire.cut();
    device.until_moved("eu-central").await;
    assert_eq!(device.say("cancel the timer").await, "timer cancelled");
    first
        .until_metric("meridian_stack_sessions_closed_total{reason=\"lost\"} 1")
        .await;
    // Every update tells its new id.
    device
        .send(json!({ "type": "session.update", "session": { "type": "realtime", "instructions": "be brief" } }))
        .await;
    let updated = device.until("session.updated").await;
    let new_id = updated["session"]["id"].as_str().unwrap().to_owned();
    let name = |id: &str| id.split('.').next().unwrap().to_owned();
    assert_eq!(name(&new_id), name(&id));
    assert!(new_id.contains("eu-central"), "{new_id}");
    drop(device);
    second.until_metric("meridian_stack_sessions 0").await;

    wire.mend();
    for id in [id, new_id] {
        let mut back = Device::call(there, &format!("&resume={id}")).await;
        assert_eq!(back.say("how much time is left").await, "there is no timer");
    }
}

/// The edge died, or its network: the session went nowhere else, but its stack cannot know that.
#[tokio::test]
async fn a_session_that_was_cut_off_and_is_nowhere_else_comes_back_where_it_was() {
    let first = stack("eu-west", "london").await;
    let wire = Wire::to(first.http).await;
    let other = stack("eu-west", "london").await;
    let second = stack("eu-central", "berlin").await;
    let gone = World::new(1, &[("eu-west", wire.address)]);
    let mut device = Device::call(gone.edges[0].1, "").await;
    device.reads().await;
    device.say("set a timer for ten minutes").await;
    wire.cut();
    first
        .until_metric("meridian_stack_sessions_closed_total{reason=\"lost\"} 1")
        .await;
    let stacks = [
        ("eu-west", first.http),
        ("eu-west", other.http),
        ("eu-central", second.http),
    ];
    let world = World::new(1, &stacks);
    let mut back = device.resume(world.edges[0].1).await;
    assert_eq!(back.region(), "eu-west");
    assert!(back.say("how much time is left").await.contains("minutes"));
}

#[tokio::test]
async fn an_edge_does_not_bring_back_what_was_before_another_edge() {
    let first = stack("eu-west", "london").await;
    let second = stack("eu-central", "berlin").await;
    let world = World::new(2, &[("eu-west", first.http), ("eu-central", second.http)]);
    let (here, there) = (world.edges[0].1, world.edges[1].1);
    let mut device = Device::call(here, "").await;
    device.reads().await;
    device.say("set a timer for ten minutes").await;
    let id = device.id().to_owned();
    drop(device);
    first.until_metric("meridian_stack_sessions 0").await;
    let mut device = Device::call(there, &format!("&resume={id}")).await;
    assert_eq!(device.say("cancel the timer").await, "timer cancelled");
    let id = device.id().to_owned();
    drop(device);
    first.until_metric("meridian_stack_sessions 0").await;
    first.begin_stop();
    first.stopped().await;

    // The first edge has a checkpoint with the timer, the second one without.
    let mut back = Device::call(here, &format!("&resume={id}")).await;
    let error = back.next().await;
    assert_eq!(error["error"]["code"], "session_not_resumed");
    assert_eq!(back.say("how much time is left").await, "there is no timer");
    drop(back);
    let mut back = Device::call(there, &format!("&resume={id}")).await;
    back.reads().await;
    assert_eq!(back.say("how much time is left").await, "there is no timer");
}

#[tokio::test]
async fn a_ring_into_a_socket_that_nobody_reads_rings_again_after_the_device_is_back() {
    let region = stack("eu-west", "london").await;
    let mut deaf = Device::call(region.http, "").await;
    deaf.reads().await;
    assert_eq!(deaf.say("set a timer for one second").await, "timer set for one second");
    // The stack gave the ring to the socket, where nobody reads it.
    region
        .until_metric("meridian_stack_turns_total{outcome=\"completed\"} 2")
        .await;
    let mut back = deaf.resume(region.http).await;
    assert_eq!(back.rings().await.0, "your timer for one second is done");
    // It rings until somebody acknowledges it.
    assert_eq!(back.say("stop").await, "okay");
    let mut later = back.resume(region.http).await;
    assert_eq!(later.say("how much time is left").await, "there is no timer");
}

#[tokio::test]
async fn a_device_acknowledges_a_ring_by_playing_it_or_with_an_event() {
    let region = stack("eu-west", "london").await;
    for acknowledges in [
        |item: &str| json!({ "type": "meridian.playback", "played": item }),
        |_: &str| json!({ "type": "meridian.ring.acknowledge" }),
    ] {
        let mut device = Device::call(region.http, "").await;
        device.reads().await;
        device.say("set a timer for one second").await;
        let (said, item) = device.rings().await;
        assert_eq!(said, "your timer for one second is done");
        // Another item was not the ring.
        device
            .send(json!({ "type": "meridian.playback", "played": "item_x" }))
            .await;
        device.send(acknowledges(&item)).await;
        assert_eq!(device.say("how much time is left").await, "there is no timer");
    }
}

#[tokio::test]
async fn what_rings_can_be_put_off() {
    let region = stack("eu-west", "london").await;
    let mut device = Device::call(region.http, "").await;
    device.reads().await;
    device
        .send(json!({ "type": "meridian.ring.snooze", "minutes": 5 }))
        .await;
    assert_eq!(device.until("error").await["error"]["code"], "nothing_rings");
    device.say("set a timer for one second").await;
    device.rings().await;
    device
        .send(json!({ "type": "meridian.ring.snooze", "minutes": 0 }))
        .await;
    assert_eq!(device.until("error").await["error"]["param"], "minutes");
    device
        .send(json!({ "type": "meridian.ring.snooze", "minutes": 5 }))
        .await;
    let left = device.say("how much time is left").await;
    assert!(left.contains("minutes"), "{left}");
}

#[tokio::test]
async fn one_session_has_one_connection_and_rings_once() {
    let region = stack("eu-west", "london").await;
    let mut first = Device::call(region.http, "").await;
    first.reads().await;
    first.say("set a timer for two seconds").await;
    let mut second = first.resume(region.http).await;
    let mut third = first.resume(region.http).await;
    for older in [&mut first, &mut second] {
        let error = older.until("error").await;
        assert_eq!(error["error"]["code"], "session_taken_over");
        let Some(Ok(Message::Close(Some(frame)))) = timeout(HANGS_AFTER, older.socket.next()).await.unwrap() else {
            panic!("the older connection is closed");
        };
        assert_eq!(u16::from(frame.code), 1008);
        assert!(frame.reason.contains("newer connection"), "{}", frame.reason);
    }
    assert_eq!(third.rings().await.0, "your timer for two seconds is done");
}

#[tokio::test]
async fn a_session_comes_back_with_its_settings_and_its_conversation() {
    let region = stack("eu-west", "london").await;
    let mut device = Device::call(region.http, "&zone=Asia/Tokyo").await;
    let update = json!({ "type": "realtime", "output_modalities": ["text"], "instructions": "be brief" });
    device
        .send(json!({ "type": "session.update", "session": update }))
        .await;
    device.until("session.updated").await;
    let content = json!([{ "type": "input_text", "text": "help" }]);
    let item = json!({ "id": "item_mine", "type": "message", "role": "user", "content": content });
    device
        .send(json!({ "type": "conversation.item.create", "item": item }))
        .await;
    device.send(json!({ "type": "response.create" })).await;
    device.until("response.done").await;

    let mut back = device.resume(region.http).await;
    assert_eq!(back.id(), device.id());
    assert_eq!(back.session["instructions"], "be brief");
    assert_eq!(back.session["output_modalities"], json!(["text"]));
    assert_eq!(back.session["meridian"]["zone"], "Asia/Tokyo");
    back.send(json!({ "type": "conversation.item.retrieve", "item_id": "item_mine" }))
        .await;
    let found = back.until("conversation.item.retrieved").await;
    assert_eq!(found["item"]["content"][0]["text"], "help");
}

#[tokio::test]
async fn a_session_does_not_age_while_it_is_connected() {
    let region = Region::start_in("eu-west", "", engines(), |limits| {
        limits.session_ttl.0 = Duration::from_secs(1);
    })
    .await;
    let mut device = Device::call(region.http, "").await;
    device.say("dim the office lights to ten percent").await;
    // The test needs this time: twice the lifetime of a closed session.
    tokio::time::sleep(Duration::from_millis(2200)).await;
    let back = device.resume(region.http).await;
    assert_eq!(back.id(), device.id(), "it is the same session");
}

#[tokio::test]
async fn who_asks_for_a_session_that_is_gone_is_told_and_gets_a_new_one() {
    let region = stack("eu-west", "london").await;
    for unknown in ["sess_00000000000000000000000000000000", "x", "%00", "..."] {
        let mut device = Device::call(region.http, &format!("&resume={unknown}")).await;
        let error = device.next().await;
        assert_eq!(error["error"]["code"], "session_not_resumed", "{error}");
        assert!(
            error["error"]["message"].as_str().unwrap().contains("alarms"),
            "{error}"
        );
        device.reads().await;
        assert_eq!(device.say("help").await.split(' ').next(), Some("you"));
    }
}

impl Device {
    /// Asks until this region answers.
    pub(crate) async fn until_moved(&mut self, region: &str) {
        let moved = async {
            loop {
                self.say("help").await;
                if self.until("meridian.turn").await["region"] == region {
                    return;
                }
            }
        };
        timeout(HANGS_AFTER, moved).await.expect("the session moves");
    }
}
