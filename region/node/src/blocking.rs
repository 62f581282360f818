//! Where calls that block on a disk run: on threads of their own, or, in a simulated world, right here.

use tokio::task::JoinError;

/// How blocking calls are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Blocking {
    /// On threads of their own: a runtime's worker must never wait for a disk.
    #[default]
    Threads,
    /// At once, by the caller: for one thread in virtual time, whose order must not depend on other threads.
    Inline,
}

impl Blocking {
    /// Makes a blocking call.
    pub(crate) async fn run<T: Send + 'static>(
        self,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        match self {
            Blocking::Threads => tokio::task::spawn_blocking(call).await,
            Blocking::Inline => Ok(call()),
        }
    }
}
