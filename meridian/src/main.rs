//! The one binary: words in, an exit code out. What it can do is listed in [`meridian::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(meridian::cli::main() as u8)
}
