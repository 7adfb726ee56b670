//! The OpenAPI document, built from the table of routes and the types of the contract.

use serde_json::{Map, Value, json};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::Schema;
use utoipa::{PartialSchema, ToSchema};

use super::routes::{Access, Endpoint, all};
use super::{Answer, Call};
use crate::failure::{Code, Failure};

/// A type's own schema, and those that it names.
pub type Describe = fn(&mut Vec<(String, RefOr<Schema>)>) -> Option<String>;

/// Of a type of the contract.
pub fn of<T: ToSchema + PartialSchema>(schemas: &mut Vec<(String, RefOr<Schema>)>) -> Option<String> {
    let name = T::name().into_owned();
    schemas.push((name.clone(), T::schema()));
    T::schemas(schemas);
    Some(name)
}

/// Of nothing, or of something that is not described.
pub fn none(_: &mut Vec<(String, RefOr<Schema>)>) -> Option<String> {
    None
}

/// `openapi.json`.
pub async fn get(_: &Call<'_>) -> Result<Answer, Failure> {
    Ok(Answer::bare(document()?))
}

/// The document.
pub fn document() -> Result<Value, Failure> {
    let mut schemas = Vec::new();
    let mut paths = Map::new();
    for endpoint in all() {
        let request = (endpoint.request)(&mut schemas);
        let answer = (endpoint.answer)(&mut schemas);
        let mut operations = Map::new();
        for method in endpoint.methods {
            let operation = operation(endpoint, method, request.as_deref(), answer.as_deref(), &schemas)?;
            operations.insert(method.to_lowercase(), operation);
        }
        paths.extend(endpoint.paths().into_iter().take(1).map(|path| (path, Value::Object(operations.clone()))));
    }
    of::<control_api::envelope::Problem>(&mut schemas);
    let mut components = Map::new();
    for (name, schema) in schemas {
        components.insert(name, serde_json::to_value(schema).map_err(Failure::internal)?);
    }
    Ok(json!({
        "openapi": "3.1.0",
        "info": { "title": "e3 server", "version": env!("CARGO_PKG_VERSION") },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "agent": { "type": "apiKey", "in": "header", "name": "X-Agent-Token" },
                "session": { "type": "apiKey", "in": "cookie", "name": crate::access::person::COOKIE },
                "token": { "type": "http", "scheme": "bearer" },
            },
        },
    }))
}

fn operation(
    endpoint: &Endpoint,
    method: &str,
    request: Option<&str>,
    answer: Option<&str>,
    schemas: &[(String, RefOr<Schema>)],
) -> Result<Value, Failure> {
    let mut operation = Map::new();
    let stem = endpoint.name.trim_end_matches(".php").trim_start_matches('/');
    operation.insert("operationId".into(), json!(format!("{stem}_{}", method.to_lowercase())));
    let security = match endpoint.access {
        Access::Anybody => json!([]),
        Access::Agent => json!([{ "agent": [] }]),
        Access::Person(_) => json!([{ "session": [] }, { "token": [] }]),
    };
    operation.insert("security".into(), security);
    if let Some(name) = request {
        if method == "GET" {
            operation.insert("parameters".into(), parameters(name, schemas)?);
        } else {
            let schema = json!({ "$ref": format!("#/components/schemas/{name}") });
            let content = json!({
                "application/json": { "schema": schema },
                "application/x-www-form-urlencoded": { "schema": schema },
            });
            operation.insert("requestBody".into(), json!({ "content": content }));
        }
    }
    let envelope = json!({
        "type": "object",
        "required": ["status", "success"],
        "properties": { "status": { "type": "string" }, "success": { "type": "boolean" } },
    });
    let schema = match answer {
        Some(name) => json!({ "allOf": [envelope, { "$ref": format!("#/components/schemas/{name}") }] }),
        None => envelope,
    };
    let content = json!({ "application/json": { "schema": schema } });
    let problem = json!({ "application/json": { "schema": { "$ref": "#/components/schemas/Problem" } } });
    let mut responses = Map::new();
    responses.insert("200".into(), json!({ "description": "Done", "content": content }));
    responses.insert("202".into(), json!({ "description": "Queued", "content": content }));
    for code in Code::ALL {
        let status = code.status().to_string();
        responses.entry(status).or_insert_with(|| json!({ "description": "Refused", "content": problem }));
    }
    operation.insert("responses".into(), Value::Object(responses));
    Ok(Value::Object(operation))
}

/// The fields of a type as a query.
fn parameters(name: &str, schemas: &[(String, RefOr<Schema>)]) -> Result<Value, Failure> {
    let schema = schemas.iter().find(|(other, _)| other == name).map(|(_, schema)| schema);
    let schema = serde_json::to_value(schema).map_err(Failure::internal)?;
    let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let properties = schema["properties"].as_object().cloned().unwrap_or_default();
    Ok(properties
        .into_iter()
        .map(|(name, schema)| {
            let is_required = required.contains(&name.as_str());
            json!({ "name": name, "in": "query", "required": is_required, "schema": schema })
        })
        .collect())
}
