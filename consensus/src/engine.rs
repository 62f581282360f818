//! The threads that groups' Raft tasks run on, each a runtime of its own with one worker.
//!
//! A proposal passes through four tasks of its group, the log and the state machine. On one thread they hand over to
//! each other without waking anybody; on the node's shared workers each step would wake a thread, which costs more
//! than the step. TLS and the network stay on the node's own runtime.
//!
//! The shards' engine also applies, and writes the log while the disk is quick: a node whose disk or store is stuck
//! stops leading its shards. The metadata group has an engine of its own that never waits for a disk: its leader's
//! heartbeats cross regions, and every region's leases hang on them.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use crate::error::OpenError;
use crate::log::spawn;
use crate::poison::Poison;
use crate::turn::Turn;

/// One thread and the way to it.
pub(crate) struct Engine {
    handle: Handle,
    turn: Arc<Turn>,
    stop: Mutex<Option<oneshot::Sender<()>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Engine {
    pub(crate) fn start(name: &'static str, turn: Arc<Turn>, poison: &Poison) -> Result<Engine, OpenError> {
        let runtime = Builder::new_current_thread().enable_time().build();
        let runtime = runtime.map_err(|source| OpenError::Io {
            action: "starting a runtime for",
            path: std::path::PathBuf::from(name),
            source,
        })?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let ends = Arc::clone(&turn);
        let thread = spawn(name, poison, move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = stopped => {}
                    () = ends.run() => {}
                }
            });
        })?;
        Ok(Engine { handle, turn, stop: Mutex::new(Some(stop)), thread: Mutex::new(Some(thread)) })
    }

    /// What gathers until the end of a turn.
    pub(crate) fn turn(&self) -> &Arc<Turn> {
        &self.turn
    }

    /// Runs something there; what it spawns stays there. `None` when the thread has ended.
    pub(crate) async fn run<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> Option<T> {
        self.handle.spawn(future).await.ok()
    }

    /// Leaves something running there, until it or the thread ends.
    pub(crate) fn leave(&self, future: impl Future<Output = ()> + Send + 'static) {
        drop(self.handle.spawn(future));
    }

    /// Ends the thread. Blocks until it has.
    pub(crate) fn close(&self) {
        drop(self.stop.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        drop(self.stop.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}
