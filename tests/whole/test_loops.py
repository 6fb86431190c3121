"""The pruner in other people's training loops."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import decayprune as dp
from decayprune.structures import sums
from loops import INPUTS, OPTIMIZERS, Net, backward, batches, moves, net, pruner_for, same, train
from reference import ops as slow

STEPS = 22
FUSED = {
    "fused SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, fused=True),
    "fused Adam": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
}


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, *FUSED])
@pytest.mark.parametrize("rectify", [None, dp.Rectify()], ids=["smooth", "rectify"])
def test_a_pruner_that_selects_nothing_changes_nothing(
    optimizer: str, rectify: dp.Rectify | None
) -> None:
    make = (OPTIMIZERS | FUSED)[optimizer]
    plain, watched = net(), net()
    ours, theirs = make(watched.parameters()), make(plain.parameters())
    late = dp.Schedule(start=1000, stop=2000, decay_steps=10)
    random = torch.get_rng_state()
    pruner = pruner_for(watched, ours, schedule=late, rectify=rectify)
    assert torch.equal(torch.get_rng_state(), random)
    train(plain, theirs, 10)
    train(watched, ours, 10, pruner)
    assert same(plain, watched)
    assert pruner.steps == 10
    assert pruner.events == []
    for a, b in zip(plain.parameters(), watched.parameters(), strict=True):
        assert all(torch.equal(theirs.state[a][k], ours.state[b][k]) for k in theirs.state[a])


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_one_step_without_rectify_is_an_abrupt_cut(optimizer: str) -> None:
    ours, twin = net(), net()
    o, t = (OPTIMIZERS[optimizer](m.parameters()) for m in (ours, twin))
    schedule = dp.Schedule(start=3, stop=12, rounds=3, decay_steps=1)
    pruner = pruner_for(ours, o, schedule=schedule, rectify=None)
    cuts = {}
    for step, batch in enumerate(batches(16), start=1):
        for model, opt in ((ours, o), (twin, t)):
            opt.zero_grad()
            backward(model, batch)
            opt.step()
        pruner.step()
        gone = [e.structure for e in pruner.events if e.step == step and e.kind == "prune"]
        _zero_by_hand(pruner, gone, twin, t)
        assert same(ours, twin), step
        cuts[step] = len(gone)
    assert [step for step, count in cuts.items() if count] == [3, 6, 9]
    assert pruner.finished


def _zero_by_hand(
    pruner: dp.DecayPruner, gone: list[int], model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    parameters = dict(model.named_parameters())
    for structure in gone:
        for name, dim, index in slow.pieces(pruner.structures, structure):
            state = optimizer.state[parameters[name]].values()
            for tensor in (parameters[name].data, *state):
                if isinstance(tensor, Tensor) and tensor.dim() == parameters[name].dim():
                    tensor.select(dim, index).zero_()


def test_attached_it_steps_by_itself() -> None:
    byhand, attached = net(), net()
    o, a = (OPTIMIZERS["AdamW"](m.parameters()) for m in (byhand, attached))
    train(byhand, o, STEPS, p := pruner_for(byhand, o))
    q = pruner_for(attached, a)
    q.attach()
    train(attached, a, STEPS)
    assert same(byhand, attached)
    assert q.events == p.events
    assert len(p.events) > 10


def test_detached_it_waits_for_calls_again() -> None:
    model = net()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    pruner = pruner_for(model, optimizer)
    pruner.attach()
    train(model, optimizer, 4)
    pruner.detach()
    train(model, optimizer, 3, pruner)
    assert pruner.steps == 7


def test_a_closure_that_computes_the_gradients() -> None:
    plain, closed = net(), net()
    o, c = (OPTIMIZERS["SGD momentum"](m.parameters()) for m in (plain, closed))
    p, q = pruner_for(plain, o), pruner_for(closed, c)
    train(plain, o, STEPS, p)
    for batch in batches(STEPS):

        def closure(batch: tuple[Tensor, Tensor] = batch) -> float:
            c.zero_grad()
            backward(closed, batch)
            return 0.0

        c.step(closure)
        q.step()
    assert same(plain, closed)
    assert p.events == q.events


def test_accumulation_counts_real_steps_only() -> None:
    rare, often = net(), net()
    r, o = (OPTIMIZERS["SGD momentum"](m.parameters()) for m in (rare, often))
    p, q = pruner_for(rare, r), pruner_for(often, o)
    for micro, batch in enumerate(batches(3 * STEPS), start=1):
        for model in (rare, often):
            backward(model, batch, 1 / 3)
        if micro % 3 == 0:
            r.step(), p.step(), r.zero_grad()
            o.step()
        q.step()  # after every micro-batch
        if micro % 3 == 0:
            o.zero_grad()
    assert p.steps == q.steps == STEPS
    assert same(rare, often)
    assert p.events == q.events


def frozen_in_place(
    observe: bool, clip: float, optimizer: str = "plain"
) -> tuple[dp.DecayPruner, nn.Module]:
    """A run in which nothing moves but what decays, so that clipping cannot change the weights."""
    model = net().eval()
    opt = torch.optim.SGD(model.parameters(), lr=0.0)
    schedule = dp.Schedule(start=0, stop=10, rounds=1, decay_steps=5)
    never = dp.Rectify(rule="thresholds", t_rate=1.0)
    pruner = pruner_for(model, opt, schedule=schedule, rectify=never)
    for batch in batches(8):
        backward(model, batch)
        if observe:
            pruner.observe()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        opt.step()
        pruner.step()
        opt.zero_grad()
    return pruner, model


def test_observe_reads_gradients_before_they_are_clipped() -> None:
    free, _ = frozen_in_place(observe=False, clip=1e9)
    clipped, _ = frozen_in_place(observe=False, clip=1e-3)
    observed, _ = frozen_in_place(observe=True, clip=1e-3)
    pruned = [e.work for e in free.events if e.kind == "prune"]
    assert max(map(abs, pruned)) > 1e-3
    assert [e.work for e in observed.events if e.kind == "prune"] == pruned
    assert max(abs(e.work) for e in clipped.events if e.kind == "prune") < 1e-3


class TestGradScaler:
    """Infinite gradients now and then, in the middle of decays too, make the scaler skip steps."""

    @staticmethod
    def scaled(make: Callable[..., torch.optim.Optimizer], attach: bool) -> tuple[Net, Any]:
        model = net()
        optimizer = make(model.parameters())
        pruner = pruner_for(model, optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
        if attach:
            pruner.attach()
        attempts = [(batch, bad) for batch in batches(STEPS) for bad in (True, False)]
        for number, ((images, targets), bad) in enumerate(attempts):
            if bad and number % 4 != 2:
                continue  # every other batch fails at first; not the very first one, after which
                # a fused SGD of torch starts from momentum that was never initialised
            optimizer.zero_grad()
            scaler.scale(F.cross_entropy(model(images), targets)).backward()
            if bad:
                model.fc.bias.grad[0] = float("inf")
            scaler.step(optimizer)
            if not attach:
                pruner.step()
            scaler.update()
        return model, pruner

    @pytest.mark.parametrize("attach", [False, True], ids=["step", "attach"])
    @pytest.mark.parametrize("name", ["SGD momentum", "AdamW", *FUSED])
    def test_skipped_steps_do_not_count(self, name: str, attach: bool) -> None:
        make = (OPTIMIZERS | FUSED)[name]
        plain = net()
        optimizer = make(plain.parameters())
        train(plain, optimizer, STEPS, reference := pruner_for(plain, optimizer))
        model, pruner = self.scaled(make, attach)
        assert pruner.steps == STEPS
        assert pruner.waited == 0
        assert moves(pruner) == moves(reference)
        for one, other in zip(pruner.events, reference.events, strict=True):
            if other.work is not None:
                assert one.work == pytest.approx(other.work, rel=1e-3, abs=1e-6)
                assert one.c_rate == pytest.approx(other.c_rate, rel=1e-3, abs=1e-4)
        for a, b in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_two_optimizers() -> None:
    one, two = net(), net()
    o = torch.optim.SGD(one.parameters(), lr=0.05, momentum=0.9)
    halves = [list(m.parameters()) for m in (nn.ModuleList([two.stem, two.a]), two.b)]
    halves.append([*two.c.parameters(), *two.fc.parameters()])
    opts = [torch.optim.SGD(half, lr=0.05, momentum=0.9) for half in halves]
    p, q = pruner_for(one, o), pruner_for(two, opts)
    train(one, o, STEPS, p)
    for batch in batches(STEPS):
        backward(two, batch)
        for opt in opts:
            opt.step()
            q.step()  # follows only once all of them have stepped
        two.zero_grad()
    assert q.steps == STEPS
    assert same(one, two)
    assert moves(p) == moves(q)
    for ours, theirs in zip(p.events, q.events, strict=True):  # sums of another order
        assert (ours.work or 0.0) == pytest.approx(theirs.work or 0.0, rel=1e-4)
    q.compact()
    assert all(opt.state[w]["momentum_buffer"].shape == w.shape for opt in opts for w in opt.state)


def test_frozen_layers_are_left_alone() -> None:
    model = net()
    model.c.requires_grad_(False)
    before = model.c.weight.clone()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    pruner = pruner_for(model, optimizer, budget=dp.Budget(macs=0.8))
    train(model, optimizer, STEPS, pruner)
    assert pruner.finished
    pruner.compact()
    assert torch.equal(model.c.weight, before)
    assert model.a[0].weight.shape[0] < 10
    assert any("frozen" in refusal.reason for refusal in pruner.structures.refusals)


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_weight_decay_is_not_taken_for_resistance(name: str) -> None:
    """Without any task gradient all shrinkage is weight decay's, each group with its own rate."""
    model = net()
    kind = {"SGD": torch.optim.SGD, "AdamW": torch.optim.AdamW}[name]
    groups = [
        {"params": [*model.stem.parameters(), *model.c.parameters()], "weight_decay": 0.4},
        {"params": [*model.a.parameters(), *model.b.parameters()], "weight_decay": 0.1},
        {"params": model.fc.parameters(), "weight_decay": 0.0},
    ]
    optimizer = kind(groups, lr=0.1)
    schedule = dp.Schedule(start=0, stop=10, rounds=1, decay_steps=5)
    never = dp.Rectify(rule="thresholds", t_rate=1.0)
    pruner = pruner_for(model, optimizer, schedule=schedule, rectify=never)
    for _ in range(8):
        (sum(p.sum() for p in model.parameters()) * 0).backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    pruned = [e for e in pruner.events if e.kind == "prune"]
    assert len({e.layer for e in pruned}) == 3
    for event in pruned:
        assert event.c_len == pytest.approx(0, abs=2e-3)  # second order in lr * weight_decay
        assert (event.c_rate, event.work) == (0, 0)


def test_bfloat16_weights() -> None:
    model = net().bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    pruner = pruner_for(model, optimizer, inputs=INPUTS.bfloat16())
    train(model, optimizer, STEPS, pruner)
    assert pruner.finished
    report = pruner.compact()
    assert report.macs_after <= 0.5 * report.macs_before
    assert model.c.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("slices", ["carriers", "all"])
@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_norms_are_on_schedule_after_every_step(slices: str, decay: str) -> None:
    model = net()
    optimizer = OPTIMIZERS["AdamW"](model.parameters())
    # "all": one group, so that no element is a row of one decaying structure and a column of
    # another, which takes both factors.
    ignored = ["stem*", "b*", "c"] if slices == "all" else []
    # Rounds that do not overlap: the last step of a decay zeroes columns, and rows of another
    # one that still decays would lose them with it.
    schedule = dp.Schedule(start=2, stop=14, rounds=3, decay_steps=4)
    pruner = pruner_for(
        model,
        optimizer,
        slices=slices,
        decay=decay,
        budget=dp.Budget(structures=0.5),
        schedule=schedule,
        ignored_layers=ignored,
        rectify=None,
    )
    parameters = dict(model.named_parameters())
    starts: dict[int, float] = {}
    seen = 0
    for batch in batches(STEPS):
        optimizer.zero_grad()
        backward(model, batch)
        optimizer.step()
        carriers, every = (
            [
                slow.norm(pruner.structures, s, parameters, carriers=only)
                for s in range(pruner.structures.num_structures)
            ]
            for only in (True, False)
        )
        pruner.step()
        for s in pruner.lifecycle.decaying.tolist():
            starts.setdefault(s, carriers[s])
            progress = torch.tensor(int(pruner.lifecycle.age[s]) / 4)
            left = 1 - progress if decay == "linear" else (1 + torch.cos(torch.pi * progress)) / 2
            now = slow.norm(pruner.structures, s, parameters, carriers=True)
            assert now == pytest.approx(starts[s] * float(left), rel=1e-4)
            if slices == "all":  # the others take the same factor
                whole = slow.norm(pruner.structures, s, parameters)
                assert whole == pytest.approx(every[s] * now / carriers[s], rel=1e-4)
            seen += 1
    for s in pruner.lifecycle.pruned.nonzero().flatten().tolist():
        assert slow.norm(pruner.structures, s, parameters) == 0
    assert seen >= 3 * len(starts) > 8


def test_norms_are_held_where_training_shrinks_faster_than_the_schedule() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, weight_decay=1.0)
    schedule = dp.Schedule(start=0, stop=1, decay_steps=8)
    pruner = pruner_for(model, optimizer, schedule=schedule, rectify=None)
    model.eval()
    for _ in range(3):
        (sum(p.sum() for p in model.parameters()) * 0).backward()
        optimizer.step()
        pruner.step()
    picked = pruner.lifecycle.decaying
    shares = pruner.lifecycle.length[picked] / pruner.lifecycle.start_length[picked]
    torch.testing.assert_close(shares, torch.full_like(shares, 5 / 8))


def test_pruned_structures_stay_zero_while_training_goes_on() -> None:
    model = net()
    optimizer = OPTIMIZERS["AdamW"](model.parameters())
    pruner = pruner_for(model, optimizer)
    train(model, optimizer, STEPS, pruner)
    gone = pruner.lifecycle.pruned
    assert int(gone.sum()) > 5
    train(model, optimizer, 10, pruner, first=STEPS)
    slices = sums.labelled(pruner.structures)
    left = sums.sum_products(slices, gone.numel(), dict(model.named_parameters()))
    assert not left[gone].any()
    assert bool(left[~gone].all())


def test_the_model_is_not_touched_by_building_a_pruner() -> None:
    model = net()
    model.b.eval()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    pruner_for(model, OPTIMIZERS["SGD"](model.parameters()))
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(value, before[k]) for k, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
