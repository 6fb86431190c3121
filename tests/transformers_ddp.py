"""A script that two processes run: ``python transformers_ddp.py FOLDER`` prunes under DDP."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import transformers

import decayprune as dp
from decayprune.integrations.transformers import DecayPruningCallback


def main(folder: Path) -> None:
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
    dense = model.num_parameters()
    words = torch.randint(3, 50, (96, 8))
    arguments = transformers.TrainingArguments(
        str(folder),
        max_steps=24,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        save_strategy="no",
        ddp_backend="gloo",
    )
    prune = DecayPruningCallback(dp.Budget(params=0.7))
    trainer = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=[{"input_ids": w, "labels": w[0] % 3} for w in words],
        callbacks=[prune],
    )
    trainer.train()
    assert prune.pruner is not None
    report = prune.compact(trainer)
    trainer.save_model(str(folder / "saved"))
    trainer.accelerator.wait_for_everyone()
    again = type(model).from_pretrained(folder / "saved")
    words = words[:4]
    said = {
        "wrapper": type(trainer.model_wrapped).__name__,
        "cut_at": prune.pruner.steps,
        "steps": trainer.state.global_step,
        "dense": dense,
        "left": model.num_parameters(),
        "params_after": report.params_after,
        "same": torch.equal(again(words).logits, model.eval()(words).logits),
        "weights": [parameter.tolist() for parameter in model.parameters()],
    }
    (folder / f"rank{arguments.process_index}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
