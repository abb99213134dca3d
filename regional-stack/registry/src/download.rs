//! Downloads one file over HTTP: finds it in an index of Python packages, resumes where an earlier try ended, reads no more than the
//! size in the manifest, and accepts only the hash in it.

use std::{
    fs,
    io::{self, Read as _, Seek as _, Write as _},
    path::Path,
    sync::Arc,
    time::Duration,
};

use serde::Deserialize;
use tokio_rustls::rustls::crypto::ring;
use ureq::{
    Agent, Body, ResponseExt as _,
    http::{Response, StatusCode, header},
    tls::{RootCerts, TlsConfig},
};
use url::Url;

use crate::{error::FetchError, hash::hash_of, manifest::Package, progress::Progress};

/// Longest silence of a server.
const SILENCE_MAX: Duration = Duration::from_secs(30);
const CONNECT_MAX: Duration = Duration::from_secs(15);
/// Tries of one download, without a pause between them: each one resumes where the last one ended.
const TRIES: usize = 5;
/// Largest page of a package. One with thousands of files has a few megabytes.
const PAGE_BYTES_MAX: u64 = 32 << 20;

/// Puts the file of `package` at `path`. Keeps the bytes of an earlier try and asks for the rest. Blocks.
pub(crate) fn download(package: &Package, index: &str, path: &Path, progress: &dyn Progress) -> Result<(), FetchError> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(FetchError::disk(parent))?;
    }
    if fs::metadata(path).is_ok_and(|file| file.len() == package.bytes) && hash_of(path)? == package.sha256 {
        progress.downloaded(package.bytes, package.bytes);
        return Ok(());
    }
    let agent = agent();
    let url = find(&agent, package, index)?;
    let part = path.with_extension("part");
    let mut last = None;
    for _ in 0..TRIES {
        match go_on(&agent, &url, package.bytes, &part, progress) {
            Ok(()) => {
                last = None;
                break;
            }
            Err(error) if error.is_passing() => last = Some(error),
            Err(error) => return Err(error),
        }
    }
    if let Some(error) = last {
        return Err(error);
    }
    let found = hash_of(&part)?;
    if found != package.sha256 {
        // The next try must begin without these bytes.
        fs::remove_file(&part).map_err(FetchError::disk(&part))?;
        return Err(FetchError::Hash {
            what: package.file.clone(),
            wanted: package.sha256.clone(),
            found,
        });
    }
    fs::rename(&part, path).map_err(FetchError::disk(path))
}

/// Follows redirects and the proxies of the environment. Its TLS is its own: the provider of the process stays as it is.
fn agent() -> Agent {
    let tls = TlsConfig::builder()
        .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()))
        .root_certs(RootCerts::PlatformVerifier)
        .build();
    let config = Agent::config_builder()
        .tls_config(tls)
        .timeout_resolve(Some(CONNECT_MAX))
        .timeout_connect(Some(CONNECT_MAX))
        .timeout_per_read(Some(SILENCE_MAX))
        .timeout_per_write(Some(SILENCE_MAX))
        .user_agent(concat!("meridian/", env!("CARGO_PKG_VERSION")));
    config.build().into()
}

/// The page of a package in the index's JSON form (PEP 691).
#[derive(Deserialize)]
struct Page {
    files: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    filename: String,
    url: String,
}

/// The address of the package's file. Indexes answer with JSON (PEP 691) or with a page of links (PEP 503).
fn find(agent: &Agent, package: &Package, index: &str) -> Result<Url, FetchError> {
    let unusable = |_| FetchError::Index {
        index: index.to_owned(),
    };
    let address = format!("{}/{}/", index.trim_end_matches('/'), package.name);
    let address: Url = address.parse().map_err(unusable)?;
    let accept = "application/vnd.pypi.simple.v1+json, text/html;q=0.5";
    let response = agent.get(address.as_str()).header(header::ACCEPT, accept).call();
    let response = response.map_err(FetchError::network(&address))?;
    // Links are relative to the page at the end of all redirects.
    let base: Url = response.get_uri().to_string().parse().map_err(unusable)?;
    let page = text_of(response, &address)?;
    let missing = || FetchError::Missing {
        file: package.file.clone(),
        index: address.to_string(),
    };
    let link = match serde_json::from_str::<Page>(&page) {
        Ok(page) => page
            .files
            .into_iter()
            .find(|file| file.filename == package.file)
            .map(|file| file.url),
        Err(_) => linked(&page, &package.file),
    };
    base.join(&link.ok_or_else(missing)?).map_err(unusable)
}

/// The first link of an HTML page whose path ends with `/file`.
fn linked(page: &str, file: &str) -> Option<String> {
    let links = page.split("href=\"").skip(1).filter_map(|rest| rest.split('"').next());
    let bare = |link: &str| link.split(['#', '?']).next().unwrap_or_default().to_owned();
    let is_file = |link: &str| bare(link).rsplit('/').next() == Some(file);
    links.map(|link| link.replace("&amp;", "&")).find(|link| is_file(link))
}

fn text_of(response: Response<Body>, address: &Url) -> Result<String, FetchError> {
    let mut bytes = Vec::new();
    // One byte beyond the limit shows that the page is too long.
    let mut body = response.into_body().into_reader().take(PAGE_BYTES_MAX + 1);
    body.read_to_end(&mut bytes).map_err(FetchError::network(address))?;
    if bytes.len() as u64 > PAGE_BYTES_MAX {
        return Err(FetchError::TooLong {
            what: address.to_string(),
            bytes: PAGE_BYTES_MAX,
        });
    }
    String::from_utf8(bytes).map_err(|_| FetchError::Index {
        index: address.to_string(),
    })
}

/// Appends what `part` lacks. Never writes more than `bytes`.
fn go_on(agent: &Agent, url: &Url, bytes: u64, part: &Path, progress: &dyn Progress) -> Result<(), FetchError> {
    let disk = || FetchError::disk(part);
    let mut file = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(part)
        .map_err(disk())?;
    let mut have = file.metadata().map_err(disk())?.len();
    if have > bytes {
        file.set_len(0).map_err(disk())?;
        have = 0;
    }
    progress.downloaded(have, bytes);
    if have == bytes {
        return Ok(());
    }
    let mut request = agent.get(url.as_str());
    if have > 0 {
        request = request.header(header::RANGE, format!("bytes={have}-"));
    }
    let response = request.call().map_err(FetchError::network(url))?;
    if have > 0 && response.status() != StatusCode::PARTIAL_CONTENT {
        // This server sends files only from their beginning.
        file.set_len(0).and_then(|()| file.rewind()).map_err(disk())?;
        have = 0;
    }
    let (mut body, mut buffer) = (response.into_body().into_reader(), vec![0; 1 << 16]);
    loop {
        let read = match body.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(FetchError::network(url)(error)),
        };
        have += read as u64;
        if have > bytes {
            drop(file);
            fs::remove_file(part).map_err(disk())?;
            return Err(FetchError::TooLong {
                what: url.to_string(),
                bytes,
            });
        }
        file.write_all(&buffer[..read]).map_err(disk())?;
        progress.downloaded(have, bytes);
    }
    file.flush().map_err(disk())?;
    if have < bytes {
        return Err(FetchError::Cut {
            what: url.to_string(),
            have,
            bytes,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_links_names_the_file() {
        let page = "<a href=\"../a-1.whl#sha256=00\">a</a> <a href=\"/files/b-1.whl?x=1&amp;y=2#sha256=1\">b</a>";
        assert_eq!(linked(page, "a-1.whl").unwrap(), "../a-1.whl#sha256=00");
        assert_eq!(linked(page, "b-1.whl").unwrap(), "/files/b-1.whl?x=1&y=2#sha256=1");
        assert_eq!(linked(page, "c-1.whl"), None);
    }
}
