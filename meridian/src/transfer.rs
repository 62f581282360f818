//! Files in and out of a bucket: `import`, `export`, and the demo's main job.
//!
//! A file of up to 1 MiB is one key: its path below the imported directory, with `/` between the names; the
//! value is its content. A larger one is cut into parts `path#00000`, `path#00001`, … and the key itself holds
//! a [`manifest`] with size, hash and number of parts, written last: whoever sees a manifest finds its parts.
//! What comes back is checked against size and hash. File modes, times and empty directories are not kept.
//!
//! Works over any [`Store`], so that the round trip is tested without a cluster.

use std::future::Future;

use bytes::Bytes;

mod bucket;
mod export;
mod fetch;
mod import;
mod listing;
mod manifest;

#[cfg(test)]
mod tests;

pub use bucket::BucketStore;
pub use export::{Exported, export};
pub use fetch::fetch;
pub use import::{Imported, Importer};
pub use listing::{Listing, SourceFile};
pub use manifest::{Fingerprint, Manifest};

/// Where files go: one bucket, at some consistency.
pub trait Store: Send + Sync {
    /// Sets a key.
    fn put(&self, key: Bytes, value: Bytes) -> impl Future<Output = anyhow::Result<()>> + Send;

    /// Reads a key; `None` when it is absent.
    fn get(&self, key: Bytes) -> impl Future<Output = anyhow::Result<Option<Bytes>>> + Send;

    /// A page of keys behind `after`, in byte order; empty at the end.
    fn keys(&self, after: Bytes) -> impl Future<Output = anyhow::Result<Vec<Bytes>>> + Send;
}
