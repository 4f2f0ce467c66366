//! Selectors: which of many resources are meant, by label and by field, as Kubernetes writes them.
//! Pure.

use std::collections::BTreeMap;

use ferrite_proto::problem::{Code, Problem};
use serde_json::Value;

/// Conditions in one selector.
const MOST: usize = 32;

/// A condition on labels.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Label {
    /// `a in (x,y)`, `a=x`
    In(String, Vec<String>),
    /// `a notin (x,y)`, `a!=x`: also where there is no such label.
    NotIn(String, Vec<String>),
    /// `a`
    Exists(String),
    /// `!a`
    Absent(String),
}

/// A condition on a field: its path, what it shall be or not be.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Field {
    path: String,
    value: String,
    is: bool,
}

/// What is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Selectors {
    labels: Vec<Label>,
    fields: Vec<Field>,
    project: Option<String>,
}

impl Selectors {
    /// Reads them as they stand in a query.
    pub(crate) fn parse(
        labels: Option<&str>,
        fields: Option<&str>,
        project: Option<&str>,
    ) -> Result<Self, Problem> {
        let labels = split(labels.unwrap_or_default());
        let fields = split(fields.unwrap_or_default());
        if labels.len() > MOST || fields.len() > MOST {
            return Err(invalid(&format!("more than {MOST} conditions")));
        }
        Ok(Self {
            labels: labels.into_iter().map(label).collect::<Result<_, _>>()?,
            fields: fields.into_iter().map(field).collect::<Result<_, _>>()?,
            project: project.map(str::to_owned),
        })
    }

    /// Whether everything is meant.
    pub(crate) const fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty() && self.project.is_none()
    }

    /// Whether this one is meant. `whole` is made only where fields are asked for.
    pub(crate) fn select(
        &self,
        project: &str,
        labels: &BTreeMap<String, String>,
        whole: impl FnOnce() -> Value,
    ) -> bool {
        let of_project = self.project.as_deref().is_none_or(|own| own == project);
        if !of_project || !self.labels.iter().all(|label| label.holds(labels)) {
            return false;
        }
        self.fields.is_empty() || {
            let whole = whole();
            self.fields.iter().all(|field| field.holds(&whole))
        }
    }

    /// The same for a resource as JSON.
    pub(crate) fn select_json(&self, resource: &Value) -> bool {
        let metadata = &resource["metadata"];
        let labels = metadata["labels"].as_object().into_iter().flatten();
        let labels = labels.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.into())));
        let project = metadata["project"].as_str().unwrap_or_default();
        self.select(project, &labels.collect(), || resource.clone())
    }
}

impl Label {
    fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        match self {
            Self::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            Self::NotIn(key, values) => {
                !labels.get(key).is_some_and(|value| values.contains(value))
            }
            Self::Exists(key) => labels.contains_key(key),
            Self::Absent(key) => !labels.contains_key(key),
        }
    }
}

impl Field {
    fn holds(&self, whole: &Value) -> bool {
        let parts = self.path.split('.');
        let found = parts.fold(whole, |value, part| &value[part]);
        let text = match found {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        (text == self.value) == self.is
    }
}

/// At commas that are not in parentheses.
fn split(text: &str) -> Vec<&str> {
    let mut depth = 0_u32;
    let at_comma = |c: char| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    };
    let parts: Vec<_> = text.split(at_comma).map(str::trim).collect();
    if parts == [""] { Vec::new() } else { parts }
}

fn label(text: &str) -> Result<Label, Problem> {
    if let Some(key) = text.strip_prefix('!') {
        return Ok(Label::Absent(word(key, text)?));
    }
    for (sign, is) in [("!=", false), ("==", true), ("=", true)] {
        if let Some((key, value)) = text.split_once(sign) {
            let value = value.trim();
            let value = if value.is_empty() {
                String::new()
            } else {
                word(value, text)?
            };
            return Ok(among(word(key, text)?, vec![value], is));
        }
    }
    let Some((head, rest)) = text.split_once('(') else {
        return Ok(Label::Exists(word(text, text)?));
    };
    let (key, sign) = head
        .trim()
        .rsplit_once(' ')
        .ok_or_else(|| unreadable(text))?;
    let values = rest.strip_suffix(')').ok_or_else(|| unreadable(text))?;
    let values = values.split(',').map(|value| word(value, text));
    let values = values.collect::<Result<Vec<_>, _>>()?;
    match sign {
        "in" => Ok(among(word(key, text)?, values, true)),
        "notin" => Ok(among(word(key, text)?, values, false)),
        _ => Err(unreadable(text)),
    }
}

const fn among(key: String, values: Vec<String>, is: bool) -> Label {
    if is {
        Label::In(key, values)
    } else {
        Label::NotIn(key, values)
    }
}

fn word(text: &str, whole: &str) -> Result<String, Problem> {
    let text = text.trim();
    let good = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    if text.is_empty() || text.len() > 317 || !text.chars().all(good) {
        return Err(unreadable(whole));
    }
    Ok(text.to_owned())
}

fn field(text: &str) -> Result<Field, Problem> {
    let (is, parts) = match text.split_once("!=") {
        Some(parts) => (false, Some(parts)),
        None => (true, text.split_once("==").or_else(|| text.split_once('='))),
    };
    let (path, value) = parts.ok_or_else(|| unreadable(text))?;
    let path = path.trim();
    let known = ["metadata.", "spec.", "status."];
    let letters = path
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.');
    if !letters || !known.iter().any(|start| path.starts_with(start)) {
        return Err(invalid(&format!(
            "{path:?} cannot be selected by: fields begin with metadata., spec. or status."
        )));
    }
    Ok(Field {
        path: path.to_owned(),
        value: value.trim().to_owned(),
        is,
    })
}

fn unreadable(text: &str) -> Problem {
    let shown: String = text.chars().take(80).collect();
    invalid(&format!("{shown:?} is no condition"))
}

fn invalid(what: &str) -> Problem {
    Problem::new(
        Code::QueryInvalid,
        format!("the selector cannot be used: {what}"),
        "write label_selector=a=b,c!=d,e in (x,y),!f or field_selector=status.state=available",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn selects(labels: &str, fields: &str) -> bool {
        let resource = json!({
            "metadata": {"name": "n", "project": "p",
                "labels": {"rack": "r1", "example.org/row": "7", "empty": ""}},
            "spec": {"boot_via": "pxe"},
            "status": {"state": "available", "step": null},
        });
        Selectors::parse(Some(labels), Some(fields), None)
            .unwrap()
            .select_json(&resource)
    }

    #[test]
    fn labels_are_selected_as_kubernetes_does() {
        for yes in [
            "",
            "rack",
            "!cold",
            "rack=r1",
            "rack==r1",
            "rack != r2",
            "cold!=x",
            "rack in (r0, r1),example.org/row=7",
            "rack notin (r2,r3)",
            "cold notin (x)",
            "empty=",
        ] {
            assert!(selects(yes, ""), "{yes}");
        }
        for no in [
            "cold",
            "!rack",
            "rack=r2",
            "rack!=r1",
            "rack in (r2)",
            "rack=r1,row",
        ] {
            assert!(!selects(no, ""), "{no}");
        }
    }

    #[test]
    fn fields_are_selected_by_path() {
        for yes in [
            "status.state=available",
            "status.state!=deleting,metadata.name=n",
            "status.step=",
            "spec.nothing=",
        ] {
            assert!(selects("", yes), "{yes}");
        }
        assert!(!selects("", "status.state=preparing"));
        assert!(!selects("rack=r1", "metadata.name!=n"));
    }

    #[test]
    fn what_is_no_selector_is_refused() {
        for bad in [
            "=", "a=b=c", "a in", "a in (b", "a of (b)", ",", "a,", "ä", "!", "a b",
        ] {
            assert!(Selectors::parse(Some(bad), None, None).is_err(), "{bad}");
        }
        for bad in [
            "state",
            "state=x",
            "secrets.bmc_password=x",
            "status.st-ate=x",
        ] {
            assert!(Selectors::parse(None, Some(bad), None).is_err(), "{bad}");
        }
        let many = vec!["a"; 40].join(",");
        assert!(Selectors::parse(Some(&many), None, None).is_err());
    }
}
