//! No bytes make the binary's own decoders panic or lie; those of the other rooms are in `chaos/tests/decoders.rs`. What is kept for them lies
//! beside theirs; `chaos` does not know this crate, so their samples are written from here.

use chaos::fuzz::{Target, corpus, hold, storm, write_corpus};
use meridian::fuzz;

const ROUNDS: u64 = 2_000;

const HOW: &str = "run `cargo test -p meridian --test decoders -- --ignored`";

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
        let kept = corpus(target.name).unwrap_or_else(|why| panic!("{} has no corpus ({why}): {HOW}", target.name));
        for (path, bytes) in &kept {
            let is_sample = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("sample-"));
            assert!(hold(&target, bytes) || !is_sample, "{} was once written and is no longer read", path.display());
        }
        let samples = (target.samples)();
        assert!(samples.iter().all(|sample| hold(&target, sample)), "{} does not read its own samples", target.name);
        let seeds: Vec<Vec<u8>> = kept.into_iter().map(|(_, bytes)| bytes).collect();
        assert!(!seeds.is_empty(), "the corpus of {} is empty: {HOW}", target.name);
        let storm = storm(&target, &seeds, 7, ROUNDS, &mut |_, run| run());
        let storm = storm.unwrap_or_else(|line| panic!("{line}"));
        assert!(storm.accepted > 0, "{}: nothing that was mutated was accepted: it is not reached", target.name);
    }
}

#[test]
#[ignore = "writes the samples of today into chaos/fuzz/corpus: cargo test -p meridian --test decoders -- --ignored"]
fn the_samples_are_written_into_the_corpora() {
    let samples: usize = TARGETS.iter().map(|target| (target.samples)().len()).sum();
    assert_eq!(write_corpus(&TARGETS).unwrap(), samples);
}
