//! Who listens where: addresses, directories, certificates and configurations of a planet.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use meridian_proto::identity::Identity;
use meridian_proto::tls::TlsFiles;
use meridian_types::{NodeName, RegionName};

use super::ports;
use super::profile::{Profile, ProfileRegion};
use crate::cert::{Authority, CA_VALIDITY, VALIDITY};
use crate::config::{Config, Joins, Limits, Listen, Member, Telemetry, Tls};
use crate::wan::{Distances, Pair, Route};

/// The regions of `dev` and `demo`, in the order they join.
pub const REGIONS: [&str; 3] = ["us-east", "eu-west", "ap-south"];

/// With a witness: two regions with data, and a third place that only votes in the metadata plane.
pub const WITNESSED: [&str; 3] = ["us-east", "eu-west", WITNESS];

/// The region of the witness.
const WITNESS: &str = "witness";

/// Ports between two regions: 3 of each of its nodes, then its links to the nodes of the others.
const PORT_BLOCK: u16 = 100;
const NODE_PORTS: u16 = 3;
const TCP_LINKS: u16 = 20;
const UDP_LINKS: u16 = 40;

/// As many nodes as a region may have here: the links of a region to so many in three fit between its ports.
pub const NODES_MAX: u16 = 3;

/// As many spares as the first region may have besides.
pub const SPARES_MAX: u16 = 2;

/// Failure domains of a region's nodes, in their order.
const ZONES: [&str; (NODES_MAX + SPARES_MAX) as usize] = ["a", "b", "c", "d", "e"];

/// As many as a real cluster has by default.
const SHARDS: u16 = 16;

/// openraft tells each step of each election at INFO; what matters of it, consensus tells itself.
const LOG: &str = "info,openraft=error";

/// Round trips between the real places, rounded: Virginia–Ireland 70–80 ms, Virginia–Mumbai 190–200, Ireland–Mumbai 120–130.
pub fn default_distances() -> Distances {
    round_trips([("us-east", "eu-west", 80), ("us-east", "ap-south", 200), ("eu-west", "ap-south", 130)])
}

fn round_trips(of: [(&str, &str, u64); 3]) -> Distances {
    let mut distances = Distances::default();
    for (a, b, millis) in of {
        if let (Ok(a), Ok(b)) = (RegionName::new(a), RegionName::new(b)) {
            distances.set_round_trip(Pair::new(a, b), Duration::from_millis(millis));
        }
    }
    distances
}

/// The same with a witness somewhere in between.
pub fn witnessed_distances() -> Distances {
    round_trips([("us-east", "eu-west", 80), ("us-east", WITNESS, 50), ("eu-west", WITNESS, 40)])
}

/// One node and where it lives.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its region.
    pub region: RegionName,
    /// Its name.
    pub node: NodeName,
    /// Its failure domain within the region.
    pub zone: &'static str,
    /// gRPC.
    pub rpc: SocketAddr,
    /// QUIC.
    pub replication: SocketAddr,
    /// HTTP.
    pub admin: SocketAddr,
    /// Its configuration file.
    pub config: PathBuf,
    /// Where it logs.
    pub log: PathBuf,
    /// Its data.
    pub data: PathBuf,
    /// Whether it only votes in the metadata plane.
    pub witness: bool,
    /// Whether it joins the cluster once that is formed, and holds nothing until it is told to.
    pub spare: bool,
}

/// The whole planet on paper.
#[derive(Clone, Debug)]
pub struct Plan {
    dir: PathBuf,
    cluster: String,
    distances: Distances,
    places: Vec<Place>,
}

impl Plan {
    /// Lays out [`REGIONS`] of one node each, below `dir` and from `port_base` up.
    ///
    /// # Errors
    /// When the ports don't fit, or `distances` names a region that isn't there.
    pub fn new(dir: &Path, cluster: &str, port_base: u16, distances: Distances) -> anyhow::Result<Plan> {
        Plan::of((REGIONS, 1), dir, cluster, port_base, distances)
    }

    /// The same with several nodes per region, at most [`NODES_MAX`].
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn of_nodes(
        nodes: u16,
        dir: &Path,
        cluster: &str,
        port_base: u16,
        distances: Distances,
    ) -> anyhow::Result<Plan> {
        Plan::of((REGIONS, nodes), dir, cluster, port_base, distances)
    }

    /// The same with spares in the first region, at most [`SPARES_MAX`].
    ///
    /// # Errors
    /// When the first region's names can't be made up.
    pub fn with_spares(mut self, spares: u16) -> anyhow::Result<Plan> {
        let Some(first) = self.places.first().cloned() else { return Ok(self) };
        let nodes = self.places.iter().filter(|place| place.region == first.region).count();
        for nth in 0..spares.min(SPARES_MAX) {
            let node = u16::try_from(nodes)? + nth;
            let spare = Place { spare: true, ..place(&self.dir, first.region.as_str(), first.rpc.port(), node)? };
            self.places.insert(usize::from(node), spare);
        }
        Ok(self)
    }

    /// The same for [`WITNESSED`], of one node each.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn witnessed(dir: &Path, cluster: &str, port_base: u16, distances: Distances) -> anyhow::Result<Plan> {
        Plan::of((WITNESSED, 1), dir, cluster, port_base, distances)
    }

    fn of(
        (regions, nodes): ([&str; 3], u16),
        dir: &Path,
        cluster: &str,
        port_base: u16,
        distances: Distances,
    ) -> anyhow::Result<Plan> {
        let blocks = u16::try_from(regions.len())?;
        if port_base < 1024 || port_base.checked_add(blocks * PORT_BLOCK).is_none() {
            bail!(crate::cli::Failure::invalid(format!(
                "--port-base {port_base} leaves no room for {blocks} blocks of {PORT_BLOCK} ports: use 1024 to {}",
                u16::MAX - blocks * PORT_BLOCK
            )));
        }
        if let Some(unknown) = distances.regions().find(|region| !regions.contains(&region.as_str())) {
            bail!(crate::cli::Failure::invalid(format!(
                "there is no region `{unknown}` here: the regions are {}",
                regions.join(", ")
            )));
        }
        std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let dir = dir.canonicalize().with_context(|| format!("cannot use {}", dir.display()))?;
        let places = regions
            .iter()
            .zip((port_base..).step_by(usize::from(PORT_BLOCK)))
            .flat_map(|(region, port)| (0..nodes.clamp(1, NODES_MAX)).map(move |node| (region, port, node)))
            .map(|(region, port, node)| place(&dir, region, port, node))
            .collect::<anyhow::Result<Vec<_>>>()?;
        Ok(Plan { dir, cluster: cluster.to_owned(), distances, places })
    }

    /// Where everything is kept.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The simulated distances.
    pub fn distances(&self) -> &Distances {
        &self.distances
    }

    /// The nodes, region by region in the order of [`REGIONS`].
    pub fn places(&self) -> Vec<Place> {
        self.places.clone()
    }

    /// The first node of each region.
    pub fn firsts(&self) -> Vec<Place> {
        self.places.chunk_by(|a, b| a.region == b.region).filter_map(|region| region.first()).cloned().collect()
    }

    /// The certificate that `dev` and `demo` connect with.
    pub fn client_tls(&self) -> TlsFiles {
        self.tls_files("operator")
    }

    /// One route from each region to each node of the others.
    pub fn routes(&self) -> Vec<Route> {
        self.pairs()
            .map(|(from, index, to)| Route {
                from: from.region.clone(),
                to: to.region.clone(),
                tcp: link(from, TCP_LINKS, index),
                tcp_target: to.rpc,
                udp: link(from, UDP_LINKS, index),
                udp_target: to.replication,
            })
            .collect()
    }

    /// Addresses of the others as a node (or a client) in `from` must dial them to be as far away as its region is.
    pub fn translate(&self, from: &RegionName) -> BTreeMap<String, String> {
        self.routes()
            .into_iter()
            .filter(|route| route.from == *from)
            .flat_map(|route| [(route.tcp_target, route.tcp), (route.udp_target, route.udp)])
            .map(|(target, link)| (target.to_string(), link.to_string()))
            .collect()
    }

    /// Checks that every port is free.
    ///
    /// # Errors
    /// Names the first busy one, who has it, and what to do.
    pub fn check_ports(&self) -> anyhow::Result<()> {
        let own =
            self.places.iter().flat_map(|place| [(place.rpc, "TCP"), (place.admin, "TCP"), (place.replication, "UDP")]);
        let links = self.routes().into_iter().flat_map(|route| [(route.tcp, "TCP"), (route.udp, "UDP")]);
        own.chain(links).try_for_each(|(address, what)| ports::check_free(address, what))
    }

    /// Whether every port is free, without a word.
    pub fn ports_are_free(&self) -> bool {
        self.check_ports().is_ok()
    }

    /// Writes certificates (once) and configurations (anew).
    ///
    /// # Errors
    /// When a file can't be written.
    pub fn write(&self) -> anyhow::Result<()> {
        let certs = self.certs();
        let other = self.places.iter().find(|place| !certs.join(format!("{}.pem", place.node)).exists());
        let more = self.stranger(&certs);
        if certs.join("operator.pem").exists()
            && let Some(other) = other.map(|place| format!("without {}", place.node)).or(more)
        {
            bail!(crate::cli::Failure::invalid(format!(
                "{} holds a planet {other}: choose another --dir, or start it with the regions and nodes it has",
                self.dir.display(),
            )));
        }
        if !certs.join("operator.pem").exists() {
            // A first start that was interrupted leaves an incomplete set behind: make it anew, nothing depends on it yet.
            if certs.exists() {
                std::fs::remove_dir_all(&certs).with_context(|| format!("cannot remove {}", certs.display()))?;
            }
            self.issue_certificates(&certs)?;
        }
        for place in &self.places {
            let text = toml::to_string(&self.config(place))?;
            std::fs::write(&place.config, text).with_context(|| format!("cannot write {}", place.config.display()))?;
        }
        Ok(())
    }

    /// A node that the planet in this directory has beside those on paper.
    fn stranger(&self, certs: &Path) -> Option<String> {
        let nodes = (1..=NODES_MAX + SPARES_MAX).flat_map(|node| REGIONS.map(|region| format!("{region}-{node}")));
        let mut beside = nodes.filter(|name| self.places.iter().all(|place| place.node.as_str() != name));
        beside.find(|name| certs.join(format!("{name}.pem")).exists()).map(|name| format!("with {name}"))
    }

    /// How to connect, as `--profile` reads it. `pids` are those of the nodes, in their order.
    pub fn profile(&self, pids: &[Option<u32>]) -> Profile {
        let firsts = self.firsts();
        let nodes = |region: &RegionName| {
            let region = region.clone();
            self.places.iter().zip(pids).filter(move |(place, _)| place.region == region)
        };
        let regions = firsts.iter().map(|place| ProfileRegion {
            name: place.region.clone(),
            endpoints: nodes(&place.region).map(|(node, _)| format!("https://{}", node.rpc)).collect(),
            admin: format!("http://{}", place.admin),
            pid: nodes(&place.region).next().and_then(|(_, pid)| *pid),
            translate: self.translate(&place.region),
            round_trip_ms: firsts
                .iter()
                .map(|to| (to.region.clone(), self.distances.round_trip(&place.region, &to.region).as_secs_f64() * 1e3))
                .collect(),
        });
        let tls = self.client_tls();
        Profile { cluster: self.cluster.clone(), ca: tls.ca, cert: tls.cert, key: tls.key, regions: regions.collect() }
    }

    fn issue_certificates(&self, certs: &Path) -> anyhow::Result<()> {
        let authority = Authority::create(certs, &self.cluster, CA_VALIDITY)?;
        for place in &self.places {
            let identity = Identity::Node { region: place.region.clone(), name: place.node.clone() };
            let hosts = ["localhost".to_owned(), Ipv4Addr::LOCALHOST.to_string()];
            authority.issue(&identity, &hosts, VALIDITY, place.node.as_str())?;
        }
        // Last: its presence says that the set is complete.
        authority.issue(&Identity::client("operator")?, &[], VALIDITY, "operator")?;
        Ok(())
    }

    fn config(&self, place: &Place) -> Config {
        let tls = self.tls_files(place.node.as_str());
        Config {
            cluster: self.cluster.clone(),
            region: place.region.clone(),
            node: place.node.clone(),
            data_dir: place.data.clone(),
            shards: SHARDS,
            listen: Listen {
                rpc: place.rpc,
                replication: (!place.witness).then_some(place.replication),
                admin: place.admin,
            },
            tls: Tls { ca: tls.ca, cert: tls.cert, key: tls.key },
            members: self.places.iter().filter(|place| !place.spare).map(member).collect(),
            joins: place.spare.then(|| joins(place)),
            translate: self.translate(&place.region),
            telemetry: Telemetry { log: LOG.to_owned(), ..Telemetry::default() },
            limits: Limits::default(),
        }
    }

    /// Each region, by its first node, with each node of the others and that one's number.
    fn pairs(&self) -> impl Iterator<Item = (&Place, u16, &Place)> {
        self.places.chunk_by(|a, b| a.region == b.region).filter_map(|region| region.first()).flat_map(move |from| {
            (0u16..)
                .zip(&self.places)
                .filter(|(_, to)| to.region != from.region)
                .map(move |(index, to)| (from, index, to))
        })
    }

    fn certs(&self) -> PathBuf {
        self.dir.join("certs")
    }

    fn tls_files(&self, stem: &str) -> TlsFiles {
        let certs = self.certs();
        TlsFiles::new(certs.join("ca.pem"), certs.join(format!("{stem}.pem")), certs.join(format!("{stem}-key.pem")))
    }
}

fn place(dir: &Path, region: &str, block: u16, node: u16) -> anyhow::Result<Place> {
    let (port, zone) = (block + node * NODE_PORTS, ZONES[usize::from(node)]);
    let node = format!("{region}-{}", node + 1);
    Ok(Place {
        region: RegionName::new(region)?,
        node: NodeName::new(&node)?,
        zone,
        rpc: localhost(port),
        replication: localhost(port + 1),
        admin: localhost(port + 2),
        config: dir.join(format!("{node}.toml")),
        log: dir.join(format!("{node}.log")),
        data: dir.join(&node),
        witness: region == WITNESS,
        spare: false,
    })
}

fn joins(place: &Place) -> Joins {
    let (rpc, replication) = (place.rpc.to_string(), place.replication.to_string());
    Joins { zone: place.zone.to_owned(), rpc, replication }
}

fn member(place: &Place) -> Member {
    Member {
        name: place.node.clone(),
        region: place.region.clone(),
        zone: place.zone.to_owned(),
        rpc: place.rpc.to_string(),
        replication: if place.witness { String::new() } else { place.replication.to_string() },
        witness: place.witness,
    }
}

fn link(from: &Place, kind: u16, index: u16) -> SocketAddr {
    localhost(from.rpc.port() + kind + index)
}

fn localhost(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(dir: &Path) -> Plan {
        Plan::new(dir, "test", 27_100, default_distances()).unwrap()
    }

    #[test]
    fn what_the_plan_writes_is_what_the_server_reads() {
        let dir = tempfile::tempdir().unwrap();
        let plan = plan(dir.path());
        plan.write().unwrap();
        for place in plan.places() {
            let config = Config::load(&place.config).unwrap();
            assert_eq!(config.node, place.node);
            assert_eq!(config.members.len(), 3);
            let tls = TlsFiles::new(config.tls.ca.clone(), config.tls.cert.clone(), config.tls.key.clone());
            assert_eq!(tls.load().unwrap().identity().node_id(), Some(meridian_types::NodeId::of(&place.node)));
        }
        let again = std::fs::read(dir.path().join("certs/ca.pem")).unwrap();
        plan.write().unwrap();
        assert_eq!(std::fs::read(dir.path().join("certs/ca.pem")).unwrap(), again, "a restart keeps the certificates");
    }

    #[test]
    fn a_witness_is_a_member_without_data_and_a_planet_keeps_its_regions() {
        let dir = tempfile::tempdir().unwrap();
        let plan = Plan::witnessed(dir.path(), "test", 27_100, witnessed_distances()).unwrap();
        plan.write().unwrap();
        let witness = Config::load(&dir.path().join("witness-1.toml")).unwrap();
        assert!(witness.is_witness() && witness.listen.replication.is_none());
        assert!(!Config::load(&dir.path().join("us-east-1.toml")).unwrap().is_witness());
        let other = Plan::new(dir.path(), "test", 27_100, default_distances()).unwrap();
        assert!(other.write().unwrap_err().to_string().contains("choose another --dir"));
    }

    #[test]
    fn a_region_of_three_nodes_has_a_zone_for_each_and_its_ports_do_not_overlap() {
        let dir = tempfile::tempdir().unwrap();
        let plan = Plan::of_nodes(3, dir.path(), "test", 27_100, default_distances()).unwrap();
        plan.write().unwrap();
        assert_eq!(plan.places().len(), 9);
        let config = Config::load(&dir.path().join("eu-west-3.toml")).unwrap();
        let own = config.members.iter().find(|member| member.name == config.node).unwrap();
        assert_eq!((own.zone.as_str(), own.rpc.as_str()), ("c", "127.0.0.1:27206"));
        let own = plan.places().into_iter().flat_map(|place| [place.rpc, place.replication, place.admin]);
        let links = plan.routes().into_iter().flat_map(|route| [route.tcp, route.udp]);
        let all: Vec<_> = own.chain(links).collect();
        let different: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!((all.len(), different.len()), (9 * 3 + 3 * 6 * 2, 9 * 3 + 3 * 6 * 2));
        assert_eq!(plan.profile(&[None; 9]).regions[1].endpoints.len(), 3);
        let fewer = Plan::new(dir.path(), "test", 27_100, default_distances()).unwrap();
        assert!(fewer.write().unwrap_err().to_string().contains("with us-east-2"));
    }

    #[test]
    fn a_spare_is_no_member_and_is_reached_like_one() {
        let dir = tempfile::tempdir().unwrap();
        let plan = Plan::of_nodes(3, dir.path(), "test", 27_100, default_distances()).unwrap().with_spares(2).unwrap();
        plan.write().unwrap();
        let names: Vec<_> = plan.places()[3..6].iter().map(|place| place.node.to_string()).collect();
        assert_eq!(names, ["us-east-4", "us-east-5", "eu-west-1"]);
        let config = Config::load(&dir.path().join("us-east-5.toml")).unwrap();
        let own = config.own_member().unwrap();
        assert_eq!((own.zone.as_str(), own.rpc.as_str(), config.members.len()), ("e", "127.0.0.1:27112", 9));
        let links = plan.routes().into_iter().flat_map(|route| [route.tcp, route.udp]);
        let own = plan.places().into_iter().flat_map(|place| [place.rpc, place.replication, place.admin]);
        let all: Vec<_> = own.chain(links).collect();
        let different: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(all.len(), different.len());
    }

    #[test]
    fn every_node_reaches_the_others_through_links_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let plan = plan(dir.path());
        assert_eq!(plan.routes().len(), 6);
        let us = &plan.places()[0];
        let translate = plan.translate(&us.region);
        assert_eq!(translate["127.0.0.1:27200"], "127.0.0.1:27121");
        assert_eq!(translate["127.0.0.1:27201"], "127.0.0.1:27141");
        assert!(!translate.contains_key("127.0.0.1:27100"));
    }

    #[test]
    fn the_profile_comes_back_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let plan = plan(dir.path());
        let profile = plan.profile(&[Some(1), Some(2), None]);
        profile.write(plan.dir()).unwrap();
        let read = Profile::read(plan.dir()).unwrap();
        assert_eq!(read, profile);
        assert_eq!(read.regions[0].round_trip_ms[&read.regions[1].name], 80.0);
    }

    #[test]
    fn an_unknown_region_or_an_impossible_port_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut distances = default_distances();
        let pair = Pair::new(RegionName::new("mars").unwrap(), RegionName::new("us-east").unwrap());
        distances.set_round_trip(pair, Duration::from_secs(60));
        let error = Plan::new(dir.path(), "t", 27_100, distances).unwrap_err();
        assert!(error.to_string().contains("mars") && error.to_string().contains("eu-west"), "{error}");
        assert!(Plan::new(dir.path(), "t", 65_400, default_distances()).is_err());
    }
}
