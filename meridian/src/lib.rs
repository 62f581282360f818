//! Meridian's binary as a library: what `main.rs` runs, and what tests and `chaos` drive directly.
//!
//! Owns what an operator types and the composition root that connects the rooms. Decides nothing about data.

pub mod backup;
pub mod bench;
pub mod cert;
pub mod cli;
pub mod config;
pub mod demo;
pub mod dev;
#[doc(hidden)]
pub mod fuzz;
pub mod observability;
pub mod output;
pub mod server;
pub mod transfer;
pub mod wan;
