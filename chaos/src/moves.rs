//! Primaries that move under load, between real processes over the emulated WAN: what clients see of it, in figures.
//!
//! Every caller counts: it increments a counter of its own, one at a time, and each answer must be one more than the last
//! (CON-1, ONE-1, SWI-1: nothing acknowledged is missing, nothing counts twice). Linux and root, as [`crate::wan`].

mod arguments;
mod callers;
mod degrading;
mod failovers;
mod figures;
mod forced;
mod leaders;
mod reinstate;
mod stage;
mod switchovers;
mod writers;

pub use arguments::Arguments;
