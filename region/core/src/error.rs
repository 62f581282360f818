//! Why the core could not go on: always damage, never a refusal (refusals are results).

use meridian_types::entry::EntryError;
use meridian_types::{Lsn, RegionId};

use crate::view::ViewError;

/// Stored state that no version of Meridian wrote like that, or a newer one did. It is never served (DUR-3).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stored {what} is damaged or of an unknown format")]
pub struct Damage {
    /// What was being read.
    pub what: &'static str,
}

/// A shard's metadata could not be read at start.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The store failed.
    #[error("the shard's state could not be loaded")]
    View(#[from] ViewError),
    /// The state is damaged: the group must be rebuilt from its peers.
    #[error("the shard's state can't be used")]
    Damage(#[from] Damage),
}

/// A key could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The store failed.
    #[error("the key could not be read")]
    View(#[from] ViewError),
    /// The record is damaged; it is not served.
    #[error("the key's record can't be served")]
    Damage(#[from] Damage),
}

/// An entry of this group's own log could not be applied. Fatal: going on would diverge from the other replicas.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The store failed.
    #[error("the state could not be read while applying entry {lsn}")]
    View {
        /// The entry.
        lsn: Lsn,
        /// Why.
        #[source]
        source: ViewError,
    },
    /// The state is damaged.
    #[error("the state is damaged; entry {lsn} can't be applied")]
    Damage {
        /// The entry.
        lsn: Lsn,
        /// What.
        #[source]
        source: Damage,
    },
    /// The entry itself is damaged, or from a newer version.
    #[error("log entry {lsn} can't be applied")]
    Entry {
        /// The entry.
        lsn: Lsn,
        /// What is wrong with it.
        #[source]
        source: EntryError,
    },
    /// The log is another region's: the data directory was moved or the configuration is wrong.
    #[error(
        "log entry {lsn} was proposed by region {origin}, but this is region {region}: is this its data directory?"
    )]
    ForeignLog {
        /// The entry.
        lsn: Lsn,
        /// Its region.
        origin: RegionId,
        /// This region.
        region: RegionId,
    },
}

impl From<ReadError> for LoadError {
    fn from(error: ReadError) -> LoadError {
        match error {
            ReadError::View(error) => LoadError::View(error),
            ReadError::Damage(damage) => LoadError::Damage(damage),
        }
    }
}
