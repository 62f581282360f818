//! The thread that all groups' Raft tasks run on, a runtime of its own with one worker.
//!
//! A proposal passes through four tasks of its group. On one thread they hand over to each other without waking
//! anybody; on the node's shared workers each step would wake a thread, which costs more than the step.
//! Nothing here blocks but a read of the log's older part; TLS and the network stay on the node's own runtime.

use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use crate::error::OpenError;
use crate::log::spawn;
use crate::poison::Poison;

/// The thread and the way to it.
pub(crate) struct Engine {
    handle: Handle,
    stop: Mutex<Option<oneshot::Sender<()>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Engine {
    pub(crate) fn start(poison: &Poison) -> Result<Engine, OpenError> {
        let runtime = Builder::new_current_thread().enable_time().build();
        let runtime = runtime.map_err(|source| OpenError::Io {
            action: "starting a runtime for",
            path: std::path::PathBuf::from("raft"),
            source,
        })?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread = spawn("raft", poison, move || drop(runtime.block_on(stopped)))?;
        Ok(Engine { handle, stop: Mutex::new(Some(stop)), thread: Mutex::new(Some(thread)) })
    }

    /// Runs something there; what it spawns stays there. `None` when the thread has ended.
    pub(crate) async fn run<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> Option<T> {
        self.handle.spawn(future).await.ok()
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
