//! The OpenAPI document and the router say the same: every operation of the document parses to its route, every
//! route is in the document, every status and parameter too.

use serde_json::Value;
use std::collections::BTreeSet;
use wire::Code;
use wire::http::{Limits, Parsed, Route, openapi, parse};

const LIMITS: Limits = Limits {
    head_bytes_max: 4096,
    body_bytes_max: 4096,
    payload_bytes_max: 4096,
};

fn document() -> Value {
    serde_json::from_str(openapi()).expect("the document is JSON")
}

/// The route's name as operationIds have it. Adding a variant fails to compile here until it is in the document.
fn operation_id(route: &Route<'_>) -> &'static str {
    match route {
        Route::Append { .. } => "appendRecord",
        Route::AppendMany { .. } => "appendMany",
        Route::Delete { .. } => "deleteRecord",
        Route::Get { .. } => "getRecord",
        Route::History { .. } => "getHistory",
        Route::Scan { .. } => "scan",
        Route::Tail { .. } => "tail",
        Route::PutStream { .. } => "putStream",
        Route::GetStream { .. } => "getStream",
        Route::ListStreams => "listStreams",
        Route::Topology => "topology",
        Route::Healthz => "healthz",
        Route::Readyz => "readyz",
        Route::Metrics => "metrics",
        Route::OpenApi => "openapi",
    }
}

const ROUTES: usize = 15;

/// (method, path, operation)
fn operations(document: &Value) -> Vec<(String, String, Value)> {
    let mut all = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            all.push((method.to_uppercase(), path.clone(), operation.clone()));
        }
    }
    all
}

fn resolve<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    match value["$ref"].as_str() {
        Some(reference) => document
            .pointer(reference.strip_prefix('#').unwrap())
            .unwrap_or_else(|| panic!("{reference} leads nowhere")),
        None => value,
    }
}

/// Names of an operation's parameters in `place`.
fn parameters(document: &Value, operation: &Value, place: &str) -> BTreeSet<String> {
    let list = operation["parameters"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let resolved = list.iter().map(|parameter| resolve(document, parameter));
    resolved
        .filter(|parameter| parameter["in"] == place)
        .map(|parameter| parameter["name"].as_str().unwrap().to_owned())
        .collect()
}

fn request(method: &str, target: &str) -> String {
    format!("{method} {target} HTTP/1.1\r\nHost: h\r\nContent-Type: application/x-ndjson\r\n\r\n")
}

#[test]
fn every_operation_parses_to_its_route_and_every_route_is_there() {
    let document = document();
    let mut found = BTreeSet::new();
    for (method, path, operation) in operations(&document) {
        let target = path.replace("{stream}", "s").replace("{key}", "k");
        let text = request(&method, &target);
        let Parsed::Request { request, .. } = parse(text.as_bytes(), &LIMITS) else {
            panic!("{method} {path} does not parse");
        };
        let id = operation_id(&request.route);
        assert_eq!(operation["operationId"], id, "{method} {path}");
        assert!(found.insert(id), "{id} is there twice");
    }
    assert_eq!(found.len(), ROUTES);
}

#[test]
fn methods_that_are_not_there_are_refused_with_those_that_are() {
    let document = document();
    for (path, methods) in document["paths"].as_object().unwrap() {
        let target = path.replace("{stream}", "s").replace("{key}", "k");
        let mut documented: BTreeSet<String> = methods
            .as_object()
            .unwrap()
            .keys()
            .map(|method| method.to_uppercase())
            .collect();
        if documented.contains("GET") {
            documented.insert("HEAD".to_owned());
        }
        for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
            match parse(request(method, &target).as_bytes(), &LIMITS) {
                Parsed::Request { .. } => assert!(documented.contains(method), "{method} {path}"),
                Parsed::Refused {
                    refusal,
                    allow: Some(allow),
                    ..
                } => {
                    assert_eq!(refusal.code, Code::MethodNotAllowed);
                    assert!(!documented.contains(method), "{method} {path}");
                    let allowed: BTreeSet<String> = allow.split(", ").map(str::to_owned).collect();
                    assert_eq!(allowed, documented, "{path}");
                }
                other => panic!("{method} {path}: {other:?}"),
            }
        }
    }
}

#[test]
fn query_parameters_are_those_that_the_router_takes() {
    let document = document();
    let every: BTreeSet<String> = operations(&document)
        .iter()
        .flat_map(|(_, _, operation)| parameters(&document, operation, "query"))
        .collect();
    assert_eq!(every.len(), 5);
    for (method, path, operation) in operations(&document) {
        let documented = parameters(&document, &operation, "query");
        let target = path.replace("{stream}", "s").replace("{key}", "k");
        for name in &every {
            // A value that each of them takes.
            let value = match name.as_str() {
                "durability" => "buffered",
                "cursor" => "",
                _ => "1",
            };
            let text = request(&method, &format!("{target}?{name}={value}"));
            let taken = matches!(parse(text.as_bytes(), &LIMITS), Parsed::Request { .. });
            assert_eq!(taken, documented.contains(name), "{method} {path}?{name}");
        }
        let in_path: BTreeSet<String> = ["stream", "key"]
            .into_iter()
            .filter(|name| path.contains(&format!("{{{name}}}")))
            .map(str::to_owned)
            .collect();
        assert_eq!(parameters(&document, &operation, "path"), in_path);
    }
}

#[test]
fn every_status_and_code_is_documented_and_every_reference_leads_somewhere() {
    let document = document();
    let mut documented = BTreeSet::new();
    for (method, path, operation) in operations(&document) {
        for (status, response) in operation["responses"].as_object().unwrap() {
            documented.insert(status.parse::<u16>().unwrap());
            let response = resolve(&document, response);
            assert!(
                response["description"].is_string(),
                "{method} {path} {status}"
            );
        }
    }
    let names = &document["components"]["schemas"]["Problem"]["properties"]["code"]["enum"];
    for code in Code::ALL {
        assert!(documented.contains(&code.http_status()), "{code:?}");
        let named = names
            .as_array()
            .unwrap()
            .iter()
            .any(|name| name == code.name());
        assert_eq!(named, code != Code::Ok, "{code:?}");
    }
    for good in [200, 201, 204, 304] {
        assert!(documented.contains(&good));
    }
    walk(&document, &document);
}

fn walk(document: &Value, value: &Value) {
    resolve(document, value);
    match value {
        Value::Object(fields) => fields.values().for_each(|value| walk(document, value)),
        Value::Array(items) => items.iter().for_each(|value| walk(document, value)),
        _ => {}
    }
}
