//! The one binary: words in, an exit code out. What it can do is listed in [`meridian::cli`].

use std::process::ExitCode;

/// Requests and entries are many small allocations that one thread makes and another frees.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    ExitCode::from(meridian::cli::main() as u8)
}
