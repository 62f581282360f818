//! Compiles the .proto files with protox, so that nobody needs `protoc`.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["meridian.proto"], ["proto"])?;
    // Keys, values and envelopes are passed on without being copied.
    let mut config = tonic_prost_build::configure().bytes(".");
    // Written by hand, so that they are bounded while they are decoded.
    for message in ["RequestBatch", "MultiGet", "MultiPut", "ResponseBatch", "Values", "Page"] {
        config = config.extern_path(format!(".meridian.v1.{message}"), format!("crate::bounded::{message}"));
    }
    config.compile_fds(descriptors)?;
    Ok(())
}
