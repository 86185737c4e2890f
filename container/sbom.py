"""What is in the image, as CycloneDX JSON: `python sbom.py ENVIRONMENT DPKG_STATUS MODELS OUTPUT`.

Python distributions, Debian packages, models with the digests of their files. Needs cyclonedx-python-lib, in an
environment of its own that is no part of the image.
"""

from __future__ import annotations

import hashlib
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

from cyclonedx.factory.license import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

FIELD = re.compile(r"^(Package|Version|Architecture|Status): (.*)$", re.M)


def python_packages(environment: Path) -> Iterator[Component]:
    """The distributions of a virtual environment, with the licence that each states."""
    (packages,) = environment.glob("lib/python3*/site-packages")
    for found in distributions(path=[str(packages)]):
        name, stated = found.metadata["Name"], found.metadata.get("License-Expression") or found.metadata.get("License")
        licences = [LicenseFactory().make_from_string(stated)] if stated and "\n" not in stated else []
        url = PackageURL("pypi", None, re.sub(r"[-_.]+", "-", name).lower(), found.version)
        yield Component(
            name=name, version=found.version, type=ComponentType.LIBRARY, licenses=licences, purl=url, bom_ref=str(url)
        )


def debian_packages(status: Path) -> Iterator[Component]:
    """What dpkg has installed."""
    for block in status.read_text("utf-8").split("\n\n"):
        fields = dict(FIELD.findall(block))
        if fields.get("Status") == "install ok installed":
            url = PackageURL("deb", None, fields["Package"], fields["Version"], {"arch": fields["Architecture"]})
            yield Component(
                name=fields["Package"],
                version=fields["Version"],
                type=ComponentType.LIBRARY,
                purl=url,
                bom_ref=str(url),
            )


def models(folder: Path) -> Iterator[Component]:
    """Every model file, with its digest and the licence that model.toml names."""
    for file in sorted(folder.glob("*/*/*.onnx")):
        name, version = file.parts[-3:-1]
        settings = file.parents[1] / "model.toml"
        table = tomllib.loads(settings.read_text("utf-8")) if settings.is_file() else {}
        stated = table.get("licence", {}).get("name")
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        yield Component(
            name=name,
            version=version,
            type=ComponentType.MACHINE_LEARNING_MODEL,
            licenses=[LicenseFactory().make_from_string(stated)] if stated else [],
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest)],
            bom_ref=f"model/{name}/{version}",
        )


def main(environment: Path, status: Path, folder: Path, output: Path) -> None:
    """Write it, valid by CycloneDX' own schema."""
    bom = Bom()
    bom.metadata.component = Component(name="onnxplain", type=ComponentType.CONTAINER, bom_ref="image")
    parts = [*python_packages(environment), *debian_packages(status), *models(folder)]
    bom.components.update(parts)
    bom.register_dependency(bom.metadata.component, parts)
    text = JsonV1Dot6(bom).output_as_string(indent=1)
    if wrong := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        raise SystemExit(f"no valid CycloneDX: {wrong}")
    output.write_text(text, encoding="utf-8")
    print(f"{output}: {len(parts)} components")


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:5]))
