"""What pages say of methods, known here or not."""

from __future__ import annotations

import pytest

from trajmatch.methods import METHODS
from trajmatch.report.methods import MethodFacts, is_chosen, method_facts, method_title, trained_on
from trajmatch.storage.results import Score


def score(method: str, protocol: str = "500 epochs, lr 0.01") -> Score:
    values = {"method": method, "protocol": protocol, "n": 1, "mean": 50.0}
    return Score.from_json(values)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_described(name: str) -> None:
    assert method_title(name) == METHODS[name].title
    facts = method_facts(name)
    assert facts.objective == METHODS[name].objective
    assert facts.needs_experts == METHODS[name].needs_experts
    assert trained_on(score(name)) == f"distilled by {name.upper()}"
    assert not is_chosen(name)


@pytest.mark.parametrize("name", ["auto", "theirs.module:Method", "<script>"])
def test_an_unknown_method_keeps_its_name(name: str) -> None:
    assert method_title(name) == name
    assert method_facts(name) == MethodFacts()
    assert trained_on(score(name)) == f"distilled by {name}"


def test_only_one_method_starts_at_one_and_one_learns_labels_alone() -> None:
    assert [name for name in METHODS if method_facts(name).starts_at_one] == ["mtt"]
    assert [name for name in METHODS if method_facts(name).labels_alone] == ["ld"]


def test_real_images() -> None:
    assert trained_on(score("random")) == "real images, random"
    assert trained_on(score("full data", "20 epochs on all images")) == "experts (20 epochs)"
    assert trained_on(score("ceiling")) == "all training images"
    assert trained_on(score("")) == "distilled by an unnamed method"
    assert method_title("random") == "random choice"
