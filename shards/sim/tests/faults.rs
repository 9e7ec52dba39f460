//! Every disk operation of a workload fails once: nothing is acked behind a failed log write, reads go on, a restart recovers.

use sim::machine::{Errno, FaultKind};
use sim::scenario::{Request, SMALL, StoreConfig, fail_operation, fresh};

#[test]
fn whichever_operation_fails_nothing_is_acked_that_is_not_durable_and_a_restart_recovers() {
    let (mut states, mut log_writes) = (0, 0);
    for config in [
        SMALL,
        StoreConfig {
            segment_bytes: 128 * 1024,
            checkpoint_log_bytes: 16 * 1024,
            ..SMALL
        },
    ] {
        let store = fresh(config).unwrap();
        let requests = [
            Request::Put,
            Request::Large,
            Request::Unit,
            Request::Tombstone,
            Request::Large,
            Request::Producer,
            Request::Put,
        ];
        let kinds = Errno::ALL.map(FaultKind::Error);
        for kind in kinds.into_iter().chain([FaultKind::Full, FaultKind::Short]) {
            for operation in 1.. {
                states += 1;
                match fail_operation(&store, &requests, operation, kind) {
                    Ok(Some(log_write)) => log_writes += u64::from(log_write),
                    Ok(None) => break,
                    Err(failure) => panic!(
                        "{kind:?} at operation {operation} of {config:?}: {}\n{}",
                        failure.why,
                        failure.trace.join("\n")
                    ),
                }
            }
        }
    }
    println!("{states} runs, {log_writes} with a failed log write");
    assert!(log_writes > 30);
}
