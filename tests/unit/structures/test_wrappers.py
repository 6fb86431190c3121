"""What is wrapped around a model is refused in words, before anything is trained or cut."""

from __future__ import annotations

import copy
import gc
import re

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_tensor
from torch.nn.parallel import DataParallel, DistributedDataParallel

import decayprune as dp
from decayprune.structures.wrappers import check_bare, check_unwrapped, set_aside
from loops import OPTIMIZERS, net, pruner_for, train


def refused(model: nn.Module, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        pruner_for(model, torch.optim.SGD(model.parameters(), lr=0.1))


@pytest.mark.usefixtures("alone")
def test_data_parallelism_is_wrapped_around_later() -> None:
    match = r"is wrapped in DistributedDataParallel\. Build the pruner from the bare module"
    refused(DistributedDataParallel(net()), match)
    refused(nn.Sequential(DistributedDataParallel(net())), r"The part '0' of the model")


def test_data_parallelism_of_threads() -> None:
    refused(DataParallel(net()), r"is wrapped in DataParallel\. .* pass the wrapper's \.module")


@pytest.mark.usefixtures("alone")
@pytest.mark.filterwarnings("ignore")  # torch's own, about sharding to a single process
def test_sharded_models() -> None:

    model = net()
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    refused(model, r"sharded by FSDP, .* shard the model after compact\(\)")


def test_compiled_models() -> None:
    compiled = torch.compile(net(), backend="eager")
    refused(compiled, r"is compiled\. .* compiled = torch\.compile\(model\)")
    inside = net()
    inside.a.compile(backend="eager")
    refused(inside, r"The part 'a' of the model is compiled in place.* call \.compile\(\) after")
    check_bare(net())


@pytest.mark.skipif(torch.__version__ < (2, 5), reason="torch has Adafactor from 2.5 on")
def test_adafactor_cannot_be_cut_along() -> None:
    model = net()
    with pytest.raises(ValueError, match=r"Adafactor keeps sums .* use SGD, Adam or AdamW"):
        pruner_for(model, torch.optim.Adafactor(model.parameters()))


def test_an_optimizer_of_many_inner_steps_is_refused() -> None:
    model = net()
    both = [OPTIMIZERS["SGD"](model.a.parameters()), torch.optim.LBFGS(model.b.parameters())]
    with pytest.raises(ValueError, match="LBFGS takes many inner steps"):
        pruner_for(model, both)


@pytest.mark.usefixtures("alone")
def test_a_living_wrapper_is_refused_at_the_cut_and_a_deleted_one_is_not() -> None:
    model = net()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    pruner = pruner_for(model, optimizer)
    parallel = DistributedDataParallel(model)
    train(parallel, optimizer, 22, pruner)
    check_unwrapped(net())  # the wrapper of another model
    with pytest.raises(RuntimeError, match="DistributedDataParallel still wraps") as caught:
        pruner.compact()
    lines = re.findall("^    (.*)$", str(caught.value), re.MULTILINE)
    assert lines == ["del parallel; pruner.compact()", "parallel = DistributedDataParallel(model)"]
    assert model.stem[0].weight.shape[0] == 12
    del caught  # its traceback holds nothing of the wrapper, but frames of this test
    names = {"model": model, "pruner": pruner, "parallel": parallel}
    names["DistributedDataParallel"] = DistributedDataParallel
    del parallel
    exec("\n".join(lines), names)
    assert pruner.compact().removed
    train(names["parallel"], optimizer, 2, first=22)


@pytest.mark.usefixtures("alone")
def test_a_wrapper_that_is_set_aside_goes_on_with_the_shapes_of_then() -> None:
    model = net()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    pruner = pruner_for(model, optimizer)
    parallel = DistributedDataParallel(model, find_unused_parameters=True)
    buckets: list[int] = []

    def note(_: object, bucket: torch.distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
        buckets.append(bucket.buffer().numel())
        found: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        found.set_result(bucket.buffer())
        return found

    note.__annotations__.clear()  # torch compares them with types, and these are strings
    parallel.register_comm_hook(None, note)
    train(parallel, optimizer, 22, pruner)
    with set_aside(model):
        pruner.compact()
    bare = copy.deepcopy(model)
    train(bare, OPTIMIZERS["SGD"](bare.parameters()), 2, first=22)
    optimizer.state.clear()  # that of the copy is new
    buckets.clear()
    train(parallel, optimizer, 2, first=22)
    for one, other in zip(bare.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert sum(buckets) == 2 * sum(p.numel() for p in model.parameters())
    assert parallel.module is model
    assert parallel.find_unused_parameters


@pytest.mark.usefixtures("alone")
def test_a_wrapper_that_is_set_aside_comes_back_after_an_error() -> None:
    model = net()
    parallel = DistributedDataParallel(model)

    def fail() -> None:
        check_unwrapped(model)
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"), set_aside(model):
        fail()
    with pytest.raises(RuntimeError, match="still wraps"):
        check_unwrapped(model)
    train(parallel, OPTIMIZERS["SGD"](model.parameters()), 2)
    with set_aside(net()):
        pass  # not wrapped


@pytest.mark.usefixtures("alone")
def test_a_deleted_wrapper_in_a_circle_is_no_hindrance() -> None:
    model = net()
    parallel = DistributedDataParallel(model)
    parallel.circle = [parallel]
    gc.disable()
    try:
        del parallel
        check_unwrapped(model)
    finally:
        gc.enable()


@pytest.mark.usefixtures("alone")
@pytest.mark.filterwarnings("ignore")  # torch's own, about sharding to a single process
@pytest.mark.parametrize("whole", [True, False], ids=["the model", "a part"])
def test_a_sharded_model_is_not_said_to_have_0_structures(whole: bool) -> None:
    model, mesh = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)), init_device_mesh("cpu", (1,))
    fully_shard(model if whole else model[1], mesh=mesh)
    where = "The model" if whole else "The part '1' of the model"
    with pytest.raises(ValueError, match=rf"{where} is sharded by FSDP, .*integrations/fsdp\.md"):
        dp.inspect(model, torch.randn(2, 4))


@pytest.mark.usefixtures("alone")
@pytest.mark.filterwarnings("ignore")
def test_tensor_parallelism_is_sharding() -> None:
    model, mesh = nn.Linear(4, 8), init_device_mesh("cpu", (1,))
    model.weight = nn.Parameter(distribute_tensor(model.weight.detach(), mesh))
    with pytest.raises(ValueError, match="The model is sharded, where no process"):
        dp.inspect(model, torch.randn(2, 4))
