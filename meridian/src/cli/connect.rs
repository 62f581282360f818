//! Finding the cluster: flags, environment, or the profile that `meridian dev` writes.

use std::path::{Path, PathBuf};

use clap::Args;
use meridian_client::Client;
use meridian_proto::tls::TlsFiles;
use meridian_types::RegionName;

use super::exit::Failure;
use crate::dev::{Profile, ProfileRegion};

/// Where `meridian dev` keeps its planet unless told otherwise.
pub(super) const DEV_DIR: &str = ".meridian/dev";

/// How to reach a cluster.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Connection")]
pub(super) struct Connection {
    /// A node to connect to, https://host:port; repeat for more.
    #[arg(long = "endpoint", global = true, value_name = "URL", env = "MERIDIAN_ENDPOINT", value_delimiter = ',')]
    endpoints: Vec<String>,
    /// The cluster's CA certificate.
    #[arg(long, global = true, value_name = "FILE", env = "MERIDIAN_CA")]
    ca: Option<PathBuf>,
    /// This client's certificate.
    #[arg(long, global = true, value_name = "FILE", env = "MERIDIAN_CERT")]
    cert: Option<PathBuf>,
    /// Its key.
    #[arg(id = "client_key", long = "key", global = true, value_name = "FILE", env = "MERIDIAN_KEY")]
    key: Option<PathBuf>,
    /// A directory with a connect.toml, as `meridian dev` writes it [default: .meridian/dev where it exists].
    #[arg(long, global = true, value_name = "DIR", env = "MERIDIAN_PROFILE")]
    profile: Option<PathBuf>,
    /// Act as a client in this region of the profile [default: its first].
    #[arg(long, global = true, value_name = "REGION", env = "MERIDIAN_REGION")]
    region: Option<RegionName>,
}

/// A cluster found: where to connect, with what, and what the profile knows besides.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) endpoints: Vec<String>,
    pub(super) tls: TlsFiles,
    /// The region of the profile, where there is a profile.
    pub(super) region: Option<ProfileRegion>,
    /// Every region of the profile.
    pub(super) profile: Option<Profile>,
}

impl Connection {
    /// Works out what to connect to. Flags win over the environment, both over the profile.
    pub(super) fn target(&self) -> anyhow::Result<Target> {
        let profile = self.read_profile()?;
        let region = profile.as_ref().map(|profile| profile.region(self.region.as_ref())).transpose()?.cloned();
        if profile.is_none() && self.region.is_some() {
            return Err(Failure::invalid(
                "--region chooses a region of a profile: give --profile, or that region's --endpoint",
            )
            .into());
        }
        let endpoints = match (&region, self.endpoints.is_empty()) {
            (_, false) => self.endpoints.clone(),
            // Who chose no region gets an answer from any; who chose one stands there, and nowhere else.
            (Some(region), true) if self.region.is_none() => with_the_others(region, profile.as_ref()),
            (Some(region), true) => region.endpoints.clone(),
            (None, true) => return Err(nowhere().into()),
        };
        let file = |given: &Option<PathBuf>, known: Option<&PathBuf>, flag: &str| {
            given.as_ref().or(known).cloned().ok_or_else(|| {
                Failure::invalid(format!(
                    "{flag} is missing: the cluster takes only clients with a certificate of its CA"
                ))
            })
        };
        let tls = TlsFiles::new(
            file(&self.ca, profile.as_ref().map(|profile| &profile.ca), "--ca")?,
            file(&self.cert, profile.as_ref().map(|profile| &profile.cert), "--cert")?,
            file(&self.key, profile.as_ref().map(|profile| &profile.key), "--key")?,
        );
        Ok(Target { endpoints, tls, region, profile })
    }

    /// Connects.
    pub(super) async fn connect(&self) -> anyhow::Result<Client> {
        self.target()?.connect().await
    }

    fn read_profile(&self) -> anyhow::Result<Option<Profile>> {
        match &self.profile {
            Some(dir) => Profile::read(dir).map(Some),
            // Endpoints given by hand are another cluster than the one that happens to be in this directory.
            None if !self.endpoints.is_empty() => Ok(None),
            None if Profile::exists(Path::new(DEV_DIR)) => Profile::read(Path::new(DEV_DIR)).map(Some),
            None => Ok(None),
        }
    }
}

impl Target {
    /// Connects.
    pub(super) async fn connect(&self) -> anyhow::Result<Client> {
        let mut builder = Client::builder().endpoints(self.endpoints.iter().cloned()).tls(self.tls.load()?);
        if let Some(region) = &self.region {
            let translate = region.translate.clone();
            builder =
                builder.translate(move |address| translate.get(address).cloned().unwrap_or_else(|| address.to_owned()));
        }
        Ok(builder.connect().await?)
    }
}

/// A region's endpoints, then those of the others as they are reached from there.
fn with_the_others(region: &ProfileRegion, profile: Option<&Profile>) -> Vec<String> {
    let others = profile.into_iter().flat_map(|profile| &profile.regions).filter(|other| other.name != region.name);
    let reached = |endpoint: &String| {
        let address = endpoint.trim_start_matches("https://");
        format!("https://{}", region.translate.get(address).map_or(address, String::as_str))
    };
    region.endpoints.iter().cloned().chain(others.flat_map(|other| other.endpoints.iter().map(reached))).collect()
}

fn nowhere() -> Failure {
    Failure::invalid(
        "no cluster to talk to: start `meridian dev` in this directory, or give --endpoint with --ca, --cert and --key, or --profile DIR",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_over_the_profile_and_nothing_at_all_says_what_to_do() {
        let by_hand = Connection {
            endpoints: vec!["https://a:1".into()],
            ca: Some("ca".into()),
            cert: Some("c".into()),
            key: Some("k".into()),
            ..Connection::default()
        };
        let target = by_hand.target().unwrap();
        assert_eq!(target.endpoints, ["https://a:1"]);
        assert!(target.profile.is_none());
        let error = Connection { ca: None, ..by_hand }.target().unwrap_err();
        assert!(error.to_string().contains("--ca"), "{error}");
    }

    #[test]
    fn a_profile_brings_endpoints_and_certificates_of_the_chosen_region() {
        let dir = tempfile::tempdir().unwrap();
        let plan = crate::dev::Plan::new(dir.path(), "t", 27_100, crate::dev::default_distances()).unwrap();
        plan.profile(&[None; 3]).write(plan.dir()).unwrap();
        let connection = |region: &str| Connection {
            profile: Some(dir.path().to_owned()),
            region: Some(RegionName::new(region).unwrap()),
            ..Connection::default()
        };
        assert_eq!(connection("eu-west").target().unwrap().endpoints, ["https://127.0.0.1:27200"]);
        let anywhere = Connection { region: None, ..connection("eu-west") }.target().unwrap().endpoints;
        assert_eq!(anywhere, ["https://127.0.0.1:27100", "https://127.0.0.1:27121", "https://127.0.0.1:27122"]);
        let error = connection("mars").target().unwrap_err();
        assert!(error.to_string().contains("us-east, eu-west, ap-south"), "{error}");
    }
}
