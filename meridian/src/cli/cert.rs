//! `meridian cert`: the CA, and certificates of nodes and clients.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use meridian_proto::identity::Identity;
use meridian_types::{NodeName, RegionName};

use super::exit::Failure;
use crate::cert::Authority;
use crate::output::note;

const DAY: Duration = Duration::from_secs(86_400);

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Create a CA: ca.pem and ca-key.pem. Whoever has ca-key.pem can join, ship and administer.
    Init {
        /// The cluster's name, for people who look at the certificate.
        #[arg(long, default_value = "meridian")]
        cluster: String,
        /// Days it is valid.
        #[arg(long, default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36_500))]
        days: u32,
        #[command(flatten)]
        place: Place,
    },
    /// Issue a node's certificate: it may speak for its region and for no other.
    Node {
        /// The region the node lives in.
        #[arg(long)]
        region: RegionName,
        /// The node's name, unique in the cluster.
        #[arg(long)]
        name: NodeName,
        /// A DNS name or IP address to put in besides (repeatable); Meridian itself needs none.
        #[arg(long = "host")]
        hosts: Vec<String>,
        #[command(flatten)]
        validity: Validity,
        #[command(flatten)]
        place: Place,
    },
    /// Issue a client's certificate.
    Client {
        /// The client's name: it is recorded with what the client does.
        #[arg(long)]
        name: String,
        #[command(flatten)]
        validity: Validity,
        #[command(flatten)]
        place: Place,
    },
}

#[derive(Debug, Args)]
pub(super) struct Place {
    /// The directory of the CA.
    #[arg(long, default_value = "pki")]
    dir: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct Validity {
    /// Days it is valid.
    #[arg(long, default_value_t = 825, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,
}

pub(super) fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Init { cluster, days, place } => {
            Authority::create(&place.dir, cluster, DAY * *days)?;
            note(&format!(
                "created the CA in {}: keep ca-key.pem safe, give ca.pem to every node and client",
                place.dir.display()
            ));
        }
        Command::Node { region, name, hosts, validity, place } => {
            let identity = Identity::Node { region: region.clone(), name: name.clone() };
            issue(place, &identity, hosts, validity, name.as_str())?;
        }
        Command::Client { name, validity, place } => {
            let identity = Identity::client(name).map_err(|error| Failure::invalid(error.to_string()))?;
            issue(place, &identity, &[], validity, name)?;
        }
    }
    Ok(())
}

fn issue(place: &Place, identity: &Identity, hosts: &[String], validity: &Validity, stem: &str) -> anyhow::Result<()> {
    let files = Authority::open(&place.dir)?.issue(identity, hosts, DAY * validity.days, stem)?;
    note(&format!(
        "issued {} for {identity}, valid {} days; its key is {}",
        files.cert.display(),
        validity.days,
        files.key.display()
    ));
    Ok(())
}
