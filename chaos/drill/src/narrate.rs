//! Prints a drill's story as it happens, and records it for the report.

use std::io::{IsTerminal as _, Write as _};

use parking_lot::{Mutex, MutexGuard};
use topology::Moment;

/// Prints and records the story. Any task may add lines.
#[derive(Debug)]
pub struct Narrator {
    began: Moment,
    voice: Voice,
    narration: Mutex<Narration>,
}

#[derive(Debug, Default)]
struct Narration {
    story: String,
    killed: Option<Moment>,
}

/// The output of a narrator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Voice {
    /// Records only.
    Silent,
    /// Also prints plain lines to standard output.
    Plain,
    /// Also prints to a terminal, with bold headings.
    Terminal,
}

impl Narrator {
    /// Prints to standard output; control codes only for a terminal, and not with NO_COLOR.
    pub fn on_stdout() -> Self {
        let wants_colour = std::env::var_os("NO_COLOR").is_none();
        let voice = if std::io::stdout().is_terminal() && wants_colour {
            Voice::Terminal
        } else {
            Voice::Plain
        };
        Self::with(voice)
    }

    /// Records the story without printing it.
    pub fn silent() -> Self {
        Self::with(Voice::Silent)
    }

    fn with(voice: Voice) -> Self {
        Self {
            began: daemon::clock::now(),
            voice,
            narration: Mutex::default(),
        }
    }

    /// From now on, times of lines count from this moment.
    pub fn killed_at(&self, at: Moment) {
        self.narration().killed = Some(at);
    }

    /// Adds the heading of a chapter.
    pub fn step(&self, number: u32, title: &str) {
        self.write(&format!("\n{number}. {title}\n"), true);
    }

    /// Adds a line with the present time.
    pub fn say(&self, line: impl AsRef<str>) {
        self.say_at(daemon::clock::now(), line);
    }

    /// Adds a line about an event at `at`.
    pub fn say_at(&self, at: Moment, line: impl AsRef<str>) {
        let killed = self.narration().killed;
        let time = match killed {
            Some(killed) if at >= killed => format!("+{:.1}", at.since(killed).as_secs_f64()),
            _ => format!("{:.1}", at.since(self.began).as_secs_f64()),
        };
        let mut text = String::new();
        for (index, line) in line.as_ref().lines().enumerate() {
            let time = if index == 0 { format!("{time} s") } else { String::new() };
            text.push_str(format!("  {time:>9}  {line}").trim_end());
            text.push('\n');
        }
        self.write(&text, false);
    }

    /// Adds a block of text as it is, such as a table.
    pub fn show(&self, block: &str) {
        self.write(&format!("\n{}\n", block.trim_end()), false);
    }

    /// Time of the story's beginning.
    pub fn began(&self) -> Moment {
        self.began
    }

    /// The story so far.
    pub fn story(&self) -> String {
        self.narration().story.trim().to_owned()
    }

    fn write(&self, text: &str, bold: bool) {
        // Replies are the text of a stack; on a terminal they could move the cursor.
        let text = &*topology::text::for_terminal(text);
        let mut narration = self.narration();
        narration.story.push_str(text);
        let mut out = std::io::stdout().lock();
        // The reader may have closed the pipe (`| head`); the drill continues and writes its report.
        let _ = match self.voice {
            Voice::Silent => Ok(()),
            Voice::Terminal if bold => write!(out, "\x1b[1m{text}\x1b[0m"),
            Voice::Terminal | Voice::Plain => out.write_all(text.as_bytes()),
        }
        .and_then(|()| out.flush());
    }

    fn narration(&self) -> MutexGuard<'_, Narration> {
        self.narration.lock()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_told_since_the_kill_once_there_is_one() {
        let narrator = Narrator::silent();
        let began = narrator.began();
        narrator.step(1, "Calls");
        narrator.say_at(began + Duration::from_millis(1_500), "one\ntwo");
        let kill = began + Duration::from_secs(10);
        narrator.killed_at(kill);
        narrator.say_at(kill + Duration::from_secs(3), "three");
        let expected = "1. Calls\n      1.5 s  one\n             two\n     +3.0 s  three";
        assert_eq!(narrator.story(), expected);
    }

    #[test]
    fn a_reply_cannot_clear_the_screen() {
        let narrator = Narrator::silent();
        narrator.show("reply: \u{1b}[2J it is noon");
        assert_eq!(narrator.story(), "reply: \\u{1b}[2J it is noon");
    }
}
