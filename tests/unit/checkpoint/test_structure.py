"""Structure in memory: what it says, what reshaping does, and what is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import decayprune as dp
from cases import CASES
from decayprune.structures import trace
from decayprune.structures.structure_map import Bypassed
from decayprune.surgery.bypassing import bypass
from decayprune.surgery.compact import compact
from decayprune.surgery.cut import changed_sizes
from decayprune.surgery.trial import refuse_uncuttable
from decayprune.surgery.undo import Undo
from loops import Net, net, same
from reference import cut as slow
from residual_nets import stack


def cut_case(case: str) -> tuple[nn.Module, Any]:
    """A model of the zoo that has lost a structure of every group."""
    model, inputs = CASES[case]()
    structures = refuse_uncuttable(model, trace(model, inputs), inputs)
    gone = torch.zeros(structures.num_structures, dtype=torch.bool)
    gone[[group.start for group in structures.groups if group.size > 1]] = True
    model = slow.zeroed(model, structures, set(gone.nonzero().flatten().tolist())).eval()
    compact(model, structures, gone, example_inputs=inputs)
    return model, inputs


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("case", sorted(CASES))
def test_a_reshaped_model_takes_the_weights_and_computes_the_same(case: str, device: str) -> None:
    model, inputs = cut_case(case)
    said = json.loads(json.dumps(dp.structure(model)))  # plain JSON values
    fresh, _ = CASES[case]()
    buffers = {name: value.clone() for name, value in fresh.named_buffers()}
    identities = [id(p) for p in fresh.parameters()]
    if device == "meta":
        fresh = fresh.to("meta")
    assert dp.reshape(fresh, said) is fresh
    if device == "meta":
        fresh = fresh.to_empty(device="cpu")
        for name, value in fresh.named_buffers():
            if value.shape == buffers[name].shape:  # to_empty() emptied those nobody saves
                value.copy_(buffers[name])
    else:
        assert [id(p) for p in fresh.parameters()] == identities
    fresh.load_state_dict(model.state_dict())
    for one, other in zip(slow.run(model, inputs), slow.run(fresh, inputs), strict=True):
        assert torch.equal(one, other)
    if device == "cpu":  # to() unties
        assert dp.structure(fresh) == said
        assert dp.structure(dp.reshape(fresh, said)) == said  # a second time changes nothing


def test_a_default_device_is_no_hindrance() -> None:
    """Loaders make models, and reshape them, where new tensors have no values."""

    class OwnNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.eps = nn.Parameter(torch.ones(8)), 1e-6

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)

    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), OwnNorm(), nn.Linear(8, 3)).double()

    torch.manual_seed(0)
    model, inputs = make(), torch.randn(2, 4, dtype=torch.float64)
    structures = trace(model, inputs)
    gone = torch.arange(structures.num_structures) == 1
    model.load_state_dict(slow.zeroed(model, structures, {1}).state_dict())
    compact(model, structures, gone, example_inputs=inputs)
    with torch.device("meta"):
        fresh = dp.reshape(make(), dp.structure(model))
    fresh.to_empty(device="cpu").load_state_dict(model.state_dict())
    assert torch.equal(fresh(inputs), model(inputs))


def test_the_first_indices_stay_until_weights_are_loaded() -> None:
    fresh = nn.Linear(4, 3)
    before = fresh.weight.detach().clone()
    said = dp.structure(nn.Linear(2, 3))
    dp.reshape(fresh, said)
    assert torch.equal(fresh.weight, before[:, :2])
    assert fresh.weight.requires_grad
    assert repr(fresh) == repr(nn.Linear(2, 3))


def test_dtype_and_memory_format_are_those_of_the_fresh_model() -> None:
    fresh = nn.Conv2d(4, 4, 3).to(torch.bfloat16, memory_format=torch.channels_last)
    dp.reshape(fresh, dp.structure(nn.Conv2d(2, 3, 3)))
    assert fresh.weight.dtype == torch.bfloat16
    assert fresh.weight.shape == (3, 2, 3, 3)
    assert fresh.weight.is_contiguous(memory_format=torch.channels_last)


def test_ties_may_differ_where_shapes_agree() -> None:
    """Whoever loads the weights ties them, before or after."""
    model, inputs = cut_case("tied")
    fresh, _ = CASES["tied"]()
    fresh.out.weight = nn.Parameter(fresh.out.weight.detach().clone())
    dp.reshape(fresh, dp.structure(model)).load_state_dict(model.state_dict())
    assert torch.equal(slow.run(fresh, inputs)[0], slow.run(model, inputs)[0])


# ---------------------------------------------------------------- integers of the user's modules


class Heads(nn.Module):
    """Attention in the user's own words, with integers that are sizes and some that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.epoch, self.unused = 4, 0, 9
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        return self.out(y.transpose(1, 2).flatten(2))


def cut_heads() -> tuple[Heads, Tensor]:
    torch.manual_seed(0)
    model, inputs = Heads().double().eval(), torch.randn(2, 5, 8, dtype=torch.float64)
    structures = trace(model, inputs)
    gone = torch.arange(structures.num_structures) == 1
    slow_model = slow.zeroed(model, structures, {1})
    model.load_state_dict(slow_model.state_dict())
    compact(model, structures, gone, example_inputs=inputs)
    assert model.heads == 3
    return model, inputs


def test_of_own_integers_only_those_that_the_cut_changed_are_recorded() -> None:
    model, inputs = cut_heads()
    model.epoch, model.seen = 3, 17
    assert dp.structure(model)["modules"][""] == {"type": "Heads", "heads": 3}
    fresh = Heads().double().eval()
    fresh.epoch = 5
    dp.reshape(fresh, dp.structure(model)).load_state_dict(model.state_dict())
    assert torch.equal(fresh(inputs), model(inputs))
    assert (fresh.epoch, fresh.unused, hasattr(fresh, "seen")) == (5, 9, False)


def test_copies_and_reshaped_models_still_know_what_changed() -> None:
    model, _ = cut_heads()
    said = dp.structure(model)
    assert dp.structure(copy.deepcopy(model)) == said
    assert dp.structure(dp.reshape(Heads().double(), said)) == said
    assert changed_sizes(Heads()) == ()


def test_an_undone_cut_leaves_no_note() -> None:
    torch.manual_seed(0)
    model, inputs = Heads().double().eval(), torch.randn(2, 5, 8, dtype=torch.float64)
    structures = trace(model, inputs)
    gone = torch.arange(structures.num_structures) == 1
    with pytest.raises(dp.CompactionError):  # nothing is zero
        compact(model, structures, gone, example_inputs=inputs)
    assert model.heads == 4
    assert changed_sizes(model) == ()


@pytest.mark.parametrize("kind", [tuple, list])
def test_sizes_of_a_split_come_along(kind) -> None:
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = kind((8, 24))
            self.a, self.b, self.c = nn.Linear(5, 32), nn.Linear(8, 4), nn.Linear(24, 4)

        def forward(self, x):
            p, q = self.a(x).split(self.parts, 1)
            return self.b(p) + self.c(q)

    model, inputs = Split().double(), torch.randn(2, 5, dtype=torch.float64)
    structures = trace(model, inputs)
    gone = torch.zeros(structures.num_structures, dtype=torch.bool)
    gone[[1, 2, 10]] = True
    model.load_state_dict(slow.zeroed(model, structures, {1, 2, 10}).state_dict())
    compact(model, structures, gone, example_inputs=inputs)
    assert sum(model.parts) == 29
    assert sorted(model.parts) != [8, 24]
    fresh = dp.reshape(Split().double(), dp.structure(model))
    assert fresh.parts == model.parts
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(inputs), model(inputs))


def test_older_structures_say_more_and_are_still_taken() -> None:
    model, inputs = cut_heads()
    said = dp.structure(model)
    said["modules"][""] |= {"epoch": 3, "unused": 9}
    fresh = dp.reshape(Heads().double().eval(), said)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(inputs), model(inputs))


# ---------------------------------------------------------------- buffers that nobody saves


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)
        self.register_buffer("scale", torch.linspace(1, 2, 8), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)) * self.scale)


def cut_scaled(*gone: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model, inputs = Scaled().double().eval(), torch.randn(2, 4, dtype=torch.float64)
    for structure in gone:  # one after the other, each counted from what is left
        structures = trace(model, inputs)
        leaves = torch.arange(structures.num_structures) == structure
        model.load_state_dict(slow.zeroed(model, structures, {structure}).state_dict())
        compact(model, structures, leaves, example_inputs=inputs)
    return model, inputs


@pytest.mark.parametrize("gone", [(2,), (2, 2, 0)], ids=["one cut", "three cuts"])
def test_buffers_that_are_not_persistent_are_cut_again(gone: tuple[int, ...]) -> None:
    model, inputs = cut_scaled(*gone)
    said = json.loads(json.dumps(dp.structure(model)))
    kept = [i for i in range(8) if i not in ((2,) if len(gone) == 1 else (0, 2, 3))]
    assert said["buffers"] == {"scale": [[0, kept]]}
    fresh = dp.reshape(Scaled().double().eval(), said)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(inputs), model(inputs))
    assert dp.structure(dp.reshape(fresh, said)) == said
    assert "buffers" not in dp.structure(Scaled())


@pytest.mark.parametrize(
    ("buffers", "match"),
    [
        ([], "'buffers' is not an object"),
        ({"scale": [[0]]}, "the entry of buffer 'scale' is not"),
        ({"scale": [[0, [-1]]]}, "the entry of buffer 'scale' is not"),
        ({"scale": [[0, [0, 8]]]}, r"indices kept of scale do not fit its \[8\]"),
        ({"scale": [[0, [1, 1]]]}, r"indices kept of scale do not fit its \[8\]"),
        ({"scale": [[1, [0]]]}, r"indices kept of scale do not fit its \[8\]"),
        ({"scale": [[0, []]]}, r"indices kept of scale do not fit its \[8\]"),
        ({"a.weight": [[0, [0]]]}, "it has no buffer 'a.weight'"),
        ({"x.y": [[0, [0]]]}, "it has no buffer 'x.y'"),
    ],
)
def test_forged_indices_are_refused(buffers: Any, match: str) -> None:
    fresh = Scaled()
    with pytest.raises(dp.CheckpointError, match=match):
        dp.reshape(fresh, dp.structure(fresh) | {"buffers": buffers})
    assert fresh.scale.shape == (8,)


# ---------------------------------------------------------------- refusals


def test_arguments_that_are_no_modules() -> None:
    with pytest.raises(TypeError, match=r"structure\(model\) takes .* found OrderedDict"):
        dp.structure(net().state_dict())
    with pytest.raises(TypeError, match=r"reshape\(model, structure\) takes the model first"):
        dp.reshape(dp.structure(net()), net())


LIES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no structure": (lambda s: s.clear(), r"was not written by decayprune\.structure\(\)"),
    "a shape of text": (lambda s: s["tensors"]["fc.bias"].update(shape="4"), "is damaged"),
    "wider than the model": (
        lambda s: s["tensors"]["fc.bias"].update(shape=[5]),
        r"fc\.bias is \[5\] there and \[4\] here",
    ),
    "a tensor less": (lambda s: s["tensors"].pop("fc.bias"), "this one has a tensor 'fc.bias'"),
    "a width that is not the weight's": (
        lambda s: s["modules"]["fc"].update(out_features=3),
        r"out_features of module 'fc' is 3 there, and its weight 4",
    ),
    "groups that divide nothing": (
        lambda s: s["modules"]["a.0"].update(groups=0),
        "in_channels of module 'a.0' is 12 there, and its weight 0",
    ),
    "a size larger than the model's": (
        lambda s: s["modules"]["a.0"].update(groups=3, in_channels=36),
        "in_channels of module 'a.0' is 36 there and 12 here",
    ),
    "statistics of another width": (
        lambda s: s["modules"]["a.1"].update(num_features=1),
        "num_features of module 'a.1' is 1 there, and its weight 10",
    ),
}


@pytest.mark.parametrize("lie", sorted(LIES))
def test_a_forged_structure_is_refused_and_changes_nothing(lie: str) -> None:
    change, match = LIES[lie]
    said = dp.structure(net())
    change(said)
    fresh = net(seed=5)
    before = copy.deepcopy(fresh)
    with pytest.raises(dp.CheckpointError, match=match):
        dp.reshape(fresh, said)
    assert same(before, fresh)
    assert dp.structure(fresh) == dp.structure(before)


def test_another_architecture() -> None:
    with pytest.raises(dp.CheckpointError, match=r"does not fit this Heads: .*\(Net\)"):
        dp.reshape(Heads(), dp.structure(net()))
    assert isinstance(net(), Net)


# ---------------------------------------------------------------- removed branches


def without_a_branch() -> tuple[nn.Module, dict[str, Any]]:
    """A stack of two blocks without the first branch, and what its structure says."""
    model = stack(blocks=2)
    bypass(
        Undo(), model, [Bypassed(f"blocks.0.{n}", n == "down", 0) for n in ("norm", "up", "down")]
    )
    return model, dp.structure(model)


def test_removed_branches_are_told_and_removed_again() -> None:
    model, said = without_a_branch()
    assert said["bypassed"]["blocks.0.down"] == {"type": "Linear", "zero": 1, "items": 0}
    assert not any(name.startswith("blocks.0") for name in said["tensors"])
    fresh = stack(blocks=2, seed=1)
    dp.reshape(fresh, json.loads(json.dumps(said))).load_state_dict(model.state_dict())
    x = torch.randn(3, 8)
    assert torch.equal(fresh(x), model(x))
    assert dp.structure(dp.reshape(fresh, said)) == said  # a second time changes nothing


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"blocks.7": {"type": "Block", "zero": 0, "items": 0}}, "'blocks.7' is no Block here"),
        ({"blocks.1": {"type": "Linear", "zero": 0, "items": 0}}, "'blocks.1' is no Linear here"),
        ({"blocks": {"type": "Sequential", "zero": 0, "items": 0}}, "'blocks' is no Sequential"),
        ({"blocks.1": {"type": "Block", "zero": 0}}, "is not a type, zero and items"),
        ({"blocks.1": {"type": "Block", "zero": 0, "items": -1}}, "is no small number"),
        ({"blocks.1": {"type": "Block", "zero": 0, "items": 1 << 30}}, "is no small number"),
        ([], "'bypassed' is not an object"),
    ],
)
def test_damaged_words_on_removed_branches_change_nothing(change: Any, match: str) -> None:
    _, said = without_a_branch()
    said["bypassed"] = change if isinstance(change, list) else said["bypassed"] | change
    fresh = stack(blocks=2)
    with pytest.raises(dp.CheckpointError, match=match):
        dp.reshape(fresh, said)
    assert isinstance(fresh.blocks[0].down, nn.Linear)


def test_a_branch_that_is_gone_does_not_come_back() -> None:
    model, _ = without_a_branch()
    with pytest.raises(dp.CheckpointError, match=r"'blocks\.0\.norm' was removed here"):
        dp.reshape(model, dp.structure(stack(blocks=2)))
