//! What is done about a command, and what is said. Replies are lower-case words only, because that is all the synthesizer
//! can say: numbers are spelled.

use std::time::Duration;

use jiff::{Timestamp, ToSpan, Zoned, tz::TimeZone};
use topology::Moment;

use crate::{
    command::{self, City, ClockTime, Command, Day, Room, WeatherAspect},
    interpret::Interpretation,
    numbers,
    state::{Alarm, DialogueState, PENDING_MAX, Timer},
    weather,
};

/// What the assistant answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Lower-case words separated by single spaces.
    pub text: String,
}

/// Carries out `heard` for a device and answers it.
pub fn act(state: &mut DialogueState, heard: &Interpretation, now: Moment) -> Reply {
    let text = match &heard.command {
        Command::TimeQuery { city } => tell_time(*city, state.home, now),
        Command::DateQuery => tell_date(state.home, now),
        Command::TimerSet { duration_s: None } => "how long should the timer run".to_owned(),
        Command::TimerSet {
            duration_s: Some(duration_s),
        } => set_timer(state, *duration_s, now),
        Command::TimerCancel => cancel_timers(state),
        Command::TimerQuery => tell_timer(state, now),
        Command::AlarmSet { time: None } => "what time should i set the alarm for".to_owned(),
        Command::AlarmSet { time: Some(time) } => set_alarm(state, *time, now),
        Command::WeatherQuery { city, day, about } => tell_weather(city.unwrap_or(state.home), *day, *about),
        Command::LightsOn { room } => {
            set_lights(state, *room, 100);
            format!("the {} are on", lights(*room))
        }
        Command::LightsOff { room } => {
            set_lights(state, *room, 0);
            format!("the {} are off", lights(*room))
        }
        Command::LightsDim { room, percent } => {
            set_lights(state, *room, *percent);
            format!(
                "{} dimmed to {} percent",
                lights(*room),
                numbers::spell(u32::from(*percent))
            )
        }
        Command::Stop => "okay".to_owned(),
        Command::Help => "you can ask for the time, timers, alarms, the weather and the lights".to_owned(),
        Command::Unknown => "sorry, i did not understand that".to_owned(),
    };
    Reply { text }
}

fn tell_time(city: Option<City>, home: City, now: Moment) -> String {
    let local = local(city.unwrap_or(home), now);
    let time = command::speak_clock(local.hour(), local.minute());
    match city {
        Some(city) => format!("it is {time} in {}", city.name()),
        None => format!("it is {time}"),
    }
}

fn tell_date(home: City, now: Moment) -> String {
    let local = local(home, now);
    let day = numbers::spell_ordinal(u32::from(local.day().unsigned_abs()));
    format!("today is {} {day}", local.strftime("%A %B")).to_ascii_lowercase()
}

fn set_timer(state: &mut DialogueState, duration_s: u32, now: Moment) -> String {
    if state.timers.len() + state.alarms.len() >= PENDING_MAX {
        return "there are too many timers, please cancel them first".to_owned();
    }
    let duration = Duration::from_secs(u64::from(duration_s));
    state.timers.push(Timer {
        ends_at: now + duration,
        duration_s,
    });
    format!("timer set for {}", command::speak_duration(duration.as_secs()))
}

fn cancel_timers(state: &mut DialogueState) -> String {
    let cancelled = state.timers.len();
    state.timers.clear();
    match cancelled {
        0 => "there is no timer".to_owned(),
        1 => "timer cancelled".to_owned(),
        _ => "all timers cancelled".to_owned(),
    }
}

fn tell_timer(state: &DialogueState, now: Moment) -> String {
    match state.timer_left(now) {
        // Rounded up, so that a running timer never has nothing left.
        Some(left) => format!(
            "{} left",
            command::speak_duration(left.as_millis().div_ceil(1000) as u64)
        ),
        None => "there is no timer".to_owned(),
    }
}

fn set_alarm(state: &mut DialogueState, time: ClockTime, now: Moment) -> String {
    if state.timers.len() + state.alarms.len() >= PENDING_MAX {
        return "there are too many alarms".to_owned();
    }
    let local = local(state.home, now);
    let minute = i8::try_from(time.minute).unwrap_or(0);
    let Some(rings) = time
        .hours()
        .into_iter()
        .filter_map(|hour| next(&local, hour, minute))
        .min_by_key(Zoned::timestamp)
    else {
        return "sorry, i can not set that alarm".to_owned();
    };
    let rings_at = Moment(u64::try_from(rings.timestamp().as_millisecond()).unwrap_or(0));
    state.alarms.push(Alarm {
        rings_at,
        hour: rings.hour().unsigned_abs(),
        minute: time.minute,
    });
    format!(
        "alarm set for {} {}",
        command::speak_clock(rings.hour(), rings.minute()),
        part_of_day(rings.hour())
    )
}

/// The first time after `local` that the clock on the wall there reads `hour:minute`.
fn next(local: &Zoned, hour: i8, minute: i8) -> Option<Zoned> {
    let today = local
        .with()
        .hour(hour)
        .minute(minute)
        .second(0)
        .subsec_nanosecond(0)
        .build()
        .ok()?;
    if today > *local {
        Some(today)
    } else {
        today.checked_add(1.day()).ok()
    }
}

fn part_of_day(hour: i8) -> &'static str {
    match hour {
        0..=11 => "in the morning",
        12..=17 => "in the afternoon",
        18..=21 => "in the evening",
        _ => "at night",
    }
}

fn tell_weather(city: City, day: Day, about: WeatherAspect) -> String {
    let place = city.name();
    let Some(conditions) = weather::conditions(city, day) else {
        return format!("i do not know the weather in {place}");
    };
    match (about, day) {
        (WeatherAspect::Everything, Day::Today) => {
            format!(
                "it is {} and {} in {place}",
                degrees(conditions.degrees),
                conditions.sky
            )
        }
        (WeatherAspect::Everything, Day::Tomorrow) => {
            format!(
                "tomorrow it will be {} and {} in {place}",
                degrees(conditions.degrees),
                conditions.sky
            )
        }
        (WeatherAspect::Rain, day) => {
            let (answer, amount) = if conditions.rain {
                ("yes", "rain")
            } else {
                ("no", "no rain")
            };
            format!("{answer}, there will be {amount} {} in {place}", day.name())
        }
    }
}

fn degrees(degrees: i32) -> String {
    let unit = if degrees.unsigned_abs() == 1 {
        "degree"
    } else {
        "degrees"
    };
    let sign = if degrees < 0 { "minus " } else { "" };
    format!("{sign}{} {unit}", numbers::spell(degrees.unsigned_abs()))
}

fn set_lights(state: &mut DialogueState, room: Option<Room>, percent: u8) {
    let rooms = room.as_ref().map_or(Room::ALL, std::slice::from_ref);
    state.lights.extend(rooms.iter().map(|&room| (room, percent)));
}

fn lights(room: Option<Room>) -> String {
    room.map_or_else(|| "lights".to_owned(), |room| format!("{} lights", room.name()))
}

/// What the clock on the wall in `city` shows.
fn local(city: City, now: Moment) -> Zoned {
    let instant = i64::try_from(now.0)
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok());
    // A zone missing from the bundled database would be a build error of ours; a test looks every city up.
    let zone = TimeZone::get(city.zone()).unwrap_or(TimeZone::UTC);
    instant.unwrap_or(Timestamp::MAX).to_zoned(zone)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interpret;

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
            act(&mut self.state, &interpret(text), self.now).text
        }
    }

    #[test]
    fn each_request_gets_its_spoken_answer() {
        for (request, answer) in [
            ("what time is it", "it is ten thirty five"),
            ("what time is it in tokyo", "it is seven thirty five in tokyo"),
            ("what time is it in mumbai", "it is four oh five in mumbai"),
            ("what day is it today", "today is saturday november twenty first"),
            (
                "what is the weather in paris",
                "it is eight degrees and cloudy in paris",
            ),
            (
                "what is the weather tomorrow in chicago",
                "tomorrow it will be minus one degree and snowy in chicago",
            ),
            (
                "will it rain tomorrow in paris",
                "yes, there will be rain tomorrow in paris",
            ),
            ("will it rain", "no, there will be no rain today in london"),
            ("turn on the kitchen lights", "the kitchen lights are on"),
            ("turn off the lights", "the lights are off"),
            (
                "dim the living room lights to thirty percent",
                "living room lights dimmed to thirty percent",
            ),
            ("set an alarm for six a m", "alarm set for six o clock in the morning"),
            ("wake me at ten forty", "alarm set for ten forty in the morning"),
            ("wake me at ten thirty", "alarm set for ten thirty at night"),
            ("cancel the timer", "there is no timer"),
            ("set a timer", "how long should the timer run"),
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
    fn a_timer_runs_is_asked_about_and_rings_once() {
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
        assert_eq!(device.state.ring(end), None);
        device.now = end;
        assert_eq!(device.says("how much time is left"), "there is no timer");
    }

    #[test]
    fn an_alarm_waits_for_the_next_morning_across_the_end_of_summer_time() {
        // 24 October 2026 22:00 in London; the clocks go back that night, so "seven a m" is ten hours away, not nine.
        let mut device = Device::new();
        device.now = Moment(1_792_875_600_000);
        device.says("set an alarm for seven a m");
        let wait = device.state.next_ring().map(|moment| moment.since(device.now));
        assert_eq!(wait, Some(Duration::from_secs(10 * 3600)));
    }

    #[test]
    fn a_device_can_not_fill_the_memory_with_timers() {
        let mut device = Device::new();
        for _ in 0..2 * PENDING_MAX {
            device.says("set a timer for ten minutes");
        }
        assert_eq!(device.state.timers.len(), PENDING_MAX);
        assert_eq!(device.says("cancel the timer"), "all timers cancelled");
    }

    #[test]
    fn the_memory_travels_as_json() {
        let mut device = Device::new();
        device.says("set a timer for ten minutes");
        device.says("wake me at seven thirty");
        device.says("dim the office lights to ten percent");
        let json = serde_json::to_string(&device.state).unwrap();
        assert_eq!(serde_json::from_str::<DialogueState>(&json).unwrap(), device.state);
    }

    #[test]
    fn every_city_has_a_time_zone_without_the_systems_database() {
        for &city in City::ALL {
            assert!(TimeZone::get(city.zone()).is_ok(), "{}", city.zone());
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
        ] {
            let reply = device.says(request);
            assert!(
                reply
                    .chars()
                    .all(|letter| letter.is_ascii_lowercase() || " ,".contains(letter)),
                "{reply}"
            );
        }
    }
}
