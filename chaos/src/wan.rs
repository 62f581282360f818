//! The emulated WAN: real `meridian server` processes, each region in a network namespace of its own, joined by one
//! user-space forwarder that delays, limits, drops, doubles, reorders and cuts what they send each other.
//!
//! Linux and root only: [`namespaces::missing`] says what is missing elsewhere.

pub mod agenda;
mod arguments;
pub mod clock;
pub mod disk;
pub mod fault;
pub mod forwarder;
pub mod ground;
pub mod link;
pub mod namespaces;
pub mod nemesis;
pub mod operator;
pub mod outage;
mod packet;
mod queue;
pub mod regions;
pub mod report;
pub mod round;
pub mod runner;
mod shell;
pub mod tools;
mod undone;
pub mod weather;

pub use arguments::Arguments;
pub(crate) use arguments::binary;
