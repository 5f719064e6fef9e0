"""The coresets by name, open to other packages (entry points `trajmatch.coresets`)."""

from __future__ import annotations

from trajmatch.methods.coresets.base import Coreset
from trajmatch.methods.coresets.forgetting import Forgetting
from trajmatch.methods.coresets.herding import Herding
from trajmatch.methods.coresets.kcenter import KCenter
from trajmatch.methods.coresets.kmeans import KMeans
from trajmatch.methods.coresets.random import Random
from trajmatch.plugins import Registry

CORESETS: Registry[type[Coreset]] = Registry(
    "coreset",
    "trajmatch.coresets",
    lambda entry: isinstance(entry, type) and issubclass(entry, Coreset),
)
for _coreset in (Random, Herding, KCenter, KMeans, Forgetting):
    CORESETS.register(_coreset.name, _coreset)

BASELINES = ("random", "herding")
"""The coresets that every distilled set is compared with."""


def coreset_of(method: str | Coreset) -> Coreset:
    """The coreset of a name; an object is returned as it is.

    Raises SettingError for an unknown name, with the nearest known one, and for an object of
    another class that has the name of a registered one.

    Examples:
        >>> coreset_of("herding")
        Herding()
        >>> coreset_of("herding").requires
        'features'
    """
    if not isinstance(method, Coreset):
        return CORESETS.find(method)()
    CORESETS.require_own_name(method.name, type(method), type(method).__name__)
    return method
