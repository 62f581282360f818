//! Doors for the fuzzer of `chaos`: what this crate reads from files and values. Each says whether the bytes were
//! accepted, and holds what was to its law: written again, it reads back as the same. Not part of the crate's interface.

use std::path::Path;

use meridian_types::ShardId;

use crate::backup::manifest as backup;
use crate::backup::part::{Packer, unpack};
use crate::config::Config;
use crate::transfer::{Fingerprint, Manifest};

/// A file of the backup that the first release wrote.
macro_rules! kept {
    ($name:literal) => {
        include_bytes!(concat!("../testdata/backup-1/orders-20261128T234501Z-3fa2/", $name))
    };
}

/// A node's configuration.
pub fn config(bytes: &[u8]) -> bool {
    let file = Path::new("node.toml");
    let read = |text: &str| Config::parse(text, file);
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let Ok(config) = read(text) else { return false };
    let Ok(again) = toml::to_string(&config) else { return true };
    assert_eq!(format!("{:?}", read(&again).ok()), format!("{:?}", Some(config)), "a configuration must come back");
    true
}

/// The manifest of an imported file that was too large for one value.
pub fn manifest(bytes: &[u8]) -> bool {
    let Ok(Some(manifest)) = Manifest::decode(bytes) else { return false };
    // A hash that is none is refused when it is used.
    let _ = manifest.fingerprint();
    assert_eq!(Manifest::decode(&manifest.encode()).ok().flatten(), Some(manifest), "a manifest must come back");
    true
}

/// A part of a backup: its rows are the same when they are packed again.
pub fn backup_part(bytes: &[u8]) -> bool {
    let Ok(rows) = unpack(bytes, (ShardId(0), 0)) else { return false };
    let mut packer = Packer::new(ShardId(0));
    let mut parts: Vec<_> = rows.iter().filter_map(|row| packer.push(row)).collect();
    parts.extend(packer.close());
    let again = parts.iter().flat_map(|part| unpack(&part.bytes, (ShardId(0), part.number)).unwrap_or_default());
    assert!(again.eq(rows), "rows of a backup must come back");
    true
}

/// Makes the checksum of a part right.
pub fn seal_backup_part(bytes: &mut [u8]) {
    if let Some((body, checksum)) = bytes.split_last_chunk_mut() {
        *checksum = crc32c::crc32c(body).to_le_bytes();
    }
}

/// What a backup says of itself.
pub fn backup_manifest(bytes: &[u8]) -> bool {
    let Ok(manifest) = backup::Manifest::decode(bytes) else { return false };
    assert_eq!(backup::Manifest::decode(&manifest.encode()), Ok(manifest), "a manifest must come back");
    true
}

/// Makes the checksum of a manifest right, where it is.
pub fn seal_backup_manifest(bytes: &mut [u8]) {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return };
    let checksum = format!("{:08x}", crc32c::crc32c(&bytes[end + 1..]));
    let at = "meridian-backup 1 ".len();
    if let Some(place) = bytes[..end].get_mut(at..at + checksum.len()) {
        place.copy_from_slice(checksum.as_bytes());
    }
}

/// The manifest of a backup that rests on that one, with the log of a shard.
fn link(base: &[u8]) -> Option<Vec<u8>> {
    let mut manifest = backup::Manifest::decode(base).ok()?;
    manifest.base = Some(backup::Base { id: manifest.id.clone(), seal: manifest.seal() });
    let shard = manifest.shards.first_mut()?;
    let evidence = Some(shard.digest.clone());
    shard.way = backup::Way::Log;
    shard.mark = Some(backup::Mark { bucket: 1, region: 1, applied: 9, evidence, stamp: 8, at_ms: 7 });
    (shard.log, shard.context) = (shard.parts.clone(), shard.parts.clone());
    manifest.shards.get_mut(1)?.why = Some("its epoch changed since".to_owned());
    Some(manifest.encode().to_vec())
}

/// Encodings to begin from, by the name of the door.
pub fn samples(door: &str) -> Vec<Vec<u8>> {
    match door {
        "config" => vec![
            include_bytes!("../../examples/three-regions/us-east-1.toml").to_vec(),
            include_bytes!("../../examples/two-regions-and-a-witness/witness-1.toml").to_vec(),
        ],
        "manifest" => {
            let of = |content: &[u8], parts| Manifest::new(Fingerprint::of(content), parts).encode().to_vec();
            vec![of(b"", 0), of(b"content", 3)]
        }
        "backup_part" => vec![kept!("s00000-p00000.part").to_vec()],
        "backup_manifest" => {
            let mut all = vec![kept!("manifest").to_vec()];
            all.extend(link(&all[0]));
            all
        }
        _ => Vec::new(),
    }
}
