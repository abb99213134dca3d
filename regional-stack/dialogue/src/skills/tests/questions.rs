use super::*;

#[test]
fn the_answer_to_its_own_question_is_understood() {
    for (asked, answers) in [
        (
            ("set an alarm", "what time should i set the alarm for"),
            &[
                ("seven thirty", "alarm set for seven thirty in the evening"),
                ("six", "alarm set for six o clock in the evening"),
                ("at seven thirty", "alarm set for seven thirty in the evening"),
                ("at six a m please", "alarm set for six o clock in the morning"),
                (
                    "make it eight tomorrow",
                    "alarm set for eight o clock in the morning tomorrow",
                ),
                ("in ten minutes", "alarm set for ten forty five in the morning"),
                ("about ten", "alarm set for ten o clock at night"),
                ("at around six a m", "alarm set for six o clock in the morning"),
                ("never mind", "okay"),
                ("what time is it", "it is ten thirty five"),
            ][..],
        ),
        (
            ("wake me up tomorrow evening", "what time should i set the alarm for"),
            &[("eight", "alarm set for eight o clock in the evening tomorrow")],
        ),
        (
            ("wake me up tonight", "what time should i set the alarm for"),
            &[
                ("one", "alarm set for one o clock in the morning"),
                ("ten", "alarm set for ten o clock at night"),
            ],
        ),
        (
            ("set a pasta timer", "how long should the timer run"),
            &[
                ("ten minutes", "pasta timer set for ten minutes"),
                ("for half an hour", "pasta timer set for thirty minutes"),
                ("ten", "pasta timer set for ten minutes"),
                ("no", "okay"),
            ],
        ),
        (
            ("set a timer for ten", "how long should the timer run"),
            &[("ten minutes", "timer set for ten minutes")],
        ),
        (
            ("wake me at seven and a half", "what time should i set the alarm for"),
            &[("half past seven", "alarm set for seven thirty in the evening")],
        ),
        (
            (
                "turn the kitchen lights of the on",
                "did you say turn on the kitchen lights",
            ),
            &[
                ("yes", "the kitchen lights are on"),
                ("no", "okay"),
                ("turn off the bedroom light", "the bedroom lights are off"),
            ],
        ),
    ] {
        for answer in answers {
            let mut device = Device::new();
            device.talks(&[asked, *answer]);
            assert_eq!(device.state.question, None);
        }
    }
}

#[test]
fn half_an_answer_is_kept_and_the_rest_asked_for() {
    let mut device = Device::new();
    let asked = "what time should i set the alarm for";
    device.talks(&[
        ("set an alarm", asked),
        ("tomorrow morning", asked),
        ("about ten", "alarm set for ten o clock in the morning tomorrow"),
        ("set an alarm", asked),
        ("on friday", asked),
        ("in the evening", "sorry, i did not understand that"),
        ("set an alarm", asked),
        ("on friday evening", asked),
        ("eight", "alarm set for eight o clock in the evening on friday"),
    ]);
}

#[test]
fn a_question_waits_for_one_turn_and_not_for_ever() {
    let mut device = Device::new();
    device.talks(&[
        ("set an alarm", "what time should i set the alarm for"),
        ("what day is it", "today is saturday november twenty first"),
        ("seven thirty", "sorry, i did not understand that"),
        ("set an alarm", "what time should i set the alarm for"),
    ]);
    // The question moves with the memory to another region.
    let json = serde_json::to_string(&device.state).unwrap();
    device.state = serde_json::from_str(&json).unwrap();
    device.talks(&[
        ("seven thirty", "alarm set for seven thirty in the evening"),
        ("set an alarm", "what time should i set the alarm for"),
    ]);
    device.now = NOW + Duration::from_secs(600);
    device.talks(&[("six", "sorry, i did not understand that")]);
}

#[test]
fn noise_is_not_answered_and_leaves_the_question_open() {
    let mut device = Device::new();
    let mut hears = |text: &str, asr_confidence: f32| {
        let heard = understand(&device.state, text, Some(asr_confidence), NOW);
        act(&mut device.state, &heard, NOW).text
    };
    assert_eq!(hears("turn off the lights", 0.55), "");
    assert_eq!(hears("on the lineno", 0.4), "");
    assert_eq!(hears("turn off the lights", f32::NAN), "");
    assert_eq!(hears("set an alarm", 0.95), "what time should i set the alarm for");
    assert_eq!(hears("lineno eliminating", 0.5), "");
    assert_eq!(hears("seven thirty", 0.9), "alarm set for seven thirty in the evening");
    assert_eq!(hears("sing me a song", 0.95), "sorry, i did not understand that");
    assert_eq!(hears("no", 0.95), "");
    // Every remainder of a "not" or a "no" that the recognizer may leave.
    for (text, asked) in [
        (
            "the turn off the office light",
            "did you say turn off the office lights",
        ),
        ("lights on the", "did you say turn on the lights"),
        ("off the kitchen light", "did you say turn off the kitchen lights"),
        (
            "wake me at seven tomorrow now",
            "did you say set an alarm for seven o clock tomorrow",
        ),
    ] {
        assert_eq!(hears(text, 0.92), asked);
        assert_eq!(hears("no", 0.95), "okay");
    }
    assert_eq!(hears("stop", 0.7), "");
    assert_eq!(hears("stop", 0.9), "okay");
    assert_eq!(
        hears("is the kitchen light on", 0.7),
        "i have not switched the kitchen lights yet"
    );
    assert!(device.state.lights.is_empty());
}

#[test]
fn an_exception_is_refused_and_its_opposite_is_not_offered() {
    let rooms = "sorry, i can not make exceptions, please name the rooms that you mean";
    for text in [
        "turn off all of the lights other than the kitchen",
        "turn on the lights save the kitchen",
        "turn off the lights bar the hall",
        "turn off the lights but not the kitchen",
        "turn off the lights except the kitchen",
        "apart from the hall turn off the lights",
    ] {
        let mut device = Device::new();
        device.talks(&[(text, rooms), ("yes", "sorry, i did not understand that")]);
        assert!(device.state.lights.is_empty(), "{text}");
    }
    let mut device = Device::new();
    device.talks(&[
        (
            "cancel all alarms excluding the one at seven",
            "sorry, i can not make exceptions, please say only what you want",
        ),
        (
            "no lights on",
            "sorry, i only understood turn on the lights, please say all of it again",
        ),
        (
            "forget timer for ten minutes",
            "sorry, i only understood set a timer for ten minutes, please say all of it again",
        ),
    ]);
}

#[test]
fn a_reminder_not_to_forget_is_a_request() {
    let mut device = Device::new();
    device.talks(&[
        (
            "don't forget to turn on the kitchen lights",
            "did you say turn on the kitchen lights",
        ),
        ("yes", "the kitchen lights are on"),
        (
            "please do not forget to wake me at seven",
            "did you say set an alarm for seven o clock",
        ),
        ("no", "okay"),
    ]);
}

#[test]
fn what_can_not_be_undone_is_said() {
    let mut device = Device::new();
    device.talks(&[
        ("cancel that", "okay"),
        ("turn off the lights", "the lights are off"),
        (
            "cancel that",
            "i can not undo that, you asked me to turn off the lights",
        ),
        ("turn off the lights", "the lights are off"),
        ("what day is it", "today is saturday november twenty first"),
        ("cancel that", "okay"),
        ("wake me at ten forty", "alarm set for ten forty in the morning"),
    ]);
    device.now = NOW + Duration::from_secs(300);
    assert!(device.state.ring(device.now).is_some());
    device.talks(&[("cancel that", "okay"), ("what alarms do i have", "there is no alarm")]);
}

#[test]
fn what_it_asks_back_it_understands_itself() {
    for text in [
        "turn on the kitchen and bedroom lights",
        "turn off the lights",
        "dim the office lights to ten percent",
        "are the kitchen lights on",
        "set a pasta timer for ninety minutes",
        "set a timer for one hour and one second",
        "cancel the pasta timer",
        "cancel all timers",
        "cancel the ten minute timer",
        "add five minutes to the pasta timer",
        "how much time is left",
        "set an alarm for seven oh five p m on friday",
        "set an alarm for seven",
        "wake me in two hours",
        "what alarms do i have",
        "cancel the alarm for six thirty a m",
        "cancel all alarms",
        "move the six a m alarm to seven thirty p m tomorrow",
        "move the alarm to nineteen thirty",
        "move the alarm on friday to seven",
        "cancel the alarm on friday",
        "cancel the alarm for seven on friday",
        "snooze for five minutes",
        "snooze",
        "what time is it in new york",
        "what day is it",
        "will it rain in paris tomorrow",
        "will it snow on friday",
        "what is the weather in london",
        "stop",
        "cancel that",
        "help",
    ] {
        let command = crate::interpret(text).command;
        let phrase = command.phrase().unwrap_or_default();
        assert_eq!(crate::interpret(&phrase).command, command, "{text}: {phrase}");
    }
}

#[test]
fn a_duration_alone_sets_a_timer_only_as_an_answer() {
    let mut device = Device::new();
    device.talks(&[
        ("five minutes", "do you want me to set a timer for five minutes"),
        ("no", "okay"),
        ("what timers do i have", "there is no timer"),
        ("five minutes", "do you want me to set a timer for five minutes"),
        ("yes", "timer set for five minutes"),
        ("cancel the timer", "timer cancelled"),
        ("set a timer", "how long should the timer run"),
    ]);
    // The question was left long ago.
    device.now = NOW + Duration::from_secs(600);
    device.talks(&[
        ("five minutes", "do you want me to set a timer for five minutes"),
        ("what timers do i have", "there is no timer"),
        ("set a timer", "how long should the timer run"),
        ("five minutes", "timer set for five minutes"),
    ]);
}

#[test]
fn the_unit_alone_answers_a_number_without_one() {
    for (asked, unit, answer) in [
        ("set a timer for ten", "minutes", "timer set for ten minutes"),
        (
            "set a timer for twenty five",
            "seconds please",
            "timer set for twenty five seconds",
        ),
        (
            "set a pasta timer for ten",
            "minutes",
            "pasta timer set for ten minutes",
        ),
        ("set a timer for ten", "five minutes", "timer set for five minutes"),
        ("set a timer for two", "hours", "timer set for two hours"),
        ("set a timer", "minutes", "sorry, i did not understand that"),
    ] {
        let mut device = Device::new();
        device.talks(&[(asked, "how long should the timer run"), (unit, answer)]);
    }
}

#[test]
fn lights_at_another_time_are_refused_by_name() {
    let refused = "sorry, i can only switch the lights at once, please say it again without a time";
    for text in [
        "turn on the kitchen light at seven",
        "turn on the kitchen light at seven thirty",
        "turn off the lights in ten minutes",
        "turn on the kitchen lights tomorrow",
        "dim the lights at nine p m",
    ] {
        let mut device = Device::new();
        device.talks(&[(text, refused), ("yes", "sorry, i did not understand that")]);
        assert!(device.state.lights.is_empty(), "{text}");
    }
}
