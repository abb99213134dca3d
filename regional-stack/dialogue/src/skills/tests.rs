mod alarms;
mod questions;

use super::*;
use crate::{PENDING_MAX, Zone, command::City, understand};

/// Saturday 21 November 2026, 10:35 in London.
const NOW: Moment = Moment(1_795_257_300_000);

struct Device {
    state: DialogueState,
    now: Moment,
}

impl Device {
    fn new() -> Self {
        Self {
            state: DialogueState::new(City::London),
            now: NOW,
        }
    }

    fn says(&mut self, text: &str) -> String {
        let heard = understand(&self.state, text, None, self.now);
        act(&mut self.state, &heard, self.now).text
    }

    /// Says several things in turn, and checks each reply.
    fn talks(&mut self, turns: &[(&str, &str)]) {
        for (text, answer) in turns {
            assert_eq!(self.says(text), *answer, "{text}");
        }
    }
}

#[test]
fn each_request_gets_its_spoken_answer() {
    for (request, answer) in [
        ("what time is it", "it is ten thirty five"),
        ("what time is it in tokyo", "it is seven thirty five in tokyo"),
        ("what time is it in mumbai", "it is four oh five in mumbai"),
        ("what time is it in dubai", "i do not know the time in dubai"),
        ("what day is it today", "today is saturday november twenty first"),
        (
            "what is the weather in paris",
            "as of november twenty first, it is eight degrees and cloudy in paris",
        ),
        ("what is the weather in cairo", "i do not know the weather in cairo"),
        (
            "what is the weather tomorrow in chicago",
            "as of november twenty first, tomorrow it will be minus one degree and snowy in chicago",
        ),
        (
            "what is the weather on friday in paris",
            "i do not know the weather on friday in paris, as of november twenty first it was eight degrees and cloudy there",
        ),
        (
            "what is the weather on sunday in paris",
            "as of november twenty first, on sunday it will be seven degrees and rainy in paris",
        ),
        (
            "will it rain tomorrow in paris",
            "yes, as of november twenty first, there will be rain tomorrow in paris",
        ),
        (
            "will it rain",
            "no, as of november twenty first, there will be no rain today in london",
        ),
        (
            "will it snow tomorrow in chicago",
            "yes, as of november twenty first, there will be snow tomorrow in chicago",
        ),
        ("turn on the kitchen lights", "the kitchen lights are on"),
        (
            "turn on the lights in the kitchen and the bedroom",
            "the kitchen and bedroom lights are on",
        ),
        ("turn off all the lights", "the lights are off"),
        (
            "do not turn on the kitchen light",
            "okay, i leave the kitchen lights as they are",
        ),
        (
            "dim the living room lights to thirty percent",
            "living room lights dimmed to thirty percent",
        ),
        ("is the kitchen light on", "i have not switched the kitchen lights yet"),
        ("are any lights on", "no lights are on that i have switched"),
        ("set an alarm for six a m", "alarm set for six o clock in the morning"),
        ("wake me at ten forty", "alarm set for ten forty in the morning"),
        ("wake me at ten thirty", "alarm set for ten thirty at night"),
        ("wake me at twenty to six", "alarm set for five forty in the afternoon"),
        ("wake me in ten minutes", "alarm set for ten forty five in the morning"),
        (
            "set an alarm for seven tomorrow",
            "alarm set for seven o clock in the morning tomorrow",
        ),
        (
            "wake me at twelve tomorrow",
            "alarm set for twelve o clock in the afternoon tomorrow",
        ),
        (
            "wake me at seven on friday",
            "alarm set for seven o clock in the morning on friday",
        ),
        (
            "wake me up tomorrow evening at eight",
            "alarm set for eight o clock in the evening tomorrow",
        ),
        ("wake me at twelve tonight", "alarm set for twelve o clock at night"),
        ("wake me at one tonight", "alarm set for one o clock in the morning"),
        ("wake me at two tonight", "alarm set for two o clock in the morning"),
        (
            "wake me tonight at two thirty",
            "alarm set for two thirty in the morning",
        ),
        ("wake me at eight tonight", "alarm set for eight o clock in the evening"),
        ("wake me at five tonight", "alarm set for five o clock in the afternoon"),
        (
            "wake me at twelve tomorrow night",
            "alarm set for twelve o clock at night the day after tomorrow",
        ),
        (
            "wake me at one on friday night",
            "alarm set for one o clock in the morning on saturday",
        ),
        (
            "wake me at nine tomorrow night",
            "alarm set for nine o clock in the evening tomorrow",
        ),
        ("wake me today at nine a m", "it is already later than nine a m"),
        ("cancel the timer", "there is no timer"),
        ("cancel the pasta timer", "there is no pasta timer"),
        ("set a timer", "how long should the timer run"),
        (
            "set a timer for twenty five hours",
            "a timer can run for one day at most, how long should the timer run",
        ),
        ("snooze", "nothing is ringing"),
        (
            "help",
            "you can ask for the time, timers, alarms, the weather and the lights",
        ),
        ("sing me a song", "sorry, i did not understand that"),
    ] {
        assert_eq!(Device::new().says(request), answer, "{request}");
    }
}

#[test]
fn the_weather_says_how_old_it_is_and_knows_no_later_day() {
    let mut device = Device::new();
    device.now = NOW + Duration::from_secs(24 * 3600);
    assert_eq!(
        device.says("what is the weather in paris"),
        "as of november twenty first, it is seven degrees and rainy in paris"
    );
    device.now = NOW + Duration::from_secs(400 * 24 * 3600);
    assert_eq!(
        device.says("will it rain in paris"),
        "i do not know the weather today in paris, as of november twenty first two thousand twenty six it was eight \
         degrees and cloudy there"
    );
}

#[test]
fn a_timer_runs_is_asked_about_and_rings_until_it_is_stopped() {
    let mut device = Device::new();
    assert_eq!(device.says("set a timer for ten minutes"), "timer set for ten minutes");
    device.now = NOW + Duration::from_secs(90);
    assert_eq!(
        device.says("how much time is left"),
        "eight minutes and thirty seconds left"
    );
    assert_eq!(device.state.ring(device.now), None);

    let end = NOW + Duration::from_secs(600);
    assert_eq!(device.state.next_ring(), Some(end));
    assert_eq!(
        device.state.ring(end).map(|reply| reply.text).as_deref(),
        Some("your timer for ten minutes is done")
    );
    device.now = end;
    device.talks(&[
        ("how much time is left", "the timer is done"),
        ("snooze for five minutes", "okay, i ring again in five minutes"),
        ("how much time is left", "five minutes left"),
    ]);
    device.now = end + Duration::from_secs(300);
    assert!(device.state.ring(device.now).is_some());
    // These words acknowledge rings only.
    device.talks(&[
        ("turn it off", "okay"),
        ("how much time is left", "there is no timer"),
        ("turn it off", "sorry, i did not understand that"),
    ]);
}

#[test]
fn timers_have_names_and_can_be_told_apart() {
    let mut device = Device::new();
    device.talks(&[
        ("set a pasta timer for ten minutes", "pasta timer set for ten minutes"),
        ("set a timer for five minutes for the eggs", "eggs timer set for five minutes"),
        ("set a timer for one hour", "timer set for one hour"),
        ("how much time is left on the pasta timer", "ten minutes left"),
        ("add five minutes to the pasta timer", "timer extended, fifteen minutes left"),
        (
            "what timers do i have",
            "five minutes left on the eggs timer, fifteen minutes left on the pasta timer and one hour left on the timer \
             for one hour",
        ),
        (
            "cancel the timer",
            "which one, the eggs timer, the pasta timer or the timer for one hour, or all of them",
        ),
        ("the pasta timer", "pasta timer cancelled"),
        ("cancel the one hour timer", "timer cancelled"),
        ("cancel the pasta timer", "there is no pasta timer"),
        ("add two minutes to the timer", "timer extended, seven minutes left"),
        ("cancel all timers", "timer cancelled"),
        ("add five minutes to the timer", "there is no timer"),
    ]);
}

#[test]
fn a_timer_is_changed_and_shortened() {
    let mut device = Device::new();
    device.talks(&[
        ("change the timer to five minutes", "there is no timer"),
        ("take two minutes off the timer", "there is no timer"),
        ("make the tea timer ten minutes", "there is no tea timer"),
        ("set a timer for ten minutes", "timer set for ten minutes"),
        ("don't change the timer", "okay, i changed nothing"),
        ("don't take two minutes off the timer", "okay, i changed nothing"),
        ("take two minutes off the timer", "timer shortened, eight minutes left"),
        ("change the timer to five minutes", "timer changed, five minutes left"),
        (
            "take five minutes off the timer",
            "there are only five minutes left on the timer for five minutes, so i changed nothing",
        ),
        (
            "take an hour off the timer",
            "there are only five minutes left on the timer for five minutes, so i changed nothing",
        ),
        ("how much time is left", "five minutes left"),
        ("change the timer", "how long should the timer run"),
        ("twenty", "timer changed, twenty minutes left"),
        ("change the timer to five pizzas", "how long should the timer run"),
        ("to six minutes", "timer changed, six minutes left"),
        ("change the timer to five", "how long should the timer run"),
        ("no", "okay"),
        (
            "change the timer to twenty five hours",
            "a timer can run for one day at most, how long should the timer run",
        ),
        ("never mind", "okay"),
        ("how much time is left", "six minutes left"),
    ]);
    assert_eq!(device.state.timers.len(), 1);
    device.now = NOW + Duration::from_secs(360);
    assert!(device.state.ring(device.now).is_some());
    device.talks(&[
        ("take one minute off the timer", "the timer for six minutes is done"),
        ("change the timer to two minutes", "timer changed, two minutes left"),
    ]);
    assert_eq!(device.state.next_ring(), Some(device.now + Duration::from_secs(120)));
}

#[test]
fn of_several_timers_the_assistant_asks_which_one_to_change() {
    let mut device = Device::new();
    device.talks(&[
        ("set a tea timer for four minutes", "tea timer set for four minutes"),
        ("set a timer for one hour", "timer set for one hour"),
        ("set a timer for one hour", "timer set for one hour"),
        (
            "change the timer to five minutes",
            "which one, the tea timer, the timer for one hour or the timer for one hour",
        ),
        ("the tea timer", "timer changed, five minutes left"),
        ("make the tea timer ten minutes", "timer changed, ten minutes left"),
        ("make the tea timer two minutes shorter", "timer shortened, eight minutes left"),
        ("make the tea timer two minutes longer", "timer extended, ten minutes left"),
        (
            "change the one hour timer to thirty minutes",
            "which one, the timer for one hour or the timer for one hour",
        ),
        ("the last one", "timer changed, thirty minutes left"),
        (
            "take two minutes off the timer",
            "which one, the tea timer, the timer for thirty minutes or the timer for one hour, or all of them",
        ),
        ("all of them", "timers shortened by two minutes"),
        (
            "take twenty minutes off the timer",
            "which one, the tea timer, the timer for twenty eight minutes or the timer for fifty eight minutes, or all of \
             them",
        ),
        ("both", "there are only eight minutes left on the tea timer, so i changed nothing"),
        ("change the timer", "which one, the tea timer, the timer for twenty eight minutes or the timer for fifty eight minutes"),
        ("the second one", "how long should the timer run"),
        ("an hour", "timer changed, one hour left"),
        (
            "what timers do i have",
            "eight minutes left on the tea timer, fifty eight minutes left on the timer for fifty eight minutes and one hour left \
             on the timer for one hour",
        ),
    ]);
}

#[test]
fn a_reply_says_whether_anything_was_done() {
    for (request, acted) in [
        ("set a timer for ten minutes", true),
        ("turn on the kitchen light", true),
        ("set a timer for twenty five hours", false),
        ("set a timer", false),
        ("change the timer to ten minutes", false),
        ("cancel the timer", false),
        ("cancel all alarms", false),
        ("move the alarm to eight", false),
        ("wake me today at nine a m", false),
        ("snooze", false),
        ("stop", false),
        ("don't turn on the kitchen light", false),
        ("turn the kitchen lights of the on", false),
        ("what time is it", false),
        ("sing me a song", false),
    ] {
        let mut state = DialogueState::new(City::London);
        let heard = understand(&state, request, None, NOW);
        assert_eq!(act(&mut state, &heard, NOW).acted, acted, "{request}");
    }
}

#[test]
fn the_time_is_that_of_the_devices_own_zone() {
    let mut device = Device::new();
    device.state.zone = Some(Zone::parse("America/New_York").unwrap());
    device.talks(&[
        ("what time is it", "it is five thirty five"),
        ("what time is it in london", "it is ten thirty five in london"),
        ("wake me at six a m", "alarm set for six o clock in the morning"),
    ]);
    let wait = device.state.next_ring().map(|moment| moment.since(NOW));
    assert_eq!(wait, Some(Duration::from_secs(25 * 60)));
}

#[test]
fn a_device_can_not_fill_the_memory_with_timers() {
    let mut device = Device::new();
    for _ in 0..2 * PENDING_MAX {
        device.says("set a timer for ten minutes");
    }
    assert_eq!(device.state.timers.len(), PENDING_MAX);
    assert_eq!(device.says("cancel all the timers"), "all timers cancelled");
}

#[test]
fn the_memory_travels_as_json() {
    let mut device = Device::new();
    device.says("set a timer for ten minutes");
    device.says("wake me at seven thirty");
    device.says("dim the office lights to ten percent");
    device.says("set a timer");
    let json = serde_json::to_string(&device.state).unwrap();
    assert_eq!(serde_json::from_str::<DialogueState>(&json).unwrap(), device.state);
}

#[test]
fn every_city_has_a_time_zone_without_the_systems_database() {
    for &city in City::ALL {
        assert!(jiff::tz::TimeZone::get(city.zone()).is_ok(), "{}", city.zone());
    }
}

#[test]
fn every_reply_can_be_spoken() {
    let mut device = Device::new();
    for request in [
        "what time is it in rome",
        "what day is it",
        "weather in seattle",
        "set a timer for ninety minutes",
        "set a 5 minute egg timer",
        "what timers do i have",
        "is the light in the hall on",
        "what is the weather in São Paulo",
    ] {
        let reply = device.says(request);
        assert!(
            reply
                .chars()
                .all(|letter| letter.is_ascii_lowercase() || " ,'".contains(letter)),
            "{reply}"
        );
    }
}
