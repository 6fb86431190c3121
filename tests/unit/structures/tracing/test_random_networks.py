"""Random networks: every one of them is cut exactly, or leaves the width alone.

``DECAYPRUNE_RANDOM_NETS=1000`` draws as many as that.
"""

from __future__ import annotations

import os
import random

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from decayprune.structures import trace
from random_nets import random_net
from reference.cut import cut, error, run, zeroed

EXAMPLES = int(os.environ.get("DECAYPRUNE_RANDOM_NETS", "40"))


@settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(st.integers(0, 2**31))
def test_random_networks_are_cut_exactly(seed: int) -> None:
    draw = random.Random(seed)
    model, inputs = random_net(seed)
    structures = trace(model, inputs)
    removed: set[int] = set()
    for group in structures.groups:
        most = max(1, group.size - 1)  # one alone has others beside it that stay
        removed |= set(draw.sample(range(group.start, group.stop), draw.randint(1, most)))
    found = run(cut(model, structures, removed), inputs)
    assert error(run(zeroed(model, structures, removed), inputs), found) < 1e-9
    carried = torch.zeros(structures.num_structures, dtype=torch.bool)
    for item in structures.slices:
        carried[item.structure[item.carrier]] = True
    assert bool(carried.all())
    pinned = {s for s in removed if not structures.unpinned[s]}
    expected = run(zeroed(model, structures, pinned), inputs)
    twin = zeroed(model, structures, pinned, carriers_only=True)
    assert error(expected, run(twin, inputs)) < 1e-9
    # a column that has a share in the norm of a filter is missed there, whatever it reads
    for item in structures.slices:
        if item.role == "column" and "parametrizations" in item.name:
            pinned -= set(item.structure.tolist())
    expected = run(zeroed(model, structures, pinned), inputs)
    twin = zeroed(model, structures, pinned, ("row", "affine"))
    assert error(expected, run(twin, inputs)) < 1e-9
