"""The records of a run folder, and the checks that every one of them passes when it is read.

Each field of a record says which kind of value it takes; :func:`parse` turns one decoded JSON
object into the record or says what was expected, what was found and what to do. A file may be
damaged, cut short or not ours at all, so nothing is taken on trust: not a type, not a range.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar

T = TypeVar("T")
_LARGEST_INT = 2**63 - 1


@dataclass(frozen=True)
class Kind:
    """A kind of value: its name in an error, and the test that it passes."""

    words: str
    holds: Callable[[object], bool]

    def or_null(self) -> Kind:
        """Return the kind that also takes null."""
        return Kind(f"{self.words} or null", lambda v: v is None or self.holds(v))


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST_INT


def _is_number(value: object) -> bool:
    # type(), because bool is an int; the bound also turns away inf, nan and what float() cannot hold
    return type(value) in (int, float) and abs(value) <= 1e300  # type: ignore[arg-type]


def _is_positive(value: object) -> bool:
    return _is_number(value) and value > 0  # type: ignore[operator]


def _is_fraction(value: object) -> bool:
    return _is_number(value) and 0 <= value <= 1  # type: ignore[operator]


def _is_magnitude(value: object) -> bool:
    return _is_number(value) and value >= 0  # type: ignore[operator]


def _is_scalar(value: object) -> bool:
    return value is None or isinstance(value, (str, bool)) or _is_number(value)


def _maps_to(holds: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda v: isinstance(v, dict) and all(holds(item) for item in v.values())


def _lists(holds: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda v: isinstance(v, list) and all(holds(item) for item in v)


COUNT = Kind("a whole number >= 0", _is_count)
POSITIVE_COUNT = Kind("a whole number > 0", lambda v: _is_count(v) and v != 0)
NUMBER = Kind("a finite number", _is_number)
POSITIVE = Kind("a finite number > 0", _is_positive)
MAGNITUDE = Kind("a finite number >= 0", _is_magnitude)
FRACTION = Kind("a fraction from 0 to 1", _is_fraction)
TEXT = Kind("a text", lambda v: isinstance(v, str))
STEPS = Kind("a list of steps (whole numbers >= 0)", _lists(_is_count))
SCALARS = Kind("an object of texts, numbers, true, false or null", _maps_to(_is_scalar))
TEXTS = Kind("an object of texts", _maps_to(lambda v: isinstance(v, str)))
FRACTIONS = Kind("an object of numbers > 0", _maps_to(_is_positive))
PHASES = ("train", "prune", "finetune")
PHASE = Kind("one of 'train', 'prune', 'finetune'", lambda v: v in PHASES)
EVENT = Kind("one of 'decay', 'release', 'prune'", lambda v: v in ("decay", "release", "prune"))


def _is(kind: Kind, **options: Any) -> Any:
    return field(metadata={"kind": kind}, **options)


def _each(record: type) -> Any:
    return field(metadata={"each": record})


def _one(record: type) -> Any:
    return field(metadata={"one": record})


@dataclass(frozen=True)
class Event:
    """A move of one structure: it began to decay, was released, or reached zero and was pruned."""

    step: int = _is(COUNT)
    kind: str = _is(EVENT)
    structure: int = _is(COUNT)
    layer: str = _is(TEXT)
    index: int = _is(COUNT)
    c_rate: float | None = _is(NUMBER.or_null(), default=None)
    c_len: float | None = _is(NUMBER.or_null(), default=None)
    work: float | None = _is(NUMBER.or_null(), default=None)


@dataclass(frozen=True)
class Moment:
    """One line of the training history; ``loss`` is None where it was not finite."""

    step: int = _is(COUNT)
    phase: str = _is(PHASE)
    loss: float | None = _is(NUMBER.or_null())
    lr: float | None = _is(NUMBER.or_null())
    accuracy: float | None = _is(FRACTION.or_null(), default=None)
    committed: float | None = _is(MAGNITUDE.or_null(), default=None)


@dataclass(frozen=True)
class Norm:
    """The length of a decaying structure's carriers, beside the length at which it was picked."""

    step: int = _is(COUNT)
    structure: int = _is(COUNT)
    length: float = _is(MAGNITUDE)
    start: float = _is(MAGNITUDE)


@dataclass(frozen=True)
class Width:
    """Channels of one layer, before and after."""

    layer: str = _is(TEXT)
    before: int = _is(COUNT)
    after: int = _is(COUNT)


@dataclass(frozen=True)
class Refusal:
    """A width that was left alone, and why."""

    layer: str = _is(TEXT)
    width: int = _is(COUNT)
    reason: str = _is(TEXT)


@dataclass(frozen=True)
class Machine:
    """Where the run and its latencies were measured."""

    cpu: str = _is(TEXT)
    cores: int = _is(COUNT)
    threads: int = _is(COUNT)


@dataclass(frozen=True)
class Limits:
    """The last step of selection (no release from there on), and how long a decay lasts."""

    stop: int = _is(COUNT)
    decay_steps: int = _is(COUNT)


@dataclass(frozen=True)
class Summary:
    """The final figures of a finished run: the object in ``report.json``.

    Accuracies are fractions, latencies milliseconds for a batch of ``batch_size_latency``;
    ``budget`` maps a cost (``macs``, ``params``) to the fraction that was to remain.
    """

    command: str = _is(TEXT)
    settings: Mapping[str, str | float | bool | None] = _is(SCALARS)
    versions: Mapping[str, str] = _is(TEXTS)
    machine: Machine = _one(Machine)
    dataset: str = _is(TEXT)
    model: str = _is(TEXT)
    host: str | None = _is(TEXT.or_null())
    seed: int = _is(COUNT)
    accuracy_before: float = _is(FRACTION)
    accuracy_after: float = _is(FRACTION)
    macs_before: int = _is(POSITIVE_COUNT)
    macs_after: int = _is(POSITIVE_COUNT)
    params_before: int = _is(POSITIVE_COUNT)
    params_after: int = _is(POSITIVE_COUNT)
    latency_before_ms: float = _is(POSITIVE)
    latency_after_ms: float = _is(POSITIVE)
    batch_size_latency: int = _is(POSITIVE_COUNT)
    decayed: int = _is(COUNT)
    released: int = _is(COUNT)
    removed: int = _is(COUNT)
    max_abs_error: float = _is(MAGNITUDE)
    max_rel_error: float = _is(MAGNITUDE)
    budget: Mapping[str, float] = _is(FRACTIONS)
    seconds: float = _is(MAGNITUDE)
    widths: tuple[Width, ...] = _each(Width)
    rounds: tuple[int, ...] = _is(STEPS)
    refusals: tuple[Refusal, ...] = _each(Refusal)
    limits: Limits = _one(Limits)


def parse(record: type[T], found: object, where: str) -> T:
    """Turn one decoded JSON object into a record.

    Fields that the record does not know are passed over, so that a later release may add some.

    Args:
        record: The dataclass of this module to make.
        found: What ``json.loads`` returned.
        where: File and line, for the error.

    Raises:
        ValueError: A field is missing or does not hold what it should.
    """
    if not isinstance(found, dict):
        raise mismatch(where, "a JSON object", found)
    values: dict[str, object] = {}
    for item in fields(record):  # type: ignore[arg-type]
        if item.name in found:
            values[item.name] = _value(item.metadata, found[item.name], f"{where}, {item.name!r}")
        elif item.default is MISSING:
            raise mismatch(where, f"the field {item.name!r}", sorted(found))
    return record(**values)


def _value(metadata: Mapping[str, Any], found: object, where: str) -> object:
    if "one" in metadata:
        return parse(metadata["one"], found, where)
    if "each" in metadata:
        if not isinstance(found, list):
            raise mismatch(where, "a list", found)
        record = metadata["each"]
        return tuple(parse(record, item, f"{where}[{i}]") for i, item in enumerate(found))
    kind: Kind = metadata["kind"]
    if not kind.holds(found):
        raise mismatch(where, kind.words, found)
    return tuple(found) if isinstance(found, list) else found


def decode(text: str, where: str) -> object:
    """Decode JSON; ``NaN`` and ``Infinity``, which Python writes, become None.

    Raises:
        ValueError: The text is not JSON.
    """
    try:
        return json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        raise mismatch(where, "JSON", text) from None


def mismatch(where: str, expected: str, found: object) -> ValueError:
    """Return the error for a file that does not hold what it should."""
    shown = repr(found)
    shown = shown if len(shown) <= 120 else f"{shown[:117]}..."
    return ValueError(
        f"{where}: expected {expected}, found {shown}. The file is damaged or was not written by"
        " `decayprune prune`: restore it from a copy, or run the command again."
    )
