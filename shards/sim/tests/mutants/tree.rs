//! A copy of the workspace in which the builds are wrong on request: every edit asks the variable `MUTANT` whether it is
//! the one. One build serves all of them, and nothing of it is in the tree that ships.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::builds::{Edit, Killer};

/// What no build needs.
const LEFT_OUT: [&str; 4] = ["target", ".git", "runs", "node_modules"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A file of the tree, by its path from the root.
pub fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The copy.
pub struct Copy {
    folder: PathBuf,
    target: PathBuf,
}

impl Copy {
    /// Copy the tree and edit it. Files that are the same stay as they are, so that cargo builds only what has changed.
    pub fn with_edits<'a>(edits: impl Iterator<Item = &'a Edit>) -> Copy {
        let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mutants");
        let folder = place.join("tree");
        let mut edited: BTreeMap<&str, String> = BTreeMap::new();
        for edit in edits {
            let source = edited.entry(edit.file).or_insert_with(|| read(edit.file));
            assert_eq!(source.matches(edit.from).count(), 1, "{:?}", edit.from);
            *source = source.replace(edit.from, edit.to);
        }
        copy(&root(), &folder, Path::new(""), &edited);
        Copy {
            folder,
            target: place.join("target"),
        }
    }

    fn cargo(&self) -> Command {
        let mut cargo = Command::new(env!("CARGO"));
        cargo
            .current_dir(&self.folder)
            .env("CARGO_TARGET_DIR", &self.target)
            .env_remove("MUTANT");
        cargo
    }

    /// Build the tests once.
    pub fn build(&self) {
        let output = self
            .cargo()
            .args(["test", "--offline", "--no-run", "-p", "sim"])
            .output()
            .expect("cargo starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "the copy does not build:\n{said}");
    }

    /// Run one test, with a mutant or without. Whether it passed, and what it said.
    pub fn run(&self, mutant: Option<&str>, killer: Killer) -> (bool, String) {
        let mut cargo = self.cargo();
        if let Some(mutant) = mutant {
            cargo.env("MUTANT", mutant);
        }
        let Killer {
            member,
            target,
            test,
        } = killer;
        let output = cargo
            .args(["test", "--offline", "-p", member, "--test", target])
            .args(["--", "--exact", test])
            .output()
            .expect("cargo starts");
        let said = [output.stdout, output.stderr].concat();
        (
            output.status.success(),
            String::from_utf8_lossy(&said).into_owned(),
        )
    }
}

/// Files that are as they should be keep their times, so that cargo builds no more than it has to; what the tree does not have
/// any more goes.
fn copy(from: &Path, to: &Path, path: &Path, edited: &BTreeMap<&str, String>) {
    std::fs::create_dir_all(to.join(path)).expect("a folder in the target directory");
    for entry in std::fs::read_dir(to.join(path)).expect("a readable folder") {
        let stale = entry.expect("a readable entry").path();
        let name = stale.file_name().expect("an entry has a name");
        let there = from.join(path).join(name);
        if there.is_dir() == stale.is_dir() && there.exists() {
            continue;
        }
        let removed = match stale.is_dir() {
            true => std::fs::remove_dir_all(&stale),
            false => std::fs::remove_file(&stale),
        };
        removed.expect("the copy is ours");
    }
    for entry in std::fs::read_dir(from.join(path)).expect("a readable folder") {
        let entry = entry.expect("a readable entry");
        let name = entry.file_name();
        if LEFT_OUT.iter().any(|out| name == *out) {
            continue;
        }
        let path = path.join(name);
        if entry.path().is_dir() {
            copy(from, to, &path, edited);
            continue;
        }
        let wanted = match path.to_str().and_then(|path| edited.get(path)) {
            Some(text) => text.clone().into_bytes(),
            None => std::fs::read(entry.path()).expect("a readable file"),
        };
        if std::fs::read(to.join(&path)).ok().as_ref() != Some(&wanted) {
            std::fs::write(to.join(&path), wanted).expect("room in the target directory");
        }
    }
}
