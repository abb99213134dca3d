//! The lines that a process wrote into its log. For tests in a process of their own.

use std::{io, sync::Arc};

use daemon::telemetry::{self, Format};
use parking_lot::Mutex;
use tracing_subscriber::{EnvFilter, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// The log of the process, in both forms.
#[derive(Clone, Default)]
pub struct Log {
    json: Written,
    text: Written,
}

#[derive(Clone, Default)]
pub struct Written(Arc<Mutex<Vec<u8>>>);

impl io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    pub fn begin() -> Self {
        let log = Self::default();
        let (json, text) = (log.json.clone(), log.text.clone());
        tracing_subscriber::registry()
            .with(EnvFilter::new("edge=debug"))
            .with(telemetry::layer(Format::Pretty, false, move || text.clone()))
            .with(telemetry::layer(Format::Json, false, move || json.clone()))
            .init();
        log
    }

    /// The log messages about one request. One search finds as many lines for people.
    pub fn of(&self, id: &str) -> Vec<String> {
        let (lines, found) = (self.lines(), self.found(id));
        let mine = lines.iter().filter(|line| line["request_id"] == id);
        let mine: Vec<String> = mine.map(|line| line["message"].as_str().unwrap().to_owned()).collect();
        // Lines for people are written first, and were read last.
        assert!(found >= mine.len(), "{id}: {mine:?} and {found} lines for people");
        mine
    }

    /// The number of lines for people that name a request.
    pub fn found(&self, id: &str) -> usize {
        let text = String::from_utf8(self.text.0.lock().clone()).unwrap();
        let named = format!("request_id={id}");
        let names = |line: &&str| line.split([' ', '{', '}']).any(|word| word == named);
        text.lines().filter(names).count()
    }

    /// The lines of the edge.
    pub fn lines(&self) -> Vec<serde_json::Value> {
        let text = String::from_utf8(self.json.0.lock().clone()).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
        lines
            .filter(|line: &serde_json::Value| line["target"].as_str().unwrap().starts_with("edge"))
            .collect()
    }
}
