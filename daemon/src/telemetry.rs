//! Logs on standard error, for people or as JSON. `RUST_LOG` filters them; without it the level is `info`.
//!
//! In either format one search finds every line about a request or session, whether the id is a field of the event or of its span:
//! `request_id=ID` in lines for people, and `.request_id` at the top of a JSON object.

use std::{fmt, io::IsTerminal as _};

use serde_json::{Map, Value};
use tracing::{Event, Subscriber};
use tracing_subscriber::{
    EnvFilter, Layer,
    fmt::{
        FmtContext, FormatEvent, FormatFields, FormattedFields, MakeWriter,
        format::{self, JsonFields, Writer},
    },
    layer::SubscriberExt as _,
    registry::{LookupSpan, Scope},
    util::SubscriberInitExt as _,
};

/// Format of the logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// One line per event, for people.
    Pretty,
    /// One JSON object per line.
    Json,
}

/// Starts logging. Only the first call has an effect, so every test may call it.
pub fn init(format: Format) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let logs = layer(format, std::io::stderr().is_terminal(), std::io::stderr);
    // An error here means that logging has started already.
    let _ = tracing_subscriber::registry().with(filter).with(logs).try_init();
}

/// Writes logs in the format of every process. A test that reads them passes its own writer.
pub fn layer<S, W>(format: Format, colours: bool, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'s> LookupSpan<'s>,
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let logs = tracing_subscriber::fmt::layer().with_writer(writer);
    match format {
        Format::Pretty => logs.with_ansi(colours).boxed(),
        Format::Json => {
            let nested = format::json().flatten_event(true);
            let plain = nested.with_current_span(false).with_span_list(false);
            logs.fmt_fields(JsonFields::new()).event_format(Flat(plain)).boxed()
        }
    }
}

/// JSON with the fields of an event and of its spans side by side. The library nests those of spans, and the same field of an event
/// without a span would need another search.
struct Flat(format::Format<format::Json>);

impl<S, N> FormatEvent<S, N> for Flat
where
    S: Subscriber + for<'s> LookupSpan<'s>,
    N: for<'w> FormatFields<'w> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut line = String::new();
        self.0.format_event(context, Writer::new(&mut line), event)?;
        let mut fields = Map::new();
        for span in context.event_scope().into_iter().flat_map(Scope::from_root) {
            let extensions = span.extensions();
            let written = extensions.get::<FormattedFields<N>>();
            if let Some(Ok(Value::Object(more))) = written.map(|written| serde_json::from_str(written)) {
                fields.extend(more);
            }
        }
        // The event's own fields win. Most events have no span.
        match serde_json::from_str::<Map<String, Value>>(&line) {
            Ok(own) if !fields.is_empty() => {
                fields.extend(own);
                writeln!(writer, "{}", Value::Object(fields))
            }
            _ => writer.write_str(&line),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Log {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    /// The lines, in either form, of code that says an id in a field, in a span, in both and in neither.
    fn logged(format: Format) -> Vec<String> {
        let log = Log::default();
        let logs = tracing_subscriber::registry().with(layer(format, false, log.clone()));
        tracing::subscriber::with_default(logs, || {
            let id = "call-7";
            tracing::info!(request_id = %id, "said in a field");
            let outer = tracing::info_span!("session", kind = "live", depth = 1).entered();
            tracing::info_span!("request", request_id = %id, depth = 2).in_scope(|| {
                tracing::info!(ms = 5, "said in a span");
                tracing::info!(request_id = %id, depth = 3, "said in both");
            });
            tracing::info!("said of another");
            drop(outer);
            tracing::info!("said of nothing");
        });
        let bytes = log.0.lock().clone();
        String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn one_search_finds_all_lines_for_people() {
        let lines = logged(Format::Pretty);
        let found: Vec<bool> = lines.iter().map(|line| line.contains("request_id=call-7")).collect();
        assert_eq!(found, [true, true, true, false, false], "{lines:#?}");
    }

    #[test]
    fn one_search_finds_all_lines_in_json() {
        let lines = logged(Format::Json);
        let lines = lines.iter().map(|line| serde_json::from_str(line).unwrap());
        let lines: Vec<Map<String, Value>> = lines.collect();
        let of = |key: &str| {
            lines
                .iter()
                .map(|line| line.get(key).cloned().unwrap_or_default())
                .collect()
        };
        let ids: Vec<Value> = of("request_id");
        let id = Value::from("call-7");
        assert_eq!(ids, [id.clone(), id.clone(), id, Value::Null, Value::Null]);
        // The nearest one counts.
        let depths: Vec<Value> = of("depth");
        assert_eq!(depths, [Value::Null, 2.into(), 3.into(), 1.into(), Value::Null]);
        let (messages, kinds): (Vec<Value>, Vec<Value>) = (of("message"), of("kind"));
        assert_eq!(messages[1], "said in a span");
        assert_eq!(kinds[1], "live");
        for line in &lines {
            assert!(line.contains_key("timestamp") && line["level"] == "INFO" && line.contains_key("target"));
            assert!(!line.contains_key("span") && !line.contains_key("spans"), "{line:?}");
        }
    }
}
