//! Listings, in pages of one revision.

use etcd_client::GetOptions;

use super::{
    super::{error::StoreError, transaction::Listing},
    client::{Etcd, PAGE},
    convert::{after, as_i64, header_revision, row},
};

/// Attempts at a listing whose revision is compacted away between two pages.
const LIST_ATTEMPTS: usize = 3;

/// Every entry below a prefix, at one revision.
pub(super) async fn list(etcd: &Etcd, prefix: &str) -> Result<Listing, StoreError> {
    let mut attempt = 1;
    loop {
        match list_once(etcd, prefix).await {
            // The revision was compacted away between two pages. An error of another cause will come again.
            Err(StoreError::Failed(_)) if attempt < LIST_ATTEMPTS => attempt += 1,
            other => return other,
        }
    }
}

async fn list_once(etcd: &Etcd, prefix: &str) -> Result<Listing, StoreError> {
    let mut listing = Listing::default();
    let mut from = prefix.to_owned();
    loop {
        let (end, revision) = (after(prefix), listing.revision);
        let page = etcd
            .ask(etcd.0.settings.request_timeout, |mut member| {
                let mut options = GetOptions::new().with_range(end.clone()).with_limit(as_i64(PAGE));
                if revision > 0 {
                    options = options.with_revision(revision.cast_signed());
                }
                let from = from.clone();
                async move { member.kv.get(from, Some(options)).await }
            })
            .await?;
        if listing.revision == 0 {
            listing.revision = header_revision(page.header())?;
        }
        let mut last = None;
        for found in page.kvs() {
            let (key, entry) = row(found)?;
            last = Some(key.clone());
            listing.entries.insert(key, entry);
        }
        match last {
            // The first key after the last one of this page.
            Some(last) if page.more() => from = last + "\0",
            _ => return Ok(listing),
        }
    }
}
