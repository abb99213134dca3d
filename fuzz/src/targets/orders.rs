//! Orders of operators and messages of followers, as they come over the network.

use api::v1;
use prost::Message as _;
use topology::IntentKind;

/// Longest text of an order that is shown to other people, in characters.
const SHOWN_MAX: usize = 200;

/// An order that is read can be shown and kept: it has no hidden characters, and JSON holds it.
pub(crate) fn read(bytes: &[u8]) {
    let _ = v1::WatchRequest::decode(bytes).map(|message| v1::WatchRequest::decode(&message.encode_to_vec()[..]));
    let _ = v1::ApplyDocumentRequest::decode(bytes);
    let Ok(request) = v1::ActRequest::decode(bytes) else {
        return;
    };
    let Some(kind) = request.kind else { return };
    let Ok(kind) = IntentKind::try_from(kind) else { return };
    let kept = serde_json::to_value(&kind).expect("an order can be kept");
    for shown in kept
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(_, value)| value.as_str())
    {
        assert!(!shown.contains(topology::text::is_hidden), "{shown:?} hides something");
        assert!(
            shown.chars().count() <= SHOWN_MAX,
            "{} characters",
            shown.chars().count()
        );
    }
    assert_eq!(
        serde_json::from_value::<IntentKind>(kept.clone()).ok(),
        Some(kind),
        "{kept}"
    );
}
