use super::*;

#[test]
fn alarms_are_listed_moved_and_cancelled() {
    let mut device = Device::new();
    device.talks(&[
        ("are any alarms set", "there is no alarm"),
        ("set an alarm for six a m", "alarm set for six o clock in the morning"),
        ("when is my alarm", "there is an alarm for six o clock in the morning tomorrow"),
        ("move the alarm to seven a m", "alarm set for seven o clock in the morning"),
        ("change my alarm", "what time should i move the alarm to"),
        ("eight a m", "alarm set for eight o clock in the morning"),
        ("wake me at noon", "alarm set for twelve o clock in the afternoon"),
        (
            "what alarms do i have",
            "there are two alarms, for twelve o clock in the afternoon and for eight o clock in the morning tomorrow",
        ),
        (
            "cancel the alarm",
            "which one, the one for twelve o clock in the afternoon or the one for eight o clock in the morning tomorrow, or \
             all of them",
        ),
        ("the one for noon", "alarm cancelled"),
        (
            "don't wake me up at eight",
            "do you want me to cancel the alarm for eight o clock in the morning",
        ),
        ("yes please", "alarm cancelled"),
        ("don't wake me up at eight", "okay, i set no alarm"),
        ("set an alarm for six a m", "alarm set for six o clock in the morning"),
        ("set an alarm for seven a m", "alarm set for seven o clock in the morning"),
        ("move the seven a m alarm to nine a m", "alarm set for nine o clock in the morning"),
        ("delete the nine o clock alarm", "alarm cancelled"),
        ("cancel all alarms", "alarm cancelled"),
        ("cancel the alarm", "there is no alarm"),
    ]);
}

#[test]
fn alarms_of_different_days_are_told_apart() {
    let mut device = Device::new();
    device.talks(&[
        (
            "set an alarm for seven a m on friday",
            "alarm set for seven o clock in the morning on friday",
        ),
        (
            "set an alarm for seven a m on monday",
            "alarm set for seven o clock in the morning on monday",
        ),
        (
            "cancel the seven a m alarm",
            "which one, the one for seven o clock in the morning on monday or the one for seven o clock in the morning on \
             friday, or all of them",
        ),
        ("the one for seven on friday", "alarm cancelled"),
        (
            "what alarms do i have",
            "there is an alarm for seven o clock in the morning on monday",
        ),
        (
            "set an alarm for seven a m on friday",
            "alarm set for seven o clock in the morning on friday",
        ),
        ("cancel the alarm on wednesday", "there is no alarm on wednesday"),
        ("cancel the alarm tomorrow", "there is no alarm tomorrow"),
        ("cancel the alarm on monday", "alarm cancelled"),
        (
            "set an alarm for eight a m on monday",
            "alarm set for eight o clock in the morning on monday",
        ),
        (
            "move the alarm to nine",
            "which one, the one for eight o clock in the morning on monday or the one for seven o clock in the morning on \
             friday",
        ),
        ("the one on monday", "alarm set for nine o clock in the morning on monday"),
        (
            "move the alarm on friday to eight",
            "alarm set for eight o clock in the morning on friday",
        ),
        (
            "move the alarm for nine on monday to ten",
            "alarm set for ten o clock in the morning on monday",
        ),
        (
            "change my alarm",
            "which one, the one for ten o clock in the morning on monday or the one for eight o clock in the morning on \
             friday",
        ),
        ("the second one", "what time should i move the alarm to"),
        ("eleven", "alarm set for eleven o clock in the morning on friday"),
        (
            "cancel the alarm",
            "which one, the one for ten o clock in the morning on monday or the one for eleven o clock in the morning on \
             friday, or all of them",
        ),
        ("the first one", "alarm cancelled"),
        ("cancel my friday alarm", "alarm cancelled"),
    ]);
}

#[test]
fn an_alarm_that_is_moved_keeps_its_day_and_its_half() {
    for (set, moved, answer) in [
        (
            "set an alarm for seven on friday",
            "move the alarm to eight",
            "alarm set for eight o clock in the morning on friday",
        ),
        (
            "set an alarm for seven p m on friday",
            "move the alarm to eight",
            "alarm set for eight o clock in the evening on friday",
        ),
        (
            "set an alarm for seven on friday",
            "move the alarm to eight p m",
            "alarm set for eight o clock in the evening on friday",
        ),
        (
            "set an alarm for seven p m on friday",
            "move the alarm to eight on monday",
            "alarm set for eight o clock in the evening on monday",
        ),
        (
            "set an alarm for seven tomorrow",
            "move the alarm to eleven",
            "alarm set for eleven o clock in the morning tomorrow",
        ),
        (
            "set an alarm for eleven a m on monday",
            "move the alarm to one",
            "alarm set for one o clock in the afternoon on monday",
        ),
        // Nine this morning is past.
        (
            "set an alarm for eleven a m",
            "move the alarm to nine",
            "alarm set for nine o clock in the morning",
        ),
    ] {
        let mut device = Device::new();
        device.says(set);
        assert_eq!(device.says(moved), answer, "{set}, {moved}");
    }
}

#[test]
fn stopping_what_rings_leaves_the_alarms_to_come() {
    let mut device = Device::new();
    device.talks(&[
        ("wake me at ten forty", "alarm set for ten forty in the morning"),
        ("wake me at ten fifty", "alarm set for ten fifty in the morning"),
    ]);
    device.now = NOW + Duration::from_secs(300);
    assert!(device.state.ring(device.now).is_some());
    device.talks(&[
        ("turn off the alarm", "alarm cancelled"),
        (
            "what alarms do i have",
            "there is an alarm for ten fifty in the morning",
        ),
        ("stop", "okay"),
        (
            "what alarms do i have",
            "there is an alarm for ten fifty in the morning",
        ),
    ]);
    device.now = NOW + Duration::from_secs(900);
    device.talks(&[("set a timer", "how long should the timer run")]);
    assert!(device.state.ring(device.now).is_some());
    device.talks(&[("no", "okay, i changed nothing")]);
    assert!(device.state.is_ringing(device.now));
}

#[test]
fn a_missed_alarm_is_told_to_the_first_who_speaks_and_thanked_for_only_then() {
    let mut device = Device::new();
    device.talks(&[("wake me at ten forty", "alarm set for ten forty in the morning")]);
    device.now = NOW + Duration::from_secs(300);
    while device.state.ring(device.now).is_some() {
        device.now = device.now + crate::RING_EVERY;
    }
    // Somebody comes home between two slow rings, and thanks another person.
    device.now = device.now + Duration::from_secs(180);
    device.talks(&[(
        "thanks",
        "sorry, i did not understand that, and you have a missed alarm for ten forty in the morning",
    )]);
    assert_eq!(device.state.alarms.len(), 1);
    device.talks(&[
        ("what day is it", "today is saturday november twenty first"),
        ("thanks", "okay"),
        ("what alarms do i have", "there is no alarm"),
    ]);
}

#[test]
fn the_alarm_and_my_timer_are_those_that_exist() {
    let mut device = Device::new();
    device.talks(&[
        ("my alarm at seven", "there is no alarm"),
        ("my timer for ten minutes", "there is no timer for ten minutes"),
        ("set a timer for ten minutes", "timer set for ten minutes"),
        ("my timer for ten minutes", "ten minutes left"),
        ("wake me at seven a m", "alarm set for seven o clock in the morning"),
        (
            "the alarm for seven",
            "there is an alarm for seven o clock in the morning tomorrow",
        ),
        ("set a ten minute five timer", "how long should the timer run"),
    ]);
}

#[test]
fn more_time_silences_what_rings_for_so_long() {
    for text in [
        "ten more minutes",
        "another ten minutes",
        "just ten minutes more please",
    ] {
        let mut device = Device::new();
        device.says("set a timer for five minutes");
        device.now = NOW + Duration::from_secs(300);
        assert!(device.state.ring(device.now).is_some());
        device.talks(&[
            (text, "okay, i ring again in ten minutes"),
            ("how much time is left", "ten minutes left"),
        ]);
        assert!(!device.state.is_ringing(device.now), "{text}");
    }
}

#[test]
fn a_snoozed_alarm_is_listed_and_cancelled_by_the_time_at_which_it_rings() {
    let mut device = Device::new();
    device.says("wake me at ten forty");
    device.now = NOW + Duration::from_secs(300);
    assert!(device.state.ring(device.now).is_some());
    device.talks(&[
        (
            "what alarms do i have",
            "there is an alarm for ten forty in the morning, which rings",
        ),
        ("snooze", "okay, i ring again in ten minutes"),
        (
            "what alarms do i have",
            "there is an alarm for ten fifty in the morning",
        ),
        ("cancel the alarm for ten fifty", "alarm cancelled"),
    ]);
}

#[test]
fn an_okay_is_for_the_ring_that_came_after_the_question() {
    let doubtful = (
        "turn the kitchen lights of the on",
        "did you say turn on the kitchen lights",
    );
    let mut device = Device::new();
    device.talks(&[
        ("wake me at ten forty", "alarm set for ten forty in the morning"),
        doubtful,
    ]);
    device.now = NOW + Duration::from_secs(300);
    device.state.question.as_mut().unwrap().asked_at = NOW + Duration::from_secs(290);
    assert!(device.state.ring(device.now).is_some());
    device.talks(&[("okay", "okay"), ("what alarms do i have", "there is no alarm")]);
    assert!(device.state.lights.is_empty());

    // The question is newer than the ring.
    device.talks(&[("wake me at ten fifty", "alarm set for ten fifty in the morning")]);
    device.now = NOW + Duration::from_secs(900);
    assert!(device.state.ring(device.now).is_some());
    device.now = device.now + Duration::from_secs(5);
    device.talks(&[doubtful, ("okay", "the kitchen lights are on")]);
    assert!(device.state.is_ringing(device.now));
}

#[test]
fn an_alarm_waits_for_the_next_morning_across_the_end_of_summer_time() {
    // 24 October 2026, 22:00 in London. The clocks go back that night, so "seven a m" is ten hours away, not nine.
    let mut device = Device::new();
    device.now = Moment(1_792_875_600_000);
    device.says("set an alarm for seven a m");
    let wait = device.state.next_ring().map(|moment| moment.since(device.now));
    assert_eq!(wait, Some(Duration::from_secs(10 * 3600)));
}

#[test]
fn an_answer_means_only_the_alarms_that_the_question_listed() {
    let sevens =
        "which one, the one for seven o clock in the evening or the one for seven o clock in the evening tomorrow";
    let set = [
        (
            "set an alarm for seven tomorrow evening",
            "alarm set for seven o clock in the evening tomorrow",
        ),
        ("set an alarm for nine a m", "alarm set for nine o clock in the morning"),
        ("set an alarm for seven", "alarm set for seven o clock in the evening"),
    ];
    let left = |device: &mut Device| device.says("what alarms do i have");
    for (answer, reply, stays) in [
        (
            "all of them",
            "two alarms cancelled",
            "there is an alarm for nine o clock in the morning tomorrow",
        ),
        (
            "the second one",
            "alarm cancelled",
            "there are two alarms, for seven o clock in the evening and for nine o clock in the morning tomorrow",
        ),
        (
            "the first one",
            "alarm cancelled",
            "there are two alarms, for nine o clock in the morning tomorrow and for seven o clock in the evening tomorrow",
        ),
        (
            "the last one",
            "alarm cancelled",
            "there are two alarms, for seven o clock in the evening and for nine o clock in the morning tomorrow",
        ),
        (
            "the one for nine",
            "there is no such alarm",
            "there are three alarms, for seven o clock in the evening, for nine o clock in the morning tomorrow and for seven \
             o clock in the evening tomorrow",
        ),
    ] {
        let mut device = Device::new();
        device.talks(&set);
        device.talks(&[("cancel the seven alarm", &format!("{sevens}, or all of them"))]);
        // The question moves with the memory to another region.
        let json = serde_json::to_string(&device.state).unwrap();
        device.state = serde_json::from_str(&json).unwrap();
        device.talks(&[(answer, reply)]);
        assert_eq!(left(&mut device), stays, "{answer}");
    }
    let mut device = Device::new();
    device.talks(&set);
    device.talks(&[
        ("move my alarm from seven to eight", sevens),
        ("the second one", "alarm set for eight o clock in the evening tomorrow"),
        (
            "set an alarm for seven tomorrow evening",
            "alarm set for seven o clock in the evening tomorrow",
        ),
        ("change my seven alarm", sevens),
        ("the second one", "what time should i move the alarm to"),
        ("six", "alarm set for six o clock in the evening tomorrow"),
    ]);
}

#[test]
fn an_answer_means_no_alarm_that_came_to_the_place_of_another() {
    let mut device = Device::new();
    device.talks(&[
        ("wake me at ten forty", "alarm set for ten forty in the morning"),
        ("wake me at eleven", "alarm set for eleven o clock in the morning"),
        ("wake me at noon", "alarm set for twelve o clock in the afternoon"),
    ]);
    assert!(
        device
            .says("cancel the alarm")
            .starts_with("which one, the one for ten forty")
    );
    // The first rings and is acknowledged on the device, without a word.
    device.now = NOW + Duration::from_secs(300);
    device.state.question.as_mut().unwrap().asked_at = device.now;
    assert!(device.state.ring(device.now).is_some());
    assert_eq!(device.state.acknowledge(), 1);
    device.talks(&[
        ("the second one", "alarm cancelled"),
        (
            "what alarms do i have",
            "there is an alarm for twelve o clock in the afternoon",
        ),
    ]);
}

#[test]
fn a_question_of_the_release_before_is_answered_in_its_own_order() {
    let asked = |about: &str| {
        let mut device = Device::new();
        device.talks(&[
            ("wake me at noon", "alarm set for twelve o clock in the afternoon"),
            ("wake me at eleven", "alarm set for eleven o clock in the morning"),
        ]);
        let mut json = serde_json::to_value(&device.state).unwrap();
        json["question"] = serde_json::json!({ "asked_at": NOW.0, "about": serde_json::from_str::<serde_json::Value>(about).unwrap() });
        device.state = serde_json::from_value(json).unwrap();
        device
    };
    let mut device = asked(r#"{"kind":"which_alarm"}"#);
    device.talks(&[
        ("the second one", "alarm cancelled"),
        (
            "what alarms do i have",
            "there is an alarm for twelve o clock in the afternoon",
        ),
    ]);
    // It may have listed fewer, so nothing is cancelled before the user has heard the list.
    let mut device = asked(r#"{"kind":"which_alarm"}"#);
    device.talks(&[
        (
            "all of them",
            "which one, the one for eleven o clock in the morning or the one for twelve o clock in the afternoon, or all of \
             them",
        ),
        ("all of them", "all alarms cancelled"),
    ]);
    let mut device = asked(r#"{"kind":"alarm_move","which":{"nth":1}}"#);
    device.talks(&[("ten fifty a m", "alarm set for ten fifty in the morning")]);
    assert_eq!(device.state.alarms[0].hour, 12);
}

#[test]
fn noon_is_twelve_o_clock() {
    let mut device = Device::new();
    device.talks(&[
        ("cancel my noon alarm", "there is no alarm for noon"),
        ("cancel the alarm for midnight", "there is no alarm for midnight"),
        ("wake me at twelve", "alarm set for twelve o clock in the afternoon"),
        ("cancel my noon alarm", "alarm cancelled"),
        ("wake me at noon", "alarm set for twelve o clock in the afternoon"),
        (
            "wake me at twelve thirty",
            "alarm set for twelve thirty in the afternoon",
        ),
        (
            "move my noon alarm to one",
            "alarm set for one o clock in the afternoon",
        ),
    ]);
}
