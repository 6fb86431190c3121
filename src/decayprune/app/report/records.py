"""The records of a run folder, and the checks that every one of them passes when it is read.

Each field of a record says which kind of value it takes; :func:`parse` turns one decoded JSON
object into the record or says what was expected, what was found and what to do. A file may be
damaged, cut short or not ours at all, so nothing is taken on trust: not a type, not a range.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

T = TypeVar("T")
_LARGEST_INT = 2**53  # up to here a float, which every plot computes in, is exact


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
    # type(), for bool is an int; the bound also turns away inf, nan and what no float holds
    return type(value) in (int, float) and abs(value) <= 1e300  # type: ignore[arg-type]


def _is_positive(value: object) -> bool:
    return _is_number(value) and 1e-9 <= value <= 1e9  # type: ignore[operator]


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
POSITIVE = Kind("a number from 1e-9 to 1e9", _is_positive)
MAGNITUDE = Kind("a finite number >= 0", _is_magnitude)
FRACTION = Kind("a fraction from 0 to 1", _is_fraction)
TEXT = Kind("a text", lambda v: isinstance(v, str))
STEPS = Kind("a list of steps (whole numbers >= 0)", _lists(_is_count))
SCALARS = Kind("an object of texts, numbers, true, false or null", _maps_to(_is_scalar))
TEXTS = Kind("an object of texts", _maps_to(lambda v: isinstance(v, str)))
FRACTIONS = Kind("an object of numbers from 1e-9 to 1e9", _maps_to(_is_positive))
PHASES = ("train", "prune", "finetune")
PHASE = Kind("one of 'train', 'prune', 'finetune'", lambda v: v in PHASES)
EVENTS = ("decay", "release", "prune")
EVENT = Kind("one of 'decay', 'release', 'prune'", lambda v: v in EVENTS)


@dataclass(frozen=True)
class EventRow:
    """A move of one structure: it began to decay, was released, or reached zero and was pruned."""

    step: Annotated[int, COUNT]
    kind: Annotated[str, EVENT]
    structure: Annotated[int, COUNT]
    layer: Annotated[str, TEXT]
    index: Annotated[int, COUNT]
    c_rate: Annotated[float | None, NUMBER.or_null()] = None
    c_len: Annotated[float | None, NUMBER.or_null()] = None
    work: Annotated[float | None, NUMBER.or_null()] = None


@dataclass(frozen=True)
class Moment:
    """One line of the training history; ``loss`` is None where it was not finite.

    ``accuracy`` holds what ``metric`` names, which may be another figure.
    """

    step: Annotated[int, COUNT]
    phase: Annotated[str, PHASE]
    loss: Annotated[float | None, NUMBER.or_null()]
    lr: Annotated[float | None, NUMBER.or_null()]
    accuracy: Annotated[float | None, NUMBER.or_null()] = None
    committed: Annotated[float | None, MAGNITUDE.or_null()] = None
    metric: Annotated[str, TEXT] = "accuracy"


@dataclass(frozen=True)
class Norm:
    """The length of a decaying structure's carriers, beside the length at which it was picked.

    ``length`` is None where it was not finite.
    """

    step: Annotated[int, COUNT]
    structure: Annotated[int, COUNT]
    length: Annotated[float | None, MAGNITUDE.or_null()]
    start: Annotated[float, MAGNITUDE]


@dataclass(frozen=True)
class Width:
    """Channels of one layer, before and after."""

    layer: Annotated[str, TEXT]
    before: Annotated[int, COUNT]
    after: Annotated[int, COUNT]


@dataclass(frozen=True)
class RefusalRow:
    """A width that was left alone, and why."""

    layer: Annotated[str, TEXT]
    width: Annotated[int, COUNT]
    reason: Annotated[str, TEXT]


@dataclass(frozen=True)
class Machine:
    """Where the run and its latencies were measured."""

    cpu: Annotated[str, TEXT]
    cores: Annotated[int, COUNT]
    threads: Annotated[int, COUNT]


@dataclass(frozen=True)
class Limits:
    """The last step of selection (no release from there on), and how long a decay lasts."""

    stop: Annotated[int, COUNT]
    decay_steps: Annotated[int, COUNT]


@dataclass(frozen=True)
class Summary:
    """The final figures of a finished run: the object in ``report.json``.

    ``accuracy_before`` and ``accuracy_after`` hold what ``metric`` names, measured on
    ``judged_on``; an accuracy is a fraction. Latencies are milliseconds for a batch of
    ``batch_size_latency`` as ``latency_form`` says: ``"eager"``, or ``"compiled"`` for
    ``torch.compile``. ``repeat`` is the line that repeats the run from its settings alone;
    ``budget`` maps a cost (``macs``, ``params``) to the fraction that was to remain.
    """

    command: Annotated[str, TEXT]
    settings: Annotated[Mapping[str, str | float | bool | None], SCALARS]
    versions: Annotated[Mapping[str, str], TEXTS]
    machine: Machine
    dataset: Annotated[str, TEXT]
    model: Annotated[str, TEXT]
    host: Annotated[str | None, TEXT.or_null()]
    seed: Annotated[int, COUNT]
    accuracy_before: Annotated[float, NUMBER]
    accuracy_after: Annotated[float, NUMBER]
    macs_before: Annotated[int, POSITIVE_COUNT]
    macs_after: Annotated[int, POSITIVE_COUNT]
    params_before: Annotated[int, POSITIVE_COUNT]
    params_after: Annotated[int, POSITIVE_COUNT]
    latency_before_ms: Annotated[float, POSITIVE]
    latency_after_ms: Annotated[float, POSITIVE]
    batch_size_latency: Annotated[int, POSITIVE_COUNT]
    decayed: Annotated[int, COUNT]
    released: Annotated[int, COUNT]
    removed: Annotated[int, COUNT]
    max_abs_error: Annotated[float, MAGNITUDE]
    max_rel_error: Annotated[float, MAGNITUDE]
    budget: Annotated[Mapping[str, float], FRACTIONS]
    seconds: Annotated[float, MAGNITUDE]
    widths: tuple[Width, ...]
    rounds: Annotated[tuple[int, ...], STEPS]
    refusals: tuple[RefusalRow, ...]
    limits: Limits
    metric: Annotated[str, TEXT] = "accuracy"
    judged_on: Annotated[str, TEXT] = "the test split"
    repeat: Annotated[str, TEXT] = ""
    latency_form: Annotated[str, TEXT] = "eager"


@dataclass(frozen=True)
class Trace:
    """What a run has left so far, finished or not.

    ``phase`` is None where nothing was trained; ``counts`` holds events by their kind.
    """

    last_step: int
    phase: str | None
    counts: Mapping[str, int]


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
    for name, (hint, required) in _fields(record).items():  # type: ignore[arg-type]
        if name in found:
            values[name] = _value(hint, found[name], f"{where}, {name!r}")
        elif required:
            raise mismatch(where, f"the field {name!r}", sorted(found))
    return record(**values)


@cache
def _fields(record: type) -> dict[str, tuple[Any, bool]]:
    """Return the type hint of every field, and whether the field must be there."""
    hints = get_type_hints(record, include_extras=True)
    return {f.name: (hints[f.name], f.default is MISSING) for f in fields(record)}


def _value(hint: Any, found: object, where: str) -> object:
    # In Python 3.10, tuple[record, ...] is a type as well.
    if isinstance(hint, type) and is_dataclass(hint):
        return parse(hint, found, where)
    if not hasattr(hint, "__metadata__"):  # tuple[record, ...]
        if not isinstance(found, list):
            raise mismatch(where, "a list", found)
        record = get_args(hint)[0]
        return tuple(parse(record, item, f"{where}[{i}]") for i, item in enumerate(found))
    (kind,) = hint.__metadata__
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
