//! Tells a drill's story while it happens, and keeps it for the report.

use std::{
    io::{IsTerminal as _, Write as _},
    sync::{Mutex, MutexGuard, PoisonError},
};

use topology::Moment;

/// Tells the story. Lines may come from any task.
#[derive(Debug)]
pub struct Narrator {
    began: Moment,
    voice: Voice,
    told: Mutex<Told>,
}

#[derive(Debug, Default)]
struct Told {
    story: String,
    killed: Option<Moment>,
}

/// How the story is told while it happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Voice {
    /// Only kept.
    Silent,
    /// Plain lines on standard output.
    Plain,
    /// With bold headings, for a terminal.
    Terminal,
}

impl Narrator {
    /// Tells it on standard output; control codes only for a terminal.
    pub fn on_stdout() -> Self {
        let wants_colour = std::env::var_os("NO_COLOR").is_none();
        let voice = if std::io::stdout().is_terminal() && wants_colour {
            Voice::Terminal
        } else {
            Voice::Plain
        };
        Self::with(voice)
    }

    /// Only keeps it.
    pub fn silent() -> Self {
        Self::with(Voice::Silent)
    }

    fn with(voice: Voice) -> Self {
        Self {
            began: daemon::clock::now(),
            voice,
            told: Mutex::default(),
        }
    }

    /// From now on times are told since this moment.
    pub fn killed_at(&self, at: Moment) {
        self.told().killed = Some(at);
    }

    /// A new chapter.
    pub fn step(&self, number: u32, title: &str) {
        self.write(&format!("\n{number}. {title}\n"), true);
    }

    /// One line, at this moment.
    pub fn say(&self, line: impl AsRef<str>) {
        self.say_at(daemon::clock::now(), line);
    }

    /// One line about something that happened at `at`.
    pub fn say_at(&self, at: Moment, line: impl AsRef<str>) {
        let killed = self.told().killed;
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

    /// A block of text as it is, such as a table.
    pub fn show(&self, block: &str) {
        self.write(&format!("\n{}\n", block.trim_end()), false);
    }

    /// When the story began.
    pub fn began(&self) -> Moment {
        self.began
    }

    /// All that was told so far.
    pub fn story(&self) -> String {
        self.told().story.trim().to_owned()
    }

    fn write(&self, text: &str, bold: bool) {
        let mut told = self.told();
        told.story.push_str(text);
        let mut out = std::io::stdout().lock();
        // Whoever reads us may have gone (`| head`); the drill goes on and writes its report.
        let _ = match self.voice {
            Voice::Silent => Ok(()),
            Voice::Terminal if bold => write!(out, "\x1b[1m{text}\x1b[0m"),
            Voice::Terminal | Voice::Plain => out.write_all(text.as_bytes()),
        }
        .and_then(|()| out.flush());
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
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
}
