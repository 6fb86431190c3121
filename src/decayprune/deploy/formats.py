"""The files a model can become, each by its own tool: how it is written, and how it is run.

``.onnx`` (onnxruntime and most others), ``.pt2`` (torch itself), ``.pte`` (ExecuTorch, on phones)
and ``.xml`` with ``.bin`` beside it (OpenVINO) all begin as a
:class:`torch.export.ExportedProgram`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from decayprune.structures.example import ExampleInputs, arguments

Runner = Callable[[ExampleInputs], list[Tensor]]
"""Runs a file on inputs of the model; every tensor it returns."""

_ONE_FILE = 1 << 31  # bytes that an ONNX file can hold


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        name: What people call it.
        writer: Packages that have to be there to write it.
        runtime: The package that runs it.
        write: Writes a program to a path.
        open: Reads a file back, to be run.
        any_batch: Whether one file can take batches of any size.
        beside: Ending of a second file, written beside the first under the same name; or nothing.
    """

    name: str
    writer: tuple[str, ...]
    runtime: str
    write: Callable[[ExportedProgram, Path], None]
    open: Callable[[Path], Runner]
    any_batch: bool = True
    beside: str = ""

    def files(self, path: Path) -> list[Path]:
        """All files of a model whose first one is ``path``."""
        return [path, path.with_suffix(self.beside)] if self.beside else [path]

    def check_writer(self) -> None:
        """Raise if a package is missing.

        Raises:
            ModuleNotFoundError: Names it, and how to install it.
        """
        self._check("Writing", self.writer)

    def check_installed(self) -> None:
        """Raise if a package is missing, to write it or to run it.

        Raises:
            ModuleNotFoundError: Names it, and how to install it.
        """
        self._check("Running", (*self.writer, self.runtime))

    def _check(self, what: str, packages: tuple[str, ...]) -> None:
        for package in packages:
            if installed(package) is None:
                raise ModuleNotFoundError(
                    f"{what} {self.name} needs the package {package}, which is not installed: "
                    f"pip install {' '.join(packages)}",
                    name=package,
                )


def installed(package: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


# ---------------------------------------------------------------- torch


def _write_pt2(program: ExportedProgram, path: Path) -> None:
    with path.open("wb") as file:  # torch warns of any path that does not end in .pt2
        torch.export.save(program, file)


def _open_pt2(path: Path) -> Runner:
    with path.open("rb") as file:
        module = torch.export.load(file).module()

    def run(example: ExampleInputs) -> list[Tensor]:
        args, kwargs = arguments(example)
        with torch.no_grad():
            return _tensors(module(*args, **kwargs))

    return run


# ---------------------------------------------------------------- ONNX


def _write_onnx(program: ExportedProgram, path: Path) -> None:
    size = sum(value.numel() * value.element_size() for value in program.state_dict.values())
    if size >= _ONE_FILE:
        raise ValueError(
            f"An ONNX file holds less than 2 GiB, and the weights are {size / 2**30:.1f} GiB. Call "
            "torch.onnx.export(model, args, path, external_data=True), which puts them beside it"
        )
    with _tools_quiet():
        found = torch.onnx.export(program, dynamo=True, verbose=False)
        assert found is not None
        found.save(path)


def _open_onnx(path: Path) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        path.read_bytes(), options, providers=["CPUExecutionProvider"]
    )
    names = [item.name for item in session.get_inputs()]

    def run(example: ExampleInputs) -> list[Tensor]:
        values = [value.numpy(force=True) for value in _tensors(arguments(example))]
        found = session.run(None, dict(zip(names, values, strict=True)))
        return [torch.from_numpy(value) for value in found]

    return run


# ---------------------------------------------------------------- ExecuTorch


def _write_pte(program: ExportedProgram, path: Path) -> None:
    with _tools_quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        path.write_bytes(lowered.to_executorch().buffer)


def _open_pte(path: Path) -> Runner:
    with _tools_quiet():
        from executorch.runtime import Runtime

        program = Runtime.get().load_program(path.read_bytes())
        method = program.load_method("forward")

    def run(example: ExampleInputs) -> list[Tensor]:
        assert program  # its method reads it, and does not keep it alive
        return _tensors(method.execute(_tensors(arguments(example))))

    return run


# ---------------------------------------------------------------- OpenVINO


def _write_openvino(program: ExportedProgram, path: Path) -> None:
    import openvino

    with TemporaryDirectory() as folder:
        onnx = Path(folder) / "model.onnx"
        _write_onnx(program, onnx)
        with _tools_quiet():
            openvino.save_model(openvino.convert_model(onnx), path, compress_to_fp16=False)


def _open_openvino(path: Path) -> Runner:
    import openvino

    # A processor with units for bfloat16 computes in it unless it is told otherwise.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(path, "CPU", settings)

    def run(example: ExampleInputs) -> list[Tensor]:
        found = compiled([value.numpy(force=True) for value in _tensors(arguments(example))])
        return [torch.from_numpy(found[port].copy()) for port in compiled.outputs]

    return run


FORMATS = {
    ".onnx": Format("ONNX", ("onnx", "onnxscript"), "onnxruntime", _write_onnx, _open_onnx),
    ".pt2": Format("torch.export", (), "torch", _write_pt2, _open_pt2),
    # ExecuTorch lays out its memory when the file is written, so a batch has one size.
    ".pte": Format(
        "ExecuTorch", ("executorch",), "executorch", _write_pte, _open_pte, any_batch=False
    ),
    ".xml": Format(
        "OpenVINO",
        ("openvino", "onnx", "onnxscript"),
        "openvino",
        _write_openvino,
        _open_openvino,
        beside=".bin",
    ),
}
"""Formats by the ending of a file's name."""


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


@contextmanager
def _tools_quiet() -> Iterator[None]:
    """What the tools warn of (their own deprecations, mostly) says nothing to their user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
