import itertools
from pathlib import Path

import pytest
import torch

from decayprune.app.pretrained import wordnet
from decayprune.app.pretrained.wordnet import Glosses


def glosses(number: int = 40) -> Glosses:
    """Gloss i holds its own number ``1 + i % 7`` times."""
    lengths = torch.arange(number) % 7 + 1
    ids = torch.arange(number)[:, None] * (torch.arange(wordnet.MAX_TOKENS) < lengths[:, None])
    return Glosses(ids, lengths, torch.arange(number))


def test_a_batch_is_as_long_as_its_longest() -> None:
    inputs, labels = glosses().batch(torch.tensor([2, 4]))
    assert inputs["input_ids"].tolist() == [[2, 2, 2, 0, 0], [4, 4, 4, 4, 4]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert labels.tolist() == [2, 4]


def test_an_epoch_has_every_gloss_once_and_the_seed_decides_the_order() -> None:
    def labels(seed: int) -> list[int]:
        batches = itertools.islice(glosses().forever(seed, size=4), 10)
        return torch.cat([labels for _, labels in batches]).tolist()

    assert sorted(labels(0)) == list(range(40))
    assert labels(0) == labels(0) != labels(1)


def test_the_same_few_are_judged_always() -> None:
    few = [torch.cat([labels for _, labels in glosses().once(10)]) for _ in range(2)]
    assert torch.equal(*few)
    assert len(set(few[0].tolist())) == 10
    assert sorted(torch.cat([y for _, y in glosses().once()]).tolist()) == list(range(40))


def test_glosses_and_classes_are_read_from_its_files(tmp_path: Path) -> None:
    (tmp_path / "data.noun").write_text(
        "  1 This software and database is being provided to you | licence\n"
        "00001740 03 n 01 entity 0 003 ~ 00001930 n 0000 | that which exists; \"it is\"  \n",
        encoding="utf-8",
    )  # fmt: skip
    for kind in ("verb", "adj", "adv"):
        line = f"0000 4{len(kind)} x | a {kind}\n"
        (tmp_path / f"data.{kind}").write_text(line, encoding="utf-8")
    assert wordnet._parsed(tmp_path) == [
        ('that which exists; "it is"', 3), ("a verb", 44), ("a adj", 43), ("a adv", 43),
    ]  # fmt: skip


def test_parts_are_a_matter_of_the_text() -> None:
    parts = [wordnet._part(f"gloss {i}") for i in range(4000)]
    shares = [parts.count(part) / len(parts) for part in range(3)]
    assert shares == pytest.approx([0.05, 0.05, 0.9], abs=0.02)
    assert parts == [wordnet._part(f"gloss {i}") for i in range(4000)]


def test_without_its_files_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wordnet, "PLACES", (tmp_path,))
    with pytest.raises(FileNotFoundError, match="apt-get install wordnet-base"):
        wordnet.folder()


def test_tokens_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = {"[UNK]": 1, "a": 2, "verb": 3, "adj": 4, "adv": 5}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    for number, kind in enumerate(("noun", "verb", "adj", "adv")):
        (tmp_path / f"data.{kind}").write_text(f"0 {number} x | a {kind}\n", encoding="utf-8")
    monkeypatch.setattr(wordnet, "PLACES", (tmp_path,))
    monkeypatch.setattr(wordnet, "FOLDER", tmp_path / "cache")
    for _ in range(2):
        parts = wordnet.load(tmp_path / "tokenizer.json")
        found = {
            int(y): ids[:2].tolist()
            for p in parts.values()
            for ids, y in zip(p.ids, p.labels, strict=True)
        }
        assert found == {0: [2, 1], 1: [2, 3], 2: [2, 4], 3: [2, 5]}
        (tmp_path / "data.noun").unlink(missing_ok=True)
