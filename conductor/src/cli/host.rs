//! `ferrite host …`: from arguments to calls of the API.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use ferrite_proto::api::{EventList, Explanation, HostList, Provision as ProvisionHost, Timeline};
use ferrite_proto::hints::RootDeviceHints;
use ferrite_proto::host::{BmcSpec, Host, HostManifest, HostSecrets, HostSpec};
use ferrite_proto::image::ImageRef;
use ferrite_proto::inventory::Inventory;
use ferrite_proto::merge;
use ferrite_proto::secret::Secret;
use reqwest::Method;
use serde_json::to_value;

use super::args::{Add, Common, Data, HostCommand, ImageArgs, Output, Provision, Set};
use super::client::Client;
use super::{import, join, print, print_value, show, timeline, watch};

/// Bytes of a file that is sent along.
const FILE_LIMIT: u64 = 512 * 1024;

/// A name is data: it must not lead to another call.
pub(super) fn path(name: &str, rest: &str) -> String {
    let harmless = |b: &u8| b.is_ascii_alphanumeric() || *b == b'-';
    let name = name.bytes().fold(String::new(), |path, byte| {
        if harmless(&byte) || (byte == b'.' && !name.starts_with('.')) {
            path + &char::from(byte).to_string()
        } else {
            path + &format!("%{byte:02X}")
        }
    });
    format!("/v1/hosts/{name}{rest}")
}

/// Does what the arguments say.
pub(crate) async fn run(
    client: &Client,
    command: HostCommand,
    output: Output,
) -> anyhow::Result<ExitCode> {
    match command {
        HostCommand::Add(add) => return self::add(client, *add, output).await,
        HostCommand::Import(asked) => return import::run(client, asked, output).await,
        HostCommand::Provision(asked) => return provision(client, *asked, output).await,
        HostCommand::Set(set) => return self::set(client, *set, output).await,
        HostCommand::Deprovision {
            name,
            no_drain,
            wait,
        } => return deprovision(client, &name, no_drain, wait, output).await,
        HostCommand::Retry { name } => {
            return changed(client, &path(&name, "/retry"), false, output).await;
        }
        HostCommand::Watch { name } => return watch::watch(client, name, output).await,
        HostCommand::Delete { name, wait } => {
            client.order(Method::DELETE, &path(&name, "")).await?;
            if wait {
                return watch::until_gone(client, &name, output).await;
            }
            let answer = serde_json::json!({"name": name, "deleting": true});
            shown(&answer, output, |_| format!("{name}: deleting\n"))?;
        }
        HostCommand::List => {
            let all = all(client).await?;
            shown(&all, output, |all| show::table(&all.items))?;
        }
        HostCommand::Show { name } => {
            let host: Host = client.get(&path(&name, "")).await?;
            let inventory = match output {
                Output::Table | Output::Wide => client.get(&path(&name, "/inventory")).await.ok(),
                Output::Json | Output::Yaml | Output::Name => None,
            };
            shown(&host, output, |host| show::host(host, inventory.as_ref()))?;
        }
        HostCommand::Explain { name } => {
            let words: Explanation = client.get(&path(&name, "/explain")).await?;
            shown(&words, output, show::explanation)?;
        }
        HostCommand::Timeline { name, run } => {
            let known: Timeline = client.get(&path(&name, "/timeline")).await?;
            let drawn = timeline::of_host(&known, run, jiff::Timestamp::now())?;
            shown(&known, output, |_| drawn)?;
        }
        HostCommand::Operate(asked) => return super::operate::run(client, asked, output).await,
        HostCommand::Inventory { name } => {
            let inventory: Inventory = client.get(&path(&name, "/inventory")).await?;
            let output = if output == Output::Yaml {
                output
            } else {
                Output::Json
            };
            print_value(&inventory, output)?;
        }
        HostCommand::Events { name, limit } => {
            let call = path(&name, &format!("/events?limit={limit}"));
            let events: EventList = client.get(&call).await?;
            shown(&events, output, show::events)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Every page of the list.
async fn all(client: &Client) -> anyhow::Result<HostList> {
    let mut all: HostList = client.get("/v1/hosts").await?;
    while let Some(next) = all.metadata.next.take() {
        // Base64url: nothing in it is to be escaped.
        let call = format!("/v1/hosts?continue={next}");
        let page: HostList = client.get(&call).await?;
        all.items.extend(page.items);
        all.metadata.next = page.metadata.next;
    }
    Ok(all)
}

pub(super) fn shown<T: serde::Serialize>(
    value: &T,
    output: Output,
    table: impl FnOnce(&T) -> String,
) -> anyhow::Result<()> {
    match output {
        Output::Json | Output::Yaml => print_value(value, output),
        Output::Table | Output::Wide | Output::Name => print(&table(value)),
    }
}

async fn changed(
    client: &Client,
    call: &str,
    wait: bool,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let host: Host = client.send(Method::POST, call, &()).await?;
    follow(client, &host, wait, output).await
}

pub(super) async fn follow(
    client: &Client,
    host: &Host,
    wait: bool,
    output: Output,
) -> anyhow::Result<ExitCode> {
    if wait {
        return watch::watch(client, Some(host.name.clone()), output).await;
    }
    shown(host, output, |host| {
        format!("{}: {}\n", host.name, host.status.state)
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn add(client: &Client, add: Add, output: Output) -> anyhow::Result<ExitCode> {
    let mut secrets = add.data.read()?;
    secrets.bmc_password = Some(read_password(&add.password_file)?);
    let mut spec = HostSpec::new(BmcSpec {
        address: add.bmc,
        username: add.username,
        insecure_tls: false,
    });
    spec.image = add.image.image()?;
    add.common.apply(&mut spec)?;
    let manifest = HostManifest::new(add.name, spec, secrets);
    let host: Host = client.send(Method::POST, "/v1/hosts", &manifest).await?;
    follow(client, &host, add.wait, output).await
}

async fn set(client: &Client, set: Set, output: Output) -> anyhow::Result<ExitCode> {
    let call = path(&set.name, "");
    let host: Host = client.get(&call).await?;
    let mut spec = host.spec.clone();
    if let Some(address) = set.bmc {
        spec.bmc.address = address;
    }
    if let Some(username) = set.username {
        spec.bmc.username = username;
    }
    set.common.apply(&mut spec)?;
    let bmc_password = set.password_file.as_deref().map(read_password);
    let secrets = HostSecrets {
        bmc_password: bmc_password.transpose()?,
        ..HostSecrets::default()
    };
    // Only what was named is sent: what somebody else changes meanwhile stays.
    let (old, new) = (to_value(&host.spec)?, to_value(&spec)?);
    let mut patch = serde_json::json!({"secrets": secrets});
    if let Some(spec) = merge::diff(&old, &new) {
        patch["spec"] = spec;
    }
    let host: Host = client.send(Method::PATCH, &call, &patch).await?;
    follow(client, &host, false, output).await
}

async fn deprovision(
    client: &Client,
    name: &str,
    no_drain: bool,
    wait: bool,
    output: Output,
) -> anyhow::Result<ExitCode> {
    if no_drain {
        join::skip_drain(client, name).await?;
    }
    changed(client, &path(name, "/deprovision"), wait, output).await
}

async fn provision(client: &Client, asked: Provision, output: Output) -> anyhow::Result<ExitCode> {
    if let Some(image) = &asked.image_name {
        let host = provision_by_name(client, &asked, image).await?;
        return follow(client, &host, asked.wait, output).await;
    }
    let Some(image) = asked.image.image()? else {
        bail!("which image? give --image and --digest, or --image-name");
    };
    let hints = root_device(&asked.root_device)?;
    let request = ProvisionHost {
        image,
        secrets: asked.data.read()?,
        root_device_hints: (!hints.is_empty()).then_some(hints),
        boot_method: asked.boot_method,
        verify_image: asked.verify,
        join: asked.join.spec()?,
    };
    let call = path(&asked.name, "/provision");
    let host: Host = client.send(Method::POST, &call, &request).await?;
    follow(client, &host, asked.wait, output).await
}

/// What the name stands for is looked up by the conductor. Only what was named is sent.
async fn provision_by_name(
    client: &Client,
    asked: &Provision,
    image: &str,
) -> anyhow::Result<Host> {
    let mut spec = serde_json::json!({"image_name": image});
    let hints = root_device(&asked.root_device)?;
    if !hints.is_empty() {
        spec["root_device_hints"] = to_value(&hints)?;
    }
    if let Some(method) = asked.boot_method {
        spec["boot_method"] = to_value(method)?;
    }
    if let Some(verify) = asked.verify {
        spec["verify_image"] = verify.into();
    }
    let patch = serde_json::json!({"spec": spec, "secrets": asked.data.read()?});
    client
        .send(Method::PATCH, &path(&asked.name, ""), &patch)
        .await
}

impl Common {
    fn apply(&self, spec: &mut HostSpec) -> anyhow::Result<()> {
        fn take<T: Copy>(old: &mut T, new: Option<T>) {
            if let Some(new) = new {
                *old = new;
            }
        }
        spec.boot_mac = self.boot_mac.or(spec.boot_mac);
        take(&mut spec.boot_via, self.boot_via);
        take(&mut spec.boot_mode, self.boot_mode);
        take(&mut spec.automated_cleaning, self.cleaning);
        take(&mut spec.boot_method, self.boot_method);
        take(&mut spec.bmc.insecure_tls, self.insecure_bmc_tls);
        if !self.root_device.is_empty() {
            spec.root_device_hints = root_device(&self.root_device)?;
        }
        Ok(())
    }
}

impl ImageArgs {
    /// What they say, if they say anything.
    pub(super) fn image(&self) -> anyhow::Result<Option<ImageRef>> {
        let Some(url) = &self.image else {
            return Ok(None);
        };
        let image = ImageRef {
            url: url.clone(),
            mirrors: self.mirror.clone(),
            digest: self.digest.clone(),
            digest_url: self.digest_url.clone(),
            raw_digest: None,
            signed_by: self.signed_by.clone(),
            format: self.image_format.into(),
            compression: None,
            allow_unverified: self.allow_unverified,
        };
        image.validate()?;
        Ok(Some(image))
    }
}

impl Data {
    fn read(&self) -> anyhow::Result<HostSecrets> {
        let read = |path: &Option<std::path::PathBuf>| {
            let text = path.as_deref().map(|path| read_file(path, "data"));
            text.transpose().map(|text| text.map(Secret::new))
        };
        let pairs = self.meta.iter().map(|text| pair(text));
        let meta_data: BTreeMap<_, _> = pairs.collect::<anyhow::Result<_>>()?;
        Ok(HostSecrets {
            bmc_password: None,
            user_data: read(&self.user)?,
            bootstrap_data: read(&self.bootstrap)?,
            bootstrap_format: self.bootstrap_format,
            network_data: read(&self.network)?,
            meta_data: (!meta_data.is_empty()).then_some(meta_data),
            vendor_data: read(&self.vendor)?,
        })
    }
}

pub(super) fn pair(text: &str) -> anyhow::Result<(String, String)> {
    let (key, value) = text
        .split_once('=')
        .with_context(|| format!("{text:?} is not KEY=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}

pub(super) fn read_file(path: &Path, what: &str) -> anyhow::Result<String> {
    let context = || format!("reading {what} from {}", path.display());
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin()
            .lock()
            .take(FILE_LIMIT + 1)
            .read_to_string(&mut text)
    } else {
        let file = std::fs::File::open(path).with_context(context)?;
        file.take(FILE_LIMIT + 1).read_to_string(&mut text)
    };
    read.with_context(context)?;
    if text.len() as u64 > FILE_LIMIT {
        bail!("{} is longer than {FILE_LIMIT} bytes", path.display());
    }
    Ok(text)
}

/// A password: the first line, without its end.
fn read_password(path: &Path) -> anyhow::Result<Secret<String>> {
    let text = read_file(path, "the password")?;
    let line = text.lines().next().unwrap_or_default();
    if line.is_empty() {
        bail!("the first line of {} is empty: no password", path.display());
    }
    Ok(Secret::new(line.to_owned()))
}

fn root_device(given: &[String]) -> anyhow::Result<RootDeviceHints> {
    let mut hints = RootDeviceHints::default();
    for text in given {
        let (hint, value) = pair(text)?;
        let wrong = || format!("--root-device {hint}={value}");
        let text = Some(value.clone());
        match hint.as_str() {
            "name" => hints.name = text,
            "serial" => hints.serial = text,
            "wwn" => hints.wwn = text,
            "model" => hints.model = text,
            "vendor" => hints.vendor = text,
            "hctl" => hints.hctl = text,
            "size" => hints.size = Some(value.parse().with_context(wrong)?),
            "min_size" | "min-size" => hints.min_size = Some(value.parse().with_context(wrong)?),
            "rotational" => hints.rotational = Some(value.parse().with_context(wrong)?),
            _ => bail!("there is no root device hint {hint:?}"),
        }
    }
    Ok(hints)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_never_leads_to_another_call() {
        assert_eq!(path("r1.node-2", "/explain"), "/v1/hosts/r1.node-2/explain");
        assert_eq!(path("a/b?c", ""), "/v1/hosts/a%2Fb%3Fc");
        assert_eq!(path("../x", ""), "/v1/hosts/%2E%2E%2Fx");
    }

    #[test]
    fn hints_are_read_as_people_write_them() {
        let given = ["serial=S1", "size=8GiB", "rotational=false"].map(str::to_owned);
        let hints = root_device(&given).unwrap();
        assert_eq!(hints.serial.as_deref(), Some("S1"));
        assert_eq!(hints.size.map(|size| size.0), Some(8 << 30));
        assert_eq!(hints.rotational, Some(false));
        for bad in ["serial", "colour=red", "size=big", "rotational=maybe"] {
            assert!(root_device(&[bad.to_owned()]).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_password_is_the_first_line_and_never_empty() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("p");
        std::fs::write(&file, "hunter2\r\nmore\n").unwrap();
        assert_eq!(read_password(&file).unwrap().expose(), "hunter2");
        std::fs::write(&file, "\n").unwrap();
        assert!(read_password(&file).is_err());
    }
}
