//! MUTANTS.md, taken apart.

/// The rows of the first table behind a heading, cell by cell, without the marks of code.
pub fn rows(heading: &str) -> Vec<Vec<String>> {
    let text = crate::tree::read("shards/sim/MUTANTS.md");
    let (_, behind) = text
        .split_once(&format!("\n{heading}\n"))
        .unwrap_or_else(|| panic!("MUTANTS.md has no heading {heading:?}"));
    let section = behind.split("\n## ").next().unwrap_or_default();
    let rows: Vec<Vec<String>> = section
        .lines()
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| {
            line.trim_matches('|')
                .split('|')
                .map(|cell| cell.trim().replace('`', ""))
                .collect()
        })
        .collect();
    assert!(!rows.is_empty(), "no table behind {heading:?}");
    rows
}
