//! A disk that takes what is written and does not confirm it: the one difference between the kernel's memory and the disk that a test sees
//! without a loss of power.

use super::*;

/// The log over a device that takes writes and refuses to sync.
fn open_unsyncable(dir: &Path, poison: &Poison) -> Log {
    let real = spare::prepare_on_disk(dir.join(DIRECTORY), 64 << 10, NODE);
    let prepare: spare::Prepare = Box::new(move |spare, id| {
        let file = File::options().read(true).write(true).open("/dev/null")?;
        Ok(Segment { file, ..real(spare, id)? })
    });
    Log::open_with(dir, NODE, &options(), poison, prepare).unwrap()
}

#[test]
fn what_the_disk_has_not_confirmed_is_told_to_nobody_dur_1() {
    let dir = tempfile::tempdir().unwrap();
    let poison = Poison::new();
    let log = open_unsyncable(dir.path(), &poison);
    let group = log.group(GROUP);
    let told = append(&group, vec![entry(0, 1, b"value")]).recv().unwrap();
    assert!(told.is_err(), "it is in the kernel's memory at most");
    let problem = poison.error().unwrap().to_string();
    assert!(problem.contains("write-ahead log failed"), "a failed sync is the end of the node: {problem}");
    assert_eq!(log.syncs(), 0);
}

#[test]
fn a_vote_that_the_disk_has_not_confirmed_is_not_cast() {
    let dir = tempfile::tempdir().unwrap();
    let log = open_unsyncable(dir.path(), &Poison::new());
    let (sender, voted) = mpsc::channel();
    log.group(GROUP).save_vote(Bytes::from_static(b"vote"), Box::new(move |result| drop(sender.send(result))));
    assert!(voted.recv().unwrap().is_err());
}
