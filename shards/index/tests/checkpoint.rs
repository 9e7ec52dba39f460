//! The bytes of a checkpoint: round trips, exact bytes, and that nothing wrong is ever read as right.

use index::checkpoint::{
    CheckpointHeader, HEADER_BYTES, PAGE_BYTES, PAGE_ENTRIES, Page, SECTION_BYTES_MAX, Section,
    decode_page, encode_bytes, encode_entries,
};
use index::{Digest, Entry};
use proptest::prelude::*;
use wal::chain::ChainPoint;
use wal::{FormatError, Location, LogIdentity};

fn identity() -> LogIdentity {
    LogIdentity {
        store: [0x11; 16],
        log: [0x22; 16],
        number: 3,
        timeline: 4,
    }
}

fn header() -> CheckpointHeader {
    CheckpointHeader {
        identity: identity(),
        sequence: 5,
        replay_from: ChainPoint {
            epoch: 6,
            next_batch: 7,
            next_lsn: 8,
            hash: [0x33; 16],
            log_time_us: 9,
            segment: 10,
            offset: 4096,
        },
        max_lsn: 11,
        pages: 12,
        keys: 13,
        log_time_us: 14,
        released_through: 0,
        record_bytes: 0,
        dead_bytes: 0,
        aging_bytes: 0,
        padding_bytes: 0,
        counted_lsn: 0,
    }
}

#[test]
fn what_was_released_lies_in_bytes_that_were_zero() {
    let mut block = vec![0; HEADER_BYTES];
    let header = CheckpointHeader {
        released_through: 0x0f,
        record_bytes: 0x10,
        dead_bytes: 0x11,
        aging_bytes: 0x12,
        padding_bytes: 0x13,
        counted_lsn: 0x14,
        ..header()
    };
    header.encode(&mut block);
    assert_eq!(hex(&block[76..80]), "0f000000");
    assert_eq!(
        hex(&block[152..192]),
        "10000000000000001100000000000000120000000000000013000000000000001400000000000000"
    );
    assert!(block[192..].iter().all(|byte| *byte == 0));
    assert_eq!(CheckpointHeader::decode(&block).unwrap(), header);
}

fn entries(n: usize) -> Vec<(Digest, Entry)> {
    (0..n as u64)
        .map(|i| {
            let entry = Entry {
                lsn: i << 30 | 0x1234,
                version: 0x0a0b_0c0d,
                tombstone: i % 2 == 1,
                location: Location {
                    segment: 77,
                    offset: 4096 + 8 * u32::try_from(i).unwrap(),
                },
                bytes: 512,
            };
            (
                Digest::canonical(u128::from(i + 1) << 100 | 0xabcd << 32),
                entry,
            )
        })
        .collect()
}

fn entry_page(n: usize) -> Vec<u8> {
    // Old bytes in the buffer must not show.
    let mut page = vec![0xee; PAGE_BYTES];
    assert_eq!(
        encode_entries(&identity(), 5, 2, &entries(n), &mut page),
        n.min(PAGE_ENTRIES)
    );
    page
}

fn decoded(page: &[u8]) -> Vec<(Digest, Entry)> {
    match decode_page(&header(), 2, page).unwrap() {
        Page::Entries(entries) => entries.collect(),
        Page::Bytes(..) => panic!("not entries"),
    }
}

fn refusal(header: &CheckpointHeader, number: u64, page: &[u8]) -> FormatError {
    decode_page(header, number, page).err().expect("a refusal")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn header_comes_back() {
    let mut block = vec![0xee; HEADER_BYTES];
    header().encode(&mut block);
    assert_eq!(CheckpointHeader::decode(&block), Ok(header()));
}

#[test]
fn header_bytes_are_these() {
    let mut block = vec![0; HEADER_BYTES];
    header().encode(&mut block);
    let mut wanted = String::from("50494e494f4e434b01000000");
    wanted += HEADER_CRC;
    wanted += &"11".repeat(16);
    wanted += &"22".repeat(16);
    wanted += "0300000004000000";
    wanted += "0500000000000000";
    wanted += "060000000a0000000010000000000000";
    wanted += "07000000000000000800000000000000";
    wanted += &"33".repeat(16);
    wanted += "0900000000000000";
    wanted += "0b000000000000000c000000000000000d000000000000000e00000000000000";
    assert_eq!(hex(&block[..152]), wanted);
    assert!(block[152..].iter().all(|byte| *byte == 0));
}
/// Computed from these bytes by another program.
const HEADER_CRC: &str = "9e22586f";

#[test]
fn page_bytes_are_these() {
    let page = entry_page(2);
    let mut wanted = String::from("504e4350");
    wanted += PAGE_CRC;
    wanted += "0100000001000000";
    wanted += "0200000040000000";
    wanted += "02000000000000000500000000000000";
    wanted += &"11".repeat(16);
    wanted += &"22".repeat(16);
    wanted += "0300000004000000";
    wanted += &"00".repeat(16);
    // Digest high, fingerprint, lsn, version, segment, then offset 4096 / 8 | class 1 << 27.
    wanted += "0000000010000000cdab0000341200000000";
    wanted += "00000d0c0b0a4d00000000020008";
    // Offset 4104 / 8 | class 1 << 27 | tombstone.
    wanted += "0000000020000000cdab0000341200400000";
    wanted += "00000d0c0b0a4d00000001020088";
    assert_eq!(hex(&page[..160]), wanted);
    assert!(page[160..].iter().all(|byte| *byte == 0));
}
/// Computed from these bytes by another program.
const PAGE_CRC: &str = "153aee6d";

#[test]
fn every_flipped_bit_of_the_header_is_found() {
    let mut block = vec![0; HEADER_BYTES];
    header().encode(&mut block);
    for bit in 0..HEADER_BYTES * 8 {
        block[bit / 8] ^= 1 << (bit % 8);
        assert!(CheckpointHeader::decode(&block).is_err(), "bit {bit}");
        block[bit / 8] ^= 1 << (bit % 8);
    }
    assert!(CheckpointHeader::decode(&block).is_ok());
}

/// Each bit of the head and of the first entries; further on every 97th, as the checksum treats all alike.
#[test]
fn every_flipped_bit_of_a_page_is_found() {
    let mut page = entry_page(100);
    for bit in (0..300 * 8).chain((300 * 8..PAGE_BYTES * 8).step_by(97)) {
        page[bit / 8] ^= 1 << (bit % 8);
        assert!(decode_page(&header(), 2, &page).is_err(), "bit {bit}");
        page[bit / 8] ^= 1 << (bit % 8);
    }
    assert_eq!(decoded(&page), entries(100));
}

#[test]
fn a_page_of_elsewhere_is_refused_by_name() {
    let page = entry_page(3);
    for wrong in [
        LogIdentity {
            store: [9; 16],
            ..identity()
        },
        LogIdentity {
            log: [9; 16],
            ..identity()
        },
        LogIdentity {
            number: 9,
            ..identity()
        },
        LogIdentity {
            timeline: 9,
            ..identity()
        },
    ] {
        let other = CheckpointHeader {
            identity: wrong,
            ..header()
        };
        assert!(
            refusal(&other, 2, &page)
                .to_string()
                .contains("another log")
        );
    }
    let other = CheckpointHeader {
        sequence: 6,
        ..header()
    };
    assert!(
        refusal(&other, 2, &page)
            .to_string()
            .contains("checkpoint 5, not 6")
    );
    assert!(
        refusal(&header(), 3, &page)
            .to_string()
            .contains("page 2, not 3")
    );
    assert_eq!(
        refusal(&header(), 2, &page[1..]),
        FormatError::Short("checkpoint page")
    );
    assert_eq!(
        refusal(&header(), 2, &vec![0; PAGE_BYTES]),
        FormatError::Magic("checkpoint page")
    );
    assert_eq!(
        CheckpointHeader::decode(&page[..HEADER_BYTES]),
        Err(FormatError::Magic("checkpoint header"))
    );
    assert_eq!(
        CheckpointHeader::decode(&page),
        Err(FormatError::Short("checkpoint header"))
    );
}

#[test]
fn another_version_is_refused_by_name() {
    let mut block = vec![0; HEADER_BYTES];
    header().encode(&mut block);
    block[8] = 2;
    assert!(matches!(
        CheckpointHeader::decode(&block),
        Err(FormatError::Version {
            found: 2,
            known: 1,
            ..
        })
    ));
    let mut page = entry_page(1);
    page[8] = 2;
    assert!(matches!(
        refusal(&header(), 2, &page),
        FormatError::Version {
            found: 2,
            known: 1,
            ..
        }
    ));
}

#[test]
fn a_page_takes_what_fits() {
    assert_eq!(decoded(&entry_page(0)), []);
    assert_eq!(decoded(&entry_page(PAGE_ENTRIES)), entries(PAGE_ENTRIES));
    assert_eq!(
        decoded(&entry_page(PAGE_ENTRIES + 5)),
        entries(PAGE_ENTRIES)
    );
}

#[test]
fn free_form_sections_come_back() {
    let mut page = vec![0xee; PAGE_BYTES];
    for section in [
        Section::Streams,
        Section::Producers,
        Section::IdempotencyKeys,
    ] {
        for length in [0, 1, 1000, SECTION_BYTES_MAX] {
            let bytes = vec![7; length];
            encode_bytes(&identity(), 5, 2, section, &bytes, &mut page);
            match decode_page(&header(), 2, &page).unwrap() {
                Page::Bytes(found, given) => assert_eq!((found, given), (section, &bytes[..])),
                Page::Entries(_) => panic!("not bytes"),
            }
        }
    }
}

proptest! {
    #[test]
    fn any_entries_come_back(
        given in prop::collection::vec((any::<u128>(), any::<(u64, u32, bool, u32)>(), 0..1u32 << 27, 0..=2u32 << 20), 0..50),
    ) {
        let given: Vec<(Digest, Entry)> = given
            .into_iter()
            .map(|(digest, (lsn, version, tombstone, segment), units, bytes)| {
                let location = Location { segment, offset: units * 8 };
                (Digest::canonical(digest), Entry { lsn, version, tombstone, location, bytes }.rounded())
            })
            .collect();
        let mut page = vec![0; PAGE_BYTES];
        encode_entries(&identity(), 5, 2, &given, &mut page);
        prop_assert_eq!(decoded(&page), given);
    }

    /// Bytes that are no page never panic.
    #[test]
    fn anything_can_be_decoded(start in prop::collection::vec(any::<u8>(), 0..200), magic: bool) {
        let mut page = vec![0; PAGE_BYTES];
        page[..start.len()].copy_from_slice(&start);
        if magic {
            page[..4].copy_from_slice(b"PNCP");
        }
        prop_assert!(decode_page(&header(), 2, &page).is_err());
        prop_assert!(CheckpointHeader::decode(&page[..HEADER_BYTES]).is_err());
    }
}
