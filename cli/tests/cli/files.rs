//! A long file says in its head why it is one.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::texts;

/// Past this length a reader looks for the part that is a file of its own.
const LINES_MAX: usize = 600;
/// The beginning of the reason.
const REASON: &str = "One file, although it is long";

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name())).unwrap();
        let name = name.to_string_lossy();
        if name.starts_with('.') || ["target", "node_modules"].contains(&&*name) {
            continue;
        }
        if path.is_dir() {
            rust_files(&path, found);
        } else if name.ends_with(".rs") {
            found.push(path);
        }
    }
}

#[test]
fn every_long_file_says_why_it_is_one() {
    let mut files = Vec::new();
    rust_files(&texts::root(), &mut files);
    assert!(files.len() > 500, "only {} files were found", files.len());
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let (lines, mut head) = (
            text.lines().count(),
            text.lines().take_while(|line| line.starts_with("//!")),
        );
        assert!(
            lines <= LINES_MAX || head.any(|line| line.contains(REASON)),
            "{} has {lines} lines; cut it, or say in its head \"{REASON}: ...\"",
            file.display()
        );
    }
}
