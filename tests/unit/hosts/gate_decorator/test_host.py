"""Gates change nothing, ticks close what the paper closes, and the host hands back plain norms."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decayprune import Budget, Rectify
from decayprune.hosts import GateDecorator, TickTock
from decayprune.hosts.gate_decorator import gates as gating
from decayprune.hosts.gate_decorator.ticks import Phase, closing, least_open, triangle
from decayprune.structures.tracing.trace import trace
from decayprune.surgery.undo import Undo
from reference import gate_decorator as reference


class Net(nn.Module):
    """A residual sum (one group of two gates) and a branch of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.n0 = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.a, self.na = nn.Conv2d(12, 20, 3, padding=1, bias=False), nn.BatchNorm2d(20)
        self.b, self.nb = nn.Conv2d(20, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.n0(self.stem(x)))
        y = F.relu(self.na(self.a(x)))
        return self.head(F.relu(x + self.nb(self.b(y))).mean((2, 3)))


def net(dtype: torch.dtype = torch.float64) -> Net:
    model = Net().to(dtype)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.3, 1.5)
                module.bias.normal_(0, 0.3)
    return model


def batch(seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, 3, 6, 6, generator=generator, dtype=torch.float64).to(dtype)


def batches() -> Iterator[Tensor]:
    for seed in itertools.count():
        yield batch(seed)


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    return F.cross_entropy(model(x), x.mean((2, 3)).argmax(1))


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


def build(model: nn.Module, optimizer: torch.optim.Optimizer, **kw: Any) -> GateDecorator:
    defaults: dict[str, Any] = {
        "budget": Budget(macs=0.5),
        "schedule": TickTock(tick_steps=2, tock_steps=3, ticks=2, share=0.06),
        "tick_lr": 1e-2,
        "tock_lr": (1e-2, 5e-2),
    }
    return GateDecorator(model, optimizer, batch(0), **(defaults | kw))


def train(
    model: nn.Module, optimizer: Any, host: GateDecorator, seeds: Iterator[int], steps: int
) -> None:
    for _ in range(steps):
        if host.finished:
            return
        optimizer.zero_grad()
        loss_of(model, batch(next(seeds))).backward()
        optimizer.step()
        host.step()


# ---------------------------------------------------------------- gates


@pytest.mark.parametrize("training", [True, False])
def test_gating_and_melting_change_nothing(training: bool) -> None:
    model = net(torch.float32).train(training)
    with torch.no_grad():  # what the original clamps, and what it divides by
        model.na.weight[:3] = torch.tensor([1e-4, 0.0, -1e-9])
        model.na.bias[:3] = torch.tensor([1.0, 0.5, 0.0])
    before = copy.deepcopy(model)
    x = batch(0, torch.float32)
    gating.gate(model, ["n0", "na", "nb"])
    wanted = copy.deepcopy(before)(x)
    assert isinstance(model.na, gating.GatedBatchNorm)
    torch.testing.assert_close(copy.deepcopy(model)(x), wanted, rtol=0, atol=1e-6)
    gating.melt(Undo(), model, ["n0", "na", "nb"])
    assert type(model.na) is nn.BatchNorm2d
    torch.testing.assert_close(model(x), wanted, rtol=0, atol=1e-6)
    assert list(model.state_dict()) == list(before.state_dict())


def test_a_gated_norm_keeps_statistics_as_the_norm_does() -> None:
    for momentum in (0.1, None):
        norm = nn.BatchNorm2d(5, momentum=momentum).double()
        plain, model = copy.deepcopy(norm), nn.Sequential(norm)
        gating.gate(model, ["0"])
        for seed in range(3):
            x = torch.randn(4, 5, 3, 3, generator=torch.Generator().manual_seed(seed)).double()
            plain(x)
            model(x)
        gating.melt(Undo(), model, ["0"])
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(model[0].state_dict()[name], value)


def test_a_closed_gate_closes_the_bias_too() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2))
    nn.init.ones_(model[0].bias)
    gating.gate(model, ["0"])
    with torch.no_grad():
        model[0].weight[1] = 0
    out = model(torch.randn(4, 2, 3, 3)).detach()
    assert float(out[:, 1].abs().max()) == 0
    assert float(out[:, 0].abs().max()) > 0


def test_gates_are_grouped_by_the_sums_they_meet_in() -> None:
    model = net()
    structures = gating.gateable(model, trace(model, batch(0)))
    norms = gating.gated(structures)
    assert sorted(norms) == ["n0", "na", "nb"]
    carried = {s.name: set(s.structure[s.carrier].tolist()) for s in structures.slices}
    assert carried["n0.weight"] == carried["nb.weight"]
    assert len(carried["n0.weight"]) == 12
    assert not carried["n0.weight"] & carried["na.weight"]
    assert all(not ids for name, ids in carried.items() if not name.endswith("weight"))
    assert not carried["a.weight"]


def test_widths_without_a_norm_are_refused_with_the_reason() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(5 * 4, 3),
    )  # fmt: skip
    structures = gating.gateable(model, trace(model, torch.randn(1, 3, 6, 6)))
    norms = gating.gated(structures)
    assert norms == ["1"]
    assert [g.layer for g in structures.groups] == ["0"]
    assert any(r.layer == "3" and "gate" in r.reason for r in structures.refusals)


# ---------------------------------------------------------------- schedule and selection


def test_phases_follow_the_published_order() -> None:
    schedule = TickTock(tick_steps=2, tock_steps=3, ticks=2)
    kinds = "".join("i" if schedule.phase(s).tick else "o" for s in range(1, 19))
    assert kinds == "oooiiiioooiiiioooi"
    assert [s for s in range(1, 15) if schedule.phase(s).tick and schedule.phase(s).last] == [
        5, 7, 12, 14,
    ]  # fmt: skip


def test_progress_counts_the_ticks_that_have_ended() -> None:
    schedule = TickTock(tick_steps=2, tock_steps=3, ticks=2, stop=15)  # ends: 5 7 12 14
    found = [schedule.progress(step) for step in range(4, 17)]
    assert found == [0, 0.25, 0.25, 0.5, 0.5, 0.5, 0.5, 0.5, 0.75, 0.75, 1, 1, 1]
    assert TickTock(tick_steps=2, tock_steps=3).progress(99) == 0
    for steps in (1, 2, 50, 285, 10_000):
        plan = TickTock.for_run(steps)
        assert plan.progress(plan.stop or 0) == 1
        assert plan.stop == max(1, steps // 8)


def test_the_triangle_rises_and_falls() -> None:
    rates = [triangle(Phase(False, i, 10), 1e-3, 1e-2) for i in range(10)]
    assert rates[0] == pytest.approx(1e-3)
    assert max(rates) == rates[5] == pytest.approx(1e-2)
    assert rates[9] == pytest.approx(rates[1])


@pytest.mark.parametrize(
    "wrong",
    [
        {"tick_steps": 0},
        {"tock_steps": -1},
        {"ticks": 0},
        {"share": 0.0},
        {"share": 1.0},
        {"stop": 1},
    ],
)
def test_schedules_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TickTock(**({"tick_steps": 1, "tock_steps": 1} | wrong))


def test_closing_counts_gates_and_protects_the_best() -> None:
    group_of = torch.tensor([0] * 4 + [1] * 10)
    score = torch.tensor([1.0, 2, 3, 4, *range(10, 20)])
    gates = torch.tensor([3] * 4 + [1] * 10)
    alive = torch.ones(14, dtype=torch.bool)
    least = least_open(torch.tensor([4, 10]), 0.1)
    assert least.tolist() == [1, 1]

    def close(share: float, alive: Tensor = alive, eligible: Tensor = alive) -> list[int]:
        return closing(score, alive, eligible, gates, group_of, least, share).tolist()

    # 22 gates: the ranking is 1 1 1 2 2 2 3 3 3 10 11 ..., places counted from 0
    assert close(0.01) == [0]
    assert close(3 / 22 + 1e-6) == [0, 1]
    assert close(8 / 22 + 1e-6) == [0, 1, 2]
    assert close(9 / 22 + 1e-6) == [0, 1, 2, 4]  # 3 is the best of its group
    assert close(0.99) == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    # What may not be picked gives its place to the next.
    assert close(0.01, eligible=alive.index_fill(0, torch.tensor([0]), False)) == [1]
    assert close(0.01, *[alive.index_fill(0, torch.tensor([0]), False)] * 2) == [1]


# ---------------------------------------------------------------- against the slow twin


def test_one_step_decays_equal_the_published_procedure() -> None:
    """Same scores, same gates closed, same weights, prune after prune."""
    model = net()
    twin = copy.deepcopy(model)
    gates = []
    for group, name in ((0, "n0"), (1, "na"), (0, "nb")):
        gates.append(reference.Gate(getattr(twin, name), group))
        setattr(twin, name, gates[-1])
    options: dict[str, Any] = {"tick_steps": 2, "tock_steps": 3, "ticks": 2, "share": 0.06}
    slow = reference.GateDecorator(
        twin, gates, loss_of, batches(), **options, sparsity=1e-3, tick_lr=1e-2,
        tock_lr=(1e-2, 5e-2), momentum=0.9, weight_decay=5e-4,
    )  # fmt: skip
    optimizer = sgd(model)
    host = build(model, optimizer, budget=Budget(macs=0.3), schedule=TickTock(**options))
    seeds = itertools.count()
    groups = {g.layer: g for g in host.structures.groups}
    closed = slow.run(7)
    while not host.finished:
        before = len(host.events)
        train(model, optimizer, host, seeds, 1)
        if len(host.events) == before:
            continue
        expected = next(closed)
        pruned = host.lifecycle.pruned.nonzero().flatten().tolist()
        start = {0: groups["stem"].start, 1: groups["a"].start}
        assert pruned == sorted(start[g] + i for g, ids in expected.items() for i in ids)
        for name, gate in zip(("n0", "na", "nb"), gates, strict=True):
            ours, is_open = getattr(model, name), gate.mask.bool()
            torch.testing.assert_close(ours.weight[is_open], gate.g[is_open])
            torch.testing.assert_close(ours.bias[is_open], gate.b[is_open])
            assert not ours.weight[~is_open].any()
        wide, deep = gates[0].mask.bool(), gates[1].mask.bool()
        torch.testing.assert_close(model.a.weight[deep][:, wide], twin.a.weight[deep][:, wide])
        torch.testing.assert_close(model.head.weight[:, wide], twin.head.weight[:, wide])
    assert host.steps > 15
    assert len({event.step for event in host.events}) >= 3


# ---------------------------------------------------------------- the host


@pytest.mark.parametrize(
    ("decay_steps", "rectify"),
    [
        (1, None),
        (5, None),
        (5, Rectify(rule="thresholds", t_rate=-1, t_len=-100, warm_up=0.2, cool_down=1)),
        (5, Rectify(rule="tournament", extra=0.5)),
    ],
)
def test_a_run_meets_the_budget_and_hands_back_plain_norms(
    decay_steps: int, rectify: Rectify | None
) -> None:
    model = net()
    optimizer = sgd(model)
    host = build(model, optimizer, decay_steps=decay_steps, rectify=rectify)
    train(model, optimizer, host, itertools.count(), 300)
    assert host.finished
    assert host.remaining()["macs"] <= 0.5
    kinds = {event.kind for event in host.events}
    assert kinds == {"decay", "prune"} | ({"release"} if rectify else set())
    assert [g["lr"] for g in optimizer.param_groups] == [0.05]
    gated = model.eval()(batch(99)).detach()
    report = host.compact()
    assert type(model.na) is nn.BatchNorm2d
    assert report.max_rel_error < 1e-9
    torch.testing.assert_close(model(batch(99)), gated)
    assert report.macs_after <= 0.5 * report.macs_before
    model.train()
    loss_of(model, batch(7)).backward()
    optimizer.step()
    for parameter in model.parameters():
        assert optimizer.state[parameter]["momentum_buffer"].shape == parameter.shape


@pytest.mark.parametrize("share", [0.01, 0.9])
@pytest.mark.parametrize(
    "rectify",
    [
        None,
        Rectify(rule="thresholds", t_rate=-1, t_len=-100, warm_up=0.2, cool_down=9),
        Rectify(rule="tournament", extra=0.5),
    ],
)
def test_the_budget_is_met_in_time_and_not_by_far(share: float, rectify: Rectify | None) -> None:
    """Ticks that close too little, releases that keep gates from closing, ticks that are greedy."""
    model = net()
    optimizer = sgd(model)
    schedule = TickTock(tick_steps=1, tock_steps=2, ticks=2, share=share, stop=20)
    host = build(model, optimizer, schedule=schedule, decay_steps=4, rectify=rectify)
    train(model, optimizer, host, itertools.count(), 20 + 4 * (1 if rectify is None else 2))
    assert host.finished
    assert max(event.step for event in host.events if event.kind == "decay") <= 24
    assert 0.47 < host.remaining()["macs"] <= 0.5  # a gate costs up to 0.04


def test_only_gates_inner_biases_and_linear_layers_train_in_a_tick() -> None:
    model = net()
    optimizer = sgd(model)
    host = build(model, optimizer, schedule=TickTock(tick_steps=9, tock_steps=2, share=0.1))
    train(model, optimizer, host, (seeds := itertools.count()), 2)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    train(model, optimizer, host, seeds, 1)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {
        "n0.weight", "n0.bias", "na.weight", "na.bias", "nb.weight", "nb.bias",
        "head.weight", "head.bias",
    }  # fmt: skip
    assert optimizer.param_groups[0]["lr"] == 1e-2


def test_training_is_the_loops_own_once_ticks_have_reached_the_budget() -> None:
    """Slow decays outlast the ticks: what they need then is a network that may adapt."""
    model = net()
    optimizer = sgd(model)
    schedule = TickTock(tick_steps=2, tock_steps=1, ticks=5, share=0.5)
    host = build(model, optimizer, schedule=schedule, decay_steps=12, sparsity=10.0)
    seeds = itertools.count()
    while host.remaining()["macs"] > 0.5:  # commitments count
        assert not host.finished
        train(model, optimizer, host, seeds, 1)
    assert not host.finished
    assert schedule.phase(host.steps + 1).tick
    assert optimizer.param_groups[0]["lr"] == 0.05
    before = model.a.weight.detach().clone()
    optimizer.param_groups[0]["lr"] = 0.04  # a schedule of the loop
    train(model, optimizer, host, seeds, 1)
    assert optimizer.param_groups[0]["lr"] == 0.04
    assert not torch.equal(model.a.weight, before)


def test_the_penalty_leaves_decaying_gates_and_the_release_test_alone() -> None:
    """A closing gate whose task gradient is 0 shows no resistance, whatever the penalty."""
    runs = []
    for sparsity in (0.0, 10.0):
        torch.manual_seed(0)
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        rules = Rectify(rule="thresholds", t_rate=1.0, t_len=1e9)
        schedule = TickTock(tick_steps=1, tock_steps=8, ticks=1, share=0.1)
        host = build(
            model, optimizer, decay_steps=20, rectify=rules, sparsity=sparsity,
            schedule=schedule, tick_lr=0.0, tock_lr=(0.0, 0.0),
        )  # fmt: skip
        train(model, optimizer, host, itertools.count(), 14)
        runs.append(host.lifecycle)
    assert int(runs[0].decaying.numel()) > 0
    assert torch.equal(runs[0].statistics.resistance, runs[1].statistics.resistance)
    assert float(runs[0].statistics.resistance.abs().max()) > 0


def test_gates_decay_along_the_schedule() -> None:
    model = net()
    optimizer = sgd(model)
    host = build(
        model, optimizer, decay_steps=10, schedule=TickTock(tick_steps=1, tock_steps=30, ticks=1)
    )
    train(model, optimizer, host, (seeds := itertools.count()), 31)
    (picked,) = host.lifecycle.decaying.tolist()
    start = float(host.lifecycle.start_length[picked])
    gates = [model.n0.weight, model.nb.weight] if picked < 12 else [model.na.weight]
    index = int(host.structures.index[picked])
    for age in range(1, 10):
        length = torch.stack([gate.detach()[index] for gate in gates]).norm()
        assert float(length) == pytest.approx(start * (1 - age / 10), rel=1e-5)
        train(model, optimizer, host, seeds, 1)
    assert all(float(gate.detach()[index]) == 0 for gate in gates)


def test_a_run_resumes_bit_for_bit_while_gates_close(tmp_path: Any) -> None:
    def fresh() -> tuple[nn.Module, torch.optim.Optimizer, GateDecorator]:
        torch.manual_seed(3)
        model = net()
        optimizer = sgd(model)
        return model, optimizer, build(model, optimizer, decay_steps=6, rectify=Rectify())

    model, optimizer, host = fresh()
    train(model, optimizer, host, itertools.count(), 7)
    assert host.lifecycle.decaying.numel()
    parts = {"m": model.state_dict(), "o": optimizer.state_dict(), "h": host.state_dict()}
    torch.save(parts, tmp_path / "state.pt")
    train(model, optimizer, host, itertools.count(7), 12)

    again, its_optimizer, its_host = fresh()
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    again.load_state_dict(state["m"])
    its_optimizer.load_state_dict(state["o"])
    its_host.load_state_dict(state["h"])
    train(again, its_optimizer, its_host, itertools.count(7), 12)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert its_host.events == host.events
    other = net()
    with pytest.raises(ValueError, match="decay_steps"):
        build(other, sgd(other), decay_steps=1).load_state_dict(state["h"])


def test_what_cannot_work_is_refused() -> None:
    model = net()
    with pytest.raises(ValueError, match="cannot be reached"):
        build(model, sgd(model), budget=Budget(macs=0.001))
    with pytest.raises(ValueError, match="decay_steps"):
        build(model, sgd(model), decay_steps=0)
    with pytest.raises(ValueError, match="minimal"):
        build(model, sgd(model), minimal=1.0)
    with pytest.raises(ValueError, match="does not hold"):
        build(model, sgd(net()))
    assert type(model.na) is nn.BatchNorm2d
    bare = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).double()
    with pytest.raises(ValueError, match="gate"):
        build(bare, sgd(bare))
    host = build(model, (optimizer := sgd(model)))
    with pytest.raises(RuntimeError, match="before the host has finished"):
        host.compact()
    optimizer.step()
    with pytest.raises(RuntimeError, match="order is"):
        host.step()
    with pytest.raises(ValueError, match="GateDecorator"):
        host.load_state_dict({})


def test_steps_that_did_not_happen_do_not_count() -> None:
    model = net()
    optimizer = sgd(model)
    host = build(model, optimizer)
    for accumulate in range(4):
        loss_of(model, batch(accumulate)).backward()
        if accumulate % 2:
            optimizer.step()
        host.step()
    assert host.steps == 2
