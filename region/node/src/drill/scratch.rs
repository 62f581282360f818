//! Where a drill's copy lies: a directory beside the node's state, which never outlives the drill, or the node's next start.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use meridian_types::{Refusal, RefusalKind};

use crate::disk::Gauge;

/// How often the removal is tried: threads of a store that was just closed may still be about to end a file.
const REMOVALS_MAX: u32 = 50;

/// How long lies between two of them.
const REMOVE_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// The directory of one drill.
#[derive(Clone, Debug)]
pub(super) struct Scratch {
    dir: PathBuf,
}

/// The directory of all drills of a node whose state is in `state`.
fn all(state: &Path) -> PathBuf {
    state.with_file_name("drills")
}

/// Removes what a drill left behind that ended with its node. Blocks on the disk.
pub(crate) fn sweep(state: &Path) {
    let dir = all(state);
    match std::fs::remove_dir_all(&dir) {
        Ok(()) => {
            tracing::warn!(dir = %dir.display(), "a drill was cut off when the node stopped: its copy is removed")
        }
        Err(why) if why.kind() == io::ErrorKind::NotFound => {}
        Err(why) => {
            tracing::error!(dir = %dir.display(), %why, "what a drill left behind can't be removed: remove it by hand")
        }
    }
}

impl Scratch {
    /// Creates the directory of a drill, of which nothing is left from an earlier one. Blocks on the disk.
    pub(super) fn create(state: &Path, drill: &str) -> Result<Scratch, Refusal> {
        let dir = all(state).join(drill);
        let created = remove_if_there(&all(state)).and_then(|()| std::fs::create_dir_all(&dir));
        created.map_err(|why| {
            let message = format!("the directory {} for a drill can't be made: {why}", dir.display());
            Refusal::new(RefusalKind::Unavailable, message)
        })?;
        Ok(Scratch { dir })
    }

    pub(super) fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Refuses when less than `needed` bytes are free beside the reserve. Blocks on the disk.
    pub(super) fn has_room(&self, gauge: &dyn Gauge, needed: u64, reserve: u64) -> Result<(), Refusal> {
        let dir = self.dir.display();
        let space = gauge.space(&self.dir).map_err(|why| {
            Refusal::new(RefusalKind::Unavailable, format!("the free space of {dir} can't be read: {why}"))
        })?;
        if space.free_bytes.saturating_sub(reserve) >= needed {
            return Ok(());
        }
        Err(Refusal::new(
            RefusalKind::Unavailable,
            format!(
                "the disk of this node has too little room for a drill: it needs {needed} bytes in {dir} beside the reserve of {reserve}, and {} are free: free space there, or rehearse fewer buckets at a time",
                space.free_bytes
            ),
        ))
    }

    /// Removes everything. Blocks on the disk.
    pub(super) fn remove(&self) -> Result<(), String> {
        let parent = self.dir.parent().unwrap_or(&self.dir);
        let mut last = String::new();
        for _ in 0..REMOVALS_MAX {
            match remove_if_there(parent) {
                Ok(()) => return Ok(()),
                Err(why) => last = why.to_string(),
            }
            std::thread::sleep(REMOVE_AGAIN_AFTER);
        }
        Err(format!(
            "the copy in {} could not be removed ({last}): remove that directory by hand, or restart the node",
            self.dir.display()
        ))
    }
}

fn remove_if_there(dir: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::testing::Fixed;

    #[test]
    fn nothing_is_left_of_a_drill_whether_it_ends_or_its_node_does() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let first = Scratch::create(&state, "1").unwrap();
        std::fs::create_dir_all(first.log()).unwrap();
        assert!(first.log().starts_with(dir.path().join("drills")));
        first.remove().unwrap();
        assert!(!dir.path().join("drills").exists());
        Scratch::create(&state, "2").unwrap();
        sweep(&state);
        sweep(&state);
        assert!(!dir.path().join("drills").exists());
    }

    #[test]
    fn a_drill_that_does_not_fit_is_refused_with_what_it_takes() {
        let dir = tempfile::tempdir().unwrap();
        let scratch = Scratch::create(&dir.path().join("state"), "1").unwrap();
        assert!(scratch.has_room(&Fixed(150), 100, 50).is_ok());
        let refusal = scratch.has_room(&Fixed(149), 100, 50).unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::Unavailable);
        assert!(refusal.message.contains("needs 100 bytes") && refusal.message.contains("149"), "{}", refusal.message);
    }
}
