//! Laws of the shard state machine, held against independent models and against itself, through its public face only.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests stop at the first surprise")]

mod backups;
mod chosen_again;
mod crossing;
mod damage;
mod history;
mod joins;
mod plays;
mod regions;
mod regroup;
mod repair;
mod rules;
mod turns;
mod world;
