import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from decayprune.app.cli.app import app
from decayprune.app.pretrained import recipe as pretrained
from decayprune.app.pretrained.recipe import Recipe
from decayprune.app.run.methods import VARIANTS
from decayprune.app.study import grid, paper
from pretrained_toy import Toy

QUICK = ["--seeds", "1", "--limit", "8", "--threads", "1"]


def write_cifar(folder: Path, name: str) -> None:
    """CIFAR's own binary files, twelve records each."""
    generator = np.random.default_rng(0)
    labels = 1 if name == "cifar10" else 2
    sub = "cifar-10-batches-bin" if labels == 1 else "cifar-100-binary"
    files = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    (folder / sub).mkdir()
    for file in files if labels == 1 else ["train.bin", "test.bin"]:
        records = generator.integers(0, 256, (12, labels + 3072), dtype=np.uint8)
        records[:, :labels] %= 10
        (folder / sub / file).write_bytes(records.tobytes())


def reproduce(name: str, folder: Path, steps: int) -> dict[str, dict[str, float]]:
    arguments = ["reproduce", name, "--data-dir", str(folder), "--out", str(folder / "out")]
    found = CliRunner().invoke(app, [*arguments, *QUICK, "--steps", str(steps)])
    failed = folder / "out" / name / "failed"
    # Eight images cannot hold every pair within 1 % of the MACs; nothing else may go wrong.
    problems = [json.loads(file.read_text())["problem"] for file in failed.glob("*.json")]
    assert all("of the MACs of the host alone" in problem for problem in problems), problems
    assert found.exit_code == (2 if problems else 0), found.output
    rows = json.loads((folder / "out" / name / "summary.json").read_text())
    return {row["variant"]: row for row in rows}


def test_a_recipe_runs_on_files_in_the_real_format(tmp_path: Path) -> None:
    write_cifar(tmp_path, "cifar10")
    rows = reproduce("vgg16-cifar10-otov2", tmp_path, 12)
    assert 0 < rows["alone"]["macs_ratio"] <= 0.265
    assert (tmp_path / "out" / "vgg16-cifar10-otov2" / "summary.md").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet56-cifar10-depgraph", "vgg19-cifar100-depgraph-sl"])
def test_depgraphs_recipes_run_on_files_in_the_real_format(tmp_path: Path, name: str) -> None:
    """In a few large steps: the 400 small ones as published take minutes on any data."""
    write_cifar(tmp_path, name.split("-")[1])
    published = paper.recipe(name).trial
    options = {**published.options, "iterative_steps": 20}
    base = published.with_(steps=12, limit=8, options=options)
    trials = [base.with_(variant=variant) for variant in VARIANTS]
    failed = grid.run(trials, tmp_path, tmp_path, say=lambda line: None)
    assert all("of the MACs of the host alone" in reason for _, reason in failed), failed
    alone = grid.read(tmp_path)[0]
    assert alone["trial"]["variant"] == "alone"
    assert 0 < alone["macs_after"] <= base.budget * alone["macs_before"]


def test_without_data_it_says_what_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import datasets

    def offline(*args: object, **options: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(datasets, "CIFAR10", offline)
    monkeypatch.setattr(offline, "base_folder", "cifar-10-batches-py", raising=False)
    name = "resnet56-cifar10-depgraph"
    found = CliRunner().invoke(app, ["reproduce", name, "--data-dir", str(tmp_path), *QUICK,
                                     "--out", str(tmp_path / "out")])  # fmt: skip
    assert found.exit_code == 2
    assert "data_batch_1.bin" in found.output
    assert str(tmp_path) in found.output.replace("\n", "")


def test_unknown_recipes_are_listed(tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["reproduce", "resnet57"])
    assert found.exit_code == 2
    assert "vgg16-cifar10-gate-decorator" in found.output
    assert "minilm-wordnet" in found.output


def test_arms_on_a_pretrained_network_end_in_one_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = Recipe(lambda: Toy(tmp_path / "cache"), {"abrupt": 0.01, "dense_on": 0.01}, (), "")
    monkeypatch.setattr(pretrained, "RECIPES", {"toy": toy})
    arguments = ["reproduce", "toy", "--out", str(tmp_path / "out"), "--threads", "1"]
    found = CliRunner().invoke(app, [*arguments, "--seeds", "2", "--steps", "5"])
    assert found.exit_code == 0, found.output
    assert "magnitude, at once" in found.output
    assert len(list((tmp_path / "out" / "toy").glob("*.json"))) == 4
    assert "| 25.0% |" in (tmp_path / "out" / "toy" / "summary.md").read_text()


def test_what_a_pretrained_recipe_does_not_take_is_said(tmp_path: Path) -> None:
    arguments = ["reproduce", "minilm-wordnet", "--out", str(tmp_path), "--limit", "4"]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 2
    assert "takes no --processes and no --limit" in " ".join(found.output.split())
