"""Going on: what every pruner and host keeps of itself, and what it asks of a state to load.

Whoever follows optimizer steps counts them, collects events and holds a lifecycle; saving and
loading that is the same for all of them. What only one of them has, it adds by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from decayprune.method.lifecycle import Event, LifecycleState
from decayprune.structures.structure_map import StructureMap

_FORMAT = 1


class Follower(Protocol):
    """What follows optimizer steps.

    Attributes:
        steps: Optimizer steps followed.
        waited: Steps that did not count because a gradient was not finite.
        events: What happened, in order.
    """

    steps: int
    waited: int
    events: list[Event]


def follow(owner: Follower, events: list[Event] | None) -> bool:
    """Count one step and keep its events.

    Args:
        owner: Who followed it.
        events: What happened; None if the step does not count.

    Returns:
        Whether it counts.
    """
    if events is None:
        owner.waited += 1
        return False
    owner.steps += 1
    owner.events += events
    return True


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


def saved(
    owner: Follower, structures: StructureMap, lifecycle: LifecycleState, settings: dict[str, Any]
) -> dict[str, Any]:
    """What all of them save, as tensors, strings and numbers.

    Args:
        owner: Who saves.
        structures: Of the dense model.
        lifecycle: Where every structure stands.
        settings: What a state can be resumed under, plain values by name.
    """
    return {
        "format": _FORMAT,
        "owner": type(owner).__name__,
        "fingerprint": structures.fingerprint,
        "slices": [f"{s.name} (dimension {s.dim}, {s.width} wide)" for s in structures.slices],
        "settings": settings,
        "steps": owner.steps,
        "waited": owner.waited,
        "state": lifecycle.state_dict(),
        "events": [list(vars(event).values()) for event in owner.events],
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


def go_on(owner: Follower, state: Mapping[str, Any], like: LifecycleState) -> LifecycleState:
    """Take up what :func:`saved` described.

    Args:
        owner: Who goes on.
        state: Checked.
        like: A lifecycle of the same structures.

    Returns:
        Where every structure stood.

    Raises:
        ValueError: The lifecycle is that of other structures.
    """
    lifecycle = LifecycleState.from_state_dict(state["state"], like=like)
    owner.steps, owner.waited = int(state["steps"]), int(state["waited"])
    owner.events = [Event(*row) for row in state["events"]]
    return lifecycle
