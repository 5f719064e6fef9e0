"""The trajectory file: exact rows, and never taken for what it is not."""

from __future__ import annotations

import pytest
import torch

from trajmatch.errors import FileFormatError, SettingError
from trajmatch.experts.trajectory import TrainingState, Trajectory, save_trajectory
from trajmatch.storage.files import save_tensors


def _recording(epochs=3, params=50, dtype=torch.float32, velocity=True):
    rows = torch.randn(epochs + 1, params, generator=torch.Generator().manual_seed(0))
    metrics = [
        {"epoch": e, "train_loss": 1.0 / e, "train_accuracy": 10.0 * e, "seconds": 0.1}
        for e in range(1, epochs + 1)
    ]
    return TrainingState(
        rows.to(dtype), rows[-1].clone(), rows[0] * 2 if velocity else None, metrics
    )


def test_rows_and_origin_are_read_back(tmp_path):
    path, recording = tmp_path / "expert.safetensors", _recording()
    save_trajectory(path, recording, seed=5, index=2, library="abc", test_accuracy=61.5)
    found = Trajectory(path)
    assert (found.seed, found.index, found.library, found.epochs, found.params) == (
        5,
        2,
        "abc",
        3,
        50,
    )
    assert (found.val_accuracy, found.test_accuracy) == (None, 61.5)
    assert found.metrics == recording.metrics
    assert found.storage == torch.float32
    for epoch in range(4):
        assert torch.equal(found.row(epoch), recording.parameters[epoch])
    for epoch in (-1, 4):
        with pytest.raises(SettingError, match=f"epochs 0 to 3, not {epoch}"):
            found.row(epoch)
    found.verify()


def test_bf16_storage_is_half_the_size_and_reads_as_float32(tmp_path):
    sizes = {}
    for dtype in (torch.float32, torch.bfloat16):
        path, recording = tmp_path / f"{dtype}.safetensors", _recording(params=5000, dtype=dtype)
        save_trajectory(path, recording, seed=0, index=0)
        row = Trajectory(path).row(3)
        assert row.dtype == torch.float32
        torch.testing.assert_close(row, recording.vector, rtol=2**-8, atol=0)
        sizes[dtype] = path.stat().st_size
    assert sizes[torch.bfloat16] < 0.52 * sizes[torch.float32]


@pytest.mark.parametrize("velocity", [True, False])
def test_an_unfinished_recording_is_read_back_to_the_bit(tmp_path, velocity):
    path, recording = tmp_path / "state.safetensors", _recording(velocity=velocity)
    recording.save(path, index=1, library="abc")
    found = TrainingState.load(path, index=1, library="abc")
    assert found.metrics == recording.metrics
    assert found.epochs == 3
    assert torch.equal(found.parameters, recording.parameters)
    assert torch.equal(found.vector, recording.vector)
    assert (found.velocity is None) == (not velocity)
    assert not velocity or torch.equal(found.velocity, recording.velocity)


def test_states_and_trajectories_are_not_mixed_up(tmp_path):
    state, finished = tmp_path / "state.safetensors", tmp_path / "expert.safetensors"
    _recording().save(state, index=1, library="abc")
    save_trajectory(finished, _recording(), seed=0, index=1, library="abc")
    with pytest.raises(FileFormatError, match="unfinished"):
        Trajectory(state)
    with pytest.raises(FileFormatError, match="trajectory"):
        TrainingState.load(finished, index=1, library="abc")
    for index, library in [(2, "abc"), (1, "abd")]:
        with pytest.raises(FileFormatError, match="expert 1 of library abc"):
            TrainingState.load(state, index=index, library=library)


def test_a_file_that_lacks_something_is_refused(tmp_path):
    path = tmp_path / "expert.safetensors"
    for tensors in ({"other": torch.zeros(2, 2)}, {"parameters": torch.zeros(4)}):
        save_tensors(path, tensors, kind="trajectory", version=1)
        with pytest.raises(FileFormatError, match="lacks what a trajectory holds"):
            Trajectory(path)
    save_tensors(path, {"parameters": torch.zeros(2, 3)}, kind="trajectory", version=1)
    with pytest.raises(FileFormatError, match="seed"):
        Trajectory(path)
