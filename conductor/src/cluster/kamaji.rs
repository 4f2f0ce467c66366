//! What Kamaji tells of a tenant control plane, in its management cluster: where it is, which
//! version, whether it takes joins, and how we are let in.
//!
//! Pure but for three reads. Nothing is written there.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ferrite_proto::cluster::Tenant;
use ferrite_proto::problem::{Code, Problem};
use serde_json::Value;

use super::kubeconfig::Kubeconfig;
use super::wire::{Wire, escaped, short};

/// What is read of a `TenantControlPlane`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    /// `host:port`.
    pub(super) endpoint: Option<String>,
    /// Kamaji's word for how it is.
    pub(super) phase: String,
    /// Whether it has konnectivity.
    pub(super) konnectivity: bool,
}

impl Seen {
    pub(super) fn parse(object: &Value) -> Self {
        let phase = &object["status"]["kubernetesResources"]["version"]["status"];
        let endpoint = object["status"]["controlPlaneEndpoint"].as_str();
        let endpoint = endpoint.filter(|endpoint| !endpoint.is_empty());
        Self {
            endpoint: endpoint.map(short),
            phase: short(phase.as_str().unwrap_or("Unknown")),
            konnectivity: object["spec"]["addons"]["konnectivity"].is_object(),
        }
    }

    /// Why hosts cannot join now.
    pub(super) fn obstacle(&self) -> Option<(String, &'static str)> {
        let (what, advice) = match self.phase.as_str() {
            "Ready" if self.endpoint.is_some() => return None,
            "Ready" => (
                "has no endpoint yet",
                "its Service needs an address: with MetalLB, annotate it with \
                 metallb.io/loadBalancerIPs through controlPlane.service.additionalMetadata",
            ),
            "Sleeping" => (
                "sleeps",
                "set spec.controlPlane.deployment.replicas above 0",
            ),
            "WriteLimited" => (
                "takes no writes, and a join writes",
                "remove spec.writePermissions, or free its data store",
            ),
            "Migrating" => ("moves to another data store", "wait: it is tried again"),
            "CertificateAuthorityRotating" => ("gets a new CA", "wait: it is tried again"),
            "Upgrading" => ("is being upgraded", "wait: it is tried again"),
            _ => (
                "is not ready",
                "look at it with `kubectl describe tcp` in the management cluster",
            ),
        };
        Some((format!("{what} (phase {})", self.phase), advice))
    }
}

/// A control plane as it is now.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) seen: Seen,
    /// Kamaji's admin kubeconfig of the tenant.
    pub(super) admin: Kubeconfig,
    /// Its CA, as PEM: with that of the kubeconfig, while it is rotated.
    pub(super) ca: String,
}

/// Reads a control plane, its CA and its admin kubeconfig.
pub(super) async fn read(
    cluster: &str,
    management: &Wire,
    tenant: &Tenant,
) -> Result<Found, Problem> {
    let seen = look(cluster, management, tenant).await?;
    let admin = secret(
        cluster,
        management,
        tenant,
        "admin-kubeconfig",
        "admin.conf",
    )
    .await?;
    let admin = Kubeconfig::parse(&admin).map_err(|what| {
        let text = format!("cluster {cluster}: Kamaji's admin.conf {what}");
        let advice = "look at the Secret in the management cluster; it is read again";
        Problem::new(Code::ClusterNotJoinable, text, advice)
    })?;
    let ca = secret(cluster, management, tenant, "ca", "ca.crt").await?;
    super::check_authorities(&ca).map_err(|what| {
        let text = format!("cluster {cluster}: Kamaji's ca.crt {what}");
        let advice = "look at the Secret in the management cluster; it is read again";
        Problem::new(Code::ClusterNotJoinable, text, advice)
    })?;
    Ok(Found { seen, admin, ca })
}

async fn look(cluster: &str, management: &Wire, tenant: &Tenant) -> Result<Seen, Problem> {
    let (namespace, name) = (escaped(&tenant.namespace), escaped(&tenant.name));
    let path = format!(
        "/apis/kamaji.clastix.io/v1alpha1/namespaces/{namespace}/tenantcontrolplanes/{name}"
    );
    let object = management.get(&path).await?.ok_or_else(|| {
        let Tenant { namespace, name } = tenant;
        Problem::new(
            Code::ClusterNotJoinable,
            format!(
                "cluster {cluster}: the management cluster has no TenantControlPlane \
                 {namespace}/{name}"
            ),
            "compare with `kubectl get tcp -A`, and look whether Kamaji is installed there; it is \
             looked for again",
        )
    })?;
    Ok(Seen::parse(&object))
}

/// A text of one of the Secrets that Kamaji writes beside the control plane.
async fn secret(
    cluster: &str,
    management: &Wire,
    tenant: &Tenant,
    suffix: &str,
    key: &str,
) -> Result<String, Problem> {
    let (namespace, name) = (escaped(&tenant.namespace), escaped(&tenant.name));
    let path = format!("/api/v1/namespaces/{namespace}/secrets/{name}-{suffix}");
    let object = management.get(&path).await?.unwrap_or_default();
    let text = object["data"][key].as_str();
    let text = text.and_then(|text| BASE64_STANDARD.decode(text).ok());
    let text = text.and_then(|bytes| String::from_utf8(bytes).ok());
    text.ok_or_else(|| {
        let Tenant { namespace, name } = tenant;
        Problem::new(
            Code::ClusterNotJoinable,
            format!("cluster {cluster}: Secret {namespace}/{name}-{suffix} has no {key} yet"),
            "Kamaji writes it when the control plane is made; it is looked for again",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn seen(phase: &str, endpoint: &str) -> Seen {
        Seen::parse(&json!({
            "spec": {"addons": {"konnectivity": {}}},
            "status": {
                "controlPlaneEndpoint": endpoint,
                "kubernetesResources": {"version": {"version": "v1.34.1", "status": phase}},
            },
        }))
    }

    #[test]
    fn only_a_ready_control_plane_with_an_endpoint_takes_joins() {
        let ready = seen("Ready", "192.0.2.10:6443");
        assert_eq!(ready.obstacle(), None);
        assert!(ready.konnectivity);
        assert_eq!(ready.endpoint.as_deref(), Some("192.0.2.10:6443"));
        for phase in [
            "Unknown",
            "Provisioning",
            "CertificateAuthorityRotating",
            "Upgrading",
            "Migrating",
            "NotReady",
            "Sleeping",
            "WriteLimited",
            "OfTomorrow",
        ] {
            let (what, advice) = seen(phase, "192.0.2.10:6443").obstacle().unwrap();
            assert!(what.contains(phase) && !advice.is_empty(), "{what}");
        }
        let (what, _) = seen("Ready", "").obstacle().unwrap();
        assert!(what.contains("no endpoint"), "{what}");
        assert!(Seen::parse(&json!([])).obstacle().is_some());
    }
}
