//! FORMAT.md says what the code does: tables add up, the decision table is the code's, and the golden image is its bytes.

use crate::support::{Image, Owned, identity, put, records};
use std::{collections::BTreeMap, path::PathBuf};
use wal::{
    BATCH_HEADER_BYTES, BLOCK_BYTES, Link, Location,
    chain::ChainPoint,
    extension, record,
    recovery::{Decision, Evidence, decide},
    scan::{Stop, Term},
    segment::SegmentHeader,
    superblock::{LOGS_MAX, LogEntry, Superblock},
};

const FORMAT: &str = include_str!("../../FORMAT.md");

fn cells(line: &str) -> Option<Vec<&str>> {
    let inner = line.strip_prefix('|')?.strip_suffix('|')?;
    Some(inner.split('|').map(str::trim).collect())
}

#[test]
fn the_tables_of_bytes_add_up() {
    let (mut heading, mut totals) = (String::new(), BTreeMap::new());
    for line in FORMAT.lines() {
        if let Some(text) = line
            .strip_prefix('#')
            .map(|rest| rest.trim_start_matches('#').trim())
        {
            heading = text.to_string();
        } else if line == "An entry:" {
            heading = "Entry".to_string();
        }
        let Some(cells) = cells(line) else { continue };
        if let (Ok(offset), Ok(bytes), 4) = (
            cells[0].parse::<usize>(),
            cells[1].parse::<usize>(),
            cells.len(),
        ) {
            let end = totals.entry(heading.clone()).or_insert(0);
            assert_eq!(*end, offset, "{heading}: {}", cells[2]);
            *end += bytes;
        }
    }
    let total = |start: &str| {
        *totals
            .iter()
            .find(|(heading, _)| heading.starts_with(start))
            .unwrap_or_else(|| panic!("no table under {start}"))
            .1
    };
    assert_eq!(total("Segment header"), BLOCK_BYTES);
    assert_eq!(total("Superblock"), BLOCK_BYTES);
    assert_eq!(total("Entry"), 48);
    assert_eq!(
        total("Envelope") + total("Portable header"),
        BATCH_HEADER_BYTES
    );
    assert_eq!(total("Record"), record::HEADER_BYTES);
    assert_eq!(LOGS_MAX, 75);
}

#[test]
fn the_decision_table_is_complete_and_is_what_recovery_does() {
    let stray = |term| Stop::Unchained {
        batch: 9,
        epoch: 4,
        term,
    };
    let stops = [
        ("no batch", Stop::NoBatch),
        ("invalid", Stop::Invalid("why".into())),
        ("unchained, older term", stray(Term::Older)),
        ("unchained, same term", stray(Term::Same)),
        ("unchained, newer term", stray(Term::Newer)),
        ("end", Stop::End),
    ];
    let mut drawn = BTreeMap::new();
    for cells in FORMAT.lines().filter_map(cells) {
        if let [
            stop,
            next @ ("yes" | "no"),
            proven @ ("yes" | "no"),
            decision,
        ] = cells[..]
        {
            let decision = match decision {
                "cut" => Decision::Cut,
                "damage" => Decision::Damage,
                "next segment" => Decision::NextSegment,
                other => panic!("no such decision: {other}"),
            };
            assert!(
                drawn
                    .insert((stop, next == "yes", proven == "yes"), decision)
                    .is_none(),
                "drawn twice: {stop}"
            );
        }
    }
    for (name, stop) in &stops {
        for next_continues in [false, true] {
            for proven_durable in [false, true] {
                let evidence = Evidence {
                    stop: stop.clone(),
                    next_continues,
                    proven_durable,
                };
                let row = drawn.remove(&(*name, next_continues, proven_durable));
                assert_eq!(row, Some(decide(&evidence)), "{evidence:?}");
            }
        }
    }
    assert!(drawn.is_empty(), "rows that cannot be met: {drawn:?}");
}

fn golden(name: &str, bytes: &[u8]) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    if std::env::var_os("WAL_WRITE_GOLDEN").is_some() && !path.exists() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
    }
    let kept = std::fs::read(&path).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
    assert_eq!(kept.len(), bytes.len(), "{name}");
    if let Some(at) = (0..kept.len()).find(|at| kept[*at] != bytes[*at]) {
        panic!(
            "{name} differs from byte {at} on: people have data in the kept format, so this needs a new version"
        );
    }
}

fn golden_units() -> Vec<Vec<Owned>> {
    let mut extensions = Vec::new();
    extension::push(&mut extensions, extension::PRODUCER, &[0x11; 28]);
    extension::push(&mut extensions, 999, b"kept and skipped");
    let link = Link {
        lsn: 2,
        location: Location {
            segment: 1,
            offset: 4096 + 192 + 72,
        },
    };
    vec![
        vec![
            Owned {
                kind: record::Kind::StreamDefinition,
                ..put(b"assertions", b"{}")
            },
            put(b"key", b"{\"n\":1}"),
        ],
        vec![Owned {
            version: 2,
            previous: link,
            extensions,
            ..put(b"key", &[0xcd; 600])
        }],
        vec![
            Owned {
                kind: record::Kind::Tombstone,
                version: 3,
                ..put(b"key", b"")
            },
            Owned {
                kind: record::Kind::Note,
                ..put(b"", b"")
            },
        ],
    ]
}

#[test]
fn the_golden_segment_is_written_and_read_as_ever() {
    let mut image = Image::new(6 * BLOCK_BYTES);
    let mut writer = image.writer(1, ChainPoint::genesis(1));
    for (at, unit) in golden_units().iter().enumerate() {
        if at == 2 {
            image.open(&mut writer, 0);
            let mark = writer.seal(true, 3, 1_700_000_000_000_001).unwrap();
            image.write(&mark);
        }
        image.unit(&mut writer, unit, [0, 2, 3][at]);
    }
    golden("segment-v1.bin", &image.files[&1]);

    let kept = std::fs::read(
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/segment-v1.bin"),
    )
    .unwrap();
    assert_eq!(SegmentHeader::decode(&kept).unwrap(), image.header(1));
    image.files.insert(1, kept);
    let recovered = image.recover(ChainPoint::genesis(1), 0);
    assert_eq!(records(&recovered.seen), golden_units().concat());
    assert_eq!((recovered.at.next_lsn, recovered.at.next_batch), (6, 5));
}

fn entry(number: u32, slot_first: u16, slot_last: u16) -> LogEntry {
    LogEntry {
        log: [number as u8; 16],
        number,
        timeline: 1,
        epoch: 7,
        slot_first,
        slot_last,
        durable_lsn: 1234,
    }
}

fn superblock(sequence: u64) -> Superblock {
    Superblock {
        sequence,
        features: 0,
        store: *b"store-of-a-test.",
        digest_key: *b"sixteen byte key",
        shards: 2,
        segment_bytes: 64 << 20,
        map_epoch: 1,
        logs: vec![entry(0, 0, 8191), entry(1, 8192, 16383)],
    }
}

fn block(superblock: &Superblock) -> Vec<u8> {
    let mut block = vec![0xee; BLOCK_BYTES];
    superblock.encode(&mut block).unwrap();
    block
}

#[test]
fn the_golden_superblock_is_written_and_read_as_ever() {
    golden("superblock-v1.bin", &block(&superblock(41)));
}

#[test]
fn the_newer_intact_superblock_is_chosen() {
    let (old, new) = (block(&superblock(1)), block(&superblock(2)));
    assert_eq!(Superblock::choose(&old, &new).unwrap().sequence, 2);
    assert_eq!(Superblock::choose(&new, &old).unwrap().sequence, 2);
    for at in (0..BLOCK_BYTES).step_by(13).chain([4088, 4095]) {
        let mut torn = new.clone();
        torn[at] ^= 0x10;
        assert!(Superblock::decode(&torn).is_err(), "byte {at}");
        assert_eq!(
            Superblock::choose(&old, &torn).unwrap().sequence,
            1,
            "byte {at}"
        );
        assert_eq!(
            Superblock::choose(&torn, &old).unwrap().sequence,
            1,
            "byte {at}"
        );
    }
    let empty = vec![0; BLOCK_BYTES];
    assert_eq!(Superblock::choose(&empty, &new).unwrap().sequence, 2);
    assert!(matches!(
        Superblock::choose(&empty, &empty),
        Err(wal::FormatError::Magic(_))
    ));
    let mut torn = new.clone();
    torn[100] ^= 1;
    assert!(matches!(
        Superblock::choose(&torn, &empty),
        Err(wal::FormatError::Checksum(_))
    ));
    assert!(matches!(
        Superblock::choose(&empty, &torn),
        Err(wal::FormatError::Checksum(_))
    ));
    assert!(matches!(
        Superblock::decode(&new[..4095]),
        Err(wal::FormatError::Short(_))
    ));
}

/// Change a block and close it again, as a newer binary would have.
fn rewritten(block: &[u8], at: usize, byte: u8) -> Vec<u8> {
    let mut block = block.to_vec();
    block[at] = byte;
    let checksum = xxhash_rust::xxh3::xxh3_64(&block[..4088]);
    block[4088..].copy_from_slice(&checksum.to_le_bytes());
    block
}

#[test]
fn what_a_newer_binary_wrote_is_refused_by_name() {
    let (old, new) = (block(&superblock(1)), block(&superblock(2)));
    let (version, feature) = (rewritten(&new, 8, 2), rewritten(&new, 24, 4));
    for a_newer_one in [&version, &feature] {
        let why = Superblock::choose(&old, a_newer_one)
            .unwrap_err()
            .to_string();
        assert_eq!(
            why,
            Superblock::choose(a_newer_one, &old)
                .unwrap_err()
                .to_string()
        );
        assert!(why.contains("version 2") || why.contains("0x4"), "{why}");
    }
    assert!(
        Superblock::decode(&rewritten(&new, 30, 1)).is_ok(),
        "features of the high half may be ignored"
    );
    let other = block(&Superblock {
        store: [0; 16],
        ..superblock(3)
    });
    assert!(
        Superblock::choose(&old, &other).is_err(),
        "copies of two stores"
    );

    let mut segment = vec![0; BLOCK_BYTES];
    let header = SegmentHeader {
        identity: identity(),
        segment: 3,
        generation: 2,
        segment_bytes: 1 << 26,
    };
    header.encode(&mut segment);
    assert_eq!(SegmentHeader::decode(&segment).unwrap(), header);
    assert!(matches!(
        SegmentHeader::decode(&rewritten(&segment, 8, 9)),
        Err(wal::FormatError::Version {
            found: 9,
            known: 1,
            ..
        })
    ));
    assert!(matches!(
        SegmentHeader::decode(&rewritten(&segment, 60, 1)),
        Err(wal::FormatError::Malformed { .. })
    ));
    assert!(matches!(
        SegmentHeader::decode(&rewritten(&segment, 64, 1)),
        Err(wal::FormatError::Malformed { .. })
    ));
    assert!(matches!(
        SegmentHeader::decode(&vec![0; BLOCK_BYTES]),
        Err(wal::FormatError::Magic(_))
    ));
    assert!(matches!(
        SegmentHeader::decode(&segment[..100]),
        Err(wal::FormatError::Short(_))
    ));
}

#[test]
fn slot_ranges_that_make_no_sense_are_refused() {
    let with = |logs: Vec<LogEntry>| {
        Superblock {
            logs,
            ..superblock(1)
        }
        .encode(&mut vec![0; BLOCK_BYTES])
    };
    assert!(with(vec![entry(0, 5, 4)]).is_err());
    assert!(with(vec![entry(0, 0, 16384)]).is_err());
    assert!(with(vec![entry(0, 0, 100), entry(1, 100, 200)]).is_err());
    assert!(with((0..75).map(|n| entry(n, n as u16, n as u16)).collect()).is_ok());
    assert!(with((0..76).map(|n| entry(n, n as u16, n as u16)).collect()).is_err());
    let full = Superblock {
        logs: (0..75).map(|n| entry(n, n as u16, n as u16)).collect(),
        ..superblock(1)
    };
    assert_eq!(Superblock::decode(&block(&full)).unwrap(), full);
}
