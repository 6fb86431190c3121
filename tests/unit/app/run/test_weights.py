from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from decayprune.app.run.weights import load_weights


def net(classes: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, classes))


TRAINED = {name: torch.rand_like(t.float()).to(t.dtype) for name, t in net().state_dict().items()}


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in TRAINED.items()}


@pytest.mark.parametrize(
    "content",
    [
        TRAINED,
        prefixed("module."),
        prefixed("_orig_mod.module."),
        {"state_dict": prefixed("model.") | {"loss.weight": torch.ones(2)}, "epoch": 3},
        {"model": TRAINED, "optimizer": {"state": {}}},
        {"model_state_dict": TRAINED, "lr": 0.1},
    ],
    ids=["plain", "parallel", "compiled", "lightning", "beside an optimizer", "by another name"],
)
def test_weights_are_found_wherever_a_training_left_them(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pt")
    model = net()
    load_weights(model, tmp_path / "w.pt")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, TRAINED[name])


def test_safetensors_and_folders_of_them(tmp_path: Path) -> None:
    save_file(TRAINED, tmp_path / "model.safetensors")
    for path in (tmp_path / "model.safetensors", tmp_path):
        model = net()
        load_weights(model, path)
        assert torch.equal(model[0].weight, TRAINED["0.weight"])
    names = list(TRAINED)
    (tmp_path / "parts").mkdir()
    for part, some in (("a", names[:3]), ("b", names[3:])):
        file = tmp_path / "parts" / f"{part}.safetensors"
        save_file({name: TRAINED[name] for name in some}, file)
    index = {n: "a.safetensors" if n in names[:3] else "b.safetensors" for n in names}
    text = str({"weight_map": index}).replace("'", '"')
    (tmp_path / "parts" / "model.safetensors.index.json").write_text(text)
    model = net()
    load_weights(model, tmp_path / "parts")
    assert torch.equal(model[2].bias, TRAINED["2.bias"])


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return (open, (str(Path("ran").absolute()), "w"))


def test_nothing_in_a_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": TRAINED, "trap": Trap()}, "w.pt")
    with pytest.raises(ValueError, match=r"nothing in a file is run here.*model\.state_dict\(\)"):
        load_weights(net(), Path("w.pt"))
    assert not Path("ran").exists()


def test_weights_of_another_model_are_refused_and_none_is_loaded(tmp_path: Path) -> None:
    model, before = net(classes=5), None
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.save(TRAINED, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"2.weight is \(3, 8\) in the file and \(5, 8\) in the "):
        load_weights(model, tmp_path / "w.pt")
    torch.save({"0.weight": TRAINED["0.weight"], "x": torch.ones(1)}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"1 of the model's 9 .*missing 0.bias.*has instead x"):
        load_weights(model, tmp_path / "w.pt")
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize("without", [False, True])
def test_a_new_head_stays_as_it_was_drawn(tmp_path: Path, without: bool) -> None:
    """The file has a head of three classes, or none."""
    model = net(classes=5)
    head = model[2].weight.detach().clone()
    content = prefixed("module.")
    if without:
        content = {n: t for n, t in content.items() if not n.startswith("module.2.")}
    torch.save(content, tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt", new_head=True)
    assert torch.equal(model[2].weight, head)
    assert torch.equal(model[0].weight, TRAINED["0.weight"])
    assert torch.equal(model[1].running_var, TRAINED["1.running_var"])


def test_what_is_more_than_a_head_is_refused(tmp_path: Path) -> None:
    torch.save(TRAINED, tmp_path / "w.pt")
    wide, stem = nn.Sequential(nn.Linear(4, 9), nn.BatchNorm1d(9), nn.Linear(9, 3)), net()
    stem[0] = nn.Linear(5, 8)
    for model in (wide, stem):
        with pytest.raises(ValueError, match="does not fit --model"):
            load_weights(model, tmp_path / "w.pt", new_head=True)
    with pytest.raises(ValueError, match="found that all do"):
        load_weights(net(), tmp_path / "w.pt", new_head=True)
    torch.save({"x": torch.ones(1)}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="0 of the model's 2"):
        load_weights(nn.Sequential(nn.Linear(4, 3)), tmp_path / "w.pt", new_head=True)


def test_files_that_hold_no_weights(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no .*none\.pt"):
        load_weights(net(), tmp_path / "none.pt")
    with pytest.raises(FileNotFoundError, match=r"a folder without model\.safetensors"):
        load_weights(net(), tmp_path)
    torch.save({"epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"should hold tensors by name.*found epoch"):
        load_weights(net(), tmp_path / "w.pt")
    (tmp_path / "w.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="cannot be read as a file of weights"):
        load_weights(net(), tmp_path / "w.safetensors")
