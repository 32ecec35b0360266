"""The settings of every step: frozen dataclasses and their checks. No torch here."""

from odn.config.checks import check_confidence as check_confidence
from odn.config.checks import check_target as check_target
from odn.config.checks import require as require
from odn.config.data import AugmentConfig as AugmentConfig
from odn.config.data import DataConfig as DataConfig
from odn.config.oneshot import OneShotConfig as OneShotConfig
from odn.config.products import CompressConfig as CompressConfig
from odn.config.products import ExportConfig as ExportConfig
from odn.config.products import ReportConfig as ReportConfig
from odn.config.training import REFINING_RATE as REFINING_RATE
from odn.config.training import ExpandConfig as ExpandConfig
from odn.config.training import FinetuneConfig as FinetuneConfig
from odn.config.training import Parallel as Parallel
from odn.config.training import Precision as Precision
from odn.config.training import TrainConfig as TrainConfig
