use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use topology::{
    Component, Intent, IntentKind, Level, Moment, PlanNumber, RegionId, RegionState, Rollout, Rule, Share,
    policy::DampingPolicy,
};
use verdict::{Ailment, Health, Trouble};

use super::{changed, documents, helps, part, refused, waiting};
use crate::{ANY_LOSS, TakenBack};

/// A sentence with the name of the function that makes it.
type Sample = (&'static str, String);

fn east() -> RegionId {
    "us-east".parse().unwrap()
}

fn west() -> RegionId {
    "us-west".parse().unwrap()
}

fn noon() -> Moment {
    Moment(12 * 3_600_000)
}

fn shares() -> Vec<Share> {
    vec![Share {
        region: west(),
        percent: 100,
    }]
}

fn order() -> Intent {
    Intent {
        id: "a1".to_owned(),
        kind: IntentKind::Failover {
            region: east(),
            promote: false,
            accept_loss: None,
            force: false,
        },
        author: "alice".to_owned(),
        reason: "power".to_owned(),
        created_at: noon(),
        expires_at: noon() + Duration::from_secs(600),
    }
}

fn rollout() -> Rollout {
    Rollout {
        version: "v2".to_owned(),
        percent: 5,
        since: noon(),
        action: "a1".to_owned(),
    }
}

const SUMMARY: &str = "asr fails at 3 of 4 vantages for 3 ticks";
const WHY: &str = "failover by alice: power";
const SECOND: Duration = Duration::from_secs(1);

fn of_changed() -> Vec<Sample> {
    let (edge, stack) = (&"dub-1".parse().unwrap(), "10.0.0.1:7000".parse().unwrap());
    let number = PlanNumber::default();
    vec![
        ("first_plan", changed::first_plan()),
        ("documents_changed", changed::documents_changed(&[])),
        ("writer_gone", changed::writer_gone("us-west", "memory")),
        ("plan_recovered", changed::plan_recovered(number, number)),
        (
            "drain_recovered",
            changed::drain_recovered("dub-1", 7, "recovered-7-dub-1"),
        ),
        ("drain_recovered_because", changed::drain_recovered_because(7)),
        (
            "plan_taken_back",
            changed::plan_taken_back("dub-1 refuses plan 7", 6, noon()),
        ),
        ("clock_went_back", changed::clock_went_back(SECOND)),
        ("region_left", changed::region_left(SUMMARY, &shares(), 5)),
        ("drain_step", changed::drain_step(WHY, &shares(), 50)),
        ("failed_while_drained", changed::failed_while_drained(SUMMARY)),
        ("failed_while_returning", changed::failed_while_returning(SUMMARY)),
        ("drain_stopped", changed::drain_stopped(&west(), SUMMARY)),
        ("all_left", changed::all_left()),
        ("return_step", changed::return_step(WHY, 50)),
        ("returned", changed::returned(WHY)),
        ("returned_at_once", changed::returned_at_once(WHY, true)),
        (
            "displaced",
            changed::displaced("us-west is gone from the topology", 40, &shares(), 5),
        ),
        (
            "backup_left",
            changed::backup_left("backup us-west is down", &shares(), 5),
        ),
        ("level", changed::level(Level::L0, Level::L1, SUMMARY)),
        ("promoted", changed::promoted(&west())),
        ("promoted_already", changed::promoted_already(&west())),
        ("data_came_home", changed::data_came_home()),
        ("edge_lost", changed::edge_lost("nothing was heard of dub-1")),
        ("edge_returned", changed::edge_returned("dub-1 is heard again")),
        ("new_edge_works", changed::new_edge_works(edge)),
        ("new_edge_is_the_only_one", changed::new_edge_is_the_only_one(edge)),
        ("edge_drained", changed::edge_drained(&order(), edge)),
        ("edge_stays_out", changed::edge_stays_out(edge, noon())),
        ("edge_restored", changed::edge_restored(edge)),
        ("stack_drained", changed::stack_drained(&order(), stack)),
        ("stack_stays_out", changed::stack_stays_out(stack, noon())),
        ("stack_restored", changed::stack_restored(stack)),
        ("rollout_begins", changed::rollout_begins(WHY, "v2", 5)),
        ("rollout_step", changed::rollout_step("v2", 5, 25)),
        ("rolled_back", changed::rolled_back("v2", 5, "3 GPU memory errors")),
        ("rollout_aborted", changed::rollout_aborted(WHY, "v2")),
        ("rollout_revived", changed::rollout_revived("v2", 5)),
        ("all_on_version_already", changed::all_on_version_already("v2")),
        ("order", changed::order("failover", "alice", "power")),
        (
            "order_done",
            changed::order_done(&order(), 7, "1.0 s after it was ordered"),
        ),
        ("order_ended", changed::order_ended(&order(), "us-east is a backup now")),
        ("order_expired", changed::order_expired(&order())),
        ("ordered_anew", changed::ordered_anew("alice")),
        ("overtaken", changed::overtaken(WHY)),
        ("ended_by", changed::ended_by(WHY)),
        ("ended_by_return", changed::ended_by_return()),
        ("return_goes_on", changed::return_goes_on(WHY)),
        ("already", changed::already(&east(), RegionState::Evacuated)),
        ("frozen", changed::frozen(WHY, noon())),
        ("unfrozen", changed::unfrozen(WHY)),
        ("nothing_is_frozen", changed::nothing_is_frozen()),
        ("rule_off", changed::rule_off(WHY, Rule::HoldDown, noon())),
        ("penalty_lifted", changed::penalty_lifted(WHY, 3000)),
        ("no_penalty", changed::no_penalty(&east())),
        ("rollout_is_gone", changed::rollout_is_gone("v2")),
        ("all_on_version", changed::all_on_version("v2")),
        ("edge_is_gone", changed::edge_is_gone(edge)),
        ("stack_is_gone", changed::stack_is_gone(stack)),
        ("is_no_primary", changed::is_no_primary(&east(), true)),
        ("region_is", changed::region_is(&east(), RegionState::Serving)),
        ("region_is_now", changed::region_is_now(&east(), RegionState::Serving)),
        ("regions_are_gone", changed::regions_are_gone(&[east()].into())),
    ]
}

fn of_refused() -> Vec<Sample> {
    let (edge, stack) = (&"dub-1".parse().unwrap(), "10.0.0.1:7000".parse().unwrap());
    let rest = TakenBack {
        generation: 7,
        until: noon(),
        why: "the plan has no serving edge".to_owned(),
    };
    let no_place = refused::no_place(&east(), &part::no_places(&[part::has_no_room(&west())]));
    let lost = part::data_lost(&[part::lag_unknown("memory")]);
    vec![
        ("automation_off", refused::automation_off()),
        ("frozen", refused::frozen("alice", "maintenance", noon())),
        ("automation_rests", refused::automation_rests(&rest)),
        (
            "invalid_plan",
            refused::invalid_plan("the shares of us-east are 90 % in all"),
        ),
        ("everything_looks_dead", refused::everything_looks_dead()),
        ("bad_together", refused::bad_together([&east(), &west()])),
        ("evacuation_limit", refused::evacuation_limit(&east(), &[], 0)),
        (
            "evacuation_limit",
            refused::evacuation_limit(&east(), &[part::moves_now(&west(), RegionState::Evacuated)], 1),
        ),
        ("too_few_left", refused::too_few_left(&east(), 0, 1)),
        (
            "backup_not_left",
            refused::backup_not_left("backup us-west is down", &no_place),
        ),
        ("no_place", no_place),
        (
            "crowded_backup_not_left",
            refused::crowded_backup_not_left(&part::backup_is_crowded(&west()), 5),
        ),
        (
            "not_healthy_enough_to_return",
            refused::not_healthy_enough_to_return(WHY, &east(), Health::Down, SUMMARY),
        ),
        (
            "sessions_cannot_come_back",
            refused::sessions_cannot_come_back(&east(), Health::Down, SUMMARY),
        ),
        (
            "held_down",
            refused::held_down(&east(), 3000, noon(), &DampingPolicy::default()),
        ),
        ("too_much_lost", refused::too_much_lost(&lost, &east())),
        ("nobody_can_take_the_data", refused::nobody_can_take_the_data(&east())),
        ("loss_without_promotion", refused::loss_without_promotion(&east())),
        ("author_is_planner", refused::author_is_planner("planner")),
        ("asked_already", refused::asked_already("alice", noon(), "a1")),
        ("too_many_orders", refused::too_many_orders()),
        ("is_a_backup", refused::is_a_backup(&west())),
        ("no_such_region", refused::no_such_region(&east())),
        ("no_such_edge", refused::no_such_edge(edge)),
        ("no_such_stack", refused::no_such_stack(stack)),
        ("no_stack_of_version", refused::no_stack_of_version("v2", ["v1"])),
        ("last_edge", refused::last_edge(edge)),
        ("last_stack", refused::last_stack(stack, &east())),
        ("rollout_runs", refused::rollout_runs(&rollout())),
        ("is_moving", refused::is_moving(RegionState::Draining(50))),
        (
            "not_well_enough_to_drain",
            refused::not_well_enough_to_drain(&part::health(Health::Down, SUMMARY), &east()),
        ),
        ("guests_are_there", refused::guests_are_there(&west())),
        ("guests_would_be_stranded", refused::guests_would_be_stranded(&west())),
        ("nothing_to_approve", refused::nothing_to_approve("a1")),
        (
            "shown_changed",
            refused::shown_changed(
                "a1",
                "5d41402abc4b2a76",
                "7d793037a0760186",
                &[part::effect("sessions of us-east go to us-west", Some(60))],
            ),
        ),
        (
            "approval_names_nothing_shown",
            refused::approval_names_nothing_shown("a1", "7d793037a0760186"),
        ),
        ("nothing_to_abort", refused::nothing_to_abort("a1")),
        ("same_person", refused::same_person("alice", "a1")),
    ]
}

fn of_waiting() -> Vec<Sample> {
    let edge = &"dub-1".parse().unwrap();
    let stack = ("10.0.0.1:7000".parse().unwrap(), 3);
    let trouble = part::trouble(Ailment {
        component: Component::Asr,
        trouble: Trouble::Fails,
    });
    let no_place = refused::no_place(&east(), &part::no_places(&[part::has_no_room(&west())]));
    let moves = part::moves(&east(), 1200, [&west()]);
    let (lost, refuse) = (
        part::edge_silent(edge, Some(SECOND)),
        part::nodes_refuse(&["dub-1"], 0, 7),
    );
    let returns = part::return_brings_data_home();
    vec![
        ("trigger_not_reached", waiting::trigger_not_reached(&east(), SUMMARY)),
        ("trigger_pending", waiting::trigger_pending(SUMMARY)),
        ("not_seen", waiting::not_seen(&part::not_seen_yet())),
        ("restore_ready", waiting::restore_ready(&east())),
        (
            "restore_ready_while_leaving",
            waiting::restore_ready_while_leaving(&east(), 50),
        ),
        (
            "restore_after_degraded",
            waiting::restore_after_degraded(&east(), 50, SUMMARY),
        ),
        ("step_held_until", waiting::step_held_until(50, noon())),
        (
            "return_held_by_health",
            waiting::return_held_by_health(50, Health::Suspect, SUMMARY),
        ),
        ("return_held_by_connections", waiting::return_held_by_connections(50)),
        (
            "drain_held_by_target",
            waiting::drain_held_by_target(50, &west(), Health::Suspect, SUMMARY),
        ),
        ("sessions_wait_their_turn", waiting::sessions_wait_their_turn(50)),
        ("sessions_find_no_place", waiting::sessions_find_no_place(50)),
        (
            "sessions_stay_while",
            waiting::sessions_stay_while(50, Health::Suspect, SUMMARY),
        ),
        ("sessions_stay_because", waiting::sessions_stay_because(50, &no_place)),
        (
            "data_keep_their_writer",
            waiting::data_keep_their_writer(&["memory"], &east()),
        ),
        (
            "data_are_written_by",
            waiting::data_are_written_by("memory", "us-west", &returns, true),
        ),
        ("new_edge_works", waiting::new_edge_works(edge, noon())),
        (
            "new_edge_not_seen_to_work",
            waiting::new_edge_not_seen_to_work(edge, 60),
        ),
        (
            "edge_returns",
            waiting::edge_returns(&part::edge_works_again(edge, true, false), noon()),
        ),
        (
            "lost_edge_stays",
            waiting::lost_edge_stays(&lost, &waiting::all_edges_look_lost(3)),
        ),
        ("all_edges_look_lost", waiting::all_edges_look_lost(3)),
        ("too_many_edges_look_lost", waiting::too_many_edges_look_lost(2, 3, 1)),
        ("no_other_edge_left", waiting::no_other_edge_left()),
        ("stack_fails", waiting::stack_fails(stack, trouble, (&east(), true), 1)),
        ("stack_fails", waiting::stack_fails(stack, trouble, (&east(), false), 0)),
        ("region_fails", waiting::region_fails(&east(), trouble)),
        ("rollout_held_until", waiting::rollout_held_until(&rollout(), noon())),
        (
            "rollout_held_for_sessions",
            waiting::rollout_held_for_sessions(&rollout(), 5, 100),
        ),
        ("refused_by_few", waiting::refused_by_few(&refuse, 1, 3)),
        (
            "refused_and_stays",
            waiting::refused_and_stays(&refuse, &part::leaves_dead_region(&east(), &east())),
        ),
        (
            "needs_approval",
            waiting::needs_approval(
                &order(),
                [part::may_lose(ANY_LOSS).as_str()],
                "5d41402abc4b2a76",
                &moves,
            ),
        ),
        (
            "needs_approval_again",
            waiting::needs_approval_again(&order(), &[part::grew("share", 60, 50)], "5d41402abc4b2a76", &moves),
        ),
    ]
}

fn of_documents() -> Vec<Sample> {
    vec![
        ("records_differ", documents::records_differ()),
        ("no_region_could_be_left", documents::no_region_could_be_left(3, 3)),
        ("no_region_could_be_bad", documents::no_region_could_be_bad(5, 3)),
        ("writer_would_go", documents::writer_would_go(&west(), &east())),
        (
            "region_with_data_elsewhere_would_go",
            documents::region_with_data_elsewhere_would_go(&east(), &west()),
        ),
        (
            "serving_region_would_go",
            documents::serving_region_would_go(&east(), 100),
        ),
        ("hosts_would_go", documents::hosts_would_go(&east(), &shares(), 40)),
        (
            "host_would_be_primary",
            documents::host_would_be_primary(&east(), &west()),
        ),
        ("other_zone", documents::other_zone("voice.example", "speech.example")),
        ("other_address", documents::other_address("dub-1")),
        ("new_primary", documents::new_primary(&east())),
        (
            "addresses_at_once",
            documents::addresses_at_once("edge", "devices reach", &["dub-1", "dub-2"]),
        ),
        ("elsewhere", documents::elsewhere("us-east", 400.0)),
        ("backups_lost", documents::backups_lost(&east(), &["us-west"])),
        ("primary_to_backup", documents::primary_to_backup(&east())),
        ("backup_to_primary", documents::backup_to_primary(&east())),
        (
            "other_room",
            documents::other_room("sessions_max", &east(), Some(100), None),
        ),
        ("version_at_once", documents::version_at_once("v2", &east())),
        (
            "too_few_known_stacks",
            documents::too_few_known_stacks(&east(), 1, 3, 2),
        ),
        (
            "zone_differs",
            documents::zone_differs("voice.example", "speech.example"),
        ),
        ("ttl_differs", documents::ttl_differs(30, 20)),
        ("probe_differs", documents::probe_differs()),
        ("more_changes", documents::more_changes(3)),
        ("is_gone", documents::is_gone("edge", "dub-1")),
        ("is_new", documents::is_new("edge", "dub-1")),
        ("has_another", documents::has_another("edge", "dub-1", &["port"])),
    ]
}

/// The names of the functions of a file that are called from outside it.
fn functions(source: &str) -> BTreeSet<String> {
    let begins = source.lines().filter_map(|line| line.strip_prefix("pub(crate) fn "));
    let name = |line: &str| line.split(['(', '<']).next().unwrap_or_default().to_owned();
    begins.map(name).collect()
}

fn check_shape(name: &str, text: &str) {
    let begins = text.split([' ', ':']).next().unwrap();
    let riddles = [
        "what", "who", "which", "whoever", "whatever", "where", "when", "not", "held",
    ];
    assert!(
        !riddles.contains(&begins.to_lowercase().as_str()),
        "{name} begins with no subject: {text}"
    );
    assert!(!begins.is_empty() && text.trim() == text, "{name}: {text:?}");
    assert!(
        !text.ends_with(['.', '!', ':', ';', ',']),
        "{name} ends like no sentence of a list: {text}"
    );
    assert!(
        text.matches('`').count().is_multiple_of(2),
        "{name} leaves a command open: {text}"
    );
    assert!(text.len() < 400, "{name} is too long to read: {text}");
    assert!(!text.contains("  ") && !text.contains('\n'), "{name}: {text:?}");
}

#[test]
fn every_sentence_begins_with_its_subject_and_tells_what_to_type() {
    let files = [
        (include_str!("changed.rs"), of_changed(), false),
        (include_str!("refused.rs"), of_refused(), true),
        (include_str!("waiting.rs"), of_waiting(), true),
        (include_str!("documents.rs"), of_documents(), false),
    ];
    for (source, samples, must_help) in files {
        for (name, text) in &samples {
            check_shape(name, text);
            assert!(!must_help || helps(text), "{name} does not say what to type: {text}");
        }
        let shown: BTreeSet<String> = samples.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(functions(source), shown, "every sentence of a file has a sample here");
    }
}

/// Names of actions and of effects, which programs read.
const NAMES: [&str; 5] = [
    "format!(\"auto-{}-{}\"",
    "format!(\"recovered-{generation}-{subject}\")",
    "format!(\"{of} {about}\")",
    "format!(\"{} {rule}\"",
    "format!(\"capacity.{component}\")",
];

/// Sentences for developers: the invariants that a sweep found broken, and the differences that a replay found.
const FOR_DEVELOPERS: [&str; 2] = ["invariants.rs", "audit.rs"];

#[test]
fn no_other_file_of_this_crate_makes_sentences() {
    fn check(folder: &Path) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                if name != "texts" {
                    check(&path);
                }
                continue;
            }
            let source = fs::read_to_string(&path).unwrap();
            let source = source.split("#[cfg(test)]").next().unwrap();
            for line in source.lines().filter(|_| !FOR_DEVELOPERS.contains(&name.as_str())) {
                let makes = line.contains("format!(") && !NAMES.iter().any(|it| line.contains(it));
                assert!(!makes, "{}: a sentence belongs in src/texts: {line}", path.display());
            }
        }
    }
    check(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
}
