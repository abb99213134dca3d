//! The credential that a device shows in the headers of a request. The edge reads it, and a region never sees it.

/// The header in which a WebSocket offers subprotocols.
pub const SUBPROTOCOL: &str = "sec-websocket-protocol";
/// The subprotocol by which a browser's page shows its key: pages cannot set headers of a WebSocket.
const KEY_SUBPROTOCOL: &str = "openai-insecure-api-key.";

/// The token of an `Authorization` header (RFC 6750 §2.1).
pub fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, token) = authorization.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

/// The credential of a request: the token of its `Authorization`, or else the key among the subprotocols of an upgrade.
pub fn credential<'h>(authorization: Option<&'h str>, subprotocols: impl Iterator<Item = &'h str>) -> Option<&'h str> {
    authorization.and_then(bearer).or_else(|| {
        let mut offered = subprotocols.flat_map(|list| list.split(',')).map(str::trim);
        offered.find_map(|offered| offered.strip_prefix(KEY_SUBPROTOCOL))
    })
}

/// The subprotocols that a stack may see: all but the key.
pub fn without_key(subprotocols: &str) -> String {
    let offered = subprotocols.split(',').map(str::trim);
    let shown: Vec<&str> = offered.filter(|it| !it.starts_with(KEY_SUBPROTOCOL)).collect();
    shown.join(", ")
}

/// Whether a header of a request may hold the device's credential.
pub fn is_credential(name: &str) -> bool {
    ["authorization", SUBPROTOCOL]
        .iter()
        .any(|known| name.eq_ignore_ascii_case(known))
}
