"""Measured memory against known sizes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from trajmatch.runtime import memory

MEGABYTES = 10**6
CPU = torch.device("cpu")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reported on Linux only")
def test_the_peak_of_work_and_not_memory_in_use_before() -> None:
    before = torch.ones(100 * MEGABYTES // 4)
    torch.ones(400 * MEGABYTES // 4)  # an earlier peak, higher than any to come
    with memory.added(CPU) as found:
        for size in (120, 40):  # freed again, one after the other
            torch.ones(size * MEGABYTES // 4)
        assert found.bytes is None
    if found.bytes is None:
        pytest.skip("this system does not reset the peak")
    assert 110 * MEGABYTES < found.bytes < 150 * MEGABYTES
    assert before.sum() > 0


def test_the_process_peak_survives_a_reset() -> None:
    large = torch.ones(200 * MEGABYTES // 4)
    highest = memory.resident_peak()
    del large
    with memory.added(CPU):
        pass
    assert memory.resident_peak() >= highest


def test_without_the_resource_module_the_peak_is_unknown() -> None:
    """As on Windows; in a process of its own, where nothing has imported the module yet."""
    script = (
        "import sys; sys.modules['resource'] = None\n"
        "import torch\n"
        "from trajmatch.runtime import memory\n"
        "assert memory.resident_peak() == 0\n"
        "with memory.added(torch.device('cpu')): pass\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_files_that_the_system_keeps_in_memory_count_as_free(tmp_path, monkeypatch):
    """Else a container that has read much would be taken for full."""
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("900000\n")
    assert memory.available_bytes(torch.device("cpu")) == 100_000
    (tmp_path / "memory.stat").write_text("anon 5\nactive_file 7\ninactive_file 300000\n")
    assert memory.available_bytes(torch.device("cpu")) == 400_000
