"""What it takes to put everything back.

Whoever changes a model notes the way back *before* each change, so that there is no line between
the two at which an interrupt finds a change without its way back. Every note may be carried out
twice, and without the change having happened.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any

import torch
from torch import Tensor


class Undo:
    """The ways back, carried out last first.

    Its owner writes, and returns from inside the ``try`` so that nothing can come after it:

        undo = Undo()
        try:
            ...  # note, change, note, change
            return result
        except BaseException:
            undo.run()
            raise
    """

    def __init__(self) -> None:
        self._steps: list[Callable[[], None]] = []

    def note(self, step: Callable[[], None]) -> None:
        """Note a way back."""
        self._steps.append(step)

    def keep(self, *objects: object) -> None:
        """Note class and attributes of objects; what the attributes hold is kept by reference."""
        for item in objects:
            self.note(_attributes(item))

    def keep_item(self, mapping: MutableMapping[Any, Any], key: Any) -> None:
        """Note one entry of a mapping, or that there is none."""
        there = key in mapping
        value = mapping[key] if there else None

        def put_back() -> None:
            if there:
                mapping[key] = value
            else:
                mapping.pop(key, None)

        self.note(put_back)

    def keep_values(self, tensor: Tensor) -> None:
        """Note the values of a tensor that is about to be written to."""
        values = tensor.detach().clone()

        def put_back() -> None:
            with torch.no_grad():
                tensor.copy_(values)

        self.note(put_back)

    def run(self) -> None:
        """Put everything back, and forget the way."""
        try:
            while self._steps:
                self._steps[-1]()
                self._steps.pop()
        except KeyboardInterrupt:  # the second one: a model half undone is of no use to anybody
            self.run()
            raise


def _attributes(item: object) -> Callable[[], None]:
    kind, held = type(item), dict(vars(item))

    def put_back() -> None:
        item.__class__ = kind
        space = vars(item)
        for name in [name for name in space if name not in held]:
            del space[name]
        space.update(held)

    return put_back
