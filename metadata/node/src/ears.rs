//! What this node hears of other regions: told to the metadata leader with each lease renewal, which rests on it when it decides
//! that a region is lost ([`meridian_metadata_core::detect`]).

use std::collections::BTreeSet;
use std::fmt;
use std::sync::OnceLock;

use meridian_types::RegionId;

type Silent = dyn Fn() -> BTreeSet<RegionId> + Send + Sync;

/// Whom to ask which regions are silent. Until somebody listens, nothing is said.
#[derive(Default)]
pub(crate) struct Ears(OnceLock<Box<Silent>>);

impl Ears {
    /// Somebody listens from now on; the first one stays.
    pub(crate) fn listen(&self, silent: Box<Silent>) {
        // A second listener would hear the same.
        let _ = self.0.set(silent);
    }

    /// The regions that this node hears nothing from.
    pub(crate) fn silent(&self) -> Option<BTreeSet<RegionId>> {
        self.0.get().map(|silent| silent())
    }
}

impl fmt::Debug for Ears {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ears").field("listens", &self.0.get().is_some()).finish()
    }
}
