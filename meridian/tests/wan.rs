//! Every promise that clients can see, held by real processes in three regions 30, 80 and 120 ms apart: a node is
//! killed, a region cut off, a node stopped, packets lost; then everything heals, and histories are checked.
//!
//! Needs Linux, root and TUN devices; elsewhere it prints what is missing and proves nothing. `chaos wan` does the same
//! for longer, with every fault there is. `MERIDIAN_SEED` chooses what clients do; a failure prints it.
#![cfg(target_os = "linux")]

use std::path::PathBuf;
use std::time::Duration;

use chaos::wan::fault::Fault;
use chaos::wan::runner::{self, Options, What};

const FAULTS: [(Fault, f64); 4] = [
    (Fault::Kill { node: 0 }, 0.5),
    (Fault::Isolate { region: 1 }, 4.0),
    (Fault::Pause { node: 0 }, 4.0),
    (Fault::Lose { share: 0.1 }, 4.0),
];

#[test]
fn promises_hold_between_distant_regions_through_a_kill_a_partition_a_pause_and_loss() -> anyhow::Result<()> {
    let seed = std::env::var("MERIDIAN_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    eprintln!("reproduce: MERIDIAN_SEED={seed} cargo test -p meridian --test wan");
    let options = Options {
        binary: PathBuf::from(env!("CARGO_BIN_EXE_meridian")),
        seed,
        round_trips: [30, 80, 120].map(Duration::from_millis),
        policies: vec![0, 1, 2],
        // Unoptimised, on a machine that runs other tests: a modest load.
        think: Duration::from_millis(300),
        // `chaos moves` and the operator's test move them.
        primaries_move: false,
        faketime: None,
        what: What::These(
            FAULTS.map(|(fault, seconds)| (fault, Duration::from_secs_f64(seconds))).to_vec(),
            Duration::from_secs(2),
        ),
    };
    let Some(report) = runner::run(&options, &mut std::io::stderr())? else { return Ok(()) };
    anyhow::ensure!(report.is_clean(), "{}", report.violations.join("\n"));
    let idle = report.policies.iter().filter(|policy| policy.answered == 0).count();
    anyhow::ensure!(idle == 0, "{idle} policies answered nothing: the load did not run");
    Ok(())
}
