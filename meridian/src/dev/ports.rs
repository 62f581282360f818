//! Whether a port is free, and who has it when it isn't.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::Path;

use crate::cli::Failure;

/// Checks that an address can be bound.
///
/// # Errors
/// Names the process that has it, where /proc tells, and what to do.
pub(super) fn check_free(address: SocketAddr, what: &str) -> anyhow::Result<()> {
    let bound = match what {
        "UDP" => UdpSocket::bind(address).map(drop),
        _ => TcpListener::bind(address).map(drop),
    };
    let Err(error) = bound else { return Ok(()) };
    let blame = match owner(address.port(), what) {
        Some(owner) => format!("{owner} has it"),
        None => error.to_string(),
    };
    Err(Failure::not_ready(format!(
        "{what} port {} is not free ({blame}): stop that process, or choose other ports with --port-base",
        address.port()
    ))
    .into())
}

/// `meridian (pid 123)`, if this user may see it.
fn owner(port: u16, what: &str) -> Option<String> {
    let inode =
        inode(&std::fs::read_to_string(if what == "UDP" { "/proc/net/udp" } else { "/proc/net/tcp" }).ok()?, port)?;
    let link = format!("socket:[{inode}]");
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    processes.filter(|process| process.file_name().to_string_lossy().parse::<u32>().is_ok()).find_map(|process| {
        let mut files = std::fs::read_dir(process.path().join("fd")).ok()?.flatten();
        let has_it = files.any(|file| std::fs::read_link(file.path()).is_ok_and(|target| target == Path::new(&link)));
        has_it.then(|| {
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            format!("{} (pid {})", name.trim(), process.file_name().to_string_lossy())
        })
    })
}

/// The inode of the socket that listens on `port`: local address in column 2, state in 4 (0A listening, 07 for UDP), inode in 10.
fn inode(table: &str, port: u16) -> Option<String> {
    let suffix = format!(":{port:04X}");
    table.lines().skip(1).find_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let listens = columns.get(1)?.ends_with(&suffix) && matches!(*columns.get(3)?, "0A" | "07");
        listens.then(|| columns.get(9).map(|inode| (*inode).to_owned()))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_port_names_its_owner_and_the_remedy() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let error = check_free(address, "TCP").unwrap_err().to_string();
        assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
        assert!(error.contains("--port-base"), "{error}");
        drop(listener);
        assert!(check_free(address, "TCP").is_ok());
    }
}
