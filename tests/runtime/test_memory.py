"""How much memory work took: against sizes that are known."""

from __future__ import annotations

import sys

import pytest
import torch

from trajmatch.runtime import memory

MEGABYTES = 10**6
CPU = torch.device("cpu")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="told on Linux only")
def test_the_peak_of_work_and_not_what_was_held_before_it() -> None:
    before = torch.ones(100 * MEGABYTES // 4)
    torch.ones(400 * MEGABYTES // 4)  # an earlier peak, higher than any to come
    with memory.added(CPU) as found:
        for size in (120, 40):  # freed again, one after the other
            torch.ones(size * MEGABYTES // 4)
        assert found.bytes is None
    if found.bytes is None:
        pytest.skip("this system does not let the peak begin anew")
    assert 110 * MEGABYTES < found.bytes < 150 * MEGABYTES
    assert before.sum() > 0


def test_the_process_remembers_its_peak_when_it_begins_anew() -> None:
    large = torch.ones(200 * MEGABYTES // 4)
    highest = memory.resident_peak()
    del large
    with memory.added(CPU):
        pass
    assert memory.resident_peak() >= highest
