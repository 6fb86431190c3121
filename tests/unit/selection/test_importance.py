"""Scores against loops over one structure at a time, and their symmetries."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn

from cases import CASES
from decayprune.selection.importance import (
    IMPORTANCES,
    bn_scale,
    magnitude,
    magnitude_l1,
    normalised,
    random,
    refreshed,
    taylor,
)
from decayprune.structures import StructureMap, trace
from loops import Net, backward, batches, net
from reference import ops as slow

SCORED = ["chain", "residual", "concat", "depthwise", "grouped", "flatten", "tied", "gated_mlp"]


def traced(case: str) -> tuple[StructureMap, dict[str, nn.Parameter]]:
    model, inputs = CASES[case]()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return trace(model, inputs), dict(model.named_parameters())


@pytest.mark.parametrize("case", SCORED)
class TestAgainstLoops:
    def test_magnitude(self, case: str) -> None:
        structures, parameters = traced(case)
        expected = [slow.norm(structures, s, parameters) for s in range(structures.num_structures)]
        assert magnitude(structures, parameters).tolist() == pytest.approx(expected, rel=1e-9)

    def test_magnitude_l1(self, case: str) -> None:
        structures, parameters = traced(case)
        expected = [
            sum(
                float(parameters[n].detach().select(d, i).abs().sum())
                for n, d, i in slow.pieces(structures, s)
            )
            for s in range(structures.num_structures)
        ]
        assert magnitude_l1(structures, parameters).tolist() == pytest.approx(expected, rel=1e-9)

    def test_taylor(self, case: str) -> None:
        structures, parameters = traced(case)
        expected = []
        for structure in range(structures.num_structures):
            terms = [
                (parameters[item.name].detach() * parameters[item.name].grad)
                .select(item.dim, index)
                .sum()
                for item in structures.slices
                if item.role == "column"
                for index in (item.structure == structure).nonzero().flatten().tolist()
            ]
            assert terms, "every width of these has a consumer"
            expected.append(abs(float(sum(terms))))
        assert taylor(structures, parameters).tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU()])
def test_taylor_is_the_derivative_by_a_gate_on_the_channel(activation: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(6, 8), activation, nn.Linear(8, 3)).double()
    inputs = torch.randn(5, 6, dtype=torch.float64)
    gate = torch.ones(8, dtype=torch.float64, requires_grad=True)
    loss = model[2](activation(model[0](inputs)) * gate).square().sum()
    loss.backward()
    structures, parameters = trace(model, inputs), dict(model.named_parameters())
    torch.testing.assert_close(taylor(structures, parameters), gate.grad.abs())
    rows = [
        abs(
            slow.inner(
                structures, s, parameters, {n: p.grad for n, p in parameters.items()}, carriers=True
            )
        )
        for s in range(8)
    ]
    assert (gate.grad.abs().tolist() == pytest.approx(rows)) == isinstance(activation, nn.ReLU)


def test_taylor_reads_rows_where_nothing_reads_a_column() -> None:
    model = net()
    structures, parameters = trace(model, torch.zeros(1, 3, 8, 8)), dict(model.named_parameters())
    for parameter in parameters.values():
        parameter.grad = torch.randn_like(parameter)
    blind = dataclasses.replace(
        structures, slices=tuple(s for s in structures.slices if s.role != "column")
    )
    grads = {name: p.grad for name, p in parameters.items()}
    expected = [
        abs(slow.inner(structures, s, parameters, grads, carriers=True))
        for s in range(structures.num_structures)
    ]
    assert taylor(blind, parameters).tolist() == pytest.approx(expected, rel=1e-6)


def test_bn_scale_is_the_sum_of_gammas() -> None:
    model = net()
    with torch.no_grad():
        for module in (model.stem[1], model.a[1], model.b[1]):
            module.weight.normal_()
    structures = trace(model, torch.zeros(1, 3, 8, 8), ["c"])
    scores = bn_scale(structures, dict(model.named_parameters()))
    expected = {
        "stem.0": model.stem[1].weight.abs() + model.b[1].weight.abs(),
        "a.0": model.a[1].weight.abs(),
    }
    assert len(structures.groups) == 2
    for group in structures.groups:
        torch.testing.assert_close(scores[group.start : group.stop], expected[group.layer])


def test_bn_scale_needs_a_norm_everywhere() -> None:
    model = net()
    structures = trace(model, torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"a normaliser with a scale in every group.*: c\. Put"):
        bn_scale(structures, dict(model.named_parameters()))


def test_taylor_needs_gradients() -> None:
    model = net()
    structures = trace(model, torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"reads gradients, and no parameter has any\. Call"):
        taylor(structures, dict(model.named_parameters()))
    reader = next(s for s in structures.slices if s.role == "column")  # the others count as zero
    parameter = model.get_parameter(reader.name)
    parameter.grad = torch.ones_like(parameter)
    scores = taylor(structures, dict(model.named_parameters()))
    other = [d for d in range(parameter.dim()) if d != reader.dim]
    expected = torch.zeros(structures.num_structures)
    expected[reader.structure] = parameter.detach().sum(other).abs()
    torch.testing.assert_close(scores, expected)


def permuted(model: Net, order: Tensor) -> Net:
    """The same function, with the channels inside the residual block in another order."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for module in (other.a[0], other.a[1]):
            for tensor in (*module.parameters(), *module.buffers()):
                if tensor.dim():
                    tensor.copy_(tensor[order])
        other.b[0].weight.copy_(other.b[0].weight[:, order])
    return other


@pytest.mark.parametrize("name", ["magnitude", "magnitude_l1", "taylor"])
def test_scores_permute_with_channels(name: str) -> None:
    model, order = net(), torch.randperm(10)
    other = permuted(model, order)
    found = []
    for one in (model, other):
        backward(one, next(iter(batches(1))))
        structures = trace(one, torch.zeros(1, 3, 8, 8))
        found.append(IMPORTANCES[name](structures, dict(one.named_parameters())))
    group = next(g for g in structures.groups if g.layer == "a.0")
    mapping = torch.arange(structures.num_structures)
    mapping[group.start : group.stop] = order + group.start
    torch.testing.assert_close(found[1], found[0][mapping], rtol=1e-4, atol=1e-6)


def test_random_is_one_order_per_seed() -> None:
    structures = trace(net(), torch.zeros(1, 3, 8, 8))
    before = torch.get_rng_state()
    one, again, other = (random(seed)(structures, {}) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)
    assert bool((one > 0).all())


def test_normalised_by_the_mean_of_the_group() -> None:
    scores = torch.tensor([1.0, 3.0, 10.0, 0.0, 0.0])
    groups = torch.tensor([0, 0, 1, 2, 2])
    assert normalised(scores, groups).tolist() == [0.5, 1.5, 1.0, 0.0, 0.0]
    torch.testing.assert_close(
        normalised(scores * 1e-3, groups), normalised(scores, groups), rtol=1e-6, atol=0
    )


def test_refreshed_scores_keep_the_mean_of_their_group() -> None:
    old = torch.tensor([1.0, 2.0, 3.0, 4.0, 0.0, 0.0])
    new = torch.tensor([9.0, 30.0, 10.0, 9.0, 5.0, 6.0])
    fresh = torch.tensor([False, True, True, False, True, True])
    groups = torch.tensor([0, 0, 0, 1, 2, 2])
    found = refreshed(old, new, fresh, groups)
    # 30 and 10 at the mean of 2 and 3; group 1 as it was; group 2 had no scores yet.
    torch.testing.assert_close(found, torch.tensor([1.0, 3.75, 1.25, 4.0, 5.0, 6.0]))
