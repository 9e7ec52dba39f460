//! The comparison from its command to its files, with every runtime that was built.

use std::process::Command;

fn compare(client: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_benches"))
        .args([
            "runtimes",
            "--size",
            "smoke",
            "--pipelines",
            "1,16",
            "--runs",
            "3",
            "--connections",
            "10",
        ])
        .args(["--client", client, "--output"])
        .arg(folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let readme = std::fs::read_to_string(folder.path().join("README.md")).unwrap();
    assert!(
        readme.contains("runtimes --size smoke") && readme.contains("Linux"),
        "{readme}"
    );
    std::fs::read_to_string(folder.path().join("runtimes.csv")).unwrap()
}

fn is_whole(table: &str) {
    let mut lines = table.lines();
    let header = lines.next().unwrap();
    assert!(
        header.starts_with("runtime,version,client,connections,pipeline,requests,runs,per_second,"),
        "{header}"
    );
    let runtimes: &[&str] = if cfg!(feature = "runtimes") {
        &["ring", "glommio", "monoio", "compio", "tokio"]
    } else {
        &["ring"]
    };
    for pipeline in ["1", "16"] {
        for runtime in runtimes {
            let fields: Vec<&str> = lines.next().unwrap().split(',').collect();
            assert_eq!((fields[0], fields[4]), (*runtime, pipeline));
            assert_ne!(fields[1], "unknown");
            let (rate, cpu): (f64, f64) = (fields[7].parse().unwrap(), fields[10].parse().unwrap());
            assert!(rate > 0.0 && cpu > 0.0, "{fields:?}");
        }
    }
    assert_eq!(lines.next(), None);
}

#[test]
fn every_runtime_answers_our_client() {
    is_whole(&compare("own"));
}

#[test]
fn every_runtime_answers_whoever_is_there() {
    is_whole(&compare("auto"));
}
