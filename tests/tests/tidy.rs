//! The few habits of this code that can be measured: sizes, direction of dependencies, no `unwrap`,
//! no shell.
//!
//! Plain text scanning, quick, no compiler. What it does not measure is in the house style and in
//! reviews.

#![expect(clippy::unwrap_used, reason = "the helpers of a test are test code")]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

const FUNCTION_LINES: usize = 70;
const FILE_LINES: usize = 700;
const LINE_WIDTH: usize = 100;

const CRATES: [&str; 6] = [
    "proto",
    "imaging",
    "agent",
    "image-build",
    "conductor",
    "tests",
];
/// The only file with `unsafe`.
const KERNEL: &str = "agent/src/kernel.rs";
/// Names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 6] = ["util", "common", "helpers", "types", "manager", "service"];

/// A source file, as written and with comments and literals blanked out.
struct Source {
    /// Relative to the workspace.
    path: String,
    text: String,
    code: String,
    /// Lines before the tests at the end; none in a file of tests.
    production: usize,
}

impl Source {
    fn new(path: String, text: String) -> Self {
        let code = blank(&text);
        let file_of_tests = path.ends_with("tests.rs")
            || CRATES
                .iter()
                .any(|name| path.starts_with(&format!("{name}/tests/")));
        let tests_at = only_for_tests(&code).find(|(_, rest)| !rest.ends_with(';'));
        let tests_at = tests_at.map(|(line, _)| line);
        let production = if file_of_tests {
            0
        } else {
            tests_at.unwrap_or(code.lines().count())
        };
        Self {
            path,
            text,
            code,
            production,
        }
    }

    fn production_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.code
            .lines()
            .take(self.production)
            .enumerate()
            .map(|(index, line)| (index + 1, line))
    }
}

#[derive(Default)]
struct Findings(Vec<String>);

impl Findings {
    fn add(&mut self, source: &Source, line: usize, what: &str) {
        self.0.push(format!("{}:{line}: {what}", source.path));
    }

    fn assert_none(self) {
        let mut message = String::new();
        for finding in &self.0 {
            let _ = writeln!(message, "  {finding}");
        }
        assert!(
            self.0.is_empty(),
            "{} untidy places:\n{message}",
            self.0.len()
        );
    }
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

fn sources() -> Vec<Source> {
    let root = workspace();
    let mut files = Vec::new();
    for name in CRATES {
        collect(&root.join(name), &mut files);
    }
    assert!(
        files.len() >= CRATES.len(),
        "no sources under {}",
        root.display()
    );
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        Source::new(
            path.strip_prefix(&root)
                .unwrap()
                .to_string_lossy()
                .into_owned(),
            text,
        )
    };
    let mut sources: Vec<Source> = files.into_iter().map(read).collect();
    let of_tests: Vec<String> = sources.iter().flat_map(modules_of_tests).collect();
    for source in &mut sources {
        if of_tests.contains(&source.path) {
            source.production = 0;
        }
    }
    sources
}

/// Index of each `#[cfg(test)]` line before a module, and what it says of the module.
fn only_for_tests(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = code.lines().zip(code.lines().skip(1)).enumerate();
    lines.filter_map(|(index, (line, next))| {
        let at = next.find("mod ").filter(|_| line == "#[cfg(test)]")?;
        Some((index, next[at..].trim_end()))
    })
}

/// Files that exist for tests only, because their parent says so.
fn modules_of_tests(source: &Source) -> Vec<String> {
    let path = Path::new(&source.path);
    let stem = path.file_stem().unwrap().to_string_lossy();
    let dir = match stem.as_ref() {
        "mod" | "lib" | "main" => path.parent().unwrap().to_owned(),
        _ => path.with_extension(""),
    };
    let names = only_for_tests(&source.code)
        .filter_map(|(_, rest)| Some(rest.strip_prefix("mod ")?.strip_suffix(';')?.to_owned()));
    names
        .map(|name| {
            dir.join(format!("{name}.rs"))
                .to_string_lossy()
                .into_owned()
        })
        .collect()
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

#[test]
fn sizes() {
    let mut findings = Findings::default();
    for source in sources() {
        if source.production > FILE_LINES {
            let what = format!(
                "{} production lines; split at {FILE_LINES}",
                source.production
            );
            findings.add(&source, 1, &what);
        }
        for (index, line) in source.text.lines().enumerate() {
            let width = line.chars().count();
            if width > LINE_WIDTH && !line.contains("http") {
                findings.add(
                    &source,
                    index + 1,
                    &format!("{width} columns; break at {LINE_WIDTH}"),
                );
            }
        }
        for (line, name, lines) in functions(&source.code) {
            if lines > FUNCTION_LINES {
                let what = format!("fn {name} has {lines} lines; at most {FUNCTION_LINES}");
                findings.add(&source, line, &what);
            }
        }
    }
    findings.assert_none();
}

#[test]
fn every_file_says_what_it_is_for() {
    let mut findings = Findings::default();
    for source in sources() {
        if !source.text.starts_with("//!") {
            findings.add(
                &source,
                1,
                "begin with `//!`: what it is for, and what it is not",
            );
        }
        let names = source
            .path
            .split('/')
            .map(|part| part.trim_end_matches(".rs"));
        for name in names.filter(|name| EMPTY_NAMES.contains(name)) {
            findings.add(
                &source,
                1,
                &format!("`{name}` says nothing; name the thing"),
            );
        }
        for (line, name) in inline_modules(&source.code) {
            findings.add(
                &source,
                line,
                &format!("mod {name} says nothing; name the thing"),
            );
        }
    }
    findings.assert_none();
}

fn inline_modules(code: &str) -> Vec<(usize, &str)> {
    let lines = code.lines().enumerate();
    let names = lines.filter_map(|(index, line)| {
        let mut words = line.split(|letter: char| !(letter.is_alphanumeric() || letter == '_'));
        words.by_ref().find(|word| *word == "mod")?;
        let name = words.find(|word| !word.is_empty())?;
        EMPTY_NAMES.contains(&name).then_some((index + 1, name))
    });
    names.collect()
}

#[test]
fn production_code_does_not_unwrap_ignore_or_call_a_shell() {
    let shells = ["sh", "bash", "dash"].map(|shell| format!("Command::new(\"{shell}\")"));
    let ignore = concat!("#[", "ignore");
    let mut findings = Findings::default();
    for source in sources() {
        for (line, code) in source.production_lines() {
            if code.contains(".unwrap()") || code.contains(".unwrap_err()") {
                findings.add(
                    &source,
                    line,
                    "unwrap(); say what failed with `?` and context",
                );
            }
            if has_word(code, "unsafe") && source.path != KERNEL {
                findings.add(&source, line, &format!("unsafe; it lives in {KERNEL} only"));
            }
        }
        for (index, line) in source.text.lines().enumerate() {
            if shells.iter().any(|shell| line.contains(shell)) {
                findings.add(
                    &source,
                    index + 1,
                    "a shell; run the program itself, or write the code",
                );
            }
        }
        for (index, line) in source.code.lines().enumerate() {
            if line.contains(ignore) {
                findings.add(
                    &source,
                    index + 1,
                    "an ignored test; make it run, or remove it",
                );
            }
        }
    }
    findings.assert_none();
}

#[test]
fn dependencies_point_one_way() {
    let mut wrong = Vec::new();
    let apart = ["ferrite-agent", "ferrite-image", "ferrite"];
    for name in ["agent", "image-build", "conductor"] {
        for dependency in dependencies(name) {
            if apart.contains(&dependency.as_str()) || dependency == "ferrite-tests" {
                wrong.push(format!(
                    "{name} uses {dependency}; what both need belongs in proto"
                ));
            }
        }
    }
    for (name, own) in [("proto", None), ("imaging", Some("ferrite-proto"))] {
        for dependency in dependencies(name) {
            let effects = [
                "tokio", "nix", "reqwest", "axum", "sqlx", "hyper", "libc", "socket2",
            ];
            let others = dependency.starts_with("ferrite") && Some(dependency.as_str()) != own;
            if effects.contains(&dependency.as_str()) || others {
                wrong.push(format!(
                    "{name} uses {dependency}; it does no I/O of its own"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Names under `[dependencies]` and its target-specific forms; the tests' own may be anything.
fn dependencies(name: &str) -> Vec<String> {
    let manifest = fs::read_to_string(workspace().join(name).join("Cargo.toml")).unwrap();
    let mut inside = false;
    let mut found = Vec::new();
    for line in manifest.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[') {
            let section = section.trim_end_matches(']');
            inside = section == "dependencies" || section.ends_with(".dependencies");
        } else if inside && !line.starts_with('#') {
            let key: String = line
                .chars()
                .take_while(|letter| letter.is_alphanumeric() || "-_".contains(*letter))
                .collect();
            found.extend((!key.is_empty()).then_some(key));
        }
    }
    assert!(
        !found.is_empty(),
        "{name}/Cargo.toml has no dependencies: is this test reading it right?"
    );
    found
}

#[test]
fn the_lifecycle_core_is_pure() {
    let allowed = [
        "std",
        "ferrite_proto",
        "super",
        "jiff",
        "serde",
        "crate::lifecycle",
        // Conditions with names; no effects.
        "crate::guard",
    ];
    let mut findings = Findings::default();
    let pure = [
        "conductor/src/lifecycle/plan.rs",
        "conductor/src/lifecycle/gate.rs",
        "conductor/src/lifecycle/operations.rs",
        "conductor/src/lifecycle/state.rs",
    ];
    for source in sources()
        .iter()
        .filter(|source| pure.contains(&source.path.as_str()))
    {
        for (line, code) in source.production_lines() {
            let used = code
                .trim()
                .trim_start_matches("pub(crate) ")
                .strip_prefix("use ");
            if used.is_some_and(|used| !allowed.iter().any(|root| used.starts_with(root))) {
                findings.add(
                    source,
                    line,
                    "the planner imports proto, lifecycle, std, time; no effects",
                );
            }
            let effects = ["std::fs", "std::net", "std::process", "::now("];
            let mut effects = effects.iter().filter(|effect| code.contains(**effect));
            let waits = has_word(code, "async") || has_word(code, "await");
            if let Some(effect) = effects.next().or(waits.then_some(&"async")) {
                findings.add(
                    source,
                    line,
                    &format!("`{effect}`: the planner has no clock and no I/O"),
                );
            }
        }
    }
    findings.assert_none();
}

fn has_word(line: &str, word: &str) -> bool {
    let is_part = |letter: char| letter.is_alphanumeric() || letter == '_';
    line.split(|letter| !is_part(letter))
        .any(|found| found == word)
}

/// Line, name and length of each function with a body.
fn functions(code: &str) -> Vec<(usize, String, usize)> {
    let lines: Vec<&str> = code.lines().collect();
    let mut found = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else {
            continue;
        };
        if let Some(length) = body_length(&lines[index..]) {
            found.push((index + 1, name, length));
        }
    }
    found
}

fn function_name(line: &str) -> Option<String> {
    let at = line
        .find("fn ")
        .filter(|at| *at == 0 || line[..*at].ends_with(' '))?;
    let name = line[at + 3..]
        .chars()
        .take_while(|letter| letter.is_alphanumeric() || *letter == '_');
    Some(name.collect::<String>()).filter(|name| !name.is_empty())
}

/// From the signature to the closing brace; `None` for a declaration without a body.
fn body_length(lines: &[&str]) -> Option<usize> {
    let mut depth = 0_usize;
    for (index, line) in lines.iter().enumerate() {
        for letter in line.chars() {
            match letter {
                ';' if depth == 0 && !line.contains('[') => return None,
                '{' => depth += 1,
                '}' => {
                    depth = depth.checked_sub(1)?;
                    if depth == 0 {
                        return Some(index + 1);
                    }
                }
                _ => (),
            }
        }
    }
    None
}

/// The text with comments, strings and characters turned into spaces; lines stay where they are.
fn blank(text: &str) -> String {
    let letters: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < letters.len() {
        let end = opaque_end(&letters, at);
        if end == at {
            out.push(letters[at]);
            at += 1;
        } else {
            let hidden = letters[at..end].iter();
            out.extend(hidden.map(|letter| if *letter == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    out
}

/// Where the comment or literal that begins at `at` ends; `at` itself when none begins there.
fn opaque_end(letters: &[char], at: usize) -> usize {
    let rest = &letters[at..];
    let after_name = at > 0 && (letters[at - 1].is_alphanumeric() || letters[at - 1] == '_');
    let length = match rest {
        ['/', '/', ..] => rest
            .iter()
            .position(|letter| *letter == '\n')
            .unwrap_or(rest.len()),
        ['/', '*', ..] => comment_length(rest),
        ['"', ..] => quoted_length(rest, '"'),
        ['r', '"' | '#', ..] if !after_name => raw_length(rest),
        ['\'', '\\', ..] | ['\'', _, '\'', ..] => quoted_length(rest, '\''),
        _ => 0,
    };
    at + length
}

fn comment_length(rest: &[char]) -> usize {
    let end = rest.windows(2).skip(2).position(|pair| pair == ['*', '/']);
    end.map_or(rest.len(), |end| end + 4)
}

fn quoted_length(rest: &[char], quote: char) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

fn raw_length(rest: &[char]) -> usize {
    let hashes = rest[1..]
        .iter()
        .take_while(|letter| **letter == '#')
        .count();
    if rest.get(1 + hashes) != Some(&'"') {
        return 0; // a raw identifier
    }
    let mut end = vec!['"'];
    end.resize(1 + hashes, '#');
    let body = &rest[2 + hashes..];
    let found = body.windows(end.len()).position(|window| window == end);
    found.map_or(rest.len(), |found| 2 + hashes + found + end.len())
}

#[test]
fn this_test_sees_what_it_should() {
    let body = "let b = \"} // .unwrap()\"; // .unwrap()\n  c('{', r#\"\"}\"#, '\\'');";
    let text = &format!("fn a() {{\n  {body}\n}}\nfn d();\n");
    let code = blank(text);
    assert!(!code.contains("unwrap"), "{code}");
    assert_eq!(functions(&code), [(1, "a".to_owned(), 4)]);
    assert!(blank("x.unwrap() /* y */ 'a'").contains(".unwrap()"));
    assert!(has_word("unsafe {", "unsafe") && !has_word("unsafe_code", "unsafe"));
    assert_eq!(inline_modules("pub mod util;"), [(1, "util")]);
    let long = format!("fn long() {{\n{}}}\n", "  x();\n".repeat(FUNCTION_LINES));
    assert!(functions(&long)[0].2 > FUNCTION_LINES);
    let source = Source::new(
        "agent/src/x.rs".into(),
        "//! x\nfn a() {}\n#[cfg(test)]\nmod tests {}\n".into(),
    );
    assert_eq!(source.production, 2);
    let parent = "//! x\n#[cfg(test)]\npub(crate) mod fixture;\nfn a() {}\n";
    let parent = Source::new("agent/src/stream/mod.rs".into(), parent.into());
    assert_eq!(parent.production, 4);
    assert_eq!(modules_of_tests(&parent), ["agent/src/stream/fixture.rs"]);
}
