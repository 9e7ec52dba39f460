//! `cargo bench -p benches [-- NAME…]`: the in-process questions at real size, those whose names contain one of the words given.

use benches::{QUESTIONS, Question, Size, ask_and_print};

fn main() -> anyhow::Result<()> {
    // cargo passes `--bench`.
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'))
        .collect();
    let wanted = |question: &&Question| {
        words.is_empty() || words.iter().any(|word| question.0.contains(word.as_str()))
    };
    let questions: Vec<Question> = QUESTIONS.iter().filter(wanted).copied().collect();
    anyhow::ensure!(
        !questions.is_empty(),
        "no question is named like {words:?}: there are {:?}",
        QUESTIONS.map(|question| question.0)
    );
    ask_and_print(&questions, Size::Real, std::env::temp_dir(), None)
}
