//! The description of the admin API, derived from its table of operations.

use serde_json::{Map, Value, json};

use super::problem::Problem;
use super::route::{Answer, Call, Needs, Route, Where};
use super::routes;

/// `GET /admin/v1/openapi.json`
pub(crate) async fn get(_call: Call) -> Result<Answer, Problem> {
    Ok(Answer::ok(document()))
}

/// Returns the description as it is committed: indented, with a line feed at its end.
pub(crate) fn text() -> String {
    format!("{:#}\n", document())
}

fn document() -> Value {
    let mut paths = Map::new();
    for route in routes() {
        let item = paths
            .entry(route.path)
            .or_insert_with(|| json!({"parameters": parameters(route.path)}));
        item[route.method.to_ascii_lowercase()] = operation(&route);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Sluice admin API",
            "version": "1",
            "description": "Who may call an operation stands in `x-sluice-permission`, and where it must be allowed in `x-sluice-where`."
        },
        "paths": paths,
        "components": {
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A session token or an admin token."
                }
            },
            "schemas": {
                "Problem": {
                    "type": "object",
                    "required": ["type", "title", "status", "detail", "code", "request_id"],
                    "properties": {
                        "type": {"type": "string"},
                        "title": {"type": "string"},
                        "status": {"type": "integer"},
                        "detail": {"type": "string"},
                        "code": {"type": "string"},
                        "request_id": {"type": "string"},
                        "errors": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "required": ["pointer", "detail"],
                                "properties": {
                                    "pointer": {"type": "string"},
                                    "detail": {"type": "string"}
                                }
                            }
                        }
                    }
                }
            }
        }
    })
}

fn parameters(path: &str) -> Vec<Value> {
    let names = path.split('/').filter_map(|segment| {
        let name = segment.strip_prefix('{')?;
        name.strip_suffix('}')
    });
    names
        .map(|name| {
            json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}})
        })
        .collect()
}

fn operation(route: &Route) -> Value {
    let words = route.path.split('/').filter(|word| !word.is_empty());
    let name = words.collect::<Vec<_>>().join("_").replace(['{', '}'], "");
    let mut operation = json!({
        "operationId": format!("{}_{}", route.method.to_ascii_lowercase(), name.replace('-', "_")),
        "responses": {
            "2XX": {"description": "Done."},
            "default": {
                "description": "Not done.",
                "content": {
                    "application/problem+json": {
                        "schema": {"$ref": "#/components/schemas/Problem"}
                    }
                }
            }
        }
    });
    if route.method == "PATCH" {
        operation["parameters"] = json!([{
            "name": "If-Match",
            "in": "header",
            "required": true,
            "schema": {"type": "string"}
        }]);
    }
    match route.needs {
        None => {}
        Some(Needs::SignedIn) => operation["security"] = json!([{"bearer": []}]),
        Some(Needs::Permission(permission, place)) => {
            operation["security"] = json!([{"bearer": []}]);
            operation["x-sluice-permission"] = permission.as_str().into();
            operation["x-sluice-where"] = match place {
                Where::Platform => "platform",
                Where::PathTenant => "path_tenant",
                Where::OwnReach => "own_reach",
            }
            .into();
        }
    }
    operation
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_description_is_up_to_date() {
        let committed = include_str!("../../../../docs/openapi.json");
        assert!(
            committed == text(),
            "run `cargo run -p sluice-api -- admin openapi > docs/openapi.json`"
        );
    }
}
