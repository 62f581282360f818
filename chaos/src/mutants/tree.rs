//! A copy of the tree, with a target directory of its own that all mutants share: only what a mutant changes, and what
//! depends on it, is built again.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

/// Between two looks at a process that has a time limit.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// The copy.
pub(super) struct Tree {
    root: PathBuf,
    dir: PathBuf,
}

/// How a command ended.
pub(super) struct Ended {
    /// Whether it succeeded; `None` when its time was over first.
    pub(super) success: Option<bool>,
    /// What it said, both ways.
    pub(super) said: String,
}

impl Tree {
    /// Copies what git knows of the tree at `root`, changes that are not committed included, to `dir`. What is there
    /// already and the same is not touched, so that nothing is built anew without need.
    pub(super) fn copy(root: &Path, dir: &Path) -> anyhow::Result<Tree> {
        let listed = Command::new("git")
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .current_dir(root)
            .output()
            .context("git can't be asked what belongs to the tree")?;
        ensure!(listed.status.success(), "git ls-files failed");
        let tree = Tree { root: root.to_owned(), dir: dir.join("tree") };
        for file in String::from_utf8(listed.stdout)?.split('\0').filter(|file| !file.is_empty()) {
            // A file that was deleted and not committed is listed, too.
            if root.join(file).is_file() {
                tree.restore(Path::new(file))?;
            }
        }
        Ok(tree)
    }

    /// Where something lies in the copy.
    pub(super) fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    /// Makes a file as it is in the original.
    pub(super) fn restore(&self, file: &Path) -> anyhow::Result<()> {
        self.write(file, &fs::read(self.root.join(file))?)
    }

    /// Makes a file different.
    pub(super) fn write(&self, file: &Path, bytes: &[u8]) -> anyhow::Result<()> {
        let path = self.dir.join(file);
        if fs::read(&path).is_ok_and(|there| there == bytes) {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, bytes).with_context(|| format!("{} can't be written", path.display()))
    }

    /// Cargo in the copy, as for the tests: what a planet runs is optimised there, too, and keeps its assertions.
    pub(super) fn cargo(&self, arguments: &[&str], limit: Duration) -> anyhow::Result<Ended> {
        let mut cargo = Command::new("cargo");
        cargo.args(arguments).env("CARGO_TARGET_DIR", self.dir.with_file_name("target"));
        self.run(cargo.env("CARGO_INCREMENTAL", "1"), limit)
    }

    /// The program that was built.
    pub(super) fn chaos(&self, arguments: &[&str], limit: Duration) -> anyhow::Result<Ended> {
        let program = self.dir.with_file_name("target").join("debug/chaos");
        self.run(Command::new(program).args(arguments), limit)
    }

    /// Runs a command in the copy and ends it when its time is over.
    fn run(&self, command: &mut Command, limit: Duration) -> anyhow::Result<Ended> {
        let said = self.dir.with_file_name("said");
        let out = File::create(&said)?;
        let command = command.current_dir(&self.dir).stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let child = command.spawn().with_context(|| format!("{command:?} can't be started"))?;
        let success = wait(child, limit)?;
        Ok(Ended { success, said: fs::read_to_string(&said).unwrap_or_default() })
    }
}

/// Whether it succeeded; `None` when its time was over first.
fn wait(mut child: std::process::Child, limit: Duration) -> anyhow::Result<Option<bool>> {
    let until = Instant::now() + limit;
    loop {
        match child.try_wait()? {
            Some(status) => return Ok(Some(status.success())),
            None if Instant::now() >= until => {
                child.kill()?;
                child.wait()?;
                return Ok(None);
            }
            None => std::thread::sleep(LOOK_EVERY),
        }
    }
}
