//! Failpoints: named places in the product where a crash could hurt, so that tests crash there and nowhere else.
//!
//! ```text
//! FAILPOINT=log.sync.before     the process kills itself (SIGKILL) when it comes to that place for the first time
//! FAILPOINT=log.sync.before@7   … for the seventh time
//! ```
//!
//! Without the feature `armed`, which only tests switch on, [`failpoint`] is empty and its name is in no binary.
//! `meridian/tests/failpoints.rs` crashes at every one of them (DUR-1, ONE-1, ORD-1).

/// A place where a crash could hurt. Names are `what.step.when`, each used once.
#[cfg(not(feature = "armed"))]
#[inline(always)]
pub fn failpoint(_: &'static str) {}

#[cfg(feature = "armed")]
pub use armed::failpoint;

#[cfg(feature = "armed")]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use rustix::process::{Signal, getpid, kill_process};

    /// Where this process is to crash.
    struct Armed {
        name: String,
        /// How often it may still come by.
        left: AtomicU64,
    }

    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();

    /// A place where a crash could hurt. Names are `what.step.when`, each used once.
    pub fn failpoint(name: &'static str) {
        let Some(armed) = ARMED.get_or_init(|| parse(&std::env::var("FAILPOINT").ok()?)) else { return };
        if armed.name == name && armed.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            // Nothing is flushed and nothing is said, as when somebody else kills it.
            let _ = kill_process(getpid(), Signal::KILL);
        }
    }

    fn parse(text: &str) -> Option<Armed> {
        let (name, times) = text.split_once('@').unwrap_or((text, "1"));
        Some(Armed { name: name.to_owned(), left: AtomicU64::new(times.parse().ok()?) })
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_place_is_named_alone_or_with_how_often() {
            let parsed = |text| parse(text).map(|armed| (armed.name, armed.left.into_inner()));
            assert_eq!(parsed("a.b"), Some(("a.b".to_owned(), 1)));
            assert_eq!(parsed("a.b@7"), Some(("a.b".to_owned(), 7)));
            assert_eq!(parsed("a.b@often"), None);
        }
    }
}
