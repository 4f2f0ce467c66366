//! The `OpenAPI` 3.1 document: schemas from the types, who may call from [`TABLE`], the rest from
//! [`described`]. Checked in as `proto/openapi.json` and served at `/openapi.json`.
//!
//! A call of the table that is not described fails a test, and so does one described that is not
//! in the table. Handlers carry no annotations: what a call is reads best beside its neighbours.

mod access;
mod described;
mod rules;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use crate::access::caller::Role;
use crate::access::table::{self, Scope, TABLE, Verdict, Who};

static DOCUMENT: LazyLock<bytes::Bytes> = LazyLock::new(|| document().to_string().into());

/// `GET /openapi.json`
pub(crate) async fn serve() -> Response {
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (kind, DOCUMENT.clone()).into_response()
}

/// The document.
fn document() -> Value {
    let mut all = Document::default();
    described::describe(&mut all);
    access::describe(&mut all);
    all.schema::<ferrite_proto::api::ErrorBody>();
    rules::state(&mut all.schemas);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Ferrite",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Turns powered-off servers into running, configured machines.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "tags": described::TAGS.map(|(name, what)| json!({"name": name, "description": what})),
        "paths": all.paths,
        "components": {
            "schemas": all.schemas,
            "responses": all.responses,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer",
                    "description": "A token, or an OIDC provider's ID token."},
                "certificate": {"type": "mutualTLS",
                    "description": "A client certificate of the conductor's own CA."},
                "agent": {"type": "http", "scheme": "bearer",
                    "description": "What the agent was given for its hello."},
                "daemon": {"type": "http", "scheme": "bearer",
                    "description": "The key that the daemon made."},
            },
        },
    })
}

/// The document in the making.
#[derive(Debug, Default)]
struct Document {
    paths: BTreeMap<String, Map<String, Value>>,
    schemas: BTreeMap<String, Value>,
    responses: BTreeMap<String, Value>,
}

impl Document {
    /// Describes a call of the table.
    fn call(&mut self, method: &str, path: &str, id: &str, summary: &str) -> Call<'_> {
        let who = match table::look_up(TABLE, method, path) {
            Verdict::Open(who) => Some(who),
            Verdict::OtherMethods | Verdict::Nothing => None,
        };
        let mut operation = Map::new();
        operation.insert("operationId".into(), json!(id));
        operation.insert("summary".into(), json!(summary));
        operation.insert("tags".into(), json!([described::tag(path)]));
        operation.insert("responses".into(), json!({}));
        let method = method.to_ascii_lowercase();
        let operations = self.paths.entry(path.to_owned()).or_default();
        operations.insert(method.clone(), Value::Object(operation));
        let mut call = Call {
            document: self,
            path: path.to_owned(),
            method,
        };
        call.parameters_of_path();
        call.open_to(who);
        call.refuses(429);
        call
    }

    /// A reference to a type's schema.
    fn schema<T: ToSchema>(&mut self) -> Value {
        let mut found = vec![(T::name().into_owned(), T::schema())];
        T::schemas(&mut found);
        for (name, schema) in found {
            let schema = serde_json::to_value(schema).unwrap_or_default();
            self.schemas.entry(name).or_insert(schema);
        }
        json!({"$ref": format!("#/components/schemas/{}", T::name())})
    }

    /// A reference to what every refusal with this status looks like.
    fn problem(&mut self, status: u16) -> Value {
        let name = format!("Problem{status}");
        let mut answer = json!({
            "description": described::refusal(status),
            "content": {"application/problem+json": {
                "schema": {"$ref": "#/components/schemas/ErrorBody"}}},
        });
        if status == 429 || status == 503 {
            answer["headers"] = json!({"Retry-After": {
                "description": "Seconds.", "schema": {"type": "integer", "minimum": 0}}});
        }
        let reference = json!({"$ref": format!("#/components/responses/{name}")});
        self.responses.entry(name).or_insert(answer);
        reference
    }
}

/// A call in the making.
#[derive(Debug)]
struct Call<'a> {
    document: &'a mut Document,
    path: String,
    method: String,
}

impl Call<'_> {
    fn operation(&mut self) -> &mut Value {
        let operations = self.document.paths.entry(self.path.clone()).or_default();
        operations.entry(self.method.clone()).or_insert(Value::Null)
    }

    fn add(&mut self, list: &str, value: Value) {
        let list = &mut self.operation()[list];
        match list.as_array_mut() {
            Some(all) => all.push(value),
            None => *list = json!([value]),
        }
    }

    fn parameters_of_path(&mut self) {
        let path = self.path.clone();
        let names = path.split('/').filter_map(|part| {
            let name = part.strip_prefix('{')?;
            name.strip_suffix('}')
        });
        for name in names {
            let schema = described::path_parameter(name);
            self.add(
                "parameters",
                json!({"name": name, "in": "path", "required": true, "schema": schema}),
            );
            self.refuses(404);
        }
    }

    fn open_to(&mut self, who: Option<Who>) {
        let (security, role) = match who {
            None | Some(Who::Anyone) => (json!([]), None),
            Some(Who::Agent) => (json!([{"agent": []}]), None),
            Some(Who::Daemon) => (json!([{"daemon": []}]), None),
            Some(Who::Person(role, scope)) => (
                json!([{"bearer": []}, {"certificate": []}]),
                Some((role, scope)),
            ),
        };
        if security.as_array().is_some_and(|all| !all.is_empty()) {
            self.refuses(401);
        }
        self.operation()["security"] = security;
        if let Some((role, scope)) = role {
            self.refuses(403);
            self.operation()["description"] = json!(needs(role, scope));
            self.operation()["x-ferrite-role"] = json!(role.as_str());
        }
    }

    /// Takes something behind the `?`.
    fn query(mut self, name: &str, schema: &Value, what: &str) -> Self {
        let schema = schema.clone();
        self.add(
            "parameters",
            json!({"name": name, "in": "query", "schema": schema, "description": what}),
        );
        self.refuses(400);
        self
    }

    /// Takes a header.
    fn header(mut self, name: &str, schema: &Value, what: &str) -> Self {
        let schema = schema.clone();
        self.add(
            "parameters",
            json!({"name": name, "in": "header", "schema": schema, "description": what}),
        );
        self
    }

    /// Takes JSON.
    fn body<T: ToSchema>(self) -> Self {
        self.body_as::<T>(&["application/json"])
    }

    /// Takes JSON under one of these names.
    fn body_as<T: ToSchema>(mut self, kinds: &[&str]) -> Self {
        let schema = self.document.schema::<T>();
        let contents = kinds
            .iter()
            .map(|kind| ((*kind).to_owned(), json!({"schema": schema})));
        let content: Map<String, Value> = contents.collect();
        self.operation()["requestBody"] = json!({"required": true, "content": content});
        for status in [400, 408, 413, 415, 422] {
            self.refuses(status);
        }
        self
    }

    /// Takes bytes, as many as there is room for.
    fn takes_bytes(mut self) -> Self {
        let content = json!({"application/octet-stream": {
            "schema": {"type": "string", "format": "binary"}}});
        self.operation()["requestBody"] = json!({"required": true, "content": content});
        self
    }

    /// Answers with a type.
    fn answers<T: ToSchema>(mut self, status: u16, what: &str) -> Self {
        let schema = self.document.schema::<T>();
        let answer = json!({
            "description": what, "content": {"application/json": {"schema": schema}}});
        self.operation()["responses"][status.to_string()] = answer;
        self
    }

    /// Answers with something that is not JSON, or with nothing.
    fn answers_otherwise(mut self, status: u16, kind: Option<&str>, what: &str) -> Self {
        let mut answer = json!({"description": what});
        if let Some(kind) = kind {
            answer["content"] = json!({kind: {"schema": {"type": "string"}}});
        }
        self.operation()["responses"][status.to_string()] = answer;
        self
    }

    /// The answer may be a stream of server-sent events instead.
    fn streams(self) -> Self {
        const WHAT: &str = "An event of the stream. `id` is the version to go on from; what is \
                            there when a watch begins has none. `data` is JSON: `{\"type\", \
                            \"object\"}`. Of what is gone, the object has the name only.";
        let words = ["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"];
        self.or_stream(&words, WHAT).or(&[410])
    }

    /// The answer may be a stream of such events instead.
    fn or_stream(mut self, words: &[&str], what: &str) -> Self {
        let stream = json!({"schema": {
            "type": "object",
            "description": what,
            "properties": {
                "event": {"type": "string", "enum": words},
                "id": {"type": "string", "pattern": "^[0-9]+$"},
                "data": {"type": "string", "contentMediaType": "application/json"},
            },
            "required": ["event", "data"],
        }});
        self.operation()["responses"]["200"]["content"]["text/event-stream"] = stream;
        self
    }

    /// May refuse so.
    fn refuses(&mut self, status: u16) {
        let problem = self.document.problem(status);
        self.operation()["responses"][status.to_string()] = problem;
    }

    /// May refuse so, too.
    fn or(mut self, statuses: &[u16]) -> Self {
        for status in statuses {
            self.refuses(*status);
        }
        self
    }
}

fn needs(role: Role, scope: Scope) -> String {
    let role = role.as_str();
    match scope {
        Scope::Host => format!("Needs the role `{role}` in the host's project."),
        Scope::Body => format!("Needs the role `{role}` in the project that the body names."),
        Scope::HostAndBody => {
            format!("Needs the role `{role}` in the project of what is there and of the body.")
        }
        Scope::Any => format!("Needs the role `{role}` in any project; shows what is in those."),
        Scope::Global => format!("Needs the role `{role}` everywhere."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::path::Path;

    #[test]
    fn every_call_of_the_table_is_described_and_no_other() {
        let document = document();
        let mut described = BTreeSet::new();
        let mut ids = BTreeSet::new();
        for (path, operations) in document["paths"].as_object().unwrap() {
            for (method, operation) in operations.as_object().unwrap() {
                described.insert((method.to_ascii_uppercase(), path.clone()));
                let id = operation["operationId"].as_str().unwrap().to_owned();
                assert!(ids.insert(id.clone()), "two calls are {id}");
            }
        }
        let table: BTreeSet<_> = TABLE
            .iter()
            .map(|line| (line.method.to_owned(), line.path.to_owned()))
            .collect();
        let missing: Vec<_> = table.difference(&described).collect();
        assert!(
            missing.is_empty(),
            "describe in openapi/described.rs: {missing:?}"
        );
        let more: Vec<_> = described.difference(&table).collect();
        assert!(more.is_empty(), "not in access::table::TABLE: {more:?}");
    }

    #[test]
    fn every_rule_is_of_a_place_that_is_there() {
        let mut all = Document::default();
        described::describe(&mut all);
        access::describe(&mut all);
        let missed = rules::state(&mut all.schemas);
        assert!(
            missed.is_empty(),
            "rules.rs names what is not there: {missed:?}"
        );
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = document();
        let text = document.to_string();
        for part in text.split("\"$ref\":\"#").skip(1) {
            let pointer = part.split('"').next().unwrap();
            assert!(document.pointer(pointer).is_some(), "{pointer}");
        }
    }

    #[test]
    fn the_checked_in_document_is_of_these_types() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto/openapi.json");
        let text = format!("{:#}\n", document());
        if std::env::var_os("WRITE_OPENAPI").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            kept == text,
            "proto/openapi.json is of other types: run `make openapi` and look at the difference"
        );
    }
}
