"""Pruning methods that choose what decays: each a faithful host first, smooth pruning on top.

``decay_steps`` makes a host smooth, ``rectify`` lets it change its mind. Every host has the same
surface: ``finished``, ``events``, ``structures``, ``lifecycle``, ``remaining()``, ``observe()``,
``compact()``, ``state_dict()`` and ``load_state_dict()``. A host of your own is built from
``Session`` and ``Host`` or ``BesideOptimizer`` (docs/extend/host.md).
"""

from decayprune.hosts.depgraph.host import TorchPruningHost
from decayprune.hosts.gate_decorator.host import GateDecorator
from decayprune.hosts.gate_decorator.ticks import TickTock
from decayprune.hosts.otov2.dhspg import DHSPG
from decayprune.hosts.otov2.hesso import HESSO
from decayprune.session.host import BesideOptimizer, Host
from decayprune.session.session import Session

__all__ = [
    "DHSPG",
    "HESSO",
    "BesideOptimizer",
    "GateDecorator",
    "Host",
    "Session",
    "TickTock",
    "TorchPruningHost",
]
