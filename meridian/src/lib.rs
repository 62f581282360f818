//! Meridian's binary as a library: what `main.rs` runs, and what tests and `chaos` drive directly.
//!
//! Owns what an operator types and the composition root that connects the rooms. Decides nothing about data.

pub mod cert;
pub mod config;
pub mod observability;
pub mod server;
pub mod wan;
