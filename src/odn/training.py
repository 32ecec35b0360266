"""Training the backbone of a run: growing it depth by depth, or all depths at once."""

import dataclasses
from pathlib import Path

from odn.allocator import reuse_freed_memory
from odn.backbones import find_backbone
from odn.checkpoint import Checkpoints
from odn.curve import curve_result
from odn.data import Data
from odn.engine import Watch, finish
from odn.expansion import expand_epochs
from odn.exporting import check_runtimes
from odn.network import PartitionedNetwork
from odn.oneshot import train_all_depths_epochs
from odn.outcome import ExpandResult, expand_result
from odn.pruning import check_request
from odn.recipe import RunConfig
from odn.rundata import check_data, load_run_data
from odn.rundir import check_directory, clear_after, create_directory, held, start_network
from odn.search import next_step, plan_depths
from odn.starting import first_depth
from odn.stopping import check_attainable


def train_run(
    config: RunConfig, path: Path, *, force: bool = False, resume: bool = False, watch: Watch = finish
) -> tuple[Data, ExpandResult]:
    """Train the backbone and keep the weights of every depth trained.

    Args:
        config: every setting.
        path: the run directory.
        force: replace a run that stands there.
        resume: continue a run that stands there.
        watch: runs the training generator.

    Returns:
        The data, and the depth that holds the target.
    """
    check_directory(config, path, force=force, resume=resume)
    # Everything that can be wrong with the request shows before the first byte is written.
    find_backbone(config.backbone, config.width)
    data = load_run_data(config, path if resume else None)
    check_runtimes(config.export, texts=data.spec.texts)
    check_attainable(data.spec.metric, len(data.valid), config.expand)
    network = start_network(config, data.spec, path, resume=resume)
    depths = plan_depths(config.expand, network.max_depth)
    if config.compress.asked:
        check_request(network.prefix(depths[0]), config.compress, data.spec.input_shape)
    if resume:
        check_data(path, data.spec)
    else:
        create_directory(config, data.spec, path, network.origin)
    reuse_freed_memory()
    with held(path):
        train = _train_all_depths if config.mode == "one-shot" else _expand
        return data, train(config, path, data, network, resume=resume, watch=watch)


def _expand(
    config: RunConfig, path: Path, data: Data, network: PartitionedNetwork, *, resume: bool, watch: Watch
) -> ExpandResult:
    depths = plan_depths(config.expand, network.max_depth)
    checkpoints = Checkpoints("expand", path, resume=resume)
    first = first_depth(checkpoints.start, depths, config.expand)
    if next_step(checkpoints.records, depths, config.expand, first) is not None:
        clear_after(path, None)
        watch(
            expand_epochs(
                network,
                data.train,
                data.valid,
                config=config.expand,
                training=config.train,
                seed=config.seed,
                checkpoints=checkpoints,
            )
        )
    result = expand_result(checkpoints.records, depths, config.expand)
    return dataclasses.replace(result, start=checkpoints.start)


def _train_all_depths(
    config: RunConfig, path: Path, data: Data, network: PartitionedNetwork, *, resume: bool, watch: Watch
) -> ExpandResult:
    checkpoints = Checkpoints("oneshot", path, resume=resume)
    if not checkpoints.records or checkpoints.records[-1].epoch < checkpoints.records[-1].cap:
        clear_after(path, None)
        watch(
            train_all_depths_epochs(
                network,
                data.train,
                data.valid,
                config=config.oneshot,
                training=config.train,
                seed=config.seed,
                checkpoints=checkpoints,
            )
        )
    return curve_result(checkpoints.records, config.expand)
