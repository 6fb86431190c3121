"""A twin computes the same, shares only storage, and leads nowhere back to the model."""

from __future__ import annotations

import copy
import threading
import warnings
import weakref
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from cases import CASES
from decayprune.structures.example import outputs
from decayprune.structures.twin import named_tensors, own_storage, twin
from living import Living

X = torch.linspace(-1, 1, 12).view(3, 4)


def check(model: nn.Module, inputs: Any = X) -> nn.Module:
    """The twin of a model, after the promises that hold for every one of them."""
    living = Living(model)
    made = twin(model)
    assert [name for name, _ in made.named_modules()] == [n for n, _ in model.named_modules()]
    for (name, ours), (_, theirs) in zip(model.named_modules(), made.named_modules(), strict=True):
        assert ours is not theirs, name
        assert type(ours) is type(theirs), name
        assert ours.training == theirs.training, name
    ours, theirs = named_tensors(model), named_tensors(made)
    assert list(ours) == list(theirs)
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, tensor in ours.items():
        assert theirs[name] is not tensor, name
        assert theirs[name].requires_grad == tensor.requires_grad, name
        assert theirs[name].stride() == tensor.stride(), name
        assert torch.equal(theirs[name], tensor), name
        assert (theirs[name].data_ptr() == tensor.data_ptr()) == (name in parameters), name
        assert theirs[name].grad is None, name
        for other in ours:  # what is tied stays tied
            assert (theirs[name] is theirs[other]) == (tensor is ours[other]), (name, other)
    found = outputs(made, inputs)
    own_storage(list(theirs.values()))
    with torch.no_grad():
        for tensor in theirs.values():
            tensor.zero_()
            tensor.data = tensor.data.flatten()
    living.check()
    expected = outputs(model, inputs)
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    return twin(model)


@pytest.mark.parametrize("case", sorted(CASES))
def test_every_coupling(case: str) -> None:
    check(*CASES[case]())


def layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 4))


def old_weight_norm() -> nn.Module:
    model = layers()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(model[0])
    assert not model[0].weight.is_leaf
    return model


def old_spectral_norm() -> nn.Module:
    model = layers()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.spectral_norm(model[0])
    return model.eval()


def parametrised(make: Callable[..., nn.Module]) -> Callable[[], nn.Module]:
    def model() -> nn.Module:
        found = layers()
        make(found[0])
        return found.eval()

    return model


def graph_module() -> nn.Module:
    return torch.fx.symbolic_trace(layers())


def channels_last() -> nn.Module:
    model = nn.Sequential(nn.Unflatten(1, (4, 1, 1)), nn.Conv2d(4, 3, (1, 1)))
    return model.to(memory_format=torch.channels_last)


def frozen() -> nn.Module:
    model = layers()
    model[0].requires_grad_(False)
    return model


@pytest.mark.parametrize(
    "make",
    [
        old_weight_norm,
        old_spectral_norm,
        parametrised(parametrizations.weight_norm),
        parametrised(parametrizations.spectral_norm),
        graph_module,
        channels_last,
        frozen,
        partial(nn.LSTM, 4, 3, num_layers=2),
        partial(nn.GRU, 4, 3, bidirectional=True),
    ],
)
def test_kinds_of_modules(make: Callable[[], nn.Module]) -> None:
    check(make())


@pytest.mark.filterwarnings("ignore")
def test_a_script_module_is_copied_weights_and_all() -> None:
    model = nn.Sequential(nn.Linear(4, 4), torch.jit.script(nn.Linear(4, 4)))
    living = Living(model)
    made = twin(model)
    assert torch.equal(made.eval()(X), model(X))
    assert model.training
    with torch.no_grad():
        for tensor in (made[1].weight, made[1].bias):
            tensor.zero_()
    living.check()


def test_parametrised_weights_are_computed_from_the_twins_own() -> None:
    model = layers()
    parametrizations.weight_norm(model[0])
    made = check(model)
    own_storage(list(made.parameters()))
    with torch.no_grad():
        for parameter in made[0].parametrizations.weight.parameters():
            parameter.zero_()
    assert parametrize.is_parametrized(made[0])
    assert not torch.equal(made[0].weight.nan_to_num(), model[0].weight)


class Holder(nn.Module):
    """Keeps its parts wherever Python lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.lock, self.seen = nn.Linear(4, 4), threading.Lock(), [0]
        self.hidden = [nn.Linear(4, 4)]
        self.by_module = {self.inner: "inner"}
        self.parent: Any = None
        self.outer_scale = nn.Parameter(torch.tensor(2.0))
        self.pairs = ((self.outer_scale, "scale"), (3, 4))
        self.ref = weakref.ref(self.inner)
        self.computed = [self.inner.weight * 2]
        self.noise = torch.Generator().manual_seed(3)
        inner = self.inner
        self.call = lambda x: inner(x) + self.hidden[0](x)
        self.bound = self.inner.forward
        self.part = partial(torch.add, self.outer_scale)

    def forward(self, x: Tensor) -> Tensor:
        self.seen[0] += 1
        assert self.by_module[self.inner] == "inner"
        noise = torch.rand(4, generator=self.noise)
        return self.call(x) + self.bound(x) + self.part(x) + self.ref()(x) + noise * 0


def test_parts_held_in_any_way_are_the_twins_own() -> None:
    model = Holder()
    model.parent = [model]
    check(model)
    state, seen = model.noise.get_state(), model.seen[0]
    made: Any = twin(model)
    assert made.parent[0] is made
    assert made.hidden[0] is not model.hidden[0]
    assert made.hidden[0].weight.data_ptr() == model.hidden[0].weight.data_ptr()
    assert made.pairs[0][0] is made.outer_scale
    assert made.pairs[1] is model.pairs[1]
    assert made.ref() is made.inner
    assert made.lock is model.lock
    before = outputs(model, X)[0]
    own_storage([*made.parameters(), made.hidden[0].weight, made.hidden[0].bias])
    with torch.no_grad():
        for tensor in (*made.parameters(), *made.hidden[0].parameters()):
            tensor.zero_()
    made(X)
    assert torch.equal(made(X), X)  # 0 + x: every way to compute led to the twin's zeros
    assert model.seen[0] == seen + 1
    assert made.seen[0] == seen + 2
    assert torch.equal(outputs(model, X)[0], before)
    assert not torch.equal(model.noise.get_state(), state)  # of the model's own two runs


class Trainer:
    """Owns far more than the model, and hooks into it."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.data, self.calls = model, [torch.zeros(9)], 0
        model.register_forward_hook(self.count)

    def count(self, *_: Any) -> None:
        self.calls += 1

    def __copy__(self) -> Trainer:
        raise AssertionError("a trainer is not copied")

    __deepcopy__ = __copy__


def test_a_bound_hook_does_not_drag_its_owner_along() -> None:
    model = layers()
    trainer = Trainer(model)
    made = check(model)
    hook = next(iter(made._forward_hooks.values()))
    assert hook.__self__ is trainer


class Collector:
    """Hooks that are bound to a part of the model, as timm's are."""

    def __init__(self, layer: nn.Module) -> None:
        self.found: dict[str, list[Tensor]] = defaultdict(list)
        layer.register_forward_hook(partial(self.collect, "out"))

    def collect(self, name: str, module: nn.Module, args: Any, out: Tensor) -> None:
        self.found[name].append(out)


class Collecting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.collector = Collector(self.layer)

    def forward(self, x: Tensor) -> Tensor:
        self.layer(x)
        return self.collector.found["out"].pop()


def test_hooks_bound_to_a_part_of_the_model_are_bound_to_the_twins() -> None:
    model = Collecting()
    check(model)
    assert not model.collector.found["out"]


def test_a_patched_forward_is_the_twins() -> None:
    model = layers()
    old = model[0].forward

    def patched(module: nn.Module, x: Tensor) -> Tensor:
        return old(x) + module.bias

    model[0].forward = partial(patched, model[0])
    made = check(model)
    own_storage(list(made.parameters()))
    with torch.no_grad():
        made[0].weight.zero_()
        made[0].bias.fill_(1.0)
    assert torch.equal(made[0](X), torch.full((3, 5), 2.0))


class Leaves(nn.Module):
    """Leaves its trainer out of its copies, as Lightning's modules do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.trainer = nn.Linear(4, 4), object()
        self.trainer = Trainer(nn.Identity())

    def __getstate__(self) -> dict[str, Any]:
        return dict(vars(self)) | {"trainer": None}

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * (self.trainer.calls + 1)


def test_what_a_module_leaves_out_of_its_copies_is_shared() -> None:
    model = Leaves()
    assert check(model).trainer is model.trainer


def test_optimizers_are_shared() -> None:
    model: Any = layers()
    model.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert check(model).optimizer is model.optimizer


def test_backward_hooks_stay_behind() -> None:
    model = layers()
    model.register_full_backward_hook(lambda *_: None)
    assert not check(model)._backward_hooks
    assert model._backward_hooks


def test_a_lazy_model_has_to_run_once() -> None:
    model = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"'0\.weight' of a lazy layer .* Run the model once"):
        twin(model)
    model(X)
    check(model)


@pytest.mark.filterwarnings("ignore")
def test_models_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=2, n_head=2, n_embd=16, vocab_size=50, n_positions=16, bos_token_id=1
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    assert model.lm_head.weight is model.transformer.wte.weight
    check(model, {"input_ids": torch.arange(6).view(1, 6), "use_cache": False})


def test_a_copy_of_a_twin_and_a_twin_of_a_copy() -> None:
    model = layers()
    check(copy.deepcopy(twin(model)))
    check(twin(copy.deepcopy(model)))


PATCHED = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def test_a_patched_forward_that_finds_the_model_by_a_global_name() -> None:
    PATCHED.forward = lambda x: PATCHED[2](torch.relu(PATCHED[0](x)))  # type: ignore[method-assign]
    copy, x = twin(PATCHED), torch.randn(3, 4)
    assert torch.equal(copy(x), PATCHED(x))
    with torch.no_grad():
        copy[0].weight.data = torch.zeros(8, 4)
        copy[0].bias.data = torch.zeros(8)
    assert not torch.equal(copy(x), PATCHED(x))
    assert torch.equal(copy(x), copy[2].bias.expand(3, 2))
