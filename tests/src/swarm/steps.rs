//! What the steps do on a simulated machine: they take their time, change its disk, and report as
//! the real ones do.

use std::time::Duration;

use ferrite_proto::agent_api::DaemonConfig;
use ferrite_proto::image::ImageRef;
use ferrite_proto::inventory::{
    BootInfo, BootMode, Cpu, Dimm, Disk, INVENTORY_VERSION, Inventory, Memory, Nic, System, Timing,
};
use ferrite_proto::problem::{Code, Problem};
use ferrite_proto::step::{
    BootMethod, CONFIG_DRIVE_DAEMON, ConfigFile, ErasedDisk, ImageWritten, Outcome, Progress, Step,
};
use tokio::time::Instant;

use super::Shared;
use super::machine::Machine;
use super::ramdisk::Watch;

/// Bytes of a disk.
const DISK_BYTES: u64 = 960_197_124_096;

/// Runs a step to its end.
pub(super) async fn run(
    machine: &Machine,
    shared: &Shared,
    step: &Step,
    watch: &Watch,
) -> Result<Outcome, Problem> {
    let pace = &shared.settings.pace;
    if machine.happens(shared.settings.rates.step) {
        return Err(Problem::new(
            Code::ImageUnreachable,
            "the simulated step failed",
            "it works the next time",
        ));
    }
    if let Some(code) = machine.fails_now() {
        return Err(Problem::new(code, "a test has it fail", "try again"));
    }
    match step {
        Step::Inspect => {
            tokio::time::sleep(pace.inspect).await;
            let inventory = Box::new(inventory(machine));
            Ok(Outcome::Inspected { inventory })
        }
        Step::Erase { .. } => {
            machine.change_disk(|disk| *disk = super::machine::Disk::default());
            tokio::time::sleep(pace.erase).await;
            machine.note(|deeds| deeds.erased += 1);
            Ok(Outcome::Erased {
                disks: vec![erased(machine)],
            })
        }
        Step::WriteImage { image, .. } => write_image(machine, shared, image, watch).await,
        Step::WriteConfigDrive { files, .. } => {
            tokio::time::sleep(pace.step).await;
            write_config_drive(machine, files)
        }
        Step::SetBootEntry { .. } => {
            tokio::time::sleep(pace.step).await;
            let detail = "Boot0007: debian".to_owned();
            Ok(Outcome::BootEntrySet { detail })
        }
        Step::Boot { method, .. } => {
            tokio::time::sleep(pace.step).await;
            let detail = match method {
                BootMethod::Kexec => "vmlinuz-6.12.0-amd64".to_owned(),
                BootMethod::Reboot => "as asked".to_owned(),
            };
            let method = *method;
            Ok(Outcome::Booting { method, detail })
        }
        Step::Rescue { .. } => {
            tokio::time::sleep(pace.step).await;
            Ok(Outcome::RescueReady {
                addresses: vec![format!("127.0.0.1 of {}", machine.name)],
                host_keys: vec!["SHA256:simulated".to_owned()],
            })
        }
        Step::PowerOff => Ok(Outcome::PoweringOff),
    }
}

fn erased(machine: &Machine) -> ErasedDisk {
    ErasedDisk {
        name: "/dev/nvme0n1".to_owned(),
        serial: Some(format!("{}-D0", machine.serial())),
        bytes: 4 << 20,
    }
}

async fn write_image(
    machine: &Machine,
    shared: &Shared,
    image: &ImageRef,
    watch: &Watch,
) -> Result<Outcome, Problem> {
    let pace = &shared.settings.pace;
    machine.note(|deeds| deeds.images_begun += 1);
    machine.change_disk(|disk| *disk = super::machine::Disk::default());
    let whole = machine.next_write().unwrap_or_else(|| pace.write());
    let started = Instant::now();
    while started.elapsed() < whole {
        if watch.is_cancelled() {
            let message = "the step was cancelled; the disk is not bootable";
            return Err(Problem::new(Code::StepCancelled, message, ""));
        }
        let left = whole.saturating_sub(started.elapsed());
        tokio::time::sleep(left.min(Duration::from_millis(500))).await;
        let share = started.elapsed().as_secs_f64() / whole.as_secs_f64();
        watch.report(Progress {
            phase: "writing".to_owned(),
            bytes_done: share_of(pace.image_bytes, share),
            bytes_total: Some(pace.image_bytes),
            bytes_per_second: pace.write_rate,
            ..Progress::default()
        });
    }
    machine.change_disk(|disk| disk.image = Some(image.clone()));
    machine.note(|deeds| deeds.images_written += 1);
    Ok(Outcome::ImageWritten(ImageWritten {
        disk: "/dev/nvme0n1".to_owned(),
        serial: Some(format!("{}-D0", machine.serial())),
        bytes_read: pace.image_bytes / 3,
        bytes_image: pace.image_bytes,
        bytes_written: pace.image_bytes / 2,
        bytes_zeroed: pace.image_bytes / 2,
        bytes_skipped: 0,
        digest: image.digest.as_ref().map(ToString::to_string),
        verified: false,
        seconds: started.elapsed().as_secs_f64(),
        agent_peak_bytes: 32 << 20,
        memory_low_bytes: 60 << 30,
    }))
}

/// In thousandths, so that no bit is lost or made up.
fn share_of(bytes: u64, share: f64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and 1000"
    )]
    let thousandths = (share.clamp(0.0, 1.0) * 1000.0) as u64;
    bytes / 1000 * thousandths
}

/// What cloud-init gives to kubeadm, as newer ones read it.
const KUBEADM: &str = "ferrite/kubeadm/v1beta4.yaml";

fn write_config_drive(machine: &Machine, files: &[ConfigFile]) -> Result<Outcome, Problem> {
    let config = files.iter().find(|file| file.path == CONFIG_DRIVE_DAEMON);
    let config = config.map(|file| serde_json::from_str::<DaemonConfig>(file.content.expose()));
    let Some(Ok(config)) = config else {
        let message = "the config drive has no daemon.json that can be read";
        return Err(Problem::new(Code::Internal, message, "report this"));
    };
    let kubeadm = files.iter().find(|file| file.path == KUBEADM);
    machine.change_disk(|disk| {
        disk.daemon = Some(config);
        disk.kubeadm = kubeadm.map(|file| file.content.clone());
    });
    machine.note(|deeds| deeds.config_drives += 1);
    Ok(Outcome::ConfigDriveWritten {
        partition: "/dev/nvme0n1p4".to_owned(),
        bytes: 64 << 20,
    })
}

/// An inventory of the size that a real server has: two processors, sixteen DIMMs, four NICs.
fn inventory(machine: &Machine) -> Inventory {
    let text = |text: &str| Some(text.to_owned());
    Inventory {
        version: INVENTORY_VERSION,
        system: System {
            vendor: text("Ferrite"),
            product: text("Swarm R1"),
            serial: Some(machine.serial()),
            uuid: Some(machine.uuid.clone()),
            bios_vendor: text("Ferrite"),
            bios_version: text("1.0"),
            ..System::default()
        },
        boot: BootInfo {
            mode: Some(BootMode::Uefi),
            secure_boot: Some(false),
            kernel: text("6.12.0-swarm"),
        },
        cpu: Cpu {
            architecture: text("x86_64"),
            model: text("Simulated(R) Processor 8000 @ 2.40GHz"),
            sockets: Some(2),
            cores: Some(64),
            threads: Some(128),
            flags: (0..120).map(|flag| format!("flag{flag:03}")).collect(),
        },
        memory: Memory {
            total_bytes: Some(512 << 30),
            installed_bytes: Some(512 << 30),
            dimms: (0..16).map(|slot| dimm(machine, slot)).collect(),
        },
        disks: vec![Disk {
            name: "/dev/nvme0n1".to_owned(),
            serial: Some(format!("{}-D0", machine.serial())),
            wwn: Some(format!("eui.{:016x}", machine.number)),
            model: text("SIMULATED MZQL2960HCJR-00A07"),
            size_bytes: DISK_BYTES,
            logical_sector: 512,
            physical_sector: 4096,
            transport: text("nvme"),
            ..Disk::default()
        }],
        nics: (0..4).map(|port| nic(machine, port)).collect(),
        unread: Vec::new(),
        timings: ["block", "cpu", "memory", "net", "smbios"]
            .map(|collector| Timing {
                collector: collector.to_owned(),
                micros: 900,
            })
            .into(),
    }
}

fn dimm(machine: &Machine, slot: u32) -> Dimm {
    Dimm {
        slot: Some(format!("DIMM_{slot:02}")),
        size_bytes: 32 << 30,
        speed_mts: Some(4800),
        vendor: Some("Simulated".to_owned()),
        part: Some("M321R4GA3BB6-CQK".to_owned()),
        serial: Some(format!("{:06}{slot:02}", machine.number)),
    }
}

fn nic(machine: &Machine, port: u8) -> Nic {
    let mut mac = machine.mac;
    mac.0[2] = port;
    Nic {
        name: format!("eno{}", port + 1),
        mac: Some(mac),
        driver: Some("ice".to_owned()),
        pci: Some(format!("0000:31:00.{port}")),
        speed_mbps: Some(25_000),
        carrier: Some(port < 2),
        addresses: Vec::new(),
    }
}
