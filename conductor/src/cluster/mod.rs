//! Clusters: what a host needs to join one, and what becomes of its node there.
//!
//! A cluster is a document; its kubeconfig is sealed beside it, or, for a tenant of Kamaji, read
//! anew from the management cluster. Tokens are minted for one host, live minutes, and are stored
//! nowhere: only their ids are, so that each is removed even if a conductor is killed meanwhile.
//!
//! Not here: when a host joins or leaves; that is the lifecycle's.

mod check;
mod drain;
pub(crate) mod kamaji;
pub(crate) mod kubeconfig;
mod mint;
mod node;
#[cfg(test)]
mod tests;
mod token;
mod watch;
pub(crate) mod wire;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ferrite_proto::address::Policy;
use ferrite_proto::cluster::{ClusterReport, ClusterSpec, ClusterStatus};
use ferrite_proto::problem::{Code, Problem};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::time::Instant;

use self::kamaji::Seen;
use self::kubeconfig::{Kubeconfig, Login};
use self::node::Requests;
use self::wire::Wire;
use crate::documents::Documents;
use crate::store::{Document, Revision};

pub(crate) use self::{
    mint::{HostRun, Material},
    node::{AskedBy, CsrState, Node, Ready, Taint},
};

/// The kind of their documents.
pub(crate) const KIND: &str = "Cluster";
/// What helps when a kubeconfig cannot be used.
const GIVE_ANEW: &str = "give another: `ferrite cluster set-credentials NAME --kubeconfig FILE`, \
                         with what `kubectl config view --raw --flatten --minify` prints";
/// How long what was read of a cluster is used again.
const FRESH: Duration = Duration::from_secs(30);

/// Places by their clusters' names, with when they were found and of which revision.
type Found = BTreeMap<String, (Instant, Revision, Arc<Place>)>;

/// All clusters.
#[derive(Debug)]
pub(crate) struct Clusters {
    documents: Documents,
    policy: Policy,
    found: Mutex<Found>,
    /// The last check of each.
    reports: Mutex<BTreeMap<String, ClusterReport>>,
    /// Kubelets' requests for certificates, of each where hosts join.
    requests: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<Requests>>>>,
    #[cfg(test)]
    simulated: Option<Arc<dyn wire::Simulated>>,
}

/// A cluster that can be asked.
#[derive(Debug)]
struct Place {
    cluster: String,
    /// We, with our credentials.
    wire: Wire,
    /// Anybody, at the endpoint that hosts join at.
    open: Wire,
    /// `https://host:port`, as hosts reach it.
    endpoint: String,
    /// Its CA, as PEM.
    ca: String,
    /// Of a tenant of Kamaji.
    seen: Option<Seen>,
}

impl Place {
    /// `host:port`, as a `JoinConfiguration` has it.
    fn host_port(&self) -> String {
        host_port(&self.endpoint)
    }

    fn status(&self) -> ClusterStatus {
        ClusterStatus {
            endpoint: Some(self.host_port()),
            kubernetes_version: None,
            ca_hashes: token::pins(&self.ca),
            phase: self.seen.as_ref().map(|seen| seen.phase.clone()),
            problem: self.obstacle().err(),
        }
    }

    /// Whether Kamaji lets hosts join now.
    fn obstacle(&self) -> Result<(), Problem> {
        let obstacle = self.seen.as_ref().and_then(Seen::obstacle);
        obstacle.map_or(Ok(()), |(what, advice)| {
            let text = format!("cluster {}: its control plane {what}", self.cluster);
            Err(Problem::new(Code::ClusterNotJoinable, text, advice))
        })
    }
}

impl Clusters {
    /// Those that are stored; `policy` says where they may be.
    pub(crate) const fn new(documents: Documents, policy: Policy) -> Self {
        Self {
            documents,
            policy,
            found: Mutex::new(BTreeMap::new()),
            reports: Mutex::new(BTreeMap::new()),
            requests: Mutex::new(BTreeMap::new()),
            #[cfg(test)]
            simulated: None,
        }
    }

    /// The same, all of them played by one of the simulation.
    #[cfg(test)]
    pub(crate) fn simulated(mut self, api: Arc<dyn wire::Simulated>) -> Self {
        self.simulated = Some(api);
        self
    }

    fn requests(&self, cluster: &str) -> Arc<tokio::sync::Mutex<Requests>> {
        let mut all = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(all.entry(cluster.to_owned()).or_default())
    }

    /// Pins of the CA that a cluster has now.
    pub(crate) async fn ca_hashes(&self, cluster: &str) -> Result<Vec<String>, Problem> {
        Ok(token::pins(&self.place(cluster).await?.ca))
    }

    /// The last check of a cluster by this conductor.
    pub(crate) fn report(&self, cluster: &str) -> Option<ClusterReport> {
        let reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        reports.get(cluster).cloned()
    }

    /// Whether a host that is to join could, before anything of it is touched.
    pub(crate) async fn can_join(&self, cluster: &str) -> Result<(), Problem> {
        let place = self.find(cluster).await?;
        place.obstacle()?;
        mint::version(&place).await.map(drop)
    }

    fn document(&self, cluster: &str) -> Result<Arc<Document>, Problem> {
        self.documents.get(KIND, cluster).ok_or_else(|| {
            let text = format!("there is no cluster {cluster:?}");
            Problem::new(Code::NotFound, text, "`ferrite cluster list` names all")
        })
    }

    /// A cluster that was found within the last half minute, or now.
    async fn place(&self, cluster: &str) -> Result<Arc<Place>, Problem> {
        let revision = self.document(cluster)?.revision;
        let kept = self.kept().get(cluster).cloned();
        match kept {
            Some((at, of, place)) if of == revision && at.elapsed() < FRESH => Ok(place),
            _ => self.find(cluster).await,
        }
    }

    fn kept(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A cluster as it is now: what Kamaji tells is read anew.
    async fn find(&self, cluster: &str) -> Result<Arc<Place>, Problem> {
        self.kept().remove(cluster);
        let document = self.document(cluster)?;
        let place = Arc::new(self.look_up(&document).await?);
        let kept = (Instant::now(), document.revision, Arc::clone(&place));
        self.kept().insert(cluster.to_owned(), kept);
        Ok(place)
    }

    async fn look_up(&self, document: &Document) -> Result<Place, Problem> {
        let cluster = document.name.as_str();
        let spec = spec_of(document)?;
        let given = credentials(document)?;
        let (known, ca, seen) = match &spec.tenant {
            None => {
                let ca = given.ca.clone();
                (given, ca, None)
            }
            Some(tenant) => {
                let management = self.wire(cluster, &given.server, &given.ca, &given.login)?;
                let found = kamaji::read(cluster, &management, tenant).await?;
                (found.admin, found.ca, Some(found.seen))
            }
        };
        let told = seen.as_ref().and_then(|seen| seen.endpoint.as_deref());
        let told = told.and_then(|told| origin(&format!("https://{told}")));
        let asked = spec.endpoint.as_deref().and_then(origin);
        let endpoint = asked.or(told).unwrap_or_else(|| known.server.clone());
        let ca = spec.ca.clone().unwrap_or(ca);
        Ok(Place {
            wire: self.wire(cluster, &known.server, &known.ca, &known.login)?,
            open: self.wire(cluster, &endpoint, &ca, &Login::Nobody)?,
            cluster: cluster.to_owned(),
            endpoint,
            ca,
            seen,
        })
    }

    fn wire(&self, cluster: &str, server: &str, ca: &str, login: &Login) -> Result<Wire, Problem> {
        #[cfg(test)]
        if let Some(api) = &self.simulated {
            return Ok(Wire::simulated(cluster, server, api));
        }
        Wire::new(cluster, server, ca, login, self.policy)
    }
}

fn spec_of(document: &Document) -> Result<ClusterSpec, Problem> {
    serde_json::from_value(document.body["spec"].clone()).map_err(|error| {
        let text = format!(
            "cluster {}: what is stored cannot be read: {error}",
            document.name
        );
        Problem::new(Code::Internal, text, "write the cluster anew")
    })
}

fn credentials(document: &Document) -> Result<Kubeconfig, Problem> {
    let secret = document.secret.as_ref();
    let text = secret.and_then(|secret| secret["kubeconfig"].as_str());
    let name = &document.name;
    let missing = |what: String| Problem::new(Code::ClusterCredentials, what, GIVE_ANEW);
    let text = text.ok_or_else(|| missing(format!("cluster {name} has no kubeconfig")))?;
    Kubeconfig::parse(text)
        .map_err(|what| missing(format!("cluster {name}: its kubeconfig {what}")))
}

/// What a URL says of where a server is, if that is all that it says and it is HTTPS.
pub(crate) fn origin(url: &str) -> Option<String> {
    let url = reqwest::Url::parse(url).ok()?;
    let alone = url.query().is_none() && url.fragment().is_none() && url.path() == "/";
    let open = url.username().is_empty() && url.password().is_none();
    let (host, port) = (url.host_str()?, url.port_or_known_default()?);
    (url.scheme() == "https" && alone && open).then(|| format!("https://{host}:{port}"))
}

fn host_port(origin: &str) -> String {
    origin
        .trim_start_matches("https://")
        .trim_end_matches('/')
        .to_owned()
}

/// Whether it is PEM with certificates that can be read, and nothing that is secret.
pub(crate) fn check_authorities(pem: &str) -> Result<(), &'static str> {
    let certificates = CertificateDer::pem_slice_iter(pem.as_bytes());
    let certificates: Result<Vec<_>, _> = certificates.collect();
    let certificates = certificates.unwrap_or_default();
    let readable = |der: &CertificateDer<'_>| x509_parser::parse_x509_certificate(der).is_ok();
    if certificates.is_empty() || !certificates.iter().all(readable) {
        return Err("holds no certificate that can be read");
    }
    if pem.contains("PRIVATE KEY") {
        return Err("holds a private key");
    }
    Ok(())
}
