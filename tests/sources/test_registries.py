"""Laws of the registries that `onnxplain serve --registry` takes."""

from __future__ import annotations

import pytest

from onnxplain.errors import UsageError
from onnxplain.sources import REGISTRIES, from_address
from onnxplain.sources.registry import examples


@pytest.mark.parametrize("scheme", REGISTRIES)
def test_a_scheme_opens_what_its_kind_gives_as_example(scheme, tmp_path):
    kind = REGISTRIES[scheme]
    address = kind.example.replace("HOST:PORT", "127.0.0.1:1")
    source = from_address(f"{scheme}://{address.partition('://')[2]}", tmp_path)
    assert source.name and source.problems == {}


@pytest.mark.parametrize("scheme", REGISTRIES)
def test_an_address_with_credentials_is_refused_without_repeating_them(scheme, tmp_path):
    example = REGISTRIES[scheme].example.replace("HOST:PORT", "127.0.0.1:1").partition("://")[2].lstrip("/")
    with pytest.raises(UsageError) as error:
        from_address(f"{scheme}://me:secret@{example}", tmp_path)
    assert "secret" not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("address", ["http://h?model=a", "ftp://b/c", "mlflow://h", "nothing", ""])
def test_an_address_of_no_known_scheme_is_one_line_with_examples(address, tmp_path):
    with pytest.raises(UsageError, match="is no registry") as error:
        from_address(address, tmp_path)
    assert all(example in str(error.value) for example in examples()) and "\n" not in str(error.value)
