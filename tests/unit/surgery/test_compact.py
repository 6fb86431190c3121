"""Removal changes nothing: outputs, optimizer state, identities; or the model stays uncut."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import decayprune as dp
from cases import CASES
from decayprune.structures import StructureMap, trace
from decayprune.structures.twin import named_tensors
from decayprune.surgery.compact import compact
from decayprune.surgery.trial import refuse_uncuttable
from loops import INPUTS, OPTIMIZERS, Net, backward, batches, net, pruner_for, same, train
from reference import cut as slow


def zeroed(model: nn.Module, structures: StructureMap, gone: Tensor) -> nn.Module:
    return slow.zeroed(model, structures, set(gone.nonzero().flatten().tolist())).eval()


def one_each(structures: StructureMap) -> Tensor:
    """The second structure of every group that can spare one."""
    gone = torch.zeros(structures.num_structures, dtype=torch.bool)
    gone[[group.start + 1 for group in structures.groups if group.size > 1]] = True
    return gone


@pytest.mark.parametrize("case", sorted(CASES))
def test_every_coupling_is_cut_without_a_difference(case: str) -> None:
    model, inputs = CASES[case]()
    structures = refuse_uncuttable(model, trace(model, inputs), inputs)
    gone = one_each(structures)
    if not gone.any():
        assert structures.refusals, "nothing to cut, and no reason given"
        return
    model = zeroed(model, structures, gone)
    before = slow.run(model, inputs)
    twin = slow.cut(model, structures, set(gone.nonzero().flatten().tolist()))
    report = compact(model, structures, gone, example_inputs=inputs)
    assert slow.error(before, slow.run(model, inputs)) < 1e-9
    ours, theirs = named_tensors(model), named_tensors(twin)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert report.max_rel_error < 1e-9
    assert report.removed == int(gone.sum())
    assert report.params_after == sum(p.numel() for p in model.parameters())
    assert report.params_after < report.params_before
    assert report.macs_after < report.macs_before


def test_integers_that_may_count_a_cut_width_are_listed() -> None:
    model, inputs = CASES["residual"]()
    model.dim, model.other_dim = 6, 40
    structures = dataclasses.replace(
        trace(model, inputs),
        doubtful=(("", "dim", torch.tensor([-1, 1])), ("a", "dim", torch.tensor([0, 2]))),
    )
    gone = one_each(structures)
    assert gone.nonzero().flatten().tolist()[:1] == [1]
    report = compact(zeroed(model, structures, gone), structures, gone, example_inputs=inputs)
    assert report.doubtful == ("dim",)
    assert "may count it, left as they are: dim." in str(report)
    assert json.loads(report.to_json())["doubtful"] == ["dim"]


def pruned(optimizer: str) -> tuple[Net, torch.optim.Optimizer, dp.DecayPruner]:
    model = net()
    opt = OPTIMIZERS[optimizer](model.parameters())
    pruner = pruner_for(model, opt)
    train(model, opt, 24, pruner)
    assert pruner.finished
    return model, opt, pruner


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_optimizer_state_is_the_slice(optimizer: str) -> None:
    model, opt, pruner = pruned(optimizer)
    state = {id(p): copy.copy(opt.state[p]) for p in model.parameters()}
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    identities = {name: id(p) for name, p in model.named_parameters()}
    before = slow.run(model, INPUTS)
    report = pruner.compact()
    assert slow.error(before, slow.run(model, INPUTS)) < 1e-5
    held = {id(p) for group in opt.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert id(parameter) == identities[name]
        assert id(parameter) in held

        def kept(value: Tensor, name: str = name) -> Tensor:
            for dim in range(value.dim()):
                index = report.kept.get((name, dim), torch.arange(value.shape[dim]))
                value = value.index_select(dim, index)
            return value

        assert torch.equal(parameter, kept(weights[name]))
        assert list(opt.state[parameter]) == list(state[id(parameter)])
        for key, value in state[id(parameter)].items():
            expected = kept(value) if value.dim() else value
            assert torch.equal(opt.state[parameter][key], expected), (name, key)
    assert len(opt.state) == len(state)


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_training_goes_on_as_if_zeros_were_still_there(optimizer: str) -> None:
    model, opt, pruner = pruned(optimizer)
    uncut = copy.deepcopy(model)
    other = OPTIMIZERS[optimizer](uncut.parameters())
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    pruner.compact()
    train(model, opt, 5, pruner, first=24)
    train(uncut, other, 5, first=24)
    error = slow.error(slow.run(uncut, INPUTS), slow.run(model, INPUTS))
    assert error < 1e-3


@pytest.mark.parametrize("after", ["forward", "backward", "retained"])
def test_the_graph_of_the_last_loss_may_be_alive(after: str) -> None:
    model, opt, pruner = pruned("SGD momentum")
    images, targets = next(iter(batches(1)))
    loss = F.cross_entropy(model(images), targets)
    if after != "forward":
        loss.backward(retain_graph=after == "retained")
    pruner.compact()
    shapes = {name: p.shape for name, p in model.named_parameters()}
    assert all(p.grad is None or p.grad.shape == p.shape for p in model.parameters())
    opt.zero_grad()
    backward(model, (images, targets))
    opt.step()
    assert {name: p.grad.shape for name, p in model.named_parameters()} == shapes
    assert loss.isfinite()


def test_the_report_says_what_happened() -> None:
    model, _, pruner = pruned("SGD")
    gone = int(pruner.lifecycle.pruned.sum())
    report = pruner.compact()
    figures = json.loads(report.to_json())
    assert figures["params_after"] == sum(p.numel() for p in model.parameters())
    assert figures["removed"] == gone == sum(b - a for _, b, a in report.widths)
    assert report.macs_after <= 0.5 * report.macs_before
    widths = {w["layer"]: w["after"] for w in figures["widths"]}
    assert widths["c"] == model.c.weight.shape[0]
    assert (model.stem[0].out_channels, model.a[0].in_channels) == (widths["stem.0"],) * 2
    assert f"{gone} structures removed" in str(report)
    assert f"{report.macs_after:,}" in str(report)
    assert f">{report.macs_after:,}<" in report._repr_html_()
    assert f"{gone} structures removed" in report._repr_html_()
    assert f"{report.params_after / report.params_before:.1%}" in str(report)


def test_a_second_call_returns_the_same_report() -> None:
    model, opt, pruner = pruned("SGD")
    report = pruner.compact()
    before = copy.deepcopy(model.state_dict())
    assert pruner.compact() is report
    pruner.step()
    pruner.observe()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    train(model, opt, 2, pruner)
    assert pruner.steps == 24


def test_cutting_the_frozen_and_channels_last() -> None:
    model = net().to(memory_format=torch.channels_last).eval()
    structures = trace(model, INPUTS)
    gone = one_each(structures)
    cut = zeroed(model, structures, gone)
    before = slow.run(cut, INPUTS)
    compact(cut, structures, gone, example_inputs=INPUTS)
    assert slow.error(before, slow.run(cut, INPUTS)) < 1e-5
    assert cut.a[0].weight.is_contiguous(memory_format=torch.channels_last)


class TestSabotage:
    """A wrong map is noticed, the model left bit-equal and uncut, the group named."""

    def attempt(self, change: object, match: str) -> None:
        model, opt, pruner = pruned("AdamW")
        before = copy.deepcopy(model)
        attributes = [(m.in_channels, m.out_channels) for m in (model.a[0], model.b[0], model.c)]
        state = copy.deepcopy(opt.state_dict()["state"])
        pruner._session.structures = change(pruner.structures)
        with pytest.raises(dp.CompactionError, match=match) as caught:
            pruner.compact()
        assert "left uncut" in str(caught.value)
        assert same(before, model)
        for module, was in zip((model.a[0], model.b[0], model.c), attributes, strict=True):
            assert (module.in_channels, module.out_channels) == was
        after = opt.state_dict()["state"]
        for index, values in state.items():
            assert all(torch.equal(after[index][key], value) for key, value in values.items())
        backward(model, next(iter(batches(1))))
        opt.step()

    def test_a_wrong_attribute(self) -> None:
        # groups= of the stem instead of its out_channels: the convolution then fails.
        def change(map_: StructureMap) -> StructureMap:
            changed = [
                (module, "groups" if (module, name) == ("a.0", "out_channels") else name, v, d)
                for module, name, v, d in map_.attributes
            ]
            return dataclasses.replace(map_, attributes=tuple(changed))

        self.attempt(change, r"forward\(\) fails.*Groups that fail alone: .*a\.0")

    def test_a_missing_slice(self) -> None:
        def change(map_: StructureMap) -> StructureMap:
            rest = [s for s in map_.slices if (s.name, s.dim) != ("b.0.weight", 1)]
            return dataclasses.replace(map_, slices=tuple(rest))

        self.attempt(change, r"forward\(\) fails.*Groups that fail alone: .*a\.0")

    def test_labels_of_the_wrong_channels(self) -> None:
        # The running mean is cut at other channels than the filters: only outputs can tell.
        def change(map_: StructureMap) -> StructureMap:
            slices = [
                dataclasses.replace(s, structure=s.structure.flip(0))
                if s.name == "a.1.running_var"
                else s
                for s in map_.slices
            ]
            return dataclasses.replace(map_, slices=tuple(slices))

        self.attempt(change, r"outputs changed by .*Groups that fail alone: a\.0")

    def test_weights_that_came_alive_again(self) -> None:
        model, _, pruner = pruned("SGD")
        gone = pruner.lifecycle.pruned.nonzero().flatten()
        first = int(
            gone[pruner.structures.group_of[gone] == pruner.structures.group_of[gone[0]]][0]
        )
        layer, index = pruner.structures.layer_of(first), int(pruner.structures.index[first])
        with torch.no_grad():
            model.get_submodule(layer).weight[index, 0] += 1e-3
        before = copy.deepcopy(model)
        with pytest.raises(dp.CompactionError, match=f"channel {index} of {layer}"):
            pruner.compact()
        assert same(before, model)


def test_state_that_cannot_be_cut_along_is_refused() -> None:
    model = net()
    structures = trace(model, INPUTS)
    gone = one_each(structures)
    model = zeroed(model, structures, gone)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.state[model.c.weight]["factor"] = torch.zeros(8, 12)
    before = copy.deepcopy(model)
    with pytest.raises(dp.CompactionError, match=r"SGD keeps 'factor' of shape \(8, 12\) for c"):
        compact(model, structures, gone, example_inputs=INPUTS, optimizers=[optimizer])
    assert same(before, model)
