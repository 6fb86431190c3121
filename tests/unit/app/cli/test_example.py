import pytest
import torch

from decayprune.app.cli import example


def test_sizes_kinds_and_names() -> None:
    one = example.inputs(["1,3,8x8"])
    assert one.shape == (1, 3, 8, 8)
    assert torch.equal(one, example.inputs(["1,3,8,8"]))
    assert one.std() > 0.5  # zeros would hide much of what a model does
    x, ids = example.inputs(["2,4", "2,6:long"])
    assert (x.dtype, ids.dtype) == (torch.float32, torch.int64)
    named = example.inputs(["ids=1,6:int", "mask=1,6:bool"])
    assert list(named) == ["ids", "mask"]
    assert bool(named["mask"].all())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a,b"], "sizes such as 1,3,224,224.*found 'a,b'"),
        (["1,0"], "found '1,0'"),
        ([""], "found ''"),
        (["1,6:integer"], "one of float, .* behind the colon; found 'integer'"),
        (["x=1,6", "1,6"], "NAME= of its own before every input"),
        (["x=1,6", "x=1,6"], "NAME= of its own before every input"),
    ],
)
def test_other_words_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        example.inputs(words)
