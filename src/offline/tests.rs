//! Directories made with the writer that ships, broken in every way that the tools must tell apart.

use std::path::{Path, PathBuf};

use index::checkpoint::{self, CheckpointHeader};
use index::{Digest, Entry};
use wal::chain::ChainPoint;
use wal::record::{Kind, NewRecord, content_type};
use wal::segment::SegmentHeader;
use wal::superblock::{LogEntry, Superblock};
use wal::writer::{ReadySegment, Writer};
use wal::{Link, LogIdentity};

use super::dir::Directory;
use super::report::{LogSurvey, Verdict};

const SEGMENT_BYTES: usize = 64 * 1024;
const IDENTITY: LogIdentity = LogIdentity {
    store: [1; 16],
    log: [2; 16],
    number: 0,
    timeline: 1,
};

/// A data directory of one log: `batches` of ten records each, the last `unmarked` of them without a later batch that says
/// they were durable, and one prepared segment behind.
struct Fixture {
    directory: tempfile::TempDir,
    /// File, offset, first lsn of every batch.
    batches: Vec<(PathBuf, usize, u64)>,
    end: ChainPoint,
}

impl Fixture {
    fn new(batches: usize) -> Fixture {
        let directory = tempfile::tempdir().expect("a directory on a disk");
        let log = directory.path().join("log-00000000");
        std::fs::create_dir(&log).expect("a folder");
        let file = |slot: u32| log.join(format!("segment-{slot:08}.seg"));
        let prepare = |segment: u32| {
            let mut bytes = vec![0; SEGMENT_BYTES];
            let header = SegmentHeader {
                identity: IDENTITY,
                segment,
                generation: 1,
                segment_bytes: SEGMENT_BYTES as u64,
            };
            header.encode(&mut bytes);
            std::fs::write(file(segment - 1), bytes).expect("a segment");
            ReadySegment {
                segment,
                generation: 1,
                bytes: SEGMENT_BYTES as u32,
                file: segment - 1,
            }
        };
        let mut writer = Writer::new(IDENTITY, 1, ChainPoint::genesis(1), prepare(1));
        let mut next = 2;
        let mut places = Vec::new();
        let record = |kind, key: &'static [u8], payload: &'static [u8]| NewRecord {
            kind,
            content_type: content_type::JSON,
            stream: 1,
            version: 1,
            timestamp_us: 7,
            previous: Link::default(),
            key,
            payload,
            extensions: &[],
        };
        for number in 0..batches {
            let least = 2 * wal::BLOCK_BYTES;
            if let Err(buffer) = writer.open(vec![0; least], least) {
                writer.add_segment(prepare(next));
                next += 1;
                writer
                    .open(buffer, least)
                    .expect("a segment was just given");
            }
            if number == 0 {
                writer.append(&record(Kind::StreamDefinition, b"things", b"{}"));
            }
            for _ in 0..9 {
                writer.append(&record(Kind::Put, b"a key", &[b'x'; 500]));
            }
            writer.append(&record(Kind::Tombstone, b"a key", b""));
            let durable = writer.next_lsn() - 1 - writer.records() as u64;
            let sealed = writer.seal(true, durable, 8).expect("a batch is open");
            let path = file(sealed.file);
            let mut bytes = std::fs::read(&path).expect("the segment");
            bytes[sealed.offset as usize..][..sealed.bytes as usize]
                .copy_from_slice(&sealed.buffer[..sealed.bytes as usize]);
            std::fs::write(&path, bytes).expect("the segment");
            places.push((path, sealed.offset as usize, sealed.first_lsn));
        }
        std::fs::write(file(next - 1), vec![0; SEGMENT_BYTES]).expect("a prepared segment");
        std::fs::write(directory.path().join("LOCK"), "").expect("a lock");
        let fixture = Fixture {
            directory,
            batches: places,
            end: writer.chain(),
        };
        fixture.superblock("superblock-a", 1, 0);
        fixture.superblock("superblock-b", 2, 0);
        fixture
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn superblock(&self, name: &str, sequence: u64, durable_lsn: u64) {
        let log = LogEntry {
            log: IDENTITY.log,
            number: 0,
            timeline: 1,
            epoch: 1,
            slot_first: 0,
            slot_last: 16383,
            durable_lsn,
        };
        let block = Superblock {
            sequence,
            features: 0,
            store: IDENTITY.store,
            digest_key: [3; 16],
            shards: 1,
            segment_bytes: SEGMENT_BYTES as u64,
            map_epoch: 1,
            logs: vec![log],
        };
        let mut bytes = vec![0; wal::BLOCK_BYTES];
        block.encode(&mut bytes).expect("a superblock");
        std::fs::write(self.path().join(name), bytes).expect("a superblock");
    }

    /// Two pages of entries, replay from the end of the log.
    fn checkpoint(&self, name: &str, sequence: u64) -> PathBuf {
        self.checkpoint_released(name, sequence, 0)
    }

    /// The same, which says that segments up to one are released.
    fn checkpoint_released(&self, name: &str, sequence: u64, released_through: u32) -> PathBuf {
        let header = CheckpointHeader {
            identity: IDENTITY,
            sequence,
            replay_from: self.end,
            released_through,
            record_bytes: 0,
            dead_bytes: 0,
            aging_bytes: 0,
            padding_bytes: 0,
            counted_lsn: 0,
            max_lsn: self.end.next_lsn - 1,
            pages: 2,
            keys: 2,
            log_time_us: 9,
        };
        let mut bytes = vec![0; checkpoint::HEADER_BYTES + 2 * checkpoint::PAGE_BYTES];
        header.encode(&mut bytes[..checkpoint::HEADER_BYTES]);
        for (number, page) in bytes[checkpoint::HEADER_BYTES..]
            .chunks_mut(checkpoint::PAGE_BYTES)
            .enumerate()
        {
            let entry = Entry {
                lsn: 1,
                version: 1,
                bytes: 64,
                ..Entry::default()
            };
            let entries = [(Digest((number as u128 + 1) << 100), entry)];
            assert_eq!(
                checkpoint::encode_entries(&IDENTITY, sequence, number as u64, &entries, page),
                1
            );
        }
        let path = self.path().join("log-00000000").join(name);
        std::fs::write(&path, bytes).expect("a checkpoint");
        path
    }

    fn survey(&self) -> LogSurvey {
        let directory = Directory::open(self.path()).expect("a data directory");
        let mut surveys = super::survey_all(&directory).expect("it can be read");
        assert_eq!(surveys.len(), 1);
        surveys.remove(0)
    }
}

fn flip(path: &Path, offset: usize) {
    let mut bytes = std::fs::read(path).expect("a file");
    bytes[offset] ^= 0x10;
    std::fs::write(path, bytes).expect("a file");
}

#[test]
fn a_whole_log_is_counted_across_segments() {
    let fixture = Fixture::new(20);
    let survey = fixture.survey();
    assert_eq!(survey.verdict, Verdict::Whole);
    assert_eq!(
        (survey.batches, survey.records, survey.last_lsn),
        (20, 201, 201)
    );
    let in_use: Vec<_> = survey
        .segments
        .iter()
        .filter(|segment| segment.segment.is_some())
        .collect();
    assert!(in_use.len() > 1, "the fixture must roll");
    assert_eq!(
        in_use.iter().map(|segment| segment.records).sum::<u64>(),
        201
    );
    assert_eq!(
        survey.segments.last().map(|segment| segment.state.as_str()),
        Some("prepared, not in use")
    );
    let stream = &survey.streams[0];
    assert_eq!(
        (
            stream.id,
            stream.name.as_deref(),
            stream.records,
            stream.tombstones
        ),
        (1, Some("things"), 200, 20)
    );
    assert_eq!(survey.damages().count(), 0);
}

#[test]
fn a_broken_last_batch_is_a_torn_tail_and_not_damage() {
    let fixture = Fixture::new(20);
    let (path, offset, lsn) = fixture.batches.last().expect("there are batches");
    flip(path, offset + 300);
    let survey = fixture.survey();
    let Verdict::TornTail(spot) = &survey.verdict else {
        panic!("{:?}", survey.verdict)
    };
    assert_eq!((spot.offset, spot.lsn), (*offset as u64, Some(*lsn)));
    assert_eq!(survey.damages().count(), 0);
    assert_eq!(survey.last_lsn, lsn - 1);
}

#[test]
fn a_broken_batch_below_a_durable_mark_is_damage_with_its_place() {
    for (number, byte) in [(3, 300), (3, 20), (3, 100), (11, 300), (18, 300)] {
        let fixture = Fixture::new(20);
        let (path, offset, lsn) = &fixture.batches[number];
        flip(path, offset + byte);
        let survey = fixture.survey();
        let Verdict::Damage(spot) = &survey.verdict else {
            panic!("batch {number}: {:?}", survey.verdict)
        };
        assert_eq!(
            (spot.offset, spot.lsn),
            (*offset as u64, Some(*lsn)),
            "batch {number} byte {byte}"
        );
        assert!(
            path.ends_with(&spot.file),
            "{} is not {}",
            spot.file,
            path.display()
        );
        assert!(
            survey
                .segments
                .iter()
                .map(|segment| segment.loose_batches)
                .sum::<u64>()
                > 0,
            "what lies behind is counted"
        );
    }
}

#[test]
fn a_tail_that_the_superblock_knows_is_damage_when_it_is_gone() {
    let fixture = Fixture::new(20);
    let (path, offset, lsn) = fixture.batches.last().expect("there are batches");
    fixture.superblock("superblock-b", 3, fixture.end.next_lsn - 1);
    assert_eq!(fixture.survey().verdict, Verdict::Whole);
    let mut bytes = std::fs::read(path).expect("a file");
    bytes[*offset..].fill(0);
    std::fs::write(path, bytes).expect("a file");
    let Verdict::Damage(spot) = fixture.survey().verdict else {
        panic!("{:?}", fixture.survey().verdict)
    };
    assert_eq!((spot.offset, spot.lsn), (*offset as u64, Some(*lsn)));
}

#[test]
fn a_missing_segment_and_a_rotten_header_are_damage() {
    let fixture = Fixture::new(40);
    let second = fixture.path().join("log-00000000/segment-00000001.seg");
    let bytes = std::fs::read(&second).expect("a segment");
    std::fs::remove_file(&second).expect("a segment");
    assert!(
        matches!(fixture.survey().verdict, Verdict::Damage(_)),
        "{:?}",
        fixture.survey().verdict
    );
    std::fs::write(&second, bytes).expect("a segment");
    assert_eq!(fixture.survey().verdict, Verdict::Whole);
    flip(&second, 40);
    assert!(
        matches!(fixture.survey().verdict, Verdict::Damage(_)),
        "{:?}",
        fixture.survey().verdict
    );
    flip(&second, 40);

    let last_in_use = &fixture.batches.last().expect("there are batches").0;
    flip(last_in_use, 40);
    let Verdict::Damage(spot) = fixture.survey().verdict else {
        panic!("{:?}", fixture.survey().verdict)
    };
    assert!(
        last_in_use.ends_with(&spot.file) && spot.offset == 0,
        "{spot:?}"
    );
}

#[test]
fn a_checkpoint_is_read_to_its_last_page() {
    let fixture = Fixture::new(20);
    let path = fixture.checkpoint("checkpoint-a", 5);
    let survey = fixture.survey();
    assert_eq!(survey.damages().count(), 0);
    let copy = &survey.checkpoints[0];
    assert_eq!(
        (copy.sequence, copy.keys, copy.replay_from_lsn),
        (Some(5), Some(2), Some(202))
    );

    let second_page = checkpoint::HEADER_BYTES + checkpoint::PAGE_BYTES;
    flip(&path, second_page + 200);
    let survey = fixture.survey();
    let damage = survey.damages().next().expect("the page is broken");
    assert_eq!(damage.offset, second_page as u64);

    // A header that does not verify makes it no checkpoint at all: that is how an unfinished one looks.
    flip(&path, 30);
    let survey = fixture.survey();
    assert_eq!(
        (survey.damages().count(), survey.harmless().count()),
        (0, 1)
    );
    flip(&path, 30);

    // An older checkpoint is what the next one is written over.
    fixture.checkpoint("checkpoint-b", 6);
    let survey = fixture.survey();
    assert_eq!(
        (survey.damages().count(), survey.harmless().count()),
        (0, 1)
    );
}

#[test]
fn a_checkpoint_beyond_the_end_proves_that_the_tail_was_durable() {
    let fixture = Fixture::new(20);
    fixture.checkpoint("checkpoint-a", 5);
    let (path, offset, lsn) = fixture.batches.last().expect("there are batches");
    flip(path, offset + 300);
    let Verdict::Damage(spot) = fixture.survey().verdict else {
        panic!("{:?}", fixture.survey().verdict)
    };
    assert_eq!(spot.lsn, Some(*lsn));
}

#[test]
fn a_checkpoint_with_a_rotten_page_still_says_what_was_durable() {
    let fixture = Fixture::new(20);
    let path = fixture.checkpoint("checkpoint-a", 5);
    flip(&path, checkpoint::HEADER_BYTES + 100);
    assert_eq!(fixture.survey().verdict, Verdict::Whole);
    let (last, offset, lsn) = fixture.batches.last().expect("there are batches");
    let mut bytes = std::fs::read(last).expect("a segment");
    bytes[*offset..].fill(0);
    std::fs::write(last, bytes).expect("a segment");
    let Verdict::Damage(spot) = fixture.survey().verdict else {
        panic!("{:?}", fixture.survey().verdict)
    };
    assert_eq!(spot.lsn, Some(*lsn), "{spot}");
}

#[test]
fn a_log_without_any_superblock_is_still_shown() {
    let fixture = Fixture::new(20);
    for name in super::dir::SUPERBLOCKS {
        flip(&fixture.path().join(name), 100);
    }
    let survey = fixture.survey();
    assert_eq!((survey.records, survey.epoch), (201, None));
    assert_eq!(survey.verdict, Verdict::Whole);
}

#[test]
fn a_file_that_recovery_refuses_to_start_on_is_damage() {
    let fixture = Fixture::new(20);
    let log = fixture.path().join("log-00000000");
    let first = log.join("segment-00000000.seg");
    let stray = log.join("segment-00000099.seg");
    std::fs::copy(&first, &stray).expect("a copy");
    let damage = |wanted: &str| {
        let Verdict::Damage(spot) = fixture.survey().verdict else {
            panic!("{wanted}: {:?}", fixture.survey().verdict)
        };
        assert!(spot.why.contains(wanted), "{spot}");
    };
    damage("holds segment 1, and so does");
    let mut bytes = std::fs::read(&first).expect("a segment");
    let other = LogIdentity {
        timeline: 2,
        ..IDENTITY
    };
    SegmentHeader {
        identity: other,
        segment: 1,
        generation: 1,
        segment_bytes: SEGMENT_BYTES as u64,
    }
    .encode(&mut bytes);
    std::fs::write(&stray, bytes).expect("a segment");
    damage("another log or timeline");
    std::fs::remove_file(&stray).expect("a file");

    std::fs::remove_file(&first).expect("a file");
    damage("segment 1 is missing");
    std::fs::remove_dir_all(&log).expect("a folder");
    std::fs::create_dir(&log).expect("a folder");
    assert_eq!(
        fixture.survey().verdict,
        Verdict::Whole,
        "a log that never held anything"
    );
    fixture.superblock("superblock-b", 3, 7);
    damage("lsn 7 was durable");
}

/// Files of released segments lie there as they were until they are used again: they are nobody's, whatever they hold.
#[test]
fn released_segments_are_spare_and_a_gap_behind_them_is_damage() {
    let fixture = Fixture::new(40);
    let path = |slot: u32| {
        fixture
            .path()
            .join(format!("log-00000000/segment-{slot:08}.seg"))
    };
    let all = fixture.survey().segments.len();
    fixture.checkpoint_released("checkpoint-a", 5, 1);
    let survey = fixture.survey();
    assert_eq!(survey.verdict, Verdict::Whole);
    assert_eq!(survey.segments.len(), all);
    let spare = survey
        .segments
        .iter()
        .find(|s| s.state.starts_with("spare"));
    assert!(spare.is_some_and(|s| s.file.ends_with("segment-00000000.seg")));
    assert_eq!(survey.segments[0].segment, Some(2));
    let mut bytes = std::fs::read(path(0)).expect("a segment");
    bytes[wal::BLOCK_BYTES + 300] ^= 1;
    std::fs::write(path(0), bytes).expect("a segment");
    assert_eq!(fixture.survey().verdict, Verdict::Whole);
    std::fs::remove_file(path(0)).expect("a segment");
    assert_eq!(fixture.survey().verdict, Verdict::Whole);
    std::fs::remove_file(path(1)).expect("a segment");
    let Verdict::Damage(spot) = fixture.survey().verdict else {
        panic!("segment 2 is gone and was not released")
    };
    assert!(spot.why.contains("segment 2 is missing"), "{}", spot.why);
}

/// A restart refuses such a log: nothing may call it whole, or cut it, or carry over what is left.
#[test]
fn a_first_segment_that_no_checkpoint_says_is_released_is_missing() {
    let fixture = Fixture::new(40);
    fixture.checkpoint("checkpoint-a", 5);
    fixture.superblock("superblock-a", 3, fixture.end.next_lsn - 1);
    let first = fixture.path().join("log-00000000/segment-00000000.seg");
    flip(&first, 100);
    let Verdict::Damage(spot) = fixture.survey().verdict else {
        panic!("its header does not verify")
    };
    assert!(spot.file.ends_with("segment-00000000.seg"), "{spot}");
    std::fs::remove_file(&first).expect("a segment");
    let survey = fixture.survey();
    let Verdict::Damage(spot) = survey.verdict else {
        panic!("segment 1 is gone and was not released")
    };
    assert!(spot.why.contains("segment 1 is missing"), "{spot}");
    assert!(survey.cut.is_none(), "nothing comes before it");
}

/// Where reading starts when the first segments are gone and a checkpoint says where to go on.
#[test]
fn a_log_that_starts_late_is_entered_where_a_checkpoint_enters_it() {
    let fixture = Fixture::new(40);
    fixture.checkpoint_released("checkpoint-a", 5, 1);
    std::fs::remove_file(fixture.path().join("log-00000000/segment-00000000.seg"))
        .expect("a segment");
    let survey = fixture.survey();
    assert_eq!(survey.verdict, Verdict::Whole);
    let first = &survey.segments[0];
    assert!(first.batches_before_entry > 0 && first.loose_batches == 0);
    // What lies before the entry is of the log like the rest, and counted with it.
    let there =
        (fixture.batches.iter()).filter(|(path, ..)| !path.ends_with("segment-00000000.seg"));
    let first_lsn = there.clone().map(|(.., lsn)| *lsn).min().expect("batches");
    assert_eq!(survey.batches, there.count() as u64);
    assert_eq!(first.first_lsn, Some(first_lsn));
    assert_eq!(survey.records, fixture.end.next_lsn - first_lsn);
    let (path, offset, lsn) = fixture
        .batches
        .iter()
        .filter(|(path, ..)| path.ends_with("segment-00000001.seg"))
        .nth(2)
        .expect("a batch");
    for byte in [20, 100, 300] {
        flip(path, offset + byte);
        let Verdict::Damage(spot) = fixture.survey().verdict else {
            panic!("byte {byte}: {:?}", fixture.survey().verdict)
        };
        assert_eq!(spot.lsn, Some(*lsn), "byte {byte}");
        flip(path, offset + byte);
    }
}

#[test]
fn a_cut_takes_later_segments_and_what_speaks_of_them_out_of_the_way() {
    let fixture = Fixture::new(20);
    let checkpoint = fixture.checkpoint("checkpoint-a", 1);
    fixture.superblock("superblock-a", 3, fixture.end.next_lsn - 1);
    let (file, offset, first_lsn) = fixture.batches[3].clone();
    flip(&file, offset + 300);
    let repair = |cut| {
        let directory = fixture.path().to_owned();
        super::repair::run(&crate::cli::RepairFlags { directory, cut })
    };
    assert!(repair(false).is_err() && checkpoint.exists());
    repair(true).expect("it can be cut");
    let survey = fixture.survey();
    assert_eq!(survey.verdict, Verdict::Whole);
    assert_eq!(survey.last_lsn, first_lsn - 1);
    assert_eq!(survey.durable_lsn_at_close, Some(first_lsn - 1));
    let in_use = |row: &&super::report::SegmentSurvey| row.segment.is_some();
    assert_eq!(survey.segments.iter().filter(in_use).count(), 1);
    assert!(!checkpoint.exists());
    repair(true).expect("a second run finds nothing to do");
}

#[test]
fn a_log_that_cannot_be_entered_is_not_cut() {
    let fixture = Fixture::new(20);
    std::fs::remove_file(&fixture.batches[0].0).expect("the first segment");
    let directory = fixture.path().to_owned();
    let flags = crate::cli::RepairFlags {
        directory,
        cut: true,
    };
    assert!(super::repair::run(&flags).is_err());
}
