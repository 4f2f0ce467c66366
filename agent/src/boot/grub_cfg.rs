//! The default entry of a `grub.cfg`: runs the script as far as that needs, with our own eyes.
//!
//! Known are the commands that `grub-mkconfig` of Debian, Ubuntu and Fedora writes. Anything else
//! is an error, and the host reboots through its firmware instead. Nothing of the image is run.

use std::collections::HashMap;

use super::Entry;
use super::grub_script::{self, Command, NotUnderstood, Part, Word};

/// Most commands that are run: a script calls its functions, and might do so without end.
const STEPS_LIMIT: u32 = 10_000;
/// Commands without any effect on which kernel is started, or none that matters to kexec.
const HARMLESS: &[&str] = &[
    "insmod",
    "load_video",
    "terminal_output",
    "terminal_input",
    "terminal",
    "loadfont",
    "export",
    "search",
    "echo",
    "save_env",
    "background_image",
    "background_color",
    "clear",
    "play",
    "serial",
    "gfxmode",
    "recordfail",
    "savedefault",
    "hwmatch",
    "color_normal",
    "true",
    "keystatus",
    "sleep",
    "set_background_image",
    "unset",
    "fwsetup",
    "password_pbkdf2",
    "vt_set_palette",
];

/// What the script may ask of the machine.
pub(crate) struct Surroundings<'a> {
    /// The folder of `grub.cfg` on its volume, such as `/boot/grub`.
    pub(crate) prefix: &'a str,
    /// Text of `grubenv`, if there is one.
    pub(crate) environment: Option<&'a str>,
    /// Whether the machine runs UEFI.
    pub(crate) uefi: bool,
    /// Whether a file is on the volume.
    pub(crate) exists: &'a dyn Fn(&str) -> bool,
}

/// Why there is no entry to start.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoEntry {
    /// The script is not understood.
    #[error("grub.cfg is not understood: {0}")]
    NotUnderstood(#[from] NotUnderstood),
    /// A command that might change what is started.
    #[error("grub.cfg uses {0:?}, which is not understood")]
    Command(String),
    /// The entry cannot be chosen.
    #[error("grub.cfg: {0}")]
    Choice(String),
}

/// The default entry.
pub(crate) fn default_entry(text: &str, around: &Surroundings<'_>) -> Result<Entry, NoEntry> {
    let set_apart = |(name, value): (&str, &str)| name == "next_entry" && !value.is_empty();
    if around
        .environment
        .is_some_and(|text| environment(text).any(set_apart))
    {
        // GRUB would take it once and clear it; we write nothing to the image.
        return Err(NoEntry::Choice(
            "grub-reboot has set the next boot apart".into(),
        ));
    }
    let script = grub_script::parse(text)?;
    let mut machine = Machine::new(around);
    machine.run(&script)?;
    let default = machine.value("default").to_owned();
    let menu = std::mem::take(&mut machine.menu);
    let chosen = choose(&menu, &default)?;
    machine.start(chosen)
}

/// A `menuentry` or `submenu`.
struct Item<'a> {
    title: String,
    id: Option<String>,
    is_submenu: bool,
    block: &'a [Command],
}

/// Variables, functions, and what has been collected.
struct Machine<'a> {
    around: &'a Surroundings<'a>,
    variables: HashMap<String, String>,
    functions: HashMap<&'a str, &'a [Command]>,
    menu: Vec<Item<'a>>,
    kernel: Option<(String, String)>,
    initrds: Vec<String>,
    /// Whether `linux` and `initrd` are allowed.
    in_entry: bool,
    steps: u32,
    calls: u32,
}

impl<'a> Machine<'a> {
    fn new(around: &'a Surroundings<'a>) -> Self {
        let platform = if around.uefi { "efi" } else { "pc" };
        let known = [
            ("prefix", around.prefix),
            ("config_directory", around.prefix),
            ("grub_platform", platform),
            ("grub_cpu", if around.uefi { "x86_64" } else { "i386" }),
        ];
        Self {
            around,
            variables: known
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            functions: HashMap::new(),
            menu: Vec::new(),
            kernel: None,
            initrds: Vec::new(),
            in_entry: false,
            steps: 0,
            calls: 0,
        }
    }

    fn value(&self, name: &str) -> &str {
        match self.variables.get(name) {
            Some(value) => value,
            // GRUB 2 of this century has the features that scripts ask for.
            None if name.starts_with("feature_") => "y",
            None => "",
        }
    }

    /// Runs commands; the result is the last one's, as in a shell.
    fn run(&mut self, commands: &'a [Command]) -> Result<bool, NoEntry> {
        let mut result = true;
        for command in commands {
            self.steps += 1;
            if self.steps > STEPS_LIMIT {
                return Err(NoEntry::Choice("it does not end".into()));
            }
            result = match command {
                Command::Function(name, body) => {
                    self.functions.insert(name, body);
                    true
                }
                Command::If(branches, rest) => self.run_if(branches, rest)?,
                Command::Simple(words, block) => self.simple(words, block.as_deref())?,
            };
        }
        Ok(result)
    }

    fn run_if(
        &mut self,
        branches: &'a [(Vec<Command>, Vec<Command>)],
        rest: &'a [Command],
    ) -> Result<bool, NoEntry> {
        for (condition, then) in branches {
            if self.run(condition)? {
                return self.run(then);
            }
        }
        self.run(rest)
    }

    fn simple(&mut self, words: &[Word], block: Option<&'a [Command]>) -> Result<bool, NoEntry> {
        let words = self.expand(words);
        let Some((name, arguments)) = words.split_first() else {
            return Ok(true);
        };
        match name.as_str() {
            "menuentry" | "submenu" => {
                self.item(name == "submenu", arguments, block.unwrap_or_default());
            }
            "set" => self.set(arguments.first().map_or("", String::as_str)),
            "[" | "test" => return Ok(self.test(arguments)),
            "load_env" => return Ok(self.load_environment()),
            "false" => return Ok(false),
            "linux" | "linuxefi" | "linux16" if self.in_entry => self.linux(arguments)?,
            "initrd" | "initrdefi" | "initrd16" if self.in_entry => {
                self.initrds.extend(arguments.iter().cloned());
            }
            name => match self.functions.get(name).copied() {
                Some(body) => return self.call(body),
                None if HARMLESS.contains(&name) => {}
                None if is_assignment(name) => self.set(name),
                None => return Err(NoEntry::Command(name.chars().take(40).collect())),
            },
        }
        Ok(true)
    }

    fn call(&mut self, body: &'a [Command]) -> Result<bool, NoEntry> {
        self.calls += 1;
        if self.calls > 16 {
            return Err(NoEntry::Choice(
                "its functions call each other without end".into(),
            ));
        }
        let result = self.run(body);
        self.calls -= 1;
        result
    }

    fn set(&mut self, assignment: &str) {
        if let Some((name, value)) = assignment.split_once('=') {
            self.variables.insert(name.to_owned(), value.to_owned());
        }
    }

    fn item(&mut self, is_submenu: bool, arguments: &[String], block: &'a [Command]) {
        let mut item = Item {
            title: String::new(),
            id: None,
            is_submenu,
            block,
        };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--id" => item.id = arguments.next().cloned(),
                "--class" | "--users" | "--hotkey" => drop(arguments.next()),
                "--unrestricted" => {}
                title if item.title.is_empty() => title.clone_into(&mut item.title),
                _ => {}
            }
        }
        self.menu.push(item);
    }

    fn linux(&mut self, arguments: &[String]) -> Result<(), NoEntry> {
        let (path, line) = arguments
            .split_first()
            .ok_or_else(|| NoEntry::Choice("a linux command without a kernel".into()))?;
        self.kernel = Some((path.clone(), line.join(" ")));
        Ok(())
    }

    fn load_environment(&mut self) -> bool {
        let Some(text) = self.around.environment else {
            return false;
        };
        for (name, value) in environment(text) {
            self.variables.insert(name.to_owned(), value.to_owned());
        }
        true
    }

    /// `[ … ]`: strings and files. What GRUB would complain about is false, as there.
    fn test(&self, arguments: &[String]) -> bool {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        match arguments.strip_suffix(&["]"]).unwrap_or(&arguments) {
            ["!", rest @ ..] => {
                let rest: Vec<String> = rest.iter().map(|&word| word.to_owned()).collect();
                !self.test(&rest)
            }
            [text] | ["-n", text] => !text.is_empty(),
            ["-z", text] => text.is_empty(),
            ["-e" | "-f" | "-s" | "-d", path] => (self.around.exists)(path),
            [one, "=" | "==", other] => one == other,
            [one, "!=", other] => one != other,
            [one, "-eq", other] => one.parse::<i64>().is_ok_and(|n| other.parse() == Ok(n)),
            _ => false,
        }
    }

    /// Gives variables their values; those outside quotes fall into words at white space.
    fn expand(&self, words: &[Word]) -> Vec<String> {
        let mut expanded = Vec::new();
        for word in words {
            let mut current: Option<String> = None;
            for part in word {
                match part {
                    Part::Text(text) => current.get_or_insert_default().push_str(text),
                    Part::Variable { name, quoted: true } => {
                        current.get_or_insert_default().push_str(self.value(name));
                    }
                    Part::Variable {
                        name,
                        quoted: false,
                    } => {
                        let value = self.value(name);
                        for (number, piece) in value.split_whitespace().enumerate() {
                            if number > 0 {
                                expanded.extend(current.take());
                            }
                            current.get_or_insert_default().push_str(piece);
                        }
                    }
                }
            }
            expanded.extend(current);
        }
        expanded
    }

    /// Runs an entry's block and says what it would start.
    fn start(mut self, chosen: Chosen<'a>) -> Result<Entry, NoEntry> {
        let mut block = chosen.block;
        for wanted in chosen.inside {
            self.run(block)?;
            let menu = std::mem::take(&mut self.menu);
            let item = find(&menu, &wanted).filter(|item| !item.is_submenu);
            let missing = || NoEntry::Choice(format!("its default {wanted:?} is not there"));
            let item = item.ok_or_else(missing)?;
            block = item.block;
        }
        self.in_entry = true;
        self.run(block)?;
        let (linux, options) = self
            .kernel
            .ok_or_else(|| NoEntry::Choice("its default entry starts no Linux".into()))?;
        Ok(Entry {
            linux,
            initrds: self.initrds,
            options,
            title: chosen.title,
        })
    }
}

/// Where the default leads: a block, and entries inside it for `1>2`.
struct Chosen<'a> {
    title: String,
    block: &'a [Command],
    inside: Vec<String>,
}

fn choose<'a>(menu: &[Item<'a>], default: &str) -> Result<Chosen<'a>, NoEntry> {
    let mut path = default.split('>').map(str::to_owned);
    let wanted = path.next().unwrap_or_default();
    let inside: Vec<String> = path.collect();
    // As GRUB does, the first entry stands in for a default that is not there.
    let item = find(menu, &wanted).or(menu.first());
    let item = item.ok_or_else(|| NoEntry::Choice("it has no entries".into()))?;
    if item.is_submenu != (inside.len() == 1) || inside.len() > 1 {
        return Err(NoEntry::Choice(format!(
            "its default {default:?} is no entry"
        )));
    }
    Ok(Chosen {
        title: item.title.clone(),
        block: item.block,
        inside,
    })
}

/// By number, id or title.
fn find<'m, 'a>(menu: &'m [Item<'a>], wanted: &str) -> Option<&'m Item<'a>> {
    if let Ok(number) = wanted.parse::<usize>() {
        return menu.get(number);
    }
    let same = |item: &&Item<'a>| item.id.as_deref() == Some(wanted) || item.title == wanted;
    menu.iter().find(same)
}

fn is_assignment(word: &str) -> bool {
    word.split_once('=').is_some_and(|(name, _)| {
        !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    })
}

/// The variables of a `grubenv`.
pub(crate) fn environment(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The shape of what Debian 12's grub-mkconfig writes.
    const DEBIAN: &str = r#"
### BEGIN /etc/grub.d/00_header ###
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="0"
fi

if [ x"${feature_menuentry_id}" = xy ]; then
  menuentry_id_option="--id"
else
  menuentry_id_option=""
fi
export menuentry_id_option

if [ "${prev_saved_entry}" ]; then
  set saved_entry="${prev_saved_entry}"
  save_env saved_entry
fi

function savedefault {
  if [ -z "${boot_once}" ]; then
    saved_entry="${chosen}"
    save_env saved_entry
  fi
}
function load_video {
  if [ x$feature_all_video_module = xy ]; then
    insmod all_video
  else
    insmod efi_gop; insmod vbe
  fi
}
if loadfont $font ; then
  set gfxmode=auto
  load_video
  insmod gfxterm
fi
terminal_output gfxterm
if [ "${recordfail}" = 1 ] ; then
  set timeout=30
else
  set timeout=5
fi
### BEGIN /etc/grub.d/10_linux ###
function gfxmode {
	set gfxpayload="${1}"
}
set linux_gfx_mode=
export linux_gfx_mode
menuentry 'Debian GNU/Linux' --class debian --class os $menuentry_id_option 'gnulinux-simple-0001' {
	load_video
	insmod gzio
	if [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi
	insmod part_gpt
	insmod ext2
	search --no-floppy --fs-uuid --set=root 0001
	echo	'Loading Linux 6.1.0-56-amd64 ...'
	linux	/boot/vmlinuz-6.1.0-56-amd64 root=UUID=0001 ro console=tty0 console=ttyS0,115200 
	echo	'Loading initial ramdisk ...'
	initrd	/boot/initrd.img-6.1.0-56-amd64
}
submenu 'Advanced options for Debian GNU/Linux' $menuentry_id_option 'gnulinux-advanced-0001' {
	menuentry 'Debian, Linux 6.1.0-50' $menuentry_id_option 'gnulinux-6.1.0-50-advanced-0001' {
		linux	/boot/vmlinuz-6.1.0-50-amd64 root=UUID=0001 ro
		initrd	/boot/early.cpio /boot/initrd.img-6.1.0-50-amd64
	}
}
### BEGIN /etc/grub.d/30_uefi-firmware ###
if [ "$grub_platform" = "efi" ]; then
	fwsetup --is-supported
	menuentry 'UEFI Firmware Settings' $menuentry_id_option 'uefi-firmware' {
		fwsetup
	}
fi
### BEGIN /etc/grub.d/41_custom ###
if [ -f  ${config_directory}/custom.cfg ]; then
  source ${config_directory}/custom.cfg
elif [ -z "${config_directory}" -a -f  $prefix/custom.cfg ]; then
  source $prefix/custom.cfg
fi
"#;

    fn entry(text: &str, environment: Option<&str>, files: &[&str]) -> Result<Entry, NoEntry> {
        let exists = |path: &str| files.contains(&path);
        let prefix = "/boot/grub";
        default_entry(
            text,
            &Surroundings {
                prefix,
                environment,
                uefi: true,
                exists: &exists,
            },
        )
    }

    #[test]
    fn debians_default_is_found() {
        let entry = entry(DEBIAN, None, &[]).unwrap();
        assert_eq!(entry.linux, "/boot/vmlinuz-6.1.0-56-amd64");
        assert_eq!(entry.initrds, ["/boot/initrd.img-6.1.0-56-amd64"]);
        assert_eq!(
            entry.options,
            "root=UUID=0001 ro console=tty0 console=ttyS0,115200"
        );
        assert_eq!(entry.title, "Debian GNU/Linux");
    }

    #[test]
    fn a_default_inside_a_submenu_is_found_by_id_and_by_number() {
        for default in [
            "gnulinux-advanced-0001>gnulinux-6.1.0-50-advanced-0001",
            "1>0",
        ] {
            let text = DEBIAN.replace("default=\"0\"", &format!("default=\"{default}\""));
            let entry = entry(&text, None, &[]).unwrap();
            assert_eq!(entry.linux, "/boot/vmlinuz-6.1.0-50-amd64");
            assert_eq!(
                entry.initrds,
                ["/boot/early.cpio", "/boot/initrd.img-6.1.0-50-amd64"]
            );
        }
    }

    #[test]
    fn a_saved_entry_of_grubenv_counts() {
        let text = DEBIAN.replace("default=\"0\"", "default=\"${saved_entry}\"");
        let saved = "# GRUB Environment Block\nsaved_entry=1>0\n####";
        let found = entry(&text, Some(saved), &["/boot/grub/grubenv"]).unwrap();
        assert_eq!(found.linux, "/boot/vmlinuz-6.1.0-50-amd64");
        // Without grubenv the variable is empty, and GRUB takes the first entry.
        assert_eq!(
            entry(&text, None, &[]).unwrap().linux,
            "/boot/vmlinuz-6.1.0-56-amd64"
        );
    }

    #[test]
    fn what_might_change_the_choice_is_not_guessed() {
        let custom = entry(DEBIAN, None, &["/boot/grub/custom.cfg"]).unwrap_err();
        assert_eq!(custom, NoEntry::Command("source".into()));
        for (line, wanted) in [
            ("blscfg\n", "blscfg"),
            ("configfile /other.cfg\n", "configfile"),
            ("menuentry x { chainloader +1\n }\n", "chainloader"),
            (
                "menuentry x { linux /k\n multiboot2 /xen\n }\n",
                "multiboot2",
            ),
        ] {
            assert_eq!(
                entry(line, None, &[]).unwrap_err(),
                NoEntry::Command(wanted.into())
            );
        }
        assert!(matches!(
            entry("set default=0\n", None, &[]),
            Err(NoEntry::Choice(_))
        ));
        assert!(matches!(
            entry("submenu x { true\n }\n", None, &[]),
            Err(NoEntry::Choice(_))
        ));
    }

    #[test]
    fn a_script_without_end_is_ended() {
        let text = "function f { f\n }\nf\n";
        assert!(matches!(entry(text, None, &[]), Err(NoEntry::Choice(_))));
    }

    #[test]
    fn a_quoted_variable_stays_one_word_and_another_falls_apart() {
        let text = "set o=\"a  b\"\nmenuentry x {\nlinux /k $o \"q=$o\" $none end\n}\n";
        assert_eq!(entry(text, None, &[]).unwrap().options, "a b q=a  b end");
    }
}
