//! The clock of the device's place, in every region that serves its session.

use super::*;

/// Whether the clock that the assistant tells is that of this city.
pub(crate) async fn check_clock(device: &mut Device, city: &str) {
    let there = |said: String| said.replace(&format!(" in {city}"), "");
    let before = there(device.say(&format!("what time is it in {city}")).await);
    let here = device.say("what time is it").await;
    // A minute may end in between.
    let after = there(device.say(&format!("what time is it in {city}")).await);
    assert!(here == before || here == after, "{here}; {before} in {city}");
}

#[tokio::test]
async fn a_zone_that_is_none_is_refused_and_says_what_one_is() {
    let region = stack("eu-west", "london").await;
    let refused = Device::call_with(region.http, "&zone=Mars/Olympus", &[])
        .await
        .err()
        .unwrap();
    assert_eq!((refused.0, &refused.1["error"]["code"]), (400, &json!("invalid_zone")));
    assert!(
        refused.1["error"]["message"]
            .as_str()
            .unwrap()
            .contains("Europe/London")
    );
    // The header of a device counts before the parameter in its address.
    let headers = [("meridian-zone", "America/New_York")];
    let mut device = Device::call_with(region.http, "&zone=Asia/Tokyo", &headers)
        .await
        .unwrap();
    assert_eq!(device.session["meridian"]["zone"], "America/New_York");

    for (zone, says) in [(json!("Mars/Olympus"), "Europe/London"), (json!(5), "string")] {
        device
            .send(json!({ "type": "session.update", "session": { "type": "realtime", "meridian": { "zone": zone } } }))
            .await;
        let error = device.until("error").await;
        assert_eq!(error["error"]["param"], "session.meridian.zone");
        assert!(error["error"]["message"].as_str().unwrap().contains(says), "{error}");
    }
    device
        .send(json!({ "type": "session.update", "session": { "type": "realtime", "meridian": { "zone": "asia/tokyo" } } }))
        .await;
    let updated = device.until("session.updated").await;
    assert_eq!(updated["session"]["meridian"]["zone"], "Asia/Tokyo");
    check_clock(&mut device, "tokyo").await;
}

#[tokio::test]
async fn a_device_that_says_no_zone_hears_the_time_of_its_home_also_when_it_calls_another_region() {
    let first = stack("eu-west", "london").await;
    let second = stack("eu-central", "berlin").await;
    let mut world = World::new(1, &[("eu-west", first.http), ("eu-central", second.http)]);
    world.lies_in("eu-west", "Asia/Tokyo");
    let edge = world.edges[0].1;
    let mut device = Device::call(edge, "").await;
    assert_eq!(device.session.get("meridian"), None, "it said nothing of a zone");
    device.reads().await;
    check_clock(&mut device, "tokyo").await;
    world.evacuate("eu-west", "eu-central");
    device.until_moved("eu-central").await;
    check_clock(&mut device, "tokyo").await;

    // A device cannot send the headers that only edges may send to stacks.
    for headers in [&[][..], &[("meridian-home-zone", "America/Chicago")]] {
        let mut newcomer = Device::call_with(edge, "", headers).await.unwrap();
        assert_eq!(newcomer.region(), "eu-central");
        newcomer.reads().await;
        check_clock(&mut newcomer, "tokyo").await;
    }
    // A device that named its zone keeps it when it comes back without one.
    let mut traveller = Device::call(edge, "&zone=America/New_York").await;
    traveller.reads().await;
    check_clock(&mut traveller, "new york").await;
    let mut back = traveller.resume(edge).await;
    assert_eq!(back.session["meridian"]["zone"], "America/New_York");
    check_clock(&mut back, "new york").await;
}

#[tokio::test]
async fn a_device_keeps_its_clock_and_its_alarm_in_another_region_and_when_it_calls_again() {
    let first = stack("eu-west", "london").await;
    let second = stack("eu-central", "berlin").await;
    let mut world = World::new(1, &[("eu-west", first.http), ("eu-central", second.http)]);
    let edge = world.edges[0].1;
    let headers = [("meridian-zone", "America/New_York")];
    let mut device = Device::call_with(edge, "", &headers).await.unwrap();
    assert_eq!(device.region(), "eu-west");
    device.reads().await;
    check_clock(&mut device, "new york").await;
    let alarm = device.say("set an alarm for seven a m").await;
    let alarms = device.say("what alarms do i have").await;
    assert!(alarms.contains("seven"), "{alarms}");

    // The plan moves the session: the device's connection stays, and another region answers.
    world.evacuate("eu-west", "eu-central");
    device.until_moved("eu-central").await;
    check_clock(&mut device, "new york").await;
    assert_eq!(device.say("what alarms do i have").await, alarms);

    let weather = device.say("what is the weather in new york").await;
    // Another call there: the home city of that region makes no difference.
    let mut again = Device::call_with(edge, "", &headers).await.unwrap();
    assert_eq!(again.region(), "eu-central");
    again.reads().await;
    check_clock(&mut again, "new york").await;
    assert_eq!(again.say("what is the weather").await, weather);
    assert_eq!(again.say("set an alarm for seven a m").await, alarm);
}

/// Its edge died, and the device comes back through an edge with another home.
#[tokio::test]
async fn a_device_keeps_the_clock_of_its_first_home_when_it_comes_back_through_another_edge() {
    let region = stack("eu-west", "london").await;
    let at_home_in = |zone: &'static str| [("meridian-home-zone", zone)];
    let mut device = Device::call_with(region.http, "", &at_home_in("Asia/Tokyo"))
        .await
        .unwrap();
    device.reads().await;
    check_clock(&mut device, "tokyo").await;
    let resume = format!("&resume={}", device.id());
    let mut back = Device::call_with(region.http, &resume, &at_home_in("America/New_York"))
        .await
        .unwrap();
    assert_eq!(back.id(), device.id());
    check_clock(&mut back, "tokyo").await;
}
