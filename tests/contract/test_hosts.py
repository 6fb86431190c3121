"""What every host promises, in every kind of loop.

The target is met and reported, what is pruned stays exactly zero, compaction changes nothing,
every move is an event, and the optimizer goes on with the smaller model.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.contract.hosts import HOSTS, MACS, STEPS, VARIANTS, Setup, batch, network
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from decayprune.structures import sums

both = [
    pytest.mark.parametrize("variant", VARIANTS),
    pytest.mark.parametrize("name", HOSTS),
]


def every_host(function: Any) -> Any:
    for mark in both:
        function = mark(function)
    return function


def build(name: str, variant: str) -> Setup:
    return HOSTS[name](network(), *VARIANTS[variant])


def plain(setup: Setup, seed: int) -> None:
    setup.optimizer.zero_grad()
    x, y = batch(seed)
    F.cross_entropy(setup.model(x), y).backward()
    setup.optimizer.step()
    setup.step()


def accumulated(setup: Setup, seed: int) -> None:
    setup.optimizer.zero_grad()
    for part in range(2):
        x, y = batch(2 * seed + part)
        (F.cross_entropy(setup.model(x), y) / 2).backward()
        if part == 0:
            setup.step()  # no step was taken
    setup.optimizer.step()
    setup.step()


def mixed() -> Callable[[Setup, int], None]:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def step(setup: Setup, seed: int) -> None:
        setup.optimizer.zero_grad()
        x, y = batch(seed)
        if seed == 1:
            x = x * float("inf")  # the scaler has to skip this one
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(setup.model(x), y)
        statistics = copy.deepcopy(dict(setup.model.named_buffers())) if seed == 1 else None
        scaler.scale(loss).backward()
        scaler.step(setup.optimizer)
        scaler.update()
        setup.step()
        if statistics is not None:
            for name, value in setup.model.named_buffers():
                value.copy_(statistics[name].nan_to_num(0.0, 1.0, 1.0))

    return step


def pruned_norms(setup: Setup) -> Tensor:
    structures = setup.host.structures
    slices = sums.labelled(structures, setup.zeroed)
    tensors = dict(setup.model.named_parameters())
    squares = sums.sum_products(slices, structures.num_structures, tensors)
    return squares[setup.lifecycle.pruned]


def run(setup: Setup, step: Callable[[Setup, int], None], first: int = 0) -> int:
    for seed in range(first, STEPS):
        if setup.host.finished:
            return seed
        step(setup, seed)
        assert not pruned_norms(setup).any()
    raise AssertionError(f"not finished after {STEPS} steps: {setup.host.remaining()}")


def check(setup: Setup, variant: str) -> None:
    host, model, optimizer = setup.host, setup.model, setup.optimizer
    assert host.remaining()["macs"] <= MACS
    assert host.remaining()["macs"] > 0.7 * MACS
    kinds = [event.kind for event in host.events]
    assert kinds.count("decay") == kinds.count("release") + kinds.count("prune")
    assert ("release" in kinds) == ("SR" in variant)
    assert [e.step for e in host.events] == sorted(e.step for e in host.events)
    plain(setup, 1000)  # finished, and training goes on
    assert not pruned_norms(setup).any()
    x = batch(2000)[0]
    before = model.eval()(x).detach()
    report = host.compact()
    assert report.max_rel_error <= 1e-5
    torch.testing.assert_close(model(x).detach(), before, rtol=1e-5, atol=1e-5)
    assert report.removed == kinds.count("prune")
    assert report.macs_after <= MACS * report.macs_before
    assert {type(m).__module__.split(".")[0] for m in model.modules()} <= {"torch", "tests"}
    old = [p.detach().clone() for p in model.train().parameters()]
    plain(setup, 3000)
    assert all(not torch.equal(a, b) for a, b in zip(old, model.parameters(), strict=True))
    for parameter in model.parameters():
        for value in optimizer.state[parameter].values():
            if isinstance(value, Tensor) and value.dim():
                assert value.shape == parameter.shape


@every_host
def test_a_plain_loop(name: str, variant: str) -> None:
    setup = build(name, variant)
    run(setup, plain)
    check(setup, variant)


@every_host
def test_accumulation(name: str, variant: str) -> None:
    setup = build(name, variant)
    taken = run(setup, accumulated)
    assert setup.host.steps == taken
    check(setup, variant)


@every_host
def test_mixed_precision_with_a_skipped_step(name: str, variant: str) -> None:
    setup = build(name, variant)
    taken = run(setup, mixed())
    assert setup.host.steps == taken - 1
    check(setup, variant)


@every_host
def test_resuming_in_mid_decay(name: str, variant: str, tmp_path: Path) -> None:
    setup = build(name, variant)
    seed = 0
    while not setup.lifecycle.committed.any() or seed < 12:
        plain(setup, seed)
        seed += 1
    states = {
        "model": setup.model.state_dict(),
        "optimizer": setup.optimizer.state_dict(),
        "host": setup.host.state_dict(),
    }
    torch.save(states, tmp_path / "state.pt")
    again = build(name, variant)
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    again.model.load_state_dict(loaded["model"])
    again.optimizer.load_state_dict(loaded["optimizer"])
    if again.host is not again.optimizer:
        again.host.load_state_dict(loaded["host"])
    assert run(setup, plain, seed) == run(again, plain, seed)
    for key, value in setup.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key]), key
    assert again.host.events == setup.host.events
    check(again, variant)


def leaves(state: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Where something stands in a state, dictionaries themselves included."""
    for key, value in state.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))


def spoilt(state: Any, path: tuple[str, ...], value: Any) -> Any:
    """A copy with something else at one place; with nothing there if the value is Ellipsis."""
    copied = dict(state)
    if len(path) > 1:
        copied[path[0]] = spoilt(state[path[0]], path[1:], value)
    elif value is ...:
        del copied[path[0]]
    else:
        copied[path[0]] = value
    return copied


def everything(state: Any) -> Any:
    if isinstance(state, torch.Tensor):
        return state.tolist()
    if isinstance(state, dict):
        return {key: everything(value) for key, value in state.items()}
    return [everything(item) for item in state] if isinstance(state, (list, tuple)) else state


@pytest.mark.parametrize("name", HOSTS)
def test_a_damaged_state_changes_nothing(name: str) -> None:
    """Each part of a state missing, or of another kind: refused, with all as it was."""
    setup = build(name, "SP+SR")
    for seed in range(14):
        plain(setup, seed)
    good = setup.host.state_dict()
    inner = good.get("pruning", good)
    again = build(name, "SP+SR")
    for seed in range(3):
        plain(again, seed)
    before = everything(again.host.state_dict())
    for path in leaves(inner):
        for value in (..., "x", [{}], torch.zeros(2, 1, 3)):
            bad = spoilt(inner, path, value)
            was = _at(inner, path)
            if (was is None and value is ...) or type(was) is type(value) is list:
                continue  # nothing is lost; a list of other things
            if path == ("pinning",) and value is ...:
                continue  # older versions did not save it
            state = good | {"pruning": bad} if "pruning" in good else bad
            with pytest.raises(ValueError, match=r"."):
                again.host.load_state_dict(state)
            assert everything(again.host.state_dict()) == before, (path, value)


def _at(state: Any, path: tuple[str, ...]) -> Any:
    return _at(state[path[0]], path[1:]) if path else state


@pytest.mark.parametrize("name", HOSTS)
def test_a_host_says_why_it_cannot_be_copied(name: str) -> None:
    host = build(name, "SP+SR").host
    for copied in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match=r"cannot be copied or pickled. Save its state_dict"):
            copied(host)


# ---------------------------------------------------------------- two processes


def _rank(rank: int, folder: str) -> None:
    """One of two processes: every host in every variant, on its own half of the data."""
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group(
        "gloo", store=store, rank=rank, world_size=2, timeout=timedelta(minutes=2)
    )
    results = {}
    for name in HOSTS:
        for variant in VARIANTS:
            setup = build(name, variant)
            wrapped = DistributedDataParallel(setup.model)

            def step(setup: Setup, seed: int, wrapped: nn.Module = wrapped) -> None:
                setup.optimizer.zero_grad()
                x, y = batch(2 * seed + rank)
                F.cross_entropy(wrapped(x), y).backward()
                setup.optimizer.step()
                setup.step()

            taken = run(setup, step)
            del wrapped, step
            check_weights = [p.detach().clone() for p in setup.model.parameters()]
            report = setup.host.compact()
            results[f"{name}, {variant}"] = {
                "steps": taken,
                "weights": check_weights,
                "phase": setup.lifecycle.phase,
                "macs": report.macs_after / report.macs_before,
                "error": report.max_rel_error,
                "kinds": [event.kind for event in setup.host.events],
            }
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(_rank, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@every_host
def test_two_processes_decide_alike(name: str, variant: str, ranks: list[dict[str, Any]]) -> None:
    one, two = (rank[f"{name}, {variant}"] for rank in ranks)
    assert one["steps"] == two["steps"]
    assert torch.equal(one["phase"], two["phase"])
    assert all(torch.equal(a, b) for a, b in zip(one["weights"], two["weights"], strict=True))
    assert one["macs"] <= MACS
    assert one["error"] <= 1e-5
    assert ("release" in one["kinds"]) == ("SR" in variant)
