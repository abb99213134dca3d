use super::*;

fn words(text: &str) -> Vec<&str> {
    text.split(' ').collect()
}

#[test]
fn a_city_or_a_room_is_not_what_sounds_a_little_like_it() {
    let found = |text: &str| {
        let words = words(text);
        let kinds = [SlotKind::City, SlotKind::Rooms, SlotKind::Day];
        find_all(&words)
            .into_iter()
            .any(|found| kinds.contains(&found.value.kind()))
    };
    for text in [
        "dubai", "newark", "all", "ball", "home", "room", "rim", "dublin", "lagos", "harris", "cattle", "lisbon",
        "prague", "kitten", "chicken", "bathtub", "monkey", "son", "bed", "mad", "per",
    ] {
        assert!(!found(text), "{text}");
    }
    for text in [
        "ondon",
        "tokio",
        "newyork",
        "bath room",
        "kitchn",
        "tomor",
        "sidney",
        "leiv ing rom",
        "thursdy",
    ] {
        assert!(found(text), "{text}");
    }
}
