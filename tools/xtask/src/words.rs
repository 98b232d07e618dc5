//! Looks at source text line by line, without strings and comments getting in the way more than they must.

use std::path::{Path, PathBuf};

/// Every `.rs` file below `dir`, sorted; build output is left out.
pub fn rust_files(dir: &Path) -> Vec<PathBuf> {
    files(dir, &|path| path.extension().is_some_and(|ending| ending == "rs"))
}

/// Every file below `dir` that `wanted` takes, sorted; build output and version control are left out.
pub fn files(dir: &Path, wanted: &dyn Fn(&Path) -> bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = entry.file_name();
            if path.is_dir() {
                if name != "target" && name != ".git" {
                    open.push(path);
                }
            } else if wanted(&path) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// A line without its trailing `//` comment and without the inside of plain string literals.
pub fn code_of(line: &str) -> String {
    let mut code = String::with_capacity(line.len());
    let mut chars = line.chars().peekable();
    let mut in_string = false;
    while let Some(char) = chars.next() {
        match char {
            '\\' if in_string => {
                chars.next();
            }
            '"' => {
                in_string = !in_string;
                code.push('"');
            }
            '/' if !in_string && chars.peek() == Some(&'/') => break,
            _ if in_string => {}
            _ => code.push(char),
        }
    }
    code
}

/// Whether `word` stands alone in `code`.
pub fn has_word(code: &str, word: &str) -> bool {
    let part = |char: char| char.is_alphanumeric() || char == '_';
    code.match_indices(word).any(|(at, _)| {
        !code[..at].chars().next_back().is_some_and(part) && !code[at + word.len()..].chars().next().is_some_and(part)
    })
}
