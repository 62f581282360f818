//! SDK and gateway end to end: real TLS over loopback, fakes behind the gateway.

// The whole crate is tests; clippy only knows those that are functions marked so.
#![allow(clippy::unwrap_used)]

mod certificates;
mod faults;
mod identity;
mod operations;
mod operators;
mod overload;
mod proxy;
mod store;
mod world;
