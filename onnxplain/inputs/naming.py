"""Names given meet names wanted: inputs, columns. All of them match, each once, or an error says which do not."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from onnxplain.errors import InputError

LISTED = 8  # names in an error before "and N more"


def match(given: Sequence[str], wanted: Sequence[str], what: str, where: str, way_out: str = "") -> list[int]:
    """For each wanted name the position of the given name that is it.

    A name that no wanted one equals may differ in case from the only one that is left of that spelling. what: "input",
    "column". where: the file or "the input", for errors. way_out: a sentence. Raises InputError for names that are
    given twice, missing or not wanted.
    """
    twice = [name for n, name in enumerate(given) if name in given[:n]]
    if twice:
        raise InputError(f"{where}: {_listed(twice)} is there twice; each {what} has one name. {way_out}".rstrip())
    found = {name: n for n, name in enumerate(given) if name in wanted}
    left = [name for name in given if name not in found]
    for name in list(left):
        alike = [want for want in wanted if want not in found and want.casefold() == name.casefold()]
        if len(alike) == 1 and sum(other.casefold() == name.casefold() for other in left) == 1:
            found[alike[0]] = given.index(name)
            left.remove(name)
    missing = [name for name in wanted if name not in found]
    if not left and not missing:
        return [found[name] for name in wanted]
    parts = [f"no {what} is named {_listed(left)}{_near(left, missing or wanted)}"] if left else []
    parts += [f"{what} {_listed(missing)} is missing"] if missing else []
    raise InputError(f"{where}: {'; '.join(parts)}. {way_out}".rstrip())


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(repr(name[:100]) for name in names[:LISTED]) + more


def _near(names: Sequence[str], known: Sequence[str]) -> str:
    near = [n for name in names[:LISTED] for n in difflib.get_close_matches(name, known, n=1, cutoff=0.6)]
    return f" (did you mean {', '.join(dict.fromkeys(near))}?)" if near else ""
