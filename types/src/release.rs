//! Releases, and which formats of the metadata each can read.
//!
//! ```text
//!   every node of one release ──► one node after the other runs the next ──► finalized
//!        format n                  format n: whoever runs either reads all     format n + 1: no way back
//! ```
//! A node says which release it runs when it registers. What only a newer format can say is refused until an operator says that no node goes
//! back (`meridian upgrade finalize`): a node that met a format it does not know could only stop.

/// The newest format that this release reads and writes.
pub const FORMAT_NEWEST: u8 = 11;

/// The format of a cluster of which nobody has said it: what every release before 0.2 writes.
pub const FORMAT_UNSAID: u8 = 10;

/// The first release that knows a format which is finalized.
const FINALIZING: (u64, u64) = (0, 2);

/// The newest format that a node reads, by the version of its release; of a later one than this, at least as much as this reads. `None` of a
/// node that has never said its version, and of one that says what is no version.
pub fn format_of(version: &str) -> Option<u8> {
    let mut numbers = version.split('.').map(|part| part.parse::<u64>().ok());
    let release = (numbers.next()??, numbers.next()??);
    Some(if release < FINALIZING { FORMAT_UNSAID } else { FORMAT_NEWEST })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_reads_what_it_knew_when_it_was_built() {
        let formats = ["0.1.0", "0.1.9-rc.1", "0.2.0", "0.10.0", "1.0.0", "", "0", "v0.2", "x.y.z"].map(format_of);
        let (before, now) = (Some(FORMAT_UNSAID), Some(FORMAT_NEWEST));
        assert_eq!(formats, [before, before, now, now, now, None, None, None, None]);
        assert_eq!(format_of(env!("CARGO_PKG_VERSION")), now, "this release");
    }
}
