//! `meridian demo`: everything, on this machine, in a minute or two.

use std::path::PathBuf;

use super::dev::Links;
use super::exit::Failure;
use crate::demo::{Options, run as run_demo};
use crate::output::{Format, show};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The files to import.
    #[arg(default_value = ".")]
    path: PathBuf,
    /// Keep certificates, logs and data here [default: a temporary directory, removed when all went well].
    #[arg(long)]
    dir: Option<PathBuf>,
    #[command(flatten)]
    links: Links,
}

pub(super) async fn run(args: Args, format: Format) -> anyhow::Result<()> {
    let options =
        Options { path: args.path, distances: args.links.distances(crate::dev::default_distances())?, dir: args.dir };
    let report = run_demo(&options).await?;
    show(format, &report)?;
    if report.is_equal() {
        Ok(())
    } else {
        Err(Failure::failed("the regions are not equal, or something is missing").into())
    }
}
