"""Networks by name, and a network as a function of one parameter vector."""

from __future__ import annotations

from trajmatch.networks.base import Network
from trajmatch.networks.functional import (
    FunctionalNetwork,
    load_parameter_vector,
    parameter_vector,
    require_stateless,
    split_vector,
)
from trajmatch.networks.spec import NETWORKS, NetworkSpec, build_network

__all__ = [
    "NETWORKS",
    "FunctionalNetwork",
    "Network",
    "NetworkSpec",
    "build_network",
    "load_parameter_vector",
    "parameter_vector",
    "require_stateless",
    "split_vector",
]
