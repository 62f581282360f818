//! One file of the log: preallocated and written with zeros (or with the remains of a recycled file), so
//! that a sync of an append has no metadata to write.
//!
//! ```text
//! 0          8        12      16     24       32     40     44       4096
//! | magic    | format | zero  | id   | bytes  | node | crc  | zeros … | records …
//! ```

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use meridian_failpoint::failpoint;
use meridian_types::NodeId;

/// Where the first record begins: the header has a page of its own, written once.
pub(crate) const RECORDS_AT: u64 = 4096;

/// The format of segments this version writes and reads.
pub(crate) const FORMAT: u32 = 1;

const MAGIC: &[u8; 8] = b"MRDNWAL\n";
const HEADER_BYTES: usize = 44;
const SUFFIX: &str = ".wal";
const SPARE_SUFFIX: &str = ".spare";

/// A segment open for reading and writing.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) id: u64,
    pub(crate) path: PathBuf,
    /// Its size on disk.
    pub(crate) bytes: u64,
    pub(crate) file: File,
}

/// What a file that is named like a segment turned out to be.
#[derive(Debug)]
pub(crate) enum Opened {
    /// A segment, with the node that wrote it.
    Segment(Segment, NodeId),
    /// Its header was never completed: it was being prepared when the process ended.
    Unfinished,
    /// Written by another version.
    Unknown(u32),
}

/// The path of a segment.
pub(crate) fn path(dir: &Path, id: u64) -> PathBuf {
    dir.join(format!("{id:016x}{SUFFIX}"))
}

/// The path of a file kept for reuse.
pub(crate) fn spare_path(dir: &Path, id: u64) -> PathBuf {
    dir.join(format!("{id:016x}{SPARE_SUFFIX}"))
}

/// The segment id in a file name, if it is one.
pub(crate) fn id_of(name: &str) -> Option<u64> {
    u64::from_str_radix(name.strip_suffix(SUFFIX)?, 16).ok()
}

/// Whether a file name is that of a spare, or of a spare in the making.
pub(crate) fn is_spare(name: &str) -> bool {
    name.ends_with(SPARE_SUFFIX)
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

impl Segment {
    /// Makes a segment out of the spare file at `spare`, or of a new file there if none is. On return it is
    /// under its own name and everything, the directory too, is on disk.
    pub(crate) fn prepare(dir: &Path, spare: &Path, id: u64, bytes: u64, node: NodeId) -> io::Result<Segment> {
        let file = options().create(true).truncate(false).open(spare)?;
        fill(&file, bytes)?;
        failpoint("segment.fill.after");
        file.write_all_at(&header(id, bytes, node), 0)?;
        failpoint("segment.header.after");
        file.sync_all()?;
        let path = path(dir, id);
        failpoint("segment.rename.before");
        std::fs::rename(spare, &path)?;
        failpoint("segment.rename.after");
        sync_dir(dir)?;
        failpoint("segment.directory.after");
        Ok(Segment { id, path, bytes, file })
    }

    /// Opens the file at `path` and reads its header.
    pub(crate) fn open(path: &Path, id: u64) -> io::Result<Opened> {
        let file = options().open(path)?;
        let bytes = file.metadata()?.len();
        let mut head = [0; HEADER_BYTES];
        match file.read_exact_at(&mut head, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Opened::Unfinished),
            read => read?,
        }
        if &head[..8] != MAGIC {
            return Ok(Opened::Unfinished);
        }
        let format = u32::from_le_bytes(array(&head, 8));
        if format != FORMAT {
            return Ok(Opened::Unknown(format));
        }
        let node = NodeId(u64::from_le_bytes(array(&head, 32)));
        if crc32c::crc32c(&head[..40]) != u32::from_le_bytes(array(&head, 40))
            || u64::from_le_bytes(array(&head, 16)) != id
        {
            return Ok(Opened::Unfinished);
        }
        Ok(Opened::Segment(Segment { id, path: path.to_owned(), bytes, file }, node))
    }
}

/// Gives the file its size in blocks that are written, not only reserved: turning reserved blocks into
/// written ones is a metadata change that every first sync over them would pay for.
fn fill(file: &File, bytes: u64) -> io::Result<()> {
    const CHUNK: usize = 1 << 20;
    let mut at = file.metadata()?.len();
    if at > bytes {
        return file.set_len(bytes);
    }
    let zeros = vec![0; CHUNK];
    while at < bytes {
        let length = usize::try_from(bytes - at).unwrap_or(CHUNK).min(CHUNK);
        file.write_all_at(&zeros[..length], at)?;
        at += length as u64;
    }
    Ok(())
}

pub(crate) fn header(id: u64, bytes: u64, node: NodeId) -> Vec<u8> {
    let mut head = Vec::with_capacity(RECORDS_AT as usize);
    head.extend_from_slice(MAGIC);
    head.extend_from_slice(&FORMAT.to_le_bytes());
    head.extend_from_slice(&[0; 4]);
    head.extend_from_slice(&id.to_le_bytes());
    head.extend_from_slice(&bytes.to_le_bytes());
    head.extend_from_slice(&node.0.to_le_bytes());
    let crc = crc32c::crc32c(&head);
    head.extend_from_slice(&crc.to_le_bytes());
    head.resize(RECORDS_AT as usize, 0);
    head
}

/// Makes names in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}
