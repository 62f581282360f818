//! `cargo run -p chaos -- <what>`: breaks things by hand, for longer than a test may.

use std::io;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use chaos::fuzz::{self, storm};
use chaos::swarm::cli;
use chaos::{model, mutants};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Breaks Meridian, and doubts its answers")]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Mutated bytes for every decoder of what comes from a disk or a peer
    Fuzz(Fuzz),
    /// Write the encodings that fuzzing begins from into chaos/fuzz/corpus
    Corpus,
    /// Leases, acknowledgement and a change of primary, in every order
    Model(model::cli::ModelArguments),
    /// Plant known kinds of bugs in a copy of the product, and see who notices
    Mutants(mutants::Arguments),
    /// Simulated planets by the hundred, a scenario drawn for each
    Swarm(cli::SwarmArguments),
    /// One simulated planet
    Run(cli::RunArguments),
    /// Primaries that move under load over the emulated WAN, measured (Linux, root)
    #[cfg(target_os = "linux")]
    Moves(chaos::moves::Arguments),
    /// Real nodes in three network namespaces over an emulated WAN (Linux, root)
    #[cfg(target_os = "linux")]
    Wan(chaos::wan::Arguments),
}

#[derive(clap::Args)]
struct Fuzz {
    /// Seconds for each decoder
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Only this decoder
    #[arg(long)]
    target: Option<String>,
    /// Where to begin
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What a shell calls the end of a program that nobody reads from any more: there is no verdict that anybody heard.
const NOBODY_READS: u8 = 128 + 13;

fn main() -> anyhow::Result<ExitCode> {
    match run(Arguments::parse().what) {
        // `| head` has what it wants: that is no failure to explain.
        Err(error) if is_broken_pipe(&error) => Ok(ExitCode::from(NOBODY_READS)),
        ended => ended,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn run(what: What) -> anyhow::Result<ExitCode> {
    match what {
        What::Fuzz(options) => run_fuzz(&options),
        What::Swarm(arguments) => kept(cli::swarm(&arguments, &mut io::stdout())?),
        What::Run(arguments) => kept(cli::run(&arguments, &mut io::stdout())?),
        #[cfg(target_os = "linux")]
        What::Moves(arguments) => kept(arguments.run(&mut io::stdout())?),
        #[cfg(target_os = "linux")]
        What::Wan(arguments) => kept(arguments.run(&mut io::stdout())?),
        What::Corpus => {
            let written = fuzz::write_corpus(&fuzz::all())?;
            eprintln!("{written} samples in {}", fuzz::corpus_dir().display());
            Ok(ExitCode::SUCCESS)
        }
        What::Model(arguments) => kept(model::cli::model(&arguments, &mut io::stdout())?),
        What::Mutants(arguments) => {
            let noticed = arguments.run(&mut std::io::stdout().lock())?;
            Ok(if noticed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}

/// What the shell is told.
fn kept(kept: bool) -> anyhow::Result<ExitCode> {
    Ok(if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Inputs between two looks at the clock.
const BATCH: u64 = 2_000;

fn run_fuzz(options: &Fuzz) -> anyhow::Result<ExitCode> {
    let chosen = |name: &str| options.target.as_deref().is_none_or(|target| target == name);
    let mut broken = 0;
    for target in fuzz::all().into_iter().filter(|target| chosen(target.name)) {
        let seeds: Vec<Vec<u8>> = fuzz::corpus(target.name)?.into_iter().map(|(_, bytes)| bytes).collect();
        let until = Instant::now() + Duration::from_secs(options.seconds);
        let (mut inputs, mut accepted, mut seed) = (0, 0, options.seed);
        while Instant::now() < until {
            match storm(&target, &seeds, seed, BATCH, &mut |_, run| run()) {
                Ok(storm) => (inputs, accepted) = (inputs + storm.inputs, accepted + storm.accepted),
                Err(line) => {
                    eprintln!("{line}");
                    broken += 1;
                    break;
                }
            }
            seed += 1;
        }
        eprintln!("{:18} {inputs} inputs, {accepted} accepted, seeds {}..{seed}", target.name, options.seed);
    }
    Ok(if broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
