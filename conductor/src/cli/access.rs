//! `ferrite token`, `certificate`, `role`, `audit`, `whoami`: who may do what, and what they did.
//!
//! A new token goes to standard output and nowhere else; a new key never leaves this machine.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use comfy_table::Table;
use ferrite_proto::access::{
    AuditHead, AuditLine, AuditList, Binding, BindingList, Certificate, CertificateList,
    CreatedToken, Grant, Grants, NewCertificate, NewToken, Role, TokenList, WhoAmI,
};
use ferrite_proto::problem::{Code, Problem};
use reqwest::Method;
use serde_json::Value;

use super::args::Output;
use super::client::Client;
use super::{print, print_value};
use crate::audit::Check;
use crate::{tls, token};

/// Lines of the audit log that are asked for at once.
const PAGE: u32 = 1000;

/// Who may do what, and what they did.
#[derive(Debug, Subcommand)]
pub(crate) enum AccessCommand {
    /// Show who you are to the conductor, and what you may do.
    Whoami,
    /// Make, list and revoke tokens.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Make, list and revoke client certificates.
    #[command(subcommand)]
    Certificate(CertificateCommand),
    /// Say what users, groups, tokens and certificates may do.
    #[command(subcommand)]
    Role(RoleCommand),
    /// Read the audit log, or prove that it is whole.
    #[command(subcommand)]
    Audit(AuditCommand),
}

/// A role, somewhere.
#[derive(Debug, Args)]
pub(crate) struct GrantArgs {
    /// What may be done.
    #[arg(long, value_enum)]
    role: RoleArg,
    /// Where.
    #[arg(long, required_unless_present = "everywhere")]
    project: Option<String>,
    /// In all projects, and where no project is concerned.
    #[arg(long, conflicts_with = "project")]
    everywhere: bool,
}

impl GrantArgs {
    fn grant(&self) -> Grant {
        Grant {
            role: match self.role {
                RoleArg::Viewer => Role::Viewer,
                RoleArg::Operator => Role::Operator,
                RoleArg::Admin => Role::Admin,
            },
            project: self.project.clone(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RoleArg {
    /// Read everything that is not secret.
    Viewer,
    /// Change hosts and what they run.
    Operator,
    /// Say who else may do what.
    Admin,
}

/// Make, list and revoke tokens.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token, and print it: it is shown only now.
    Create {
        /// Its name.
        name: String,
        #[command(flatten)]
        grant: GrantArgs,
        /// For how long it holds: 12h, 30d, 1y. For ever without.
        #[arg(long, value_parser = duration)]
        expires: Option<u64>,
    },
    /// List tokens.
    List,
    /// Revoke a token, at once.
    Revoke {
        /// Its name.
        name: String,
    },
}

/// Make, list and revoke client certificates.
#[derive(Debug, Subcommand)]
pub(crate) enum CertificateCommand {
    /// Make a key here and get a certificate for it: NAME.key and NAME.pem.
    Create {
        /// Whose it is.
        name: String,
        #[command(flatten)]
        grant: GrantArgs,
        /// For how many days it holds; a year without.
        #[arg(long)]
        days: Option<u32>,
        /// Take this request (PKCS #10, PEM) instead of making a key.
        #[arg(long)]
        csr: Option<PathBuf>,
        /// Folder for the files.
        #[arg(long, default_value = ".")]
        directory: PathBuf,
    },
    /// List client certificates.
    List,
    /// Revoke a client certificate, at once.
    Revoke {
        /// Whose.
        name: String,
    },
}

/// Say what users, groups, tokens and certificates may do.
#[derive(Debug, Subcommand)]
pub(crate) enum RoleCommand {
    /// Give a subject a role, beside what it has.
    Grant {
        /// `user:NAME` and `group:NAME` (OIDC), `token:NAME`, `certificate:NAME`.
        subject: String,
        #[command(flatten)]
        grant: GrantArgs,
    },
    /// List who was given what.
    List,
    /// Take from a subject everything that it was given.
    Revoke {
        /// As in `role list`.
        subject: String,
    },
}

/// Read the audit log, or prove that it is whole.
#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// Print the audit log, oldest first.
    List {
        /// Only lines after this one.
        #[arg(long, default_value_t = 0)]
        after: u64,
        /// At most so many lines; all without.
        #[arg(long)]
        limit: Option<u64>,
    },
    /// Check that no line was changed, removed, added or moved. Exits with 1 if one was.
    Verify {
        /// Check this file, which `ferrite audit list --output json` wrote.
        #[arg(long)]
        file: Option<PathBuf>,
        /// `NUMBER:HASH` of a line that was noted earlier: it has to be there still.
        #[arg(long, value_parser = noted)]
        head: Option<(u64, String)>,
    },
}

/// Does what was said.
pub(crate) async fn run(
    client: &Client,
    command: AccessCommand,
    output: Output,
) -> anyhow::Result<ExitCode> {
    match command {
        AccessCommand::Whoami => who_am_i(client, output).await?,
        AccessCommand::Token(command) => tokens(client, command, output).await?,
        AccessCommand::Certificate(command) => certificates(client, command, output).await?,
        AccessCommand::Role(command) => roles(client, command, output).await?,
        AccessCommand::Audit(command) => return audit(client, command, output).await,
    }
    Ok(ExitCode::SUCCESS)
}

async fn who_am_i(client: &Client, output: Output) -> anyhow::Result<()> {
    let me: WhoAmI = client.get("/v1/whoami").await?;
    if programs(output) {
        return print_value(&me, output);
    }
    print(&format!(
        "{} (by {}): {}\n",
        me.name,
        me.via,
        shown(&me.grants)
    ))
}

async fn tokens(client: &Client, command: TokenCommand, output: Output) -> anyhow::Result<()> {
    match command {
        TokenCommand::Create {
            name,
            grant,
            expires,
        } => {
            let asked = NewToken {
                name,
                grants: vec![grant.grant()],
                expires_seconds: expires,
            };
            let made: CreatedToken = client.send(Method::POST, "/v1/tokens", &asked).await?;
            if programs(output) {
                return print_value(&made, output);
            }
            print(&format!("{}\n", made.secret.expose()))
        }
        TokenCommand::List => {
            let all: TokenList = client.get("/v1/tokens").await?;
            if programs(output) {
                return print_value(&all, output);
            }
            let mut table = table(["NAME", "MAY", "EXPIRES", "CREATED BY"]);
            for one in &all.items {
                let expires = one
                    .expires
                    .map_or_else(|| "never".into(), |at| at.to_string());
                table.add_row([&one.name, &shown(&one.grants), &expires, &one.created_by]);
            }
            print(&format!("{table}\n"))
        }
        TokenCommand::Revoke { name } => {
            let path = format!("/v1/tokens/{}", escaped(&name));
            client.order(Method::DELETE, &path).await
        }
    }
}

async fn certificates(
    client: &Client,
    command: CertificateCommand,
    output: Output,
) -> anyhow::Result<()> {
    match command {
        CertificateCommand::Create {
            name,
            grant,
            days,
            csr,
            directory,
        } => {
            let (key, csr) = match &csr {
                Some(file) => (None, reading(file)?),
                None => tls::client_request().map(|(key, csr)| (Some(key), csr))?,
            };
            let asked = NewCertificate {
                name,
                grants: vec![grant.grant()],
                csr,
                days,
            };
            let made: Certificate = client
                .send(Method::POST, "/v1/certificates", &asked)
                .await?;
            let files = keep(&directory, &made, key.as_deref())?;
            if programs(output) {
                return print_value(&made, output);
            }
            print(&format!("{files}holds until {}\n", made.expires))
        }
        CertificateCommand::List => {
            let all: CertificateList = client.get("/v1/certificates").await?;
            if programs(output) {
                return print_value(&all, output);
            }
            let mut table = table(["NAME", "MAY", "EXPIRES", "SHA-256"]);
            for one in &all.items {
                let expires = one.expires.to_string();
                table.add_row([&one.name, &shown(&one.grants), &expires, &one.fingerprint]);
            }
            print(&format!("{table}\n"))
        }
        CertificateCommand::Revoke { name } => {
            let path = format!("/v1/certificates/{}", escaped(&name));
            client.order(Method::DELETE, &path).await
        }
    }
}

/// Writes what was issued; gives a line for each file.
fn keep(directory: &Path, made: &Certificate, key: Option<&str>) -> anyhow::Result<String> {
    let mut files = vec![("pem", made.pem.as_str())];
    files.extend(key.map(|key| ("key", key)));
    let mut lines = Vec::new();
    for (kind, text) in files {
        let file = directory.join(format!("{}.{kind}", made.name));
        let shown = file.display();
        token::write_private(&file, text.as_bytes())
            .with_context(|| format!("writing {shown}; revoke the certificate and try again"))?;
        lines.push(format!("{shown}\n"));
    }
    Ok(lines.concat())
}

async fn roles(client: &Client, command: RoleCommand, output: Output) -> anyhow::Result<()> {
    let path = |subject: &str| format!("/v1/roles/{}", escaped(subject));
    match command {
        RoleCommand::Grant { subject, grant } => {
            let all: BindingList = client.get("/v1/roles").await?;
            let known = all.items.into_iter().find(|one| one.subject == subject);
            let mut grants = known.map_or_else(Vec::new, |known| known.grants);
            grants.push(grant.grant());
            grants.sort();
            grants.dedup();
            let asked = Grants { grants };
            let made: Binding = client.send(Method::PUT, &path(&subject), &asked).await?;
            if programs(output) {
                return print_value(&made, output);
            }
            print(&format!("{}: {}\n", made.subject, shown(&made.grants)))
        }
        RoleCommand::List => {
            let all: BindingList = client.get("/v1/roles").await?;
            if programs(output) {
                return print_value(&all, output);
            }
            let mut table = table(["SUBJECT", "MAY"]);
            for one in &all.items {
                table.add_row([&one.subject, &shown(&one.grants)]);
            }
            print(&format!("{table}\n"))
        }
        RoleCommand::Revoke { subject } => client.order(Method::DELETE, &path(&subject)).await,
    }
}

async fn audit(client: &Client, command: AuditCommand, output: Output) -> anyhow::Result<ExitCode> {
    match command {
        AuditCommand::List { after, limit } => {
            let log = fetch(client, after, limit.unwrap_or(u64::MAX)).await?;
            if programs(output) {
                print_value(&log, output)?;
                return Ok(ExitCode::SUCCESS);
            }
            let lines = log.items.iter().map(|line| format!("{}\n", line_of(line)));
            print(&lines.collect::<String>())?;
        }
        AuditCommand::Verify { file, head } => {
            let log = match &file {
                Some(file) => serde_json::from_str(&reading(file)?)
                    .with_context(|| format!("{} is no audit log", file.display()))?,
                None => fetch(client, 0, u64::MAX).await?,
            };
            let end = verify(&log, head)?;
            if programs(output) {
                let whole = serde_json::json!({"lines": log.items.len(), "head": end});
                print_value(&whole, output)?;
            } else {
                let lines = log.items.len();
                print(&format!("{lines} lines, whole; the end is {end}\n"))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Checks a log from its first line; gives its end, to be noted.
fn verify(log: &AuditList, noted: Option<(u64, String)>) -> anyhow::Result<String> {
    let broken = |error: crate::audit::Broken| {
        let advice = "compare with a backup; whoever could write to the database could do this";
        Problem::new(Code::AuditBroken, error.to_string(), advice)
    };
    let mut check = Check::with_noted(noted);
    for line in &log.items {
        check.take(line).map_err(broken)?;
    }
    check.end(log.head.as_ref()).map_err(broken)?;
    let end = log.head.as_ref();
    Ok(end.map_or_else(String::new, |head| format!("{}:{}", head.id, head.hash)))
}

/// Reads the log page by page, up to where it ended when the first page was read.
async fn fetch(client: &Client, after: u64, most: u64) -> anyhow::Result<AuditList> {
    let mut all = AuditList {
        head: None,
        items: Vec::new(),
    };
    let mut last = after;
    loop {
        let path = format!("/v1/audit?after={last}&limit={PAGE}");
        let page: AuditList = client.get(&path).await?;
        let head: Option<AuditHead> = all.head.take().or(page.head);
        let end = head.as_ref().map_or(0, |head| head.id);
        all.head = head;
        let fetched = page.items.len();
        let wanted = page.items.into_iter().filter(|line| line.id <= end);
        let room = most.saturating_sub(all.items.len() as u64);
        all.items
            .extend(wanted.take(usize::try_from(room).unwrap_or(usize::MAX)));
        let reached = all.items.last().map_or(end, |line| line.id);
        if fetched < PAGE as usize || reached >= end || all.items.len() as u64 >= most {
            return Ok(all);
        }
        last = reached;
    }
}

/// A line of the audit log for people.
fn line_of(line: &AuditLine) -> String {
    let body: Value = serde_json::from_str(&line.body).unwrap_or_default();
    let text = |path: &str| {
        let found = body.pointer(path).and_then(Value::as_str);
        found.unwrap_or("-").to_owned()
    };
    let detail = body.get("detail").filter(|detail| !detail.is_null());
    format!(
        "{} {} {} from {} {} {}/{} {}",
        line.id,
        text("/at"),
        text("/actor/who"),
        text("/actor/via/from"),
        text("/action"),
        text("/target/kind"),
        text("/target/name"),
        detail.map_or_else(String::new, Value::to_string),
    )
}

/// Whether the answer is for programs.
const fn programs(output: Output) -> bool {
    matches!(output, Output::Json | Output::Yaml)
}

fn shown(grants: &[Grant]) -> String {
    let one = |grant: &Grant| match &grant.project {
        Some(project) => format!("{} in {project}", grant.role.as_str()),
        None => format!("{} everywhere", grant.role.as_str()),
    };
    grants.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn table<const N: usize>(names: [&str; N]) -> Table {
    let mut table = Table::new();
    table
        .load_style(comfy_table::presets::NOTHING)
        .set_header(names);
    table
}

fn reading(file: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))
}

/// A name as a part of a path.
fn escaped(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:@".contains(&byte);
    name.bytes()
        .map(|byte| match byte {
            byte if plain(byte) => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        })
        .collect()
}

/// `90s`, `12h`, `30d`, `1y` in seconds.
fn duration(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not like 12h, 30d or 1y");
    let at = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(at);
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 7 * 86_400,
        "y" => 365 * 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let all = number.checked_mul(seconds).filter(|all| *all > 0);
    all.ok_or_else(wrong)
}

/// `17:abc…`
fn noted(text: &str) -> Result<(u64, String), String> {
    let wrong = || "this is not NUMBER:HASH as `ferrite audit verify` prints it".to_owned();
    let (id, hash) = text.split_once(':').ok_or_else(wrong)?;
    let is_hash = hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    let id = id.parse().ok().filter(|_| is_hash).ok_or_else(wrong)?;
    Ok((id, hash.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("30d"), Ok(2_592_000));
        assert_eq!(duration("12h"), Ok(43_200));
        for bad in [
            "",
            "30",
            "d",
            "0d",
            "-1d",
            "1.5d",
            "9999999999999999999y",
            "1 d",
        ] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_line_reads_from_left_to_right() {
        let body = serde_json::json!({
            "at": "2026-11-21T12:00:00Z", "action": "change",
            "actor": {"who": "ci", "via": {"from": "10.0.0.1"}},
            "target": {"kind": "Host", "name": "a"}, "detail": {"spec": ["image"]},
        });
        let line = AuditLine {
            id: 7,
            revision: 9,
            project: "default".into(),
            body: body.to_string(),
            hash: String::new(),
        };
        assert_eq!(
            line_of(&line),
            "7 2026-11-21T12:00:00Z ci from 10.0.0.1 change Host/a {\"spec\":[\"image\"]}"
        );
        assert_eq!(escaped("user:a b/ü"), "user:a%20b%2F%C3%BC");
        assert!(noted("7:zz").is_err());
        assert_eq!(noted(&format!("7:{}", "a".repeat(64))).unwrap().0, 7);
    }
}
