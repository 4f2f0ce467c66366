//! JSON merge patches (RFC 7386): applying one, and finding the one between two documents.
//! Pure, over JSON values; what a document means is not known here.

use serde_json::{Map, Value};

/// Changes `target` as `patch` says: objects are merged, `null` removes, all else replaces.
pub fn apply(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        target.clone_from(patch);
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(fields) = target else {
        return;
    };
    for (key, wanted) in patch {
        if wanted.is_null() {
            fields.remove(key);
        } else {
            apply(fields.entry(key.clone()).or_insert(Value::Null), wanted);
        }
    }
}

/// The patch that makes `to` of `from`, where `to` holds no `null`; none when they are the same.
pub fn diff(from: &Value, to: &Value) -> Option<Value> {
    if from == to {
        return None;
    }
    let (Value::Object(old), Value::Object(new)) = (from, to) else {
        return Some(to.clone());
    };
    let mut patch = Map::new();
    for (key, wanted) in new {
        let change = match old.get(key) {
            Some(had) => diff(had, wanted),
            None => Some(wanted.clone()),
        };
        patch.extend(change.map(|change| (key.clone(), change)));
    }
    let gone = old.keys().filter(|key| !new.contains_key(*key));
    patch.extend(gone.map(|key| (key.clone(), Value::Null)));
    Some(Value::Object(patch))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The examples of RFC 7386, appendix A.
    #[test]
    fn the_examples_of_the_standard() {
        for (target, patch, wanted) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (
                json!({"a": "b"}),
                json!({"b": "c"}),
                json!({"a": "b", "b": "c"}),
            ),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (
                json!({"a": "b", "b": "c"}),
                json!({"a": null}),
                json!({"b": "c"}),
            ),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
            (
                json!({"a": {"b": "c"}}),
                json!({"a": {"b": "d", "c": null}}),
                json!({"a": {"b": "d"}}),
            ),
            (
                json!({"a": [{"b": "c"}]}),
                json!({"a": [1]}),
                json!({"a": [1]}),
            ),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (json!({"a": "b"}), json!(["c"]), json!(["c"])),
            (json!({"a": "foo"}), json!(null), json!(null)),
            (json!({"a": "foo"}), json!("bar"), json!("bar")),
            (
                json!({"e": null}),
                json!({"a": 1}),
                json!({"e": null, "a": 1}),
            ),
            (
                json!([1, 2]),
                json!({"a": "b", "c": null}),
                json!({"a": "b"}),
            ),
            (
                json!({}),
                json!({"a": {"bb": {"ccc": null}}}),
                json!({"a": {"bb": {}}}),
            ),
        ] {
            let mut got = target.clone();
            apply(&mut got, &patch);
            assert_eq!(got, wanted, "{target} with {patch}");
        }
    }

    #[test]
    fn the_difference_leads_from_one_to_the_other() {
        let from = json!({"a": {"b": 1, "c": 2}, "d": [1], "e": "x"});
        for to in [
            json!({"a": {"b": 1}, "d": [2], "f": {}}),
            json!({}),
            json!({"a": 1}),
            json!({"a": {"b": {"c": 3}, "c": 2}, "d": [1], "e": "x"}),
        ] {
            let mut got = from.clone();
            apply(&mut got, &diff(&from, &to).unwrap());
            assert_eq!(got, to);
        }
        assert_eq!(diff(&from, &from), None);
        let to = json!({"a": {"b": 1, "c": 3}, "d": [1], "e": "x"});
        assert_eq!(diff(&from, &to), Some(json!({"a": {"c": 3}})));
    }
}
