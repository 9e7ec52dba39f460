//! The printed script, run by a real shell on a tree of files, does what `apply` does to the recorded machine.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use tuning::apply::apply;
use tuning::check::Report;
use tuning::recorded::Recorded;
use tuning::target::Shape;

use crate::support::{MACHINES, machine, profiles, request};

/// Lays a machine's settings down as files.
fn lay_down(machine: &Recorded, root: &Path) {
    for (path, text) in machine.files() {
        let path = root.join(path.trim_start_matches('/'));
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(path, text).expect("a file");
    }
}

/// A command that writes down how it was called.
fn stand_in(directory: &Path, name: &str) {
    let path = directory.join(name);
    std::fs::create_dir_all(directory).expect("a folder");
    std::fs::write(&path, "#!/bin/sh\necho \"$@\" >> \"$CALLS\"\n").expect("a file");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("its mode");
}

#[test]
fn the_script_does_what_apply_does() {
    for (name, ..) in MACHINES {
        for profile in profiles() {
            let (machine, data) = machine(name);
            let root = tempfile::tempdir().expect("a temporary directory");
            lay_down(&machine, root.path());
            stand_in(&root.path().join("stand-ins"), "ethtool");
            let calls = root.path().join("calls");
            let script = tuning::script::script(&Report::of(&machine, data, &profile, false));
            let path = std::env::var("PATH").unwrap_or_default();
            let run = || {
                let output = Command::new("sh")
                    .args(["-c", &script])
                    .env("ROOT", root.path())
                    .env("CALLS", &calls)
                    .env(
                        "PATH",
                        format!("{}:{path}", root.path().join("stand-ins").display()),
                    )
                    .output()
                    .expect("a shell");
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(
                    output.status.success() && said.is_empty(),
                    "{name}: {said}\n{script}"
                );
                String::from_utf8_lossy(&output.stdout).into_owned()
            };
            let undo = run();
            let mut wanted = request(&machine, data, &profile);
            wanted.force = false;
            let applied = apply(wanted).expect("nothing fails here");
            let mut by_ethtool = 0;
            for change in &applied.changed {
                if [
                    "nic.channels",
                    "nic.ring_rx",
                    "nic.adaptive_rx",
                    "nic.rx_usecs",
                ]
                .iter()
                .any(|key| change.id.starts_with(key))
                {
                    by_ethtool += 1;
                }
            }
            for (path, text) in machine.files() {
                let laid = root.path().join(path.trim_start_matches('/'));
                let Ok(there) = std::fs::read_to_string(laid) else {
                    continue; // the journal, and queues that only appear with more channels
                };
                let follows = path.ends_with("/nr_requests") || path.starts_with("/ethtool/");
                let shape = if text.contains('[') {
                    Shape::Choice
                } else {
                    Shape::Words
                };
                assert!(
                    follows || shape.canonical(&there) == shape.canonical(&text),
                    "{name}, {}: {path} is {there:?}, apply made it {text:?}",
                    profile.name
                );
            }
            let calls = std::fs::read_to_string(&calls).unwrap_or_default();
            assert_eq!(calls.lines().count(), by_ethtool, "{name}: {calls}");
            // What it printed names every old value, and a second run finds nothing to do but what ethtool was told.
            assert_eq!(
                undo.lines().count(),
                applied.changed.len() - appeared(&applied.changed, &undo)
            );
            assert_eq!(run().lines().count(), by_ethtool, "{name}");
        }
    }
}

/// Changes of queues that appeared only when a card got more channels: a script that was printed before cannot know them.
fn appeared(changes: &[tuning::apply::Change], undo: &str) -> usize {
    let channels = changes
        .iter()
        .find(|change| change.id.starts_with("nic.channels"));
    let Some(first) = channels.and_then(|change| change.from.parse::<usize>().ok()) else {
        return 0;
    };
    assert!(undo.contains("ethtool -L"), "{undo}");
    changes
        .iter()
        .filter_map(|change| {
            change
                .id
                .rsplit_once("/tx-")
                .or(change.id.rsplit_once("/rx-"))
        })
        .filter(|(_, queue)| queue.parse::<usize>().is_ok_and(|queue| queue >= first))
        .count()
}
