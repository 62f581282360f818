//! Where a workload's requests go: a simulated planet or real processes. Both run on tokio, one of them in virtual
//! time, so that workloads, histories and checkers are the same for both.

use std::future::Future;

use meridian_types::{BucketName, Epoch, Refusal, RegionId, Request, Response};

/// A planet, as its clients see it. Cheap to clone.
pub trait Target: Clone + 'static {
    /// Sends a request to `region`, as an SDK there would: whatever it retries, it retries with the same request id.
    ///
    /// # Errors
    /// The typed "no". [`meridian_types::Effect::Unknown`] whenever the answer was lost: such a write may or may not
    /// have happened, and may still happen.
    fn ask(&self, region: RegionId, request: Request) -> impl Future<Output = Result<Response, Refusal>>;

    /// The epoch of a bucket, as far as an SDK in `region` knows it now: what a write says that it was begun under. 0 where it does not
    /// know, or says so by itself.
    fn epoch(&self, region: RegionId, bucket: &BucketName) -> Epoch {
        let _ = (region, bucket);
        Epoch(0)
    }

    /// Whether one region orders the writes of a bucket, and goes on to in its epoch, as far as an SDK in `region` knows it now. `None` where
    /// that is not known, or does not change.
    fn has_primary(&self, region: RegionId, bucket: &BucketName) -> Option<bool> {
        let _ = (region, bucket);
        None
    }

    /// Microseconds since the run began, by the observer's own clock, which never lies: virtual or monotonic.
    fn now_us(&self) -> u64;
}
