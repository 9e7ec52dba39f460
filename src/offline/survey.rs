//! One log, read from end to end: what is there, what verifies, and what recovery would decide where it stops.
//!
//! The facts come from `wal::scan`, the verdict from `wal::recovery::decide`, so that this tool and a starting server cannot
//! disagree. Behind the stop everything that still verifies on its own is counted too: an inspector shows as much as it can.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use index::checkpoint::{self, CheckpointHeader};
use indicatif::ProgressBar;
use wal::chain::ChainPoint;
use wal::record::{Kind, RecordCodec, RecordView};
use wal::recovery::{Decision, Evidence, decide};
use wal::scan::{self, Stop};
use wal::segment::SegmentHeader;
use wal::superblock::Superblock;
use wal::{BLOCK_BYTES, Location, LogIdentity};

use super::dir::LogFiles;
use super::loose::{Loose, Segment};
use super::report::{
    CheckpointSurvey, CutPoint, LogSurvey, SegmentSurvey, Spot, StreamSurvey, UNUSED, Verdict, hex,
};
use super::stream::{Files, Reader, read_head};

/// Segments are numbered from here; a log that starts later has given its first ones back.
const FIRST_SEGMENT: u32 = 1;

/// A segment file that belongs to the log.
struct Live {
    path: PathBuf,
    length: u64,
    header: SegmentHeader,
    /// Header and first batch header.
    head: Vec<u8>,
}

/// Who wants more of a log than its survey says: everything that a server would have, in the order of lsns.
pub trait Sink {
    /// Whether the pages of the checkpoint in use are wanted. They come before any record.
    fn wants_checkpoint(&self) -> bool {
        false
    }
    /// One of those pages.
    fn page(
        &mut self,
        _header: &CheckpointHeader,
        _number: u64,
        _bytes: &[u8],
    ) -> anyhow::Result<()> {
        Ok(())
    }
    /// A record that is part of the log.
    fn record(&mut self, _location: Location, _record: &RecordView<'_>) {}
    /// All records of this segment came.
    fn segment(&mut self, _segment: u32, _bytes: &[u8]) -> anyhow::Result<()> {
        Ok(())
    }
}

/// Nobody.
pub struct Nothing;

impl Sink for Nothing {}

/// Reads the whole log. Errors are those of the operating system; what is wrong with the bytes is in the survey.
pub async fn survey(
    files: LogFiles,
    superblock: &Option<Superblock>,
    progress: &ProgressBar,
    sink: &mut dyn Sink,
) -> anyhow::Result<LogSurvey> {
    let entry = superblock
        .as_ref()
        .and_then(|block| block.logs.iter().find(|log| log.number == files.number));
    let shown = |path: &Path| super::shown(path, &files.directory);
    let mut heads = Vec::new();
    for (path, length) in &files.segments {
        heads.push((
            path.clone(),
            *length,
            read_head(path, 2 * BLOCK_BYTES).await?.to_vec(),
        ));
    }
    let identity = match (superblock, entry) {
        (Some(block), Some(log)) => Some(LogIdentity {
            store: block.store,
            log: log.log,
            number: log.number,
            timeline: log.timeline,
        }),
        _ => heads
            .iter()
            .find_map(|(_, _, head)| SegmentHeader::decode(head).ok())
            .map(|header| header.identity),
    };

    // The same sorting as recovery's: what it refuses to start on is damage here.
    let mut live: Vec<Live> = Vec::new();
    let mut idle = Vec::new();
    let mut broken_file = None;
    for (path, length, head) in heads {
        let file = shown(&path);
        let mut refuse = |why: String| {
            broken_file.get_or_insert(Spot {
                file: file.clone(),
                offset: 0,
                lsn: None,
                why: why.clone(),
            });
            why
        };
        let never_used = is_zero(head.get(BLOCK_BYTES..).unwrap_or_default());
        let state = match SegmentHeader::decode(&head) {
            Ok(header) if Some(header.identity) != identity => refuse(format!(
                "of another log or timeline ({}, timeline {}): move it away",
                hex(&header.identity.log),
                header.identity.timeline
            )),
            Ok(header) if length < header.segment_bytes => refuse(format!(
                "cut short: {length} bytes, the header says {}",
                header.segment_bytes
            )),
            Ok(header) => match live
                .iter()
                .find(|other| other.header.segment == header.segment)
            {
                Some(twin) => refuse(format!(
                    "holds segment {}, and so does {}",
                    header.segment,
                    shown(&twin.path)
                )),
                None => {
                    live.push(Live {
                        path,
                        length,
                        header,
                        head,
                    });
                    continue;
                }
            },
            Err(_) if never_used => UNUSED.to_owned(),
            Err(error) => refuse(format!("{error}, but there are batches behind it")),
        };
        progress.inc(length);
        idle.push(SegmentSurvey {
            file,
            state,
            ..SegmentSurvey::default()
        });
    }
    live.sort_by_key(|segment| segment.header.segment);

    let mut checkpoints = Vec::new();
    for (path, length) in &files.checkpoints {
        checkpoints.push(
            survey_checkpoint(path, shown(path), identity.as_ref(), progress, *length).await?,
        );
    }

    // What the checkpoint in use says is released is nobody's any more, until it is used again.
    let in_use = checkpoints
        .iter()
        .zip(&files.checkpoints)
        .filter(|(copy, _)| copy.flaw.is_none())
        .filter_map(|(copy, (path, _))| Some((copy.header.as_ref()?, path)))
        .max_by_key(|(header, _)| header.sequence);
    let released = in_use.map_or(0, |(header, _)| header.released_through);
    if let Some((header, path)) = in_use
        && sink.wants_checkpoint()
    {
        read_pages(header, path, sink).await?;
    }
    let behind = live.partition_point(|segment| segment.header.segment <= released);
    for segment in live.drain(..behind) {
        progress.inc(segment.length);
        idle.push(SegmentSurvey {
            file: shown(&segment.path),
            state: format!("spare, released as segment {}", segment.header.segment),
            ..SegmentSurvey::default()
        });
    }

    let mut survey = LogSurvey {
        number: files.number,
        log: identity.map(|identity| hex(&identity.log)),
        timeline: identity.map(|identity| identity.timeline),
        epoch: entry.map(|log| log.epoch),
        slots: entry.map(|log| (log.slot_first, log.slot_last)),
        durable_lsn_at_close: entry.map(|log| log.durable_lsn),
        bytes: files.bytes(),
        bytes_checked: live
            .iter()
            .map(|segment| segment.length)
            .chain(files.checkpoints.iter().map(|file| file.1))
            .sum(),
        batches: 0,
        records: 0,
        last_lsn: 0,
        segments: Vec::new(),
        streams: Vec::new(),
        checkpoints,
        log_time_us: 0,
        cut: None,
        verdict: Verdict::Whole,
    };
    if let Some(identity) = identity {
        read_log(
            &mut survey,
            &files.directory,
            &identity,
            live,
            released,
            progress,
            sink,
        )
        .await?;
    }
    // A segment that is missing is most likely in the file that cannot be taken for one.
    let is_told = survey.cut.is_some() && matches!(survey.verdict, Verdict::Damage(_));
    if let (Some(spot), false) = (broken_file, is_told) {
        survey.verdict = Verdict::Damage(spot);
    }
    survey.segments.append(&mut idle);
    Ok(survey)
}

/// Walks the chain through the segments, then counts what lies behind its end.
async fn read_log(
    survey: &mut LogSurvey,
    directory: &Path,
    identity: &LogIdentity,
    live: Vec<Live>,
    released: u32,
    progress: &ProgressBar,
    sink: &mut dyn Sink,
) -> anyhow::Result<()> {
    let usable = || {
        survey
            .checkpoints
            .iter()
            .filter(|copy| copy.flaw.is_none())
            .filter_map(|copy| copy.header.as_ref())
    };
    // A header says it whatever has become of the pages behind it.
    let headers = survey.checkpoints.iter().flat_map(|copy| &copy.header);
    let known_durable = headers
        .map(|header| header.max_lsn)
        .chain(survey.durable_lsn_at_close)
        .max()
        .unwrap_or(0);
    // A log whose first segments were given back is entered where a checkpoint enters it; before that, batches are held to each other.
    let first_segment = match live.first() {
        Some(first) => first.header.segment,
        None => released + FIRST_SEGMENT,
    };
    let entry = usable()
        .map(|header| header.replay_from)
        .filter(|point| point.segment >= first_segment);
    let mut at = match entry.min_by_key(|point| point.next_lsn) {
        Some(point) if first_segment != FIRST_SEGMENT => point,
        _ => ChainPoint::genesis(FIRST_SEGMENT),
    };
    let missing = |lsn: Option<u64>, why: String| {
        let file = format!("log-{:08}", identity.number);
        Verdict::Damage(Spot {
            file,
            offset: 0,
            lsn,
            why,
        })
    };
    let numbers = || live.iter().map(|segment| segment.header.segment);
    let gap = (released + 1..at.segment).find(|number| !numbers().any(|there| there == *number));
    if let Some(number) = gap {
        let those = match released {
            0 => "none was released yet".to_owned(),
            _ => format!("segments up to {released} were released, and this one was not"),
        };
        let why = format!("segment {number} is missing: a checkpoint says that {those}");
        // Which records it held nothing says.
        survey.verdict = missing(None, why);
    } else if first_segment > at.segment {
        survey.verdict = missing(
            Some(at.next_lsn),
            format!(
                "segment {} is missing: the oldest file holds segment {first_segment}",
                at.segment
            ),
        );
    } else if live.is_empty() && known_durable > 0 {
        survey.verdict = missing(
            Some(at.next_lsn),
            format!("there is no segment, but lsn {known_durable} was durable"),
        );
    }

    let codec = RecordCodec::new(identity);
    let mut streams = Streams::default();
    let mut files = Files::new(
        live.iter()
            .map(|segment| (segment.path.clone(), segment.length)),
    );
    let mut before_chain = Loose::default();
    let mut behind_end = Loose::default();
    // Where the chain ended and why, until it is known what that means.
    let mut ended: Option<(usize, ChainPoint, Stop)> = None;
    let mut proven = false;
    for (number, live_segment) in live.iter().enumerate() {
        let bytes = files
            .next()
            .await
            .context("every live segment is in the stream")??;
        let header = &live_segment.header;
        let segment = Segment {
            identity,
            header,
            bytes: &bytes,
        };
        let mut row = SegmentSurvey {
            file: super::shown(&live_segment.path, directory),
            state: "in use".to_owned(),
            segment: Some(header.segment),
            generation: Some(header.generation),
            ..SegmentSurvey::default()
        };
        let whole_file = BLOCK_BYTES as u32..u32::MAX;
        if ended.is_none() && header.segment <= at.segment {
            let until = if header.segment == at.segment {
                at.offset
            } else {
                u32::MAX
            };
            row.batches = before_chain.read(
                &codec,
                &segment,
                BLOCK_BYTES as u32..until,
                |lsn, at, record| {
                    row.note_records(lsn..lsn + 1);
                    streams.count(record);
                    sink.record(at, record);
                },
            );
            row.batches_before_entry = row.batches;
            if let (Some(spot), Verdict::Whole) = (before_chain.broken.take(), &survey.verdict) {
                survey.verdict = Verdict::Damage(Spot {
                    file: row.file.clone(),
                    ..spot
                });
            }
        }
        if ended.is_some() {
            row.loose_batches +=
                behind_end.read(&codec, &segment, whole_file.clone(), |_, _, _| ());
        } else if header.segment >= at.segment {
            let (end, stop) = scan::walk(identity, header, &bytes, at, &mut |_, at, record| {
                streams.count(&record);
                sink.record(at, &record);
            });
            let end_offset = stopped_at(&end, header);
            row.bytes_used = u64::from(end_offset);
            row.batches += end.next_batch - at.next_batch;
            row.note_records(at.next_lsn..end.next_lsn);
            row.stop = Some(stop_text(&stop));
            let continues = live
                .get(number + 1)
                .is_some_and(|next| scan::continues(identity, &next.header, &next.head, &end));
            let evidence = Evidence {
                stop: stop.clone(),
                next_continues: continues,
                proven_durable: false,
            };
            if decide(&evidence) != Decision::NextSegment {
                row.loose_batches +=
                    behind_end.read(&codec, &segment, end_offset..u32::MAX, |_, _, _| ());
                ended = Some((number, end, stop));
            }
            at = end;
        }
        if let Some((_, end, _)) = &ended {
            let proof =
                scan::proof_of_durability(identity, header, &bytes, whole_file.start, end.next_lsn);
            proven = proven || proof.is_some();
        }
        survey.batches += row.batches;
        survey.records += row.records;
        sink.segment(header.segment, &bytes)?;
        progress.inc(live_segment.length);
        survey.segments.push(row);
    }
    survey.last_lsn = at.next_lsn - 1;
    survey.log_time_us = at.log_time_us;
    survey.streams = streams.finish();
    let Some((number, end, stop)) = ended else {
        return Ok(());
    };
    // Where what came first is missing there is nothing to cut behind.
    if survey.verdict != Verdict::Whole {
        return Ok(());
    }

    survey.cut = Some(CutPoint {
        file: survey.segments[number].file.clone(),
        segment: live[number].header.segment,
        offset: stopped_at(&end, &live[number].header),
        next_lsn: end.next_lsn,
    });
    proven = proven || known_durable >= end.next_lsn;
    let spot = |why: String| Spot {
        file: survey.segments[number].file.clone(),
        offset: u64::from(stopped_at(&end, &live[number].header)),
        lsn: Some(end.next_lsn),
        why,
    };
    let verdict = match decide(&Evidence {
        stop: stop.clone(),
        next_continues: false,
        proven_durable: proven,
    }) {
        Decision::Damage => Verdict::Damage(spot(format!(
            "{}, but lsn {} was durable",
            stop_text(&stop),
            end.next_lsn
        ))),
        Decision::Cut if matches!(stop, Stop::Invalid(_) | Stop::Unchained { .. }) => {
            Verdict::TornTail(spot(stop_text(&stop)))
        }
        Decision::Cut | Decision::NextSegment => Verdict::Whole,
    };
    if survey.verdict == Verdict::Whole {
        survey.verdict = verdict;
    }
    Ok(())
}

/// Offset in this segment where a walk that ended at `end` stood.
fn stopped_at(end: &ChainPoint, header: &SegmentHeader) -> u32 {
    if end.segment == header.segment {
        end.offset
    } else {
        BLOCK_BYTES as u32
    }
}

fn stop_text(stop: &Stop) -> String {
    match stop {
        Stop::NoBatch => "no batch".to_owned(),
        Stop::Invalid(why) => format!("invalid batch: {why}"),
        Stop::Unchained { batch, epoch, .. } => {
            format!("batch {batch} of epoch {epoch} does not continue the log")
        }
        Stop::End => "full".to_owned(),
    }
}

/// Hands out the pages of a checkpoint that was found to be whole.
async fn read_pages(
    header: &CheckpointHeader,
    path: &Path,
    sink: &mut dyn Sink,
) -> anyhow::Result<()> {
    let reader = Reader::open(path).await?;
    for number in 0..header.pages {
        let offset = checkpoint::HEADER_BYTES as u64 + number * checkpoint::PAGE_BYTES as u64;
        let page = reader.read(offset, checkpoint::PAGE_BYTES).await?;
        sink.page(header, number, &page)?;
    }
    reader.close().await
}

/// Reads every page of a checkpoint.
async fn survey_checkpoint(
    path: &Path,
    file: String,
    identity: Option<&LogIdentity>,
    progress: &ProgressBar,
    length: u64,
) -> anyhow::Result<CheckpointSurvey> {
    let reader = Reader::open(path).await?;
    let block = reader.read(0, checkpoint::HEADER_BYTES).await?;
    progress.inc(block.len() as u64);
    let mut survey = CheckpointSurvey {
        file: file.clone(),
        sequence: None,
        keys: None,
        pages: None,
        replay_from_lsn: None,
        max_lsn: None,
        flaw: None,
        header: None,
    };
    let flaw = |offset: u64, why: String| {
        Some(Spot {
            file: file.clone(),
            offset,
            lsn: None,
            why,
        })
    };
    if is_zero(&block) {
        return Ok(survey);
    }
    let header = match CheckpointHeader::decode(&block) {
        Ok(header) if identity.is_none_or(|identity| header.identity == *identity) => header,
        Ok(_) => {
            survey.flaw = flaw(0, "of another log or timeline".to_owned());
            return Ok(survey);
        }
        Err(error) => {
            survey.flaw = flaw(0, error.to_string());
            return Ok(survey);
        }
    };
    for number in 0..header.pages {
        let offset = checkpoint::HEADER_BYTES as u64 + number * checkpoint::PAGE_BYTES as u64;
        if offset >= length {
            survey.flaw = flaw(
                offset,
                format!("the file ends before page {number} of {}", header.pages),
            );
            break;
        }
        let page = reader.read(offset, checkpoint::PAGE_BYTES).await?;
        progress.inc(page.len() as u64);
        if let Err(error) = checkpoint::decode_page(&header, number, &page) {
            survey.flaw = flaw(offset, error.to_string());
            break;
        }
    }
    reader.close().await?;
    survey.sequence = Some(header.sequence);
    survey.keys = Some(header.keys);
    survey.pages = Some(header.pages);
    survey.replay_from_lsn = Some(header.replay_from.next_lsn);
    survey.max_lsn = Some(header.max_lsn);
    survey.header = Some(header);
    Ok(survey)
}

/// Counts per stream; neighbours in a log are mostly of one stream.
#[derive(Default)]
struct Streams {
    all: BTreeMap<u32, StreamSurvey>,
    last: StreamSurvey,
}

impl Streams {
    fn count(&mut self, record: &RecordView<'_>) {
        if record.stream != self.last.id {
            self.put_back();
            self.last = self.all.remove(&record.stream).unwrap_or_default();
            self.last.id = record.stream;
        }
        match record.kind {
            Kind::StreamDefinition => {
                self.last.name = Some(String::from_utf8_lossy(record.key).into_owned())
            }
            Kind::Put | Kind::Tombstone => {
                self.last.records += 1;
                self.last.tombstones += u64::from(record.kind == Kind::Tombstone);
                self.last.bytes += (record.key.len() + record.payload.len()) as u64;
            }
            Kind::Note => {}
        }
    }

    fn put_back(&mut self) {
        let last = std::mem::take(&mut self.last);
        if last.name.is_some() || last.records > 0 {
            self.all.insert(last.id, last);
        }
    }

    fn finish(mut self) -> Vec<StreamSurvey> {
        self.put_back();
        self.all.into_values().collect()
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}
