//! The script that iPXE gets for one machine.
//!
//! Scripts are made of typed values only: nothing that a machine sent stands in one, but for its
//! MAC, and boot words are of a character set without meaning to iPXE. A script never ends in an
//! error: firmware that is told nothing goes on to whatever it finds.

use std::fmt::Write;

use ferrite_proto::boot::BootParameters;
use ferrite_proto::mac::Mac;

use super::{BootAnswer, Flavour};

/// Where the script that a script asks for again lies.
pub(super) const SCRIPT_PATH: &str = "/boot.ipxe";
/// The archive that makes the ramdisk one for rescue.
const RESCUE: &str = "rescue.img";
/// Consoles of a server: its screen and its first serial line.
const CONSOLES: &str = "console=tty0 console=ttyS0,115200n8";

/// The URL of a MAC's script.
pub(super) fn script_url(http_url: &str, mac: Mac) -> String {
    format!("{http_url}{SCRIPT_PATH}?mac={mac}")
}

/// The script for `mac`. `http_url` is ours, of the character set of [`is_plain_url`].
pub(super) fn script(http_url: &str, mac: Mac, answer: &BootAnswer) -> String {
    match answer {
        // Words that would need quoting cannot be sent; a host without a ramdisk says so.
        BootAnswer::Ramdisk(flavour, words) if words.validate().is_ok() => {
            ramdisk(http_url, mac, *flavour, words)
        }
        BootAnswer::Ramdisk(..) | BootAnswer::Unknown => unknown(http_url, mac),
        BootAnswer::OwnDisk => own_disk(mac),
    }
}

/// Whether a URL can stand in a script: no space, quote, `$`, `|`, `&` or `#`.
pub(super) fn is_plain_url(url: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._:/[]".contains(c);
    url.starts_with("http://") && url.len() <= 200 && url.chars().all(plain)
}

/// Kernel and initramfs. When something fails, a fresh script is asked for: by then the ticket of
/// this one may be over.
fn ramdisk(http_url: &str, mac: Mac, flavour: Flavour, words: &BootParameters) -> String {
    let (name, archives): (_, &[&str]) = match flavour {
        Flavour::Ordinary => ("ramdisk", &["initramfs.img"]),
        Flavour::Rescue => ("rescue ramdisk", &["initramfs.img", RESCUE]),
    };
    let (mut arguments, mut initrds) = (String::new(), String::new());
    for archive in archives {
        let _ = write!(arguments, "initrd={archive} ");
        let url = format!("{http_url}/artifacts/{archive}");
        let _ = writeln!(initrds, "initrd {url} || goto failed");
    }
    arguments.push_str(CONSOLES);
    for word in words.words() {
        let _ = write!(arguments, " {word}");
    }
    let _ = write!(arguments, " BOOTIF=01-{}", mac.dashed());
    let again = again(http_url, mac, 5);
    format!(
        "#!ipxe\n\
         echo Ferrite: loading the {name} for {mac}\n\
         kernel {http_url}/artifacts/vmlinuz {arguments} || goto failed\n\
         {initrds}\
         boot || goto failed\n\
         :failed\n\
         echo Ferrite: the ramdisk could not be loaded from {http_url}\n\
         imgfree\n\
         {again}"
    )
}

/// The machine's own disk. A UEFI firmware goes on in its boot order when we leave with an error;
/// leaving with success would make it show its menu (UEFI 2.10, 3.1.1).
fn own_disk(mac: Mac) -> String {
    format!(
        "#!ipxe\n\
         echo Ferrite: {mac} boots its own disk\n\
         iseq ${{platform}} efi && exit 1 ||\n\
         sanboot --no-describe --drive 0x80 || exit 1\n"
    )
}

fn unknown(http_url: &str, mac: Mac) -> String {
    let again = again(http_url, mac, 30);
    format!(
        "#!ipxe\n\
         echo Ferrite has nothing to boot for {mac} now\n\
         echo It waits for: ferrite host add NAME --boot-mac {mac} ...\n\
         :failed\n\
         {again}"
    )
}

/// The end of a script that is asked for again until it says something else.
fn again(http_url: &str, mac: Mac, seconds: u32) -> String {
    format!(
        "echo Ferrite is asked again in {seconds} seconds\n\
         sleep {seconds}\n\
         chain --replace {} || goto failed\n",
        script_url(http_url, mac)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferrite_proto::boot::CaPin;
    use ferrite_proto::secret::Secret;

    const MAC: Mac = Mac([0x52, 0x54, 0, 0x77, 0, 1]);
    const URL: &str = "http://10.77.0.1:7080";

    fn words() -> BootParameters {
        BootParameters {
            url: "https://10.77.0.1:7443".into(),
            ca: CaPin([0xab; 32]),
            ticket: Secret::new("abcdefghijklmnop-_".into()),
            time: Some(1_795_000_000),
        }
    }

    #[test]
    fn the_ramdisks_kernel_reads_its_words_from_the_script() {
        let script = script(URL, MAC, &BootAnswer::Ramdisk(Flavour::Ordinary, words()));
        let kernel = script.lines().find(|l| l.starts_with("kernel ")).unwrap();
        let (line, _) = kernel.split_once(" || ").unwrap();
        assert_eq!(BootParameters::parse(line), Ok(words()));
        assert!(line.contains("BOOTIF=01-52-54-00-77-00-01"));
        assert!(
            line.starts_with(
                "kernel http://10.77.0.1:7080/artifacts/vmlinuz initrd=initramfs.img "
            )
        );
    }

    #[test]
    fn words_that_would_need_quoting_never_reach_a_script() {
        let bad = BootParameters {
            ticket: Secret::new("aaaaaaaaaaaaaaaa\nshell".into()),
            ..words()
        };
        let script = script(URL, MAC, &BootAnswer::Ramdisk(Flavour::Ordinary, bad));
        assert!(!script.contains("shell"));
        assert!(script.contains("nothing to boot"));
    }

    #[test]
    fn every_jump_has_its_label_and_every_waiting_script_asks_again() {
        for answer in [
            BootAnswer::Ramdisk(Flavour::Ordinary, words()),
            BootAnswer::OwnDisk,
            BootAnswer::Unknown,
        ] {
            let script = script(URL, MAC, &answer);
            assert!(script.starts_with("#!ipxe\n"));
            if script.contains("goto failed") {
                assert!(script.lines().any(|l| l == ":failed"), "{script}");
                assert!(script.contains("chain --replace http://10.77.0.1:7080/boot.ipxe?mac="));
            }
        }
    }

    #[test]
    fn only_a_rescue_has_the_second_archive() {
        let ordinary = script(URL, MAC, &BootAnswer::Ramdisk(Flavour::Ordinary, words()));
        let rescue = script(URL, MAC, &BootAnswer::Ramdisk(Flavour::Rescue, words()));
        assert!(!ordinary.contains(RESCUE));
        assert!(rescue.contains(" initrd=initramfs.img initrd=rescue.img console="));
        let loads: Vec<_> = rescue
            .lines()
            .filter(|l| l.starts_with("initrd "))
            .collect();
        assert_eq!(
            loads,
            [
                "initrd http://10.77.0.1:7080/artifacts/initramfs.img || goto failed",
                "initrd http://10.77.0.1:7080/artifacts/rescue.img || goto failed"
            ]
        );
    }

    #[test]
    fn a_provisioned_host_never_gets_the_ramdisk() {
        let script = script(URL, MAC, &BootAnswer::OwnDisk);
        assert!(!script.contains("kernel "));
        assert!(script.contains("sanboot --no-describe --drive 0x80"));
    }

    #[test]
    fn urls_with_meaning_to_ipxe_are_refused() {
        assert!(is_plain_url("http://[fd00::1]:7080"));
        for url in [
            "https://a",
            "http://a b",
            "http://${net0/ip}",
            "http://a||shell",
        ] {
            assert!(!is_plain_url(url), "{url}");
        }
    }
}
