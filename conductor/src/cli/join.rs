//! The words about the cluster that a host joins, and how it leaves.

use anyhow::Context as _;
use clap::Args;
use ferrite_proto::host::Host;
use ferrite_proto::join::{JoinBy, JoinSpec, NodeTaint};
use reqwest::Method;
use serde_json::json;

use super::args::word;
use super::client::Client;
use super::host::{pair, path};

/// Which cluster a host joins, and as what.
#[derive(Debug, Args)]
pub(crate) struct JoinArgs {
    /// Have the host join this cluster once its OS is up.
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// Labels of its Node.
    #[arg(
        long,
        value_name = "KEY=VALUE,…",
        value_delimiter = ',',
        requires = "cluster"
    )]
    node_labels: Vec<String>,
    /// Taints that its Node is registered with.
    #[arg(
        long,
        value_name = "KEY[=VALUE]:EFFECT,…",
        value_delimiter = ',',
        requires = "cluster"
    )]
    taints: Vec<String>,
    /// Who runs `kubeadm join`. cloud-init has the token on the config drive until the Node
    /// appears; with user-data, what you or Cluster API gave joins, and Ferrite watches.
    #[arg(
        long,
        requires = "cluster",
        value_parser = word::<JoinBy>,
        value_name = "daemon|cloud-init|user-data",
        default_value = "daemon"
    )]
    join: JoinBy,
}

impl JoinArgs {
    /// What they say, if they say anything.
    pub(super) fn spec(&self) -> anyhow::Result<Option<JoinSpec>> {
        let Some(cluster) = &self.cluster else {
            return Ok(None);
        };
        let labels = self.node_labels.iter().map(|text| pair(text));
        let taints = self.taints.iter().map(|text| taint(text));
        Ok(Some(JoinSpec {
            cluster: cluster.clone(),
            node_labels: labels.collect::<anyhow::Result<_>>()?,
            node_taints: taints.collect::<anyhow::Result<_>>()?,
            by: self.join,
            drain: true,
        }))
    }
}

/// A taint as `kubectl taint` takes it.
fn taint(text: &str) -> anyhow::Result<NodeTaint> {
    let read = || {
        let (what, effect) = text.rsplit_once(':')?;
        let (key, value) = what.split_once('=').unwrap_or((what, ""));
        let effect = serde_json::from_value(json!(effect)).ok()?;
        (!key.is_empty()).then(|| NodeTaint {
            key: key.to_owned(),
            value: value.to_owned(),
            effect,
        })
    };
    read().with_context(|| {
        format!(
            "{text:?} is not KEY=VALUE:EFFECT, with NoSchedule, PreferNoSchedule or NoExecute as \
             the effect"
        )
    })
}

/// The pods of a host that is taken back are not waited for.
pub(super) async fn skip_drain(client: &Client, name: &str) -> anyhow::Result<()> {
    let call = path(name, "");
    let host: Host = client.get(&call).await?;
    if host.spec.join.is_some() {
        let patch = json!({"spec": {"join": {"drain": false}}});
        let _: Host = client.send(Method::PATCH, &call, &patch).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use ferrite_proto::join::TaintEffect;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        join: JoinArgs,
    }

    fn spec(words: &str) -> anyhow::Result<Option<JoinSpec>> {
        Line::try_parse_from(words.split_whitespace())?.join.spec()
    }

    #[test]
    fn labels_and_taints_are_read_as_kubectl_reads_them() {
        let line =
            "x --cluster prod --node-labels rack=r1,zone=a --taints gpu=yes:NoSchedule,a:NoExecute";
        let spec = spec(line).unwrap().unwrap();
        assert_eq!(spec.cluster, "prod");
        assert_eq!(spec.node_labels["zone"], "a");
        let [gpu, a] = &spec.node_taints[..] else {
            panic!("{spec:?}")
        };
        assert_eq!((gpu.key.as_str(), gpu.value.as_str()), ("gpu", "yes"));
        assert_eq!((a.key.as_str(), a.value.as_str()), ("a", ""));
        assert_eq!(a.effect, TaintEffect::NoExecute);
    }

    #[test]
    fn what_says_nothing_of_a_cluster_is_refused() {
        assert_eq!(spec("x").unwrap(), None);
        assert!(spec("x --node-labels a=b").is_err());
        for bad in ["gpu", "gpu=yes", "gpu=yes:noschedule", "=x:NoSchedule"] {
            let error = spec(&format!("x --cluster c --taints {bad}")).unwrap_err();
            assert!(error.to_string().contains(bad), "{error}");
        }
    }
}
