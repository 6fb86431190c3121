"""Schedules, and which structures a budget commits."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import decayprune as dp
from decayprune.cost import CostModel
from decayprune.method import lifecycle
from decayprune.method.lifecycle import ACTIVE, LifecycleState
from decayprune.selection.by_importance import ImportanceSelector, Scope
from decayprune.selection.importance import magnitude, reading_gradients, taylor
from decayprune.structures import StructureMap, trace
from loops import INPUTS, backward, batches, net, pruner_for
from reference import ops as slow

# ---------------------------------------------------------------- schedules


def test_rounds_of_the_contract() -> None:
    schedule = dp.Schedule(start=10, stop=110, rounds=4, decay_steps=7)
    assert [schedule.begins(i) for i in range(4)] == [10, 35, 60, 85]
    assert [schedule.rounds_begun(s) for s in (0, 9, 10, 34, 35, 85, 999)] == [0, 0, 1, 1, 2, 4, 4]


def test_the_first_round_waits_for_the_first_step() -> None:
    assert dp.Schedule(start=0, stop=10, decay_steps=1).begins(0) == 1


@given(st.integers(1, 10_000), st.floats(0, 0.99))
def test_for_run_leaves_time_to_recover(total: int, share: float) -> None:
    start = int(share * total)
    schedule = dp.Schedule.for_run(total, start=start)
    assert schedule.start == start
    assert schedule.stop + schedule.decay_steps - start <= max(0.2 * (total - start), 2)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"stop": 5, "decay_steps": 0}, r"decay_steps is at least 1 \(an abrupt cut\), found 0"),
        ({"start": 9, "stop": 5, "decay_steps": 1}, "stop must not come before start.*start=9"),
        ({"start": -1, "stop": 5, "decay_steps": 1}, "start is a step, 0 or later; found -1"),
        ({"stop": 5, "decay_steps": 1, "rounds": 0}, "rounds is at least 1, found 0"),
    ],
)
def test_impossible_schedules(options: dict[str, int], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        dp.Schedule(**options)


def test_a_run_has_a_step() -> None:
    with pytest.raises(ValueError, match="at least 1 step after start=0, found 0"):
        dp.Schedule.for_run(0)


# ---------------------------------------------------------------- budgets


class Blocks(nn.Module):
    """A stream and two blocks of the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.a1, self.b1 = nn.Conv2d(12, 10, 3, padding=1), nn.Conv2d(10, 12, 3, padding=1)
        self.a2, self.b2 = nn.Conv2d(12, 10, 3, padding=1), nn.Conv2d(10, 12, 3, padding=1)
        self.fc = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.b1(F.relu(self.a1(x)))
        x = x + self.b2(F.relu(self.a2(x)))
        return self.fc(F.relu(x).mean((2, 3)))


MODEL = Blocks()
MAP = trace(MODEL, INPUTS)
COST = CostModel(MAP, {name: p.shape for name, p in MODEL.named_parameters()})
ONCE = dp.Schedule(stop=100, decay_steps=5)


def selector(scores: Tensor, budget: dp.Budget, **options: Any) -> ImportanceSelector:
    def importance(structures: StructureMap, parameters: Mapping[str, Tensor]) -> Tensor:
        return scores

    schedule = options.pop("schedule", ONCE)
    return ImportanceSelector(MAP, COST, budget, schedule, importance, **options)


def kept_after(ids: Tensor) -> Tensor:
    gone = torch.zeros(MAP.num_structures, dtype=torch.bool)
    gone[ids] = True
    return COST.keep_counts(gone)


def begin(state: LifecycleState, ids: Tensor) -> LifecycleState:
    ones = torch.ones(ids.numel())
    return lifecycle.begin(state, ids, length=ones, decay_steps=5)


def random_scores(seed: int) -> Tensor:
    return torch.rand(MAP.num_structures, generator=torch.Generator().manual_seed(seed)) + 0.1


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    bounds=st.sampled_from([("macs",), ("params",), ("structures",), ("macs", "params")]),
    target=st.floats(0.4, 0.95),
    round_to=st.sampled_from([None, 2, 4]),
    scope=st.sampled_from(get_args(Scope)),
)
def test_a_budget_is_met_within_one_structure_or_unit(
    seed: int, bounds: tuple[str, ...], target: float, round_to: int | None, scope: Any
) -> None:
    budget = dp.Budget(**dict.fromkeys(bounds, target))
    chooser = selector(random_scores(seed), budget, round_to=round_to, scope=scope)
    chosen = chooser.select(LifecycleState.fresh(MAP.num_structures), 1, {}, released=False)
    assert chosen is not None
    kept = kept_after(chosen.ids)
    assert COST.meets(budget, kept)
    unit = round_to or 1
    one_back = [kept.clone() for _ in MAP.groups]
    for number, more in enumerate(one_back):
        more[number] = min(int(more[number]) + unit, MAP.groups[number].size)
    assert not all(COST.meets(budget, more) for more in one_back)
    for group, count in zip(MAP.groups, kept.tolist(), strict=True):
        assert count % unit == 0 or count == group.size
        assert count >= max(1, 0.1 * group.size)


def test_the_least_important_of_the_model_go_first() -> None:
    scores = random_scores(1)
    chosen = selector(scores, dp.Budget(structures=0.6), scope="global").select(
        LifecycleState.fresh(MAP.num_structures), 1, {}, released=False
    )
    means = [float(scores[g.start : g.stop].mean()) for g in MAP.groups]
    relative = [float(s) / means[int(g)] for s, g in zip(scores, MAP.group_of, strict=True)]
    order = sorted(range(MAP.num_structures), key=relative.__getitem__)
    assert sorted(chosen.ids.tolist()) == sorted(order[: chosen.ids.numel()])
    assert chosen.ids.numel() == 13  # 32 structures, 0.6 * 32 = 19.2 may stay


def test_the_floor_holds_whatever_the_scores() -> None:
    scores = random_scores(2) + 1
    first = MAP.groups[0]  # 11 of its 12 structures are the least important of all
    scores[first.start : first.stop] = torch.tensor([1e-3] * 11 + [1e3])
    for floor, least in ((0.0, 1), (0.1, 2), (0.5, 6)):
        chooser = selector(scores, dp.Budget(structures=0.6), floor=floor, scope="global")
        chosen = chooser.select(LifecycleState.fresh(MAP.num_structures), 1, {}, released=False)
        assert int(kept_after(chosen.ids)[0]) == least
        assert chosen.ids.numel() == 13


@pytest.mark.parametrize("target", [0.3, 0.5, 0.8])
def test_local_takes_the_same_share_of_every_group(target: float) -> None:
    chooser = selector(random_scores(3), dp.Budget(macs=target), scope="local")
    chosen = chooser.select(LifecycleState.fresh(MAP.num_structures), 1, {}, released=False)
    removed, sizes = (COST.sizes - kept_after(chosen.ids)).tolist(), COST.sizes.tolist()
    low = max((r - 0.5) / s for r, s in zip(removed, sizes, strict=True))
    high = min((r + 0.5) / s for r, s in zip(removed, sizes, strict=True))
    assert low <= high + 1e-9


@pytest.mark.parametrize("target", [0.2, 0.4, 0.6, 0.8])
def test_what_stays_of_a_group_falls_with_the_cube_root_of_its_width(target: float) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 27, 3), nn.ReLU(), nn.Conv2d(27, 64, 3),
        nn.ReLU(), nn.Flatten(), nn.Linear(64 * 4, 4),
    )  # fmt: skip
    structures = trace(model, torch.zeros(1, 3, 8, 8))
    cost = CostModel(structures, {name: p.shape for name, p in model.named_parameters()})
    scores = torch.rand(structures.num_structures, generator=torch.Generator().manual_seed(3))
    chooser = ImportanceSelector(
        structures, cost, dp.Budget(structures=target), ONCE, lambda *_: scores + 0.1
    )
    ids = chooser.select(LifecycleState.fresh(99), 1, {}, released=False).ids
    assert ids.numel() == math.ceil(99 * (1 - target) - 1e-9)
    low, high = 0.0, math.inf  # of the factor before the power of the width
    for group in structures.groups:
        mine = scores[group.start : group.stop]
        gone = ids[(ids >= group.start) & (ids < group.stop)] - group.start
        assert set(gone.tolist()) == set(mine.argsort()[: gone.numel()].tolist())
        kept, power = group.size - gone.numel(), group.size ** (2 / 3)
        low = max(low, (kept - 0.5) / power)
        high = min(high, (kept + 0.5) / power if gone.numel() else math.inf)
    assert low <= high + 1e-9


def test_isomorphic_compares_groups_of_one_kind() -> None:
    layers = [group.layer for group in MAP.groups]
    one, two, stem = layers.index("a1"), layers.index("a2"), layers.index("stem")
    assert MAP.groups[one].family == MAP.groups[two].family != MAP.groups[stem].family
    scores = torch.ones(MAP.num_structures) + torch.linspace(0, 0.01, MAP.num_structures)
    low = torch.tensor([0.1] * 8 + [5.0] * 2) + torch.linspace(0, 0.01, 10)
    scores[MAP.groups[one].start : MAP.groups[one].stop] = low
    chooser = selector(scores, dp.Budget(structures=0.75), scope="isomorphic")
    chosen = chooser.select(LifecycleState.fresh(MAP.num_structures), 1, {}, released=False)
    removed = (COST.sizes - kept_after(chosen.ids)).tolist()
    assert removed[two] == 0  # all that the family loses is in the first block
    assert removed[one] / 20 == pytest.approx(removed[stem] / 12, abs=1 / 12)


def test_rounds_add_up_and_never_take_back() -> None:
    schedule = dp.Schedule(start=1, stop=41, rounds=4, decay_steps=5)
    budget = dp.Budget(macs=0.3)
    chooser = selector(random_scores(4), budget, schedule=schedule)
    state, rounds = LifecycleState.fresh(MAP.num_structures), []
    for step in range(1, 50):
        chosen = chooser.select(state, step, {}, released=False)
        assert chooser.pauses(step) == (chosen is None)
        if chosen is not None:
            state = begin(state, chosen.ids)
            rounds.append(step)
            limit = dp.Budget(macs=1 - 0.7 * len(rounds) / 4)
            assert COST.meets(limit, COST.keep_counts(state.committed))
        assert chooser.done(state, step) == (step >= 31)
    assert rounds == [1, 11, 21, 31]


def test_extra_structures_are_enrolled_only_where_they_can_still_be_judged() -> None:
    """From stop on nothing is released: whatever is enrolled too much would be lost."""
    budget, fresh = dp.Budget(structures=0.5), LifecycleState.fresh(MAP.num_structures)
    counts = {}
    for stop in (1, 2, 3, 50):
        schedule = dp.Schedule(start=0, stop=stop, decay_steps=5)
        chooser = selector(
            random_scores(5), budget, schedule=schedule, rectify=dp.Rectify(extra=0.25)
        )
        counts[stop] = chooser.select(fresh, 1, {}, released=False).ids.numel()
    assert counts == {1: 16, 2: 16, 3: 20, 50: 20}


@pytest.mark.parametrize("scope", get_args(Scope))
def test_what_has_left_does_not_make_what_stays_look_small(scope: Scope) -> None:
    schedule = dp.Schedule(stop=100, rounds=2, decay_steps=5)
    picked = []
    for factor in (1.0, 0.1):  # of the scores of one group after the first round
        scores = random_scores(12)
        chooser = selector(scores, dp.Budget(structures=0.4), schedule=schedule, scope=scope)
        state = LifecycleState.fresh(MAP.num_structures)
        chosen = chooser.select(state, 1, {}, released=False)
        state = dataclasses.replace(begin(state, chosen.ids), score=chosen.scores)
        scores[MAP.group_of == 1] *= factor
        picked.append(chooser.select(state, 50, {}, released=False).ids.tolist())
    assert picked[0] == picked[1]
    assert picked[0]


def test_releasable_names_what_the_budget_can_do_without() -> None:
    budget = dp.Budget(structures=0.5)
    chooser = selector(random_scores(6), budget, rectify=dp.Rectify(extra=0.25))
    state = LifecycleState.fresh(MAP.num_structures)
    ids = chooser.select(state, 1, {}, released=False).ids
    state = begin(state, ids)
    assert chooser.releasable(state, 2, ids).tolist() == ids[:4].tolist()
    assert chooser.releasable(state, 2, ids[:2]).tolist() == ids[:2].tolist()
    everything = chooser.releasable(state, 1, ids)  # before the first round nothing was needed
    assert everything.tolist() == ids.tolist()


def test_a_round_ends_at_its_budget_and_not_below_it() -> None:
    scores, budget = random_scores(11), dp.Budget(macs=0.43)
    chooser = selector(scores, budget)
    ids = chooser.select(LifecycleState.fresh(MAP.num_structures), 1, {}, released=False).ids
    assert COST.meets(budget, kept_after(ids))
    for one in range(ids.numel()):
        others = torch.cat([ids[:one], ids[one + 1 :]])
        assert not COST.meets(budget, kept_after(others))


def test_a_cooling_structure_is_not_picked_and_keeps_its_score() -> None:
    schedule = dp.Schedule(start=1, stop=21, rounds=2, decay_steps=5)
    scores = random_scores(7)
    chooser = selector(scores, dp.Budget(structures=0.5), schedule=schedule)
    state = LifecycleState.fresh(MAP.num_structures)
    chosen = chooser.select(state, 1, {}, released=False)
    lowest = chosen.ids[:1]
    state = begin(lifecycle.replace(state, score=chosen.scores), chosen.ids)
    state = lifecycle.release(state, lowest, cool_until=20)
    again = chooser.select(state, 3, {}, released=True)
    assert again.ids.numel() == 1
    assert again.ids != lowest
    assert again.scores is None  # only a round looks at the weights again
    before = scores.clone()
    scores.copy_(2 * random_scores(8))
    later = chooser.select(begin(state, again.ids), 11, {}, released=False)
    decaying = torch.cat([chosen.ids, again.ids])  # the one that cools down among them
    active = torch.ones(MAP.num_structures, dtype=torch.bool).index_fill(0, decaying, False)
    assert torch.equal(later.scores[decaying], before[decaying])
    for group in range(len(MAP.groups)):
        mine = active & (MAP.group_of == group)
        ratio = later.scores[mine] / scores[mine]
        torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))
        torch.testing.assert_close(later.scores[mine].mean(), before[mine].mean())
    assert int(lowest) not in later.ids.tolist()


def test_an_empty_pool_overrides_cool_downs_oldest_first() -> None:
    budget = dp.Budget(structures=0.5)
    chooser = selector(random_scores(8), budget)
    state = LifecycleState.fresh(MAP.num_structures)
    everything = torch.arange(MAP.num_structures)
    state = begin(state, everything)
    # 15 stay committed; 16 are needed and all others are cooling down, some longer than others.
    for number, structure in enumerate(itertools.chain(range(12), range(13, 18))):
        until = 50 - (number % 7)
        state = lifecycle.release(state, torch.tensor([structure]), cool_until=until)
    assert int((state.phase == ACTIVE).sum()) == 17
    chosen = chooser.select(state, 5, {}, released=True)
    oldest = int(state.cool_until[state.cool_until > 0].min())
    assert chosen.ids.numel() == 1
    assert int(state.cool_until[chosen.ids]) == oldest
    assert COST.meets(budget, COST.keep_counts(begin(state, chosen.ids).committed))


def test_unreachable_budgets_name_what_can_be_reached() -> None:
    with pytest.raises(ValueError, match=r"budget macs=0\.01 cannot be reached.*keeps macs=0\.\d+"):
        selector(random_scores(1), dp.Budget(macs=0.01))
    try:
        selector(random_scores(1), dp.Budget(macs=0.01))
    except ValueError as error:
        nearest = float(str(error).partition("keeps macs=")[2].split(". ")[0])
    selector(random_scores(1), dp.Budget(macs=nearest))  # the value it names really is reachable


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            {"scope": "layer"},
            "scope is one of 'width', 'global', 'local', 'isomorphic'; found 'layer'",
        ),
        ({"round_to": 0}, "round_to is a whole number of channels from 1, found 0"),
        ({"floor": 1.0}, r"floor is a share of each layer in \[0, 1\), found 1\.0"),
        ({"floor": -0.1}, "floor is a share"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        selector(random_scores(1), dp.Budget(macs=0.5), **options)


@pytest.mark.parametrize(
    ("scores", "match"),
    [
        (torch.ones(3), r"shape \(32,\), one score per structure; found \(3,\)"),
        ([1.0] * 32, r"shape \(32,\), one score per structure; found list"),
        (torch.full((32,), float("nan")), "not finite"),
    ],
)
def test_bad_scores(scores: Any, match: str) -> None:
    chooser = selector(scores, dp.Budget(macs=0.5))
    with pytest.raises(ValueError, match=match):
        chooser.select(LifecycleState.fresh(MAP.num_structures), 1, {}, released=False)


@pytest.mark.parametrize("declared", [False, True])
def test_an_importance_declares_that_it_reads_gradients(declared: bool) -> None:
    def mine(structures: StructureMap, parameters: Mapping[str, Tensor]) -> Tensor:
        return random_scores(1)

    importance = reading_gradients(mine) if declared else mine
    chooser = ImportanceSelector(MAP, COST, dp.Budget(macs=0.5), ONCE, importance)
    assert chooser.reads_gradients is declared
    assert getattr(taylor, "reads_gradients", False)
    assert not getattr(magnitude, "reads_gradients", False)


def test_what_was_released_is_replaced_in_its_group_so_that_widths_stay_multiples() -> None:
    chooser = selector(random_scores(9), dp.Budget(structures=0.7), round_to=4)
    state = LifecycleState.fresh(MAP.num_structures)
    chosen = chooser.select(state, 1, {}, released=False)
    state = begin(dataclasses.replace(state, score=chosen.scores), chosen.ids)
    widths = COST.keep_counts(state.committed)
    group = int(MAP.group_of[chosen.ids[0]])
    mine = (MAP.group_of == group).nonzero().flatten()
    # All others of this group cool down already.
    for structure in mine[~state.committed[mine]].tolist():
        one = torch.tensor([structure])
        state = lifecycle.release(begin(state, one), one, cool_until=30 + structure)
    state = lifecycle.release(state, chosen.ids[:1], cool_until=99)
    again = chooser.select(state, 5, {}, released=True)
    assert torch.equal(COST.keep_counts(begin(state, again.ids).committed), widths)
    assert again.ids.tolist() == again.cooldowns_ended.tolist()
    assert int(MAP.group_of[again.ids]) == group
    assert int(chosen.ids[0]) not in again.ids.tolist()  # it is out for the shortest time


# ---------------------------------------------------------------- crafted resistance


class Crafted:
    """A pruner whose gradients say who resists: descent lengthens those, shortens the others."""

    def __init__(self, resisting: set[int], scores: Tensor, **options: Any) -> None:
        self.model, self.resisting = net(), resisting
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05)
        self.pruner = pruner_for(
            self.model, self.optimizer, importance=lambda s, p: scores, **options
        )

    def step(self) -> list[dp.Event]:
        backward(self.model, next(iter(batches(1))))
        parameters = dict(self.model.named_parameters())
        for parameter in parameters.values():
            parameter.grad.zero_()
        for structure in range(self.pruner.structures.num_structures):
            sign = -1 if structure in self.resisting else 1
            for name, dim, index in slow.pieces(self.pruner.structures, structure, carriers=True):
                value = parameters[name].detach().select(dim, index)
                parameters[name].grad.select(dim, index).copy_(sign * value)
        before = len(self.pruner.events)
        self.optimizer.step()
        self.pruner.step()
        return self.pruner.events[before:]


def test_a_structure_that_resists_is_released_replaced_and_left_alone() -> None:
    scores = torch.linspace(1, 2, 30)
    scores[0] = 0.1
    rule = dp.Rectify(rule="thresholds", t_rate=0.5, t_len=0.05, warm_up=0.4, cool_down=2)
    schedule = dp.Schedule(start=1, stop=18, rounds=1, decay_steps=5)
    crafted = Crafted({0}, scores, rectify=rule, schedule=schedule)
    pruner, cost = crafted.pruner, crafted.pruner.cost
    released = {}
    for step in range(1, 40):
        for event in crafted.step():
            assert event.step == step
            if event.kind == "release":
                released[step] = event
        assert cost.meets(pruner.budget, cost.keep_counts(pruner.lifecycle.committed))
        assert float(pruner.lifecycle.score[0]) == pytest.approx(0.1)
    # Age 2 of 5 reaches the warm-up at step 3; the cool-down of 10 steps ends with step 13.
    assert [(step, e.structure) for step, e in released.items()] == [(3, 0)]
    assert released[3].c_rate > 0.95
    assert released[3].c_len > 0.05
    assert released[3].work > 0
    replaced = [e.structure for e in pruner.events if e.kind == "decay" and e.step == 3]
    assert len(replaced) >= 1
    assert 0 not in replaced
    assert pruner.finished
    assert int(pruner.lifecycle.phase[0]) == ACTIVE


def test_from_stop_on_nothing_is_released() -> None:
    for rule in ("thresholds", "tournament"):
        rectify = dp.Rectify(rule=rule, t_rate=-1, t_len=-9, warm_up=0, judge_at=0.9)
        schedule = dp.Schedule(start=1, stop=4, rounds=1, decay_steps=9)
        crafted = Crafted(
            set(range(30)), torch.linspace(1, 2, 30), rectify=rectify, schedule=schedule
        )
        for _ in range(16):
            crafted.step()
        steps = {e.step for e in crafted.pruner.events if e.kind == "release"}
        assert steps == ({2, 3} if rule == "thresholds" else {3})
        assert crafted.pruner.finished


def test_the_tournament_releases_who_resists_most() -> None:
    scores = torch.linspace(1, 2, 30)
    resisting = {1, 4, 13, 23}
    rectify = dp.Rectify(rule="tournament", extra=0.4, judge_at=0.6)
    schedule = dp.Schedule(start=1, stop=30, rounds=1, decay_steps=5)
    budget = dp.Budget(structures=0.5)
    crafted = Crafted(resisting, scores, rectify=rectify, schedule=schedule, budget=budget)
    first = [e.structure for e in crafted.step()]
    assert len(first) == 21  # 15 to remove, and 0.4 of them more
    for _ in range(12):
        crafted.step()
    released = {e.structure: e for e in crafted.pruner.events if e.kind == "release"}
    assert len(released) == 6
    assert {e.step for e in released.values()} == {4}
    assert resisting & set(first) <= set(released)
    pruned = [e for e in crafted.pruner.events if e.kind == "prune"]
    assert len(pruned) == 15
    judged = min(e.work for e in released.values())
    assert judged >= max(e.work for e in pruned) - 1e-6 or judged < 0
    assert crafted.pruner.finished
    assert not any(e.kind == "decay" for e in crafted.pruner.events[21:])


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn, self.head = kind(8, 64, batch_first=True), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.6])
def test_hidden_units_are_multiples_whatever_the_gates(
    kind: type[nn.RNNBase], share: float
) -> None:
    torch.manual_seed(0)
    model, x = Recurrent(kind), torch.randn(2, 5, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    pruner = pruner_for(
        model,
        optimizer,
        inputs=x,
        budget=dp.Budget(macs=share),
        schedule=dp.Schedule(stop=1, decay_steps=1),
        rectify=None,
        round_to=8,
    )
    while not pruner.finished:
        model(x).square().sum().backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    report = pruner.compact()
    hidden, gates = model.rnn.hidden_size, model.rnn.weight_hh_l0.shape[0] // model.rnn.hidden_size
    assert hidden % 8 == 0

    def macs(hidden: int) -> int:
        return 5 * gates * hidden * (8 + hidden) + 3 * hidden

    assert report.macs_after == macs(hidden) <= share * macs(64) < macs(hidden + 8)
