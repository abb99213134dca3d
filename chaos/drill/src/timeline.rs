//! The drill as a picture (SVG): a lane per caller, a bar per turn in the colour of its region, and the marks.

use std::fmt::Write as _;

use topology::Moment;

use crate::{fleet::TurnRecord, mark::Mark};

const LABELS: f64 = 90.0;
const WIDTH: f64 = 1100.0;
const LANE: f64 = 14.0;
/// Height of a mark's line above the lanes.
const MARK_LINE: f64 = 13.0;

/// Distinguishable in grey and by people who see fewer colours (Okabe and Ito).
const COLOURS: [&str; 6] = ["#0072b2", "#e69f00", "#009e73", "#56b4e9", "#cc79a7", "#f0e442"];

/// Draws all turns and marks that lie between `from` and `to`.
pub(crate) fn svg(turns: &[TurnRecord], marks: &[Mark], from: Moment, to: Moment) -> String {
    let span = to.since(from).as_secs_f64().max(0.001);
    let x = |at: Moment| LABELS + at.since(from).as_secs_f64() / span * (WIDTH - LABELS - 10.0);
    let lanes = turns.iter().map(|turn| turn.session + 1).max().unwrap_or(0);
    let lost = turns
        .iter()
        .flat_map(|turn| &turn.interruptions)
        .filter_map(|cut| cut.lost.as_deref());
    let left = turns.iter().flat_map(|turn| &turn.moves);
    let left = left.filter_map(|moved| moved.from.as_deref());
    let mut regions: Vec<&str> = turns
        .iter()
        .filter_map(|turn| turn.region.as_deref())
        .chain(lost)
        .chain(left)
        .collect();
    regions.sort_unstable();
    regions.dedup();
    let colour = |region: Option<&str>| {
        let index = region.and_then(|region| regions.iter().position(|known| *known == region));
        index.map_or("#999999", |index| COLOURS[index % COLOURS.len()])
    };
    let top = 24.0 + MARK_LINE * marks.len() as f64;
    let bottom = top + LANE * lanes as f64;
    let height = bottom + 26.0;

    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="10">"#
    );
    let _ = writeln!(out, r##"<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>"##);
    for (index, region) in regions.iter().enumerate() {
        let left = LABELS + 110.0 * index as f64;
        let fill = colour(Some(region));
        let _ = writeln!(
            out,
            r#"<rect x="{left}" y="4" width="10" height="10" fill="{fill}"/><text x="{}" y="13">{}</text>"#,
            left + 14.0,
            escaped(region)
        );
    }
    for lane in 0..lanes {
        let y = top + LANE * lane as f64;
        let _ = writeln!(out, r#"<text x="4" y="{}">session {lane}</text>"#, y + 10.0);
    }
    for turn in turns {
        let y = top + LANE * turn.session as f64 + 2.0;
        let mut piece = |since: Moment, until: Moment, fill: &str| {
            let (left, right) = (x(since.max(from)), x(until.min(to)));
            let _ = writeln!(
                out,
                r#"<rect x="{left:.1}" y="{y}" width="{:.1}" height="{}" fill="{fill}"><title>{}</title></rect>"#,
                (right - left).max(1.0),
                LANE - 4.0,
                escaped(&format!("{}: {}", turn.words, turn.reply)),
            );
        };
        let mut since = turn.started_at_ms;
        for cut in turn.interruptions.iter().filter(|cut| cut.at_ms > turn.started_at_ms) {
            piece(since, cut.at_ms, colour(cut.lost.as_deref()));
            since = cut.at_ms;
        }
        for moved in &turn.moves {
            if moved.at_ms > since {
                piece(since, moved.at_ms, colour(moved.from.as_deref()));
                since = moved.at_ms;
            }
        }
        let answered = colour(turn.region.as_deref());
        piece(
            since,
            turn.ended_at_ms,
            if turn.completed() { answered } else { "#d00000" },
        );
        for cut in &turn.interruptions {
            let at = x(cut.at_ms.max(from));
            let _ = writeln!(
                out,
                r##"<rect x="{:.1}" y="{}" width="3" height="{}" fill="#d00000"><title>{}</title></rect>"##,
                at - 1.5,
                y - 1.0,
                LANE - 2.0,
                escaped(&cut.reason)
            );
        }
    }
    let kill = marks.first().map_or(from, |mark| mark.at_ms);
    for (index, mark) in marks.iter().enumerate() {
        let at = x(mark.at_ms.max(from));
        let y = 24.0 + MARK_LINE * index as f64;
        // Text near the right edge runs to the left, to stay inside the picture.
        let anchor = if at > WIDTH * 0.6 { "end" } else { "start" };
        let gap = if anchor == "end" { -4.0 } else { 4.0 };
        let _ = writeln!(
            out,
            r##"<line x1="{at:.1}" y1="{y:.1}" x2="{at:.1}" y2="{bottom}" stroke="#444444" stroke-dasharray="2 2"/>"##
        );
        let _ = writeln!(
            out,
            r#"<text x="{:.1}" y="{:.1}" text-anchor="{anchor}">{}</text>"#,
            at + gap,
            y + 9.0,
            escaped(&format!(
                "+{:.1} s: {}",
                mark.at_ms.since(kill).as_secs_f64(),
                mark.text
            ))
        );
    }
    let _ = writeln!(
        out,
        r#"<text x="{LABELS}" y="{}">0 s</text><text x="{}" y="{}" text-anchor="end">{span:.0} s</text>"#,
        bottom + 16.0,
        WIDTH - 10.0,
        bottom + 16.0
    );
    out.push_str("</svg>\n");
    out
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_cannot_break_the_picture() {
        let mark = Mark {
            at_ms: Moment(5),
            text: "a < b & c".into(),
        };
        let picture = svg(&[], &[mark], Moment(0), Moment(10));
        assert!(picture.contains("+0.0 s: a &lt; b &amp; c"));
        assert!(picture.starts_with("<svg") && picture.ends_with("</svg>\n"));
    }
}
