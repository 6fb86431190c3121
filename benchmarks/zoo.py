"""Every classification model of torchvision, and four of transformers: decayed, cut, compared.

Run ``python benchmarks/zoo.py [names ...]`` (extra ``bench``): random weights, randomised
normaliser statistics, a budget of 60 % of the MACs by one threshold for all layers
(``scope="global"``), two optimizer steps on random gradients, then the cut. One JSON per model is
written at once to ``benchmarks/results/zoo/``, so a run that was stopped goes on. ``--collect``
gathers them in ``benchmarks/results/zoo.json`` and writes ``docs/zoo.md``. Times are seconds of one
CPU thread.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import decayprune as dp
from decayprune.structures.example import ExampleInputs, outputs

RESULTS = Path(__file__).parent / "results"
EACH = RESULTS / "zoo"
PAGE = Path(__file__).parents[1] / "docs" / "zoo.md"
BUDGET, TOLERANCE = 0.6, 1e-5
SIZES = {"inception_v3": 299}

Maker = Callable[[], tuple[nn.Module, ExampleInputs]]


# ---------------------------------------------------------------- the models


def vision(name: str) -> tuple[nn.Module, ExampleInputs]:
    """A model of torchvision with random weights, and one image."""
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False  # the initial values are drawn below
    model = torchvision.models.get_model(name, weights=None, **options)
    return model, torch.randn(1, 3, SIZES.get(name, 224), SIZES.get(name, 224))


def language(name: str) -> tuple[nn.Module, ExampleInputs]:
    """A model of transformers from its configuration, with random weights."""
    import transformers as hf

    tokens = torch.arange(64).view(1, 64) % 50
    classes = {"num_labels": 10}
    if name == "hf_bert":
        return hf.BertForSequenceClassification(hf.BertConfig(**classes)), {"input_ids": tokens}
    if name == "hf_vit":
        model = hf.ViTForImageClassification(hf.ViTConfig(**classes))
        return model, {"pixel_values": torch.randn(1, 3, 224, 224)}
    if name == "hf_gpt2":
        model = hf.GPT2LMHeadModel(hf.GPT2Config(use_cache=False))
        return model, {"input_ids": tokens}
    config = hf.LlamaConfig(
        vocab_size=1000,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        use_cache=False,
    )
    return hf.LlamaForCausalLM(config), {"input_ids": tokens}


def zoo() -> dict[str, Maker]:
    """Every model by name."""
    names = torchvision.models.list_models(module=torchvision.models)
    makers: dict[str, Maker] = {name: lambda n=name: vision(n) for name in names}
    for name in ("hf_bert", "hf_vit", "hf_gpt2", "hf_llama"):
        makers[name] = lambda n=name: language(n)
    return makers


def size_of(make: Maker) -> int:
    """Parameters of a model, without drawing them where it can be helped."""
    try:
        with torch.device("meta"):
            model, _ = make()
    except NotImplementedError:  # RegNet computes its widths with tensors
        model, _ = make()
    return sum(p.numel() for p in model.parameters())


def randomise(model: nn.Module) -> None:
    """Statistics and affine parameters that are not neutral, heads that are not zero."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
            if "Norm" in type(module).__name__:
                for parameter in module.parameters(recurse=False):
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
        for parameter in model.parameters():
            if parameter.numel() and not bool(parameter.any()):
                parameter.normal_(0, 0.02)


# ---------------------------------------------------------------- one model


def random_gradients(model: nn.Module) -> None:
    """Gradients to step with; real ones overflow where a deep network is random throughout."""
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * 1e-3


def measure(make: Maker) -> dict[str, Any]:
    """Build, decay and cut one model; what came of it, or why nothing did."""
    torch.manual_seed(0)
    model, inputs = make()
    randomise(model)
    model.eval()  # one image, and batch norms over single pixels: only evaluation mode can do that
    row: dict[str, Any] = {"params_before": sum(p.numel() for p in model.parameters())}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    started = time.process_time()
    try:
        pruner = dp.DecayPruner(
            model,
            optimizer,
            inputs,
            budget=dp.Budget(macs=BUDGET),
            schedule=dp.Schedule(stop=1, rounds=1, decay_steps=2),
            scope="global",
            round_to=None,
            residual_width=True,
        )
    except (ValueError, RuntimeError) as error:
        return row | {"refusal": str(error)}
    row["build_seconds"] = round(time.process_time() - started, 2)
    row["groups"], row["structures"] = len(pruner.structures.groups), pruner.lifecycle.phase.numel()
    while not pruner.finished:
        random_gradients(model)
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    before = outputs(model, inputs)
    started = time.process_time()
    try:
        report = pruner.compact()
    except dp.CompactionError as error:
        return row | {"refusal": str(error)}
    row["cut_seconds"] = round(time.process_time() - started, 2)
    row["macs_before"], row["macs_after"] = report.macs_before, report.macs_after
    row["params_after"] = sum(p.numel() for p in model.parameters())
    row["removed"] = report.removed
    row["left_alone"] = sorted({refusal.reason.split(" (")[0] for refusal in left(pruner)})
    return row | {"error": worst(before, outputs(model, inputs))}


def left(pruner: dp.DecayPruner) -> list[Any]:
    """What stays for another reason than being the output."""
    return [r for r in pruner.structures.refusals if r.reason != "the model's output"]


def worst(before: list[Tensor], after: list[Tensor]) -> float:
    """Largest difference of an output, relative to its largest value."""
    pairs = zip(before, after, strict=True)
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)


# ---------------------------------------------------------------- all of them


def collect() -> None:
    """Gather the single results, and lay them out as a page."""
    rows = {path.stem: json.loads(path.read_text()) for path in sorted(EACH.glob("*.json"))}
    machine = {
        "cpu": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "threads": torch.get_num_threads(),
    }
    document = {"machine": machine, "budget": BUDGET, "models": rows}
    (RESULTS / "zoo.json").write_text(json.dumps(document, indent=1) + "\n")
    PAGE.write_text(page(rows, machine), encoding="utf-8")


def page(rows: dict[str, dict[str, Any]], machine: dict[str, Any]) -> str:
    """The table as Markdown."""
    good = [r for r in rows.values() if "error" in r]
    met = [r for r in good if r["macs_after"] <= BUDGET * r["macs_before"]]
    exact = [r for r in good if r["error"] <= TOLERANCE]
    lines = [
        "# The zoo",
        "",
        "Every classification model of torchvision, and four of transformers (`hf_`), with random",
        f"weights: a budget of {BUDGET:.0%} of the MACs, two optimizer steps on random gradients,",
        "then the cut. The error is the largest difference of an output between the cut and the",
        "zeroed model, relative to the largest output, in float32. Seconds are of one CPU thread.",
        "",
        f"**{len(rows)} models: {len(met)} pruned to their budget, {len(exact)} with an error",
        f"of at most {TOLERANCE:g}.** Made by `python benchmarks/zoo.py --collect` "
        f"({', '.join(f'{k} {v}' for k, v in machine.items())}).",
        "",
        "| model | parameters | left | MACs left | error | build | cut | left alone, but outputs |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for name, r in rows.items():
        params = f"| {name} | {r['params_before'] / 1e6:.1f} M "
        if "error" not in r:
            lines.append(f"{params}| | | | | | refused: {r['refusal']} |")
            continue
        lines.append(
            f"{params}| {r['params_after'] / 1e6:.1f} M "
            f"| {r['macs_after'] / r['macs_before']:.1%} | {r['error']:.0e} "
            f"| {r['build_seconds']:.1f} s | {r['cut_seconds']:.1f} s "
            f"| {'; '.join(r['left_alone'])} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="models; all by default")
    parser.add_argument("--collect", action="store_true", help="only gather what was measured")
    parser.add_argument("--largest", type=float, help="skip models with more parameters")
    options = parser.parse_args()
    torch.set_num_threads(1)
    EACH.mkdir(parents=True, exist_ok=True)
    for name, make in zoo().items():
        path = EACH / f"{name}.json"
        wanted = name in options.names if options.names else not path.exists()
        if options.collect or not wanted:
            continue
        if options.largest and size_of(make) > options.largest:
            continue
        row = measure(make)
        path.write_text(json.dumps(row, indent=1) + "\n")
        print(name, {k: v for k, v in row.items() if k != "left_alone"}, flush=True)
        gc.collect()
    collect()


if __name__ == "__main__":
    main()
