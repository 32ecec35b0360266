"""Datasets: read, split, decode, augment."""

from odn.data.batches import WHOLE as WHOLE
from odn.data.batches import Share as Share
from odn.data.batches import epoch_order as epoch_order
from odn.data.batches import plain_batches as plain_batches
from odn.data.batches import training_batches as training_batches
from odn.data.loading import Data as Data
from odn.data.loading import load_data as load_data
from odn.data.overlap import MOST_SHARED as MOST_SHARED
from odn.data.overlap import shared_samples as shared_samples
from odn.data.splits import DataSpec as DataSpec
from odn.data.splits import FileSplit as FileSplit
from odn.data.splits import Split as Split
from odn.data.splits import TensorSplit as TensorSplit
from odn.data.splits import derive_seed as derive_seed
