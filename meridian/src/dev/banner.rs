//! What `meridian dev` says once it is ready: where everything is, and commands to paste.

use std::time::Duration;

use super::plan::Plan;
use crate::output::{Table, duration};

/// The text; `program` is how this binary was called, `profile` is the flag that finds it again, if one is needed.
pub fn banner(plan: &Plan, program: &str, profile: Option<&str>) -> String {
    let (places, firsts) = (plan.places(), plan.firsts());
    let names: Vec<String> = firsts.iter().map(|place| format!(">to {}", place.region)).collect();
    let mut columns = vec!["node", "rpc (gRPC, mTLS)", "admin (HTTP)"];
    columns.extend(names.iter().map(String::as_str));
    let mut table = Table::new(&columns);
    for from in &places {
        let mut row = vec![from.node.to_string(), format!("https://{}", from.rpc), format!("http://{}", from.admin)];
        row.extend(firsts.iter().map(|to| distance(plan.distances().round_trip(&from.region, &to.region))));
        table.row(row);
    }
    let meridian = match profile {
        Some(profile) => format!("{program} --profile {profile}"),
        None => program.to_owned(),
    };
    let tls = plan.client_tls();
    let (home, far) = (&places[0].region, &places[places.len() - 1].region);
    format!(
        "Meridian is ready: {regions} regions, simulated round trips on the right; data and logs in {dir}\n\n{table}\n\n\
         Try it from another terminal:\n\
         \n  {meridian} bucket create orders --policy sync\
         \n  {meridian} kv put orders hello world --region {home}\
         \n  {meridian} kv get orders hello --region {far} --read strong\
         \n  {meridian} kv get orders hello --region {far} --read eventual\
         \n  {meridian} bucket create carts --policy active-active\
         \n  {meridian} kv incr carts visits --region {far}\
         \n  {meridian} status\
         \n  {meridian} bench --policy async --clients 64\n\
         \nFrom your own program: endpoint https://{rpc}, TLS name `meridian`,\
         \n  --ca {ca} --cert {cert} --key {key}\n\
         \nCtrl-C stops everything; the data stays.",
        regions = firsts.len(),
        dir = plan.dir().display(),
        rpc = places[0].rpc,
        ca = tls.ca.display(),
        cert = tls.cert.display(),
        key = tls.key.display(),
    )
}

fn distance(round_trip: Duration) -> String {
    if round_trip.is_zero() { "-".to_owned() } else { duration(round_trip) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dev::default_distances;

    #[test]
    fn the_banner_tells_every_region_and_what_to_paste() {
        let dir = tempfile::tempdir().unwrap();
        let plan = Plan::new(dir.path(), "dev", 27_100, default_distances()).unwrap();
        let text = banner(&plan, "meridian", None);
        for expected in ["https://127.0.0.1:27300", "80.0 ms", "200 ms", "--region ap-south", "ca.pem"] {
            assert!(text.contains(expected), "{expected} is missing in\n{text}");
        }
        assert!(banner(&plan, "meridian", Some("/x")).contains("meridian --profile /x bucket create"));
    }
}
