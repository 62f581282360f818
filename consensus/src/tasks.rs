//! Every task that consensus spawns, so that shutdown can end them all.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::runtime::Handle;
use tokio::task::JoinSet;

/// The tasks of one node. Cheap to clone; a task that is still running when the last clone goes is aborted.
#[derive(Clone)]
pub(crate) struct Tasks {
    runtime: Handle,
    running: Arc<Mutex<JoinSet<()>>>,
}

impl Tasks {
    /// For tasks on the current runtime.
    pub(crate) fn new() -> Tasks {
        Tasks { runtime: Handle::current(), running: Arc::default() }
    }

    /// Spawns, from whatever thread.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        // What has ended meanwhile would else be kept until shutdown.
        while running.try_join_next().is_some() {}
        running.spawn_on(task, &self.runtime);
    }

    /// Ends all tasks.
    pub(crate) async fn end(&self) {
        let mut running = std::mem::take(&mut *self.running.lock().unwrap_or_else(PoisonError::into_inner));
        running.shutdown().await;
    }
}
