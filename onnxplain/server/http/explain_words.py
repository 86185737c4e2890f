"""What a client wants explained and how: from the query, a form, or JSON, one set of words."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import FormParser, parse_options_header

from onnxplain.client.dialogues import recipe_message
from onnxplain.errors import InputError, UnknownName, UsageError
from onnxplain.server.http.body import json_object, kind_of
from onnxplain.server.http.infer_messages import text
from onnxplain.server.http.request import HttpRequest
from onnxplain.server.http.tensors import json_array
from onnxplain.server.http.uploads import Upload, upload
from onnxplain.v1 import explainer_pb2 as v1
from onnxplain.wire.tensors import INPUTS, RANK, Array

MULTIPART = "multipart/form-data"
WORDS = ("recipe", "method", "explain", "head", "format", "palette", "draw")  # one text each
NUMBERS: Mapping[str, type] = {"priority": int, "queue_timeout": float}  # as ExplainRequest has them; seconds
LISTS = ("target", "attribute_to", "outputs")  # several
INPUT = ("image", "inputs")
FORM_FIELDS = 64


@dataclass(frozen=True)
class ExplainWords:
    """The words of one request; "" and () are the model's own choice. options: of the method, by name."""

    target: tuple[str, ...] = ()
    recipe: str | Mapping[str, Any] = ""
    method: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    explain: str = ""
    head: str = ""
    attribute_to: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    ledger: bool = False
    priority: int = 0
    queue_timeout: float | None = None
    format: str = ""
    palette: str = ""
    draw: str = ""

    @property
    def targets(self) -> tuple[str, ...]:
        """What is to be explained, in words."""
        return self.target or ("predicted",)

    def refuse_drawing(self) -> None:
        """Raise UsageError for words about drawings, where the answer is numbers."""
        for name in ("format", "palette", "draw"):
            if getattr(self, name):
                raise UsageError(f"{name} says nothing here; POST /v2/models/M/explain draws.").at(name)

    def message(self, model: str, version: str, default: str) -> v1.ExplainRequest:
        """The request without its inputs. default: the method of the model's own recipe."""
        request = v1.ExplainRequest(
            model=v1.ModelRef(name=model, version=version),
            targets=[v1.Target(output=self.explain, expression=word) for word in self.targets],
            recipe=recipe_message(default, self.method or None, self.recipe or None, self.options, self.head),
            attribute_to=self.attribute_to,
            outputs=self.outputs,
            diagnostics=v1.DIAGNOSTICS_LAYERS if self.ledger else v1.DIAGNOSTICS_SUMMARY,
            priority=self.priority,
        )
        if self.queue_timeout is not None:
            request.queue_timeout.FromNanoseconds(int(self.queue_timeout * 1e9))
        return request


def asked(request: HttpRequest) -> tuple[ExplainWords, Upload | dict[str, Array]]:
    """The words of a request, and its input: a file, or arrays by name. The body's words win over the query's."""
    words = from_pairs(ExplainWords(), request.query)
    if request.media_type == MULTIPART:
        return _form(words, request)
    if request.media_type == "application/json" or request.body.lstrip()[:1] == b"{":
        body = json_object(request.body, request.most)
        given = {name: body.pop(name) for name in INPUT if name in body}
        words = from_json(words, body)
        if len(given) != 1:
            raise InputError('give "image" (base64) or "inputs" (tensors as for infer).').at("inputs")
        return words, _image(given["image"]) if "image" in given else tensors(given["inputs"])
    return words, upload(request.body, request.media_type)


def from_pairs(before: ExplainWords, pairs: Iterable[tuple[str, str]]) -> ExplainWords:
    """Words of a query or a form. What is no word of ours is an option of the method, as its text."""
    lists: dict[str, Any] = {}
    words: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for name, value in pairs:
        if name in LISTS:
            lists[name] = (*lists.get(name, ()), value)
        elif name in words or name in options:
            raise InputError(f"{name[:100]} is given twice.").at(name[:100])
        elif name == "ledger":
            if value.lower() not in ("", "true", "false", "1", "0"):
                raise InputError(f"ledger: {value[:40]!r}, expected true or false.").at("ledger")
            words[name] = value.lower() in ("", "true", "1")
        elif name in NUMBERS:
            try:
                words[name] = _number(NUMBERS[name](value), name)
            except ValueError:
                raise InputError(f"{name}: {value[:40]!r}, expected a number.").at(name) from None
        elif name in WORDS:
            words[name] = value
        elif value != "":  # an empty field of a form says nothing
            options[name] = value
    return replace(before, **words, **lists, options={**before.options, **options})


def from_json(before: ExplainWords, body: Mapping[str, Any]) -> ExplainWords:
    """Words of a JSON body. Raises UnknownName for what is none."""
    found: dict[str, Any] = {}
    for name, value in body.items():
        if name in LISTS:
            several = value if isinstance(value, list) else [value]
            if any(not isinstance(word, str | int) or isinstance(word, bool) for word in several):
                raise InputError(f"{name}: expected a text or a list of texts.").at(name)
            found[name] = tuple(text(str(word), name) for word in several)
        elif name == "recipe" and isinstance(value, dict):
            found[name] = _struct(value, name)
        elif name in WORDS:
            found[name] = text(value, name)
        elif name in NUMBERS:
            found[name] = _number(value, name)
        elif name == "ledger":
            if not isinstance(value, bool):
                raise InputError(f"ledger: {kind_of(value)}, expected true or false.").at("ledger")
            found[name] = value
        elif name == "options":
            if not isinstance(value, dict):
                raise InputError(f"options: {kind_of(value)}, expected an object.").at("options")
            found[name] = {**before.options, **_struct(value, name)}
        else:
            raise UnknownName("key", name[:100], [*LISTS, *WORDS, *NUMBERS, "ledger", "options", *INPUT]).at(name[:100])
    return replace(before, **found)


def tensors(given: Any) -> dict[str, Array]:
    """Arrays of a list of JSON tensors, by name."""
    if not isinstance(given, list) or not 0 < len(given) <= INPUTS or not all(isinstance(t, dict) for t in given):
        raise InputError(f"inputs: expected an array of 1 to {INPUTS} tensors.").at("inputs")
    arrays: dict[str, Array] = {}
    for n, tensor in enumerate(given):
        where = f"inputs[{n}]"
        for key in tensor:
            if key not in ("name", "datatype", "shape", "data"):
                raise UnknownName("key", f"{where}.{key}"[:100], ["name", "datatype", "shape", "data"]).at(where)
        name, shape = text(tensor.get("name"), f"{where}.name"), tensor.get("shape")
        if name in arrays:
            raise InputError(f"{where}.name: {name[:100]!r} is given twice.").at(f"{where}.name")
        if not isinstance(shape, list) or len(shape) > RANK or any(type(side) is not int for side in shape):
            raise InputError(f"{where}.shape: a list of whole numbers is missing.").at(f"{where}.shape")
        if "data" not in tensor:
            raise InputError(f"{where}.data is missing.").at(f"{where}.data")
        arrays[name] = json_array(text(tensor.get("datatype"), f"{where}.datatype"), shape, tensor["data"], where)
    return arrays


def _form(words: ExplainWords, request: HttpRequest) -> tuple[ExplainWords, Upload]:
    """Words and the one file of a form."""
    pairs: list[tuple[str, str]] = []
    files: list[tuple[bytes, str]] = []

    def on_field(found: Any) -> None:
        if len(pairs) >= FORM_FIELDS:
            raise InputError(f"the form has more than {FORM_FIELDS} fields.")
        pairs.append((found.field_name.decode(), (found.value or b"").decode()))

    def on_file(found: Any) -> None:
        if files:
            raise InputError("the form has several files; send one at a time.").at("file")
        found.file_object.seek(0)
        files.append((found.file_object.read(), (found.file_name or b"").decode(errors="replace")))

    _, parameters = parse_options_header(request.headers.get("content-type"))
    limits = {"MAX_MEMORY_FILE_SIZE": request.most + 1, "MAX_BODY_SIZE": request.most}
    try:
        parser = FormParser(MULTIPART, on_field, on_file, boundary=parameters.get(b"boundary"), config=limits)
        parser.write(request.body)
        parser.finalize()
    except (FormParserError, ValueError) as error:
        raise InputError(f"the form cannot be read ({error}).") from error
    if not files:
        raise InputError("the form has no file in it: curl -F file=@picture.png").at("file")
    content, name = files[0]
    return from_pairs(words, pairs), upload(content, name=name)


def _image(value: Any) -> Upload:
    try:
        content = base64.b64decode(text(value, "image"), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"image: not base64 ({error}).").at("image") from error
    return upload(content)


def _number(value: Any, name: str) -> Any:
    """A number that may go into the message. Raises InputError."""
    if type(value) not in (int, NUMBERS[name]) or not 0 <= value < 2**31:
        raise InputError(f"{name}: {str(value)[:40]}, expected a number of 0 or more.").at(name)
    return value


def _struct(value: Any, where: str, depth: int = 0) -> Any:
    """A table as google.protobuf.Struct takes it. Raises UsageError for what it cannot hold."""
    if depth > 8:
        raise UsageError(f"{where}: nested too deeply.").at(where)
    if isinstance(value, dict):
        return {text(name, where): _struct(inner, where, depth + 1) for name, inner in value.items()}
    if isinstance(value, list):
        return [_struct(inner, where, depth + 1) for inner in value]
    if isinstance(value, str):
        return text(value, where)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**53:
        raise UsageError(f"{where}: {str(value)[:40]} is too large a number.").at(where)
    return value
