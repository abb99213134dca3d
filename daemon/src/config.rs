//! Process configuration: one TOML file. Give every configuration struct `#[serde(deny_unknown_fields)]`, so that a
//! misspelt key is an error and not a silent default.

use std::path::Path;

use anyhow::Context as _;
use serde::de::DeserializeOwned;

/// Reads a configuration file; errors name the file, the line and the key.
pub fn load<C: DeserializeOwned>(path: &Path) -> anyhow::Result<C> {
    let text = std::fs::read_to_string(path).with_context(|| {
        format!(
            "cannot read configuration {}; give another with --config",
            path.display()
        )
    })?;
    parse(&path.display().to_string(), &text)
}

/// Reads configuration text; `name` is used in errors.
pub fn parse<C: DeserializeOwned>(name: &str, text: &str) -> anyhow::Result<C> {
    toml::from_str(text).map_err(|error| {
        let line = error
            .span()
            .map_or(1, |span| text[..span.start].matches('\n').count() + 1);
        let message = match (error.message(), error.span()) {
            // The only value that is repeated: others may be secret.
            ("invalid socket address syntax", Some(span)) => format!(
                "{} is not an address; write IP:PORT, as in \"127.0.0.1:8080\" or \"[::]:8080\"",
                &text[span]
            ),
            (message, _) => message.to_owned(),
        };
        anyhow::anyhow!("{name}:{line}: {message}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its errors matter here")]
    struct Config {
        port: u16,
    }

    #[derive(Debug, serde::Deserialize)]
    #[expect(dead_code, reason = "only its errors matter here")]
    struct Listen {
        listen: Vec<std::net::SocketAddr>,
    }

    #[test]
    fn a_misspelt_key_and_a_wrong_value_name_their_line() {
        let error = parse::<Config>("edge.toml", "port = 1\nprot = 2\n")
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("edge.toml:2: unknown field `prot`"), "{error}");
        let error = parse::<Config>("edge.toml", "port = 70000").unwrap_err().to_string();
        assert!(error.starts_with("edge.toml:1: "), "{error}");
        let error = parse::<Listen>("edge.toml", "listen = [\"localhost:8080\"]").unwrap_err();
        assert_eq!(
            error.to_string(),
            "edge.toml:1: \"localhost:8080\" is not an address; write IP:PORT, as in \"127.0.0.1:8080\" or \"[::]:8080\""
        );
        let error = load::<Config>(Path::new("/nowhere/x.toml")).unwrap_err().to_string();
        assert!(error.contains("cannot read configuration /nowhere/x.toml"), "{error}");
    }
}
