//! What every list takes: a page's size and place, selectors, and whether to watch.
//!
//! A page is of the present, not of the moment at which the first was read: what comes or goes
//! between two pages is told by a watch from the first page's `resourceVersion`.

use ferrite_proto::problem::{Code, Problem};
use ferrite_proto::resource::{ListMetadata, ResourceVersion};
use serde::Deserialize;

use super::select::Selectors;
use crate::lifecycle::intent::check_name;

/// Things on a page when nothing is said, and the most.
const PAGE: usize = 1000;

/// What stands behind the `?` of a list.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListQuery {
    limit: Option<usize>,
    #[serde(rename = "continue")]
    after: Option<String>,
    label_selector: Option<String>,
    field_selector: Option<String>,
    project: Option<String>,
    /// Follow changes instead of listing.
    #[serde(default)]
    pub(crate) watch: bool,
    resource_version: Option<String>,
}

impl ListQuery {
    /// Which are meant.
    pub(crate) fn selectors(&self) -> Result<Selectors, Problem> {
        // Nothing that cannot be read is passed over, also where a call has no use for it.
        self.limit().and(self.after()).and(self.version())?;
        Selectors::parse(
            self.label_selector.as_deref(),
            self.field_selector.as_deref(),
            self.project.as_deref(),
        )
    }

    /// How many.
    pub(crate) fn limit(&self) -> Result<usize, Problem> {
        match self.limit {
            None => Ok(PAGE),
            Some(limit @ 1..=PAGE) => Ok(limit),
            Some(other) => Err(invalid(format!("limit is 1 to {PAGE}, not {other}"))),
        }
    }

    /// The name after which the page begins.
    pub(crate) fn after(&self) -> Result<Option<String>, Problem> {
        let given = self.after.clone().filter(|text| !text.is_empty());
        let after = given.map(|name| match check_name(&name) {
            Ok(()) => Ok(name),
            Err(_) => Err(invalid("`continue` is not what a page gave".to_owned())),
        });
        after.transpose()
    }

    /// The version from which a watch goes on.
    pub(crate) fn version(&self) -> Result<Option<u64>, Problem> {
        let given = self.resource_version.as_deref();
        let given = given.filter(|text| !text.is_empty());
        let version = given.map(|text| {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            let number = text.parse().ok().filter(|_| digits);
            number.ok_or_else(|| invalid(format!("{text:?} is no resource_version")))
        });
        version.transpose()
    }
}

fn invalid(what: String) -> Problem {
    Problem::new(Code::QueryInvalid, what, "/openapi.json describes the call")
}

/// A page of things that come in the order of their names, and the name after which the next
/// begins.
pub(crate) fn page<T>(
    all: impl Iterator<Item = T>,
    limit: usize,
    name: impl Fn(&T) -> &str,
) -> (Vec<T>, Option<String>) {
    let mut items: Vec<T> = all.take(limit + 1).collect();
    if items.len() <= limit {
        return (items, None);
    }
    items.truncate(limit);
    let next = items.last().map(|last| name(last).to_owned());
    (items, next)
}

/// Where a list stands.
pub(crate) const fn metadata(revision: u64, next: Option<String>) -> ListMetadata {
    ListMetadata {
        resource_version: ResourceVersion(revision),
        next,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_give_everything_once() {
        let all = ["a", "b", "c", "d", "e"];
        for limit in 1..=6 {
            let (mut seen, mut query) = (Vec::new(), ListQuery::default());
            loop {
                let after = query.after().unwrap().unwrap_or_default();
                let rest = all.iter().filter(|name| **name > after.as_str());
                let (items, next) = page(rest, limit, |name| name);
                assert!(items.len() <= limit);
                seen.extend(items.into_iter().copied());
                if next.is_none() {
                    break;
                }
                query.after = next;
            }
            assert_eq!(seen, all);
        }
    }

    #[test]
    fn what_no_page_gave_is_refused() {
        for bad in ["X", "!!", "-a", "YWZ0ZXI6YQ"] {
            let query = ListQuery {
                after: Some(bad.to_owned()),
                ..ListQuery::default()
            };
            assert!(query.after().is_err(), "{bad}");
        }
        for bad in ["-1", "x", "+1", "99999999999999999999"] {
            let query = ListQuery {
                resource_version: Some(bad.to_owned()),
                ..ListQuery::default()
            };
            assert!(query.version().is_err(), "{bad}");
        }
    }
}
