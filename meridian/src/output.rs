//! The only place that prints: tables for people, JSON for programs, progress on stderr.
//!
//! Results go to stdout, everything else (notes, progress, errors) to stderr, so that `-o json` can be
//! piped. A reader that went away (`| head`) ends the program quietly.

use std::io::Write;

use clap::ValueEnum;
use serde::Serialize;

mod live;
mod progress;
mod table;
mod units;

pub use live::Live;
pub use progress::Progress;
pub use table::Table;
pub use units::{bytes, count, duration, millis, share};

/// Who reads the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// People.
    #[default]
    Table,
    /// Programs.
    Json,
}

/// A result: the same facts for people and for programs.
pub trait Show: Serialize {
    /// The facts as people read them; without a newline at the end.
    fn text(&self) -> String;
}

/// Prints a result.
///
/// # Errors
/// When stdout can't be written, other than by a reader that went away.
pub fn show(format: Format, result: &impl Show) -> anyhow::Result<()> {
    match format {
        Format::Table => text(&result.text()),
        Format::Json => text(&serde_json::to_string_pretty(result)?),
    }
}

/// Prints lines to stdout.
///
/// # Errors
/// As [`show`].
pub fn text(lines: &str) -> anyhow::Result<()> {
    raw(format!("{lines}\n").as_bytes())
}

/// Prints bytes to stdout as they are.
///
/// # Errors
/// As [`show`].
pub fn raw(bytes: &[u8]) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        // Nobody reads on: there is nobody to tell either.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        written => Ok(written?),
    }
}

/// Prints a line for people to stderr.
pub fn note(line: &str) {
    // Without a stderr there is nobody to tell.
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}
