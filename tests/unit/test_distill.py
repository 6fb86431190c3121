"""The loss with a teacher, against the formula written out."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import decayprune as dp
from loops import net


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(6, 3, 8, 8), torch.randint(4, (6,))


def test_the_formula() -> None:
    model, teacher = net(1), net(2)
    images, labels = batch()
    hard, temperature, weight = nn.CrossEntropyLoss(), 3.0, 0.3
    criterion = dp.Distill(teacher, hard, temperature=temperature, weight=weight)
    outputs = model(images)
    found = criterion(outputs, labels, images)

    p = (teacher(images).double() / temperature).softmax(1)
    q = (outputs.double() / temperature).softmax(1)
    slow = sum(
        p[n, c] * (p[n, c].log() - q[n, c].log()) for n in range(6) for c in range(4)
    ) / 6  # fmt: skip
    expected = 0.7 * hard(outputs, labels) + 0.3 * 9 * slow
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-6)


def test_a_model_has_nothing_to_learn_from_its_copy() -> None:
    model = net().eval()
    images, labels = batch()
    criterion = dp.Distill(copy.deepcopy(model), None, weight=1)
    assert float(criterion(model(images), labels, images).detach()) == pytest.approx(0, abs=1e-6)


def test_the_teacher_stays_as_it_is() -> None:
    model, teacher = net(1), net(2).train()
    before = copy.deepcopy(teacher.state_dict())
    images, labels = batch()
    dp.Distill(teacher, nn.CrossEntropyLoss())(model(images), labels, images).backward()
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in model.parameters())


def test_objects_with_logits_pixels_and_half_precision() -> None:
    class Pixels(nn.Module):
        def forward(self, x: Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=x.bfloat16())

    scores = torch.randn(2, 4, 3, 3)
    criterion = dp.Distill(Pixels(), None, weight=1, temperature=1)
    found = criterion(SimpleNamespace(logits=torch.zeros(2, 4, 3, 3)), None, {"x": scores})
    answer = scores.bfloat16().float().softmax(1)
    torch.testing.assert_close(
        found, (answer * (answer.log() - torch.tensor(0.25).log())).sum(1).mean()
    )


def test_words() -> None:
    with pytest.raises(ValueError, match="temperature is above 0, found 0"):
        dp.Distill(net(), None, temperature=0)
    with pytest.raises(ValueError, match=r"share in \[0, 1\], found 2"):
        dp.Distill(net(), None, weight=2)
    with pytest.raises(ValueError, match="pass weight=1"):
        dp.Distill(net(), None)
    criterion = dp.Distill(net(), None, weight=1)
    with pytest.raises(ValueError, match=r"answers with \(6, 5\), the teacher with \(6, 4\)"):
        criterion(torch.zeros(6, 5), None, batch()[0])
    with pytest.raises(ValueError, match=r"or an output with .logits; found list"):
        criterion([], None, batch()[0])
