"""Messages of the Open Inference Protocol as its REST writes them: whole numbers as numbers, enums by name.

protobuf's own JSON writes 64-bit numbers as strings, which no client of the protocol expects.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import FieldDescriptor


def plain(message: Any) -> dict[str, Any]:
    """Every scalar and list of a message, set or not; messages inside it where they are set."""
    found: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            entry = field.message_type.fields_by_name["value"]
            found[field.name] = {str(key): _value(entry, inner) for key, inner in value.items()}
        elif field.is_repeated:
            found[field.name] = [_value(field, inner) for inner in value]
        elif field.has_presence and not message.HasField(field.name):
            continue
        else:
            found[field.name] = _value(field, value)
    return found


def _value(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None:
        return plain(value)
    if field.enum_type is not None:
        named = field.enum_type.values_by_number.get(value)
        return value if named is None else named.name
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
