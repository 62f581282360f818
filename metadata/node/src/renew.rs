//! Keeping this node's lease: one renewal every `renew_every`, on this node's monotonic clock.
//!
//! The time that counts is the one *before* a request is sent; see the figure in
//! [`meridian_metadata_core::lease`]. The leader renews its own lease the same way.

use std::sync::Arc;
use std::time::{Duration, Instant};

use meridian_failpoint::failpoint;
use meridian_types::RefusalKind;
use tokio::time::{sleep, sleep_until, timeout};

use crate::ask::{Asker, Search};
use crate::attempt::{Attempt, Backoff};
use crate::copy::LocalCopy;
use crate::metrics::Metrics;

/// Renews for ever.
pub(crate) async fn renew(
    asker: Arc<Asker>,
    copy: Arc<LocalCopy>,
    metrics: Metrics,
    every: Duration,
    give_up: Duration,
) {
    let mut search = Search::default();
    // After a failure the next attempt comes sooner than the next regular one: what is left of the lease counts.
    let mut backoff = Backoff::new(every / 4);
    loop {
        let sent = Instant::now();
        let attempt = match timeout(give_up, asker.renew_once(&search)).await {
            Ok(attempt) => attempt,
            Err(_) => Attempt::Lost("the metadata leader did not answer in time".to_owned()),
        };
        search.note(&attempt);
        metrics.renewal(attempt.outcome(), sent.elapsed().as_secs_f64() * 1000.0);
        match attempt {
            Attempt::Done(grant) => {
                failpoint("lease.granted.before");
                copy.lease.granted(sent, grant);
                failpoint("lease.granted.after");
                backoff.reset();
                sleep_until((sent + every).into()).await;
            }
            Attempt::Elsewhere(_) => sleep(backoff.next_pause()).await,
            Attempt::Refused(refusal) if refusal.kind == RefusalKind::Retry => {
                tracing::debug!(%refusal, "lease not renewed");
                sleep(backoff.next_pause()).await;
            }
            // Only an operator can remedy it; said once per interval, not more often.
            Attempt::Refused(refusal) => {
                tracing::warn!(%refusal, "the lease of this node is refused");
                sleep(every).await;
            }
            Attempt::Lost(why) => {
                tracing::debug!(%why, "lease not renewed");
                sleep(backoff.next_pause()).await;
            }
        }
    }
}

/// Tells when the lease begins and when it has run out. Acting on it needs no telling: writers look at the lease itself.
pub(crate) async fn report(copy: Arc<LocalCopy>, metrics: Metrics) {
    let mut changes = copy.lease.changes();
    let mut held = false;
    loop {
        let until = *changes.borrow_and_update();
        match until.filter(|until| *until > Instant::now()) {
            Some(until) => {
                if !held {
                    tracing::info!(index = copy.index(), "lease held: this node may act as primary");
                }
                held = true;
                tokio::select! {
                    () = sleep_until(until.into()) => {}
                    changed = changes.changed() => if changed.is_err() { return },
                }
            }
            None => {
                if held {
                    metrics.lease_lost();
                    tracing::warn!(
                        index = copy.index(),
                        "lease lost: this node stops acting as primary until a metadata quorum answers again"
                    );
                }
                held = false;
                if changes.changed().await.is_err() {
                    return;
                }
            }
        }
    }
}
