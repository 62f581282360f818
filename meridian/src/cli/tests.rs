//! The command line as people type it.

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

/// It would mean what the connection means by it, in the environment, too: `--region` is where one stands.
#[test]
fn no_command_that_connects_has_an_argument_of_the_connection_s_name() {
    fn look(command: &clap::Command, taken: &[String], found: &mut Vec<String>) {
        for inner in command.get_subcommands().filter(|inner| inner.get_name() != "cert") {
            let same = inner.get_arguments().filter(|it| taken.contains(&it.get_id().to_string()));
            found.extend(same.map(|it| format!("{} {}", inner.get_name(), it.get_id())));
            look(inner, taken, found);
        }
    }
    let command = Cli::command();
    let taken: Vec<_> =
        command.get_arguments().filter(|it| it.is_global_set()).map(|it| it.get_id().to_string()).collect();
    assert!(taken.len() > 5, "{taken:?}");
    let mut found = Vec::new();
    look(&command, &taken, &mut found);
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn commands_read_as_people_type_them() {
    for line in [
        "meridian demo",
        "meridian demo /some/tree --rtt none",
        "meridian dev --port-base 9100 --rtt us-east:eu-west=30ms --link us-east:eu-west=400mbit,1%",
        "meridian server --config node.toml --stop-on-stdin-eof",
        "meridian cert init --dir pki",
        "meridian cert node --dir pki --region us-east --name us-east-1 --host us-east-1.example.net",
        "meridian cert client --dir pki --name operator --days 30",
        "meridian bucket create orders --policy sync --acks all --regions us-east,eu-west --primary eu-west --label team=shop --dry-run",
        "meridian bucket list -o json",
        "meridian bucket label orders team=shop old-",
        "meridian kv get orders k --read bounded:500ms --when-stale redirect --region ap-south",
        "meridian kv put orders k v --ttl 10m --ack 2 --session s.token",
        "meridian kv incr carts visits -3",
        "meridian kv cas orders k v --expect 1763630000000.0@1",
        "meridian kv mput orders a=1 b=2",
        "meridian kv scan orders order/ --limit 10 --keys-only",
        "meridian import files . --parallel 16 --verify",
        "meridian export files out --endpoint https://a:1 --ca ca --cert c --key k",
        "meridian backup create orders carts --to /backups --in eu-west --parallel 8",
        "meridian backup create --all --to s3://backups/meridian",
        "meridian backup create --all --to /backups --incremental",
        "meridian backup create orders --to /backups --since orders-20261128T234501Z-3fa2 --in eu-west --region us-east",
        "meridian backup list --from file:///backups -o json",
        "meridian backup delete --from /backups --id b --dry-run",
        "meridian backup verify --from /backups",
        "meridian upgrade check -o json",
        "meridian upgrade finalize --dry-run",
        "meridian backup show --from /backups --id orders-20261128T234501Z-3fa2",
        "meridian backup restore --from /backups --to-bucket again --create --policy sync --acks all --dry-run",
        "meridian backup restore --from /backups --id b --to-bucket orders --overwrite",
        "meridian backup restore --from /backups --id b --at 2026-11-20T02:00:30Z --to-bucket then --create",
        "meridian status --check --profile .meridian/dev",
        "meridian lag orders --lanes",
        "meridian bench --policy sync -c 64 -d 10s -s 256 -r 0.5 --distribution zipf:0.99 --rate 5000",
        "meridian switchover check --to eu-west --all-from us-east",
        "meridian switchover check --to eu-west --all-from us-east --watch -o json",
        "meridian switchover plan --to eu-west --label team=shop --max-lag 200 --max-pause 2s",
        "meridian switchover run --to eu-west --bucket orders --bucket carts --op-id m-7 --reason disks --at 2026-11-20T02:00Z",
        "meridian switchover run --to eu-west --bucket orders,carts --dry-run --at +10m -o json",
        "meridian drill failover --to eu-west --all-from us-east --sample 500 --keep-going -o json",
        "meridian drill failover --to eu-west --bucket orders,carts",
        "meridian operation list",
        "meridian operation show op-12",
        "meridian operation watch 12",
        "meridian operation abort op-12 --reason enough",
        "meridian events --since 10m --limit 5 -o json",
        "meridian events --since 2026-11-20T02:00Z --watch",
        "meridian events -n 3 -w --since 417",
        "meridian reinstate orders --in us-east --region eu-west",
        "meridian completions bash",
    ] {
        if let Err(error) = parse(line) {
            panic!("{line}: {error}");
        }
    }
}

#[test]
fn what_makes_no_sense_is_refused_at_once() {
    for line in [
        "meridian",
        "meridian dev --link us-east=1mbit",
        "meridian bucket create Orders",
        "meridian kv get orders",
        "meridian kv get orders k --read fresh",
        "meridian kv put orders k v --ttl soon",
        "meridian kv cas orders k v",
        "meridian import files . --parallel 0",
        "meridian cert node --name x",
        "meridian cert init --days 0",
        "meridian bench --distribution normal",
        "meridian switchover run --bucket orders",
        "meridian switchover run --to eu-west",
        "meridian switchover run --to eu-west --bucket orders --all-from us-east",
        "meridian switchover run --to eu-west --bucket orders --at tomorrow",
        "meridian switchover check --to eu-west --bucket orders --max-pause soon",
        "meridian drill failover --to eu-west",
        "meridian drill failover --bucket orders",
        "meridian drill failover --to eu-west --bucket orders --sample 0",
        "meridian drill failover --to eu-west --bucket orders --sample 10001",
        "meridian operation show orders",
        "meridian events --since soon",
        "meridian events --limit 0",
        "meridian events --limit 1025",
        "meridian backup create --to /backups",
        "meridian backup create orders --all --to /backups",
        "meridian backup restore --from /backups --to-bucket again --policy sync",
        "meridian backup restore --from /backups --to-bucket again --create --overwrite",
        "meridian backup verify --from /backups --id ../x",
    ] {
        assert!(parse(line).is_err(), "{line}");
    }
}

#[test]
fn completions_know_the_commands() {
    let mut script = Vec::new();
    clap_complete::generate(clap_complete::Shell::Bash, &mut Cli::command(), "meridian", &mut script);
    let script = String::from_utf8(script).unwrap();
    assert!(script.contains("import"), "the script lists subcommands");
}
