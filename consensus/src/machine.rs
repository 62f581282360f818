//! The seam to a group's state: what consensus asks of a state machine.
//!
//! Everything here is synchronous and runs on consensus' own threads, never on the node's workers. What is called for
//! every batch should take microseconds; a store may block on back-pressure, and the group waits with it.

use bytes::Bytes;
use meridian_types::Lsn;

use crate::error::StateError;

/// The most bytes one piece of a snapshot may have.
pub const PIECE_BYTES_MAX: usize = 1 << 20;

/// A committed application entry. Raft's own entries (blank, membership) take positions too but are not shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Its position.
    pub lsn: Lsn,
    /// The bytes that were proposed.
    pub payload: Bytes,
}

/// A position to be stored atomically with the state it describes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Everything up to here is in the state.
    pub lsn: Lsn,
    /// Opaque: the log id and membership at that position. Give back what was given.
    pub bytes: Bytes,
}

/// The state of one group.
pub trait StateMachine: Send + 'static {
    /// The mark stored with the state; `None` before the first apply.
    ///
    /// # Errors
    /// When the store can't be read.
    fn mark(&self) -> Result<Option<Mark>, StateError>;

    /// Applies a batch and moves the mark, in one atomic step that need not be synced. Returns one result
    /// per entry. A batch may be empty: then only the mark moves.
    ///
    /// # Errors
    /// Any error is fatal for the node: what can be refused is a result, not an error.
    fn apply(&mut self, batch: &[Committed], mark: &Mark) -> Result<Vec<Bytes>, StateError>;

    /// What makes everything applied until now durable; quickly prepared, and done on another thread while applies
    /// go on. The log is purged only below the position it returns.
    ///
    /// # Errors
    /// Here and there when the store fails; fatal.
    fn persist(&mut self) -> Result<Persist, StateError>;

    /// A consistent view of now, taken quickly; its pieces are read later, from another thread, while applies go on.
    ///
    /// # Errors
    /// When the store can't be read; fatal.
    fn snapshot(&mut self) -> Result<Box<dyn SnapshotSource>, StateError>;

    /// Replaces the whole state by a snapshot and makes it durable before it returns.
    ///
    /// # Errors
    /// When the store fails or a piece is damaged; fatal, and the state must not look complete afterwards.
    fn restore(
        &mut self,
        pieces: &mut dyn Iterator<Item = Result<Bytes, StateError>>,
        mark: &Mark,
    ) -> Result<(), StateError>;
}

/// Makes a state durable and returns up to where that is.
pub type Persist = Box<dyn FnOnce() -> Result<Lsn, StateError> + Send>;

/// A consistent view of a state machine, read piece by piece.
pub trait SnapshotSource: Send {
    /// The mark of the state this is a view of.
    fn mark(&self) -> Mark;

    /// The next piece, at most [`PIECE_BYTES_MAX`]; `None` at the end.
    ///
    /// # Errors
    /// When the store can't be read; the transfer is given up and tried again later.
    fn next_piece(&mut self) -> Result<Option<Bytes>, StateError>;
}
