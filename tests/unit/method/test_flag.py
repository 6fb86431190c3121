"""A truth is read later, and is the one that was computed."""

from __future__ import annotations

import torch

from benchmarks import accelerator
from decayprune.method.flag import Flag


def test_a_flag_is_what_was_computed_when_it_was_made() -> None:
    with accelerator.simulated():
        value = torch.ones((), dtype=torch.bool).to(accelerator.DEVICE)
        with accelerator.counting() as count:
            flag = Flag(value)
        value.fill_(False)
        assert flag.read() is True
        assert Flag(value).read() is False
    assert count.syncs == 0
