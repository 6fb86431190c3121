"""Glosses of WordNet 3.0 and their 45 classes, as token ids.

A gloss is what stands after the ``|`` of a synset (definition and examples), its class is the
lexicographer file, the second field (``noun.animal``, ``verb.motion`` ...). 117,659 of them come
with Debian's package ``wordnet-base``; the tokenizer comes with the package of the model.

Which part a gloss belongs to is a hash of its text: 5 % test, 5 % held out for choices, the rest
trains; equal glosses are in the same part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from decayprune.app.pretrained.loop import Batch
from decayprune.app.pretrained.task import BATCH, CACHE
from decayprune.checkpoint.atomic import write_atomically

FOLDER = CACHE / "wordnet"
PLACES = (Path("/usr/share/wordnet"), Path("/usr/share/wordnet/dict"))
MAX_TOKENS = 32
PARTS = ("test", "held_out", "train")
_POOL = 8  # batches that are sorted by length together


@dataclass(frozen=True)
class Glosses:
    """One part of the data.

    Attributes:
        ids: Token ids, padded with 0, shape ``(N, MAX_TOKENS)``, int64.
        lengths: Tokens of each, ``(N,)``.
        labels: Classes, ``(N,)``.
    """

    ids: Tensor
    lengths: Tensor
    labels: Tensor

    def batch(self, which: Tensor) -> Batch:
        """Ids and mask as long as the longest of some glosses, and their classes."""
        lengths = self.lengths[which]
        longest = int(lengths.max())
        mask = torch.arange(longest) < lengths[:, None]
        inputs = {"input_ids": self.ids[which, :longest], "attention_mask": mask.long()}
        return inputs, self.labels[which]

    def forever(self, seed: int, size: int = BATCH) -> Iterator[Batch]:
        """Batches to train on, epoch after epoch, the same for the same seed.

        Glosses of like length share a batch, for padding is computed too.
        """
        generator = torch.Generator().manual_seed(seed)
        while True:
            order = torch.randperm(len(self.labels), generator=generator)
            for pool in torch.split(order[: len(order) // size * size], size * _POOL):
                pool = pool[self.lengths[pool].sort(stable=True).indices]
                batches = torch.split(pool, size)
                for i in torch.randperm(len(batches), generator=generator).tolist():
                    yield self.batch(batches[i])

    def once(self, limit: int | None = None) -> Iterator[Batch]:
        """All glosses, or always the same ``limit`` of them, each once, by length."""
        generator = torch.Generator().manual_seed(0)  # the files are in order of their classes
        which = torch.randperm(len(self.labels), generator=generator)[:limit]
        for part in torch.split(which[self.lengths[which].sort(stable=True).indices], 256):
            yield self.batch(part)


def load(tokenizer_file: Path) -> dict[str, Glosses]:
    """The parts ``train``, ``held_out`` and ``test``, tokenised once and kept in the cache.

    Args:
        tokenizer_file: ``tokenizer.json`` of the model.
    """
    file = FOLDER / f"glosses-{MAX_TOKENS}.safetensors"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        tensors = _tokenised(_parsed(folder()), tokenizer_file)
        write_atomically({file: lambda path: save_file(tensors, path)})
    kept = load_file(file)
    parts = {}
    for number, name in enumerate(PARTS):
        mine = kept["part"] == number
        parts[name] = Glosses(
            kept["ids"][mine].long(), kept["lengths"][mine].long(), kept["labels"][mine].long()
        )
    return parts


def folder() -> Path:
    """Where WordNet's data files lie.

    Raises:
        FileNotFoundError: Nowhere; says what to install.
    """
    for path in PLACES:
        if (path / "data.noun").is_file():
            return path
    raise FileNotFoundError(
        f"WordNet's data.noun is in none of {', '.join(map(str, PLACES))}. "
        "Install it: apt-get install wordnet-base"
    )


def _parsed(path: Path) -> list[tuple[str, int]]:
    """Gloss and class of every synset, in the order of the files."""
    found = []
    for kind in ("noun", "verb", "adj", "adv"):
        for line in (path / f"data.{kind}").read_text(encoding="utf-8").splitlines():
            if line.startswith(" "):  # the licence
                continue
            fields, _, gloss = line.partition("|")
            found.append((gloss.strip(), int(fields.split(" ", 2)[1])))
    return found


def _part(gloss: str) -> int:
    """Position in :data:`PARTS`."""
    digest = int.from_bytes(hashlib.sha256(gloss.encode()).digest()[:8], "big") % 100
    return 0 if digest < 5 else 1 if digest < 10 else 2


def _tokenised(glosses: list[tuple[str, int]], tokenizer_file: Path) -> dict[str, Tensor]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.enable_padding(length=MAX_TOKENS)
    encoded = tokenizer.encode_batch([text for text, _ in glosses])
    return {
        "ids": torch.tensor([e.ids for e in encoded], dtype=torch.int32),
        "lengths": torch.tensor([sum(e.attention_mask) for e in encoded], dtype=torch.int32),
        "labels": torch.tensor([label for _, label in glosses], dtype=torch.int32),
        "part": torch.tensor([_part(text) for text, _ in glosses], dtype=torch.int32),
    }
