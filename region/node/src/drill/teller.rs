//! Tells whoever asked for a drill how it goes; that nobody listens any more is how a drill is given up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use meridian_types::{DrillNews, DrillProgress, DrillStep, Refusal, RefusalKind};
use tokio::sync::mpsc;

/// What a drill tells: news, and in the end its report or why there is none.
pub(crate) type News = Result<DrillNews, Refusal>;

/// One listener. Clones tell the same one.
#[derive(Clone, Debug)]
pub(super) struct Teller {
    news: mpsc::Sender<News>,
    /// Set when the drill's own task is gone, because the node stops.
    over: Arc<AtomicBool>,
}

/// Tells what blocks on a disk that its drill is gone, however it went.
pub(super) struct Over(Arc<AtomicBool>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Teller {
    pub(super) fn new(news: mpsc::Sender<News>) -> Teller {
        Teller { news, over: Arc::default() }
    }

    /// To be held as long as the drill lasts.
    pub(super) fn until_over(&self) -> Over {
        Over(Arc::clone(&self.over))
    }

    /// Tells how far it is; a listener that is slow misses some of it.
    pub(super) fn progress(&self, step: DrillStep, done: u64, total: u64) {
        // Full or gone: neither holds a drill up here.
        let _ = self.news.try_send(Ok(DrillNews::Progress(DrillProgress { step, done, total })));
    }

    /// Tells what it came to.
    pub(super) async fn end(&self, outcome: News) {
        // Whoever went away does not want to know.
        let _ = self.news.send(outcome).await;
    }

    /// Refuses to go on once nobody listens, or the node stops.
    pub(super) fn heard(&self) -> Result<(), Refusal> {
        if self.news.is_closed() || self.over.load(Ordering::Relaxed) { Err(given_up()) } else { Ok(()) }
    }

    /// Resolves once nobody listens.
    pub(super) async fn left(&self) -> Refusal {
        self.news.closed().await;
        given_up()
    }

    /// As a watch over bytes that are copied: tells how many there are, and stops once nobody listens.
    pub(super) fn copying(&self, total: u64) -> impl FnMut(u64) -> Result<u64, Refusal> + '_ {
        let (mut done, mut told) = (0u64, Instant::now());
        move |bytes| {
            done += bytes;
            if told.elapsed().as_millis() > 50 {
                told = Instant::now();
                self.progress(DrillStep::Copy, done, total.max(done));
            }
            self.heard().map(|()| done)
        }
    }
}

fn given_up() -> Refusal {
    Refusal::new(RefusalKind::Retry, "the drill was given up by whoever asked for it: its copy is removed")
}
