"""The bundle: a folder with the folded model and everything known about how it came to be."""

from .checking import check, read_config, read_summary
from .layout import (
    ALIGNED,
    ARCHITECTURE,
    CONFIG,
    FORMAT,
    METRICS,
    PLAN,
    RECIPE,
    REJECTED,
    STATE,
    SUMMARY,
    TRACKED,
    TRAIN,
    TRAINED,
    WEIGHTS,
)
from .reading import load, load_trained, newest
from .versions import version_of, versions
from .writing import bundle_sha256, named_by_timm, recover_from_kill, refuse_in_the_way, save, state_bytes

__all__ = [
    "ALIGNED",
    "ARCHITECTURE",
    "CONFIG",
    "FORMAT",
    "METRICS",
    "PLAN",
    "RECIPE",
    "REJECTED",
    "STATE",
    "SUMMARY",
    "TRACKED",
    "TRAIN",
    "TRAINED",
    "WEIGHTS",
    "bundle_sha256",
    "check",
    "load",
    "load_trained",
    "named_by_timm",
    "newest",
    "read_config",
    "read_summary",
    "recover_from_kill",
    "refuse_in_the_way",
    "save",
    "state_bytes",
    "version_of",
    "versions",
]
