//! Doors for the fuzzer of `chaos`: what this crate reads from files and values. Each says whether the bytes were
//! accepted, and holds what was to its law: written again, it reads back as the same. Not part of the crate's interface.

use std::path::Path;

use crate::config::Config;
use crate::transfer::{Fingerprint, Manifest};

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

/// Encodings to begin from, by the name of the door.
pub fn samples(door: &str) -> Vec<Vec<u8>> {
    match door {
        "config" => vec![include_bytes!("../../examples/three-regions/us-east-1.toml").to_vec()],
        "manifest" => {
            let fingerprint = Fingerprint::of(b"content");
            vec![Manifest::new(fingerprint, 3).encode().to_vec()]
        }
        _ => Vec::new(),
    }
}
