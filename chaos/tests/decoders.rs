//! RES-1, DUR-3, SEC-1: no bytes from a disk or a peer make a decoder panic, lie, or take memory out of proportion.
//!
//! `MERIDIAN_FUZZ_ROUNDS` (inputs per decoder) and `MERIDIAN_SEED` choose how long and which; a failure prints the bytes.
//! One test alone in its binary: what it measures is the memory of the whole process.

use std::time::Instant;

use chaos::fuzz::{self, Target, corpus, storm};
use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Inputs per decoder: all of them together take a few seconds unoptimised.
const ROUNDS: u64 = 10_000;

/// A decoder may take this much whatever it is given: a frame says how long it is before it is opened (6 MiB, opened
/// up to four times by its law), and postcard makes room for 1 MiB of anything that claims to be many.
const MEMORY_FLOOR: usize = 32 << 20;

/// And this many times its input.
const MEMORY_FACTOR: usize = 200;

#[test]
fn no_bytes_make_a_decoder_panic_lie_or_take_memory_out_of_proportion() {
    let rounds = from_env("MERIDIAN_FUZZ_ROUNDS", ROUNDS);
    let seed = from_env("MERIDIAN_SEED", 0x6465_636f_6465);
    let mut failures = Vec::new();
    for target in fuzz::all() {
        let began = Instant::now();
        match try_out(&target, seed, rounds) {
            Ok(line) => eprintln!("{line} in {} ms", began.elapsed().as_millis()),
            Err(failure) => failures.push(failure),
        }
    }
    assert!(failures.is_empty(), "MERIDIAN_SEED={seed} MERIDIAN_FUZZ_ROUNDS={rounds}\n{}", failures.join("\n"));
}

fn try_out(target: &Target, seed: u64, rounds: u64) -> Result<String, String> {
    let kept = corpus(target.name).map_err(|error| format!("the corpus of {}: {error}", target.name))?;
    for (path, bytes) in &kept {
        let accepted = fuzz::hold(target, bytes);
        let is_sample = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("sample-"));
        if is_sample && !accepted {
            return Err(format!("{} was once written by an encoder and is no longer read", path.display()));
        }
    }
    for (number, sample) in (target.samples)().iter().enumerate() {
        if !fuzz::hold(target, sample) {
            return Err(format!("{} does not read its own sample {number}", target.name));
        }
    }
    // Files open logs on a real disk: a tenth is as much work as the rest.
    let rounds = if matches!(target.name, "log_recovery" | "snapshot_spool") { rounds / 5 } else { rounds };
    let seeds: Vec<Vec<u8>> = kept.into_iter().map(|(_, bytes)| bytes).collect();
    let mut most = 0;
    let storm = storm(target, &seeds, seed, rounds, &mut |input, run| {
        let before = MEMORY.current_usage();
        MEMORY.reset_peak_usage();
        run();
        let taken = MEMORY.peak_usage().saturating_sub(before);
        let allowed = MEMORY_FLOOR + MEMORY_FACTOR * input.len();
        assert!(taken <= allowed, "{} bytes of input took {taken} of memory", input.len());
        most = most.max(taken);
    })?;
    if storm.accepted == 0 {
        return Err(format!("{}: nothing of {} mutated inputs was accepted: it is not reached", target.name, rounds));
    }
    Ok(format!("{:18} {} inputs, {} accepted, {} KiB at most", target.name, storm.inputs, storm.accepted, most >> 10))
}

fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}
