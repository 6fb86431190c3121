"""Whether a saved state can be resumed here: same model, same settings, same kind of host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from decayprune.structures.structure_map import StructureMap

_FORMAT = 1


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
    if known and found == _FORMAT:
        found = state.get("owner")
    if not known or found != owner:
        raise ValueError(
            f"Expected what the state_dict() of a {owner} returned, a pruner state of format "
            f"{_FORMAT}, found {found!r}."
        )
    if missing := sorted(set(now) - set(state)):
        raise ValueError(
            f"This pruner state is damaged: {', '.join(missing)} is missing. Load one that "
            "state_dict() returned."
        )
    if state["fingerprint"] != now["fingerprint"]:
        pairs = zip(now["slices"], state["slices"], strict=False)
        differs = next((ours for ours, theirs in pairs if ours != theirs), None)
        raise ValueError(
            "This pruner state was saved for another model: the structures differ, first at "
            f"{differs or 'the number of layers'}. Build the same model and pass the same "
            "ignored_layers."
        )
    _check_settings(state["settings"], now["settings"])


def _check_settings(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for name in {**now, **then}:
        if then.get(name) != now.get(name):
            raise ValueError(
                f"This state was saved with {name}={then.get(name)!r}, and what is to go on was "
                f"built with {now.get(name)!r}. Build it as it was saved."
            )
