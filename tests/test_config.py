import dataclasses
import tomllib

import pytest

from odn.config import ExpandConfig, TrainConfig
from odn.defaults import DATASETS, complete
from odn.errors import OdnError, UsageError
from odn.recipe import RunConfig, read_run_config, to_toml
from odn.tables import from_table, to_table

CONFIG = RunConfig(
    dataset="digits",
    data_dir="data",
    backbone="resnet18",
    expand=ExpandConfig(target_accuracy=0.9, depths=(1, 2, 4)),
    train=TrainConfig(optimizer="adamw"),
)


def test_toml_round_trip():
    assert from_table(RunConfig, tomllib.loads(to_toml(CONFIG))) == CONFIG


def test_unknown_key_names_the_table_and_the_likely_word():
    with pytest.raises(UsageError, match=r"unknown key 'expand\.patienc'; allowed: .*Did you mean 'patience'\?"):
        from_table(RunConfig, {**to_table(CONFIG), "expand": {"patienc": 3}})


def test_missing_key_is_named():
    with pytest.raises(UsageError, match="'backbone' is missing; add it"):
        from_table(RunConfig, {"dataset": "digits", "data_dir": "data"})


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"width": 10**400}, "'width' has 401 digits; allowed: a value of type float"),
        ({"seed": "one"}, "'seed' is 'one'; allowed: a value of type int"),
        ({"seed": True}, "'seed' is True; allowed: a value of type int"),
        ({"expand": 3}, "'expand' is 3; allowed: a table of settings"),
        ({"expand": {"depths": 3}}, r"'expand\.depths' is 3; allowed: a list"),
        ({"expand": {"depths": [2, 1]}}, r"expand\.depths is \[2, 1\]; allowed: ascending depths"),
        ({"expand": {"confirmations": 5, "settle_epochs": 0}}, "confirmations is 5 but only 4 epochs"),
        ({"train": {"precision": "fp8"}}, r"'train\.precision' is 'fp8'; allowed: auto, fp32, bf16"),
        ({"train": {"label_smoothing": 1.0}}, "label_smoothing is 1.0; allowed: 0 to below 1"),
        ({"train": {"batch_size": 1}}, "batch_size is 1; BatchNorm needs 2 or more"),
        ({"train": {"evaluation_share": 0.0}}, "evaluation_share is 0.0; allowed: above 0, e.g. 0.02, or inf"),
        ({"finetune": {"rate": -0.3}}, "finetune.rate is -0.3; allowed: above 0, e.g. 0.3, or 0 for the default"),
        ({"data": {"image_size": 100_000}}, "image_size is 100000; allowed: 1 to 4096"),
        ({"expand": {"settle_epochs": 1}}, "settle_epochs is 1; allowed: 0, or at least expand.confirmations, 2"),
        ({"expand": {"settle_epochs": -1}}, "settle_epochs is -1; allowed: 0, or at least"),
        ({"expand": {"within": 1.0}}, "within is 1.0; allowed: 0 to below 1"),
        ({"augment": {"shift": 0.7}}, "augment.shift is 0.7; allowed: 0 to 0.5"),
        ({"data": {"valid_fraction": 0.9}}, "valid_fraction is 0.9; allowed: above 0 to 0.5"),
        ({"seed": -1}, "seed is -1; allowed: 0 to"),
        ({"width": 0.0}, "width is 0.0; allowed: above 0 to 64"),
    ],
)
def test_wrong_values_are_refused_with_what_is_allowed(table, message):
    with pytest.raises(UsageError, match=message):
        from_table(RunConfig, {**to_table(CONFIG), **table})


def test_named_datasets_bring_their_defaults():
    config = complete({"dataset": "mnist"})
    assert (config.backbone, config.expand.target_accuracy) == ("resnet18", 0.993)
    assert config.augment == DATASETS["mnist"].augment
    svhn = complete({"dataset": "svhn"})
    assert (svhn.backbone, svhn.expand.target_accuracy) == ("resnet34", 0.9608)


def test_a_part_of_the_augmentation_keeps_the_rest_of_the_datasets():
    augment = complete({"dataset": "mnist", "augment": {"flip": True}}).augment
    assert augment == dataclasses.replace(DATASETS["mnist"].augment, flip=True)


def test_a_recipe_goes_before_the_defaults():
    config = complete({"dataset": "mnist", "backbone": "resnet34", "expand": {"target_accuracy": 0.5, "patience": 9}})
    assert (config.backbone, config.expand.target_accuracy, config.expand.patience) == ("resnet34", 0.5, 9)


def test_without_a_target_own_data_get_an_automatic_one(tmp_path):
    assert complete({"dataset": str(tmp_path)}).expand.target_accuracy == 0.0
    assert complete({"dataset": str(tmp_path), "expand": {"target_accuracy": 0.9}}).expand.target_accuracy == 0.9


def test_data_dir_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("ODN_DATA_DIR", str(tmp_path))
    assert complete({"dataset": "digits"}).data_dir == str(tmp_path)


def test_every_named_dataset_has_a_known_backbone():
    from odn.backbones import BACKBONES

    assert {entry.backbone for entry in DATASETS.values()} <= set(BACKBONES)


def test_a_directory_without_config_is_no_run(tmp_path):
    with pytest.raises(OdnError, match="is not a run directory: it has no config.toml"):
        read_run_config(tmp_path / "config.toml")


def test_configs_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CONFIG.seed = 3  # type: ignore[misc]
