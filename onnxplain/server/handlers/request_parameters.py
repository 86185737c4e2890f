"""Parameters of a ModelInfer request: ours by name; those of others that ask for what is done anyway; no others.

A parameter that is not honoured is refused by its name: who sends one expects that it changes the answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from onnxplain.errors import InputError, OnnxplainError, UnknownName, UsageError
from onnxplain.server.call import CALL

PREFIX = "onnxplain_"  # of our request parameters
OWN = ("target", "target_index")  # behind the prefix
SCHEDULING = ("priority", "timeout")  # of the request's runs: see `ask_for_turn`
NEVER = {  # what others' servers know by these names, and why it is not here
    "sequence_id": "requests of a sequence are not kept together here",
    "sequence_start": "requests of a sequence are not kept together here",
    "sequence_end": "requests of a sequence are not kept together here",
    "headers": "headers are gRPC's metadata or HTTP's own",
    "classification": "classes are not ranked here; ask for the output itself",
    "shared_memory_region": "there is no shared memory here; tensors are sent",
    "binary_data": "replies are always raw",
    "binary_data_output": "replies are always raw",
}
SAID_ANYWAY = {  # parameters with the values that ask for what is done without them
    "sequence_id": (0, ""),
    "sequence_start": (False,),
    "sequence_end": (False,),
    "binary_data": (True,),
    "binary_data_output": (True,),
    "classification": (0,),
}
OF_INPUTS = ("binary_data_size",)  # of the bytes, which are counted


def own_parameters(request: Any) -> dict[str, Any]:
    """Our own request parameters, without their prefix. Raises InputError for any that is not honoured."""
    own = {}
    for name, value in _values(request.parameters):
        if name.startswith(PREFIX):
            own[name.removeprefix(PREFIX)] = value
        elif name not in SCHEDULING:
            _require_nothing(name, value, f"parameters[{name[:100]}]")
    for n, tensor in enumerate(request.inputs):
        for name, value in _values(tensor.parameters):
            if name not in OF_INPUTS:
                _require_nothing(name, value, f"inputs[{n}].parameters[{name[:100]}]")
    for n, tensor in enumerate(request.outputs):
        for name, value in _values(tensor.parameters):
            _require_nothing(name, value, f"outputs[{n}].parameters[{name[:100]}]")
    return own


def ask_for_turn(request: Any) -> None:
    """Tell the current call how urgent a ModelInfer request is, and how long it may wait for its turn.

    As Triton's parameters: `priority`, 1 being the most urgent and 0 as usual; `timeout` in microseconds, 0 for none.
    Raises UsageError, and Denied for a priority that is not the caller's to have, with the field.
    """
    asked = {name: _count(request, name) for name in SCHEDULING}
    call = CALL.get(None)
    if call is None:
        return
    try:
        call.ask_for_turn(asked["priority"], 1e-6 * asked["timeout"] if asked["timeout"] else None)
    except OnnxplainError as error:
        raise error.at("parameters[priority]") from None


def _count(request: Any, name: str) -> int:
    """A parameter that is a whole number from 0 on, or a text of one; 0 where it is not given."""
    value = dict(_values(request.parameters)).get(name, 0) if name in request.parameters else 0
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 20:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UsageError(f"{name} is a whole number from 0 on, not {str(value)[:100]!r}.").at(f"parameters[{name}]")
    return value


def _require_nothing(name: str, value: Any, field: str) -> None:
    """Refuse a parameter unless its value asks for what is done without it."""
    if any(value == said and type(value) is type(said) for said in SAID_ANYWAY.get(name, ())):
        return
    if name in NEVER:
        raise InputError(f"the parameter {name} is not honoured: {NEVER[name]}. Leave it out.").at(field)
    raise UnknownName("parameter of a request", name[:100], [*(PREFIX + own for own in OWN), *SCHEDULING]).at(field)


def _values(parameters: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(name, value) of each, None where it is unset."""
    for name, value in parameters.items():
        kind = value.WhichOneof("parameter_choice")
        yield name, getattr(value, kind) if kind else None
