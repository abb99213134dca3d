use super::*;

/// Saturday 21 November 2026, 10:35 in London.
const NOW: Moment = Moment(1_795_257_300_000);

fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(60 * minutes)
}

/// A timer of ten minutes, and an alarm for 10:45, both set at 10:35.
fn waiting() -> DialogueState {
    let mut state = DialogueState::new(City::London);
    state.timers.push(Timer {
        ends_at: NOW + minutes(10),
        duration_s: 600,
        name: None,
        ringing: None,
    });
    state.alarms.push(Alarm {
        rings_at: NOW + minutes(10),
        hour: 10,
        minute: 45,
        ringing: None,
    });
    state
}

fn rings(state: &mut DialogueState, now: Moment) -> Option<String> {
    state.ring(now).map(|reply| reply.text)
}

#[test]
fn the_zone_of_the_home_region_applies_while_the_device_announces_none() {
    let zone = |name| Zone::parse(name).unwrap();
    let mut state = DialogueState::new(City::London);
    state.set_zone(Some(zone("America/New_York")));
    state.set_home_zone(zone("Asia/Tokyo"));
    assert_eq!(
        (state.zone_in_force(), state.home),
        (Some(&zone("America/New_York")), City::NewYork)
    );
    state.set_zone(None);
    assert_eq!(
        (state.zone_in_force(), state.home),
        (Some(&zone("Asia/Tokyo")), City::Tokyo)
    );
}

#[test]
fn the_home_of_a_device_is_the_city_of_its_zone_where_there_is_one() {
    let mut state = DialogueState::new(City::London);
    for (zone, home) in [
        ("America/New_York", City::NewYork),
        ("America/Denver", City::NewYork),
        ("Asia/Tokyo", City::Tokyo),
    ] {
        state.set_zone(Some(Zone::parse(zone).unwrap()));
        assert_eq!((state.home, state.zone.as_ref().unwrap().name()), (home, zone));
    }
    state.set_zone(None);
    assert_eq!(state.home, City::Tokyo);
}

#[test]
fn a_question_of_a_newer_release_is_no_question_and_spoils_nothing() {
    for (about, is_known) in [
        (r#"{"kind":"alarm_time","day":null}"#, true),
        (r#"{"kind":"alarm_time","day":"market_day"}"#, false),
        (r#"{"kind":"alarm_time","half":7}"#, false),
        (r#"{"mood":"good"}"#, false),
    ] {
        let json = format!(
            r#"{{"home":"rome","timers":[],"alarms":[],"lights":{{}},"question":{{"asked_at":1,"about":{about}}}}}"#
        );
        let state: DialogueState = serde_json::from_str(&json).unwrap();
        assert_eq!(state.question.is_some(), is_known, "{about}");
    }
}

#[test]
fn what_is_due_rings_until_somebody_acknowledges_it() {
    let mut state = waiting();
    assert_eq!(state.next_ring(), Some(NOW + minutes(10)));
    assert_eq!(rings(&mut state, NOW + minutes(9)), None);
    let due = NOW + minutes(10);
    assert_eq!(
        rings(&mut state, due).as_deref(),
        Some("your timer for ten minutes is done and good day it is ten forty five")
    );
    assert_eq!(rings(&mut state, due), None);
    assert!(state.is_ringing(due));
    assert_eq!(state.next_ring(), Some(due + RING_EVERY));
    assert!(rings(&mut state, due + RING_EVERY).is_some());
    assert_eq!(state.due(due + RING_EVERY).len(), 2);
    assert_eq!(state.acknowledge(), 2);
    assert_eq!((state.pending(), state.next_ring()), (0, None));
}

#[test]
fn what_nobody_acknowledges_rings_on_slowly_and_anew_at_the_next_contact() {
    let mut state = waiting();
    let mut now = NOW + minutes(10);
    let mut rang = 0;
    while state.ring(now).is_some() {
        rang += 1;
        now = now + RING_EVERY;
    }
    assert_eq!((rang, state.pending()), (RINGS_MAX, 2));
    let last = NOW + minutes(10) + RING_EVERY * (RINGS_MAX - 1);
    assert_eq!(state.next_ring(), Some(last + RING_SLOWLY_EVERY));
    assert!(rings(&mut state, last + RING_SLOWLY_EVERY).is_some());
    assert_eq!(state.next_ring(), Some(last + 2 * RING_SLOWLY_EVERY));
    state.ring_again();
    assert_eq!(
        rings(&mut state, NOW + minutes(131)).as_deref(),
        Some(
            "your timer for ten minutes ended two hours and one minute ago and your alarm for ten forty five is two \
             hours and one minute late, it is twelve forty six"
        )
    );
}

#[test]
fn snoozing_is_for_what_rings_and_for_nothing_else() {
    let mut state = waiting();
    assert_eq!(state.snooze(SNOOZE, NOW), 0);
    let due = NOW + minutes(10);
    state.ring(due);
    assert_eq!(state.snooze(minutes(5), due), 2);
    assert!(!state.is_ringing(due));
    assert_eq!(state.next_ring(), Some(due + minutes(5)));
    assert_eq!(
        rings(&mut state, due + minutes(5)).as_deref(),
        Some("your timer for ten minutes is done and your alarm for ten forty five, it is ten fifty")
    );
}

#[test]
fn what_becomes_due_after_a_ring_is_not_acknowledged_with_it() {
    let mut state = waiting();
    state.ring(NOW + minutes(10));
    state.alarms.push(Alarm {
        rings_at: NOW + minutes(10),
        hour: 10,
        minute: 45,
        ringing: None,
    });
    assert_eq!(state.acknowledge(), 2);
    assert_eq!(state.alarms.len(), 1);
}

#[test]
fn a_full_memory_gives_up_what_rang_in_vain_for_a_day_and_nothing_else() {
    let mut state = waiting();
    for _ in 0..PENDING_MAX - 2 {
        state.timers.push(Timer {
            ends_at: NOW + minutes(60 * 48),
            duration_s: 48 * 3600,
            name: None,
            ringing: None,
        });
    }
    assert!(!state.drop_missed(NOW + minutes(60 * 30)));
    let mut now = NOW + minutes(10);
    while state.ring(now).is_some() {
        now = now + RING_EVERY;
    }
    assert!(!state.drop_missed(NOW + minutes(60 * 20)));
    assert!(state.drop_missed(NOW + minutes(60 * 30)));
    assert_eq!(state.pending(), PENDING_MAX - 2);
}

#[test]
fn the_devices_own_zone_decides_and_a_wrong_one_is_refused() {
    let mut state = waiting();
    assert_eq!(state.local(NOW).hour(), 10);
    state.zone = Some(Zone::parse("america/new_york").unwrap());
    assert_eq!(state.zone.as_ref().map(Zone::name), Some("America/New_York"));
    assert_eq!(state.local(NOW).hour(), 5);
    for wrong in ["", "Mars/Olympus", "../../etc/passwd", &"a".repeat(10_000)] {
        let error = Zone::parse(wrong).unwrap_err().to_string();
        assert!(error.contains("Europe/London") && error.len() < 200, "{error}");
    }
}

#[test]
fn memories_of_older_and_of_newer_releases_are_read() {
    let older = r#"{"home":"london","timers":[{"ends_at":5,"duration_s":5}],
        "alarms":[{"rings_at":6,"hour":7,"minute":0}],"lights":{"living_room":30}}"#;
    let state: DialogueState = serde_json::from_str(older).unwrap();
    assert_eq!(state.lights.get(&Room::LivingRoom), Some(&30));
    // No new field is in use, so the older release reads what this one writes.
    let compact: String = older.split_whitespace().collect();
    assert_eq!(serde_json::to_string(&state).unwrap(), compact);

    let newer = r#"{"home":"london","timers":[{"ends_at":5,"duration_s":5,"tune":"bell"}],"alarms":[],
        "lights":{"attic":30,"hall":20},"volume":7,"question":{"asked_at":1,"about":{"kind":"tune","of":3},"x":1}}"#;
    let state: DialogueState = serde_json::from_str(newer).unwrap();
    assert_eq!(state.lights, BTreeMap::from([(Room::Hall, 20)]));
    assert_eq!(state.asked(Moment(2)), Some(&Topic::Unknown));
}
