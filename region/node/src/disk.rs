//! Whether there is disk left to write to. Below the reserve writes are refused, reads go on, and writes come back
//! by themselves once there is space: the log and the store must never meet a full disk in the middle of a write. And what is
//! said of one that hangs.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use meridian_types::{Refusal, RefusalKind};

/// What a disk has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Bytes this process may still write.
    pub free_bytes: u64,
    /// Its size in bytes.
    pub total_bytes: u64,
}

/// How the space of a directory's disk is found out; another one is put in its place by tests.
pub trait Gauge: Send + Sync + 'static {
    /// The space of the disk that holds `dir`.
    ///
    /// # Errors
    /// When the operating system doesn't say.
    fn space(&self, dir: &Path) -> io::Result<Space>;
}

/// Asks the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemGauge;

impl Gauge for SystemGauge {
    fn space(&self, dir: &Path) -> io::Result<Space> {
        let disk = rustix::fs::statvfs(dir)?;
        Ok(Space {
            free_bytes: disk.f_bavail.saturating_mul(disk.f_frsize),
            total_bytes: disk.f_blocks.saturating_mul(disk.f_frsize),
        })
    }
}

/// What a client hears while the disk of the log hangs: at once, where it would else wait for its deadline and not know what became of its write.
pub(crate) fn stalled(age: Duration) -> Refusal {
    Refusal::new(
        RefusalKind::Unavailable,
        format!(
            "the disk of this node hangs: a write and sync of its log has been running for {:.1} s; this request changed nothing; reads go on, and writes too once the disk answers: try again after a pause",
            age.as_secs_f64()
        ),
    )
}

/// The last reading, and what follows from it.
#[derive(Debug)]
pub(crate) struct Disk {
    dir: PathBuf,
    reserve_bytes: u64,
    free_bytes: AtomicU64,
    total_bytes: AtomicU64,
    full: AtomicBool,
}

impl Disk {
    pub(crate) fn new(dir: PathBuf, reserve_bytes: u64) -> Disk {
        Disk {
            dir,
            reserve_bytes,
            free_bytes: AtomicU64::new(u64::MAX),
            total_bytes: AtomicU64::new(0),
            full: AtomicBool::new(false),
        }
    }

    /// Reads the gauge. Back to normal only a tenth above the reserve, so that it doesn't flap.
    pub(crate) fn check(&self, gauge: &dyn Gauge) {
        let space = match gauge.space(&self.dir) {
            Ok(space) => space,
            Err(why) => {
                tracing::warn!(dir = %self.dir.display(), %why, "the free space of the data disk can't be read");
                return;
            }
        };
        self.free_bytes.store(space.free_bytes, Ordering::Relaxed);
        self.total_bytes.store(space.total_bytes, Ordering::Relaxed);
        let was_full = self.full.load(Ordering::Relaxed);
        let enough = if was_full { self.reserve_bytes + self.reserve_bytes / 10 } else { self.reserve_bytes };
        let full = space.free_bytes < enough;
        self.full.store(full, Ordering::Relaxed);
        if full && !was_full {
            tracing::error!(
                free_bytes = space.free_bytes,
                reserve_bytes = self.reserve_bytes,
                "the data disk is full: writes are refused until there is space"
            );
        } else if was_full && !full {
            tracing::info!(free_bytes = space.free_bytes, "the data disk has space again: writes are accepted");
        }
    }

    /// The space at the last reading.
    pub(crate) fn space(&self) -> Space {
        Space {
            free_bytes: self.free_bytes.load(Ordering::Relaxed),
            total_bytes: self.total_bytes.load(Ordering::Relaxed),
        }
    }

    /// Whether writes must be refused.
    pub(crate) fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// Refuses when writes must be refused.
    pub(crate) fn writable(&self) -> Result<(), Refusal> {
        if self.is_full() { Err(Refusal::new(RefusalKind::Unavailable, self.sentence())) } else { Ok(()) }
    }

    /// What is wrong, and the remedy.
    pub(crate) fn sentence(&self) -> String {
        format!(
            "the data disk of this node is full: {} bytes are free in {}, {} are kept in reserve: free space there or enlarge the disk; reads go on",
            self.free_bytes.load(Ordering::Relaxed),
            self.dir.display(),
            self.reserve_bytes
        )
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A disk of 1000 bytes, of which so many are free.
    pub(crate) struct Fixed(pub(crate) u64);

    impl Gauge for Fixed {
        fn space(&self, _: &Path) -> io::Result<Space> {
            Ok(Space { free_bytes: self.0, total_bytes: 1000 })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::Fixed;
    use super::*;

    #[test]
    fn writes_stop_below_the_reserve_and_come_back_a_little_above_it() {
        let disk = Disk::new(PathBuf::from("/data"), 100);
        disk.check(&Fixed(100));
        assert!(disk.writable().is_ok());
        disk.check(&Fixed(99));
        let refusal = disk.writable().unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::Unavailable);
        assert!(refusal.message.contains("/data"), "{}", refusal.message);
        disk.check(&Fixed(105));
        assert!(disk.is_full());
        disk.check(&Fixed(110));
        assert!(disk.writable().is_ok());
    }

    #[test]
    fn the_operating_system_tells_the_space_of_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let space = SystemGauge.space(dir.path()).unwrap();
        assert!(space.total_bytes >= space.free_bytes && space.total_bytes > 0);
    }
}
