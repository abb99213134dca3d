//! Affinity tokens and the ids of sessions, as devices send them.

use std::{
    hash::{BuildHasher as _, Hasher as _, RandomState},
    sync::LazyLock,
    time::Duration,
};

use routing::{Key, affinity::Proof, user};
use topology::{Moment, RegionId};

const NOW: Moment = Moment(1_796_000_000_000);
const DAY: Duration = Duration::from_secs(86_400);

/// New in each process, so that no input is signed with it.
static KEY: LazyLock<Key> = LazyLock::new(|| {
    let part = |_| RandomState::new().build_hasher().finish().to_be_bytes();
    let secret = [0; 4].map(part).concat();
    Key::new(&secret).expect("the key is long enough")
});

/// No text is a token that nobody signed, and what is signed belongs to its holder alone, whatever the holder is called.
pub(crate) fn verify(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    assert!(
        KEY.verify(&text, Some("kitchen"), NOW, DAY).is_err(),
        "nobody signed {text}"
    );
    assert!(
        KEY.verify_session(&text, "kitchen", NOW, DAY).is_err(),
        "nobody signed {text}"
    );

    let client = [192, 0, 2, 1].into();
    let named = user::name(Some(&text), None, client);
    assert!(named.len() <= user::NAME_BYTES_MAX, "a name that is kept is bounded");
    let (holder, other) = (
        user::holder(Some(&text), None, client),
        user::holder(None, Some(&text), client),
    );
    let region = RegionId::new("us-east").expect("it is an id");
    let token = KEY.issue_to(&holder, &region, NOW);
    let proof = |holder: &str| {
        KEY.verify(&token, Some(holder), NOW, DAY)
            .map(|it| (it.region, it.proof))
    };
    assert_eq!(proof(&holder), Ok((region.clone(), Proof::HadSession)));
    assert_eq!(
        proof(&other),
        Ok((region.clone(), Proof::Steers)),
        "a name is no credential"
    );

    let stack = ([10, 0, 0, 1], 9000).into();
    let session = KEY.issue_session("sess_1", &holder, &region, stack, NOW);
    assert!(
        KEY.verify_session(&session, &holder, NOW, DAY)
            .is_ok_and(|token| token.is_at(stack))
    );
    assert!(KEY.verify_session(&session, &other, NOW, DAY).is_err());
    // One byte more, or another one, is another token.
    assert!(KEY.verify_session(&(session + "0"), &holder, NOW, DAY).is_err());
}
