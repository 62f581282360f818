//! One `meridian server` process: started, watched, stopped.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Instant;

use anyhow::Context;
use tokio::process::Command;

use super::plan::Place;

/// Lines of a log that are shown when its process died.
const TAIL_LINES: usize = 15;

/// Where they are looked for.
const TAIL_BYTES: u64 = 16 << 10;

#[derive(Debug)]
pub(super) struct Child {
    place: Place,
    process: tokio::process::Child,
    stopping: bool,
}

impl Child {
    pub(super) fn start(place: Place) -> anyhow::Result<Child> {
        let program = std::env::current_exe().context("cannot find the meridian binary")?;
        let log = open_log(&place.log)?;
        let process = Command::new(program)
            .args(["server", "--stop-on-stdin-eof", "--config"])
            .arg(&place.config)
            // Kept open by this process only: when it ends, however it ends, the node sees the end of its stdin.
            .stdin(Stdio::piped())
            .stdout(log.try_clone().context("cannot share the log file")?)
            .stderr(log)
            // Ctrl-C is this process's to handle; it then stops its children one by one.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", place.node))?;
        Ok(Child { place, process, stopping: false })
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.process.id()
    }

    /// How it died, if it did without being asked to.
    pub(super) fn died(&mut self) -> anyhow::Result<Option<String>> {
        let status = self.process.try_wait().with_context(|| format!("cannot watch {}", self.place.node))?;
        Ok(status.filter(|_| !self.stopping).map(describe))
    }

    /// Whether it was ended by SIGKILL: by a person or the kernel, not by a fault of its own.
    pub(super) fn was_killed(&mut self) -> anyhow::Result<bool> {
        const SIGKILL: i32 = 9;
        Ok(self.process.try_wait()?.is_some_and(|status| status.signal() == Some(SIGKILL)))
    }

    /// Whether it ended well without being asked to, which only a node does that was drained. Told once.
    pub(super) fn has_left(&mut self) -> anyhow::Result<bool> {
        let left = !self.stopping && self.process.try_wait()?.is_some_and(|status| status.success());
        self.stopping |= left;
        Ok(left)
    }

    /// Closes its stdin: the node drains and exits.
    pub(super) fn ask_to_stop(&mut self) {
        self.stopping = true;
        drop(self.process.stdin.take());
    }

    /// Waits for its exit; kills it at the deadline and returns false.
    pub(super) async fn stopped_by(&mut self, deadline: Instant) -> bool {
        if tokio::time::timeout_at(deadline.into(), self.process.wait()).await.is_ok() {
            return true;
        }
        // Nothing to do about a process that can't even be killed.
        let _ = self.process.kill().await;
        false
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

fn open_log(path: &Path) -> anyhow::Result<File> {
    OpenOptions::new().create(true).append(true).open(path).with_context(|| format!("cannot write {}", path.display()))
}

/// The last lines of a log, indented.
pub(super) fn tail(log: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_else(|error| format!("(it can't be read: {error})"));
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    last.iter().map(|line| format!("  | {line}")).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_of_a_log_is_its_last_lines() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("x.log");
        std::fs::write(&log, (1..=100).map(|n| format!("line {n}\n")).collect::<String>()).unwrap();
        let tail = tail(&log);
        assert_eq!(tail.lines().count(), TAIL_LINES);
        assert!(tail.ends_with("  | line 100"));
    }
}
