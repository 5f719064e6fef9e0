"""Every call into the package is checked against its annotated shapes while tests run."""

import os
from pathlib import Path

os.environ["TRAJMATCH_CHECK_SHAPES"] = "1"

from jaxtyping import install_import_hook

# Not the command line: it has no tensors, and its parser fills required flags with a marker.
PACKAGE = Path(__file__).parents[1] / "src" / "trajmatch"
CHECKED = [f"trajmatch.{path.stem}" for path in PACKAGE.iterdir() if path.stem[0] not in "_."]
install_import_hook([name for name in CHECKED if name != "trajmatch.cli"], "beartype.beartype")

import hypothesis
import pytest
import torch

# The same examples every time, so that a test fails for what was changed and not by chance.
hypothesis.settings.register_profile("same", derandomize=True)
hypothesis.settings.load_profile("same")


@pytest.fixture(autouse=True)
def _one_thread():
    """Tests run beside each other (pytest-xdist); one thread each keeps results and time steady."""
    torch.set_num_threads(1)
