"""What can be pruned: structures, how they are found, and vectorised arithmetic over them."""

from decayprune.structures.structure_map import (
    FIXED,
    Group,
    Operator,
    Refusal,
    Role,
    Slice,
    StructureMap,
)
from decayprune.structures.tracing.trace import trace

__all__ = ["FIXED", "Group", "Operator", "Refusal", "Role", "Slice", "StructureMap", "trace"]
