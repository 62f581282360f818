//! How much may be under way on this node at a time (RES-1): beyond it, a typed "try again".

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use meridian_types::{Refusal, RefusalKind};

/// The bounds and what is under way.
#[derive(Debug)]
pub(crate) struct Admission {
    requests: AtomicUsize,
    bytes: AtomicUsize,
    requests_max: usize,
    bytes_max: usize,
}

/// The right to be under way; dropping it gives the place back.
#[derive(Debug)]
pub(crate) struct Permit {
    admission: Arc<Admission>,
    bytes: usize,
}

impl Admission {
    pub(crate) fn new(requests_max: usize, bytes_max: usize) -> Admission {
        Admission { requests: AtomicUsize::new(0), bytes: AtomicUsize::new(0), requests_max, bytes_max }
    }

    /// Takes a place for a request that carries `bytes`.
    pub(crate) fn admit(self: &Arc<Self>, bytes: usize) -> Result<Permit, Refusal> {
        let requests = self.requests.fetch_add(1, Ordering::Relaxed);
        let held = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let permit = Permit { admission: Arc::clone(self), bytes };
        // One request alone is always let in: each is bounded by itself.
        if requests >= self.requests_max || (held > 0 && held + bytes > self.bytes_max) {
            return Err(Refusal::new(
                RefusalKind::Retry,
                format!(
                    "this node is busy: {requests} requests with {held} bytes are under way (at most {} and {} at a time): try again after a pause",
                    self.requests_max, self.bytes_max
                ),
            ));
        }
        Ok(permit)
    }

    /// Requests and bytes under way.
    pub(crate) fn in_flight(&self) -> (usize, usize) {
        (self.requests.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.admission.requests.fetch_sub(1, Ordering::Relaxed);
        self.admission.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_the_bounds_requests_are_refused_as_retryable_and_places_come_back() {
        let admission = Arc::new(Admission::new(2, 100));
        let first = admission.admit(60).unwrap();
        assert_eq!(admission.admit(60).unwrap_err().kind, RefusalKind::Retry, "too many bytes");
        let second = admission.admit(10).unwrap();
        assert_eq!(admission.admit(0).unwrap_err().kind, RefusalKind::Retry, "too many requests");
        drop((first, second));
        assert_eq!(admission.in_flight(), (0, 0));
        assert!(admission.admit(1000).is_ok(), "one alone is always let in");
    }
}
