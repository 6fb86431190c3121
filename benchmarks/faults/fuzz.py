"""Damage saved models at random: every file loads as it was saved, or is refused with our error.

``python benchmarks/faults/fuzz.py`` saves a cut model (convolution, norms that count, attention by
head) and mutates ``structure.json`` or ``model.safetensors`` again and again: bits, bytes, blocks,
and, where the file holds JSON, keys and values of it. Half of the mutations are *accidents*: such a
file must load bit for bit as it was saved, or be refused. The other half are *forgeries*, with the
digest computed anew: whoever can do that can save any model, so such a file may also load as what
it says it is. Whatever is refused has to leave the model as it was.
"""

from __future__ import annotations

import copy
import hashlib
import json
import random
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from record import begun, keep, options
from safetensors.torch import load_file
from torch import Tensor, nn

import decayprune as dp
from decayprune.checkpoint import files

WEIGHTS, STRUCTURE = "model.safetensors", "structure.json"
VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 3, 7, 2**31, 2**40, 2**63, 10**400, 0.5, 1e308, float("nan")),
    *("", "x" * 5000, "float32", "F32", "I64", "../../etc/passwd", "__class__", "\u0000", "\ud800"),
    *([], {}, [[1]], [2**62], [0], [-1, 4], {"shape": [1]}, {"type": "Linear"}),
)


class Net(nn.Module):
    """Something of everything that a file remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.PReLU(16))
        self.norm = nn.GroupNorm(1, 16)
        self.encoder = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(B, 3, H, W)`` to logits ``(B, 3)``."""
        tokens = self.norm(self.stem(x)).flatten(2).transpose(1, 2)
        return self.head(self.encoder(tokens).mean(1))


def cut_model(inputs: Tensor) -> nn.Module:
    """A model that has lost channels, heads and features."""
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    budget, schedule = dp.Budget(structures=0.6), dp.Schedule(stop=1, decay_steps=1)
    pruner = dp.DecayPruner(
        model,
        optimizer,
        inputs,
        budget=budget,
        schedule=schedule,
        scope="local",
        residual_width=True,
    )
    while not pruner.finished:
        model(inputs).square().sum().backward()
        optimizer.step()
        pruner.step()
    pruner.compact()
    return model.eval()


# ---------------------------------------------------------------- mutations


def of_bytes(content: bytes, draw: random.Random, end: int) -> bytes:
    """Change one thing before the byte ``end``."""
    at, size = draw.randrange(max(1, end)), min(draw.choice([1, 1, 2, 8, 100]), len(content))
    block = content[at : at + size]
    before, after = content[:at], content[at + size :]
    kind = draw.choice(["flip", "set", "drop", "insert", "cut", "repeat", "zero", "swap"])
    if kind == "flip":
        return before + bytes([block[0] ^ 1 << draw.randrange(8)]) + block[1:] + after
    if kind == "set":
        return before + draw.randbytes(len(block)) + after
    if kind == "drop":
        return before + after
    if kind == "insert":
        return before + draw.randbytes(size) + block + after
    if kind == "cut":
        return before
    if kind == "repeat":
        return before + block + block + after
    if kind == "zero":
        return before + bytes(len(block)) + after
    return before + after[:size] + block + after[size:]


def of_json(document: Any, draw: random.Random) -> None:
    """Change one key or value, anywhere."""
    inner: list[Any] = []

    def walk(value: Any) -> None:
        if isinstance(value, (dict, list)) and value:
            inner.append(value)
            for item in value.values() if isinstance(value, dict) else value:
                walk(item)

    walk(document)
    if not inner:
        return
    holder, other = draw.choice(inner), draw.choice(inner)
    keys, others = ([*h] if isinstance(h, dict) else range(len(h)) for h in (holder, other))
    key, value = draw.choice(keys), other[draw.choice(others)]
    kind = draw.choice(["value", "value", "value", "near", "elsewhere", "drop", "rename"])
    if kind == "value":
        holder[key] = copy.deepcopy(draw.choice(VALUES))
    elif kind == "near" and type(holder[key]) is int:
        holder[key] += draw.choice([-1, 1, 2, holder[key]])
    elif kind == "drop":
        del holder[key]
    elif kind == "rename" and isinstance(holder, dict):
        names = ["weight", "..", "training", "_parameters", "type", "counted"]
        holder[draw.choice(names)] = holder.pop(key)
    else:
        holder[key] = copy.deepcopy(value)


def of_structure(content: bytes, draw: random.Random) -> bytes:
    """Mutate a structure file as bytes or as JSON."""
    if draw.random() < 0.4:
        return of_bytes(content, draw, len(content))
    document = json.loads(content)
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        of_json(document, draw)
    return json.dumps(document).encode()


def of_weights(content: bytes, draw: random.Random) -> bytes:
    """Mutate a safetensors file: anywhere, in its header, or as the header's JSON."""
    size = struct.unpack("<Q", content[:8])[0]
    if draw.random() < 0.6:
        return of_bytes(content, draw, draw.choice([8, 8 + size, len(content)]))
    header = json.loads(content[8 : 8 + size])
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        of_json(header, draw)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + size :]


def forge(folder: Path) -> None:
    """Make the digest fit again, where the file is still such that it has one."""
    try:
        structure = json.loads((folder / STRUCTURE).read_bytes())
        weights = hashlib.sha256((folder / WEIGHTS).read_bytes()).digest()
        structure["digest"] = files.digest(structure, weights)
        (folder / STRUCTURE).write_text(json.dumps(structure))
    except (ValueError, TypeError, RecursionError):
        return


# ---------------------------------------------------------------- verdicts


def same(one: nn.Module, other: nn.Module) -> bool:
    """Equal tensors under equal names, bit for bit, and equal sizes in the layers."""
    ours, theirs = one.state_dict(), other.state_dict()
    return (
        str(one) == str(other)
        and list(ours) == list(theirs)
        and all(equal(ours[name], theirs[name]) for name in ours)
    )


def equal(one: Tensor, other: Tensor) -> bool:
    """Equal bits: NaN is itself."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


def holds(model: nn.Module, path: Path) -> bool:
    """Whether a model has exactly the tensors of a file."""
    own, found = model.state_dict(), load_file(path)
    return set(own) == set(found) and all(equal(own[name], found[name]) for name in own)


def verdict(folder: Path, saved: nn.Module, forged: bool) -> str:
    """What loading comes to."""
    torch.manual_seed(1)
    model = Net()
    before = copy.deepcopy(model)
    try:
        dp.load(folder, model)
    except dp.CheckpointError as error:
        if not same(model, before):
            return "wrong: refused, but the model was changed"
        return "refused" if len(str(error)) < 2000 else "wrong: a message too long to read"
    except Exception as error:
        return f"wrong: {type(error).__name__}: {error}"[:300]
    if same(model, saved):
        return "loaded as saved"
    if forged and holds(model, folder / WEIGHTS):
        return "loaded as forged"
    return "wrong: loaded as another model"


def main() -> None:
    chosen = options(__doc__.splitlines()[0], 10_000)
    torch.set_num_threads(1)
    saved = cut_model(torch.randn(2, 3, 6, 6))
    mutate: dict[str, Callable[[bytes, random.Random], bytes]]
    mutate = {STRUCTURE: of_structure, WEIGHTS: of_weights}
    found = begun("fuzz", chosen, {"accidents": {}, "forgeries": {}, "wrong": {}})
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        dp.save(folder, saved)
        whole = {name: (folder / name).read_bytes() for name in mutate}
        while found["done"] < chosen.count:
            began, number = time.time(), found["done"]
            draw = random.Random(f"{chosen.seed} {number}")
            name, forged = draw.choice(sorted(mutate)), draw.random() < 0.5
            for other, content in whole.items():
                (folder / other).write_bytes(content)
            (folder / name).write_bytes(mutate[name](whole[name], draw))
            if forged:
                forge(folder)
            result = verdict(folder, saved, forged)
            kind = found["forgeries" if forged else "accidents"]
            short = result.partition(":")[0]
            kind[short] = kind.get(short, 0) + 1
            if short == "wrong":
                found["wrong"][str(number)] = f"{name}: {result}"
                print(number, name, result, flush=True)
            found["done"] += 1
            found["seconds"] += time.time() - began
            if found["done"] % 200 == 0 or found["done"] == chosen.count:
                found["seconds"] = round(found["seconds"], 1)
                keep("fuzz", found)
                print(found["done"], found["accidents"], found["forgeries"], flush=True)


if __name__ == "__main__":
    main()
