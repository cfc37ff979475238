"""Stages of one model are told from stages of two, by their weights too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from zmqpp.errors import ConfigError
from zmqpp.vllm.identity import check_same_modules, check_same_weights, sample_weights


def model(folder: Path, value: float, layer: int = 0) -> str:
    folder.mkdir()
    save_file({f"model.layers.{layer}.mlp.weight": torch.full((64, 64), value)}, folder / "model.safetensors")
    return str(folder)


def test_the_same_weights_pass(tmp_path: Path) -> None:
    first, second = model(tmp_path / "a", 1.0), model(tmp_path / "b", 1.0)
    check_same_weights(second, sample_weights(first), 1)


def test_the_same_tensors_with_other_values_are_another_model(tmp_path: Path) -> None:
    first, second = model(tmp_path / "a", 1.0), model(tmp_path / "b", 2.0)
    with pytest.raises(
        ConfigError, match=r"stage 1 runs a different model .* model.safetensors .* other contents"
    ):
        check_same_weights(second, sample_weights(first), 1)


def test_another_share_of_the_model_in_a_file_of_the_same_name_and_size_passes(tmp_path: Path) -> None:
    first, second = model(tmp_path / "a", 1.0, layer=0), model(tmp_path / "b", 2.0, layer=4)
    sizes = [(Path(folder) / "model.safetensors").stat().st_size for folder in (first, second)]
    assert sizes[0] == sizes[1]
    check_same_weights(second, sample_weights(first), 1)


def test_what_vectors_go_through_behind_the_model_is_the_same_everywhere(tmp_path: Path) -> None:
    first, second, plain = (model(tmp_path / name, 1.0) for name in "abc")
    for folder in (first, second):
        (Path(folder) / "modules.json").write_text('[{"path": ""}, {"path": "1_Dense"}]')
        (Path(folder) / "1_Dense").mkdir()
        (Path(folder) / "1_Dense" / "model.safetensors").write_bytes(b"same")
    said = sample_weights(first)
    check_same_modules(second, said, 1)
    check_same_modules(plain, sample_weights(plain), 1)
    check_same_modules("org/name", said, 1)
    check_same_modules(first, {}, 1)
    with pytest.raises(ConfigError, match=r"stage 1: modules.json .* are not here: .* copy them"):
        check_same_modules(plain, said, 1)
    with pytest.raises(ConfigError, match=r"are only here"):
        check_same_modules(second, sample_weights(plain), 1)
    (Path(second) / "1_Dense" / "model.safetensors").write_bytes(b"other")
    with pytest.raises(ConfigError, match=r"differ"):
        check_same_modules(second, said, 1)
