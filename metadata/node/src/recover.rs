//! `meridian metadata recover`: one node's copy becomes the metadata plane, because the majority that it belonged to is lost.
//!
//! Works on the data directory of a node whose server is stopped. Everything that this node's log holds is kept, committed
//! or not: a change that somebody was told of must not vanish because this node had not heard of its commit. It is the
//! beginning of a new generation (`generation`), which fences the old voters off; what becomes of epochs is in
//! [`meridian_metadata_core::recover`].

use std::path::Path;

use meridian_consensus::offline::{Offline, OfflineError, Standing};
use meridian_consensus::{Mark, OpenError as LogError};
use meridian_metadata_core::recover::Recovery;
use meridian_metadata_core::{ClusterState, Command};
use meridian_types::GroupId;

use crate::error::OpenError;
use crate::generation::Home;

/// Why nothing could be recovered. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The stored state can't be used.
    #[error("the metadata state of this node can't be used")]
    State(#[from] OpenError),
    /// The log can't be opened.
    #[error("the log of this node can't be opened")]
    Log(#[from] LogError),
    /// State and log don't make a whole.
    #[error("the metadata of this node can't be read: take another survivor")]
    Offline(#[from] OfflineError),
    /// An entry is no command.
    #[error("the metadata log of this node can't be read: take another survivor")]
    Command(#[from] meridian_metadata_core::CommandError),
    /// There is nothing here.
    #[error("this node has no metadata to recover from: it never was part of a cluster; take another survivor")]
    Empty,
    /// It could not be written.
    #[error("the recovered metadata can't be written: nothing was changed, try again")]
    Write(#[source] std::io::Error),
}

/// A node that is left, with its server stopped.
pub struct Survivor {
    home: Home,
    offline: Offline,
    standing: Standing,
    state: ClusterState,
}

impl Survivor {
    /// Opens `dir`, the metadata directory, and the log, and brings the state up to the log's end.
    ///
    /// # Errors
    /// [`RecoverError`]; among them that the server still runs.
    pub fn open(dir: &Path, log: &meridian_consensus::Options) -> Result<Survivor, RecoverError> {
        let offline = Offline::open(log)?;
        let home = Home::open(dir)?;
        let (mark, state) = match home.file()?.load()? {
            Some((mark, state)) => (Some(mark), state),
            None => (None, ClusterState::default()),
        };
        let standing = offline.standing(home.group(), mark.as_ref())?;
        let state = with_log(state, &offline, &home, mark.as_ref())?;
        if state.cluster().is_none() {
            return Err(RecoverError::Empty);
        }
        Ok(Survivor { home, offline, standing, state })
    }

    /// Where this node's metadata stand: of several survivors the one with the highest term, then position, has most.
    pub fn standing(&self) -> &Standing {
        &self.standing
    }

    /// The generation that a recovery from here begins.
    pub fn next_generation(&self) -> u32 {
        self.home.generation() + 1
    }

    /// The cluster as this node has it.
    pub fn state(&self) -> &ClusterState {
        &self.state
    }

    /// What [`Survivor::recover`] would change.
    pub fn preview(&self, at_ms: u64, who: &str) -> Recovery {
        self.state.clone().recover(Offline::next_position(&self.standing).0, at_ms, who)
    }

    /// Makes this node's copy the metadata plane and this node its only voter. Durable once this returns.
    ///
    /// # Errors
    /// [`RecoverError`].
    pub fn recover(mut self, at_ms: u64, who: &str) -> Result<Recovery, RecoverError> {
        let recovery = self.state.recover(Offline::next_position(&self.standing).0, at_ms, who);
        let next = GroupId::metadata(self.home.generation() + 1);
        let mark = self.offline.begin(next, &self.standing)?;
        self.home.begin(&mark, &self.state).map_err(RecoverError::Write)?;
        Ok(recovery)
    }
}

fn with_log(
    mut state: ClusterState,
    offline: &Offline,
    home: &Home,
    mark: Option<&Mark>,
) -> Result<ClusterState, RecoverError> {
    for entry in offline.entries(home.group(), mark)? {
        let command = Command::decode(&entry.payload)?;
        // A refusal is as much a result as a reply.
        let _ = state.apply(entry.lsn.0, &command);
    }
    Ok(state)
}
