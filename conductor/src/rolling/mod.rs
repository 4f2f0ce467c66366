//! Rolls the hosts of a cluster to another image, a few at a time.
//!
//! A roll is a document, one for each cluster; [`rule`] decides, pure, which hosts are next, and
//! [`work`] tells them. A host that is told is noted in the document first, under the document's
//! revision: whoever writes it decides, so that two conductors never begin hosts beside each other,
//! and one that was killed in between is followed by one that tells the host.
//!
//! Not here: what becomes of a host then. It is given another image as a person would give it: it
//! is drained, wiped and deployed, and joins under its old name (`lifecycle/`).

pub(crate) mod ask;
mod member;
mod rule;
mod work;

use ferrite_proto::problem::{Code, Problem};
use ferrite_proto::rolling::ClusterRoll;

pub(crate) use self::work::start;
use crate::documents::Documents;
use crate::store::Document;

/// The kind of the documents; each has its cluster's name.
pub(crate) const KIND: &str = "ClusterRoll";

/// The roll out of its document.
fn read(document: &Document) -> Result<ClusterRoll, Problem> {
    serde_json::from_value(document.body.clone()).map_err(|error| {
        let text = format!(
            "the roll of cluster {}: what is stored cannot be read: {error}",
            document.name
        );
        Problem::new(Code::Internal, text, "begin another roll")
    })
}

/// Every roll there is, with its document.
fn all(documents: &Documents) -> Vec<(std::sync::Arc<Document>, ClusterRoll)> {
    let stored = documents.list(KIND).into_iter();
    let read = stored.filter_map(|document| match read(&document) {
        Ok(roll) => Some((document, roll)),
        Err(problem) => {
            tracing::error!(cluster = %document.name, %problem, "a roll is left alone");
            None
        }
    });
    read.collect()
}

#[cfg(test)]
mod tests;
