"""The pruner under what else stands around a loop: compilers, checkpoints, formats, scalers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import decayprune as dp
from loops import OPTIMIZERS, Net, backward, batches, net, pruner_for, same, train
from reference import ops as slow

STEPS = 22


def run(
    prepare: Callable[[Net], nn.Module] = lambda model: model,
) -> tuple[Net, torch.optim.Optimizer, dp.DecayPruner]:
    """One run until everything is pruned; what the loop calls is prepared from the model."""
    model = net()
    optimizer = OPTIMIZERS["SGD momentum"](model.parameters())
    pruner = pruner_for(model, optimizer)
    train(prepare(model), optimizer, STEPS, pruner)
    assert pruner.finished
    return model, optimizer, pruner


class TestCompile:
    """The pruner knows the module itself; the loop calls its compiled face."""

    @pytest.fixture(autouse=True)
    def _forget_what_was_compiled(self) -> None:
        torch.compiler.reset()

    def test_the_same_run_before_and_after_the_cut(self) -> None:
        plain, optimizer, reference = run()
        model, other, pruner = run(lambda model: torch.compile(model, backend="eager"))
        assert same(plain, model)
        assert pruner.events == reference.events
        assert pruner.compact().to_json() == reference.compact().to_json()
        train(plain, optimizer, 4, first=STEPS)
        train(torch.compile(model, backend="eager"), other, 4, first=STEPS)
        assert same(plain, model)

    def test_pruning_recompiles_nothing_and_the_cut_once(self) -> None:
        graphs = []

        def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
            graphs.append(graph)
            return graph.forward

        model, optimizer, pruner = run(lambda model: torch.compile(model, backend=count))
        assert len(graphs) == 1
        pruner.compact()
        compiled = torch.compile(model, backend=count)
        train(compiled, optimizer, 4, first=STEPS)
        assert len(graphs) in (1, 2)  # in older torch one graph serves every width
        (batch,) = batches(1)
        assert torch.equal(compiled.eval()(batch[0]), model.eval()(batch[0]))

    def test_compiled_in_place_after_the_pruner_was_built(self) -> None:
        plain, _, reference = run()
        model, optimizer, pruner = run(lambda model: model.compile(backend="eager") or model)
        assert pruner.events == reference.events
        assert pruner.compact().removed
        train(model, optimizer, 2, first=STEPS)
        assert not same(plain, model)


class Checkpointed(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + checkpoint(self._inside, x, use_reentrant=False))
        return self.fc(F.relu(self.c(x)).mean((2, 3)))

    def _inside(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)))


def test_gradient_checkpointing() -> None:
    """Same gradients, same decisions; batch norms see checkpointed batches twice."""
    ours, plain = Checkpointed(), net()
    ours.load_state_dict(plain.state_dict())
    results = []
    for model in (ours, plain):
        optimizer = OPTIMIZERS["SGD momentum"](model.parameters())
        pruner = pruner_for(model, optimizer)
        train(model, optimizer, STEPS, pruner)
        results.append((pruner.events, list(model.parameters())))
        assert pruner.compact().removed
        train(model, optimizer, 2, first=STEPS)
    (events, weights), (expected, others) = results
    assert events == expected
    assert all(torch.equal(a, b) for a, b in zip(weights, others, strict=True))


def test_channels_last_stays_channels_last() -> None:
    model = net().to(memory_format=torch.channels_last)
    optimizer = OPTIMIZERS["AdamW"](model.parameters())
    pruner = pruner_for(model, optimizer)
    for images, targets in batches(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(model(images.to(memory_format=torch.channels_last)), targets).backward()
        optimizer.step()
        pruner.step()
    assert pruner.compact().removed
    convolutions = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert any(weight.shape[:2] != (12, 10) for weight in convolutions)
    for weight in convolutions:
        moments = [v for v in optimizer.state[weight].values() if v.dim()]
        for tensor in (weight, weight.grad, *moments):
            assert tensor.shape == weight.shape
            assert tensor.is_contiguous(memory_format=torch.channels_last)
            assert not tensor.is_contiguous()
    train(model, optimizer, 2, first=STEPS)


def test_bfloat16_autocast() -> None:
    model = net()
    optimizer = OPTIMIZERS["AdamW"](model.parameters())
    pruner = pruner_for(model, optimizer)
    for images, targets in batches(STEPS):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(images), targets)
        loss.backward()
        optimizer.step()
        pruner.step()
    assert pruner.finished
    assert any(event.work for event in pruner.events if event.kind == "prune")
    report = pruner.compact()
    assert report.macs_after <= 0.5 * report.macs_before
    assert model.stem[0].weight.dtype == torch.float32
    assert all(v.dtype == torch.float32 for s in optimizer.state.values() for v in s.values())


class TestOneOfTwoIsSkipped:
    """A GradScaler skips the first of two optimizers at some attempts; the second one steps."""

    @staticmethod
    def halves(model: Net) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        first = [*model.stem.parameters(), *model.b.parameters()]
        held = set(map(id, first))
        return first, [p for p in model.parameters() if id(p) not in held]

    def test_the_step_counts_once_both_have_stepped(self) -> None:
        model = net()
        one, two = (torch.optim.SGD(half, lr=0.05) for half in self.halves(model))
        pruner = pruner_for(model, [one, two])
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for attempt, batch in enumerate(batches(33)):
            bad = attempt % 3 == 1
            images, targets = batch
            scaler.scale(F.cross_entropy(model(images), targets)).backward()
            if bad:
                model.stem[0].weight.grad[0] = float("inf")
            scaler.step(one)
            scaler.step(two)
            pruner.step()
            scaler.update()
            model.zero_grad()
            assert pruner.steps == attempt + 1 - (attempt + 2) // 3
        assert pruner.waited == 0
        assert pruner.finished
        assert pruner.compact().removed

    def test_resistance_is_that_of_the_weights_the_gradient_belongs_to(self) -> None:
        """p = -<g, w>/|w| with w right before its own optimizer's step, not one step earlier."""
        model = net().eval()
        first, second = self.halves(model)
        one, two = torch.optim.SGD(first, lr=0.0), torch.optim.SGD(second, lr=0.5)
        schedule = dp.Schedule(start=0, stop=10, rounds=1, decay_steps=5)
        never = dp.Rectify(rule="thresholds", t_rate=1.0)
        pruner = pruner_for(model, [one, two], schedule=schedule, rectify=never)
        data = list(batches(4))
        parameters = dict(model.named_parameters())

        backward(model, data[0])
        one.step(), two.step(), pruner.step(), model.zero_grad()
        picked = pruner.lifecycle.decaying.tolist()
        assert {pruner.structures.layer_of(s) for s in picked} >= {"a.0"}

        backward(model, data[1])
        two.step()  # the first one is skipped
        pruner.step()
        model.zero_grad()
        assert pruner.steps == 1

        backward(model, data[2])
        expected = {s: self.resistance(pruner, s, parameters) for s in picked}
        one.step(), two.step(), pruner.step()
        sums = pruner.lifecycle.statistics.at(torch.tensor(picked))
        assert sums.observed.tolist() == [1] * len(picked)
        torch.testing.assert_close(
            sums.resistance.double(),
            torch.tensor([expected[s] for s in picked]).double(),
            rtol=1e-2,  # norms are those after the last complete step; one optimizer went on alone
            atol=1e-8,
        )

    @staticmethod
    def resistance(pruner: dp.DecayPruner, structure: int, parameters: dict) -> float:
        grads = {name: p.grad for name, p in parameters.items()}
        inner = slow.inner(pruner.structures, structure, parameters, grads, carriers=True)
        return -inner / slow.norm(pruner.structures, structure, parameters, carriers=True)
