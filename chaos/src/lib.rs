//! Breaks things, and doubts answers.
//!
//! - [`target`]: where requests go, a simulated planet or real processes; [`history`]: what clients were told;
//!   [`trace`]: what truly happened, where an observer can see it.
//! - [`workload`]: what clients do, on purpose; [`check`]: what must be true of it, one file per promise.
//! - [`world`]: a simulated planet, deterministic and in virtual time; [`scenario`]: what happens on it; [`swarm`]: thousands
//!   of them.
//! - [`fuzz`]: bytes that no encoder wrote, for every decoder.
//! - [`model`]: leases, acknowledgement, a change of primary, degrading and the two lanes, in every order.
//! - [`mutants`]: planted bugs, which somebody must notice.
//! - [`real`]: real processes; [`wan`]: an emulated WAN between them; [`moves`]: primaries that move over it, measured.

pub mod check;
pub mod fuzz;
pub mod history;
pub mod model;
#[cfg(target_os = "linux")]
pub mod moves;
pub mod mutants;
pub mod real;
pub mod scenario;
pub mod swarm;
pub mod target;
pub mod trace;
#[cfg(target_os = "linux")]
pub mod wan;
pub mod workload;
pub mod world;
