//! Lights: switch, dim, tell.

use super::spoken::list;
use crate::{
    command::{Room, Rooms},
    numbers,
    state::DialogueState,
};

pub(super) fn switch_lights(state: &mut DialogueState, rooms: Rooms, is_on: bool) -> String {
    set_lights(state, rooms, if is_on { 100 } else { 0 });
    format!("{} are {}", rooms.lights(), if is_on { "on" } else { "off" })
}

pub(super) fn dim_lights(state: &mut DialogueState, rooms: Rooms, percent: u8) -> String {
    set_lights(state, rooms, percent);
    let lights = rooms.lights();
    format!(
        "{} dimmed to {} percent",
        lights.strip_prefix("the ").unwrap_or(&lights),
        numbers::spell(u32::from(percent))
    )
}

fn set_lights(state: &mut DialogueState, rooms: Rooms, percent: u8) {
    state
        .lights
        .extend(meant(rooms).into_iter().map(|room| (room, percent)));
}

/// The state of the lights as the assistant set it; no lamp is asked.
pub(super) fn tell_lights(state: &DialogueState, rooms: Rooms) -> String {
    let named: Vec<Room> = rooms.named().collect();
    if named.is_empty() {
        let on: Vec<String> = (state.lights.iter().filter(|(_, percent)| **percent > 0))
            .map(|(room, _)| room.name().to_owned())
            .collect();
        return match on.as_slice() {
            [] => "no lights are on that i have switched".to_owned(),
            _ => format!("the {} lights are on", list(on, "and")),
        };
    }
    let told = named.into_iter().map(|room| match state.lights.get(&room) {
        Some(0) => format!("the {} lights are off", room.name()),
        Some(100) => format!("the {} lights are on", room.name()),
        Some(percent) => format!(
            "the {} lights are on at {} percent",
            room.name(),
            numbers::spell(u32::from(*percent))
        ),
        None => format!("i have not switched the {} lights yet", room.name()),
    });
    list(told.collect(), "and")
}

/// The rooms that are meant; all rooms if none was named.
fn meant(rooms: Rooms) -> Vec<Room> {
    let named: Vec<Room> = rooms.named().collect();
    if named.is_empty() { Room::ALL.to_vec() } else { named }
}
