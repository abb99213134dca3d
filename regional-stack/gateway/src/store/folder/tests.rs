use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _};

use super::*;

const NOW: Moment = Moment(1_795_257_300_000);

fn key(hex: &str) -> CheckpointKey {
    serde_json::from_value(hex.repeat(32).into()).unwrap()
}

fn folder(path: &Path) -> Folder {
    let mut folder = Folder::at(path.to_owned(), key("ab"), None, City::London);
    folder.prepare().unwrap();
    folder
}

fn with_alarm(conversation: Option<&str>) -> Memory {
    let mut dialogue = DialogueState::new(City::Rome);
    dialogue::act(&mut dialogue, &dialogue::interpret("wake me at seven a m"), NOW);
    assert_eq!(dialogue.pending(), 1);
    Memory {
        dialogue,
        session: conversation.map(Arc::from),
        revision: Moment(7),
        may_go_on_elsewhere: true,
    }
}

fn read(folder: &Folder, now: Moment) -> (Vec<Parked>, Reading) {
    let mut found = Vec::new();
    let reading = folder.read(now, |parked| found.push(parked)).unwrap();
    (found, reading)
}

#[test]
fn a_session_comes_back_from_its_file_and_nobody_else_may_read_it() {
    use std::os::unix::fs::PermissionsExt as _;
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("made/when missing");
    let folder = folder(&path);
    let memory = with_alarm(Some("{\"settings\":{}}"));
    folder.write("sess_1", &with_alarm(None), NOW).unwrap();
    folder.write("sess_1", &memory, NOW).unwrap();
    let (found, reading) = read(&folder, NOW + UNREADABLE_AGE_MAX);
    let parked = Parked {
        name: "sess_1".to_owned(),
        memory,
        saved_at: NOW,
        is_of_old_key: false,
    };
    assert_eq!((found, reading.skipped), (vec![parked], 0));
    for (path, mode) in [(path.join("sess_1.session"), 0o600), (path, 0o700)] {
        assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, mode);
    }
    folder.remove("sess_1").unwrap();
    folder.remove("sess_1").unwrap();
    assert!(read(&folder, NOW).0.is_empty());
}

#[test]
fn a_name_never_leads_out_of_the_folder() {
    let place = tempfile::tempdir().unwrap();
    let folder = folder(&place.path().join("inside"));
    for name in [
        "../sess_1",
        "sess_/../../x",
        "sess_1/x",
        "",
        "lock",
        "sess_\0",
        &"sess_1".repeat(40),
    ] {
        let written = folder.write(name, &with_alarm(None), NOW);
        assert_eq!(written.unwrap_err().kind(), ErrorKind::InvalidFilename, "{name:?}");
        assert!(folder.remove(name).is_err());
    }
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 1);
}

#[test]
fn alarms_are_kept_alone_when_the_rest_is_too_much() {
    let place = tempfile::tempdir().unwrap();
    let folder = folder(place.path());
    // Text that cannot be deflated to a quarter.
    let mut state = 1_u64;
    let noise: String = (0..200_000)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            char::from(b'0' + (state >> 58) as u8)
        })
        .collect();
    folder.write("sess_1", &with_alarm(Some(&noise)), NOW).unwrap();
    let (found, _) = read(&folder, NOW);
    assert_eq!(found[0].memory, with_alarm(None));
}

#[test]
fn a_damaged_file_is_no_session_and_no_panic() {
    let place = tempfile::tempdir().unwrap();
    let folder = folder(place.path());
    folder.write("sess_1", &with_alarm(Some("{}")), NOW).unwrap();
    let whole = std::fs::read(place.path().join("sess_1.session")).unwrap();
    assert!(folder.parse(&whole, "sess_1", NOW).is_ok());
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut changed = whole.clone();
            changed[at] ^= 1 << bit;
            assert!(folder.parse(&changed, "sess_1", NOW).is_err(), "{at} {bit}");
        }
        assert!(folder.parse(&whole[..at], "sess_1", NOW).is_err(), "{at}");
    }
    // States that the right key sealed and that mean nothing.
    for state in [&b""[..], b"{}", b"\x02", b"null", b"[1", b"\x02\xff\xff", &[0xff; 1000]] {
        let sealed = folder.key.seal(state, Moment(u64::MAX));
        assert!(folder.parse(&sealed, "sess_1", NOW).is_err());
    }
    let newer = String::from_utf8(form_of(&whole)).unwrap();
    let newer = newer.replace("\"form_needed\":1", "\"form_needed\":2");
    let sealed = folder.key.seal(newer.as_bytes(), NOW);
    assert!(matches!(folder.parse(&sealed, "sess_1", NOW), Err(FileError::Newer)));
}

fn form_of(sealed: &[u8]) -> Vec<u8> {
    let opened = key("ab").open_of_any_age(sealed).unwrap();
    form::unpack(opened.state).unwrap().into_owned()
}

#[test]
fn what_is_not_ours_is_left_alone_and_said_once() {
    let place = tempfile::tempdir().unwrap();
    let folder = folder(place.path());
    let file = |name: &str| place.path().join(name);
    folder.write("sess_good", &with_alarm(None), NOW).unwrap();
    let foreign = Folder::at(place.path().to_owned(), key("cd"), None, City::London);
    foreign.write("sess_foreign", &with_alarm(None), NOW).unwrap();
    std::fs::copy(file("sess_good.session"), file("sess_copy.session")).unwrap();
    std::fs::write(file("sess_long.session"), vec![0; FILE_BYTES_MAX + 1]).unwrap();
    std::fs::write(file("sess_empty.session"), b"").unwrap();
    std::fs::create_dir(file("sess_folder.session")).unwrap();
    std::os::unix::fs::symlink(file("sess_good.session"), file("sess_link.session")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(file("sess_socket.session")).unwrap();
    std::fs::write(file("README"), b"mine").unwrap();
    std::fs::write(file("notes.session"), b"mine").unwrap();
    std::fs::write(place.path().join(OsStr::from_bytes(b"sess_\xff.session")), b"mine").unwrap();
    std::fs::write(file("sess_half.unfinished"), b"half").unwrap();

    // The files are new; the clock of the test is ahead of them.
    let now = daemon::clock::now();
    let (found, reading) = read(&folder, now);
    let names: Vec<&str> = found.iter().map(|parked| parked.name.as_str()).collect();
    assert_eq!((names, reading.skipped), (vec!["sess_good"], 10));
    assert!(reading.first.is_some());
    assert!(!file("sess_half.unfinished").exists());

    // The stack removes unreadable files when no alarm in them can matter, and foreign files never.
    let (found, reading) = read(&folder, now + UNREADABLE_AGE_MAX + UNREADABLE_AGE_MAX);
    assert_eq!((found.len(), reading.skipped), (1, 6));
    for gone in ["sess_foreign", "sess_copy", "sess_long", "sess_empty"] {
        assert!(!file(&format!("{gone}.session")).exists(), "{gone}");
    }
}

#[test]
fn a_file_of_the_old_key_is_known_as_such_and_one_of_the_future_does_not_last_longer() {
    let place = tempfile::tempdir().unwrap();
    let mut folder = folder(place.path());
    folder
        .write("sess_1", &with_alarm(None), NOW + Duration::from_secs(1))
        .unwrap();
    let keys = vec!["cd".repeat(32), "ab".repeat(32)];
    folder.key = serde_json::from_value(keys.into()).unwrap();
    let (found, _) = read(&folder, NOW);
    assert_eq!((found[0].is_of_old_key, found[0].saved_at), (true, NOW));
}

fn state_keys(keys: &[&str]) -> Option<Keys> {
    let keys: Vec<String> = keys.iter().map(|key| key.repeat(32)).collect();
    (!keys.is_empty()).then(|| serde_json::from_value(keys.into()).unwrap())
}

#[test]
fn an_encrypted_file_shows_nothing_and_opens_with_its_key_alone() {
    let place = tempfile::tempdir().unwrap();
    let mut folder = folder(place.path());
    let memory = with_alarm(Some("{\"instructions\":\"speak softly\"}"));
    let read_file = || std::fs::read(place.path().join("sess_1.session")).unwrap();
    folder.write("sess_1", &memory, NOW).unwrap();
    // The same memory at the same moment is the same file, until it is encrypted.
    let plain = read_file();
    let is_shown = |bytes: &[u8]| {
        let parts: std::collections::HashSet<&[u8]> = plain.windows(12).collect();
        bytes.windows(12).any(|window| parts.contains(window))
    };
    assert!(is_shown(&plain));

    // A plain file is read, and to be written anew; so is one of the old key.
    for (keys, is_old) in [
        (&["11"][..], true),
        (&["11"][..], false),
        (&["22", "11"][..], true),
        (&["22"][..], false),
    ] {
        folder.encrypts = state_keys(keys);
        let (found, reading) = read(&folder, NOW);
        assert_eq!((found.len(), reading.first), (1, None), "{keys:?}");
        assert_eq!(
            (&found[0].memory, found[0].is_of_old_key),
            (&memory, is_old),
            "{keys:?}"
        );
        folder.write("sess_1", &memory, NOW).unwrap();
        assert!(sealed::is_sealed(&read_file()) && !is_shown(&read_file()), "{keys:?}");
    }
    for (keys, says) in [
        (&["11"][..], "list the old key second"),
        (&[][..], "write state_key and restart"),
    ] {
        folder.encrypts = state_keys(keys);
        let (found, reading) = read(&folder, NOW);
        assert_eq!((found.len(), reading.skipped), (0, 1));
        assert!(reading.first.as_ref().unwrap().contains(says), "{reading:?}");
    }
    folder.encrypts = state_keys(&["22"]);
    let whole = read_file();
    for at in 0..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        assert!(folder.parse(&changed, "sess_1", NOW).is_err(), "byte {at}");
    }
    assert!(
        folder.parse(&whole, "sess_2", NOW).is_err(),
        "the file of another session"
    );
}

#[test]
fn one_process_uses_a_folder() {
    let place = tempfile::tempdir().unwrap();
    let first = folder(place.path());
    let mut second = Folder::at(place.path().to_owned(), key("ab"), None, City::London);
    assert!(matches!(second.prepare(), Err(FolderError::InUse)));
    drop(first);
    second.prepare().unwrap();
}
