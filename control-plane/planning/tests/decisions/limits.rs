//! The limits of automation, and the facts that must not stop it.

use topology::{Component, IntentKind, Level, ReasonCode, RegionState, Rule};
use verdict::Health;

use crate::world::{HOUR, MINUTE, SECOND, World, fail_over, region, switch_over};

// One automatic evacuation at a time.

#[test]
fn a_region_that_is_well_and_waits_for_its_way_back_keeps_no_other_from_help() {
    let mut world = World::new();
    world.sees("us-east", Health::Down).pass(10 * SECOND);
    world.sees("us-east", Health::Healthy).pass(2 * HOUR);
    assert_eq!(
        world.state("us-east"),
        RegionState::Evacuated,
        "nobody was awake to restore it"
    );
    world.sees("eu-west", Health::Down).pass(10 * SECOND);
    assert_eq!(world.state("eu-west"), RegionState::Evacuated);
}

#[test]
fn a_region_that_is_away_on_purpose_keeps_no_other_from_help_even_if_it_is_off() {
    let mut world = World::new();
    world.ask("alice", switch_over("us-east"));
    world.pass(3 * MINUTE).sees("us-east", Health::Down).pass(HOUR);
    world.sees("eu-west", Health::Down).pass(10 * SECOND);
    assert_eq!(world.state("eu-west"), RegionState::Evacuated);
}

#[test]
fn while_one_region_is_bad_automation_leaves_no_second_one_whoever_left_the_first() {
    for ordered in [false, true] {
        let mut world = World::new();
        world.sees("us-east", Health::Down);
        if ordered {
            world.ask("alice", fail_over("us-east"));
        }
        world.pass(HOUR).sees("eu-west", Health::Down).pass(MINUTE);
        assert_eq!(world.state("us-east"), RegionState::Evacuated);
        assert_eq!(world.state("eu-west"), RegionState::Serving, "ordered: {ordered}");
        let refusal = &world.report.refused[0];
        assert_eq!(refusal.code, ReasonCode::EvacuationLimit);
        let says = "us-east is evacuated and down; automation leaves a further region only while fewer than 1 are bad or \
                    moving; `meridian failover eu-west --reason WHY` asks for it all the same";
        assert_eq!(refusal.text, says);
        world.sees("us-east", Health::Healthy).pass(10 * SECOND);
        assert_eq!(
            world.state("eu-west"),
            RegionState::Evacuated,
            "well again, and its turn is over"
        );
    }
}

#[test]
fn while_sessions_move_automation_leaves_no_second_region() {
    let mut world = World::new();
    world.ask("alice", fail_over("us-east"));
    world.sees("eu-west", Health::Down);
    world.now = world.now + 9 * SECOND;
    world.refresh();
    world.decide();
    assert!(world.refused(ReasonCode::EvacuationLimit));
    world.now = world.now + SECOND;
    world.refresh();
    world.decide();
    assert_eq!(world.state("eu-west"), RegionState::Evacuated);
}

// Correlated evidence.

#[test]
fn regions_that_turn_bad_within_a_few_ticks_are_held_and_those_further_apart_are_not() {
    for (ticks, held) in [(0, true), (3, true), (4, false)] {
        // Automation is frozen meanwhile, so that both are bad and not moved at the decision.
        let mut world = World::with(|_, policy| policy.failover.automatic_max = 2);
        world.ask_for("alice", IntentKind::Freeze, HOUR);
        world.sees("us-east", Health::Down).decide();
        world.pass(ticks * 10 * SECOND);
        world.sees("eu-west", Health::Down).decide();
        world.pass(10 * SECOND);
        world.ask("alice", IntentKind::Unfreeze);
        world.pass(20 * SECOND);
        assert_eq!(world.refused(ReasonCode::CorrelatedEvidence), held, "{ticks} ticks");
        let left = world.state("us-east") == RegionState::Evacuated && world.state("eu-west") == RegionState::Evacuated;
        assert_eq!(left, !held, "{ticks} ticks");
    }
}

#[test]
fn a_region_that_has_no_place_to_go_ties_nobody() {
    let mut world = World::with(|topology, _| {
        for backup in ["us-west", "eu-central"] {
            topology.regions.get_mut(&region(backup)).unwrap().sessions_max = 1;
        }
    });
    world
        .sees("us-east", Health::Down)
        .sees("ap-south", Health::Down)
        .pass(10 * SECOND);
    assert_eq!(world.state("us-east"), RegionState::Serving);
    assert_eq!(world.route("ap-south"), "ap-northeast 100");
}

/// Failing recognition elsewhere is no reason to leave a dead region's callers without help.
#[test]
fn a_suspicion_of_recognition_elsewhere_does_not_hold_a_failover() {
    let mut world = World::new();
    world.sees("us-east", Health::Down).sees("eu-west", Health::Suspect);
    world.input.verdicts.get_mut(&region("eu-west")).unwrap().failing = false;
    world.decide();
    assert_eq!(world.state("us-east"), RegionState::Evacuated);

    let mut world = World::new();
    world
        .sees("us-east", Health::Down)
        .sees("eu-west", Health::Suspect)
        .decide();
    assert!(
        world.refused(ReasonCode::CorrelatedEvidence),
        "its gateway fails as well"
    );
}

// The rule `regions-serving-min`.

#[test]
fn as_many_regions_as_the_policy_wants_keep_serving_and_not_one_more() {
    for (min, left) in [(5, true), (6, false)] {
        let mut world = World::with(|_, policy| policy.safety.regions_serving_min = min);
        world.sees("us-east", Health::Down).pass(10 * SECOND);
        assert_eq!(
            world.state("us-east") == RegionState::Evacuated,
            left,
            "five of six are left, {min} is the least"
        );
        assert_eq!(world.refused(ReasonCode::RegionsServingMin), !left);
    }
}

/// A region that no vantage sees counts as serving. Silence is no failure; automation sends no session there anyway,
/// and a person who orders a failover while the control plane is blind must not read that no region serves.
#[test]
fn a_region_that_nobody_sees_counts_as_serving() {
    let mut world = World::with(|_, policy| policy.safety.regions_serving_min = 5);
    world.sees("eu-west", Health::Blind).sees("ap-northeast", Health::Blind);
    world.sees("us-east", Health::Down).pass(10 * SECOND);
    assert_eq!(world.state("us-east"), RegionState::Evacuated);
    world
        .sees("us-east", Health::Healthy)
        .pass(MINUTE)
        .sees("eu-west", Health::Down)
        .decide();
    assert!(
        world.refused(ReasonCode::RegionsServingMin),
        "one that is down does not"
    );
}

// Freshness.

#[test]
fn a_verdict_of_three_ticks_ago_is_acted_on_and_one_of_four_is_too_old() {
    for (age, left) in [(3, true), (4, false)] {
        let mut world = World::new();
        world.sees("us-east", Health::Down);
        for verdict in world.input.verdicts.values_mut() {
            verdict.tick = world.now.tick().back(age);
        }
        world.decide();
        assert_eq!(
            world.state("us-east") == RegionState::Evacuated,
            left,
            "{age} ticks old"
        );
    }
}

#[test]
fn a_tick_without_data_leaves_the_word_before_it() {
    let mut world = World::new();
    world.sees("us-west", Health::NoData).sees("eu-central", Health::NoData);
    world.sees("us-east", Health::Down).pass(10 * SECOND);
    assert_eq!(world.route("us-east"), "us-west 100", "both were healthy a tick ago");
    // Nor does it make a failing region healthy.
    world.sees("us-west", Health::Down).pass(10 * SECOND);
    world
        .sees("us-west", Health::NoData)
        .sees("us-east", Health::Healthy)
        .pass(10 * SECOND);
    world.ask("alice", crate::world::restore("us-east"));
    world.pass(10 * SECOND);
    world.sees("us-east", Health::Down).pass(10 * SECOND);
    assert_eq!(world.route("us-east"), "eu-central 100");
}

// Places of sessions.

#[test]
fn home_takes_its_sessions_back_when_the_region_that_has_them_dies() {
    let mut world = World::with(|topology, _| {
        topology.regions.get_mut(&region("eu-central")).unwrap().sessions_max = 1;
    });
    world.sees("us-east", Health::Down).pass(10 * SECOND);
    world.sees("us-east", Health::Healthy).pass(20 * MINUTE);
    world.sees("us-west", Health::Down).pass(10 * SECOND);
    assert_eq!(
        (world.route("us-east"), world.state("us-east")),
        ("us-east 100".into(), RegionState::Serving)
    );
    let reason = world
        .plan()
        .reasons
        .iter()
        .find(|it| it.code == ReasonCode::Failover)
        .unwrap();
    assert_eq!(reason.evidence, ["us-west was seen down"], "of the region that failed");
    assert!(reason.text.contains("backup us-west is down"), "{}", reason.text);
}

#[test]
fn home_comes_after_every_backup_and_before_a_dead_region() {
    for on_purpose in [false, true] {
        let mut world = World::new();
        if on_purpose {
            world.ask("alice", switch_over("us-east"));
        } else {
            world.sees("us-east", Health::Down).pass(10 * SECOND);
            world.sees("us-east", Health::Healthy);
        }
        world.pass(20 * MINUTE).sees("us-west", Health::Down).pass(10 * SECOND);
        assert_eq!(
            world.route("us-east"),
            "eu-central 100",
            "a return is for a person to order"
        );
        // No other place is left: a region that works is better than one that does not.
        world.sees("eu-central", Health::Down).pass(10 * SECOND);
        assert_eq!(world.route("us-east"), "us-east 100");
    }
}

#[test]
fn home_takes_back_no_more_than_it_accepts_connections_for() {
    let mut world = World::with(|topology, _| {
        topology.regions.get_mut(&region("us-east")).unwrap().connects_per_s_max = Some(5);
        topology.regions.get_mut(&region("eu-central")).unwrap().sessions_max = 60;
    });
    world.sees("us-east", Health::Down).pass(10 * SECOND);
    world.sees("us-east", Health::Healthy).pass(20 * MINUTE);
    world.sees("us-west", Health::Down).decide();
    assert_eq!(world.route("us-east"), "us-east 25 + eu-central 30 + us-west 45");
    assert_eq!(world.state("us-east"), RegionState::Draining(25));
    world.pass(MINUTE);
    assert_eq!(world.route("us-east"), "us-east 70 + eu-central 30");
    assert!(
        world.waits(ReasonCode::RestoreReady),
        "the others come back when somebody says so"
    );
}

#[test]
fn one_bad_tick_of_the_near_backup_sends_nobody_to_the_far_one_and_two_do() {
    let mut world = World::new();
    world
        .sees("us-east", Health::Down)
        .sees("us-west", Health::Suspect)
        .decide();
    assert_eq!(world.route("us-east"), "us-west 100");

    let mut world = World::new();
    world.sees("us-west", Health::Suspect).decide();
    world.pass(10 * SECOND).sees("us-east", Health::Down).decide();
    assert_eq!(world.route("us-east"), "eu-central 100", "suspect for a second tick");
}

// Evidence.

#[test]
fn guests_that_move_on_are_told_why_by_the_region_that_was_left() {
    let mut world = World::new();
    world.sees("us-east", Health::Down).pass(10 * SECOND);
    world.sees("us-west", Health::Down).pass(10 * SECOND);
    let reason = &world.plan().reasons[0];
    assert!(
        reason.text.starts_with("backup us-west is down: it is down"),
        "{}",
        reason.text
    );
    assert_eq!(
        (reason.region.as_ref(), &reason.evidence[..]),
        (Some(&region("us-east")), &["us-west was seen down".to_owned()][..])
    );
}

#[test]
fn an_override_says_that_the_rule_is_off_and_until_when() {
    let mut world = World::with(|_, policy| policy.safety.two_person.clear());
    let rule = Rule::HoldDown;
    world.ask_for("alice", IntentKind::Override { rule }, HOUR);
    let said = &world.report.changed[0].text;
    let until = world.now + HOUR;
    assert!(
        said.ends_with(&format!(
            "the rule hold-down is OFF until {until}, and ON again from then"
        )),
        "{said}"
    );
    assert_eq!(world.level("us-east"), Level::L0);
}

// Counting.

/// Two waves of sessions that meet at a region arrive within one window there. Counted from the first wave, the region
/// would get twice as many as it accepts.
#[test]
fn sessions_are_still_coming_for_a_window_after_the_last_of_them_were_sent() {
    let mut world = World::with(|topology, policy| {
        policy.safety.two_person.clear();
        topology
            .regions
            .get_mut(&region("eu-central"))
            .unwrap()
            .connects_per_s_max = Some(5);
        for (name, sessions) in [("ap-northeast", 160), ("us-west", 190)] {
            topology.regions.get_mut(&region(name)).unwrap().sessions_max = sessions;
        }
    });
    world.ask("alice", fail_over("ap-south"));
    assert_eq!(
        world.route("ap-south"),
        "ap-northeast 80 + eu-central 20",
        "40 sessions"
    );
    world.now = world.now + 9 * SECOND;
    world.refresh();
    world.ask("alice", fail_over("us-east"));
    assert_eq!(world.route("us-east"), "us-west 95 + eu-central 5", "10 sessions");
    world.now = world.now + 2 * SECOND;
    world.refresh();
    world.ask("alice", fail_over("eu-west"));
    assert!(
        world.refused(ReasonCode::NoHeadroom),
        "50 sessions are coming, which is all it accepts"
    );
    world.now = world.now + 8 * SECOND;
    world.refresh();
    world.ask("alice", fail_over("eu-west"));
    assert_eq!(world.route("eu-west"), "eu-west 75 + eu-central 25");
}

/// A token is remembered for a day, so that a retry does nothing twice, and no longer: ended actions would displace
/// running ones.
#[test]
fn a_token_is_forgotten_after_a_day() {
    let mut world = World::new();
    world.ask_as("token", "alice", fail_over("us-east"), MINUTE);
    world.jump(24 * HOUR);
    assert_eq!(world.phase("token"), None);
    world.ask_as("token", "alice", crate::world::restore("us-east"), MINUTE);
    assert_eq!(world.state("us-east"), RegionState::Restoring(1));
}

// Regions without some of their stacks.

/// us-west and eu-central have two stacks each; these are the addresses of us-west.
fn with_two_stacks() -> (World, [std::net::SocketAddr; 2]) {
    let stacks = [9_002, 9_012].map(|port| std::net::SocketAddr::from(([127, 0, 0, 1], port)));
    let world = World::with(|topology, _| {
        let us_west = topology.regions.get_mut(&region("us-west")).unwrap();
        us_west.stacks = stacks.map(Into::into).to_vec();
    });
    (world, stacks)
}

fn dies(world: &mut World, stack: std::net::SocketAddr) {
    world.sees("us-west", Health::Degraded);
    let verdict = world.input.verdicts.get_mut(&region("us-west")).unwrap();
    verdict.dead_stacks.insert(stack);
}

/// A region with two stacks, the first of which fails in a component.
fn ailing(component: Component, trouble: verdict::Trouble) -> (World, std::net::SocketAddr) {
    let stacks = [9_001, 9_011].map(|port| std::net::SocketAddr::from(([127, 0, 0, 1], port)));
    let mut world = World::with(|topology, _| {
        let us_east = topology.regions.get_mut(&region("us-east")).unwrap();
        us_east.stacks = stacks.map(Into::into).to_vec();
    });
    world.sees("us-east", Health::Degraded);
    let verdict = world.input.verdicts.get_mut(&region("us-east")).unwrap();
    let ailment = verdict::Ailment { component, trouble };
    verdict.ailing_stacks.insert(stacks[0], ailment);
    (world, stacks[0])
}

#[test]
fn a_stack_that_answers_and_fails_is_named_with_what_to_do_until_it_is_drained() {
    use verdict::Trouble::{Fails, Slow};
    for (component, trouble, what, callers) in [
        (Component::Asr, Fails, "does not recognise speech", "are not understood"),
        (Component::Asr, Slow, "recognises speech too slowly", "wait too long"),
        (
            Component::Nlu,
            Fails,
            "does not understand the words",
            "are not understood",
        ),
        (Component::Skills, Fails, "does not carry requests out", "get no answer"),
        (Component::Tts, Fails, "does not speak", "hear no reply"),
        (
            Component::SessionStore,
            Fails,
            "keeps no sessions",
            "are not remembered when they call again",
        ),
    ] {
        let (mut world, stack) = ailing(component, trouble);
        world.decide();
        let text = format!(
            "stack {stack} (one of 2) answers but {what}: callers whose sessions are there {callers}; `meridian drain --stack \
             {stack} --for 2h --reason WHY` moves them to the others"
        );
        assert_eq!(world.waiting(ReasonCode::StackFails).text, text);
        assert_eq!(world.waiting(ReasonCode::StackFails).region, Some(region("us-east")));
        assert_eq!(world.route("us-east"), "us-east 100", "nobody is moved");
        world.ask_for("alice", IntentKind::DrainStack { stack }, HOUR);
        assert!(!world.waits(ReasonCode::StackFails), "it was done");
    }
    let (mut world, stack) = ailing(Component::Asr, Fails);
    let verdict = world.input.verdicts.get_mut(&region("us-east")).unwrap();
    verdict.ailing_stacks.clear();
    verdict.dead_stacks.insert(stack);
    world.decide();
    assert!(
        !world.waits(ReasonCode::StackFails),
        "no caller is sent to one that does not answer"
    );
}

#[test]
fn a_region_with_too_few_working_stacks_is_to_be_left() {
    let (mut world, stack) = ailing(Component::Tts, verdict::Trouble::Fails);
    let breaks = |world: &mut World, component| {
        let verdict = world.input.verdicts.get_mut(&region("us-east")).unwrap();
        verdict.broken = Some(component);
        world.decide();
    };
    breaks(&mut world, Component::Tts);
    let text = format!(
        "stack {stack} (one of 2) answers but does not speak: callers whose sessions are there hear no reply; too few of the \
         other stacks work to take them, and automation does not leave us-east for that; `meridian failover us-east --reason \
         WHY` does"
    );
    assert_eq!(world.waiting(ReasonCode::StackFails).text, text);
    // A region with one stack has none to name.
    let mut world = World::new();
    world.sees("us-east", Health::Degraded);
    breaks(&mut world, Component::Tts);
    let text = "us-east answers but does not speak: its callers hear no reply, and automation does not leave it for that; \
                `meridian failover us-east --reason WHY` does";
    assert_eq!(world.waiting(ReasonCode::StackFails).text, text);
}

#[test]
fn a_backup_takes_as_many_sessions_as_its_working_stacks_hold() {
    let lose: [fn(&mut World, std::net::SocketAddr); 2] = [dies, |world, stack| {
        world.ask_for("alice", IntentKind::DrainStack { stack }, HOUR);
    }];
    for lose in lose {
        let (mut world, [_, stack]) = with_two_stacks();
        lose(&mut world, stack);
        world.sees("us-east", Health::Down).pass(10 * SECOND);
        assert_eq!(world.route("us-east"), "us-west 50 + eu-central 50");
        let loads = planning::loads(&world.input.topology, world.plan(), &world.input.verdicts);
        let of = |load: &&planning::Load| load.region == region("us-west");
        let load = loads.iter().find(of).unwrap();
        assert_eq!((load.planned, load.max), (100.0, 100));
    }
    // A stack that is dead and drained counts as missing once.
    let (mut world, [_, stack]) = with_two_stacks();
    world.ask_for("alice", IntentKind::DrainStack { stack }, HOUR);
    dies(&mut world, stack);
    world.sees("us-east", Health::Down).pass(10 * SECOND);
    assert_eq!(world.route("us-east"), "us-west 50 + eu-central 50");
}

#[test]
fn sessions_that_half_a_backup_cannot_hold_stay_with_a_reason() {
    let (mut world, [_, stack]) = with_two_stacks();
    world.sees("eu-central", Health::Down);
    dies(&mut world, stack);
    world.sees("us-east", Health::Down).pass(10 * SECOND);
    assert_eq!(world.route("us-east"), "us-east 50 + us-west 50");
    world.pass(10 * SECOND);
    let text = &world.waiting(ReasonCode::PartlyMoved).text;
    assert!(
        text.contains("50 % of its sessions stay") && text.contains("us-west has no room left"),
        "{text}"
    );
    // The stack works again.
    world.sees("us-west", Health::Healthy).pass(10 * SECOND);
    assert_eq!(world.route("us-east"), "us-west 100");
}

#[test]
fn sessions_move_on_when_half_of_their_backup_dies_and_a_region_keeps_its_own() {
    let (mut world, [stack, _]) = with_two_stacks();
    world.sees("us-east", Health::Down).pass(MINUTE);
    assert_eq!(world.route("us-east"), "us-west 100");
    dies(&mut world, stack);
    world.pass(10 * SECOND);
    assert_eq!(world.route("us-east"), "us-west 50 + eu-central 50");
    // No session moves back when the stack returns.
    world.sees("us-west", Health::Healthy).pass(MINUTE);
    assert_eq!(world.route("us-east"), "us-west 50 + eu-central 50");

    let mut world = World::with(|topology, _| {
        let us_east = topology.regions.get_mut(&region("us-east")).unwrap();
        let stacks = [9_001, 9_011].map(|port| std::net::SocketAddr::from(([127, 0, 0, 1], port)));
        us_east.stacks = stacks.map(Into::into).to_vec();
        us_east.capacity.insert(Component::Asr, 100);
    });
    world.sees("us-east", Health::Degraded);
    let stack = world.input.topology.regions[&region("us-east")].stacks[0].address;
    let verdict = world.input.verdicts.get_mut(&region("us-east")).unwrap();
    verdict.dead_stacks.insert(stack);
    world.pass(MINUTE);
    assert_eq!(
        (world.route("us-east").as_str(), world.level("us-east")),
        ("us-east 100", Level::L0)
    );
}
