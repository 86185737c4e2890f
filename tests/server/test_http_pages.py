"""The OpenAPI document tells of every address and nothing else, and the page needs nothing but the server."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import jsonschema
import pytest

from onnxplain.server.http.errors import STATUS
from onnxplain.server.http.openapi import document
from onnxplain.server.http.pages import EVERYTHING, _page
from onnxplain.server.tokens import METHOD_SCOPES

# What OpenAPI 3.1 asks of the parts that are used here (spec.openapis.org/oas/3.1/schema), so far as shapes go.
OPERATION = {
    "type": "object",
    "required": ["operationId", "summary", "parameters", "responses"],
    "properties": {
        "parameters": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "in", "schema"],
                "properties": {"in": {"enum": ["path", "query", "header"]}, "schema": {"type": "object"}},
                "if": {"properties": {"in": {"const": "path"}}},
                "then": {"required": ["required"], "properties": {"required": {"const": True}}},
            },
        },
        "requestBody": {"type": "object", "required": ["content"], "properties": {"content": {"minProperties": 1}}},
        "responses": {"type": "object", "required": ["200", "default"]},
        "security": {"type": "array", "items": {"type": "object"}},
    },
}
OPENAPI = {
    "type": "object",
    "required": ["openapi", "info", "paths", "components"],
    "properties": {
        "openapi": {"const": "3.1.0"},
        "info": {"type": "object", "required": ["title", "version"]},
        "paths": {
            "type": "object",
            "propertyNames": {"pattern": "^/"},
            "additionalProperties": {"propertyNames": {"enum": ["get", "post"]}, "additionalProperties": OPERATION},
        },
    },
}


@pytest.fixture(scope="module")
def described():
    return json.loads(json.dumps(document(EVERYTHING)))


def test_it_is_openapi(described):
    jsonschema.validate(described, OPENAPI)
    for schema in described["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    for reference in re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(described)):
        place = described
        for part in reference.split("/"):
            place = place[part]
    ids = [o["operationId"] for verbs in described["paths"].values() for o in verbs.values()]
    assert len(set(ids)) == len(ids)


def test_every_address_is_in_it_with_its_names_and_scope(described):
    told = {(verb.upper(), path) for path, verbs in described["paths"].items() for verb in verbs}
    assert told == {(endpoint.verb, endpoint.path) for endpoint in EVERYTHING}
    for endpoint in EVERYTHING:
        operation = described["paths"][endpoint.path][endpoint.verb.lower()]
        names = [p["name"] for p in operation["parameters"] if p["in"] == "path"]
        assert names == re.findall(r"\{(\w+)\}", endpoint.path)
        assert ("requestBody" in operation) == bool(endpoint.body)
        assert operation.get("x-scope") == METHOD_SCOPES[endpoint.name]


def test_errors_are_as_they_are_told(described):
    assert set(described["components"]["schemas"]["Error"]["properties"]["code"]["enum"]) == set(STATUS)


def test_the_page_fetches_nothing_from_elsewhere():
    page, policy = _page()

    found = []

    class Links(HTMLParser):
        def handle_starttag(self, tag, attrs):
            found.extend(value for name, value in attrs if name in ("src", "href", "action"))
            assert not any(name.startswith("on") or name == "style" for name, _ in attrs), tag

    links = Links()
    links.feed(page.decode())
    assert found == ["openapi.json"]
    assert "unsafe" not in policy and policy.count("sha256-") == 2 and "default-src 'none'" in policy
    assert b"innerHTML" not in page
