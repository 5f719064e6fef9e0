"""Sets merged into one, and brought to another whitening."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import tiny
import trajmatch
from trajmatch.data.whiten import CompactZCA, Normalize, fit_whitening
from trajmatch.errors import DataError, MismatchError
from trajmatch.synthetic import SyntheticSet, merge, rewhiten

WHITENING = fit_whitening("normalize", tiny.digits().train)


def task(*classes: str, each: int = 2, soft: bool = False, **changes: object) -> SyntheticSet:
    """Real images of these digits."""
    data = trajmatch.load_data("digits", classes=classes)
    labels = torch.arange(len(classes)).repeat_interleave(each)
    images = torch.cat(
        [data.train.images[data.train.labels == i][:each] for i in range(len(classes))]
    )
    info = {"method": "mtt", "data": data.summary()}
    known = SyntheticSet(
        WHITENING.apply(images),
        torch.eye(len(classes))[labels] * 0.6 + 0.4 / len(classes) if soft else labels,
        classes,
        WHITENING,
        0.02,
        info,
    )
    return dataclasses.replace(known, **changes)


def test_classes_are_united_in_the_order_they_appear(tmp_path):
    first, second = task("3", "1"), task("7", "1", each=1, step_size=0.04)
    merged = trajmatch.merge([first, second])
    assert merged.classes == ("3", "1", "7")
    assert merged.labels.tolist() == [0, 0, 1, 1, 2, 1]
    assert torch.equal(merged.images, torch.cat([first.images, second.images]))
    assert merged.step_size == pytest.approx(0.03)
    assert [part["classes"] for part in merged.info["parts"]] == [["3", "1"], ["7", "1"]]
    assert [part["step_size"] for part in merged.info["parts"]] == [0.02, 0.04]
    assert merged.info["parts"][1]["fingerprint"] == second.fingerprint
    assert merged.info["data"] == {"name": "digits", "fingerprint": "unknown"}
    assert (
        repr(merged)
        == "SyntheticSet(6 images of 1x8x8, 3 classes, ipc 1 to 3, merged, step size 0.03)"
    )
    merged.save(tmp_path / "set")
    back = trajmatch.load_distilled(tmp_path / "set")
    assert (back.fingerprint, back.classes) == (merged.fingerprint, merged.classes)
    assert back.info["parts"][0]["info"] == first.info


def test_soft_labels_are_zero_for_classes_a_set_does_not_have():
    hard, soft = task("3", "1", each=1), task("7", "1", each=1, soft=True)
    merged = merge([hard, soft])
    expected = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0.2, 0.8], [0, 0.8, 0.2]])
    torch.testing.assert_close(merged.labels, expected)


def test_sets_of_equal_classes_and_data_add_up():
    one = task("3", "1")
    merged = merge([one, one])
    assert (merged.classes, len(merged), merged.ipc) == (("3", "1"), 8, 4)
    assert merged.info["data"] == one.info["data"]
    assert merge([one]).fingerprint == one.fingerprint


def test_a_merged_set_is_evaluated_on_all_its_classes():
    network = tiny.library().spec.to_json()
    parts = [
        dataclasses.replace(part, info={**part.info, "network": {**network, "classes": 2}})
        for part in (task("3", "1", each=1), task("7", "4", each=1))
    ]
    merged = merge(parts)
    assert merged.info["network"] == {**network, "classes": 4}
    data = trajmatch.load_data("digits", classes=merged.classes)
    (score,) = trajmatch.evaluate(merged, data, config=tiny.EVALUATE)
    assert (score.method, score.n, score.ipc) == ("merged", 2, 1)


def test_whitenings_are_brought_to_one_exactly():
    exact = fit_whitening("zca", tiny.digits().train)
    one, other = task("3", "1"), rewhiten(task("7", "4"), exact)
    with pytest.raises(
        MismatchError, match=r"set 1 has whitening zca .* set 0 normalize .*; give wh"
    ):
        merge([one, other])
    for whitening in (WHITENING, exact, CompactZCA.near(exact, 300)):
        merged = merge([one, other], whitening=whitening)
        assert merged.whitening is whitening
        # Not clipped: pixels far out of [0, 1] survive.
        expected = torch.cat([one.plain(), task("7", "4").plain()])
        torch.testing.assert_close(merged.plain(), expected, rtol=0, atol=1e-4)
    loud = dataclasses.replace(one, images=one.images * 50)
    back = rewhiten(rewhiten(loud, exact), WHITENING)
    torch.testing.assert_close(back.images, loud.images, rtol=1e-4, atol=1e-3)
    assert rewhiten(one, Normalize(*WHITENING.tensors.values())) is one


def test_what_cannot_be_merged_is_refused():
    one = task("3", "1")
    with pytest.raises(DataError, match="there are no sets to merge; give at least one"):
        merge([])
    larger = dataclasses.replace(one, images=torch.zeros(4, 1, 9, 8))
    with pytest.raises(MismatchError, match="set 1 has images of 1x9x8 and set 0 of 1x8x8"):
        merge([one, larger])
    assert merge([one, dataclasses.replace(one, step_size=None)]).step_size is None


def test_what_is_no_set_is_refused_and_a_generator_is_taken() -> None:
    one = trajmatch.load_distilled("cifar10-ipc1")
    assert merge(part for part in [one]).classes == one.classes
    with pytest.raises(DataError, match="there are no sets to merge"):
        merge(iter(()))
    with pytest.raises(DataError, match=r"set 0 is of type str; give sets, as load_distilled"):
        merge(place for place in ["runs/a/best"])
