//! The shape of the tree, held against what cargo and the sources say: which crate may depend on which, where `unsafe` may
//! stand, and that the architecture page and the workspace name the same members.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Edges between our own crates, as built (dev-dependencies are not listed here). A new edge is a decision: write it down in
/// ARCHITECTURE.md, then here.
const EDGES: &[(&str, &[&str])] = &[
    // The composition root starts the engine, speaks as a client, and reads directories offline with recovery's own code.
    (
        "pinion",
        &["shard", "client", "wire", "wal", "index", "uring", "tuning"],
    ),
    // The host's settings know nothing of the engine: what they tune for is in the table's reasons.
    ("tuning", &[]),
    // One core's turn ties the parts together; the parts do not know each other, except that an index entry points into a log.
    ("shard", &["uring", "wire", "index", "wal"]),
    ("index", &["wal"]),
    ("uring", &[]),
    ("wire", &[]),
    ("wal", &[]),
    // The simulator runs the shipped shard and speaks its formats to check it.
    ("sim", &["shard", "wal", "index", "wire", "uring"]),
    // What a producer links knows the protocol and nothing behind it.
    ("client", &["wire"]),
    // The load generator gives way to the kernel's workers, and only uring may say so to the kernel.
    ("loadtest", &["client", "wire", "uring"]),
    // In-process questions look at every part.
    ("benches", &["shard", "uring", "wire", "wal", "index"]),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn metadata() -> serde_json::Value {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--no-deps",
            "--format-version",
            "1",
            "--offline",
        ])
        .current_dir(root())
        .output()
        .expect("cargo starts");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON")
}

fn text<'a>(value: &'a serde_json::Value, key: &str) -> &'a str {
    value[key]
        .as_str()
        .unwrap_or_else(|| panic!("{key} is a string"))
}

/// Packages of the workspace by name.
fn packages(metadata: &serde_json::Value) -> BTreeMap<&str, &serde_json::Value> {
    let packages = metadata["packages"].as_array().expect("packages is a list");
    packages
        .iter()
        .map(|package| (text(package, "name"), package))
        .collect()
}

/// What a package needs of the others to be built, not to be tested.
fn own_dependencies<'a>(
    package: &'a serde_json::Value,
    members: &BTreeSet<&str>,
) -> BTreeSet<&'a str> {
    let dependencies = package["dependencies"]
        .as_array()
        .expect("dependencies is a list");
    dependencies
        .iter()
        .filter(|dependency| dependency["kind"].as_str() != Some("dev"))
        .map(|dependency| text(dependency, "name"))
        .filter(|name| members.contains(name))
        .collect()
}

#[test]
fn dependencies_point_one_way() {
    let metadata = metadata();
    let packages = packages(&metadata);
    let members: BTreeSet<&str> = packages.keys().copied().collect();
    let allowed: BTreeMap<&str, BTreeSet<&str>> = EDGES
        .iter()
        .map(|(from, to)| (*from, to.iter().copied().collect()))
        .collect();
    assert_eq!(
        members,
        allowed.keys().copied().collect(),
        "the table names every member and nothing else"
    );
    for (name, package) in packages {
        let extra: Vec<&str> = own_dependencies(package, &members)
            .difference(&allowed[name])
            .copied()
            .collect();
        assert!(
            extra.is_empty(),
            "{name} depends on {extra:?}, which the architecture does not allow"
        );
    }
}

#[test]
fn the_allowed_edges_have_no_cycle() {
    let mut left: BTreeMap<&str, BTreeSet<&str>> = EDGES
        .iter()
        .map(|(from, to)| (*from, to.iter().copied().collect()))
        .collect();
    while let Some(leaf) = left
        .iter()
        .find(|(_, to)| to.is_empty())
        .map(|(from, _)| *from)
    {
        left.remove(leaf);
        left.values_mut().for_each(|to| {
            to.remove(leaf);
        });
    }
    assert!(left.is_empty(), "these depend on each other: {left:?}");
}

/// Every Rust source under `folder`.
fn sources(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a readable folder") {
        let path = entry.expect("a readable entry").path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            sources(&path, out);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            out.push(path);
        }
    }
}

/// Whether a line of source uses the keyword: not in a line comment, not in a string, not inside a longer word.
fn uses_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    // Every other part is inside quotation marks; good enough for a line, and the compiler's lint is the real judge.
    code.split('"').step_by(2).any(|part| {
        part.split(|c: char| !c.is_alphanumeric() && c != '_')
            .any(|word| word == "unsafe")
    })
}

#[test]
fn unsafe_stands_only_in_uring() {
    let root = root();
    let mut files = Vec::new();
    for folder in ["src", "tests", "shards", "loadtest", "benches", "tuning"] {
        sources(&root.join(folder), &mut files);
    }
    let kernel = root.join("shards/uring");
    let mut found_in_kernel = 0;
    for file in &files {
        let source = std::fs::read_to_string(file).expect("a readable source");
        for (number, line) in source
            .lines()
            .enumerate()
            .filter(|(_, line)| uses_unsafe(line))
        {
            assert!(
                file.starts_with(&kernel),
                "unsafe outside shards/uring: {}:{}: {line}",
                file.display(),
                number + 1
            );
            found_in_kernel += 1;
        }
    }
    // A search that finds nothing anywhere has stopped searching.
    assert!(
        found_in_kernel > 0,
        "no unsafe in shards/uring: does this test still look at it?"
    );
    assert!(uses_unsafe("unsafe { x() }") && uses_unsafe("pub unsafe fn x()"));
    assert!(
        !uses_unsafe("// unsafe")
            && !uses_unsafe("unsafe_code = 1")
            && !uses_unsafe(&format!("say({:?})", "unsafe"))
    );
}

#[test]
fn every_member_but_uring_takes_the_lint_table() {
    for (name, package) in packages(&metadata()) {
        let manifest =
            std::fs::read_to_string(text(package, "manifest_path")).expect("a readable manifest");
        let manifest: toml::Table = manifest.parse().expect("a manifest is TOML");
        let inherits = manifest
            .get("lints")
            .and_then(|lints| lints.get("workspace"))
            .and_then(toml::Value::as_bool)
            == Some(true);
        assert_eq!(inherits, name != "uring", "{name}");
    }
}

#[test]
fn the_architecture_page_names_every_member() {
    let page = match std::fs::read_to_string(root().join("ARCHITECTURE.md")) {
        Ok(page) => page,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
        Err(error) => panic!("ARCHITECTURE.md: {error}"),
    };
    for (name, package) in packages(&metadata()) {
        let folder = Path::new(text(package, "manifest_path"))
            .parent()
            .expect("a manifest lies in a folder");
        let folder = folder
            .strip_prefix(root())
            .expect("members lie in the tree")
            .to_str()
            .expect("a UTF-8 path");
        let wanted = if folder.is_empty() { "src/" } else { folder };
        assert!(
            page.contains(&format!("`{wanted}")),
            "ARCHITECTURE.md does not name `{wanted}` ({name})"
        );
    }
}

/// The fuzz crate is no member, and what of it needs the binary's own files is not built with every run: a file that moves
/// would be missed only by whoever fuzzes next.
#[test]
fn files_that_the_fuzz_targets_compile_in_are_there() {
    let path = root().join("fuzz/src/lib.rs");
    let text = std::fs::read_to_string(&path).expect("fuzz/src/lib.rs");
    let files: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("#[path = \"")?.strip_suffix("\"]"))
        .collect();
    assert!(files.len() >= 3, "does this test still look at them?");
    for file in files {
        let file = path.with_file_name(file);
        assert!(file.is_file(), "{} is not there", file.display());
    }
}
