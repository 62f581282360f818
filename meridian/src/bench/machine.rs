//! What this machine charges anyway: one fdatasync, one round trip, CPU time.

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use meridian_client::{Client, ReadLevel};
use meridian_types::BucketName;

use super::report::Latency;

/// Enough for a median that doesn't move, 30 ms on a good disk, a second or two on a bad one.
const SYNCS: u64 = 300;
const ROUND_TRIPS: u64 = 200;

/// What one append of a log is made of.
const BLOCK_BYTES: usize = 4096;

/// Jiffies per second: `sysconf(_SC_CLK_TCK)` is 100 on every Linux that is in use.
const TICKS_PER_S: f64 = 100.0;

/// The latency of `fdatasync` after a 4 KiB write into a preallocated file in `dir`.
///
/// # Errors
/// When no file can be written there.
pub fn fdatasync(dir: &Path) -> std::io::Result<Latency> {
    let mut file = tempfile::tempfile_in(dir)?;
    let block = [0xa5; BLOCK_BYTES];
    for _ in 0..SYNCS {
        file.write_all(&block)?;
    }
    file.sync_all()?;
    let mut latency = Latency::default();
    for index in 0..SYNCS {
        let started = Instant::now();
        file.write_all_at(&block, index * BLOCK_BYTES as u64)?;
        file.sync_data()?;
        latency.record(started.elapsed());
    }
    Ok(latency)
}

/// The latency of the smallest request there is: an eventual read of an absent key, one at a time.
///
/// # Errors
/// When it is refused.
pub async fn round_trip(client: &Client, bucket: &BucketName) -> Result<Latency, meridian_client::Error> {
    let bucket = client.bucket(bucket.as_str())?.reading(ReadLevel::Eventual);
    let mut latency = Latency::default();
    for _ in 0..ROUND_TRIPS {
        let started = Instant::now();
        bucket.get("meridian-bench/absent").await?;
        latency.record(started.elapsed());
    }
    Ok(latency)
}

/// CPU time of a process, from /proc.
#[derive(Clone, Copy, Debug)]
pub struct CpuClock {
    pid: u32,
    start: Duration,
}

impl CpuClock {
    /// Starts measuring; `None` when the process isn't on this machine, or is not ours to see.
    pub fn start(pid: u32) -> Option<CpuClock> {
        Some(CpuClock { pid, start: cpu_time(pid)? })
    }

    /// What it used since.
    pub fn used(&self) -> Option<Duration> {
        cpu_time(self.pid).map(|now| now.saturating_sub(self.start))
    }
}

fn cpu_time(pid: u32) -> Option<Duration> {
    parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// utime + stime: fields 14 and 15, counted behind the name, which may hold anything but ends with the last `)`.
fn parse_stat(stat: &str) -> Option<Duration> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(Duration::from_secs_f64(ticks as f64 / TICKS_PER_S))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_read_whatever_the_process_is_called() {
        let stat = "42 (a) b (c) S 1 1 1 0 -1 4194560 100 0 0 0 250 150 0 0 20 0 9 0 100";
        assert_eq!(parse_stat(stat), Some(Duration::from_secs(4)));
        assert_eq!(parse_stat("nonsense"), None);
        assert!(CpuClock::start(std::process::id()).unwrap().used().is_some());
    }

    #[test]
    fn one_fdatasync_takes_time() {
        let latency = fdatasync(tempfile::tempdir().unwrap().path()).unwrap();
        assert_eq!(latency.count(), SYNCS);
        assert!(latency.quantile(0.5) > Duration::ZERO);
    }
}
