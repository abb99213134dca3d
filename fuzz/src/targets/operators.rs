//! operators.toml, which operators write, and the tokens that programs show.

use identity::operators::OperatorTokens;
use topology::Moment;

/// The file is refused or read, and a hash that is in it lets in under its own name alone.
pub(crate) fn read(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let Ok(tokens) = OperatorTokens::parse("operators.toml", &text) else {
        return;
    };
    for word in text.split(|letter: char| !letter.is_alphanumeric()) {
        assert!(
            tokens
                .recognise(word, "somebody whom no file names", Moment(0))
                .is_err(),
            "{word} lets in under another name"
        );
        let _ = tokens.recognise(word, "ci", Moment(0));
    }
}
