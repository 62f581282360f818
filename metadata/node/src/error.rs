//! Why the metadata plane can't start on this node, or had to stop.

use std::io;
use std::path::PathBuf;

use meridian_consensus::StartError;
use meridian_metadata_core::SnapshotError;
use meridian_types::{NodeName, RegionName};

/// Why the metadata plane can't start on this node.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// An option has a value that can't work.
    #[error("the metadata option `{option}` is not valid: {reason}")]
    Options {
        /// The option.
        option: &'static str,
        /// Why.
        reason: String,
    },
    /// The stored state is damaged (DUR-3). It is not used, and was not changed.
    #[error(
        "the metadata state {} is damaged: {reason}; move the file away to have this node rebuilt from its peers (never on a majority of voters at once)",
        file.display()
    )]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
        /// What the decoder said, where it was asked.
        #[source]
        source: Option<SnapshotError>,
    },
    /// Written by another release.
    #[error(
        "the metadata state {} has format {found}; this release reads format {known}: use the release that wrote it, or a newer one",
        file.display()
    )]
    UnknownFormat {
        /// The file.
        file: PathBuf,
        /// The format found.
        found: u32,
        /// The newest format this release reads.
        known: u32,
    },
    /// The directory is empty, but the cluster knows the node from before.
    #[error(
        "node `{node}` has an empty data directory ({}), but the cluster knows it from before: its disk was lost, or another one is mounted there; it does not start, for it would contradict what it has confirmed; mount its disk again, or, if that is gone, replace the primaries of region `{region}` with `meridian failover estimate` and `meridian failover run`; what only that disk had is lost",
        dir.display()
    )]
    LostDisk {
        /// The node.
        node: NodeName,
        /// Its region.
        region: RegionName,
        /// The data directory.
        dir: PathBuf,
    },
    /// The node was removed from the cluster, for good.
    #[error(
        "node `{node}` was removed from the cluster: its name is not used again; give the machine another name, a certificate for it, and an empty `data_dir`"
    )]
    Removed {
        /// Its name.
        node: NodeName,
    },
    /// The operating system refused.
    #[error("cannot open the metadata state: {action} {} failed", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file or directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The metadata group can't be started.
    #[error("the metadata group can't be started")]
    Start(#[from] StartError),
}

/// Why the metadata plane stopped on this node: the process must exit non-zero.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A task ended by a panic or without being told to.
    #[error("the metadata task `{task}` ended unexpectedly: {detail}")]
    Task {
        /// Which.
        task: &'static str,
        /// How it ended.
        detail: String,
    },
    /// The metadata plane was recovered without this node.
    #[error(
        "the metadata plane was recovered without this node (generation {generation}, this node has {own}): its own copy is set aside and never used again; start the node once more, and it joins the cluster as it is now"
    )]
    Superseded {
        /// The generation that another node belongs to.
        generation: u32,
        /// This node's.
        own: u32,
    },
    /// That could not be put on disk.
    #[error("the metadata plane was recovered without this node, and that can't be written to its disk")]
    Generation(#[source] io::Error),
}
