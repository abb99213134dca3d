use super::*;
use topology::{IntentKind, fixtures::three_primaries};

#[test]
fn mistakes_name_their_line() {
    for (text, complaint) in [
        ("at 5s us-east dies", "line 1: \"end TIME\" is missing"),
        (
            "at 5s us-east sleeps\nend 1m",
            "line 1: \"us-east sleeps\" is nothing that can happen",
        ),
        (
            "at 5s us-east dies\nat 4s us-east recovers\nend 1m",
            "line 2: it happens before the line above",
        ),
        ("at soon us-east dies\nend 1m", "line 1: \"soon\""),
        (
            "at 5s us-east ears fails 10 %\nend 1m",
            "line 1: there is no component ears; there are gateway",
        ),
        ("when 5s\nend 1m", "line 1: a line begins with none"),
        (
            "region us-west tea 5\nend 1m",
            "line 1: \"tea\" is nothing a region has room for",
        ),
        (
            "at 5s us-east flaps every 1s for 1d\nend 1m",
            "line 1: the region must flap 1 to",
        ),
        (
            "at 5s alice switches over us-east accepting a loss of 1h\nend 1m",
            "line 1: a switchover loses no data",
        ),
        (
            "at 5s alice overrides gravity for 1h\nend 1m",
            "line 1: there is no rule gravity",
        ),
        ("expect rain\nend 1m", "line 1: \"rain\" is nothing to expect"),
        (
            "traffic us-east 9 turns and rain at edge-iad\nend 1m",
            "line 1: the traffic cannot be read; write \"98 turns\" or",
        ),
    ] {
        let error = Scenario::parse(text).unwrap_err().to_string();
        assert!(error.starts_with(complaint), "{error}");
    }
}

#[test]
fn what_the_world_does_not_have_is_no_scenario_of_it() {
    for (text, complaint) in [
        ("at 5s us-eats dies", "line 1: there is no region us-eats"),
        ("at 5s edge-xyz is silent", "line 1: there is no vantage edge-xyz"),
        ("at 5s edge edge-xyz dies", "line 1: there is no edge edge-xyz"),
        ("at 5s edge ns1 unreachable", "line 1: there is no edge ns1"),
        (
            "at 5s control-plane refuses plans",
            "line 1: there is no node control-plane",
        ),
        ("at 5s us-east jokes lag 5s", "line 1: there is no data class jokes"),
        ("region us-eats sessions 5", "line 1: there is no region us-eats"),
        ("expect us-eats evacuated", "line 1: there is no region us-eats"),
    ] {
        let scenario = Scenario::parse(&format!("{text}\nend 1m")).unwrap();
        let error = scenario
            .world(&three_primaries().topology, &Policy::default())
            .unwrap_err();
        assert!(error.to_string().starts_with(&format!("{complaint}; ")), "{error}");
    }
}

#[test]
fn the_head_sizes_the_world() {
    let text = "region us-west sessions 100 connects 10/s asr 50\nrollout holds 1m 2m\nend 1m";
    let scenario = Scenario::parse(text).unwrap();
    let (topology, policy) = scenario.world(&three_primaries().topology, &Policy::default()).unwrap();
    let west = &topology.regions[&RegionId::new("us-west").unwrap()];
    let sizes = (
        west.sessions_max,
        west.connects_per_s_max,
        west.capacity[&Component::Asr],
    );
    assert_eq!(sizes, (100, Some(10), 50));
    let holds: Vec<u64> = policy.rollout.steps.iter().map(|step| step.hold.as_secs()).collect();
    assert_eq!(holds, [60, 120, 7 * 24 * 3600, 0]);
}

#[test]
fn flapping_is_told_as_deaths_and_recoveries_and_ends_well() {
    let text = "at 10s us-east flaps every 30s for 2m\nat 50s us-west dies\nend 5m";
    let told: Vec<(u64, String)> = Scenario::parse(text)
        .unwrap()
        .events
        .into_iter()
        .map(|line| (line.at.as_secs(), line.text))
        .collect();
    let expected = [
        (10, "us-east dies (flaps)"),
        (40, "us-east recovers (flaps)"),
        (50, "us-west dies"),
        (70, "us-east dies (flaps)"),
        (100, "us-east recovers (flaps)"),
        (130, "us-east recovers (stops flapping)"),
    ];
    assert_eq!(told, expected.map(|(at, text)| (at, text.to_owned())));
}

#[test]
fn operators_speak_in_whole_sentences() {
    let asked = |line: &str| match Scenario::parse(&format!("at 5s {line}\nend 1m"))
        .unwrap()
        .events
        .remove(0)
        .event
    {
        Event::Asks(ask) => ask,
        other => panic!("{other:?}"),
    };
    let ask = asked("alice fails over us-east and promotes accepting a loss of 2h because the floor is wet");
    assert_eq!((ask.who.as_str(), ask.why.as_str()), ("alice", "the floor is wet"));
    let hours = Duration::from_secs(7200);
    assert!(
        matches!(ask.what, Wanted::Kind(IntentKind::Failover { promote: true, accept_loss: Some(loss), .. }) if loss == hours)
    );
    assert_eq!(asked("bob approves it").what, Wanted::ApproveIt);
    let abort = IntentKind::Abort { action: "a1".into() };
    assert_eq!(asked("bob aborts a1").what, Wanted::Kind(abort));
    assert_eq!(asked("bob freezes for 2m").life, Some(Duration::from_secs(120)));
}
