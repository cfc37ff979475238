"""`zmqpp export`: what it writes, and what it refuses to start."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints import (
    config_of,
    contents,
    export,
    large_head,
    llama_names,
    qwen,
    stages,
    tensors_of,
    write_model,
)
from zmqpp.checkpoint.checkpoint import Checkpoint
from zmqpp.checkpoint.manifest import read_manifest
from zmqpp.models import docs_llama


def bytes_of(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Each tensor as it lies in the files, of any dtype."""
    found = {}
    for name, entry in Checkpoint.open(str(folder)).tensors.items():
        whole = entry.path.read_bytes()
        found[name] = (
            entry.dtype,
            entry.shape,
            whole[entry.offset_bytes : entry.offset_bytes + entry.size_bytes],
        )
    return found


def test_stages_together_are_the_model_and_tied_embeddings_are_on_both_ends(tmp_path: Path) -> None:
    model = qwen(tmp_path / "m", layers=7, tied=True, shards=3)
    assert export(model, tmp_path / "out", "--pipeline-parallel-size", "3") == 0
    (source,), shares = tensors_of([model]), tensors_of(stages(tmp_path / "out"))
    assert len(shares) == 3 and set().union(*shares) == set(source)
    for share in shares:
        for name, tensor in share.items():
            assert tensor.dtype == source[name].dtype and np.array_equal(tensor, source[name])
    held = ["model.embed_tokens.weight" in share for share in shares]
    assert held == [True, False, True]
    assert sum(map(len, shares)) == len(source) + 1


def test_bfloat16_is_copied_bit_for_bit(tmp_path: Path) -> None:
    assert export(docs_llama(), tmp_path, "--ranges", "0-3,3-8") == 0
    source = bytes_of(docs_llama())
    shares = [bytes_of(folder) for folder in stages(tmp_path)]
    assert {**shares[0], **shares[1]} == source
    assert [len(share) for share in shares] == [28, 47]


def test_types_that_numpy_lacks_and_tensors_of_no_size_are_copied(tmp_path: Path) -> None:
    kinds = {"F8_E4M3": (5, 5), "F4": (7, 4), "NEW_7": (3, 9), "F32": (2, 8), "BF16": (0, 0)}
    header, body = {}, b""
    for layer in range(2):
        for kind, (elements, size_bytes) in kinds.items():
            offsets = [len(body), len(body) + size_bytes]
            header[f"model.layers.{layer}.{kind}"] = {
                "dtype": kind,
                "shape": [elements],
                "data_offsets": offsets,
            }
            body += bytes(range(layer, layer + size_bytes))
    text = json.dumps(header).encode()
    model = write_model(tmp_path / "m", config_of(2), llama_names(2))
    next(model.glob("*.safetensors")).write_bytes(struct.pack("<Q", len(text)) + text + body)
    assert export(model, tmp_path / "out", "--num-stages", "2") == 0
    first, second = (bytes_of(folder) for folder in stages(tmp_path / "out"))
    assert {**first, **second} == bytes_of(model)
    for folder in stages(tmp_path / "out"):
        for entry in Checkpoint.open(str(folder)).tensors.values():
            if entry.dtype == "F32":
                assert entry.offset_bytes % 4 == 0, "the safetensors package views tensors in place"


def test_every_stage_is_a_model_folder_with_its_place_in_the_config(tmp_path: Path) -> None:
    model = qwen(tmp_path / "Tiny-Qwen", layers=6)
    assert export(model, tmp_path / "out", "--ranges", "0-2", "2-6", "--max-shard-size", "1KB") == 0
    original = json.loads((model / "config.json").read_text())
    for stage, folder in enumerate(stages(tmp_path / "out")):
        config = json.loads((folder / "config.json").read_text())
        place = config.pop("_pipeline_info")
        assert config == original
        wanted = {"stage_idx": stage, "total_stages": 2, "total_layers": 6, "source": "Tiny-Qwen"}
        assert place.items() >= {**wanted, "start_layer": [0, 2][stage], "end_layer": [2, 6][stage]}.items()
        assert str(tmp_path) not in (folder / "config.json").read_text()
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        files = sorted(path.name for path in folder.glob("*.safetensors"))
        assert sorted(set(index["weight_map"].values())) == files and len(files) > 1
        assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
        assert index["metadata"]["total_size"] == Checkpoint.open(str(folder)).size_bytes
        first = (folder / files[0]).read_bytes()
        assert json.loads(first[8 : 8 + struct.unpack("<Q", first[:8])[0]])["__metadata__"] == {
            "format": "pt"
        }
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.source, manifest.folders) == ("Tiny-Qwen", ["stage_0", "stage_1"])
    assert [str(layers) for layers in manifest.ranges] == ["0-2", "2-6"]
    assert set(manifest.stages[1].tensors) == set(files)


def test_texts_of_the_tokenizer_are_on_stage_0_and_code_on_all(tmp_path: Path) -> None:
    model = qwen(tmp_path / "m", auto_map={"AutoConfig": "configuration.Config"})
    (model / "configuration.py").write_text("class Config: ...")
    (model / "pytorch_model.bin").write_bytes(b"no")
    (model / "quantize_config.json").write_text("{}")
    assert export(model, tmp_path / "out", "--num-stages", "2") == 0
    first, second = (set(contents(folder)) for folder in stages(tmp_path / "out"))
    texts = {"tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"}
    assert first - second == texts | (first - second) & {"model-00001-of-00001.safetensors"}
    assert {"configuration.py", "quantize_config.json", "config.json"} <= first & second
    assert "pytorch_model.bin" not in first


def test_a_model_that_sees_has_its_processor_on_every_stage(tmp_path: Path) -> None:
    model = qwen(tmp_path / "m", vision_config={"depth": 2})
    (model / "preprocessor_config.json").write_text("{}")
    assert export(model, tmp_path / "out", "--num-stages", "2") == 0
    for folder in stages(tmp_path / "out"):
        assert {"tokenizer.json", "preprocessor_config.json"} <= set(contents(folder))


def test_what_vectors_go_through_behind_the_model_is_on_every_stage(tmp_path: Path) -> None:
    model = qwen(tmp_path / "m")
    modules = [{"path": path} for path in ("", "1_Pooling", "2_Dense", "../secret", 3)]
    beside = {"1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"}
    beside |= {"modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"}
    for name in beside | {"2_Dense/notes.txt", "onnx/config.json", "../secret/config.json"}:
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text(name)
    (model / "modules.json").write_text(json.dumps(modules))
    for _ in range(2):  # the second run finds all of it
        assert export(model, tmp_path / "out", "--num-stages", "2") == 0
    for folder in stages(tmp_path / "out"):
        found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert beside <= found and found & {"2_Dense/notes.txt", "onnx/config.json"} == set()
        assert (folder / "2_Dense/model.safetensors").read_text() == "2_Dense/model.safetensors"
    (stages(tmp_path / "out")[1] / "1_Pooling/config.json").write_text("other")
    assert export(model, tmp_path / "out", "--num-stages", "2") == 0
    assert (stages(tmp_path / "out")[1] / "1_Pooling/config.json").read_text() == "1_Pooling/config.json"


def test_a_model_of_links_as_the_hub_keeps_them_becomes_real_files(tmp_path: Path) -> None:
    model, linked = qwen(tmp_path / "blobs"), tmp_path / "snapshot"
    linked.mkdir()
    for path in model.iterdir():
        (linked / path.name).symlink_to(path)
    assert export(linked, tmp_path / "out", "--num-stages", "2") == 0
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_symlink()]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--num-stages", "7"], "7 stages cannot share 6 layers"),
        (["--num-stages", "1"], "a pipeline needs at least 2"),
        (["--num-stages", "0"], "--pipeline-parallel-size 0: must be at least 1"),
        ([], "give --pipeline-parallel-size N for an even split, or --ranges"),
        (["--ranges", "0-3", "4-6"], "gap: layers 3-4 are on no stage"),
        (
            ["--ranges", "0-3", "2-5"],
            "overlap: stage 0 (0-3) and stage 1 (2-5) both hold layers 2-3 (and 1 more",
        ),
        (["--ranges", "0-3", "3-x"], "not of the form A-B"),
        (["--ranges", "0-3", "3-6", "--balance", "compute"], "--balance chooses the ranges"),
        (["--num-stages", "3", "--ranges", "0-3", "3-6"], "--pipeline-parallel-size 3 but 2 ranges"),
        (["--num-stages", "2", "--max-shard-size", "big"], "size 'big' is not of the form 5GB"),
        (["--num-stages", "2", "--max-shard-size", "0"], "must be above 0"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_folder(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(qwen(tmp_path / "m"), tmp_path / "out", *arguments) == 2
    said = capsys.readouterr()
    assert words in said.err and said.err.count("\n") == 1 and said.out == ""
    assert not (tmp_path / "out").exists()


def test_a_balanced_split_gives_the_stage_with_the_head_fewer_layers(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", config_of(6), large_head(6))
    assert export(model, tmp_path / "even", "--num-stages", "2") == 0
    assert export(model, tmp_path / "balanced", "--num-stages", "2", "--balance", "compute") == 0
    sizes = {
        name: [
            sum(tensor.size_bytes for tensor in Checkpoint.open(str(stage)).tensors.values())
            for stage in stages(tmp_path / name)
        ]
        for name in ("even", "balanced")
    }
    assert sum(sizes["even"]) == sum(sizes["balanced"]) and max(sizes["balanced"]) < max(sizes["even"])
    assert [str(stage.layers) for stage in read_manifest(tmp_path / "balanced").stages] == ["0-4", "4-6"]


@pytest.mark.parametrize("place", [".", "inside", "inside/deep"])
def test_the_models_own_folder_is_no_place_to_write(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = qwen(tmp_path / "m")
    before = contents(tmp_path)
    assert export(model, model / place, "--num-stages", "2") == 2
    assert "lies in the model's folder" in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_a_folder_above_the_model_will_do_unless_the_model_is_where_a_stage_goes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = qwen(tmp_path / "stage_0")
    assert export(model, tmp_path, "--num-stages", "2", "--overwrite") == 2
    assert "the model lies in" in capsys.readouterr().err
    assert export(model.rename(tmp_path / "m"), tmp_path, "--num-stages", "2") == 0
    assert [folder.name for folder in stages(tmp_path)] == ["stage_0", "stage_1"]


def test_a_stage_is_not_split_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(qwen(tmp_path / "m"), tmp_path / "out", "--num-stages", "2") == 0
    assert export(tmp_path / "out" / "stage_0", tmp_path / "again", "--num-stages", "2") == 2
    assert "is stage 0 of an export: give the full model" in capsys.readouterr().err
    assert export(tmp_path / "out", tmp_path / "again", "--num-stages", "2") == 2
    assert "out is a finished export: give the full model, or one of" in capsys.readouterr().err


def test_neither_torch_nor_vllm_is_loaded_for_it(tmp_path: Path) -> None:
    model = qwen(tmp_path / "m")
    code = f"""
import sys
from zmqpp.cli import main
assert main(["export", "--model", {str(model)!r}, "--output-dir", {str(tmp_path / "out")!r}, "--num-stages", "2"]) == 0
assert main(["validate", "--model", {str(model)!r}, "--num-stages", "2"]) == 0
assert not {{"torch", "vllm", "numpy", "rich", "huggingface_hub"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_json_is_alone_on_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(qwen(tmp_path / "m"), tmp_path / "out", "--num-stages", "2", "--json") == 0
    said = capsys.readouterr()
    told = json.loads(said.out)
    assert [stage["folder"] for stage in told["stages"]] == [
        str(folder) for folder in stages(tmp_path / "out")
    ]
    assert told["total_layers"] == 6 and "stage 1: layers 3-6" in said.err
