//! Sessions belong to the devices that edges recognised.

use std::net::SocketAddr;

use edge::accept::auth_config::{Auth, Mode};

use crate::{
    memory::{CHECKPOINT_KEY, Device, World},
    region::{Region, engines, until_metric},
};

/// SHA-256 of "mk_ada" and of "mk_eve", as `sha256sum` has them.
const DEVICES: &str = "[[tenant]]\nname = \"acme\"\n\
     [[key]]\nname = \"ada\"\ntenant = \"acme\"\nsha256 = \"d936a435c04b70c203fe762878e1514c1885e1f0d020244c0bc8fa0977638f7a\"\n\
     [[key]]\nname = \"eve\"\ntenant = \"acme\"\nsha256 = \"d496ff968d6eddb2a2a8b91cd9a12029e159dc22adca4d9fee8082ab39914204\"\n";

async fn call(edge: SocketAddr, key: &str, query: &str) -> Device {
    let authorization = format!("Bearer {key}");
    let headers = [("authorization", authorization.as_str())];
    Device::call_with(edge, query, &headers).await.unwrap()
}

#[tokio::test]
async fn nobody_resumes_the_session_of_another_device() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("devices.toml");
    std::fs::write(&file, DEVICES).unwrap();
    let lines = format!("checkpoint_key = \"{CHECKPOINT_KEY}\"");
    let region = Region::start_in("eu-west", &lines, engines(), |_| {}).await;
    let world = World::with(2, &[("eu-west", region.http)], |config| {
        config.auth = Auth {
            mode: Mode::Keys,
            devices: Some(file.clone()),
            ..Auth::default()
        };
    });
    let (here, there) = (world.edges[0].1, world.edges[1].1);
    assert!(
        Device::call_with(here, "", &[]).await.is_err(),
        "a device without a key is refused"
    );
    // A page in a browser sends its key among the subprotocols, and the answer names another one.
    let offered = [("sec-websocket-protocol", "realtime, openai-insecure-api-key.mk_ada")];
    let page = Device::call_with(here, "", &offered).await.unwrap();
    assert_eq!(page.header("sec-websocket-protocol"), "realtime");
    drop(page);
    let mut ada = call(here, "mk_ada", "").await;
    ada.reads().await;
    ada.say("set an alarm for seven a m").await;
    let alarms = ada.say("what alarms do i have").await;
    let id = ada.id().to_owned();
    drop(ada);
    until_metric(region.http, "meridian_stack_sessions 0").await;

    // Eve has the id from a log, and her own key.
    let mut eve = call(there, "mk_eve", &format!("&resume={id}")).await;
    let error = eve.until("error").await;
    assert_eq!(error["error"]["code"], "session_not_resumed");
    eve.reads().await;
    assert_eq!(eve.say("what alarms do i have").await, "there is no alarm");
    // The edge must see the parameter in every spelling that the stack reads.
    let authorization = [("authorization", "Bearer mk_eve")];
    let disguised = Device::call_with(there, &format!("&%72esume={id}"), &authorization).await;
    assert_eq!(disguised.map(drop).unwrap_err().0, 400);
    // And a stack gives out no session for which the edge does not vouch.
    let (name, _) = id.split_once('.').unwrap();
    let given = [("meridian-session-token", "sess_00112233445566778899aabbccddeeff")];
    let mut past = Device::call_with(region.http, &format!("&resume={name}"), &given)
        .await
        .unwrap();
    assert_eq!(past.until("error").await["error"]["code"], "session_not_resumed");
    let mut back = call(there, "mk_ada", &format!("&resume={id}")).await;
    assert_eq!(back.say("what alarms do i have").await, alarms);
}
