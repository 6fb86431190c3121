"""Trained weights, from whatever file a training left them in.

safetensors, what ``torch.save`` wrote (read with ``weights_only=True``: nothing in it is run),
checkpoints of Lightning and of loops that keep the weights beside an optimizer, and folders that
``save_pretrained`` wrote. Names may carry what a wrapper put in front of them.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

_PLACES = ("state_dict", "model_state_dict", "model", "module", "net", "weights")
"""Where checkpoints keep the weights, the usual first."""

_FILES = ("model.safetensors", "pytorch_model.bin", "model.pt", "model.pth")
"""What a folder may hold them in."""


def load_weights(model: nn.Module, path: Path, *, new_head: bool = False) -> None:
    """Load trained weights into a model, all of them or none.

    Args:
        model: Changed in place.
        path: The file, or a folder that ``save_pretrained`` wrote.
        new_head: One layer is not in the file, or has other outputs there: it stays as it is.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be read, or does not hold this model's weights.
    """
    found = _fitted(_read(path), model, path, new_head=new_head)
    model.load_state_dict(model.state_dict() | found)


def _read(path: Path) -> dict[str, Tensor]:
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise FileNotFoundError(f"--weights expects a file or a folder; there is no {path}.")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"--weights {path} holds more than tensors or is no file of weights, and nothing in a "
            "file is run here (weights_only=True). Where you trust it, save the weights alone: "
            "torch.save(model.state_dict(), ...)."
        ) from error
    except Exception as error:  # a damaged file makes torch and safetensors raise almost anything
        raise ValueError(
            f"--weights {path} cannot be read as a file of weights ({type(error).__name__}: "
            f"{_first_line(error)}). It expects what torch.save(model.state_dict()) or safetensors "
            "wrote."
        ) from error
    return _state_in(content, path)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def _read_folder(path: Path) -> dict[str, Tensor]:
    """One file, or the parts that an index names."""
    for index in sorted(path.glob("*.index.json")):
        parts = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        return {name: value for part in parts for name, value in _read(path / part).items()}
    for name in _FILES:
        if (path / name).is_file():
            return _read(path / name)
    raise FileNotFoundError(
        f"--weights {path} is a folder without {', '.join(_FILES)}: name the file itself."
    )


def _is_state(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(item, Tensor) for item in value.values())
    )


def _state_in(content: Any, path: Path) -> dict[str, Tensor]:
    """The weights in what a training saved: themselves, or at one of the usual places."""
    if _is_state(content):
        return dict(content)
    held = content if isinstance(content, Mapping) else {}
    for place in _PLACES:
        if _is_state(held.get(place)):
            return dict(held[place])
    keys = ", ".join(map(str, list(held)[:8])) or type(content).__name__
    raise ValueError(
        f"--weights {path} should hold tensors by name, or have them at one of "
        f"{', '.join(_PLACES)}; found {keys}."
    )


def _fitted(
    state: dict[str, Tensor], model: nn.Module, path: Path, *, new_head: bool
) -> dict[str, Tensor]:
    """The entries under the model's own names; with a new head those that fit.

    Raises:
        ValueError: Some are missing, or of another shape, and not those of one layer alone.
    """
    wanted = model.state_dict()
    found = max(
        (_without(state, prefix) for prefix in _prefixes(state, wanted)),
        key=lambda renamed: len(renamed.keys() & wanted.keys()),
    )
    missing = [name for name in wanted if name not in found]
    others = [n for n in wanted if n in found and found[n].shape != wanted[n].shape]
    fits = {n: found[n] for n in wanted if n not in (*missing, *others)}
    layers = {name.rpartition(".")[0] for name in wanted if name not in fits}
    if new_head and not layers:
        raise ValueError(
            f"--new-head expects one layer of --weights {path} not to fit; found that all do. "
            "Leave it out, and give --epochs 1 if the classes are others all the same."
        )
    outputs_only = all(found[n].shape[1:] == wanted[n].shape[1:] for n in others)
    a_head = len(layers) == 1 and outputs_only and bool(fits)
    if layers and not (new_head and a_head):
        odd = [
            f"{name} is {tuple(found[name].shape)} in the file and {tuple(wanted[name].shape)} in "
            "the model"
            for name in others
        ]
        _refuse(path, wanted, missing, odd, [n for n in state if n not in wanted])
    return fits


def _prefixes(state: Mapping[str, Any], wanted: Mapping[str, Any]) -> set[str]:
    """What may stand in front of names: ``module.``, ``_orig_mod.``, an attribute's name."""
    last = next(iter(wanted), "")
    ends = {name[: -len(last)] for name in state if last and name.endswith(last)}
    return {"", *(end for end in ends if not end or end.endswith("."))}


def _without(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n[len(prefix) :]: value for n, value in state.items() if n.startswith(prefix)}


def _refuse(
    path: Path, wanted: Mapping[str, Tensor], missing: list[str], odd: list[str], more: list[str]
) -> None:
    fit = len(wanted) - len(missing) - len(odd)
    parts = [f"{fit} of the model's {len(wanted)} tensors are in it"]
    if missing:
        parts.append(f"missing {', '.join(missing[:3])}")
    if missing and more:
        parts.append(f"the file has instead {', '.join(more[:3])}")
    parts += odd[:2]
    hint = "Is it another model"
    if odd and not missing:
        hint = (
            "If the last layer alone is of other classes, --new-head draws it anew. Else give the "
            "model the file's sizes, as in NAME?num_classes=1000; or is it another one"
        )
    raise ValueError(f"--weights {path} does not fit --model: {'; '.join(parts)}. {hint}?")
