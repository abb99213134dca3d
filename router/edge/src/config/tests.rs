use super::*;

const EXAMPLE: &str = include_str!("../../../../configs/edge.toml");

#[test]
fn the_example_is_valid_and_shows_the_defaults() {
    let config: Config = daemon::config::parse("edge.toml", EXAMPLE).unwrap();
    config.check().unwrap();
    assert!(!config.reuse_port);
    assert_eq!(config.workers, 0);
    assert_eq!(format!("{:?}", config.limits), format!("{:?}", Limits::default()));
    assert_eq!(format!("{:?}", config.timeouts), format!("{:?}", Timeouts::default()));
    assert_eq!(format!("{:?}", config.retry), format!("{:?}", Retry::default()));
    assert_eq!(format!("{:?}", config.hedge), format!("{:?}", Hedge::default()));
    assert_eq!(config.breaker, routing::breaker::Limits::default());
    assert_eq!(format!("{:?}", config.tls), format!("{:?}", Tls::default()));
    assert_eq!(format!("{:?}", config.drain), format!("{:?}", Drain::default()));
    assert_eq!(
        format!("{:?}", config.continuity),
        format!("{:?}", Continuity::default())
    );
    assert_eq!(config.picking, routing::Policy::DEFAULT);
    assert_eq!(format!("{:?}", config.cors), format!("{:?}", Cors::default()));
    assert_eq!(format!("{:?}", config.auth), format!("{:?}", Auth::default()));
}

#[test]
fn the_example_of_devices_is_valid() {
    let devices = auth::Devices::parse("devices.toml", include_str!("../../../../configs/devices.toml")).unwrap();
    assert_eq!((devices.len(), devices.tenants().count()), (1, 1));
}

#[test]
fn an_edge_that_recognises_devices_knows_how() {
    let problem = |lines: &str| {
        let text = EXAMPLE.replace("mode = \"off\" ", lines);
        let config: Config = daemon::config::parse("edge.toml", &text).unwrap();
        config.check().unwrap_err().to_string()
    };
    assert!(problem("mode = \"keys\"").contains("auth.devices"));
    let all = problem("mode = \"jwt\"\ndevices = \"d.toml\" #");
    for key in ["auth.issuer", "auth.audience", "auth.jwks_url"] {
        assert!(all.contains(key), "{all}");
    }
    let both = "mode = \"jwt\"\njwks_url = \"file:///etc\"\njwks_file = \"a\" #";
    assert!(
        problem(both).contains("not both") && problem(both).contains("not an address"),
        "{}",
        problem(both)
    );
}

/// Else an edge that served yesterday refuses to start over a limit that nobody wrote.
#[test]
fn a_small_breaker_lowers_the_default_of_a_client_and_contradicts_only_what_is_written() {
    for (breaker, expected) in [(1024, 256), (511, 255), (100, 50), (1, 1)] {
        let text = EXAMPLE.replace("\nmax_requests = 1024", &format!("\nmax_requests = {breaker}"));
        let config: Config = daemon::config::parse("edge.toml", &text).unwrap();
        config.check().unwrap();
        assert_eq!(config.client_in_flight_max(), expected, "{breaker}");
    }
    let text = EXAMPLE
        .replace("# client_in_flight_max", "client_in_flight_max")
        .replace("\nmax_requests = 1024", "\nmax_requests = 511");
    let config: Config = daemon::config::parse("edge.toml", &text).unwrap();
    let error = config.check().unwrap_err().to_string();
    assert!(error.contains("half of breaker.max_requests (511)"), "{error}");
}

#[test]
fn a_renamed_key_is_refused_with_its_new_name() {
    let old = EXAMPLE.replace("deadline = \"10s\" ", "patience = \"10s\" ");
    let error = daemon::config::read::<Config>("edge.toml", &old)
        .unwrap_err()
        .to_string();
    let hint = "continuity.patience: renamed; write deadline in its place";
    assert!(error.contains(hint), "{error}");
}

#[test]
fn what_contradicts_is_reported_together_and_the_key_stays_secret() {
    let text = EXAMPLE
        .replace("header_bytes_max = 16384", "header_bytes_max = 0")
        .replace("panic_percent = 50", "panic_percent = 101")
        .replace("limit = \"20s\"", "limit = \"1s\"")
        .replace("budget_percent = 10", "budget_percent = 101")
        .replace("# client_in_flight_max = 256", "client_in_flight_max = 513")
        .replace(
            "[breaker]",
            "[[upstream]]\npath = \"/v1/audio/x\"\nservers = []\n[breaker]",
        )
        .replace("[tls]\nlisten = []", "[tls]\nlisten = [\"127.0.0.1:8443\"]")
        .replace("\"http://127.0.0.1:7100\"", "\"seven\", \"http://127.0.0.1:7000\"");
    let config: Config = daemon::config::parse("edge.toml", &text).unwrap();
    let error = config.check().unwrap_err().to_string();
    for line in error.lines() {
        let (key, problem) = line.split_once(": ").unwrap();
        let is_key = key
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._[]".contains(&byte));
        assert!(is_key && problem.contains("; write "), "{line}");
    }
    for complaint in [
        "limits.header_bytes_max: 0 is out of range; write 1 or more",
        "picking.panic_percent: 101 is out of range; write 0 to 100",
        "drain.limit: \"1s\" is shorter than drain.window and timeouts.close together; write \"11s\" or more",
        "tls.listen: TLS needs a certificate and its key; write tls.certificate",
        "hedge.budget_percent: 101 is out of range; write",
        "half of breaker.max_requests (1024)",
        "upstream[0].path: \"/v1/audio/x\" is served by the regions; write",
        "upstream[0].servers: the list is empty; write",
        "control_planes: \"seven\" is not the URL of a control plane; write",
    ] {
        assert!(error.contains(complaint), "{error}");
    }
    assert!(format!("{config:?}").contains("AffinityKey(secret)"));
    let short = EXAMPLE.replace("00112233", "");
    let error = daemon::config::parse::<Config>("edge.toml", &short)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("at least 32 bytes") && !error.contains("445566"),
        "{error}"
    );
}
