//! The emulated WAN: real `meridian server` processes, each region in a network namespace of its own, joined by one
//! user-space forwarder that delays, limits, drops, doubles, reorders and cuts what they send each other.
//!
//! Linux and root only: [`namespaces::missing`] says what is missing elsewhere.

pub mod forwarder;
pub mod ground;
pub mod link;
pub mod namespaces;
mod packet;
mod queue;
