"""``export``: a model becomes a file for another runtime, and the file is run beside the model."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves, tree_map

from decayprune.checkpoint.atomic import check_regular, write_atomically
from decayprune.deploy.formats import FORMATS, Format, Runner, installed
from decayprune.latency.race import Call, Race
from decayprune.structures.example import (
    ExampleInputs,
    arguments,
    batch_size,
    outputs,
    quiet,
)
from decayprune.surgery.compare import difference, first_line, tolerance_for

_LARGEST_BATCH = 1 << 20  # torch 2.6 finds that a batch without a bound could be 2^63 - 1
_RUNTIME = 10  # another runtime sums in another order and has its own exp and erf


class ExportError(RuntimeError):
    """A model could not be exported, or its file does not compute what the model computes."""


@dataclass(frozen=True)
class Exported:
    """A file, and how it compares.

    Attributes:
        path: Where it is.
        format: ``"ONNX"``, ``"torch.export"``, ``"ExecuTorch"`` or ``"OpenVINO"``.
        size: Bytes of the file, or of its two files.
        batch: Size of the batches that it takes; None for any.
        runtime: What it was run with, and its version; empty if that is not installed.
        error: Largest absolute difference of an output to the model's, over all batches that were
            tried; None if it was not run.
        relative: The same, relative to the largest value of that output.
        ms: Median milliseconds of a run on the example inputs; None unless ``dense`` was given.
        dense_ms: The same of the dense model's file.
    """

    path: str
    format: str
    size: int
    batch: int | None
    runtime: str
    error: float | None = None
    relative: float | None = None
    ms: float | None = None
    dense_ms: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        batch = "batches of any size" if self.batch is None else f"batches of {self.batch}"
        lines = [f"{self.path}: {self.format}, {self.size / 2**20:.2f} MiB, takes {batch}"]
        if self.error is None:
            runtime = next(f.runtime for f in FORMATS.values() if f.name == self.format)
            lines.append(f"not checked: {runtime} is not installed (pip install {runtime})")
        else:
            lines.append(
                f"outputs in {self.runtime} differ from the model's by at most {self.error:.1e} "
                f"({self.relative:.1e} of the largest)"
            )
        if self.ms is not None and self.dense_ms is not None:
            lines.append(
                f"dense {self.dense_ms:.2f} ms -> {self.ms:.2f} ms, "
                f"{self.dense_ms / self.ms:.2f}x faster in {self.runtime}"
            )
        return "\n".join(lines)


def export(
    model: nn.Module,
    example_inputs: ExampleInputs,
    path: str | os.PathLike[str],
    *,
    dynamic_batch: bool = True,
    dense: nn.Module | None = None,
    tolerance: float | None = None,
) -> Exported:
    """Write a model as ``.onnx``, ``.pt2``, ``.pte`` or ``.xml``, and check it against the model.

    The file is run on the example inputs (and on a batch of one and one more than the example's,
    if it takes any) before it gets its name: one that computes something else is not kept.

    Args:
        model: Usually compacted; exported in evaluation mode, and left as it is.
        example_inputs: A tensor, or a tuple or dict of arguments, as the model takes them. The
            first dimension of the first tensor is the batch, and so is that of every tensor of the
            same size there.
        path: Its ending says what to write. ``.onnx`` needs onnx and onnxscript and is checked
            with onnxruntime, ``.pte`` needs executorch; ``.xml`` needs openvino and what ``.onnx``
            needs, and its weights get the same name with ``.bin``.
        dynamic_batch: Let the file take batches of any size; ``.pte`` never does.
        dense: The model before pruning: exported in the same way to a temporary file, and timed
            beside this one in the same runtime.
        tolerance: Largest relative difference of outputs; None for what rounding explains.

    Returns:
        The difference that was found, and times.

    Raises:
        ExportError: The model cannot be exported, or the file computes something else; a file that
            was there before is untouched.
        ModuleNotFoundError: A package that writes the format is missing.
        ValueError: The ending is none of these, or the model is wrapped or compiled.
        TypeError: The example inputs are none.
        OSError: The file cannot be written.
    """
    target = Path(path)
    kind = _format(target)
    kind.check_writer()
    any_batch = dynamic_batch and kind.any_batch
    if not any(isinstance(v, Tensor) and v.dim() for v in tree_leaves(arguments(example_inputs))):
        raise TypeError("export() needs example_inputs with a tensor that has a batch; found none.")
    batch = batch_size(example_inputs)
    runtime = installed(kind.runtime)
    error = relative = times = None
    files = kind.files(target)
    for path in files:
        check_regular(path)
    with TemporaryDirectory() as folder:
        made = Path(folder) / target.name
        _write(kind, model, example_inputs, any_batch, made)
        if runtime is not None:
            sizes = sorted({batch, 1, batch + 1}) if any_batch else [batch]
            examples = [_resized(example_inputs, batch, size) for size in sizes]
            error, relative = _check(kind.open(made), model, examples, tolerance)
        copies = zip(files, kind.files(made), strict=True)
        write_atomically({path: partial(copyfile, source) for path, source in copies})
    if dense is not None and runtime is not None:
        times = _timed(kind, dense, target, example_inputs, any_batch)
    return Exported(
        path=str(target),
        format=kind.name,
        size=sum(path.stat().st_size for path in files),
        batch=None if any_batch else batch,
        runtime=f"{kind.runtime} {runtime}" if runtime else "",
        error=error,
        relative=relative,
        dense_ms=times[0] if times else None,
        ms=times[1] if times else None,
    )


def in_onnxruntime(model: nn.Module, example_inputs: ExampleInputs) -> Call:
    """What runs a model on one batch in onnxruntime, on this machine's processor.

    Args:
        model: Exported in evaluation mode for batches of this size, and left as it is.
        example_inputs: The batch.

    Raises:
        ExportError: The model cannot be exported.
        ModuleNotFoundError: A package is missing.
    """
    kind = FORMATS[".onnx"]
    kind.check_installed()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        _write(kind, model, example_inputs, False, path)
        return partial(kind.open(path), example_inputs)


def _format(path: Path) -> Format:
    found = FORMATS.get(path.suffix)
    if found is None:
        raise ValueError(
            f"export() writes files that end in {', '.join(FORMATS)}; found {path.name!r}."
        )
    return found


def _resized(example: ExampleInputs, batch: int, size: int) -> ExampleInputs:
    """The same example with another size of its batch: what is missing is repeated."""

    def resize(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.dim() or leaf.shape[0] != batch:
            return leaf
        return leaf[torch.arange(size, device=leaf.device) % batch]

    return tree_map(resize, example)


# ---------------------------------------------------------------- write, check, time


def _write(
    kind: Format, model: nn.Module, example: ExampleInputs, any_batch: bool, path: Path
) -> None:
    try:
        program = _program(model, example, any_batch)
    except Exception as error:  # whatever a forward() or torch.export raises
        hint = "Run forward() without what depends on values of tensors"
        if any_batch and _exports(model, example):
            hint = (
                "With batches of one size it can: pass dynamic_batch=False, or change the line of "
                "forward() that reads the size of the batch as a number"
            )
        raise ExportError(
            f"torch.export cannot follow the model: {_said(error)}. {hint}."
        ) from error
    try:
        kind.write(program, path)
    except OSError:
        raise
    except Exception as error:  # whatever a converter raises
        raise ExportError(f"{kind.name} cannot hold the model: {_said(error)}.") from error


def _exports(model: nn.Module, example: ExampleInputs) -> bool:
    try:
        _program(model, example, False)
    except Exception:  # then the batch is not what is wrong
        return False
    return True


def _program(model: nn.Module, example: ExampleInputs, any_batch: bool) -> ExportedProgram:
    shapes = None
    if any_batch:
        batch = batch_size(example)
        size = max(batch, 2)  # a size of one would be taken for a constant
        example = _resized(example, batch, size)
        shapes = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
        for leaf in tree_leaves(arguments(example)):
            if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == size:
                shapes[leaf] = {0: torch.export.Dim("batch", max=_LARGEST_BATCH)}
    args, kwargs = arguments(example)
    with quiet(model):
        return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)


def _check(
    run: Runner, model: nn.Module, examples: list[ExampleInputs], tolerance: float | None
) -> tuple[float, float]:
    """Largest absolute and relative difference of the outputs of a file."""
    error = relative = 0.0
    for example in examples:
        where = f"on a batch of {batch_size(example)}"
        try:
            expected = [value.cpu() for value in outputs(model, example)]
        except Exception as raised:  # its first dimension may be none, or have one size
            raise ExportError(
                f"The model itself does not run {where}: {_said(raised)}. Nothing was kept. Pass "
                "dynamic_batch=False for a file of the example's size."
            ) from raised
        try:
            found = [value.cpu() for value in run(example) if value.is_floating_point()]
            gap = difference(expected, found)
        except Exception as raised:  # an operator the runtime lacks, another number of outputs
            raise ExportError(
                f"The file does not run {where} as the model does: {_said(raised)}. Nothing was "
                "kept."
                + (" Pass dynamic_batch=False for batches of one size." if examples[1:] else "")
            ) from raised
        limit = _RUNTIME * tolerance_for(expected) if tolerance is None else tolerance
        if gap.relative > limit:
            raise ExportError(
                f"The file does not compute what the model computes: {where} outputs differ by "
                f"{gap.relative:.1e} of the largest, where {limit:.1e} is accepted. Nothing was "
                "kept. Pass tolerance=... if that is as exact as you need it."
            )
        error, relative = max(error, gap.error), max(relative, gap.relative)
    return error, relative


def _timed(
    kind: Format, dense: nn.Module, path: Path, example: ExampleInputs, any_batch: bool
) -> tuple[float, float]:
    """Median milliseconds of a run of the dense model's file, and of the file at ``path``."""
    with TemporaryDirectory() as folder:
        beside = Path(folder) / f"dense{path.suffix}"
        _write(kind, dense, example, any_batch, beside)
        runners = [kind.open(beside), kind.open(path)]
        race = Race.on(torch.device("cpu"), 20)
        return race.medians([partial(runner, example) for runner in runners])


def _said(error: BaseException) -> str:
    return first_line(error).rstrip(".")
