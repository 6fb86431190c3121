"""Which structures are zero-invariant groups, and what a host of them may be asked for."""

from __future__ import annotations

from decayprune.structures.structure_map import Role, StructureMap

ROLES: tuple[Role, ...] = ("row", "affine")
"""Slices of a zero-invariant group."""


def left_alone(structures: StructureMap, small: int) -> dict[int, str]:
    """Groups that are no zero-invariant groups, or too small, by number, with the reason.

    Args:
        structures: What can be cut.
        small: Groups of at most so many structures are left alone.
    """
    reasons = {}
    heard = structures.unpinned.clone()
    for item in structures.slices:
        if item.role == "column":
            heard[item.structure[item.carrier]] = True
    for number, group in enumerate(structures.groups):
        if bool(heard[group.start : group.stop].any()):
            reasons[number] = (
                "not zero-invariant: with its rows and norm affine at zero a channel still "
                "reaches its consumers (an activation that maps 0 elsewhere, or a norm without "
                "scale and shift)"
            )
        elif group.size <= small:
            reasons[number] = f"no wider than group_divisible={small}"
    return reasons


def check_numbers(lr: float, group_divisible: int, decay_steps: int, target: float) -> None:
    """Raise for a number that is out of range."""
    if not lr >= 0:
        raise ValueError(f"lr is 0 or more, found {lr!r}.")
    if group_divisible < 1:
        raise ValueError(
            f"group_divisible is a number of structures from 1, found {group_divisible!r}."
        )
    if decay_steps < 1:
        raise ValueError(f"decay_steps is at least 1 (an abrupt cut), found {decay_steps!r}.")
    if not 0 < target < 1:
        raise ValueError(f"target_group_sparsity lies between 0 and 1, found {target!r}.")
