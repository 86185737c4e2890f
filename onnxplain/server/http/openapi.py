"""The OpenAPI document of all endpoints, made from their table."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from onnxplain import __version__
from onnxplain.server.http.answers import DRAWINGS, MEDIA, PNG
from onnxplain.server.http.body import HEAD_LENGTH
from onnxplain.server.http.errors import STATUS
from onnxplain.server.http.explain_words import LISTS, MULTIPART, NUMBERS, WORDS
from onnxplain.server.http.infer_messages import BINARY
from onnxplain.server.http.reply import JSON
from onnxplain.server.http.request import TIMEOUT
from onnxplain.server.http.routes import Endpoint
from onnxplain.server.tokens import METHOD_SCOPES
from onnxplain.wire.tensors import DATATYPES

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
ANY_OBJECT: Schema = {"type": "object"}
OF_WORDS = {
    "priority": "How urgent its runs are: 1 the most, 10 the least, 0 as usual.",
    "queue_timeout": "Seconds that each of its runs may wait for its turn.",
    "target": "What is explained: predicted (the default), top3, a class name, an index, 'A vs B'. Repeatable.",
    "recipe": "A recipe by name; stands alone.",
    "method": "A method by name; its options are further parameters, such as steps=50.",
    "explain": "The tensor to explain, where it is not the model's own choice.",
    "head": "cut: step back over a final softmax; keep: explain the output itself.",
    "attribute_to": "A tensor to attribute to. Repeatable.",
    "outputs": "A forward tensor to return as well. Repeatable.",
    "format": "The form of the answer; else by the Accept header.",
    "palette": "Colours of a drawing: bwr, rdbu, seismic; inferno, viridis, grey.",
    "draw": "What a PNG shows: overlay (one row over its photo), map (one row), grid (all rows).",
}
CHOICES = {"head": ["cut", "keep"], "format": list(MEDIA), "draw": list(DRAWINGS)}
BASE = "http://localhost:8000"
CURL = {
    "": "curl {url}",
    "json": "curl -X POST {url}",
    "infer": """curl {url} -d '{{"inputs": [{{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}}]}}'""",
    "explain": "curl -o why.png '{url}?format=png' --data-binary @picture.png",
    "predict": """curl {url} -d '{{"instances": [[1, 2, 3, 4]]}}'""",
}


def document(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """OpenAPI 3.1 of the endpoints."""
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.verb.lower()] = _operation(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "onnxplain",
            "version": __version__,
            "summary": "Answers of ONNX models, and the reasons for them.",
            "description": "The Open Inference Protocol with Triton's additions, KServe's first protocol, and "
            "explanations of pictures. Every address stands for a method of the gRPC services.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "responses": {"error": _content("One line that says what is wrong.", JSON, _ref("Error"))},
        },
    }


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    names = re.findall(r"\{(\w+)\}", endpoint.path)
    parameters: list[Schema] = [{"name": n, "in": "path", "required": True, "schema": TEXT} for n in names]
    parameters.append({"name": "x-request-id", "in": "header", "schema": TEXT})
    seconds = {"type": "number", "exclusiveMinimum": 0}
    parameters.append({"name": TIMEOUT, "in": "header", "description": "Seconds to wait.", "schema": seconds})
    if endpoint.body == "infer":
        length = {"type": "integer", "minimum": 0}
        parameters.append(
            {"name": HEAD_LENGTH, "in": "header", "description": "Bytes of JSON before the data.", "schema": length}
        )
    if endpoint.body == "explain":
        parameters += _words()
    place = "_".join(re.findall(r"\w+", endpoint.path)) or "root"
    operation: dict[str, Any] = {
        "operationId": f"{endpoint.verb.lower()}_{place}",
        "summary": endpoint.summary,
        "tags": ["v1" if endpoint.path.startswith("/v1") else "v2" if endpoint.path.startswith("/v2") else "pages"],
        "parameters": parameters,
        "responses": {
            "200": _answer(endpoint),
            "default": {"$ref": "#/components/responses/error"},
        },
        "x-grpc-method": endpoint.name,
        "x-codeSamples": [{"lang": "curl", "source": CURL[endpoint.body].format(url=BASE + endpoint.path)}],
    }  # fmt: skip
    if METHOD_SCOPES.get(endpoint.name) is not None:
        operation["security"] = [{"token": []}, {}]
        operation["x-scope"] = METHOD_SCOPES[endpoint.name]
    if endpoint.body:
        operation["requestBody"] = _body(endpoint)
    return operation


def _words() -> list[Schema]:
    """The words of a question as parameters of the query."""
    found: list[Schema] = [
        {"name": "ledger", "in": "query", "description": "Book where relevance went, node by node.",
         "schema": {"type": "boolean"}}
    ]  # fmt: skip
    for name in NUMBERS:
        found.append({"name": name, "in": "query", "description": OF_WORDS[name], "schema": _NUMBERS[name]})
    for name in (*LISTS, *WORDS):
        text = {**TEXT, "enum": CHOICES[name]} if name in CHOICES else TEXT
        schema = {"type": "array", "items": text} if name in LISTS else text
        found.append({"name": name, "in": "query", "description": OF_WORDS[name], "schema": schema})
    return found


def _body(endpoint: Endpoint) -> Schema:
    of = "Explain" if endpoint.body == "explain" else "Infer" if endpoint.body == "infer" else ""
    schema = _ref(f"{of}Request") if of else _ref("Rows") if endpoint.body == "predict" else ANY_OBJECT
    content: Schema = {JSON: {"schema": schema}}
    if endpoint.body == "infer":
        content[BINARY] = {"schema": {"description": "JSON, then the bytes of its tensors in order."}}
    if endpoint.body == "explain":
        for media in (PNG, "image/jpeg", "image/bmp", "image/webp", "text/csv", "application/x-npy"):
            content[media] = {"schema": {"description": "The file itself."}}
        file = {"type": "object", "required": ["file"], "properties": {"file": {"type": "string", "format": "binary"}}}
        content[MULTIPART] = {"schema": {**file, "additionalProperties": TEXT}}
    return {"required": endpoint.body != "json", "content": content}


def _answer(endpoint: Endpoint) -> Schema:
    if endpoint.body == "explain":
        answer = _content("The reasons.", JSON, _ref("Explanation"))
        answer["content"] |= {media: {"schema": {}} for media in MEDIA.values() if media != JSON}
        return answer
    if endpoint.body == "infer":
        answer = _content("The outputs.", JSON, _ref("InferResponse"))
        answer["content"][BINARY] = {"schema": {"description": f"JSON of {HEAD_LENGTH} bytes, then the outputs'."}}
        return answer
    if endpoint.path == "/docs":
        return _content("A page.", "text/html", TEXT)
    return _content("What was asked for.", JSON, {})


def _content(text: str, media: str, schema: Schema) -> Schema:
    return {"description": text, "content": {media: {"schema": schema}}}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _fields(required: Sequence[str] = (), **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, **({"required": list(required)} if required else {})}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


_TENSOR = {"name": TEXT, "datatype": {**TEXT, "enum": list(DATATYPES)}, "shape": _list({"type": "integer"})}
_VALUES: Schema = {"description": "Elements in row-major order, flat or nested as the shape."}
_NUMBERS: dict[str, Any] = {
    name: {"type": "integer" if kind is int else "number", "minimum": 0} for name, kind in NUMBERS.items()
}
_WORDS: dict[str, Any] = {**_NUMBERS, **{name: _list(TEXT) for name in LISTS}, **{name: TEXT for name in WORDS}}
SCHEMAS: dict[str, Schema] = {
    "Error": _fields(["error"], error=TEXT, code={**TEXT, "enum": list(STATUS)}, details=_list(ANY_OBJECT)),
    "Tensor": _fields(["name", "datatype", "shape"], **_TENSOR, data=_VALUES, parameters=ANY_OBJECT),
    "InferRequest": _fields(
        ["inputs"], id=TEXT, parameters=ANY_OBJECT, inputs=_list(_ref("Tensor")),
        outputs=_list(_fields(["name"], name=TEXT, parameters=ANY_OBJECT)),
    ),
    "InferResponse": _fields(
        ["model_name", "outputs"], model_name=TEXT, model_version=TEXT, id=TEXT, parameters=ANY_OBJECT,
        outputs=_list(_ref("Tensor")),
    ),
    "Rows": _fields(
        instances=_list({"description": "One row: its values, or an object of inputs by name."}),
        inputs={"description": "Whole inputs: an object by name, or the values of the only one."},
    ),
    "ExplainRequest": _fields(
        image={**TEXT, "contentEncoding": "base64"}, inputs=_list(_ref("Tensor")), options=ANY_OBJECT,
        ledger={"type": "boolean"}, **_WORDS,
    ),
    "Explanation": _fields(
        ["attributions", "targets", "scores"], model_name=TEXT, model_version=TEXT, method=TEXT, recipe=ANY_OBJECT,
        explained=TEXT, samples={"type": "integer"}, targets=_list(ANY_OBJECT), classes=_list(_list(ANY_OBJECT)),
        scores=_ref("Tensor"), attributions=_list(_ref("Tensor")), outputs=_list(_ref("Tensor")),
        standard_errors=_list(_ref("Tensor")), standard_error={"type": ["number", "string", "null"]},
        conservation=_list(ANY_OBJECT), where=_list(ANY_OBJECT), warnings=_list(TEXT), provenance=ANY_OBJECT,
    ),
}  # fmt: skip
