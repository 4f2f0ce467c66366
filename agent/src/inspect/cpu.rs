//! Processors, from `/proc/cpuinfo`. Topology beyond packages and cores is not told.

use std::collections::BTreeSet;

use ferrite_proto::inventory::Cpu;

use super::Reader;

pub(super) fn read(reader: &Reader<'_>) -> Cpu {
    let text = reader.text("/proc/cpuinfo").unwrap_or_default();
    let architecture = reader
        .text("/proc/sys/kernel/arch")
        .unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    Cpu {
        architecture: Some(architecture),
        ..parse(&text)
    }
}

/// Reads what the kernel says of each logical processor.
fn parse(text: &str) -> Cpu {
    let (mut threads, mut cores, mut sockets) = (0_u32, BTreeSet::new(), BTreeSet::new());
    let (mut model, mut flags) = (None, BTreeSet::new());
    for processor in text.split("\n\n").filter(|part| part.contains("processor")) {
        let field = |name: &str| {
            let value = processor.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                (key.trim() == name).then(|| value.trim().to_owned())
            });
            value.filter(|value| !value.is_empty())
        };
        threads += 1;
        // Machines without these two lines have one package and a core for each processor.
        let socket = field("physical id").unwrap_or_default();
        let core = field("core id").unwrap_or_else(|| threads.to_string());
        cores.insert((socket.clone(), core));
        sockets.insert(socket);
        model = model.or_else(|| field("model name").or_else(|| field("Model")));
        if flags.is_empty() {
            let listed = field("flags").or_else(|| field("Features"));
            flags = listed
                .unwrap_or_default()
                .split_whitespace()
                .map(str::to_owned)
                .collect();
        }
    }
    let count = |number: usize| u32::try_from(number).ok().filter(|&count| count > 0);
    Cpu {
        architecture: None,
        model,
        sockets: count(sockets.len()),
        cores: count(cores.len()),
        threads: Some(threads).filter(|&count| count > 0),
        flags: flags.into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_sockets_of_two_cores_with_two_threads() {
        let mut text = String::new();
        for thread in 0..8 {
            let (socket, core) = (thread / 4, thread % 2);
            let part = format!(
                "processor\t: {thread}\nmodel name\t: Made Up 9\nphysical id\t: {socket}\n\
                 core id\t\t: {core}\nflags\t\t: sse fpu\n\n"
            );
            text.push_str(&part);
        }
        let cpu = parse(&text);
        assert_eq!(
            (cpu.sockets, cpu.cores, cpu.threads),
            (Some(2), Some(4), Some(8))
        );
        assert_eq!(cpu.model.as_deref(), Some("Made Up 9"));
        assert_eq!(cpu.flags, ["fpu", "sse"]);
    }

    #[test]
    fn a_machine_that_names_no_packages_has_one() {
        let cpu = parse("processor\t: 0\nFeatures\t: fp asimd\n\nprocessor\t: 1\n");
        assert_eq!(
            (cpu.sockets, cpu.cores, cpu.threads),
            (Some(1), Some(2), Some(2))
        );
        assert_eq!(cpu.flags, ["asimd", "fp"]);
        assert_eq!(parse("").threads, None);
    }
}
