//! One file over HTTP: found in an index of Python packages, resumed where it was cut, bounded by the size that the manifest
//! names, and believed only with its hash.

use std::{
    fs,
    io::{self, Read as _, Seek as _, Write as _},
    path::Path,
    time::Duration,
};

use reqwest::{Client, Response, StatusCode, Url, header};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::{
    fetch::{FetchError, Progress},
    manifest::Package,
};

/// A server that says nothing for this long is given up.
const SILENCE_MAX: Duration = Duration::from_secs(30);
const CONNECT_MAX: Duration = Duration::from_secs(15);
/// A download that breaks is resumed so many times, without a pause: every try goes on where the last one ended.
const TRIES: usize = 5;
/// The page of a package with thousands of files has a few megabytes.
const PAGE_BYTES_MAX: usize = 32 << 20;

/// Puts the file of `package` at `path`. Bytes that are there from an earlier try are kept, and the rest is asked for.
pub(crate) async fn download(
    package: &Package,
    index: &str,
    path: &Path,
    progress: &dyn Progress,
) -> Result<(), FetchError> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(FetchError::disk(parent))?;
    }
    if fs::metadata(path).is_ok_and(|file| file.len() == package.bytes) && hash_of(path)? == package.sha256 {
        progress.downloaded(package.bytes, package.bytes);
        return Ok(());
    }
    let client = client()?;
    let url = find(&client, package, index).await?;
    let part = path.with_extension("part");
    let mut last = None;
    for _ in 0..TRIES {
        match go_on(&client, url.clone(), package.bytes, &part, progress).await {
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
        // The next try must not go on with these bytes.
        fs::remove_file(&part).map_err(FetchError::disk(&part))?;
        return Err(FetchError::Hash {
            what: package.file.clone(),
            wanted: package.sha256.clone(),
            found,
        });
    }
    fs::rename(&part, path).map_err(FetchError::disk(path))
}

fn client() -> Result<Client, FetchError> {
    // Another part of the process may have chosen a provider already; it is the same one.
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    let client = Client::builder()
        .connect_timeout(CONNECT_MAX)
        .read_timeout(SILENCE_MAX)
        .user_agent(concat!("meridian/", env!("CARGO_PKG_VERSION")))
        .build();
    client.map_err(FetchError::network(&"the network"))
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
async fn find(client: &Client, package: &Package, index: &str) -> Result<Url, FetchError> {
    let unusable = |_| FetchError::Index {
        index: index.to_owned(),
    };
    let address = format!("{}/{}/", index.trim_end_matches('/'), package.name);
    let address: Url = address.parse().map_err(|_| FetchError::Index {
        index: index.to_owned(),
    })?;
    let accept = "application/vnd.pypi.simple.v1+json, text/html;q=0.5";
    let response = client.get(address.clone()).header(header::ACCEPT, accept).send().await;
    let response = response
        .and_then(Response::error_for_status)
        .map_err(FetchError::network(&address))?;
    let base = response.url().clone();
    let page = text_of(response, &address).await?;
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

async fn text_of(mut response: Response, address: &Url) -> Result<String, FetchError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(FetchError::network(address))? {
        if bytes.len() + chunk.len() > PAGE_BYTES_MAX {
            return Err(FetchError::TooLong {
                what: address.to_string(),
                bytes: PAGE_BYTES_MAX as u64,
            });
        }
        bytes.extend_from_slice(&chunk);
    }
    String::from_utf8(bytes).map_err(|_| FetchError::Index {
        index: address.to_string(),
    })
}

/// Appends what `part` lacks. Never writes more than `bytes`.
async fn go_on(client: &Client, url: Url, bytes: u64, part: &Path, progress: &dyn Progress) -> Result<(), FetchError> {
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
    let mut request = client.get(url.clone());
    if have > 0 {
        request = request.header(header::RANGE, format!("bytes={have}-"));
    }
    let network = || FetchError::network(&url);
    let mut response = request
        .send()
        .await
        .and_then(Response::error_for_status)
        .map_err(network())?;
    if have > 0 && response.status() != StatusCode::PARTIAL_CONTENT {
        // This server sends files from the beginning only.
        file.set_len(0).and_then(|()| file.rewind()).map_err(disk())?;
        have = 0;
    }
    while let Some(chunk) = response.chunk().await.map_err(network())? {
        have += chunk.len() as u64;
        if have > bytes {
            drop(file);
            fs::remove_file(part).map_err(disk())?;
            return Err(FetchError::TooLong {
                what: url.to_string(),
                bytes,
            });
        }
        file.write_all(&chunk).map_err(disk())?;
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

/// SHA-256 of a file in hexadecimal.
pub(crate) fn hash_of(path: &Path) -> Result<String, FetchError> {
    let hash = || -> io::Result<String> {
        let mut file = fs::File::open(path)?;
        let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(hex::encode(hasher.finalize())),
                read => hasher.update(&buffer[..read]),
            }
        }
    };
    hash().map_err(FetchError::disk(path))
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
