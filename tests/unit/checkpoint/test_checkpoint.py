"""Saving and loading; whatever is wrong with a file is refused before the model is touched."""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import decayprune as dp
from cases import CASES
from decayprune.checkpoint import files
from decayprune.structures import trace
from decayprune.surgery.compact import compact
from decayprune.surgery.trial import refuse_uncuttable
from loops import INPUTS, OPTIMIZERS, Net, net, pruner_for, same, train
from reference import cut as slow


@pytest.fixture(scope="module")
def compacted() -> Net:
    model = net()
    optimizer = OPTIMIZERS["SGD momentum"](model.parameters())
    pruner = pruner_for(model, optimizer)
    train(model, optimizer, 24, pruner)
    pruner.compact()
    return model


@pytest.fixture
def folder(tmp_path: Path, compacted: Net) -> Path:
    dp.save(tmp_path / "new" / "model", compacted)
    return tmp_path / "new" / "model"


def test_there_and_back(folder: Path, compacted: Net) -> None:
    dense = net(seed=5)
    identities = [id(p) for p in dense.parameters()]
    model = dp.load(folder, dense)
    assert model is dense
    assert [id(p) for p in model.parameters()] == identities
    assert same(compacted, model)
    for one, other in zip(slow.run(compacted, INPUTS), slow.run(model, INPUTS), strict=True):
        assert torch.equal(one, other)
    assert model.a[0].out_channels == compacted.a[0].out_channels < 10
    assert sorted(f.name for f in folder.iterdir()) == ["model.safetensors", "structure.json"]
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), 2)


def test_plain_torch_can_read_it(folder: Path, compacted: Net) -> None:
    weights = load_file(folder / "model.safetensors")
    assert all(torch.equal(weights[k], v) for k, v in compacted.state_dict().items())


@pytest.mark.parametrize("case", sorted(CASES))
def test_every_coupling_loads_into_a_dense_model(case: str, tmp_path: Path) -> None:
    model, inputs = CASES[case]()
    structures = refuse_uncuttable(model, trace(model, inputs), inputs)
    gone = torch.zeros(structures.num_structures, dtype=torch.bool)
    gone[[group.start for group in structures.groups if group.size > 1]] = True
    model = slow.zeroed(model, structures, set(gone.nonzero().flatten().tolist())).eval()
    compact(model, structures, gone, example_inputs=inputs)
    dp.save(tmp_path, model)
    dense, _ = CASES[case]()
    loaded = dp.load(tmp_path, dense)
    for one, other in zip(slow.run(model, inputs), slow.run(loaded, inputs), strict=True):
        assert torch.equal(one, other)


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    model, inputs = CASES["tied"]()
    dp.save(tmp_path, model)
    assert "out.weight" not in load_file(tmp_path / "model.safetensors")
    other, _ = CASES["tied"]()
    nn.init.zeros_(other.embed.weight)
    loaded = dp.load(tmp_path, other)
    assert loaded.out.weight is loaded.embed.weight
    assert torch.equal(slow.run(loaded, inputs)[0], slow.run(model, inputs)[0])
    other.out.weight = nn.Parameter(other.out.weight.clone())
    with pytest.raises(dp.CheckpointError, match="does not fit"):
        dp.load(tmp_path, other)


# ---------------------------------------------------------------- files that lie


def refused(folder: Path, match: str, model: nn.Module | None = None) -> None:
    """Loading raises, says what to do, and leaves the model as it was."""
    dense = net(seed=5) if model is None else model
    before = copy.deepcopy(dense)
    with pytest.raises(dp.CheckpointError, match=match):
        dp.load(folder, dense)
    assert same(before, dense)
    for one, other in zip(before.modules(), dense.modules(), strict=True):
        if isinstance(one, nn.Conv2d):
            assert (one.in_channels, one.out_channels) == (other.in_channels, other.out_channels)


def test_missing_files(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refused(folder, r"model\.safetensors is missing: expected a folder written by")
    (folder / "structure.json").unlink()
    refused(folder, r"structure\.json is missing: expected a folder written by")
    refused(folder / "nowhere", "is missing: expected a folder written by")


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 100, -1])
def test_truncated_weights(folder: Path, kept: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    refused(folder, "is damaged .*save the model again")


@pytest.mark.parametrize("kept", [0, 1, 200, -3])
def test_truncated_structure(folder: Path, kept: int) -> None:
    path = folder / "structure.json"
    path.write_bytes(path.read_bytes()[:kept])
    refused(folder, "not valid JSON .*save the model again")


class Bomb:
    """What pickle would call if anything unpickled it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["model.safetensors", "structure.json"])
@pytest.mark.parametrize("write", ["pickle", "torch.save"])
def test_a_renamed_pickle_is_never_unpickled(folder: Path, name: str, write: str) -> None:
    mark = folder.parent / "exploded"
    if write == "pickle":
        (folder / name).write_bytes(pickle.dumps(Bomb(mark)))
    else:
        torch.save({"model": Bomb(mark)}, folder / name)
    refused(folder, "is damaged|not valid JSON")
    assert not mark.exists()


def with_header(content: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + size :]


WEIGHT_LIES: dict[str, Callable[[bytes], bytes]] = {
    "a huge header": lambda c: struct.pack("<Q", 2**62) + c[8:],
    "a header longer than the file": lambda c: struct.pack("<Q", len(c)) + c[8:],
    "a header that is no JSON": lambda c: c[:8] + b"\xff" * 40 + c[48:],
    "offsets past the end": lambda c: with_header(
        c, lambda h: h["fc.bias"].update(data_offsets=[0, 2**40])
    ),
    "negative offsets": lambda c: with_header(
        c, lambda h: h["fc.bias"].update(data_offsets=[-16, 0])
    ),
    "a shape that is not the data": lambda c: with_header(
        c, lambda h: h["fc.bias"].update(shape=[2**31, 2**31])
    ),
    "an unknown dtype": lambda c: with_header(c, lambda h: h["fc.bias"].update(dtype="OBJ")),
    "bytes behind the end": lambda c: c + b"more",
}


@pytest.mark.parametrize("lie", sorted(WEIGHT_LIES))
def test_lies_in_the_weights(folder: Path, lie: str) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(WEIGHT_LIES[lie](path.read_bytes()))
    refused(folder, "is damaged .*save the model again")


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Who lies on purpose makes the digest fit."""
    path = folder / "structure.json"
    structure = json.loads(path.read_text())
    change(structure)
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).digest()
    structure["digest"] = files.digest(structure, weights)
    path.write_text(json.dumps(structure))


def entry(structure: dict[str, Any], **values: Any) -> None:
    structure["tensors"]["fc.bias"].update(values)


STRUCTURE_LIES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "NaN as a size": (lambda s: entry(s, shape=[float("nan")]), "is damaged"),
    "a boolean as a size": (lambda s: entry(s, shape=[True]), "is damaged"),
    "a negative size": (lambda s: entry(s, shape=[-4]), "is damaged"),
    "a fraction as a size": (lambda s: entry(s, shape=[4.0]), "is damaged"),
    "a gigantic size": (lambda s: entry(s, shape=[2**62]), "is damaged"),
    "a shape that is no list": (lambda s: entry(s, shape="4"), "is damaged"),
    "a dtype that is no name": (lambda s: entry(s, dtype=["float32"]), "is damaged"),
    "an entry too many": (lambda s: entry(s, device="cuda"), "is damaged"),
    "an entry that is no object": (lambda s: s["tensors"].update({"fc.bias": 4}), "is damaged"),
    "no tensors": (lambda s: s.pop("tensors"), "'tensors' is not an object"),
    "tensors as a list": (lambda s: s.update(tensors=[]), "'tensors' is not an object"),
    "modules as a list": (lambda s: s.update(modules=[]), "'modules' is not an object"),
    "tied to nothing": (lambda s: s["tied"].update(x="nothing"), "tied to nothing"),
    "tied to a list": (lambda s: s["tied"].update(x=["fc.bias"]), "tied to nothing"),
    "tied itself": (lambda s: s["tied"].update({"fc.bias": "fc.weight"}), "tied to nothing"),
    "a module without a type": (lambda s: s["modules"]["c"].pop("type"), "has no type"),
    "a module that is no object": (lambda s: s["modules"].update(c=[1]), "has no type"),
    "a boolean attribute": (lambda s: s["modules"]["c"].update(groups=True), "is not a size"),
    "a nested attribute": (lambda s: s["modules"]["c"].update(groups=[[1]]), "is not a size"),
    "a negative attribute": (lambda s: s["modules"]["c"].update(groups=-1), "is not a size"),
    "code as an attribute": (lambda s: s["modules"]["c"].update(forward="x"), "is not a size"),
    "an attribute nobody may set": (
        lambda s: s["modules"]["c"].update(training=1),
        "module 'c' has no attribute 'training'",
    ),
    "a private attribute": (
        lambda s: s["modules"]["c"].update(__class__=1),
        "module 'c' has no attribute '__class__'",
    ),
    "an attribute of another kind": (
        lambda s: s["modules"]["c"].update(groups=[1]),
        "module 'c' has no attribute 'groups'",
    ),
    "another module": (lambda s: s["modules"]["c"].update(type="Linear"), "'c' is no Linear"),
    "an unknown module": (
        lambda s: s["modules"].update(elsewhere={"type": "Conv2d"}),
        "'elsewhere' is no Conv2d",
    ),
    "another format": (lambda s: s.update(format="other"), r"was not written by decayprune"),
    "a version to come": (lambda s: s.update(version=9), "has version 9, this decayprune reads"),
    "a version of text": (lambda s: s.update(version="1"), "has version '1'"),
    "another dtype": (lambda s: entry(s, dtype="float16"), "do not belong together"),
    "another shape": (lambda s: entry(s, shape=[3]), "do not belong together"),
    "a tensor less": (lambda s: s["tensors"].pop("fc.bias"), "hold different tensors"),
    "a path as a name": (
        lambda s: s["tensors"].update({"../../etc/passwd": {"shape": [1], "dtype": "float32"}}),
        "hold different tensors",
    ),
}


@pytest.mark.parametrize("lie", sorted(STRUCTURE_LIES))
def test_lies_in_the_structure(folder: Path, lie: str) -> None:
    change, match = STRUCTURE_LIES[lie]
    rewrite(folder, change)
    refused(folder, match)


@pytest.mark.parametrize(
    "text",
    ["[" * 200_000, '{"a":' * 100_000, "null", "[]", '"text"', "1" * 10_000, "\ufeff{}", "NaN"],
    ids=["deep list", "deep object", "null", "list", "text", "long number", "mark", "NaN"],
)
def test_json_that_is_no_structure(folder: Path, text: str) -> None:
    (folder / "structure.json").write_text(text, encoding="utf-8")
    refused(folder, "not valid JSON|was not written by")


def test_a_structure_file_too_large_is_not_even_read(folder: Path) -> None:
    with open(folder / "structure.json", "r+b") as file:
        file.truncate((64 << 20) + 1)
    refused(folder, "larger than any structure file")


@pytest.mark.parametrize("name", ["model.safetensors", "structure.json"])
def test_a_folder_instead_of_a_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).mkdir()
    refused(folder, f"{name} cannot be read .* expected a folder written by")


def test_weights_of_another_model_beside_the_structure(folder: Path) -> None:
    save_file({"fc.bias": torch.zeros(4)}, folder / "model.safetensors")
    refused(folder, "hold different tensors")


def test_a_flipped_bit_in_the_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))
    refused(folder, "should be as they were saved, together.* Save the model again")


def test_a_structure_changed_by_hand(folder: Path) -> None:
    path = folder / "structure.json"
    path.write_text(path.read_text().replace('"groups": 1', '"groups": 2', 1))
    refused(folder, "has changed since")
    structure = json.loads(path.read_text())
    del structure["digest"]
    path.write_text(json.dumps(structure))
    refused(folder, "is damaged: it holds no digest")


def test_a_name_too_long_to_read(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"x" * 10_000: torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(dp.CheckpointError, match=r"xxx \.\.\. xxx") as caught:
        dp.load(folder, net())
    assert len(str(caught.value)) < 1000
    assert str(caught.value).endswith("they do not belong together.")


def test_halves_of_two_saves(folder: Path, compacted: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first file was renamed, the second could not be: same shapes, other weights."""
    real = Path.replace

    def only_once(self: Path, target: Path) -> Path:
        if target.name == "structure.json":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(self, target)

    other = copy.deepcopy(compacted)
    with torch.no_grad():
        other.fc.bias.add_(1)
    monkeypatch.setattr(Path, "replace", only_once)
    with pytest.raises(PermissionError):
        dp.save(folder, other)
    monkeypatch.undo()
    refused(folder, "one of them is from another model")


class Other(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 4)


def test_another_architecture(folder: Path) -> None:
    refused(folder, r"does not fit this Other: .*fresh dense model .*\(Net\)", Other())


def test_arguments_the_other_way_round(folder: Path) -> None:
    match = r"load\(folder, model\) takes the folder first .*; found PosixPath as the model"
    with pytest.raises(TypeError, match=match):
        dp.load(net(), folder)
    with pytest.raises(TypeError, match=r"save\(.*; found OrderedDict as the model"):
        dp.save(folder, net().state_dict())


def test_which_side_lacks_a_tensor(folder: Path) -> None:
    class Longer(Net):
        def __init__(self) -> None:
            super().__init__()
            self.zz = nn.Linear(1, 1)

    refused(folder, "this one has a tensor 'zz.bias', the file has not", Longer())
    shorter = net()
    del shorter.fc
    refused(folder, r"the file has a tensor 'fc\.bias', this one has not", shorter)


def test_a_model_narrower_than_the_saved_one(folder: Path) -> None:
    narrow = net()
    narrow.fc = nn.Linear(1, 4)
    refused(folder, r"fc\.weight is \[4, \d\] there and \[4, 1\] here", narrow)


def test_a_model_of_another_dtype(folder: Path) -> None:
    refused(folder, "is float32 there and float64 here", net().double())


# ---------------------------------------------------------------- writing


@pytest.mark.parametrize("at", [1, 2])
def test_a_full_disk_leaves_the_old_files_whole(
    folder: Path, compacted: Net, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    real, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == at:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        dp.save(folder, net())
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert same(dp.load(folder, net(seed=5)), compacted)


def test_saving_again_replaces(folder: Path) -> None:
    dense = net(seed=8)
    dp.save(folder, dense)
    assert same(dp.load(folder, net(seed=5)), dense)
    assert len(list(folder.iterdir())) == 2


def test_saving_changes_nothing(compacted: Net, tmp_path: Path) -> None:
    before = copy.deepcopy(compacted)
    dp.save(tmp_path, compacted)
    assert same(before, compacted)
    assert all(p.requires_grad for p in compacted.parameters())


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match="folder") as caught:
            dp.save(path, net())
        assert str(path) in str(caught.value)
        assert "another folder" in str(caught.value)
    assert (tmp_path / "file").read_text() == "in the way"


def test_the_first_rank_alone_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    for rank in (1, 0):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        dp.save(tmp_path / "saved", nn.Linear(2, 3))
        assert (tmp_path / "saved").exists() == (rank == 0)


@pytest.mark.parametrize("name", ["model.safetensors", "structure.json"])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path, name: str) -> None:
    dp.save(tmp_path, nn.Linear(2, 3))
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(dp.CheckpointError, match="is no regular file"):
        dp.load(tmp_path, nn.Linear(2, 3))
