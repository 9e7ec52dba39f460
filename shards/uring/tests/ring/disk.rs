//! Files through the ring and by path.

use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::common::{ring, wait_for};
use uring::latency::{SyncMethod, measure_sync_latency};
use uring::{Buffer, BufferPool, Completion, Ring, Wait, WriteDurability, device, file};

/// On a disk rather than in memory: O_DIRECT and sync are the point.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn filled(mut buffer: Buffer, seed: u8) -> Rc<Buffer> {
    for (i, byte) in buffer.iter_mut().enumerate() {
        *byte = seed.wrapping_add((i / 3) as u8);
    }
    Rc::new(buffer)
}

fn written(ring: &mut Ring) -> io::Result<usize> {
    match wait_for(ring, 1).pop() {
        Some(Completion::Written { token: 2, result }) => result,
        other => panic!("{other:?}"),
    }
}

fn read_back(
    ring: &mut Ring,
    file: &Rc<std::os::fd::OwnedFd>,
    offset: u64,
    buffer: Buffer,
    len: usize,
) -> (Buffer, usize) {
    ring.read(file.clone(), offset, buffer, len, 3).unwrap();
    match wait_for(ring, 1).pop() {
        Some(Completion::Read {
            token: 3,
            buffer,
            result,
        }) => (buffer, result.unwrap()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_durable_write_is_read_back() {
    let dir = scratch();
    let file = Rc::new(file::open_direct(&dir.path().join("log"), true).unwrap());
    file::zero_fill(&file, 64 << 10).unwrap();
    let mut ring = ring();
    let data = filled(Buffer::new(16 << 10).unwrap(), 1);
    ring.write(
        file.clone(),
        8192,
        data.clone(),
        4096..12288,
        WriteDurability::Dsync,
        2,
    )
    .unwrap();
    // The ring holds the buffer until the completion, and can be read from meanwhile.
    assert_eq!(Rc::strong_count(&data), 2);
    assert_eq!(written(&mut ring).unwrap(), 8192);
    assert_eq!(Rc::strong_count(&data), 1);
    let (got, len) = read_back(&mut ring, &file, 8192, Buffer::new(8192).unwrap(), 8192);
    assert_eq!(len, 8192);
    assert!(got[..] == data[4096..12288]);
    let mut around = Buffer::new(4096).unwrap();
    file::pread_exact(&file, 4096, &mut around).unwrap();
    assert!(around.iter().all(|&b| b == 0));
}

#[test]
fn a_registered_file_is_the_same_file_and_outlives_its_owner() {
    let dir = scratch();
    let path = dir.path().join("log");
    let file = Rc::new(file::open_direct(&path, true).unwrap());
    let other = Rc::new(file::open_direct(&dir.path().join("other"), true).unwrap());
    let mut ring = ring();
    ring.register_file(&other).unwrap();
    ring.register_file(&file).unwrap();
    ring.register_file(&file).unwrap();
    assert!(ring.features().registered_files);
    let data = filled(Buffer::new(4096).unwrap(), 5);
    ring.write(
        file.clone(),
        0,
        data.clone(),
        0..4096,
        WriteDurability::Dsync,
        2,
    )
    .unwrap();
    assert_eq!(written(&mut ring).unwrap(), 4096);
    ring.fdatasync(file.clone(), 4).unwrap();
    assert!(matches!(
        wait_for(&mut ring, 1)[..],
        [Completion::Synced {
            token: 4,
            result: Ok(())
        }]
    ));
    let (got, len) = read_back(&mut ring, &file, 0, Buffer::new(4096).unwrap(), 4096);
    assert_eq!((len, &got[..]), (4096, &data[..]));
    assert!(std::fs::read(&path).unwrap() == data[..], "in its own file");
    // A number is free for another file only when nobody has it, and the ring has it.
    drop(file);
    let next = Rc::new(file::open_direct(&dir.path().join("next"), true).unwrap());
    ring.write(
        next.clone(),
        0,
        data.clone(),
        0..4096,
        WriteDurability::Dsync,
        2,
    )
    .unwrap();
    assert_eq!(written(&mut ring).unwrap(), 4096);
    assert!(std::fs::read(dir.path().join("next")).unwrap() == data[..]);
}

#[test]
fn buffers_of_registered_pools_go_the_fixed_way() {
    let dir = scratch();
    let file = Rc::new(file::open_direct(&dir.path().join("log"), true).unwrap());
    let writes = BufferPool::new(5, 8192).unwrap();
    let reads = BufferPool::new(3, 4096).unwrap();
    let mut ring = ring();
    ring.register_buffers(&writes).unwrap();
    ring.register_buffers(&reads).unwrap();
    ring.register_buffers(&reads).unwrap();
    assert!(ring.features().registered_buffers);
    let _first = writes.take().unwrap();
    let data = filled(writes.take().unwrap(), 9);
    ring.write(
        file.clone(),
        0,
        data.clone(),
        0..8192,
        WriteDurability::None,
        2,
    )
    .unwrap();
    assert_eq!(written(&mut ring).unwrap(), 8192);
    ring.fdatasync(file.clone(), 4).unwrap();
    assert!(matches!(
        wait_for(&mut ring, 1)[..],
        [Completion::Synced {
            token: 4,
            result: Ok(())
        }]
    ));
    let _other = reads.take().unwrap();
    let (got, len) = read_back(&mut ring, &file, 4096, reads.take().unwrap(), 4096);
    assert_eq!(len, 4096);
    assert!(got[..] == data[4096..]);
    drop(got);
    drop(data);
    assert_eq!((writes.available(), reads.available()), (4, 2));
    // A buffer of a pool the ring does not know goes the ordinary way.
    let unknown = filled(BufferPool::new(1, 4096).unwrap().take().unwrap(), 3);
    ring.write(file.clone(), 0, unknown, 0..4096, WriteDurability::Dsync, 2)
        .unwrap();
    assert_eq!(written(&mut ring).unwrap(), 4096);
}

#[test]
fn a_pooled_buffer_is_out_until_its_write_completes() {
    let dir = scratch();
    let file = Rc::new(file::open_direct(&dir.path().join("log"), true).unwrap());
    let pool = BufferPool::new(1, 4096).unwrap();
    let mut ring = ring();
    ring.write(
        file,
        0,
        Rc::new(pool.take().unwrap()),
        0..4096,
        WriteDurability::Dsync,
        2,
    )
    .unwrap();
    assert!(pool.take().is_none());
    written(&mut ring).unwrap();
    assert_eq!(pool.available(), 1);
}

#[test]
fn errors_of_the_device_reach_the_caller_and_the_buffer_comes_back() {
    let dir = scratch();
    let path = dir.path().join("log");
    std::fs::write(&path, [1; 5000]).unwrap();
    let read_only = Rc::new(std::fs::File::open(&path).unwrap().into());
    let mut ring = ring();
    ring.write(
        read_only,
        0,
        filled(Buffer::new(4096).unwrap(), 0),
        0..4096,
        WriteDurability::Dsync,
        2,
    )
    .unwrap();
    assert_eq!(
        written(&mut ring).unwrap_err().raw_os_error(),
        Some(libc::EBADF)
    );
    // Past the end: short, not an error.
    let file = Rc::new(file::open_direct(&path, false).unwrap());
    let (buffer, len) = read_back(&mut ring, &file, 4096, Buffer::new(8192).unwrap(), 8192);
    assert_eq!((buffer.len(), len), (8192, 904));
    let past = ring.write(
        file.clone(),
        0,
        filled(Buffer::new(4096).unwrap(), 0),
        1..4097,
        WriteDurability::None,
        2,
    );
    assert_eq!(past.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    let past = ring.read(file, 0, Buffer::new(4096).unwrap(), 4097, 2);
    assert_eq!(past.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    assert_eq!(ring.in_flight(), 0);
}

#[test]
fn zero_fill_writes_every_byte() {
    let dir = scratch();
    let path = dir.path().join("segment");
    let bytes = (2 << 20) + 4096;
    std::fs::write(&path, vec![7; 10_000]).unwrap();
    let file = file::open_direct(&path, true).unwrap();
    assert!(file::zero_fill(&file, 1000).is_err());
    file::zero_fill(&file, bytes).unwrap();
    file::sync_directory(dir.path()).unwrap();
    let contents = std::fs::read(&path).unwrap();
    assert_eq!(contents.len() as u64, bytes);
    assert!(contents.iter().all(|&b| b == 0));
    let mut out = Buffer::new(4096).unwrap();
    let error = file::pread_exact(&file, bytes, &mut out).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    file::pwrite_all(&file, 0, &filled(Buffer::new(4096).unwrap(), 5)).unwrap();
    assert_eq!(std::fs::read(&path).unwrap()[0], 5);
}

#[test]
fn preallocate_sets_length_and_reserves_space() {
    use std::os::unix::fs::MetadataExt;
    let dir = scratch();
    let path = dir.path().join("segment");
    let file = file::open_direct(&path, true).unwrap();
    file::preallocate(&file, 1 << 20).unwrap();
    let metadata = std::fs::metadata(&path).unwrap();
    assert_eq!(
        (metadata.len(), metadata.blocks() * 512 >= 1 << 20),
        (1 << 20, true)
    );
}

#[test]
fn a_lock_is_exclusive_and_names_the_file() {
    let dir = scratch();
    let path = dir.path().join("lock");
    let held = file::lock_exclusive(&path, Duration::ZERO).unwrap();
    let error = file::lock_exclusive(&path, Duration::from_millis(30)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    assert!(error.to_string().contains("lock"), "{error}");
    // Patience is enough to outlast a holder that goes away.
    let holder = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        drop(held);
    });
    file::lock_exclusive(&path, Duration::from_secs(5)).unwrap();
    holder.join().unwrap();
    file::lock_exclusive(dir.path(), Duration::ZERO).unwrap();
}

#[test]
fn a_filesystem_without_direct_io_is_named() {
    let error = file::open_direct(Path::new("/proc/self/comm"), false).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::Unsupported);
    assert!(
        error.to_string().contains("proc refuses O_DIRECT"),
        "{error}"
    );
    let error = file::open_direct(Path::new("/no/such/file"), false).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
}

#[test]
fn both_ways_of_syncing_can_be_measured_and_leave_nothing() {
    let dir = scratch();
    for method in [SyncMethod::Dsync, SyncMethod::Fdatasync] {
        let times = measure_sync_latency(dir.path(), 4096, 5, method).unwrap();
        assert_eq!(times.len(), 5);
        assert!(times.iter().all(|time| !time.is_zero()));
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    if let Ok(device) = device::device_of(dir.path()) {
        assert!(
            device
                .logical_block_bytes
                .is_some_and(|bytes| 4096 % bytes == 0),
            "{device:?}"
        );
    }
}

#[test]
fn descriptors_of_operations_live_until_they_complete() {
    let dir = scratch();
    let file = Rc::new(file::open_direct(&dir.path().join("log"), true).unwrap());
    let watched = Rc::downgrade(&file);
    let mut ring = ring();
    let data = filled(Buffer::new(4096).unwrap(), 1);
    // The caller lets go of the file before the entry is even submitted.
    ring.write(file, 0, data, 0..4096, WriteDurability::Dsync, 2)
        .unwrap();
    assert_eq!(watched.strong_count(), 1);
    assert_eq!(written(&mut ring).unwrap(), 4096);
    assert_eq!(watched.strong_count(), 0);
}

/// The kernel finishes such a write in a worker bound to the core that spins.
#[test]
fn a_spin_does_not_hold_up_a_durable_write() {
    let dir = scratch();
    let file = Rc::new(file::open_direct(&dir.path().join("log"), true).unwrap());
    file::zero_fill(&file, 4096).unwrap();
    let data = filled(Buffer::new(4096).unwrap(), 1);
    let mut ring = ring();
    let mut median = |wait| {
        let mut times = [Duration::ZERO; 21];
        for time in &mut times {
            let start = Instant::now();
            ring.write(
                file.clone(),
                0,
                data.clone(),
                0..4096,
                WriteDurability::Dsync,
                2,
            )
            .unwrap();
            let mut out = Vec::new();
            while out.is_empty() {
                ring.turn(wait, &mut out).unwrap();
            }
            *time = start.elapsed();
        }
        times.sort();
        times[times.len() / 2]
    };
    let asleep = median(Wait::Sleep(Duration::from_secs(1)));
    let spinning = median(Wait::Spin {
        at_most: Duration::from_secs(1),
        then_sleep: None,
    });
    assert!(
        spinning < 4 * asleep + Duration::from_millis(2),
        "spinning {spinning:?}, asleep {asleep:?}"
    );
}
