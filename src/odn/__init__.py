"""Optimally Deep Networks: find the shallowest network that holds a target accuracy on your data.

The names below are imported when they are first used, so that ``import odn`` and ``odn --help`` do not load torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from odn.artifact import Artifact as Artifact
    from odn.artifact import load as load
    from odn.choosing import Constraints as Constraints
    from odn.compression import CompressResult as CompressResult
    from odn.compression import compress as compress
    from odn.config import AugmentConfig as AugmentConfig
    from odn.config import CompressConfig as CompressConfig
    from odn.config import DataConfig as DataConfig
    from odn.config import ExpandConfig as ExpandConfig
    from odn.config import ExportConfig as ExportConfig
    from odn.config import FinetuneConfig as FinetuneConfig
    from odn.config import OneShotConfig as OneShotConfig
    from odn.config import TrainConfig as TrainConfig
    from odn.data import load_data as load_data
    from odn.errors import OdnError as OdnError
    from odn.errors import UsageError as UsageError
    from odn.expansion import expand as expand
    from odn.exporting import export as export
    from odn.extraction import extract as extract
    from odn.extraction import finetune as finetune
    from odn.network import NetworkSpec as NetworkSpec
    from odn.network import PartitionedNetwork as PartitionedNetwork
    from odn.network import partition as partition
    from odn.network import tokenizer_of as tokenizer_of
    from odn.oneshot import train_all_depths as train_all_depths
    from odn.reporting import report as report
    from odn.routing import RoutedNetwork as RoutedNetwork
    from odn.routing import route as route
    from odn.specializing import specialize as specialize
    from odn.stopping import decide as decide

_HOME = {
    "Artifact": "artifact",
    "AugmentConfig": "config",
    "CompressConfig": "config",
    "CompressResult": "compression",
    "Constraints": "choosing",
    "DataConfig": "config",
    "ExpandConfig": "config",
    "ExportConfig": "config",
    "FinetuneConfig": "config",
    "NetworkSpec": "network",
    "OdnError": "errors",
    "OneShotConfig": "config",
    "PartitionedNetwork": "network",
    "RoutedNetwork": "routing",
    "TrainConfig": "config",
    "UsageError": "errors",
    "compress": "compression",
    "decide": "stopping",
    "expand": "expansion",
    "export": "exporting",
    "extract": "extraction",
    "finetune": "extraction",
    "load": "artifact",
    "load_data": "data",
    "partition": "network",
    "report": "reporting",
    "route": "routing",
    "specialize": "specializing",
    "tokenizer_of": "network",
    "train_all_depths": "oneshot",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'odn' has no attribute '{name}'")
    return getattr(importlib.import_module(f"odn.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
