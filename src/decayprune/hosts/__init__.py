"""Pruning methods that choose what decays: each a faithful host first, smooth pruning on top.

``decay_steps`` makes a host smooth, ``rectify`` lets it change its mind. Every host has the same
surface: ``finished``, ``events``, ``structures``, ``remaining()``, ``observe()``, ``compact()``,
``state_dict()`` and ``load_state_dict()``.
"""

from decayprune.hosts.dhspg import DHSPG
from decayprune.hosts.gate_decorator import GateDecorator
from decayprune.hosts.hesso import HESSO
from decayprune.hosts.ticks import TickTock
from decayprune.hosts.torch_pruning import TorchPruningHost

__all__ = ["DHSPG", "HESSO", "GateDecorator", "TickTock", "TorchPruningHost"]
