//! Stories of sessions that lose their region, told by devices that hear the answer anyway.

use std::time::Duration;

use crate::support::{
    self,
    Fate::{
        self, DiesAfterEvents, DiesAfterMessages, DiesInEvent, FreezesAfterMessages, FreezesAfterTurn, LeavesAfterTurn,
        Lives,
    },
    Session, Stack, World, hang_means_failure, planned, region,
};
use futures_util::SinkExt as _;
use serde_json::Value;
use tokio_tungstenite::tungstenite::Message;
use topology::RegionState;

/// A world with stacks that talk; the first is home, the others its backups.
async fn world(changes: &str, fates: &[Fate]) -> World {
    World::with(changes, &stacks(fates)).await
}

fn stacks(fates: &[Fate]) -> Vec<(&'static str, Stack)> {
    let names = ["eu-west", "eu-central", "us-west"].into_iter();
    names
        .zip(fates)
        .map(|(name, fate)| (name, Stack::Talks(*fate)))
        .collect()
}

/// The messages that a device got.
#[derive(Default)]
struct Heard {
    events: Vec<String>,
    notices: Vec<Value>,
}

impl Heard {
    async fn take(&mut self, anna: &mut Session) {
        match anna.hear().await {
            Message::Text(text) => match serde_json::from_str(&text) {
                Ok(notice) => self.notices.push(notice),
                Err(_) => self.events.push(text.to_string()),
            },
            Message::Ping(_) | Message::Pong(_) => {}
            other => panic!("{other:?}"),
        }
    }

    /// Up to the end of the next turn.
    async fn until_done(&mut self, anna: &mut Session) {
        let before = self.events.len();
        while !self.events[before..].contains(&"done".to_owned()) {
            self.take(anna).await;
        }
    }

    fn codes(&self) -> Vec<&str> {
        self.notices
            .iter()
            .map(|notice| notice["code"].as_str().expect("a notice has a code"))
            .collect()
    }
}

async fn say_turn(anna: &mut Session) {
    for word in ["a", "b", "."] {
        anna.say(word).await;
    }
}

const ONE_TURN: [&str; 5] = ["hello", "listening", "said a", "said b", "done"];

/// One turn in which regions meet these fates: the device hears it once, and is told of each move.
async fn check_turn(changes: &str, fates: &[Fate], ends_in: &str, notices: usize) {
    let world = world(changes, fates).await;
    let mut anna = world.open(&[]).await;
    let mut heard = Heard::default();
    say_turn(&mut anna).await;
    heard.until_done(&mut anna).await;
    assert_eq!(heard.events, ONE_TURN, "{fates:?}");
    assert_eq!(heard.codes(), vec!["region_changed"; notices], "{fates:?}");
    assert_eq!(world.live(), [(ends_in.to_owned(), 1)].into(), "{fates:?}");
    // The session is as good as new.
    say_turn(&mut anna).await;
    let mut again = Heard::default();
    again.until_done(&mut anna).await;
    assert_eq!(again.events, ONE_TURN[1..], "{fates:?}");
    anna.leave().await;
    hang_means_failure(world.edge.sessions.idle()).await;
    let left = world.edge.budget.remaining();
    assert_eq!(
        left, world.edge.config.continuity.replay_bytes_total_max,
        "nothing is kept of it"
    );
}

#[tokio::test]
async fn a_region_may_die_at_any_event_of_a_turn() {
    for events in 0..5 {
        check_turn("", &[DiesAfterEvents(events), Lives], "eu-central", 1).await;
        check_turn("", &[DiesInEvent(events), Lives], "eu-central", 1).await;
    }
}

/// Opens a session from an address of its own.
async fn open_from(client: [u8; 4], world: &World) -> Session {
    let tcp = tokio::net::TcpSocket::new_v4().unwrap();
    tcp.bind((client, 0).into()).unwrap();
    let tcp = tcp.connect(world.address).await.unwrap();
    let request = format!("ws://{}/v1/realtime?meridian=1", world.address);
    let opened = tokio_tungstenite::client_async(request, tcp);
    let (socket, answer) = hang_means_failure(opened).await.unwrap();
    Session { socket, answer }
}

/// Regression: nine sessions of one address that never ended their turn took all memory for turns, and every other device had to
/// repeat what it said when its region died.
#[tokio::test]
async fn one_client_does_not_take_the_memory_for_the_turns_of_all() {
    const WORDS: u64 = 40;
    let changes = "continuity.replay_bytes_total_max = 8000";
    let world = world(changes, &[DiesAfterMessages(WORDS), Lives]).await;
    let mut noise = Vec::new();
    for _ in 0..9 {
        let mut session = open_from([127, 0, 0, 2], &world).await;
        for _ in 1..WORDS {
            session.say("noise").await;
        }
        session.socket.send(Message::Ping("all".into())).await.unwrap();
        // The region has all of it when it answers that.
        while !matches!(session.hear().await, Message::Pong(_)) {}
        noise.push(session);
    }
    let mut anna = open_from([127, 0, 0, 1], &world).await;
    let mut heard = Heard::default();
    for _ in 1..WORDS {
        anna.say("a").await;
    }
    anna.say(".").await;
    heard.until_done(&mut anna).await;
    assert_eq!(heard.codes(), ["region_changed"]);
    assert_eq!(heard.events.iter().filter(|event| *event == "said a").count(), 39);
}

#[tokio::test]
async fn a_region_may_die_at_any_message_of_an_utterance() {
    for messages in 1..4 {
        check_turn("", &[DiesAfterMessages(messages), Lives], "eu-central", 1).await;
    }
}

#[tokio::test]
async fn a_region_that_stops_answering_in_a_turn_is_taken_for_dead() {
    for messages in 1..4 {
        let changes = "continuity.silence_busy = '1s'";
        check_turn(changes, &[FreezesAfterMessages(messages), Lives], "eu-central", 1).await;
    }
}

#[tokio::test]
async fn a_region_that_falls_silent_between_turns_is_noticed_though_nobody_says_anything() {
    let policy = "continuity.silence_active = '1s'\ncontinuity.silence_idle = '2s'";
    let world = world(policy, &[FreezesAfterTurn, Lives]).await;
    let mut anna = world.open(&[]).await;
    let mut heard = Heard::default();
    say_turn(&mut anna).await;
    heard.until_done(&mut anna).await;
    while heard.notices.is_empty() {
        heard.take(&mut anna).await;
    }
    assert_eq!(heard.codes(), ["region_changed"]);
    assert_eq!(world.live(), [("eu-central".to_owned(), 1)].into());
    say_turn(&mut anna).await;
    heard.until_done(&mut anna).await;
    assert_eq!(heard.events[5..], ONE_TURN[1..], "nothing twice");
}

#[tokio::test]
async fn a_region_that_lives_is_left_alone_between_turns_and_its_answers_to_the_edge_stay_here() {
    let world = world("continuity.silence_active = '1s'", &[Lives, Lives]).await;
    let mut anna = world.open(&[]).await;
    let mut heard = Heard::default();
    say_turn(&mut anna).await;
    heard.until_done(&mut anna).await;
    // Several pings later nothing has come of them for the device, and the session is where it was.
    let pause = tokio::time::timeout(Duration::from_secs(3), heard.take(&mut anna)).await;
    assert!(pause.is_err(), "{:?} {:?}", heard.events, heard.notices);
    assert_eq!(world.live(), [("eu-west".to_owned(), 1)].into());
}

#[tokio::test]
async fn the_backup_may_die_as_well() {
    for (one, two) in [
        (DiesAfterMessages(1), DiesAfterMessages(1)),
        (DiesAfterMessages(3), DiesAfterMessages(2)),
        (DiesAfterEvents(2), DiesAfterEvents(0)),
        (DiesAfterEvents(1), DiesAfterEvents(1)),
        (DiesInEvent(2), DiesInEvent(1)),
    ] {
        check_turn("", &[one, two, Lives], "us-west", 2).await;
    }
}

#[tokio::test]
async fn a_backup_that_does_not_take_the_session_is_passed_over() {
    check_turn("", &[DiesAfterEvents(2), Fate::RefusesOthers, Lives], "us-west", 2).await;
    for backup in [Stack::Refuses, Stack::Echoes, Stack::Answers(503), Stack::Answers(401)] {
        let stacks = [
            ("eu-west", Stack::Talks(DiesAfterEvents(2))),
            ("eu-central", backup),
            ("us-west", Stack::Talks(Lives)),
        ];
        let world = World::new(&stacks).await;
        let mut anna = world.open(&[]).await;
        let mut heard = Heard::default();
        say_turn(&mut anna).await;
        heard.until_done(&mut anna).await;
        assert_eq!(heard.events, ONE_TURN, "{backup:?}");
        assert_eq!(heard.codes(), ["region_changed"]);
    }
}

#[tokio::test]
async fn a_device_is_told_of_it_only_if_it_asks_for_events_beyond_the_protocol() {
    for (path, headers, notices) in [
        ("/v1/realtime", [].as_slice(), 0),
        ("/v1/realtime", [("meridian-events", "1")].as_slice(), 1),
        ("/v1/realtime?model=m&meridian=1", [].as_slice(), 1),
    ] {
        let world = world("", &[DiesAfterEvents(1), Lives]).await;
        let mut anna = support::open_at(world.address, path, headers).await.unwrap();
        let mut heard = Heard::default();
        say_turn(&mut anna).await;
        heard.until_done(&mut anna).await;
        assert_eq!(heard.events, ONE_TURN);
        assert_eq!(heard.notices.len(), notices, "{path} {headers:?}");
        anna.leave().await;
    }
}

#[tokio::test]
async fn the_notice_says_where_the_session_is_now() {
    let world = world("", &[DiesAfterEvents(1), Lives]).await;
    let mut anna = world.open(&[]).await;
    let mut heard = Heard::default();
    say_turn(&mut anna).await;
    heard.until_done(&mut anna).await;
    let notice = &heard.notices[0];
    assert_eq!(notice["type"], "meridian.notice");
    assert_eq!(
        (&notice["from"], &notice["to"]),
        (&"eu-west".into(), &"eu-central".into())
    );
    assert!(notice["message"].as_str().unwrap().starts_with("Connecting to backup"));
    // A device that reconnects for its own reasons shows this.
    let token = notice["affinity"].as_str().unwrap();
    let affinity = world.edge.affinity_tokens.verify(token, daemon::clock::now());
    assert_eq!(affinity.map(|it| it.region), Some(region("eu-central")));
}

#[tokio::test]
async fn when_no_region_is_left_the_device_is_told_to_reconnect() {
    // It is asked again, in case it was only restarting, but it gets nowhere.
    let world = world("continuity.deadline = '2s'", &[DiesAfterMessages(1)]).await;
    let mut anna = world.open(&[]).await;
    let mut heard = Heard::default();
    say_turn(&mut anna).await;
    // After the third time it is taken for the session's own fault.
    while heard.notices.len() < 3 {
        heard.take(&mut anna).await;
    }
    anna.check_closed(1012, "region eu-west lost; reconnect").await;
}

#[tokio::test]
async fn a_device_whose_region_died_in_the_middle_of_an_event_is_told_why_and_gets_no_half_of_it() {
    let world = world("continuity.deadline = '100ms'", &[DiesInEvent(0)]).await;
    let mut anna = world.open(&[]).await;
    let closed = loop {
        match anna.hear().await {
            Message::Close(frame) => break frame.unwrap(),
            Message::Text(text) => assert!(!text.starts_with("ha"), "{text}"),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(u16::from(closed.code), 1012);
}

#[tokio::test]
async fn a_ping_that_was_answered_is_not_answered_again_by_the_next_region() {
    let world = world("", &[DiesAfterMessages(1), Lives]).await;
    let mut anna = world.open(&[]).await;
    anna.socket.send(Message::Ping("one".into())).await.unwrap();
    let (mut pongs, mut done) = (0, false);
    while pongs == 0 {
        pongs += usize::from(anna.hear().await == Message::Pong("one".into()));
    }
    say_turn(&mut anna).await;
    while !done {
        let heard = anna.hear().await;
        pongs += usize::from(matches!(heard, Message::Pong(_)));
        done = heard == Message::text("done");
    }
    assert_eq!(world.live(), [("eu-central".to_owned(), 1)].into());
    assert_eq!(pongs, 1);
}

#[tokio::test]
async fn a_session_does_not_wait_for_the_silence_of_a_second_stack_of_its_region() {
    let frozen = Stack::Talks(FreezesAfterMessages(1));
    let stacks = [
        ("eu-west", frozen),
        ("eu-west", frozen),
        ("eu-central", Stack::Talks(Lives)),
    ];
    let world = World::with("continuity.silence_busy = '1s'", &stacks).await;
    let mut anna = world.open(&[]).await;
    let mut heard = Heard::default();
    say_turn(&mut anna).await;
    heard.until_done(&mut anna).await;
    assert_eq!(heard.codes(), ["region_changed"], "one move, and not two");
    assert_eq!(world.live(), [("eu-central".to_owned(), 1)].into());
}

#[tokio::test]
async fn drained_sessions_move_one_after_the_other() {
    let world = world("drain.window = '1m'\ndrain.limit = '2m'", &[Lives, Lives]).await;
    let mut sessions = Vec::new();
    for _ in 0..25 {
        let mut anna = world.open(&[]).await;
        Heard::default().take(&mut anna).await;
        sessions.push(anna);
    }
    let mut newer = planned(&stacks(&[Lives, Lives])).await;
    newer.plan.generation = 2;
    for shares in newer.plan.routes.values_mut() {
        for share in shares.iter_mut().filter(|share| share.region == region("eu-west")) {
            share.region = region("eu-central");
        }
    }
    let began = std::time::Instant::now();
    world.edge.apply(&newer);
    let moved = async {
        while world.live() != [("eu-central".to_owned(), 25)].into() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    hang_means_failure(moved).await;
    // Fifty a second: half a second for all of them.
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(400), "all at once, within {took:?}");
}

#[tokio::test]
async fn a_session_that_kills_every_region_is_given_up() {
    let world = world("", &[DiesAfterEvents(0), DiesAfterEvents(0), DiesAfterEvents(0)]).await;
    let mut anna = world.open(&[]).await;
    let closed = loop {
        if let Message::Close(frame) = anna.hear().await {
            break frame.unwrap();
        }
    };
    assert_eq!(u16::from(closed.code), 1012);
}

#[tokio::test]
async fn an_utterance_that_is_too_long_to_keep_must_be_repeated_and_the_session_goes_on() {
    let changes = "continuity.replay_bytes_max = 64";
    let world = world(changes, &[DiesAfterMessages(3), Lives]).await;
    let mut anna = world.open(&[]).await;
    let mut heard = Heard::default();
    for word in [&"x".repeat(40), &"y".repeat(40), "z"] {
        anna.say(word).await;
    }
    while heard.notices.is_empty() {
        heard.take(&mut anna).await;
    }
    assert_eq!(heard.codes(), ["repeat_utterance"]);
    say_turn(&mut anna).await;
    heard.until_done(&mut anna).await;
    assert_eq!(heard.events[heard.events.len() - 4..], ONE_TURN[1..]);
}

/// Without a notice the device would wait for an answer that never comes.
#[tokio::test]
async fn a_device_of_the_plain_protocol_gets_an_error_when_it_must_repeat() {
    let world = world("continuity.replay_bytes_max = 64", &[DiesAfterMessages(3), Lives]).await;
    let mut anna = support::open_at(world.address, "/v1/realtime", &[]).await.unwrap();
    let mut heard = Heard::default();
    for word in [&"x".repeat(40), &"y".repeat(40), "z"] {
        anna.say(word).await;
    }
    while heard.notices.is_empty() {
        heard.take(&mut anna).await;
    }
    assert_eq!(heard.notices[0]["type"], "error");
    assert_eq!(heard.notices[0]["error"]["code"], "repeat_utterance");
    say_turn(&mut anna).await;
    heard.until_done(&mut anna).await;
    assert_eq!(heard.notices.len(), 1);
}

#[tokio::test]
async fn an_evacuated_region_loses_its_sessions_in_mid_turn() {
    let world = world("", &[Lives, Lives]).await;
    let mut anna = world.open(&[]).await;
    let mut heard = Heard::default();
    anna.say("a").await;
    while heard.events != ["hello", "listening"] {
        heard.take(&mut anna).await;
    }
    let mut newer = planned(&stacks(&[Lives, Lives])).await;
    newer.plan.generation = 2;
    newer.plan.regions.get_mut(&region("eu-west")).unwrap().state = RegionState::Evacuated;
    newer.plan.routes.get_mut(&region("eu-west")).unwrap()[0].region = region("eu-central");
    world.edge.apply(&newer);
    while heard.notices.is_empty() {
        heard.take(&mut anna).await;
    }
    for word in ["b", "."] {
        anna.say(word).await;
    }
    heard.until_done(&mut anna).await;
    assert_eq!(heard.events, ONE_TURN);
    assert_eq!(world.live(), [("eu-central".to_owned(), 1)].into());
    assert_eq!(world.observed()["eu-west"], (1, 0), "it did nothing wrong");
}

#[tokio::test]
async fn a_drained_region_loses_its_sessions_between_turns_and_nobody_notices() {
    let world = world("drain.window = '50ms'", &[Lives, Lives]).await;
    let mut anna = world.open(&[]).await;
    let mut heard = Heard::default();
    anna.say("a").await;
    while heard.events != ["hello", "listening"] {
        heard.take(&mut anna).await;
    }
    let mut newer = planned(&stacks(&[Lives, Lives])).await;
    newer.plan.generation = 2;
    for shares in newer.plan.routes.values_mut() {
        for share in shares.iter_mut().filter(|share| share.region == region("eu-west")) {
            share.region = region("eu-central");
        }
    }
    world.edge.apply(&newer);
    for word in ["b", "."] {
        anna.say(word).await;
    }
    heard.until_done(&mut anna).await;
    assert_eq!(heard.events, ONE_TURN);
    let moved = async {
        while world.live() != [("eu-central".to_owned(), 1)].into() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    hang_means_failure(moved).await;
    say_turn(&mut anna).await;
    heard.until_done(&mut anna).await;
    assert_eq!(heard.events[5..], ONE_TURN[1..]);
    assert!(heard.notices.is_empty(), "{:?}", heard.notices);
}

/// Otherwise a resumed session stays for its whole call in a region to which the plan sends no session of its home: one that only
/// backs up others, or one far away, from a journey of its user.
#[tokio::test]
async fn a_session_that_is_resumed_where_the_plan_does_not_send_it_is_fetched_there_and_leaves_between_turns() {
    let stacks = ["eu-west", "eu-central", "us-east"].map(|name| (name, Stack::Talks(Lives)));
    let world = World::with("drain.window = '50ms'", &stacks).await;
    for name in ["eu-central", "us-east"] {
        let mut anna = resume_at(&world, name).await;
        let moved = async {
            while world.live() != [("eu-west".to_owned(), 1)].into() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        hang_means_failure(moved).await;
        let mut heard = Heard::default();
        say_turn(&mut anna).await;
        heard.until_done(&mut anna).await;
        assert_eq!(heard.events, ONE_TURN);
        assert!(heard.notices.is_empty(), "{:?}", heard.notices);
        anna.leave().await;
        hang_means_failure(world.edge.sessions.idle()).await;
    }
}

#[tokio::test]
async fn a_session_that_is_resumed_at_a_backup_stays_there_while_its_home_takes_nobody() {
    let stacks = ["eu-central", "us-east"].map(|name| (name, Stack::Talks(Lives)));
    let world = World::with("drain.window = '50ms'", &stacks).await;
    let mut anna = resume_at(&world, "eu-central").await;
    let asked = async {
        let name = "meridian_edge_faults_total{region=\"eu-west\",fault=\"region\"}";
        while world.metric(name).is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    hang_means_failure(asked).await;
    let mut heard = Heard::default();
    say_turn(&mut anna).await;
    heard.until_done(&mut anna).await;
    assert_eq!(heard.events, ONE_TURN);
    assert_eq!(world.live(), [("eu-central".to_owned(), 1)].into());
}

/// A device comes back with the id of a session that a stack of this region remembers, and is there.
async fn resume_at(world: &World, name: &str) -> Session {
    let key = &world.edge.config.affinity_key.0;
    let session = routing::session::name([7; 16]);
    let token = key.issue_session(&session, "", &region(name), world.stack_of(name), daemon::clock::now());
    let path = format!("/v1/realtime?meridian=1&resume={token}");
    let opened = support::open_at(world.address, &path, &[]).await;
    let anna = opened.expect("the session opens");
    assert_eq!(anna.header("meridian-region"), name);
    anna
}

#[tokio::test]
async fn a_drained_stack_loses_its_sessions_to_another_of_its_region_and_gets_no_new_ones() {
    let both = [("eu-west", Stack::Talks(Lives)), ("eu-west", Stack::Talks(Lives))];
    let mut snapshot = planned(&both).await;
    let world = World::of("drain.window = '50ms'", &snapshot);
    let at = || {
        world
            .edge
            .sessions
            .by_stack()
            .remove(&region("eu-west"))
            .unwrap_or_default()
    };
    let mut anna = world.open(&[]).await;
    let mut heard = Heard::default();
    anna.say("a").await;
    while heard.events != ["hello", "listening"] {
        heard.take(&mut anna).await;
    }
    let drained = *at().first_key_value().expect("she is somewhere").0;
    snapshot.plan.generation = 2;
    snapshot.plan.drained_stacks.insert(drained);
    world.edge.apply(&snapshot);
    for word in ["b", "."] {
        anna.say(word).await;
    }
    heard.until_done(&mut anna).await;
    let moved = async {
        while at().contains_key(&drained) || at().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    hang_means_failure(moved).await;
    let mut others = Vec::new();
    for _ in 0..10 {
        others.push(world.open(&[]).await);
    }
    assert_eq!(at().into_values().collect::<Vec<_>>(), [11], "all at the other stack");
    say_turn(&mut anna).await;
    heard.until_done(&mut anna).await;
    assert_eq!(heard.events[5..], ONE_TURN[1..]);
    assert!(heard.notices.is_empty(), "{:?}", heard.notices);
}

#[tokio::test]
async fn a_stack_that_stops_loses_its_sessions_between_turns_and_nobody_notices() {
    let world = world("", &[LeavesAfterTurn, Lives]).await;
    let mut anna = world.open(&[]).await;
    let mut heard = Heard::default();
    for _ in 0..2 {
        say_turn(&mut anna).await;
        heard.until_done(&mut anna).await;
    }
    assert_eq!(heard.events, [&ONE_TURN[..], &ONE_TURN[1..]].concat());
    assert!(heard.notices.is_empty(), "{:?}", heard.notices);
    assert_eq!(world.live(), [("eu-central".to_owned(), 1)].into());
    assert_eq!(world.observed()["eu-west"], (1, 0), "going away in order is no failure");
}

#[tokio::test]
async fn a_ping_is_answered_though_its_region_died_of_it() {
    // The edge answers the ping of the frozen region's session once the session has moved.
    let world = world("continuity.silence_busy = '1s'", &[FreezesAfterMessages(1), Lives]).await;
    let mut anna = world.open(&[]).await;
    anna.say("a").await;
    anna.socket.send(Message::Ping("are you there".into())).await.unwrap();
    while anna.hear().await != Message::Pong("are you there".into()) {}
}

#[tokio::test]
async fn words_are_between_edge_and_stack_and_bytes_of_a_device_are_none() {
    let world = world("", &[Lives]).await;
    let mut anna = world
        .open(&[("meridian-resume", "1"), ("meridian-continuity", "9")])
        .await;
    let mut heard = Heard::default();
    heard.take(&mut anna).await;
    assert_eq!(heard.events, ["hello"], "the session is a new one");
}
