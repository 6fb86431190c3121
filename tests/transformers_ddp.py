"""A script that two processes run: ``python transformers_ddp.py FOLDER`` prunes under DDP."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

import decayprune as dp
from decayprune.integrations.transformers import DecayPruningCallback


def trainer_of(folder: Path) -> tuple[Any, Any, DecayPruningCallback]:
    """A dense model, its Trainer, and the callback: as the same script makes them every time."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=30,
        max_position_embeddings=16,
        num_labels=3,
    )
    model = transformers.BertForSequenceClassification(config)
    words = torch.randint(3, 50, (96, 8))
    arguments = transformers.TrainingArguments(
        str(folder),
        max_steps=24,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        save_strategy="steps",
        save_steps=6,
        ddp_backend="gloo",
    )
    prune = DecayPruningCallback(
        dp.Budget(params=0.7), schedule=dp.Schedule(start=2, stop=10, rounds=2, decay_steps=5)
    )
    trainer = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=[{"input_ids": w, "labels": w[0] % 3} for w in words],
        callbacks=[prune],
    )
    return model, trainer, prune


def equal(one: Any, other: Any) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def main(folder: Path) -> None:
    model, trainer, prune = trainer_of(folder)
    dense = model.num_parameters()
    trainer.train()
    assert prune.pruner is not None
    said = {
        "wrapper": type(trainer.model_wrapped).__name__,
        "cut_at": prune.pruner.steps,
        "steps": trainer.state.global_step,
        "dense": dense,
        "left": model.num_parameters(),
        "params_after": prune.compact(trainer).params_after,
        "weights": [parameter.tolist() for parameter in model.parameters()],
    }
    trainer.save_model(str(folder / "saved"))
    trainer.accelerator.wait_for_everyone()
    loaded = type(model).from_pretrained(folder / "saved")
    said["same"] = equal(loaded, model)
    for step in (6, 18):  # before the cut, and after it
        again, trainer, _ = trainer_of(folder)
        trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
        said[f"resumed at {step}"] = equal(again, model)
    (folder / f"rank{trainer.args.process_index}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
