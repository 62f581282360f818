//! Every task that consensus spawns, so that shutdown can end them all.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::JoinSet;

/// The tasks of one node. Cheap to clone; a task that is still running when the last clone goes is aborted.
#[derive(Clone, Default)]
pub(crate) struct Tasks {
    running: Arc<Mutex<JoinSet<()>>>,
}

impl Tasks {
    /// Spawns on the current runtime.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        // What has ended meanwhile would else be kept until shutdown.
        while running.try_join_next().is_some() {}
        running.spawn(task);
    }

    /// Ends all tasks.
    pub(crate) async fn end(&self) {
        let mut running = std::mem::take(&mut *self.running.lock().unwrap_or_else(PoisonError::into_inner));
        running.shutdown().await;
    }
}
