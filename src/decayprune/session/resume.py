"""Resuming from a saved state: whether it can be done here, and all of it or nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from decayprune.structures.structure_map import StructureMap
from decayprune.surgery.compact import CompactionReport

_FORMAT = 1
_AT_TIMES = ("frozen", "learned")
"""Parts that are there, or filled, at times; who takes them up checks them."""


def flat(**parts: object) -> dict[str, Any]:
    """Fields of several settings in one dictionary, ``part.field``; parts that are None left out.

    Args:
        parts: Objects whose attributes are plain values.
    """
    return {
        f"{name}.{field}": value
        for name, part in parts.items()
        if part is not None
        for field, value in vars(part).items()
    }


def plain(given: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """Options as they are saved: of a function only that it is one.

    Args:
        given: Saved unless None: older states do not have them.
        options: Saved in any case.
    """
    options |= {name: value for name, value in given.items() if value is not None}
    return {name: "a function" if callable(value) else value for name, value in options.items()}


def header(owner: str, structures: StructureMap, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What :func:`check` asks of a state before anybody goes on with it.

    Args:
        owner: Kind of the host that saves.
        structures: Of the dense model.
        settings: What a state can be resumed under, plain values by name.
    """
    return {
        "format": _FORMAT,
        "owner": owner,
        "fingerprint": structures.fingerprint,
        "slices": [f"{s.name} (dimension {s.dim}, {s.width} wide)" for s in structures.slices],
        "settings": dict(settings),
    }


def told(report: CompactionReport) -> dict[str, Any]:
    """A report as plain values, without the kept indices."""
    return {name: value for name, value in vars(report).items() if name != "kept"}


def retold(said: Mapping[str, Any]) -> CompactionReport:
    """The report that :func:`told` told.

    Args:
        said: Plain values.
    """
    return CompactionReport(**said)


def check(state: Any, now: Mapping[str, Any]) -> None:
    """Raise unless a state can be resumed.

    Args:
        state: What is to be loaded.
        now: What who is to go on would save now.

    Raises:
        ValueError: It is none, or belongs to another model, to other settings, or to another kind
            of pruner.
    """
    owner, known = now["owner"], isinstance(state, dict)
    found = state.get("format") if known else type(state).__name__
    if type(found) is int and found == _FORMAT:
        found = state.get("owner")
    if not known or found != owner:
        raise ValueError(
            f"Expected what the state_dict() of a {owner} returned, a pruner state of format "
            f"{_FORMAT}, found {found!r}."
        )
    now = {name: value for name, value in now.items() if name not in _AT_TIMES}
    if "pinning" not in state:  # as older versions saved it
        now.pop("pinning", None)
    if missing := sorted(set(now) - set(state)):
        raise _damaged(f"{', '.join(missing)} is missing")
    _check_kinds(state, {"fingerprint": "", "slices": [], "settings": {}}, "")
    if state["fingerprint"] != now["fingerprint"]:
        pairs = zip(now["slices"], state["slices"], strict=False)
        differs = next((ours for ours, theirs in pairs if ours != theirs), None)
        raise ValueError(
            "This pruner state was saved for another model: the structures differ, first at "
            f"{differs or 'the number of layers'}. Build the same model and pass the same "
            "ignored_layers."
        )
    _check_settings(state["settings"], now["settings"])
    _check_kinds(state, now, "")


def take_up(restore: Callable[[Mapping[str, Any]], None], state: Any, before: Any) -> None:
    """Restore a state, or leave everything as it was.

    Args:
        restore: Takes up a state.
        state: Checked by :func:`check`.
        before: What was, to go back to.

    Raises:
        ValueError: The state cannot be restored.
    """
    try:
        restore(state)
    except BaseException as error:
        restore(before)
        if isinstance(error, (KeyError, TypeError, AttributeError, IndexError)):
            raise _damaged(f"it cannot be restored ({type(error).__name__}: {error})") from error
        raise


def _damaged(why: str) -> ValueError:
    return ValueError(
        f"This pruner state is damaged: {why}. Load one that state_dict() returned; nothing was "
        "changed."
    )


def _check_kinds(state: Any, now: Any, where: str) -> None:
    """Raise unless tensors are where tensors are now, numbers where numbers are, and so on."""
    if isinstance(now, Mapping):
        if not isinstance(state, Mapping):
            raise _damaged(f"{where} is {_kind(state)}, expected a dictionary")
        for name in now:
            inside = f"{where}.{name}" if where else name
            if name not in state:
                raise _damaged(f"{inside} is missing")
            _check_kinds(state[name], now[name], inside)
    elif now is not None and _kind(state) != _kind(now):
        raise _damaged(f"{where} is {_kind(state)}, expected {_kind(now)}")


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, (bool, int, float)):
        return "a number"
    if isinstance(value, (list, tuple)):
        return "a list"
    return "nothing" if value is None else f"of type {type(value).__name__}"


def _check_settings(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for name in {**now, **then}:
        same_kind = _kind(then.get(name)) == _kind(now.get(name))
        if not same_kind or then.get(name) != now.get(name):
            raise ValueError(
                f"This state was saved with {name}={then.get(name)!r}, and what is to go on was "
                f"built with {now.get(name)!r}. Build it as it was saved."
            )
