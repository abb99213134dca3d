use super::*;

fn words(text: &str) -> Vec<&str> {
    text.split(' ').collect()
}

#[test]
fn durations_are_read_the_way_they_are_said() {
    for (text, seconds) in [
        ("ten minutes", Some(600)),
        ("one hour and thirty minutes", Some(5400)),
        ("two hours five minutes and ten seconds", Some(7510)),
        ("half an hour", Some(1800)),
        ("an hour and a half", Some(5400)),
        ("two and a half minutes", Some(150)),
        ("twenty five seconds", Some(25)),
        ("minutes", None),
        ("ten minutes two hours", None),
        ("ten minutes and", None),
        ("forty eight hours", Some(172_800)),
        ("one minute thirty", Some(90)),
        ("one hour thirty", Some(5400)),
        ("two hours and twenty", Some(8400)),
        ("a couple of minutes", Some(120)),
        ("three quarters of an hour", Some(2700)),
        ("a quarter of an hour", Some(900)),
        ("one hundred and twenty minutes", Some(7200)),
        ("a thousand seconds", Some(1000)),
        ("two point five hours", Some(9000)),
        ("half hour", Some(1800)),
        ("five more minutes", Some(300)),
        ("ten mins", Some(600)),
        ("thirty seconds five", None),
        ("ten minute five", None),
        ("ten minutes five", None),
        ("ten minutes fifteen", Some(615)),
        ("ten minutes one hundred", None),
        ("a few minutes", None),
        ("five", None),
        ("three thousand hours", None),
    ] {
        assert_eq!(duration(&words(text)), seconds, "{text}");
    }
}

#[test]
fn times_of_day_are_read_the_way_they_are_said() {
    let time = |hour, minute, half| Some(ClockTime { hour, minute, half });
    for (text, expected) in [
        ("seven thirty", time(7, 30, None)),
        ("six a m", time(6, 0, Some(HalfDay::Am))),
        ("eight o clock in the evening", time(8, 0, Some(HalfDay::Pm))),
        ("half past six", time(6, 30, None)),
        ("quarter to one", time(12, 45, None)),
        ("ten oh five p m", time(10, 5, Some(HalfDay::Pm))),
        ("nine forty five", time(9, 45, None)),
        ("noon", time(12, 0, Some(HalfDay::Pm))),
        ("twenty to six", time(5, 40, None)),
        ("ten to seven a m", time(6, 50, Some(HalfDay::Am))),
        ("five minutes to midnight", None),
        ("ten to twelve p m", time(11, 50, Some(HalfDay::Pm))),
        ("a quarter past seven", time(7, 15, None)),
        ("half seven", time(7, 30, None)),
        ("twenty past eight", time(8, 20, None)),
        ("seven this evening", time(7, 0, Some(HalfDay::Pm))),
        ("three at night", time(3, 0, Some(HalfDay::Am))),
        ("half past twelve tonight", time(12, 30, Some(HalfDay::Am))),
        ("quarter to one at night", time(12, 45, Some(HalfDay::Am))),
        ("eleven thirty at night", time(11, 30, Some(HalfDay::Pm))),
        ("nineteen thirty", time(19, 30, None)),
        ("twenty one fifteen", time(21, 15, None)),
        ("zero thirty", time(0, 30, None)),
        ("seven and a half", None),
        ("seven to", None),
        ("to seven", None),
        ("twenty five", None),
        ("thirteen a m", None),
        ("seven sixty", None),
        ("seven five", None),
    ] {
        assert_eq!(clock(&words(text)), expected, "{text}");
    }
}

#[test]
fn percentages_end_at_a_hundred() {
    assert_eq!(percent(&words("thirty percent")), Some(30));
    assert_eq!(percent(&words("one hundred per cent")), Some(100));
    assert_eq!(percent(&words("two hundred percent")), None);
}
