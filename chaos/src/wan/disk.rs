//! A disk per node that can be filled, stalled and slowed: an ext4 image behind a loop device.
//!
//! Syncs reach the machine's real disk. Stalling is `fsfreeze`: every write waits, reads and the network go on. Slowing
//! is the blkio controller's limit on writes. What is missing here is said in a sentence, and the faults that need it
//! are left out.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::{FallocateFlags, StatVfs, statvfs};

use super::shell::run;

/// Where version 1 of the blkio controller is mounted: it limits what a process itself syncs.
const BLKIO: &str = "/sys/fs/cgroup/blkio";

/// What takes up the space of a full disk.
const FILLER: &str = "filler";

/// A mounted image. Dropping it unmounts and removes it; nothing may run on it any more.
#[derive(Debug)]
pub struct Disk {
    image: PathBuf,
    mount: PathBuf,
    /// The loop device's `major:minor`.
    device: String,
    /// The control group of the process on it, once there was one.
    group: PathBuf,
}

/// Why disks can't be slowed here; `None` when they can.
pub fn slowing_missing() -> Option<String> {
    let can = Path::new(BLKIO).join("cgroup.procs").exists();
    (!can).then(|| format!("the blkio controller (version 1) is not mounted at {BLKIO}"))
}

impl Disk {
    /// Makes a disk of so many bytes, mounted at `dir/name-disk`.
    ///
    /// # Errors
    /// Where images can't be made or mounted: no `mkfs.ext4`, no loop devices.
    pub fn create(dir: &Path, name: &str, bytes: u64) -> anyhow::Result<Disk> {
        let (image, mount) = (dir.join(format!("{name}.img")), dir.join(format!("{name}-disk")));
        fs::File::create(&image)?.set_len(bytes)?;
        run("mkfs.ext4", &["-q", "-F", "-m", "0", &text(&image)])?;
        fs::create_dir_all(&mount)?;
        run("mount", &["-o", "loop", &text(&image), &text(&mount)])?;
        let group = Path::new(BLKIO).join(format!("meridian-wan-{}-{name}", std::process::id()));
        let mut disk = Disk { image, mount, device: String::new(), group };
        let device = run("losetup", &["-n", "-O", "MAJ:MIN", "-j", &text(&disk.image)])?;
        disk.device = device.trim().to_owned();
        Ok(disk)
    }

    /// Where a node's data goes, by its number among those that share the disk.
    pub fn data_dir(&self, nth: u16) -> PathBuf {
        self.mount.join(format!("data-{nth}"))
    }

    /// Takes up space until only so many bytes are free.
    ///
    /// # Errors
    /// When the operating system refuses for another reason than a full disk.
    pub fn fill(&self, keep_bytes: u64) -> anyhow::Result<()> {
        let file = fs::File::options().create(true).append(true).open(self.mount.join(FILLER))?;
        // What others free or take meanwhile makes a second step necessary.
        for _ in 0..8 {
            let take = free_bytes(&statvfs(&self.mount)?).saturating_sub(keep_bytes);
            if take == 0 {
                break;
            }
            let have = file.metadata()?.len();
            match rustix::fs::fallocate(&file, FallocateFlags::empty(), have, take) {
                Ok(()) | Err(rustix::io::Errno::NOSPC) => {}
                Err(error) => return Err(error).context("filling a disk"),
            }
        }
        Ok(())
    }

    /// Gives the space back.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn free(&self) -> anyhow::Result<()> {
        match fs::remove_file(self.mount.join(FILLER)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context("freeing a disk"),
            _ => Ok(()),
        }
    }

    /// From now on every write waits. Whoever waits can't even be killed.
    ///
    /// # Errors
    /// What `fsfreeze` said.
    pub fn stall(&self) -> anyhow::Result<()> {
        run("fsfreeze", &["-f", &text(&self.mount)]).map(|_| ())
    }

    /// Ends a stall.
    ///
    /// # Errors
    /// What `fsfreeze` said.
    pub fn resume(&self) -> anyhow::Result<()> {
        run("fsfreeze", &["-u", &text(&self.mount)]).map(|_| ())
    }

    /// Allows a process so many writes a second; 0 lifts the limit.
    ///
    /// # Errors
    /// When the controller refuses.
    pub fn limit(&self, process: Option<u32>, writes_per_second: u32) -> anyhow::Result<()> {
        fs::create_dir_all(&self.group)?;
        if let Some(process) = process {
            fs::write(self.group.join("cgroup.procs"), process.to_string()).context("moving a node to its group")?;
        }
        let limit = format!("{} {writes_per_second}", self.device);
        fs::write(self.group.join("blkio.throttle.write_iops_device"), limit).context("limiting a disk")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A disk that isn't stalled, or was never mounted, makes these fail: nothing is left to do then.
        let _ = self.resume();
        let _ = run("umount", &["-l", &text(&self.mount)]);
        let _ = fs::remove_dir(&self.group);
        let _ = fs::remove_file(&self.image);
    }
}

/// Resumes and unmounts what runs left behind whose process is gone.
///
/// # Errors
/// When the mounts can't be read.
pub fn remove_stale(prefix: &str) -> anyhow::Result<()> {
    for line in fs::read_to_string("/proc/mounts")?.lines() {
        let Some(mount) = line.split(' ').nth(1) else { continue };
        let Some((_, rest)) = mount.split_once(prefix) else { continue };
        let run_id: String = rest.chars().take_while(char::is_ascii_digit).collect();
        if run_id.is_empty() || Path::new("/proc").join(&run_id).exists() {
            continue;
        }
        let _ = run("fsfreeze", &["-u", mount]);
        run("umount", &["-l", mount])?;
    }
    Ok(())
}

fn free_bytes(space: &StatVfs) -> u64 {
    space.f_bavail.saturating_mul(space.f_frsize)
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
