"""What a run is told: frozen dataclasses, a sentence per field; changed by name, compared, and kept as JSON."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, TypeVar

from facejax.geometry.errors import InputError

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Run:
    """What decides the result: two runs that agree here, on one machine, end alike to the last bit."""

    steps: int = 1000
    """Optimiser steps in all."""
    batch: int = 64
    """Examples per step, over all devices and hosts together; it must divide among them."""
    seed: int = 0
    """Of the first parameters, the order of examples and every random draw."""
    bf16: bool = False
    """Networks multiply in bfloat16; parameters, geometry and losses stay in float32."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """What does not decide the result: where and how a run works. Free to change with --resume."""

    model_axis: int = 1
    """Devices among which each large parameter is split; the others, and these too, share the batch."""
    threads: int = 2
    """Threads that read examples ahead, in each process."""
    workers: int = 0
    """Processes that read examples in place of those threads; 0 for none."""
    log_every: int = 50
    """Steps between lines of metrics."""
    eval_every: int = 500
    """Steps between evaluations on the test split; 0 evaluates at the end only."""
    save_every: int = 500
    """Steps between checkpoints."""
    pictures_every: int = 0
    """Steps between sample pictures; 0 makes them at the end only."""
    tensorboard: Literal["auto", "on", "off"] = "auto"
    """Also write TensorBoard events; `auto` does where tensorboardX is installed."""
    peak_tflops: float = 0.0
    """Peak bfloat16 TFLOP/s of one device, for the utilisation; 0 looks the device up in a table."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What every recipe's config has; recipes derive from it and add groups of their own."""

    run: Run = dataclasses.field(default_factory=Run)
    """How long, on how much, from which seed."""
    machine: Machine = dataclasses.field(default_factory=Machine)
    """Where and how; never decides the result."""


def nearest(word: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" or "", for the end of a message."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def fields_of(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every field of a config by its dotted name, groups taken apart."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found |= fields_of(value, f"{prefix}{field.name}.")
        else:
            found[prefix + field.name] = value
    return found


def override(config: _T, settings: Iterable[str]) -> _T:
    """The config with settings such as "run.batch=32" applied; `InputError` for an unknown field or a value amiss."""
    for setting in settings:
        name, equals, text = setting.partition("=")
        known = fields_of(config)
        if not equals:
            raise InputError(f"--set takes field=value, such as --set run.batch=32, not {setting!r}.")
        if name not in known:
            near = nearest(name, known) or nearest(name.split(".")[-1], known)
            raise InputError(f"There is no field {name!r}{near or '; --help lists them.'}")
        config = _with(config, name.split("."), text, name)
    return config


def _with(config: Any, path: list[str], text: str, name: str) -> Any:
    head, *rest = path
    if rest:
        return dataclasses.replace(config, **{head: _with(getattr(config, head), rest, text, name)})
    return dataclasses.replace(config, **{head: _parsed(text, typing.get_type_hints(type(config))[head], name)})


def _parsed(text: str, kind: Any, name: str) -> Any:
    """A value of that type from what was typed."""
    import contextlib
    import io

    import tyro

    if kind is bool:  # tyro would make two flags of it
        if text.lower() not in ("true", "false"):
            raise InputError(f"{name} is true or false, not {text!r}.")
        return text.lower() == "true"
    several = typing.get_origin(kind) is tuple
    words = text.replace(",", " ").split() if several else [text]
    if words and words[0].startswith("-") and not _is_number(words[0]):
        raise InputError(f"{name} takes {_told(kind)}, not {text!r}.")
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            return tyro.cli(kind, args=words, console_outputs=False)
    except SystemExit:
        raise InputError(f"{name} takes {_told(kind)}, not {text!r}.") from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _told(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return " or ".join(repr(choice) for choice in typing.get_args(kind))
    if isinstance(kind, types.UnionType):
        return " or ".join(_told(part) for part in typing.get_args(kind))
    return {int: "a whole number", float: "a number", str: "a text", type(None): "None"}.get(kind, str(kind))


def to_json(config: Any) -> dict[str, Any]:
    """The config as plain JSON values."""
    return dataclasses.asdict(config)


def from_json(kind: type[_T], values: Mapping[str, Any], where: str = "") -> _T:
    """The config that `to_json` wrote.

    A field that is missing takes its default (that is the rule for adding fields: the default is what was done before).
    A field that does not exist, or a value of another kind, raises `InputError`.
    """
    hints, known = typing.get_type_hints(kind), {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known)
    if unknown:
        raise InputError(f"A config names the field {where + unknown[0]!r}, which {kind.__name__} does not have.")
    made: dict[str, Any] = {}
    for name, value in values.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            made[name] = from_json(typing.cast(type, hint), value, f"{where}{name}.")
        elif typing.get_origin(hint) is tuple:
            made[name] = tuple(value)
        else:
            made[name] = value
    return kind(**made)


def differences(old: Any, new: Any) -> Iterator[str]:
    """A sentence part for each field that decides the result and differs, as "run.batch was 64, is 32"."""
    before, after = fields_of(old), fields_of(new)
    for name in sorted(before.keys() | after.keys()):
        if not name.startswith("machine.") and before.get(name) != after.get(name):
            yield f"{name} was {before.get(name)!r}, is {after.get(name)!r}"
