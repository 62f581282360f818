//! The table of all decoders.

use meridian_consensus::fuzz as consensus;
use meridian_metadata_node::fuzz as metadata_node;
use meridian_region_core::fuzz as region_core;
use meridian_region_node::fuzz as region_node;

use super::{Target, messages, operators, shard, words};

/// A decoder without checksums, or whose checksums no mutation has to get past.
const fn open(name: &'static str, accepts: fn(&[u8]) -> bool, samples: fn() -> Vec<Vec<u8>>) -> Target {
    Target { name, accepts, seal: None, samples }
}

const fn sealed(
    name: &'static str,
    accepts: fn(&[u8]) -> bool,
    seal: fn(&mut [u8]),
    samples: fn() -> Vec<Vec<u8>>,
) -> Target {
    Target { name, accepts, seal: Some(seal), samples }
}

/// Every decoder of bytes from a disk or a peer but the binary's own (`meridian/tests/decoders.rs`).
pub fn all() -> Vec<Target> {
    vec![
        sealed("log_record", consensus::record, consensus::seal_record, || consensus::samples("record")),
        sealed("log_recovery", consensus::log, consensus::seal_log, || consensus::samples("log")),
        open("raft_vote", consensus::vote, || consensus::samples("vote")),
        open("raft_members", consensus::members, || consensus::samples("members")),
        open("raft_mark", consensus::mark, || consensus::samples("mark")),
        open("raft_envelope", consensus::envelope, || consensus::samples("envelope")),
        sealed("snapshot_spool", consensus::spool, consensus::seal_spool, || consensus::samples("spool")),
        open("state_record", region_core::record, || region_core::samples("record")),
        open("state_shard_meta", region_core::shard_meta, || region_core::samples("shard_meta")),
        open("state_bucket_meta", region_core::bucket_meta, || region_core::samples("bucket_meta")),
        open("state_watermark", region_core::watermark, || region_core::samples("watermark")),
        open("state_kept_result", region_core::kept_result, || region_core::samples("kept_result")),
        open("state_key", region_core::state_key, || region_core::samples("state_key")),
        open("state_mark", region_node::mark, || region_node::samples("mark")),
        sealed("state_snapshot", region_node::snapshot, region_node::seal_snapshot, || {
            region_node::samples("snapshot")
        }),
        sealed("salvage", region_node::salvage, region_node::seal_salvage, || region_node::samples("salvage")),
        open("backup_log", region_core::backup_log, || region_core::samples("backup_log")),
        open("entry", words::entry, words::entries),
        open("entry_mirror", region_core::body, words::bodies),
        sealed("frame", words::frame, words::seal_frame, words::frames),
        open("frame_payload", words::frame_payload, words::frame_payloads),
        open("session_token", words::session_token, words::session_tokens),
        open("result_write", words::result_write, words::results_write),
        open("result_frame", words::result_frame, words::results_frame),
        open("result_control", words::result_control, words::results_control),
        sealed("shard_log", shard::play, shard::seal, shard::logs),
        open("link_hello", messages::hello, messages::hellos),
        open("link_welcome", messages::welcome, messages::welcomes),
        open("link_to_source", messages::to_source, messages::to_sources),
        open("link_to_target", messages::to_target, messages::to_targets),
        open("metadata_command", messages::command, messages::commands),
        open("metadata_reply", messages::reply, messages::replies),
        sealed("metadata_snapshot", messages::snapshot, messages::seal_crc_at_end, messages::snapshots),
        sealed("metadata_file", metadata_node::state_file, messages::seal_file, messages::files),
        open("wire_requests", messages::requests, messages::request_batches),
        open("wire_responses", messages::responses, messages::response_batches),
        open("wire_topology", messages::topology, messages::topologies),
        open("wire_reports", messages::reports, messages::report_samples),
        open("wire_admin", messages::admin, messages::admin_samples),
        open("wire_failover", operators::failover, operators::failovers),
        open("wire_recovery", operators::recovery, operators::recoveries),
        open("wire_operation", operators::operation, operators::operations),
        open("repair_ask", operators::ask, operators::asks),
        open("repair_told", operators::told, operators::tolds),
        open("wire_certificate", messages::certificate, messages::certificates),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::all;

    #[test]
    fn every_target_has_a_corpus_and_a_libfuzzer_target_and_a_name_of_its_own() {
        let names: BTreeSet<&str> = all().iter().map(|target| target.name).collect();
        assert_eq!(names.len(), all().len());
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
        let manifest = std::fs::read_to_string(dir.join("Cargo.toml")).unwrap();
        for name in names {
            assert!(dir.join("corpus").join(name).is_dir(), "{name} has no corpus: run `cargo run -p chaos -- corpus`");
            let source = std::fs::read_to_string(dir.join(format!("fuzz_targets/{name}.rs"))).unwrap();
            assert!(source.contains(&format!("one(\"{name}\"")), "{name}");
            assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name}");
        }
    }
}
