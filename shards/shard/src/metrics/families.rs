//! Every metric, once: its name, type, labels, what it means, and where a snapshot has it.
//!
//! Names start with `pinion_` and end in their unit. A metric of a shard has the label `shard` before its own; one of the process has none.

use super::{
    CODES, DistributionSnapshot, OPERATIONS, ProcessUsage, Protocol, ShardSnapshot, operation_name,
};

/// A number as it is shown.
#[derive(Clone, Copy, Debug)]
pub(super) enum Number {
    Whole(u64),
    Real(f64),
}

impl From<u64> for Number {
    fn from(value: u64) -> Number {
        Number::Whole(value)
    }
}
impl From<f64> for Number {
    fn from(value: f64) -> Number {
        Number::Real(value)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    Counter,
    Gauge,
    Histogram,
}

/// Takes one sample: the values of the family's own labels, in their order, and the number.
pub(super) type Take<'t, V> = &'t mut dyn FnMut(&[&str], V);

/// Where the samples come from.
#[derive(Clone, Copy)]
pub(super) enum Source {
    /// one number a shard
    Shard(fn(&ShardSnapshot) -> Number),
    /// any number a shard, told apart by labels
    Labelled(fn(&ShardSnapshot, Take<'_, Number>)),
    /// one number a shard, which needs to see the others
    Among(fn(&ShardSnapshot, &[ShardSnapshot]) -> Number),
    /// distributions of a shard
    Distributions(fn(&ShardSnapshot, Take<'_, DistributionSnapshot>)),
    /// one number of the process
    Process(fn(&ProcessUsage) -> Number),
    /// always 1; the labels say it
    Build,
}

/// One metric.
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) kind: Type,
    /// behind `shard`
    pub(super) labels: &'static [&'static str],
    pub(super) help: &'static str,
    pub(super) source: Source,
}

const fn counter(
    name: &'static str,
    help: &'static str,
    source: fn(&ShardSnapshot) -> Number,
) -> Family {
    Family {
        name,
        kind: Type::Counter,
        labels: &[],
        help,
        source: Source::Shard(source),
    }
}

const fn gauge(
    name: &'static str,
    help: &'static str,
    source: fn(&ShardSnapshot) -> Number,
) -> Family {
    Family {
        name,
        kind: Type::Gauge,
        labels: &[],
        help,
        source: Source::Shard(source),
    }
}

const fn histogram(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
    source: fn(&ShardSnapshot, Take<'_, DistributionSnapshot>),
) -> Family {
    Family {
        name,
        kind: Type::Histogram,
        labels,
        help,
        source: Source::Distributions(source),
    }
}

pub(super) const FAMILIES: &[Family] = &[
    Family {
        name: "pinion_build_info",
        kind: Type::Gauge,
        labels: &["version"],
        help: "Always 1; the label names the build",
        source: Source::Build,
    },
    gauge(
        "pinion_shard_state",
        "0 recovering, 1 ready, 2 disk full, 3 stopped, 4 draining, 5 no segment can be made",
        |s| (s.gauges.state as u64).into(),
    ),
    counter("pinion_records_total", "Records appended", |s| {
        s.counters.records.into()
    }),
    counter(
        "pinion_payload_bytes_total",
        "Payload bytes of the records appended",
        |s| s.counters.payload_bytes.into(),
    ),
    counter(
        "pinion_log_bytes_total",
        "Bytes written to the log, headers and padding included",
        |s| s.counters.log_bytes.into(),
    ),
    counter("pinion_batches_total", "Batches written to the log", |s| {
        s.counters.batches.into()
    }),
    histogram(
        "pinion_batch_records",
        &[],
        "Records of a batch",
        |s, take| take(&[], s.batch_records),
    ),
    histogram(
        "pinion_batch_bytes",
        &[],
        "Bytes of a batch as written to the device",
        |s, take| take(&[], s.batch_bytes),
    ),
    histogram(
        "pinion_commit_seconds",
        &[],
        "From the first record of a batch until its write is on stable storage",
        |s, take| {
            take(&[], s.commit);
        },
    ),
    histogram(
        "pinion_request_seconds",
        &["operation"],
        "From the bytes of a request being there until its answer is released; operations never used are left out",
        |s, take| {
            for (operation, distribution) in OPERATIONS.iter().zip(&s.requests) {
                if distribution.count() > 0 {
                    take(&[operation_name(*operation)], *distribution);
                }
            }
        },
    ),
    Family {
        name: "pinion_requests_total",
        kind: Type::Counter,
        labels: &["operation", "protocol"],
        help: "Requests read from clients",
        source: Source::Labelled(|s, take| {
            for (protocol, counts) in Protocol::ALL.iter().zip(&s.counters.requests) {
                for (operation, &count) in OPERATIONS.iter().zip(counts) {
                    take(&[operation_name(*operation), protocol.name()], count.into());
                }
            }
        }),
    },
    Family {
        name: "pinion_refusals_total",
        kind: Type::Counter,
        labels: &["code"],
        help: "Requests refused",
        source: Source::Labelled(|s, take| {
            for (code, &count) in CODES.iter().zip(&s.counters.refusals) {
                take(&[code.name()], count.into());
            }
        }),
    },
    counter(
        "pinion_repeats_total",
        "Requests answered from a retry window",
        |s| s.counters.repeats.into(),
    ),
    counter(
        "pinion_retry_evictions_total",
        "Answers that a bound made a retry window forget too early",
        |s| s.counters.retry_evictions.into(),
    ),
    counter(
        "pinion_scrub_bytes_total",
        "Bytes of sealed segments verified again in the background",
        |s| s.counters.scrubbed_bytes.into(),
    ),
    counter(
        "pinion_scrub_errors_total",
        "Places where that found damage; the log says where",
        |s| s.counters.scrub_errors.into(),
    ),
    counter(
        "pinion_mailbox_hops_total",
        "Messages sent to other shards",
        |s| s.counters.mailbox_hops.into(),
    ),
    gauge(
        "pinion_mailbox_queue_depth",
        "Messages that other shards have not taken yet",
        |s| s.gauges.mailbox_queue_depth.into(),
    ),
    counter(
        "pinion_cache_hits_total",
        "Reads that found their record in the read cache",
        |s| s.counters.cache_hits.into(),
    ),
    counter(
        "pinion_cache_misses_total",
        "Reads that asked the read cache in vain",
        |s| s.counters.cache_misses.into(),
    ),
    gauge("pinion_connections", "Open connections", |s| {
        s.gauges.connections.into()
    }),
    counter(
        "pinion_connections_accepted_total",
        "Connections accepted here, whoever serves them",
        |s| s.counters.connections_accepted.into(),
    ),
    counter(
        "pinion_connections_moved_total",
        "Connections accepted here and handed to a shard with fewer",
        |s| s.counters.connections_moved.into(),
    ),
    Family {
        name: "pinion_accept_skew_ratio",
        kind: Type::Gauge,
        labels: &[],
        help: "Connections accepted here over the mean of all shards: 1 is even",
        source: Source::Among(|s, all| {
            let sum: u64 = all
                .iter()
                .map(|other| other.counters.connections_accepted)
                .sum();
            if sum == 0 {
                return 1.0.into();
            }
            (s.counters.connections_accepted as f64 * all.len() as f64 / sum as f64).into()
        }),
    },
    counter(
        "pinion_slow_clients_total",
        "Connections closed because the client took no bytes",
        |s| s.counters.slow_clients.into(),
    ),
    counter(
        "pinion_late_requests_total",
        "Connections closed because a request was begun and not whole in time",
        |s| s.counters.late_requests.into(),
    ),
    gauge(
        "pinion_index_keys",
        "Keys in the index, ended ones included",
        |s| s.gauges.index_keys.into(),
    ),
    gauge("pinion_index_bytes", "Index memory in use", |s| {
        s.gauges.index_bytes.into()
    }),
    Family {
        name: "pinion_memory_bytes",
        kind: Type::Gauge,
        labels: &["part"],
        help: "Memory of the shard by what it is for, the index aside",
        source: Source::Labelled(|s, take| {
            let memory = &s.gauges.memory;
            take(&["batches"], memory.batches.into());
            take(&["connections"], memory.connections.into());
            take(&["cache"], memory.cache.into());
            take(&["retries"], memory.retries.into());
            take(&["reads"], memory.reads.into());
        }),
    },
    Family {
        name: "pinion_segments",
        kind: Type::Gauge,
        labels: &["state"],
        help: "Segments of the log",
        source: Source::Labelled(|s, take| {
            let segments = &s.gauges.segments;
            take(&["active"], segments.active.into());
            take(&["sealed"], segments.sealed.into());
            take(&["ready"], segments.ready.into());
            take(&["released"], segments.released.into());
            take(&["spare"], segments.spare.into());
        }),
    },
    gauge(
        "pinion_log_record_bytes",
        "Bytes of the records in the log, without headers and padding; about",
        |s| s.gauges.record_bytes.into(),
    ),
    gauge(
        "pinion_log_dead_bytes",
        "Of them, bytes that nobody can read any more; about",
        |s| s.gauges.dead_bytes.into(),
    ),
    gauge(
        "pinion_log_padding_bytes",
        "Beside them, headers and padding of their batches; about",
        |s| s.gauges.padding_bytes.into(),
    ),
    gauge(
        "pinion_unreadable_segments",
        "1 while the oldest segment holds what cannot be read and may be wanted: nothing is freed; the log says which",
        |s| u64::from(s.gauges.space_held_up).into(),
    ),
    counter(
        "pinion_segments_released_total",
        "Segments in which nothing can be read any more",
        |s| s.counters.segments_released.into(),
    ),
    counter(
        "pinion_ended_bytes_total",
        "Log bytes of records that max_bytes of their streams has ended, those of the last replay too",
        |s| s.counters.ended_bytes.into(),
    ),
    counter(
        "pinion_segments_recycled_total",
        "Files of released segments that were given to reuse",
        |s| s.counters.segments_recycled.into(),
    ),
    counter(
        "pinion_segments_given_back_total",
        "Spare segment files that nobody wanted for a while: their space went back to the filesystem",
        |s| s.counters.segments_given_back.into(),
    ),
    counter(
        "pinion_segments_left_reserved_total",
        "New segments that the log was given before they were filled with zeroes: the device had no room for both",
        |s| s.counters.segments_left_reserved.into(),
    ),
    counter(
        "pinion_relocated_records_total",
        "Records copied forward to release a segment",
        |s| s.counters.relocated_records.into(),
    ),
    counter(
        "pinion_relocated_bytes_total",
        "Log bytes of those copies",
        |s| s.counters.relocated_bytes.into(),
    ),
    gauge("pinion_durable_lsn", "Last lsn on stable storage", |s| {
        s.gauges.durable_lsn.into()
    }),
    histogram(
        "pinion_device_write_seconds",
        &[],
        "A durable write of a batch, from submission to completion",
        |s, take| {
            take(&[], s.device_write);
        },
    ),
    histogram(
        "pinion_device_read_seconds",
        &[],
        "A read of the device for a client",
        |s, take| take(&[], s.device_read),
    ),
    gauge(
        "pinion_device_sync_seconds",
        "Median of a durable 4 KiB write when the data directory was made",
        |s| s.gauges.device_sync_seconds.into(),
    ),
    gauge(
        "pinion_recovery_seconds",
        "How long the last start took until writes were taken",
        |s| s.gauges.recovery_seconds.into(),
    ),
    gauge(
        "pinion_recovery_bytes",
        "Bytes of checkpoint and log that it read",
        |s| s.gauges.recovery_bytes.into(),
    ),
    gauge("pinion_recovery_records", "Records that it replayed", |s| {
        s.gauges.recovery_records.into()
    }),
    gauge(
        "pinion_checkpoint_seconds",
        "How long the last checkpoint took",
        |s| s.gauges.checkpoint_seconds.into(),
    ),
    gauge(
        "pinion_checkpoint_bytes",
        "Bytes of the last checkpoint",
        |s| s.gauges.checkpoint_bytes.into(),
    ),
    Family {
        name: "pinion_checkpoint_age_seconds",
        kind: Type::Gauge,
        labels: &[],
        help: "Time since the last checkpoint of this run ended; left out before the first",
        source: Source::Labelled(|s, take| {
            if let Some(age) = s.gauges.checkpoint_age_seconds {
                take(&[], age.into());
            }
        }),
    },
    counter(
        "pinion_busy_seconds_total",
        "Time spent working, not waiting: a shard that spins makes top useless",
        |s| (s.counters.busy_ns as f64 / 1e9).into(),
    ),
    counter("pinion_turns_total", "Turns of the loop", |s| {
        s.counters.turns.into()
    }),
    gauge(
        "pinion_last_turn_timestamp_seconds",
        "When the shard answered this scrape, since 1970",
        |s| s.gauges.last_turn_timestamp_seconds.into(),
    ),
    Family {
        name: "pinion_process_resident_bytes",
        kind: Type::Gauge,
        labels: &[],
        help: "Resident memory of the process",
        source: Source::Process(|p| p.resident_bytes.into()),
    },
    Family {
        name: "pinion_process_open_files",
        kind: Type::Gauge,
        labels: &[],
        help: "Open file descriptors of the process",
        source: Source::Process(|p| p.open_files.into()),
    },
    Family {
        name: "pinion_tuning_drifted_settings",
        kind: Type::Gauge,
        labels: &[],
        help: "Settings that pinion tune apply made and that are no longer so",
        source: Source::Process(|p| p.tuning_drift.into()),
    },
    Family {
        name: "pinion_host_listen_overflows_total",
        kind: Type::Counter,
        labels: &[],
        help: "Connections of this network namespace that found a listener's queue full",
        source: Source::Process(|p| p.listeners.overflows.into()),
    },
    Family {
        name: "pinion_host_listen_drops_total",
        kind: Type::Counter,
        labels: &[],
        help: "Connections of this network namespace that were dropped before they were accepted",
        source: Source::Process(|p| p.listeners.drops.into()),
    },
    Family {
        name: "pinion_host_syn_cookies_total",
        kind: Type::Counter,
        labels: &[],
        help: "Handshakes of this network namespace that were answered unremembered: too many under way",
        source: Source::Process(|p| p.listeners.syn_cookies.into()),
    },
];
