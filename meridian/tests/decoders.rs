//! No bytes make the binary's own decoders panic or lie; those of the other rooms are in `chaos/tests/decoders.rs`.

use chaos::fuzz::{Target, hold, storm};
use meridian::fuzz;

const ROUNDS: u64 = 2_000;

const TARGETS: [Target; 4] = [
    Target { name: "config", accepts: fuzz::config, seal: None, samples: || fuzz::samples("config") },
    Target { name: "manifest", accepts: fuzz::manifest, seal: None, samples: || fuzz::samples("manifest") },
    Target {
        name: "backup_part",
        accepts: fuzz::backup_part,
        seal: Some(fuzz::seal_backup_part),
        samples: || fuzz::samples("backup_part"),
    },
    Target {
        name: "backup_manifest",
        accepts: fuzz::backup_manifest,
        seal: Some(fuzz::seal_backup_manifest),
        samples: || fuzz::samples("backup_manifest"),
    },
];

#[test]
fn no_bytes_make_the_binary_s_decoders_panic_or_lie() {
    for target in TARGETS {
        let samples = (target.samples)();
        assert!(samples.iter().all(|sample| hold(&target, sample)), "{} does not read its own samples", target.name);
        let storm = storm(&target, &samples, 7, ROUNDS, &mut |_, run| run());
        let storm = storm.unwrap_or_else(|line| panic!("{line}"));
        assert!(storm.accepted > 0, "{}: nothing that was mutated was accepted: it is not reached", target.name);
    }
}
