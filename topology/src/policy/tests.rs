use std::time::Duration;

use super::{
    group::{Looser, Setting},
    groups::{LATENCY_MAX, MINUTE},
    *,
};

#[test]
fn an_empty_document_is_the_default_policy() {
    assert_eq!(Policy::parse("policy.toml", ""), Ok(Policy::default()));
}

#[test]
fn the_shipped_policy_states_the_defaults() {
    let shipped = include_str!("../../../configs/policy.toml");
    assert_eq!(Policy::parse("policy.toml", shipped), Ok(Policy::default()));
}

#[test]
fn a_request_for_two_people_has_its_name_in_documents() {
    for (kind, name) in [
        (TwoPerson::SecondEvacuation, "second-evacuation"),
        (TwoPerson::DataLoss, "data-loss"),
        (TwoPerson::Override, "override"),
    ] {
        assert_eq!(
            (kind.to_string().as_str(), serde_json::to_value(kind).unwrap()),
            (name, name.into())
        );
    }
}

#[test]
fn no_time_is_longer_than_ten_years() {
    let text = "[[data]]\nclass = \"profiles\"\nreplication = \"async\"\nrpo = \"3650d\"";
    let longest = Policy::parse("p.toml", text).unwrap();
    assert_eq!(longest.data[0].rpo, Duration::from_secs(3650 * 86_400));
    let text = "[restore]\nstep_hold = \"3651d\"\n[probe]\noffset = \"18446744073709551615ms\"";
    let problems = Policy::parse("p.toml", text).unwrap_err().to_string();
    for complaint in [
        "p.toml:2: restore.step_hold: \"3651d\" is longer than ten years; write at most \"3650d\"",
        "p.toml:4: probe.offset: \"18446744073709551615ms\" is longer than ten years",
    ] {
        assert!(problems.contains(complaint), "{complaint}\nnot in\n{problems}");
    }
}

/// A field that is read by hand is compared by hand.
#[test]
fn every_field_has_a_direction() {
    let policy = serde_json::to_value(Policy::default()).unwrap();
    // Lists, compared item by item instead of as a number.
    let by_themselves = ["safety.two_person"];
    // A step's percentage is covered by the size of the largest step of its list.
    let within_lists = ["rollout.steps.percent"];
    let of_data = ["data.class", "data.replication", "data.rpo", "data.rto"];
    let settings = Policy::default().settings();
    let mut fields = Vec::new();
    field_names("", &policy, &mut fields);
    fields.dedup();
    let is_known = |field: &&String| {
        let name = field.as_str();
        settings.iter().any(|known| known.name == name)
            || by_themselves.contains(&name)
            || within_lists.contains(&name)
            || of_data.contains(&name)
    };
    let missing: Vec<&String> = fields.iter().filter(|it| !is_known(it)).collect();
    assert_eq!(missing, [""; 0]);
    for name in of_data.iter().chain(&within_lists) {
        assert!(fields.iter().any(|it| it == name), "{name} is gone");
    }
    let mut names: Vec<&str> = settings.iter().map(|it| it.name).collect();
    names.sort_unstable();
    let twice: Vec<&str> = names.windows(2).filter(|it| it[0] == it[1]).map(|it| it[0]).collect();
    assert_eq!(twice, [""; 0], "a change of it would be named twice");
}

/// The names of all fields. Items of a list share one name, without an index.
fn field_names(name: &str, value: &serde_json::Value, names: &mut Vec<String>) {
    match value {
        // A `Duration`.
        serde_json::Value::Object(fields) if fields.contains_key("secs") => names.push(name.to_owned()),
        serde_json::Value::Object(fields) => {
            for (field, value) in fields {
                let name = if name.is_empty() {
                    field.clone()
                } else {
                    format!("{name}.{field}")
                };
                field_names(&name, value, names);
            }
        }
        serde_json::Value::Array(items) if items.iter().any(serde_json::Value::is_object) => {
            items.iter().for_each(|item| field_names(name, item, names));
        }
        _ => names.push(name.to_owned()),
    }
}

/// A table of every number: a change that one person may make alone is as strict as before.
#[test]
fn nobody_loosens_anything_alone() {
    let default = Policy::default();
    let loosened = |text: &str| {
        let problems = |it| panic!("{text}: {it}");
        default.loosened_by(&Policy::parse("p", text).unwrap_or_else(problems))
    };
    let sets = |section: &str, line: &str| loosened(&format!("[{section}]\n{line}"));
    for (section, line) in [
        ("probe", "timeout = \"2500ms\""),
        ("health", "vantages_min = 3"),
        ("health", "samples_min = 1"),
        ("health", "samples_min = 500"),
        ("health", "gateway_success_min = 0.9"),
        ("health", "gateway_ticks = 3"),
        ("health", "asr_p99_max = \"3s\""),
        ("health", "capacity_min = 0.2"),
        ("health", "capacity_min = 1.0"),
        ("health", "recover_ticks = 2"),
        ("health", "recover_ticks = 360"),
        ("health", "blind_ticks = 4"),
        ("health", "blind_ticks = 2"),
        ("health", "freshness_ticks = 2"),
        ("health", "freshness_ticks = 12"),
        ("failover", "automatic_max = 2"),
        ("failover", "correlated_hold = false"),
        ("failover", "correlated_ticks = 1"),
        ("failover", "correlated_ticks = 360"),
        ("failover", "reconnect_window = \"11s\""),
        ("failover", "reconnect_window = \"1s\""),
        ("drain", "steps = [50, 0]"),
        ("drain", "step_hold = \"1s\""),
        ("restore", "steps = [100]"),
        ("restore", "step_hold = \"1s\""),
        ("safety", "regions_serving_min = 1"),
        ("safety", "regions_serving_min = 3"),
        ("safety", "automation = false"),
        ("safety", "two_person = [\"override\"]"),
        ("damping", "per_move = 1"),
        ("damping", "per_move = 2000"),
        ("damping", "suppress = 2001"),
        ("damping", "suppress = 1999"),
        ("damping", "reuse = 751"),
        ("damping", "half_life = \"1m\""),
        ("damping", "half_life = \"1d\""),
        ("rollout", "window = \"20m\""),
        ("rollout", "error_rate_max = 0.02"),
        ("rollout", "sessions_min = 1000"),
        ("rollout", "step = [{ percent = 100 }]"),
        ("publish", "refusals_max = 0.9"),
        ("publish", "hold = \"1s\""),
        ("publish", "hold = \"1h\""),
        ("edges", "returned_after = \"1h\""),
        ("dns", "ttl = \"1h\""),
    ] {
        assert!(!sets(section, line).is_empty(), "{section}: {line}");
    }
    for (section, line) in [
        ("health", "gateway_success_min = 0.97"),
        ("health", "asr_p99_max = \"1s\""),
        ("health", "asr_p99_ticks = 15"),
        ("failover", "degrade_to_admit = false"),
        ("restore", "steps = [1, 5, 25, 50, 75, 100]"),
        ("health", "gateway_window_ticks = 20"),
    ] {
        assert_eq!(sets(section, line), [""; 0], "{section}: {line}");
    }
    let mut other = default.clone();
    for class in &mut other.data {
        class.replication = Replication::ActiveActive;
    }
    let said = default.loosened_by(&other);
    let line = "the replication of profiles would change from Async to ActiveActive".to_owned();
    assert!(said.contains(&line), "{said:?}");
    let line = "damping.suppress would change from 2000 to 3000".to_owned();
    assert_eq!(sets("damping", "suppress = 3000"), [line]);
}

/// One person could have every region judged down by a policy that only looks stricter, and stop every failover.
#[test]
fn nobody_makes_detection_fire_on_working_regions_alone() {
    let default = Policy::default();
    for line in [
        "asr_p99_max = \"50ms\"",
        "asr_p99_ticks = 1",
        "edge_asr_p95_max = \"200ms\"",
        "gateway_ticks = 1",
        "gateway_window_ticks = 360",
        "gateway_window_bad = 1",
        "gateway_success_min = 0.99",
        "window_factor = 6.0",
        "asr_error_max = 0.04",
        "asr_error_ticks = 3",
        "nlu_error_max = 0.2",
        "nlu_error_ticks = 1",
        "skills_error_max = 0.2",
        "skills_error_ticks = 1",
        "edge_asr_ticks = 1",
    ] {
        let Ok(policy) = Policy::parse("p", &format!("[health]\n{line}")) else {
            // Nobody may set it, not two people either.
            continue;
        };
        let said = default.loosened_by(&policy);
        assert!(
            said.iter()
                .any(|it| it.ends_with("at which a region that works may count as down")),
            "{line}: {said:?}"
        );
        assert_eq!(
            policy.loosened_by(&policy),
            [""; 0],
            "{line}: what is in force asks nobody"
        );
    }
}

#[test]
fn every_limit_of_detection_has_two_sides() {
    for Setting {
        name, looser, bound, ..
    } in Policy::default().settings()
    {
        let of_detection = name.starts_with("health.") || name == "edges.lost_after";
        let is_one_sided = matches!(looser, Looser::More | Looser::Less);
        assert_eq!(bound.is_some(), of_detection && is_one_sided, "{name}");
    }
}

/// A limit that nothing can exceed is no limit, even if two people approve it.
#[test]
fn no_number_turns_detection_off() {
    for text in [
        "[health]\ngateway_success_min = 0.0",
        "[probe]\ntimeout = \"10ms\"",
        "[failover]\nautomatic_max = 0",
        "[health]\nasr_error_max = 0.0",
        "[health]\nasr_p99_max = \"1ms\"",
        "[health]\nedge_asr_p95_max = \"1ms\"",
        "[health]\nasr_error_max = 1.0",
        "[health]\nnlu_error_max = 1.0",
        "[health]\nskills_error_max = 1.0",
        "[health]\nasr_p99_max = \"1h\"",
        "[health]\nblind_ticks = 360",
        "[health]\nsamples_min = 1000000",
        "[failover]\nreconnect_window = \"3650d\"",
        "[failover]\nreconnect_window = \"0s\"",
        "[failover]\nreconnect_window = \"1ms\"",
        "[health]\ngateway_success_min = 1.0",
        "[health]\nblind_ticks = 1",
        "[health]\nfreshness_ticks = 1",
        "[health]\nnlu_error_max = 0.0",
        "[damping]\nper_move = 0",
        "[damping]\nper_move = 1_000_000",
        "[damping]\nhalf_life = \"300d\"",
        "[drain]\nstep_hold = \"300d\"",
        "[restore]\nstep_hold = \"300d\"",
        "[publish]\nhold = \"300d\"",
        "[rollout]\nerror_rate_max = 1.0",
        "[rollout]\nwindow = \"3d\"",
        "[publish]\nrefusals_max = 1.0",
    ] {
        assert!(Policy::parse("p", text).is_err(), "{text}");
    }
}

/// Earlier versions had wider limits. A policy that one of them accepted must not stop this version from deciding.
#[test]
fn a_stored_policy_that_an_older_version_took_is_read_within_todays_limits() {
    let text = "[health]\nsamples_min = 1_000_000\ngateway_success_min = 0.0\ngateway_ticks = 360\nasr_error_max = 1.0\n\
                asr_p99_max = \"1h\"\nnlu_error_max = 1.0\nblind_ticks = 360\n[failover]\nreconnect_window = \"1d\"\n\
                [damping]\nper_move = 0\n[rollout]\nerror_rate_max = 1.0\nlatency_increase_max = 100.0\n\
                underruns_per_session_max = 1e6\ngpu_memory_errors_max = 1_000_000\n[publish]\nrefusals_max = 1.0\n";
    Policy::parse("policy", text).unwrap_err();
    let (policy, told) = Policy::parse_stored("policy", text).unwrap();
    let health = &policy.health;
    assert_eq!((health.samples_min, health.gateway_success_min), (1_000, 0.5));
    assert_eq!((health.gateway_ticks, health.blind_ticks), (90, 12));
    assert_eq!((health.asr_p99_max, health.nlu_error_max), (LATENCY_MAX, 0.95));
    assert_eq!(policy.failover.reconnect_window, 10 * MINUTE);
    assert_eq!((policy.damping.per_move, policy.publish.refusals_max), (1, 0.95));
    assert_eq!(told.len(), 14, "{told:?}");
    let line = "policy:8: health.blind_ticks: 360 is out of range; write 2 to 12; until then 12 is used";
    assert!(told.iter().any(|it| it.to_string() == line), "{told:?}");
    // A value that cannot be read at all stays an error.
    Policy::parse_stored("policy", "[health]\nblind_ticks = \"many\"").unwrap_err();
    Policy::parse_stored("policy", "[health]\ncolour = 1").unwrap_err();
    // Both functions read a document within the limits alike.
    let shipped = include_str!("../../../configs/policy.toml");
    assert_eq!(Policy::parse_stored("policy", shipped), Ok((Policy::default(), vec![])));
}

#[test]
fn numbers_out_of_range_are_all_reported() {
    let text = "[health]\ngateway_success_min = 1.5\ngateway_ticks = 0\n[restore]\nsteps = [5, 1]\n[dns]\nttl = \"0s\"\n[probe]\ntimeout = \"9s\"\n[failover]\nmax = 1";
    let problems = Policy::parse("p.toml", text).unwrap_err().to_string();
    for complaint in [
        "p.toml:2: health.gateway_success_min: 1.5 is out of range; write 0.5 to 0.999",
        "p.toml:3: health.gateway_ticks: 0 is out of range; write 1 to 90",
        "p.toml:5: restore.steps: [5, 1] does not rise to 100; write",
        "p.toml:7: dns.ttl: \"0s\" is out of range; write \"1s\" to \"1h\"",
        "p.toml:8: probe.offset: offset (6500ms), timeout (9s) and 1s",
        "p.toml:11: failover.max: unknown key",
    ] {
        assert!(problems.contains(complaint), "{complaint}\nnot in\n{problems}");
    }
}
