"""What must never pass: a cut that is wrong is refused before training, with the true reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import decayprune as dp


def prune(
    model: nn.Module,
    x: Any,
    budget: float = 0.6,
    loss: Callable[[Any], Tensor] = lambda y: y.pow(2).mean(),
) -> dp.CompactionReport:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    pruner = dp.DecayPruner(
        model,
        optimizer,
        x,
        budget=dp.Budget(macs=budget),
        schedule=dp.Schedule(stop=2, decay_steps=2),
        rectify=None,
    )
    while not pruner.finished:
        loss(model(x)).backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    return pruner.compact()


def left_alone(model: nn.Module, x: Any) -> dict[str, str]:
    return {refusal.layer: refusal.reason for refusal in dp.inspect(model, x).refusals}


class Attention(nn.Module):
    """Whose number of heads times their width has to be the width of the stream."""

    def __init__(self, dim: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, dim // heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj(y.transpose(1, 2).reshape(b, n, c))


def test_widths_that_have_to_stay_equal_leave_together() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), Attention(), Attention(), nn.Linear(32, 5))
    x = torch.randn(1, 6, 8)
    assert left_alone(model, x).keys() == {"3"}  # the output alone
    prune(model, x, 0.5)
    assert [model[i].qkv.in_features for i in (1, 2)] == [model[0].out_features] * 2
    assert [model[i].num_heads * model[i].head_dim for i in (1, 2)] == [model[0].out_features] * 2
    model(torch.randn(3, 5, 8))


class Literal(Attention):
    """Written with its numbers."""

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 4, 8).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj(y.transpose(1, 2).reshape(b, n, 32))


def test_widths_that_are_written_down_are_refused_before_training() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), Literal(), Literal(), nn.Linear(32, 5))
    x = torch.randn(1, 6, 8)
    reasons = left_alone(model, x)
    assert {"0", "1.qkv", "2.qkv"} & reasons.keys()
    assert any("forward() fails once a channel is removed" in why for why in reasons.values())


class Scaled(nn.Module):
    """Computes with the number of channels, and returns a column of NaN beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Linear(8, 32), nn.Linear(32, 24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.b(F.relu(self.a(x))))
        return torch.cat([self.o(h) / h.shape[-1], (x[:, :1] - 99).log()], 1)


def test_a_nan_in_the_outputs_voids_no_comparison() -> None:
    torch.manual_seed(0)
    model, x = Scaled(), torch.randn(4, 8)
    assert "changes the model's output" in left_alone(model, x)["b"]
    report = prune(model, x, 0.8, lambda y: y[:, :4].pow(2).mean())
    assert report.compared == pytest.approx(0.8)
    assert report.max_rel_error < 1e-4
    assert "80.0% of the outputs were finite, and compared" in str(report)


class Silent(nn.Module):
    def __init__(self, outputs: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.a, self.o, self.outputs = nn.Linear(8, 32), nn.Linear(32, 4), outputs

    def forward(self, x: Tensor) -> Any:
        return self.outputs(self.o(F.relu(self.a(x))))


@pytest.mark.parametrize(
    "outputs",
    [lambda y: y[y > 1e9], lambda y: y * float("nan"), lambda y: y.argmax(1)],
    ids=["empty", "not a number", "no floating point"],
)
def test_where_nothing_can_be_compared_nothing_is_cut(outputs: Callable[[Tensor], Any]) -> None:
    with pytest.raises(ValueError, match=r"hold no finite number \(found: .*Pass example inputs"):
        dp.inspect(Silent(outputs), torch.randn(2, 8))


class Counted(nn.Module):
    """Divides by a width inside a branch that a faint gate or a zero head hides."""

    def __init__(self, gate: float, head: float) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Linear(8, 32), nn.Linear(32, 8), nn.Linear(8, 4)
        self.gate = nn.Parameter(torch.full((8,), gate))
        nn.init.constant_(self.o.weight, head) if not head else None

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.a(x))
        return self.o(x + self.gate * self.b(h / h.shape[-1]))


@pytest.mark.parametrize(("gate", "head"), [(1.0, 1.0), (1e-6, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_weights_that_start_at_zero_hide_nothing(gate: float, head: float) -> None:
    torch.manual_seed(0)
    assert "changes the model's output" in left_alone(Counted(gate, head), torch.randn(4, 8))["a"]


class OnlyInTraining(nn.Module):
    """Writes a width down in a branch that runs in training mode alone."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, width, 3, padding=1)
        self.o = nn.Conv2d(width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.b(F.relu(self.a(x))))
        if self.training:
            return self.o(h).mean() + h.view(-1, 32, 7, 7).std(1).mean()
        return self.o(h)


@pytest.mark.parametrize("batch", [1, 2, 32])
def test_branches_of_training_mode_are_tried(batch: int) -> None:
    """Whether the numbers divide (a batch of 32) or not."""
    torch.manual_seed(0)
    model, x = OnlyInTraining().train(), torch.randn(batch, 3, 7, 7)
    assert "in training mode" in left_alone(model, x)["b"]
    prune(model, x, 0.7)
    assert model.training
    assert model(x).isfinite()


class Detector(nn.Module):
    """Returns its best places, sorted."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()
        )
        self.cls, self.box = nn.Conv2d(32, 1, 1), nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.b(x)
        s, i = self.cls(h).flatten(1).sigmoid().topk(2000)
        return s, self.box(h).flatten(2).gather(2, i[:, None].expand(-1, 4, -1))


def test_sorted_outputs_are_compared_in_the_order_of_before() -> None:
    torch.manual_seed(0)
    model, x = Detector(), torch.randn(1, 3, 64, 64)
    assert left_alone(model, x).keys() == {"cls", "box"}
    report = prune(model, x, loss=lambda y: y[0].pow(2).mean() + y[1].pow(2).mean())
    assert report.ordered == 1
    assert "1 choices of order" in str(report)


def test_a_lack_of_memory_is_no_reason_to_leave_a_width_alone() -> None:
    class Full(nn.Linear):
        runs = 0

        def forward(self, x: Tensor) -> Tensor:
            Full.runs += 1
            if Full.runs == 4:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return super().forward(x)

    model = nn.Sequential(Full(8, 32), nn.ReLU(), nn.Linear(32, 4))
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        dp.inspect(model, torch.randn(2, 8))


@pytest.mark.parametrize(("build_in", "cut_in"), [(True, False), (False, True), (True, True)])
def test_autocast_voids_no_proof(build_in: bool, cut_in: bool) -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.relu(self.a(x)).view(-1, 16))

    x = torch.randn(4, 8)
    with torch.autocast("cpu", torch.bfloat16, enabled=build_in):
        assert "forward() fails" in left_alone(Written(), x)["a"]
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    with torch.autocast("cpu", torch.bfloat16, enabled=build_in):
        model(x)  # its weights are in autocast's cache now
        assert [group.layer for group in dp.inspect(model, x).groups] == ["0"]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    pruner = dp.DecayPruner(
        model, optimizer, x, budget=dp.Budget(structures=0.5),
        schedule=dp.Schedule(stop=2, decay_steps=2),
    )  # fmt: skip
    for _ in range(8):
        model(x).pow(2).mean().backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=cut_in):
        model(x)
        report = pruner.compact()
        assert model(x).shape == (4, 4)
    assert 0 <= report.max_rel_error < 1e-5
    assert model[0].out_features == 8


def test_the_very_cut_is_tried_when_it_is_chosen() -> None:
    """A width that may only stay even: chance may not try it, the chosen cut is tried at once."""

    class Paired(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.o = nn.Linear(8, 34), nn.Linear(34, 4)
            self.allowed: set[int] | None = None

        def forward(self, x: Tensor) -> Tensor:
            h = F.relu(self.a(x))
            if self.allowed is not None and h.shape[-1] not in self.allowed:
                raise RuntimeError(f"{h.shape[-1]} is no good")
            return self.o(h)

    torch.manual_seed(0)
    model, x = Paired(), torch.randn(4, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    pruner = dp.DecayPruner(
        model, optimizer, x, budget=dp.Budget(structures=0.3), rectify=None,
        schedule=dp.Schedule(stop=2, decay_steps=50),
    )  # fmt: skip
    model.allowed = {34}  # as a model whose forward() reads a setting that changes
    model(x).pow(2).mean().backward()
    optimizer.step()
    with pytest.raises(dp.CompactionError, match=r"chosen at step 1 cannot be made: .* is no good"):
        pruner.step()
    assert model.a.out_features == 34
