//! The laws of the log: what was noticed as synced is there after any crash, and damage is never served.

use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::stall::LogDisk;

mod unconfirmed;

const NODE: NodeId = NodeId(7);
const GROUP: GroupId = GroupId(1);

/// Far beyond what a busy machine needs.
const PATIENCE: Duration = Duration::from_secs(60);

fn options() -> LogOptions {
    LogOptions { segment_bytes: 64 << 10, cache_bytes: 8 << 10, queue_bytes_max: 1 << 20 }
}

fn open(dir: &Path) -> Result<Log, OpenError> {
    Log::open(dir, NODE, &options(), &Poison::new())
}

fn entry(index: u64, term: u64, payload: &[u8]) -> Entry {
    Entry { id: EntryId { term, index }, kind: Kind::Normal, payload: Bytes::copy_from_slice(payload) }
}

fn append(group: &GroupHandle, entries: Vec<Entry>) -> mpsc::Receiver<io::Result<()>> {
    let (sender, receiver) = mpsc::channel();
    group.append(entries, Box::new(move |result| drop(sender.send(result))));
    receiver
}

/// Appends and waits for the sync.
fn put(group: &GroupHandle, entries: Vec<Entry>) {
    append(group, entries).recv().unwrap().unwrap();
}

/// Five records of ten bytes, each synced before the next.
fn put_five(group: &GroupHandle) {
    (0..5).for_each(|index| put(group, vec![entry(index, 1, b"0123456789")]));
}

fn all(group: &GroupHandle) -> Vec<Entry> {
    let (purged, _) = group.bounds();
    let mut entries: Vec<Entry> = Vec::new();
    let mut from = purged.map_or(0, |purged| purged.index + 1);
    loop {
        let more = group.read(from, u64::MAX, 1 << 20).unwrap();
        let Some(last) = more.last() else { return entries };
        from = last.id.index + 1;
        entries.extend(more);
    }
}

/// What a process leaves behind that is killed now.
fn copy(from: &Path) -> TempDir {
    let to = tempfile::tempdir().unwrap();
    std::fs::create_dir(to.path().join(DIRECTORY)).unwrap();
    for item in std::fs::read_dir(from.join(DIRECTORY)).unwrap() {
        let item = item.unwrap();
        // The spare thread may rename while this lists.
        let _ = std::fs::copy(item.path(), to.path().join(DIRECTORY).join(item.file_name()));
    }
    to
}

fn segment_file(dir: &Path, id: u64) -> File {
    File::options().read(true).write(true).open(segment::path(&dir.join(DIRECTORY), id)).unwrap()
}

/// Whether the first segment has a record behind `bytes` of records. A log at rest marks its end, wherever that is.
fn goes_on(dir: &Path, bytes: u64) -> bool {
    let mut behind = [0; record::HEADER_BYTES];
    segment_file(dir, 1).read_exact_at(&mut behind, segment::RECORDS_AT + bytes).unwrap();
    behind.iter().any(|byte| *byte != 0)
}

/// What a process leaves behind that is killed with `bytes` of records in its log, which was never at rest between them:
/// a busy machine may let it rest, then it begins anew.
fn killed_at_work(bytes: u64, work: impl Fn(&GroupHandle)) -> TempDir {
    let started = Instant::now();
    loop {
        let dir = tempfile::tempdir().unwrap();
        let log = open(dir.path()).unwrap();
        work(&log.group(GROUP));
        let killed = copy(dir.path());
        if !goes_on(killed.path(), bytes) {
            return killed;
        }
        assert!(started.elapsed() < PATIENCE, "the log was at rest each time");
    }
}

#[test]
fn what_was_synced_is_there_after_a_restart_and_so_are_vote_and_marks() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path()).unwrap();
    let group = log.group(GROUP);
    let (sender, voted) = mpsc::channel();
    group.save_vote(Bytes::from_static(b"vote"), Box::new(move |result| drop(sender.send(result))));
    voted.recv().unwrap().unwrap();
    put(&group, (0..10).map(|index| entry(index, 1, b"value")).collect());
    group.set_committed(Some(EntryId { term: 1, index: 9 }));
    put(&group, vec![entry(10, 2, b"")]);
    group.purge(EntryId { term: 1, index: 3 }).unwrap();
    drop((group, log));

    let log = open(dir.path()).unwrap();
    let group = log.group(GROUP);
    assert_eq!(group.vote().as_deref(), Some(&b"vote"[..]));
    assert_eq!(group.committed(), Some(EntryId { term: 1, index: 9 }));
    assert_eq!(group.bounds(), (Some(EntryId { term: 1, index: 3 }), Some(EntryId { term: 2, index: 10 })));
    assert_eq!(all(&group).len(), 7);
    assert!(matches!(group.read(2, 5, 100), Err(ReadFailure::Trimmed { first: 4 })));
}

#[test]
fn one_sync_serves_everybody_who_waits_dur_1() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path()).unwrap();
    let groups: Vec<_> = (1..=8).map(|id| log.group(GroupId(id))).collect();
    // The writer is at work until all have come.
    let ((told, busy), (go_on, waits)) = (mpsc::channel(), mpsc::channel::<()>());
    let notice = move |_: io::Result<()>| {
        told.send(()).unwrap();
        let _ = waits.recv();
    };
    log.group(GroupId(9)).append(vec![entry(0, 1, b"first")], Box::new(notice));
    busy.recv().unwrap();
    let before = log.syncs();
    let waiting: Vec<_> = (0..50)
        .flat_map(|index| groups.iter().map(move |group| append(group, vec![entry(index, 1, b"value")])))
        .collect();
    drop(go_on);
    // Of the appends of one group in one batch only the last is told; the others are dropped then.
    waiting.into_iter().for_each(|receiver| drop(receiver.recv()));
    assert_eq!(log.syncs() - before, 1, "syncs for 400 appends");
    assert!(groups.iter().all(|group| all(group).len() == 50));
}

#[test]
fn a_second_process_is_refused_by_name_of_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let _log = open(dir.path()).unwrap();
    let refused = open(dir.path()).err().unwrap();
    assert!(matches!(&refused, OpenError::Locked { dir: named } if named == dir.path()), "{refused}");
}

#[test]
fn another_nodes_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path()).unwrap();
    put(&log.group(GROUP), vec![entry(0, 1, b"x")]);
    drop(log);
    let other = Log::open(dir.path(), NodeId(8), &options(), &Poison::new());
    assert!(matches!(other.err(), Some(OpenError::WrongNode { found: NODE, .. })));
}

#[test]
fn an_unknown_format_is_refused_and_says_which() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()).unwrap());
    let log = open(dir.path()).unwrap();
    put(&log.group(GROUP), vec![entry(0, 1, b"x")]);
    drop(log);
    segment_file(dir.path(), 1).write_all_at(&9u32.to_le_bytes(), 8).unwrap();
    assert!(matches!(open(dir.path()).err(), Some(OpenError::UnknownFormat { found: 9, known: 1, .. })));
}

#[test]
fn a_tail_torn_at_any_byte_costs_only_the_torn_record() {
    let record = record::size(10) as u64;
    let crashed = killed_at_work(5 * record, put_five);
    for torn in 0..record {
        let at = segment::RECORDS_AT + 4 * record + torn;
        let dir = copy(crashed.path());
        let rest = vec![0; usize::try_from(record - torn).unwrap()];
        segment_file(dir.path(), 1).write_all_at(&rest, at).unwrap();
        let log = open(dir.path()).unwrap();
        let kept = all(&log.group(GROUP)).len();
        // The padding may be lost without harm.
        assert_eq!(kept, if torn >= (record::HEADER_BYTES + 10) as u64 { 5 } else { 4 }, "torn at {torn}");
        put(&log.group(GROUP), vec![entry(kept as u64, 2, b"after")]);
        drop(log);
        assert_eq!(all(&open(dir.path()).unwrap().group(GROUP)).len(), kept + 1);
    }
}

#[test]
fn a_flipped_bit_before_a_later_sync_is_damage_and_is_never_served_dur_3() {
    let record = record::size(10) as u64;
    let dir = killed_at_work(5 * record, put_five);
    for place in [0, 3, 8, 20, 45] {
        let at = segment::RECORDS_AT + record + place;
        let dir = copy(dir.path());
        let file = segment_file(dir.path(), 1);
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
        match open(dir.path()).err() {
            Some(OpenError::Corrupt { offset, groups, .. }) => {
                assert_eq!(offset, segment::RECORDS_AT + record);
                assert_eq!(groups, [GROUP]);
            }
            other => panic!("a flip at {place} gave {other:?}"),
        }
    }
}

#[test]
fn a_flipped_bit_in_the_last_record_is_damage_once_the_log_was_idle_dur_3() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path()).unwrap();
    put(&log.group(GROUP), vec![entry(0, 1, b"0123456789")]);
    eventually(|| goes_on(dir.path(), record::size(10) as u64));
    drop(log);
    segment_file(dir.path(), 1).write_all_at(b"X", segment::RECORDS_AT + 42).unwrap();
    assert!(matches!(open(dir.path()).err(), Some(OpenError::Corrupt { .. })));
}

#[test]
fn pages_of_an_unfinished_sync_written_out_of_order_are_a_torn_tail() {
    let (first, record) = (record::size(6) as u64, record::size(8) as u64);
    let dir = killed_at_work(first + 9 * record, |group| {
        put(group, vec![entry(0, 1, b"synced")]);
        put(group, (1..10).map(|index| entry(index, 1, b"together")).collect());
    });
    // The second record of the last batch is missing, later ones are there.
    let at = segment::RECORDS_AT + first + record;
    segment_file(dir.path(), 1).write_all_at(&[0; 48], at).unwrap();
    let log = open(dir.path()).unwrap();
    let group = log.group(GROUP);
    assert_eq!(all(&group).len(), 2);
    // What was left behind the tail must not come back when new records end where it begins.
    put(&group, vec![entry(2, 2, b"replaced")]);
    drop((group, log));
    assert_eq!(all(&open(dir.path()).unwrap().group(GROUP)).last().unwrap().id, EntryId { term: 2, index: 2 });
}

#[test]
fn a_missing_segment_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path()).unwrap();
    let group = log.group(GROUP);
    (0..10).for_each(|index| put(&group, vec![entry(index, 1, &[7; 20_000])]));
    drop((group, log));
    std::fs::remove_file(segment::path(&dir.path().join(DIRECTORY), 2)).unwrap();
    assert!(matches!(open(dir.path()).err(), Some(OpenError::Corrupt { .. })));
}

#[test]
fn purged_segments_are_reused_and_the_log_stays_small() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path()).unwrap();
    let (group, idle) = (log.group(GROUP), log.group(GroupId(2)));
    let (sender, voted) = mpsc::channel();
    idle.save_vote(Bytes::from_static(b"old vote"), Box::new(move |result| drop(sender.send(result))));
    voted.recv().unwrap().unwrap();
    for index in 0..200 {
        put(&group, vec![entry(index, 1, &[7; 10_000])]);
        group.purge(EntryId { term: 1, index: index.saturating_sub(3) }).unwrap();
    }
    assert!(log.bytes() < 8 * (64 << 10), "{} bytes", log.bytes());
    assert_eq!(all(&group).len(), 3);
    drop((group, idle, log));
    let log = open(dir.path()).unwrap();
    assert_eq!(all(&log.group(GROUP)).len(), 3);
    assert_eq!(log.group(GroupId(2)).vote().as_deref(), Some(&b"old vote"[..]), "marks move on with the log");
}

#[test]
fn a_full_disk_refuses_nothing_that_is_under_way_and_recovers_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let full = Arc::new(AtomicBool::new(false));
    let real = spare::prepare_on_disk(dir.path().join(DIRECTORY), 64 << 10, NODE);
    let injected = Arc::clone(&full);
    let prepare: spare::Prepare = Box::new(move |spare, id| {
        if injected.load(Ordering::Relaxed) { Err(io::ErrorKind::StorageFull.into()) } else { real(spare, id) }
    });
    let poison = Poison::new();
    let log = Log::open_with(dir.path(), NODE, &options(), &poison, prepare).unwrap();
    let group = log.group(GROUP);
    put(&group, vec![entry(0, 1, b"first")]);
    eventually(|| !log.disk_full());
    std::thread::sleep(Duration::from_millis(50));
    full.store(true, Ordering::Relaxed);
    // The reserve takes these; then the writer waits.
    let waiting: Vec<_> = (1..20).map(|index| append(&group, vec![entry(index, 1, &[7; 10_000])])).collect();
    eventually(|| log.disk_full());
    assert_eq!(all(&group).len(), 20, "reads go on");
    assert_eq!(poison.error(), None, "a full disk is not fatal");
    full.store(false, Ordering::Relaxed);
    waiting.into_iter().for_each(|receiver| drop(receiver.recv_timeout(PATIENCE)));
    eventually(|| !log.disk_full());
    put(&group, vec![entry(20, 1, b"last")]);
    drop((group, log));
    assert_eq!(all(&open(dir.path()).unwrap().group(GROUP)).len(), 21);
}

#[test]
fn a_disk_that_hangs_is_told_by_the_age_of_the_write_under_way_until_it_answers() {
    let dir = tempfile::tempdir().unwrap();
    let hangs = Arc::new(AtomicBool::new(false));
    let (answers, hung) = mpsc::channel::<()>();
    let (injected, hung) = (Arc::clone(&hangs), Mutex::new(hung));
    let real = spare::prepare_on_disk(dir.path().join(DIRECTORY), 64 << 10, NODE);
    let prepare: spare::Prepare = Box::new(move |spare, id| {
        if injected.load(Ordering::SeqCst) {
            // Nothing is ever sent: it goes on once the sender is gone.
            let _ = hung.lock().unwrap().recv();
        }
        real(spare, id)
    });
    let poison = Poison::new();
    let log = Arc::new(Log::open_with(dir.path(), NODE, &options(), &poison, prepare).unwrap());
    // Dropped before the log, which waits for its threads: a failure of this test must not hang as its disk does.
    let answers = answers;
    let bound = Duration::from_millis(100);
    let patient = crate::Options { stalled_after: bound, ..crate::Options::new(NODE, dir.path()) };
    let disk = LogDisk::new(Arc::clone(&log), &patient);
    let group = log.group(GROUP);
    put(&group, vec![entry(0, 1, b"first")]);
    eventually(|| log.sync_running().is_none());
    assert_eq!((disk.stalled(), disk.problem()), (None, None));
    hangs.store(true, Ordering::SeqCst);
    // More than the segments that are there take: the writer waits for one that the disk does not give.
    let waiting: Vec<_> = (1..20).map(|index| append(&group, vec![entry(index, 1, &[7; 10_000])])).collect();
    eventually(|| disk.stalled().is_some());
    assert!(log.sync_running() > Some(bound));
    let problem = disk.problem().unwrap();
    assert!(problem.contains("hangs") && problem.contains(&dir.path().display().to_string()), "{problem}");
    assert_eq!(all(&group).len(), 20, "reads go on");
    hangs.store(false, Ordering::SeqCst);
    drop(answers);
    waiting.into_iter().for_each(|receiver| drop(receiver.recv_timeout(PATIENCE)));
    eventually(|| log.sync_running().is_none());
    assert_eq!((disk.problem(), poison.error()), (None, None), "it is well again by itself");
}

/// Where the fixture lies. Made once by `write_the_fixture`, with the version that wrote format 1 first.
fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/log-1")
}

#[test]
fn a_log_of_format_1_still_opens() {
    let dir = copy(&fixture());
    let log = open(dir.path()).unwrap();
    let group = log.group(GROUP);
    assert_eq!(group.bounds(), (Some(EntryId { term: 1, index: 1 }), Some(EntryId { term: 3, index: 5 })));
    assert_eq!(group.vote().as_deref(), Some(&b"vote"[..]));
    assert_eq!(group.committed(), Some(EntryId { term: 1, index: 3 }));
    let entries = all(&group);
    assert_eq!(entries.iter().map(|entry| &entry.payload[..]).collect::<Vec<_>>(), [b"two", b"new", b"4th", b"5th"]);
    assert_eq!(log.group(GroupId(2)).bounds().1, Some(EntryId { term: 1, index: 0 }));
}

#[test]
#[ignore = "writes into the source tree; only for a new format, under a new name"]
fn write_the_fixture() {
    let dir = tempfile::tempdir().unwrap();
    let small = LogOptions { segment_bytes: 8 << 10, ..options() };
    let log = Log::open(dir.path(), NODE, &small, &Poison::new()).unwrap();
    let group = log.group(GROUP);
    group.save_vote(Bytes::from_static(b"vote"), Box::new(|result| result.unwrap()));
    put(&group, vec![entry(0, 1, b"zero"), entry(1, 1, b"one"), entry(2, 1, b"two"), entry(3, 1, b"old")]);
    group.set_committed(Some(EntryId { term: 1, index: 3 }));
    group.truncate(Some(EntryId { term: 1, index: 2 })).unwrap();
    put(&group, vec![entry(3, 2, b"new"), entry(4, 2, b"4th")]);
    group.purge(EntryId { term: 1, index: 1 }).unwrap();
    put(&group, vec![entry(5, 3, b"5th")]);
    put(&log.group(GroupId(2)), vec![entry(0, 1, b"other group")]);
    drop((group, log));
    std::fs::create_dir_all(fixture().join(DIRECTORY)).unwrap();
    let file = segment::path(Path::new(DIRECTORY), 1);
    std::fs::copy(dir.path().join(&file), fixture().join(&file)).unwrap();
}

fn eventually(holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "did not come true in {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[derive(Clone, Debug)]
enum Step {
    Append { group: u32, count: u64, bytes: usize },
    Truncate { group: u32, back: u64 },
    Purge { group: u32, keep: u64 },
    Reopen,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u32..3, 1u64..40, 0usize..3000).prop_map(|(group, count, bytes)| Step::Append { group, count, bytes }),
        2 => (0u32..3, 0u64..30).prop_map(|(group, back)| Step::Truncate { group, back }),
        2 => (0u32..3, 0u64..50).prop_map(|(group, keep)| Step::Purge { group, keep }),
        1 => Just(Step::Reopen),
        1 => Just(Step::Crash),
    ]
}

/// The same log as a plain list.
#[derive(Clone, Debug, Default)]
struct Model {
    purged: Option<EntryId>,
    entries: Vec<Entry>,
}

impl Model {
    fn last(&self) -> Option<EntryId> {
        self.entries.last().map(|entry| entry.id).or(self.purged)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn the_log_is_a_list_that_survives_restarts_and_crashes(steps in prop::collection::vec(step(), 1..25)) {
        let mut dir = tempfile::tempdir()?;
        let mut log = open(dir.path()).unwrap();
        let mut models: Vec<Model> = vec![Model::default(); 3];
        for (at, step) in steps.into_iter().enumerate() {
            let term = at as u64 + 1;
            match step {
                Step::Append { group, count, bytes } => {
                    let model = &mut models[group as usize];
                    let next = model.last().map_or(0, |last| last.index + 1);
                    let entries: Vec<_> = (next..next + count).map(|index| entry(index, term, &vec![index as u8; bytes])).collect();
                    put(&log.group(GroupId(group)), entries.clone());
                    model.entries.extend(entries);
                }
                Step::Truncate { group, back } => {
                    let model = &mut models[group as usize];
                    let keep = model.entries.len().saturating_sub(back as usize);
                    model.entries.truncate(keep);
                    log.group(GroupId(group)).truncate(model.last()).unwrap();
                }
                Step::Purge { group, keep } => {
                    let model = &mut models[group as usize];
                    let cut = model.entries.len().saturating_sub(keep as usize);
                    if let Some(up_to) = model.entries.drain(..cut).next_back().map(|entry| entry.id) {
                        model.purged = Some(up_to);
                        log.group(GroupId(group)).purge(up_to).unwrap();
                    }
                }
                Step::Reopen => {
                    drop(log);
                    log = open(dir.path()).unwrap();
                }
                Step::Crash => {
                    // Marks that nobody waited for may be lost in a crash: wait for them by an empty append each.
                    (0..3).for_each(|group| put(&log.group(GroupId(group)), Vec::new()));
                    drop(log);
                    dir = copy(dir.path());
                    log = open(dir.path()).unwrap();
                }
            }
            for (group, model) in models.iter().enumerate() {
                let handle = log.group(GroupId(group as u32));
                prop_assert_eq!(handle.bounds(), (model.purged, model.last()));
                prop_assert_eq!(&all(&handle), &model.entries);
            }
        }
    }
}
