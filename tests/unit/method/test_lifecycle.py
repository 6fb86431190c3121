"""Only legal moves, and each changes what it says and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from decayprune.method import lifecycle
from decayprune.method.lifecycle import ACTIVE, DECAYING, PRUNED, LifecycleState

SIZE = 5
MOVES = ("begin", "release", "finish")
LEGAL = {"begin": (ACTIVE, DECAYING), "release": (DECAYING, ACTIVE), "finish": (DECAYING, PRUNED)}


def ids(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64)


def apply(state: LifecycleState, move: str, numbers: Tensor) -> LifecycleState:
    moves: dict[str, Callable[[], LifecycleState]] = {
        "begin": lambda: lifecycle.begin(
            state,
            numbers,
            length=torch.full((numbers.numel(),), 2.0),
            decay_steps=4,
        ),
        "release": lambda: lifecycle.release(state, numbers, cool_until=9),
        "finish": lambda: lifecycle.finish(state, numbers),
    }
    return moves[move]()


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(MOVES), st.integers(0, SIZE - 1)), max_size=30))
def test_only_legal_moves_happen(moves: list[tuple[str, int]]) -> None:
    state, model = LifecycleState.fresh(SIZE), [ACTIVE] * SIZE
    for move, number in moves:
        before, after = LEGAL[move]
        if model[number] == before:
            state, model[number] = apply(state, move, ids(number)), after
        else:
            with pytest.raises(ValueError, match=f"structure {number} is"):
                apply(state, move, ids(number))
        assert state.phase.tolist() == model


def test_one_illegal_move_stops_all() -> None:
    state = apply(LifecycleState.fresh(SIZE), "begin", ids(0, 1))
    with pytest.raises(ValueError, match="Only active structures can start to decay; structure 1"):
        apply(state, "begin", ids(2, 1))
    with pytest.raises(ValueError, match="Only decaying structures can be released; structure 3"):
        apply(state, "release", ids(0, 3))
    assert state.decaying.tolist() == [0, 1]


def test_a_decay_from_start_to_end() -> None:
    state = apply(LifecycleState.fresh(SIZE), "begin", ids(1, 3))
    assert state.decaying.tolist() == [1, 3]
    assert state.start_length.tolist() == [0, 2, 0, 2, 0]
    assert state.length.tolist() == [0, 2, 0, 2, 0]
    assert state.span.tolist() == [0, 4, 0, 4, 0]
    state = lifecycle.tick(lifecycle.tick(state))
    assert state.age.tolist() == [0, 2, 0, 2, 0]
    state = apply(state, "finish", ids(3))
    assert state.phase.tolist() == [0, 1, 0, 2, 0]
    assert state.length.tolist() == [0, 2, 0, 0, 0]
    assert lifecycle.tick(state).age.tolist() == [0, 3, 0, 2, 0]
    assert state.committed.tolist() == [False, True, False, True, False]


def test_cool_down_ends_after_its_last_step() -> None:
    state = apply(apply(LifecycleState.fresh(SIZE), "begin", ids(2)), "release", ids(2))
    assert state.cooling(9).tolist() == [False, False, True, False, False]
    assert not state.cooling(10).any()


def test_a_new_decay_starts_afresh() -> None:
    state = lifecycle.tick(apply(LifecycleState.fresh(SIZE), "begin", ids(2)))
    sums = type(state.statistics)(*(field + 1 for field in state.statistics))
    state = apply(lifecycle.replace(state, statistics=sums), "release", ids(2))
    state = apply(state, "begin", ids(2))
    assert int(state.age[2]) == 0
    assert int(state.cool_until[2]) == 0
    for field in state.statistics:
        assert field.tolist() == [1, 1, 0, 1, 1]


def test_states_are_values() -> None:
    before = LifecycleState.fresh(SIZE)
    apply(before, "begin", ids(0))
    lifecycle.tick(before)
    assert all(not tensor.any() for tensor in before.state_dict().values())


def test_saved_and_loaded() -> None:
    state = lifecycle.tick(apply(LifecycleState.fresh(SIZE), "begin", ids(0, 4)))
    loaded = LifecycleState.from_state_dict(state.state_dict(), like=LifecycleState.fresh(SIZE))
    for name, tensor in state.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
        assert loaded.state_dict()[name].dtype == tensor.dtype
        assert loaded.state_dict()[name] is not tensor


def test_a_foreign_state_is_refused() -> None:
    like = LifecycleState.fresh(SIZE)
    with pytest.raises(ValueError, match="for 4 structures, this model has 5"):
        LifecycleState.from_state_dict(LifecycleState.fresh(4).state_dict(), like=like)
    lacking = like.state_dict()
    del lacking["age"]
    with pytest.raises(ValueError, match="other fields than expected: age"):
        LifecycleState.from_state_dict(lacking, like=like)


def test_before_anybody_moves_a_state_takes_no_room() -> None:
    fresh = LifecycleState.fresh(10_000)
    held = sum(value.untyped_storage().nbytes() for value in fresh.state_dict().values())
    assert held < 100
    begun = lifecycle.begin(fresh, torch.tensor([3]), length=torch.ones(1), decay_steps=5)
    assert begun.committed.sum() == 1
    assert not fresh.committed.any()


def test_what_a_later_state_says_is_written_into_the_tensors_of_one() -> None:
    state = apply(LifecycleState.fresh(SIZE), "begin", ids(0, 4))
    places = [value.data_ptr() for value in (state.age, state.phase, state.statistics.work)]
    saved, later = state.state_dict(), lifecycle.tick(state)
    wanted = later.state_dict()
    lifecycle.write_(state, later)
    found = state.state_dict()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert places == [v.data_ptr() for v in (state.age, state.phase, state.statistics.work)]
    assert saved["age"].tolist() == [0] * SIZE  # what was saved is nobody's to write to
