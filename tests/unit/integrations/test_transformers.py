"""The adapter to transformers, against the real framework, with models that have random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import decayprune as dp
import two_processes

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
hf = pytest.importorskip(
    "decayprune.integrations.transformers", reason="accelerate is not installed"
)
accelerate = pytest.importorskip("accelerate", reason="the Trainer needs accelerate")

pytestmark = [
    # Of the framework itself, with torch as new as it gets.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
]

LABELS, WORDS = 3, 50


def bert(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=WORDS,
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=30,
        max_position_embeddings=16,
        num_labels=LABELS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return transformers.BertForSequenceClassification(config)


class Sentences(torch.utils.data.Dataset[dict[str, Tensor]]):
    """The label is which of three words comes first."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        words = torch.randint(3, WORDS, (8,), generator=torch.Generator().manual_seed(index))
        words[0] = index % LABELS
        return {"input_ids": words, "labels": torch.tensor(index % LABELS)}


INPUTS = torch.stack([Sentences()[index]["input_ids"] for index in range(4)])
SCHEDULE = dp.Schedule(start=2, stop=10, rounds=2, decay_steps=5)


def callback(**options: Any) -> Any:
    return hf.DecayPruningCallback(
        dp.Budget(params=0.7), **{"schedule": SCHEDULE, "rectify": None} | options
    )


def trainer(folder: Path, model: Any, *callbacks: Any, steps: int = 20, **options: Any) -> Any:
    settings = {
        "output_dir": str(folder),
        "max_steps": steps,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 5,
        "use_cpu": True,
        "seed": 1,
    }
    arguments = transformers.TrainingArguments(**settings | options)
    return transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=Sentences(),
        eval_dataset=Sentences(),
        callbacks=list(callbacks),
    )


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=INPUTS).logits
    return found


# ---------------------------------------------------------------- folders


def pruned(cls: Any, config: Any, **inputs: Tensor) -> Any:
    """A model that has lost channels of every kind."""
    torch.manual_seed(0)
    model = cls(config)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pruner = dp.DecayPruner(
        model,
        optimizer,
        dict(inputs),
        budget=dp.Budget(structures=0.7),
        schedule=dp.Schedule(stop=2, decay_steps=1),
        rectify=None,
    )
    while not pruner.finished:
        model(**inputs).logits.square().mean().backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    assert pruner.compact().removed
    return model.eval()


def architectures() -> dict[str, tuple[Any, Any, dict[str, Tensor]]]:
    words = torch.randint(3, WORDS, (2, 6), generator=torch.Generator().manual_seed(0))
    small = {"num_hidden_layers": 1, "num_attention_heads": 4, "hidden_size": 32}
    return {
        "GPT-2": (
            transformers.GPT2LMHeadModel,
            transformers.GPT2Config(
                vocab_size=WORDS, n_embd=32, n_layer=1, n_head=4, n_positions=32, eos_token_id=2
            ),
            {"input_ids": words},
        ),
        "Llama": (
            transformers.LlamaForCausalLM,
            transformers.LlamaConfig(
                vocab_size=WORDS, intermediate_size=24, num_key_value_heads=2, **small
            ),
            {"input_ids": words},
        ),
        "Qwen3, tied": (
            transformers.Qwen3ForCausalLM,
            transformers.Qwen3Config(
                vocab_size=WORDS,
                intermediate_size=24,
                num_key_value_heads=2,
                head_dim=8,
                tie_word_embeddings=True,
                **small,
            ),
            {"input_ids": words},
        ),
        "T5": (
            transformers.T5ForConditionalGeneration,
            transformers.T5Config(
                vocab_size=WORDS,
                d_model=32,
                d_kv=4,
                d_ff=24,
                num_layers=1,
                num_heads=4,
                decoder_start_token_id=0,
            ),
            {"input_ids": words, "decoder_input_ids": words[:, :3]},
        ),
        "ViT": (
            transformers.ViTForImageClassification,
            transformers.ViTConfig(
                image_size=16,
                patch_size=8,
                intermediate_size=24,
                num_hidden_layers=1,
                num_attention_heads=4,
                hidden_size=32,
            ),
            {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))},
        ),
    }


@pytest.mark.parametrize("name", ["GPT-2", "Llama", "Qwen3, tied", "T5", "ViT"])
def test_a_pruned_folder_loads_with_equal_logits(name: str, tmp_path: Path) -> None:
    cls, config, inputs = architectures()[name]
    model = pruned(cls, config, **inputs)
    hf.save_pretrained(model, tmp_path / "one")
    loaded = cls.from_pretrained(tmp_path / "one")
    expected = model(**inputs).logits
    assert torch.equal(loaded(**inputs).logits, expected)
    # What was loaded is an ordinary model, and is saved as one.
    assert not getattr(loaded, "is_quantized", False)
    loaded.save_pretrained(tmp_path / "two")
    assert torch.equal(cls.from_pretrained(tmp_path / "two")(**inputs).logits, expected)
    loaded.to(torch.float64)
    half = cls.from_pretrained(tmp_path / "one", dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert [p.shape for p in half.parameters()] == [p.shape for p in model.parameters()]


@pytest.mark.parametrize("name", ["GPT-2", "Llama", "Qwen3, tied"])
@pytest.mark.parametrize("cache", [{"use_cache": False}, {}, {"cache_implementation": "static"}])
def test_generation_works_after_the_cut(name: str, cache: dict[str, Any], tmp_path: Path) -> None:
    cls, config, inputs = architectures()[name]
    model = pruned(cls, config, **inputs)
    hf.save_pretrained(model, tmp_path)
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    words = inputs["input_ids"]
    mask = torch.ones_like(words)
    expected = words  # the slow way: every token from the whole of what is before it
    for _ in range(5):
        expected = torch.cat([expected, model(expected).logits[:, -1].argmax(-1, keepdim=True)], 1)
    for one in (model, cls.from_pretrained(tmp_path)):
        found = one.generate(words, attention_mask=mask, **settings, **cache)
        assert torch.equal(found[:, : expected.shape[1]], expected[:, : found.shape[1]])


def test_the_base_model_loads_from_the_folder_of_one_with_a_head(tmp_path: Path) -> None:
    model = pruned(type(bert()), bert().config, input_ids=INPUTS)
    hf.save_pretrained(model, tmp_path)
    base = transformers.AutoModel.from_pretrained(tmp_path)
    with torch.no_grad():
        ours = model.bert(INPUTS).last_hidden_state
        assert torch.equal(base(INPUTS).last_hidden_state, ours)


def test_a_forged_structure_is_refused(tmp_path: Path) -> None:
    model = pruned(type(bert()), bert().config, input_ids=INPUTS)
    hf.save_pretrained(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    said = config["quantization_config"]["structure"]
    said["tensors"]["classifier.bias"]["shape"] = [10**6]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(dp.CheckpointError, match=r"classifier\.bias is \[1000000\] there"):
        type(model).from_pretrained(tmp_path)
    config["quantization_config"]["structure"] = {"format": "other"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(dp.CheckpointError, match=r"structure in config\.json was not written by"):
        type(model).from_pretrained(tmp_path)


def test_what_cannot_be_saved_says_so(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"takes a transformers.PreTrainedModel; found Linear"):
        hf.save_pretrained(nn.Linear(2, 2), tmp_path)
    model = bert()
    model.config.quantization_config = {"quant_method": "gptq"}
    with pytest.raises(ValueError, match="quantized already"):
        hf.save_pretrained(model, tmp_path)


# ---------------------------------------------------------------- the Trainer


def test_the_default_trainer_prunes_and_cuts(tmp_path: Path) -> None:
    """A wrapped optimizer and clipping are its defaults."""
    model, prune = bert(), callback(schedule=None)
    run = trainer(tmp_path, model, prune, steps=24)
    assert run.args.max_grad_norm == 1.0
    run.train()
    assert prune.report is not None
    assert prune.report.removed > 0
    assert prune.report.params_after <= 0.7 * prune.report.params_before
    assert prune.pruner.steps < 24  # and it goes on training
    assert run.state.log_history[-2]["macs_left"] < 1
    run.save_model(tmp_path / "saved")
    loaded = type(model).from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(loaded), logits(model))


def test_batches_of_the_training_calibrate_it(tmp_path: Path) -> None:
    prune = callback(schedule=None, calibrate=3)
    trainer(tmp_path, bert(), prune, steps=4).train()
    assert prune.report.params_after <= 0.7 * prune.report.params_before
    assert prune.pruner.steps == 1  # what is chosen on data is cut at once
    words = torch.stack([Sentences()[index]["input_ids"] for index in range(64)])
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))[:24]
    lists = callback(schedule=None, calibrate=words[order].chunk(3))
    trainer(tmp_path, bert(), lists, steps=4).train()
    assert lists.report.removed == prune.report.removed
    torch.testing.assert_close(
        prune.pruner.model.state_dict(), lists.pruner.model.state_dict(), rtol=0, atol=0
    )


def test_early_in_the_fine_tuning_it_is_cut_once_and_trained_on(tmp_path: Path) -> None:
    prune = callback(schedule=dp.Schedule.at_once(start=3), calibrate=3)
    run = trainer(tmp_path, bert(), prune, steps=6)
    run.train()
    assert prune.report.params_after <= 0.7 * prune.report.params_before
    assert prune.pruner.steps == 3
    assert run.state.global_step == 6


def test_with_nothing_to_prune_the_weights_are_those_of_a_plain_run(tmp_path: Path) -> None:
    plain, watched = bert(), bert()
    trainer(tmp_path, plain, steps=5, lr_scheduler_type="constant").train()
    late = dp.Schedule(start=6, stop=7, rounds=1, decay_steps=1)
    run = trainer(tmp_path, watched, callback(schedule=late), lr_scheduler_type="constant")
    run.add_callback(Stop(at=5))
    run.train()
    for one, other in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(one, other)


class Stop(transformers.TrainerCallback):  # type: ignore[misc,name-defined]
    """Ends the training early, as a full queue does."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step >= self.at


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_accumulation_steps": 2},
        {"bf16": True},
        {"gradient_checkpointing": True},
        {"lr_scheduler_type": "cosine", "optim": "sgd"},
        {"torch_compile": True, "torch_compile_backend": "eager"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_settings_of_the_trainer(options: dict[str, Any], tmp_path: Path) -> None:
    prune = callback()
    run = trainer(tmp_path, bert(), prune, **options)
    run.train()
    assert prune.report is not None
    assert prune.pruner.steps == 10  # the last round is at 6, and its decay lasts 5 steps
    assert run.state.global_step == 20


@pytest.mark.parametrize("at", [6, 18], ids=["before the cut", "after the cut"])
def test_resuming_is_going_on(at: int, tmp_path: Path) -> None:
    """The same script, started again: a dense model, and the checkpoint of another day."""
    options = {"save_strategy": "steps", "save_steps": 6}
    whole = bert()
    trainer(tmp_path / "whole", whole, callback(), steps=24, **options).train()

    broken = trainer(tmp_path / "broken", bert(), callback(), steps=24, **options)
    broken.add_callback(Stop(at))
    broken.train()

    again, prune = bert(seed=5), callback()
    run = trainer(tmp_path / "broken", again, prune, steps=24, **options)
    run.train(resume_from_checkpoint=True)
    assert run.state.global_step == 24
    assert (prune.report is None) == (at == 18)
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    # Its own checkpoints are as good as those of the first run.
    last = type(again).from_pretrained(tmp_path / "broken" / "checkpoint-24")
    assert torch.equal(logits(last), logits(again))
    third = trainer(tmp_path / "broken", bert(seed=6), callback(), steps=24, **options)
    third.train(resume_from_checkpoint=str(tmp_path / "broken" / "checkpoint-24"))
    assert torch.equal(logits(third.model), logits(again))


def test_the_best_model_is_one_of_the_pruned(tmp_path: Path) -> None:
    """Learning rate zero: every checkpoint before the decay is better than all that follow."""
    model, prune = bert(), callback()
    run = trainer(
        tmp_path,
        model,
        prune,
        steps=24,
        learning_rate=1e-4,
        eval_strategy="steps",
        eval_steps=3,
        save_strategy="steps",
        save_steps=3,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
    )
    run.train()
    assert prune.report is not None
    best = Path(run.state.best_model_checkpoint)
    assert int(best.name.partition("-")[2]) >= prune.pruner.steps
    assert torch.equal(logits(type(model).from_pretrained(best)), logits(model))


def test_a_second_train_goes_on_with_the_cut_model(tmp_path: Path) -> None:
    prune = callback()
    run = trainer(tmp_path, bert(), prune)
    run.train()
    report = prune.report
    run.train()
    assert prune.report is report


def test_example_inputs_may_be_given(tmp_path: Path) -> None:
    prune = callback(example_inputs={"input_ids": INPUTS})
    trainer(tmp_path, bert(), prune).train()
    assert prune.report is not None


@pytest.mark.slow
def test_two_processes_cut_while_they_train(tmp_path: Path) -> None:
    """The loop holds the wrapper, which goes on adding up gradients: the weights stay equal."""
    said = two_processes.run("transformers_ddp.py", tmp_path)
    assert said[0]["wrapper"] == "DistributedDataParallel"
    assert said[0]["cut_at"] == 10
    assert said[0]["steps"] == 24
    assert said[0]["left"] == said[0]["params_after"] <= 0.7 * said[0]["dense"]
    assert said[0]["same"]
    assert said[0]["resumed at 6"]  # before the cut
    assert said[0]["resumed at 18"]  # after it
    assert said[0] == said[1]


# ---------------------------------------------------------------- refusals


def test_a_schedule_longer_than_the_training(tmp_path: Path) -> None:
    run = trainer(tmp_path, bert(), callback(), steps=12)
    with pytest.raises(ValueError, match="decays last 5 steps, but this training has 12"):
        run.train()


def test_no_budget(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Expected DecayPruningCallback\(budget=...\)"):
        trainer(tmp_path, bert(), hf.DecayPruningCallback()).train()


def test_data_that_cannot_be_looked_at(tmp_path: Path) -> None:
    class Stream(torch.utils.data.IterableDataset[dict[str, Tensor]]):
        def __iter__(self) -> Any:
            return iter([Sentences()[index] for index in range(64)])

    run = trainer(tmp_path, bert(), callback())
    run.train_dataset = Stream()
    with pytest.raises(ValueError, match="pass DecayPruningCallback"):
        run.train()


def test_training_that_ends_too_early_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prune = callback()
    run = trainer(tmp_path, bert(), prune)
    run.add_callback(Stop(at=8))
    run.train()
    assert prune.report is None
    assert "Training ended at step 8 before pruning did; nothing was cut." in caplog.text
    with pytest.raises(RuntimeError, match="before the pruner has finished"):
        prune.compact(run)


def test_compact_before_training(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"call trainer\.train\(\) first"):
        callback().compact(trainer(tmp_path, bert()))
