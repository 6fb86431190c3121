"""Accelerate: the structure of a pruned model in what ``save_state`` saves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from decayprune.checkpoint.atomic import write_atomically
from decayprune.checkpoint.fields import CheckpointError
from decayprune.checkpoint.structure import reshape, structure
from decayprune.session.host import Host
from decayprune.structures.wrappers import check_unwrapped

_FILE = "decayprune_structure.json"


def register_for_checkpointing(accelerator: Accelerator, pruner: Host) -> None:
    """Let ``save_state`` and ``load_state`` take a pruner along, before its cut and after it.

    After ``load_state`` of what was saved after the cut, the model is as small as it was then, and
    the pruner has nothing left to do.

    Args:
        accelerator: Registered with it once.
        pruner: Of a dense model; any host.
    """

    def write_structure(models: Any, weights: Any, folder: str) -> None:
        if accelerator.is_main_process and pruner.report is not None:
            text = json.dumps(structure(pruner.model)).encode()
            write_atomically({Path(folder) / _FILE: lambda path: path.write_bytes(text)})

    def take_structure(models: Any, folder: str) -> None:
        path = Path(folder) / _FILE
        if not path.exists():
            return
        try:
            said = json.loads(path.read_bytes())
        except ValueError as error:
            raise CheckpointError(
                f"{path} is not valid JSON ({error}); load another checkpoint."
            ) from None
        if said != structure(pruner.model):
            check_unwrapped(pruner.model)
            reshape(pruner.model, said)

    accelerator.register_for_checkpointing(pruner)
    accelerator.register_save_state_pre_hook(write_structure)
    accelerator.register_load_state_pre_hook(take_structure)
