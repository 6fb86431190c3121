import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from decayprune.app.run import objective as objectives
from decayprune.app.run.batches import MemoryBatches
from decayprune.app.run.loop import evaluate
from decayprune.app.run.objective import Objective, cross_entropy, objective

SOURCE = """
def squared(outputs, targets):
    return ((outputs[:, 0] - targets) ** 2).mean()

def each(outputs, targets):
    return (outputs[:, 0] - targets).abs()

def share(outputs, targets, scale=1.0):
    return scale * 0.25

def fails(outputs, targets):
    return outputs.nothing
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "mylosses.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("mylosses", None)


def test_what_is_judged_follows_the_loss_unless_told() -> None:
    assert objective(None, None) == Objective()
    own = objective("mylosses:squared", None)
    assert own.name == "loss"
    assert own.metric is own.loss
    assert objective("mylosses:squared", "accuracy").metric is objectives.accuracy
    assert objective(None, "loss").metric is cross_entropy
    assert objective(None, "mylosses:share?scale=2").name == "share"


def test_a_metric_is_a_mean_over_examples_however_it_is_given() -> None:
    images = torch.arange(7, dtype=torch.uint8).view(7, 1, 1, 1)
    split = MemoryBatches(images, torch.arange(7), (0.0,), (1 / 255,), 4)
    model = nn.Flatten()
    model.register_parameter("unused", nn.Parameter(torch.zeros(1)))
    by_hand = float((images.flatten().float() - torch.arange(7)).abs().mean())
    found = evaluate(model, split, objective=objective(None, "mylosses:each"))
    assert found == pytest.approx(by_hand)
    # A mean of each batch counts as many times as the batch has examples: 4 and 3.
    squares = (images.flatten().float() - torch.arange(7)) ** 2
    found = evaluate(model, split, objective=objective("mylosses:squared", None))
    assert found == pytest.approx(float(squares.mean()))
    assert evaluate(model, split, objective=objective(None, "mylosses:share?scale=2")) == 0.5


def test_errors_of_ones_own_functions_name_the_option() -> None:
    x = torch.zeros(2, 1)
    for found, option in (
        (objective("mylosses:fails", None).loss, "loss"),
        (objective(None, "mylosses:fails").metric, "metric"),
    ):
        with pytest.raises(ValueError, match=rf"--{option} mylosses:fails raised AttributeError"):
            found(x, x)
    with pytest.raises(TypeError, match=r"should return a scalar tensor; it returned \(2,\)"):
        objective("mylosses:each", None).loss(x, x[:, 0])
    with pytest.raises(ValueError, match=r"--metric expects .*accuracy or loss; found 'f1'"):
        objective(None, "f1")


def test_logits_of_hugging_faces_models_and_too_few_classes() -> None:
    x, targets = torch.randn(3, 4), torch.tensor([0, 1, 5])
    with pytest.raises(ValueError, match=r"tells 4 classes apart.*has class 5.*num_classes=10"):
        cross_entropy(x, targets)
    found = cross_entropy(SimpleNamespace(logits=x), targets.clamp(max=3))
    torch.testing.assert_close(found, F.cross_entropy(x, targets.clamp(max=3)))
