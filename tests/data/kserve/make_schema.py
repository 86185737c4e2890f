"""Make schema.json: what KServe and Kubernetes accept in the manifests of `onnxplain export --kserve`.

From the classes that both projects publish in their Python packages, generated from the same API definitions as the
custom resource definitions. To make it again, with the versions of NOTICE:

    pip download --no-deps kserve==0.21.0 kubernetes==32.0.1 && unzip -q 'kserve*.whl' 'kubernetes*.whl' -d packages
    python make_schema.py packages

The classes are read as text, not imported: kserve's own dependencies are large. A structural schema prunes or refuses
what it does not name, so `additionalProperties` is false everywhere; none of these types has
x-kubernetes-preserve-unknown-fields.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path

MODELS = ("kserve/models", "kubernetes/client/models")
ROOTS = ("V1alpha1ServingRuntime", "V1beta1InferenceService")
# Types whose fields may be used in a manifest; a field of any other type is left out, so that using it fails.
OPEN = {
    *ROOTS,
    *("V1alpha1ServingRuntimeSpec", "V1alpha1SupportedModelFormat", "V1beta1InferenceServiceSpec"),
    *("V1beta1PredictorSpec", "V1beta1ModelSpec", "V1beta1ModelFormat", "V1ObjectMeta", "V1Container", "V1EnvVar"),
    *("V1ContainerPort", "V1Probe", "V1GRPCAction", "V1ResourceRequirements", "V1SecurityContext", "V1Capabilities"),
    *("V1SeccompProfile", "V1beta1ExplainerSpec", "V1Volume", "V1VolumeMount", "V1EmptyDirVolumeSource"),
}
SCALARS = {
    "str": {"type": "string"},
    "bool": {"type": "boolean"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "datetime": {"type": "string"},
    "object": {"type": ["integer", "string"]},  # only ports of a probe are "object": a number or a name
}
NUMBER = r"^[+-]?([0-9]+|[0-9]+\.[0-9]*|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$"
QUANTITY = {"type": ["integer", "string"], "pattern": NUMBER}


def described(text: str, name: str) -> dict[str, object]:
    """One class as a JSON schema: types, Kubernetes' spelling of the fields, and which must be there."""
    body = next(node for node in ast.parse(text).body if isinstance(node, ast.ClassDef) and node.name == name).body
    tables = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict) and isinstance(node.targets[0], ast.Name)
    }
    spelt = tables["attribute_map"]
    fields = {spelt[key]: typed(kind, spelt[key]) for key, kind in tables["openapi_types"].items()}
    required = {spelt[key] for key in re.findall(r"Invalid value for `(\w+)`, must not be `None`", text)}
    schema: dict[str, object] = {
        "type": "object",
        "properties": {key: kind for key, kind in sorted(fields.items()) if kind is not None},
        "additionalProperties": False,
    }
    if name in ROOTS:
        required |= {"apiVersion", "kind", "metadata", "spec"}
    return {**schema, "required": sorted(required)} if required else schema


def typed(kind: str, field: str) -> dict[str, object] | None:
    """A type as the packages write it; None for one that manifests do not use."""
    if kind.startswith("list["):
        items = typed(kind[5:-1], field)
        return None if items is None else {"type": "array", "items": items}
    if kind.startswith("dict("):
        value = QUANTITY if field in ("requests", "limits") else typed(kind[5:-1].split(", ")[1], field)
        return None if value is None else {"type": "object", "additionalProperties": value}
    if kind in SCALARS:
        return dict(SCALARS[kind])
    return {"$ref": f"#/$defs/{kind}"} if kind in OPEN else None


def main(folder: Path) -> None:
    found = {}
    for name in sorted(OPEN):
        file = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower() + ".py"
        path = next(p for package in MODELS if (p := folder / package / file).is_file())
        found[name] = described(path.read_text(), name)
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$defs": found}
    target = Path(__file__).with_name("schema.json")
    target.write_text(json.dumps(schema, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
