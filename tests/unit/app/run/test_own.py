import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

from decayprune.app.run import own

SOURCE = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

number = 3

def net():
    return nn.Linear(4, 2)

def no_net():
    return "a net"

def loaders():
    data = TensorDataset(torch.randn(12, 4), torch.arange(12) % 2)
    return DataLoader(data, 4), DataLoader(data, 6)

def one_loader():
    return loaders()[0]

def numbers():
    return 1, 2

def empty():
    return [], loaders()[1]

def sized(width, depth=1):
    return nn.Linear(4, width)

def fails():
    raise KeyError("deep inside")

def broken_loaders():
    class Broken:
        def __len__(self):
            return 2

        def __iter__(self):
            raise OSError("the disk is gone")

    return Broken(), Broken()
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "mynets.py").write_text(SOURCE)
    (tmp_path / "broken.py").write_text("import not_installed_anywhere\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("mynets", "broken"):
        sys.modules.pop(name, None)


def test_the_working_directory_is_searched(here: Path) -> None:
    assert isinstance(own.model("mynets:net"), nn.Linear)
    found = own.data("mynets:loaders", seed=0)
    assert (len(found.train), len(found.test)) == (3, 2)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mynets", r"--model expects pkg.mod:function, .*; found 'mynets'"),
        (":net", "found ':net'"),
        ("nowhere:net", "there is no module 'nowhere'. It is looked for in"),
        ("broken:net", r"no module 'not_installed_anywhere' \(imported by broken\)"),
        ("mynets:missing", "nothing of that name in .*mynets.py: 'missing'"),
        ("mynets:number", "no function of that name in .*mynets.py: 'number'"),
    ],
)
def test_names_that_lead_nowhere(here: Path, spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        own.model(spec)


def test_what_functions_should_return(here: Path) -> None:
    with pytest.raises(TypeError, match=r"should return an nn\.Module; it returned str"):
        own.model("mynets:no_net")
    with pytest.raises(TypeError, match=r"pair \(train_loader, test_loader\); it returned DataL"):
        own.data("mynets:one_loader", 0)
    with pytest.raises(TypeError, match="the train loader is int, which cannot be iterated"):
        own.data("mynets:numbers", 0)
    with pytest.raises(ValueError, match="the train loader holds no batch"):
        own.data("mynets:empty", 0)


def test_arguments_behind_the_name(here: Path) -> None:
    assert own.model("mynets:sized?width=7").out_features == 7  # type: ignore[union-attr]
    assert own.arguments("a=1&b=true&c=[1,2]&d=x%26y&e=None", "--model") == {
        "a": 1, "b": True, "c": [1, 2], "d": "x&y", "e": None,
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"as name\?argument=value&argument=value; found 'a b'"):
        own.arguments("a b", "--model")
    with pytest.raises(ValueError, match=r"sized\(width, depth=1\).*missing.*'width'.*Give those"):
        own.model("mynets:sized")
    with pytest.raises(ValueError, match=r"--model mynets:net\?x=1"):
        own.model("mynets:net?x=1")


def test_errors_inside_name_the_option_and_the_line(here: Path) -> None:
    with pytest.raises(ValueError, match=r"--model mynets:fails raised KeyError: 'deep inside'"):
        own.model("mynets:fails")
    found = own.data("mynets:broken_loaders", 0)
    with pytest.raises(ValueError, match="--data mynets:broken_loaders raised OSError: the disk"):
        next(iter(found.train.epoch(0)))
