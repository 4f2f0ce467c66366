//! What the documents for operators say is what the command line understands.

use clap::Parser;

use super::args::Arguments;

const OPERATE: &str = include_str!("../../../docs/operate.md");
const CLUSTERS: &str = include_str!("../../../docs/clusters.md");

/// The commands of a page's `console` blocks: what stands after `$ ` or `# `, command by command.
fn commands(page: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut inside = false;
    for line in page.lines() {
        if line.starts_with("```") {
            inside = line == "```console";
            continue;
        }
        let command = line.strip_prefix("$ ").or_else(|| line.strip_prefix("# "));
        let Some(command) = command.filter(|_| inside) else {
            continue;
        };
        let command = command.replace("source <(", "").replace(')', "");
        let command = command.split(" | ").next().unwrap_or_default();
        found.extend(command.split("&&").map(|one| one.trim().to_owned()));
    }
    found
}

fn unknown(page: &str) -> Vec<String> {
    let ours = commands(page);
    let ours = ours
        .iter()
        .filter(|command| command.starts_with("ferrite "));
    ours.filter_map(|command| {
        let read = Arguments::try_parse_from(command.split_whitespace());
        Some(format!("{command}\n{}", read.err()?))
    })
    .collect()
}

#[test]
fn every_command_of_the_page_is_understood() {
    let all = commands(OPERATE);
    let ours = all.iter().filter(|command| command.starts_with("ferrite "));
    assert!(ours.count() > 20);
    for page in [OPERATE, CLUSTERS] {
        assert_eq!(unknown(page), Vec::<String>::new());
    }
}

#[test]
fn a_command_that_is_not_understood_is_found() {
    let page = "```console\n$ ferrite get hosts --colour\n$ ferrite frobnicate\n$ ls -l\n```\n";
    assert_eq!(unknown(page).len(), 2);
}

#[test]
fn the_example_of_a_configuration_can_be_used() {
    let example = include_str!("../../../packaging/ferrite.toml");
    let config = crate::config::Config::parse(example).unwrap();
    assert_eq!(config.url, "https://10.77.0.1:7443");
    let all = example
        .replace("\n# ", "\n")
        .replace("# artifacts", "artifacts");
    // The comments of its last part are keys that exist.
    let part = all.split("[netboot]\n").nth(1).unwrap();
    let whole = format!("url = \"https://10.77.0.1:7443\"\n[netboot]\n{part}");
    assert!(
        crate::config::Config::parse(&whole)
            .unwrap()
            .netboot
            .is_some()
    );
}
