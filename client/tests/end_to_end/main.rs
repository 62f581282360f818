//! SDK and gateway end to end: real TLS over loopback, fakes behind the gateway.

mod certificates;
mod faults;
mod identity;
mod operations;
mod operators;
mod overload;
mod proxy;
mod store;
mod world;
