"""What a field of a description may be: one check for config files and for the arguments of superformers.

The descriptions stand in `vitas.plain`; those of timm's networks in `vitas.export`.
"""

from collections.abc import Mapping
from dataclasses import is_dataclass
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin

from vitas import plain
from vitas.checks import as_count, as_flag, as_number, is_number
from vitas.errors import VitasError, is_one_of, listed, one_of, shown

D = TypeVar("D", bound=plain.Description)


def described(kind: type[D], told: object, where: str, error: type[VitasError]) -> D:
    """Return the description that JSON values tell.

    Args:
        kind: Class of the description.
        told: What `as_json` returned, or what somebody else wrote.
        where: What messages begin with, such as a file and "model".
        error: What is raised.

    Raises:
        VitasError: `error`, with the path of a field that is missing, unknown or out of bounds, and what it may be.
    """

    def check(hint: Any, value: Any, path: str) -> Any:
        return check_field(hint, value, f"{where}: {path}" if path else where, error)

    try:
        made: D = plain.from_json(kind, told, check)
    except VitasError:
        raise
    except (ValueError, ArithmeticError, RecursionError) as fault:
        raise error(f"{where}: {fault}") from None
    return made


def check_arguments(kind: Any, error: type[VitasError], **arguments: object) -> dict[str, Any]:
    """Return arguments that the fields of a description of the same names allow.

    Raises:
        VitasError: `error`, with the name of the argument.
    """
    hints = _hints(kind)
    return {name: check_field(hints[name], value, name, error) for name, value in arguments.items()}


def _hints(kind: Any) -> dict[str, Any]:
    """Return the types of a description's fields, and of those that stand flat among them."""
    hints: dict[str, Any] = {}
    for name, _, hint, flat in plain.layout_of(kind):
        hints |= _hints(plain.allowed(hint)[0]) if flat else {name: hint}
    return hints


def check_field(hint: Any, value: Any, where: str, error: type[VitasError]) -> Any:
    """Return a value that a field of the type `hint` may have; numpy's numbers become Python's.

    Objects are checked for their keys and lists for their length, not for what is in them.

    Raises:
        VitasError: `error`, with `where` and what the field may be.
    """
    allowed = plain.allowed(hint)
    optional = " or None" if NoneType in allowed else ""
    if optional and value is None:
        return None
    kind, bounds = plain.bare(allowed[0])
    if is_dataclass(kind):
        return _as_object(hint, value, where, error)
    if kind is bool:
        return as_flag(value, where, error)
    if kind is int:
        return as_count(value, where, bounds.least, bounds.below - 1, error)
    if kind is float:
        if not (is_number(value) and bounds.least <= value < bounds.below):
            wanted = f"a number in [{bounds.least:g}, {bounds.below:g}){optional}"
            raise error(f"{where}: expected {wanted}, got {shown(value)}")
        return as_number(value, where, error)
    if kind is str:
        if not is_one_of(bounds, value):
            raise error(f"{where}: {one_of(bounds, value)}")
        return value
    if get_origin(kind) is tuple:
        return _as_list(kind, bounds, value, where, error)
    if not isinstance(value, dict):
        raise error(f"{where}: expected an object, got {shown(value)}")
    return value


def _as_object(hint: Any, value: Any, where: str, error: type[VitasError]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise error(f"{where}: expected an object, got {type(value).__name__}")
    check_keys(value, plain.keys_of(plain.described_by(hint, value), value), where, error)
    return value


def check_keys(got: Mapping[str, Any], wanted: set[str], where: str, error: type[VitasError]) -> None:
    """Refuse an object that has other keys than these.

    Raises:
        VitasError: `error`, with the keys.
    """
    for key in got:
        if key not in wanted:
            raise error(f"{where}: unknown field, {one_of(sorted(wanted), key)}")
    if missing := sorted(wanted - set(got)):
        raise error(f"{where}: missing {listed(missing)}")


def _as_list(kind: Any, bounds: plain.Within | None, value: Any, where: str, error: type[VitasError]) -> list[Any]:
    items = len(get_args(kind))
    least, most = (items, items) if bounds is None else (bounds.least, bounds.below - 1)
    if not isinstance(value, list) or not least <= len(value) <= most:
        number = f"{least}" if least == most else f"{least} to {most}"
        raise error(f"{where}: expected a list of {number}, got {shown(value)}")
    return value
