"""`trajmatch compare`: methods side by side, on the same data and networks, evaluated alike."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from trajmatch.cli.flags import MethodSettings
from trajmatch.cli.study import Variations, base_of, run_variations
from trajmatch.cli.values import networks_of
from trajmatch.config import DistillConfig
from trajmatch.errors import SettingError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(Variations):
    """Distill and choose images by several methods, at several numbers per class; evaluate them
    alike.

    All are evaluated on validation images, which say what is best, and on test images to report it.
    Of several settings of one method (tables of --config), the best on validation images alone is
    tested, so a sweep does not select on test images.

    Settings are the digits demo's unless --config names a recipe or a file; tables such as
    [methods.dm] in it change some for one method, or give a method of other settings a name. What
    the line gives wins over them: --distill.* for all methods, --settings.* for those tables that
    are of the same method. Run the same command again to continue a killed comparison; a
    cell that failed is shown, and tried again then.
    """

    out: Path = Path("runs/compared")
    """Folder of the comparison: the experts, a folder for each method and ipc, and the page."""
    methods: str = "all"
    """Names separated by commas: coresets (random, herding, ...), methods (mtt, ...), or tables of
    --config; all."""
    distill: DistillConfig = DistillConfig()
    settings: MethodSettings = MethodSettings()
    ipc: str = "1"
    """Images per class, one or more numbers separated by commas."""
    test_all: bool = False
    """Test every setting of a method, as in an ablation that was planned beforehand; what is chosen
    by these numbers has to be tested on other images."""
    networks: str | None = None
    """Other networks that the first seed's images train as well, separated by commas, as for
    `trajmatch evaluate`."""


def run(flags: Flags) -> None:
    from trajmatch.studies.comparison import comparison, known

    methods = [word.strip() for word in flags.methods.split(",") if word.strip()]
    if methods == ["all"]:
        methods = known(base_of(flags))
    networks = networks_of(flags.networks or "")
    study = comparison(methods, _numbers(flags.ipc), networks, test_all=flags.test_all)
    run_variations(study, flags)


def _numbers(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",") if word.strip()]
    except ValueError:
        raise SettingError(f"ipc is '{text}'; give whole numbers such as 1,10") from None
