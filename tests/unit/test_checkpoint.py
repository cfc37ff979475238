"""Opening a model: what it is made of, and one clear line for each way in which it can be broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.checkpoints import config_of, llama_names, qwen, write_model
from zmqpp.checkpoint.checkpoint import Checkpoint
from zmqpp.errors import ConfigError
from zmqpp.models import docs_llama

INDEX = "model.safetensors.index.json"


def test_the_embedded_model_is_what_its_readme_says() -> None:
    opened = Checkpoint.open(str(docs_llama()))
    assert (opened.total_layers, opened.decoder, opened.tied) == (8, "model.layers", False)
    assert (opened.name, opened.architecture, len(opened.tensors)) == ("docs-llama", "LlamaForCausalLM", 75)
    assert opened.size_bytes == 7_870_848 and not opened.needs_remote_code
    assert opened.tensors["lm_head.weight"].dtype == "BF16"


def test_shards_are_read_in_the_order_of_their_bytes(tmp_path: Path) -> None:
    opened = Checkpoint.open(str(qwen(tmp_path / "m", tied=True)))
    assert [path.name[:11] for path in opened.files] == ["model-00001", "model-00002", "model-00003"]
    assert set(opened.tensors) == set(llama_names(6, tied=True))
    places = [(entry.path.name, entry.offset_bytes) for entry in opened.tensors.values()]
    assert places == sorted(places)


def families(layers: int) -> dict[str, tuple[dict[str, object], dict[str, tuple[int, ...]], str]]:
    """Family -> what its config.json says beside or instead, its tensors, its decoder."""

    def repeat(ends: list[str], layer: str) -> dict[str, tuple[int, ...]]:
        names = [*ends, *(layer.format(i) for i in range(layers))]
        return dict.fromkeys(names, (2, 2))

    nested: dict[str, object] = {"num_hidden_layers": None, "text_config": {"num_hidden_layers": layers}}
    return {
        "gpt2": (
            {"num_hidden_layers": None, "n_layer": layers},
            repeat(["wte.weight", "wpe.weight", "ln_f.weight"], "h.{}.attn.c_attn.weight"),
            "h",
        ),
        "opt": (
            {},
            repeat(["model.decoder.embed_tokens.weight"], "model.decoder.layers.{}.fc1.weight"),
            "model.decoder.layers",
        ),
        "llava": (
            nested,
            repeat(["language_model.lm_head.weight"], "language_model.model.layers.{}.w.weight")
            | {f"vision_tower.layers.{i}.w.weight": (2, 2) for i in range(layers + 9)},
            "language_model.model.layers",
        ),
        "mixtral": (
            {},
            repeat(["lm_head.weight"], "model.layers.{}.block_sparse_moe.experts.0.w1.weight")
            | {f"model.layers.{i}.block_sparse_moe.experts.63.w1.weight": (2, 2) for i in range(layers)},
            "model.layers",
        ),
        "awq": (
            {"quantization_config": {"bits": 4}},
            repeat(["lm_head.weight"], "model.layers.{}.q.qweight") | repeat([], "model.layers.{}.q.scales"),
            "model.layers",
        ),
        "chatglm": (
            {},
            repeat(["transformer.output_layer.weight"], "transformer.encoder.layers.{}.w.weight"),
            "transformer.encoder.layers",
        ),
        "deepseek": (
            {"num_nextn_predict_layers": 1},
            repeat(["lm_head.weight"], "model.layers.{}.w.weight")
            | {f"model.layers.{layers}.eh.weight": (2, 2)},
            "model.layers",
        ),
    }


@pytest.mark.parametrize("family", families(3))
def test_the_decoder_is_found_in_every_family(tmp_path: Path, family: str) -> None:
    more, shapes, decoder = families(3)[family]
    opened = Checkpoint.open(str(write_model(tmp_path / "m", config_of(3, **more), shapes)))
    assert (opened.decoder, opened.total_layers) == (decoder, 3)


@pytest.mark.parametrize(
    ("tied", "head", "config", "expected"),
    [
        (True, False, {}, True),
        (False, True, {}, False),
        (False, True, {"tie_word_embeddings": None}, False),
        (True, False, {"tie_word_embeddings": None}, True),
        (True, False, {"tie_word_embeddings": False}, True),
        (True, True, {}, True),
        (False, True, {"tie_word_embeddings": None, "text_config": {"tie_word_embeddings": True}}, True),
    ],
)
def test_ends_are_tied_when_the_config_says_so_or_there_is_no_head(
    tmp_path: Path, tied: bool, head: bool, config: dict[str, object], expected: bool
) -> None:
    write_model(tmp_path / "m", config_of(2, tied, **config), llama_names(2, tied=not head))
    assert Checkpoint.open(str(tmp_path / "m")).tied is expected


def test_files_the_index_does_not_list_are_ignored(tmp_path: Path) -> None:
    folder = qwen(tmp_path / "m")
    (folder / "consolidated.safetensors").write_bytes(b"never read")
    assert len(Checkpoint.open(str(folder)).tensors) == len(llama_names(6, tied=True))


def test_consolidated_files_beside_the_common_ones_are_ignored_without_an_index_too(tmp_path: Path) -> None:
    folder = qwen(tmp_path / "m")
    (folder / INDEX).unlink()
    (folder / "consolidated.00.safetensors").write_bytes(b"never read")
    assert len(Checkpoint.open(str(folder)).files) == 3


def change_index(change: Callable[[dict[str, str]], object]) -> Callable[[Path], object]:
    def broken(folder: Path) -> None:
        weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
        change(weight_map)
        (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))

    return broken


def second_shard(folder: Path) -> Path:
    return folder / "model-00002-of-00003.safetensors"


def truncate(folder: Path) -> None:
    content = second_shard(folder).read_bytes()
    second_shard(folder).write_bytes(content[:-100])


def only_bin(folder: Path) -> None:
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")


def no_weights(folder: Path) -> None:
    only_bin(folder)
    (folder / "pytorch_model.bin").unlink()


def set_config(**more: object) -> Callable[[Path], object]:
    return lambda folder: (folder / "config.json").write_text(json.dumps(config_of(6, True, **more)))


def duplicate(folder: Path) -> None:
    (folder / INDEX).unlink()
    (folder / "other.safetensors").write_bytes(second_shard(folder).read_bytes())


MISTAKES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "config of bytes": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe"), "config.json cannot be read"),
    "config half": (lambda f: (f / "config.json").write_text('{"a": '), "config.json cannot be read"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "it is not a JSON object"),
    "no layer count": (set_config(num_hidden_layers=None), "does not say how many layers"),
    "nested config no object": (set_config(num_hidden_layers=None, text_config="x"), "how many layers"),
    "only bin": (only_bin, r"no \*.safetensors, only pytorch_model.bin: convert it with transformers"),
    "no weights": (no_weights, r"no \*.safetensors: give the folder"),
    "shard missing": (
        lambda f: second_shard(f).unlink(),
        r"lacks model-00002-of-00003.safetensors, which .*index",
    ),
    "shard truncated": (
        truncate,
        r"model-00002-of-00003.safetensors is truncated: its header describes [\d ]+ bytes",
    ),
    "index not JSON": (lambda f: (f / INDEX).write_text("{"), "index.json cannot be read"),
    "index without map": (lambda f: (f / INDEX).write_text("{}"), "index.json cannot be read"),
    "index leaves the folder": (
        change_index(lambda m: m.update({"model.norm.weight": "../other/a.safetensors"})),
        "files in the same folder",
    ),
    "index too much": (
        change_index(lambda m: m.update(ghost="model-00001-of-00003.safetensors")),
        "model-00001-of-00003.safetensors lacks the tensor ghost",
    ),
    "layers missing": (
        set_config(num_hidden_layers=8),
        r"lacks layer 6 and 1 more: config.json says 8 layers",
    ),
    "fewer layers than tensors": (
        set_config(num_hidden_layers=2),
        r"config.json says 2 layers, model.layers.\* has 6",
    ),
    "two copies": (duplicate, "is in model-00002-of-00003.safetensors and in other.safetensors"),
    "bad pipeline info": (set_config(_pipeline_info={"stage_idx": "0"}), "must hold the integers"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_broken_model_is_one_clear_line(tmp_path: Path, mistake: str) -> None:
    folder = qwen(tmp_path / "m")
    breaks, words = MISTAKES[mistake]
    breaks(folder)
    with pytest.raises(ConfigError, match=words) as caught:
        Checkpoint.open(str(folder))
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="there is no model directory /no/such/folder"):
        Checkpoint.open("/no/such/folder")


@pytest.mark.parametrize("model", ["no such model!", "org/name"])
def test_a_hub_id_that_cannot_be_had_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=f"there is no model directory {model}") as caught:
        Checkpoint.open(model)
    assert "\n" not in str(caught.value)


def test_a_hub_id_is_fetched_and_named_as_such(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = qwen(tmp_path / "snapshots" / "0a1b2c")
    asked = []

    def download(model: str, **options: object) -> str:
        asked.append((model, options["allow_patterns"]))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    opened = Checkpoint.open("org/name")
    assert (opened.name, opened.folder, opened.total_layers) == ("org/name", folder, 6)
    assert asked[0][0] == "org/name" and "*.bin" not in asked[0][1]


def test_remote_code_is_noticed_and_no_obstacle(tmp_path: Path) -> None:
    folder = qwen(tmp_path / "m", auto_map={"AutoModelForCausalLM": "modeling.Model"})
    assert Checkpoint.open(str(folder)).needs_remote_code


def test_the_fingerprint_tells_weights_apart(tmp_path: Path) -> None:
    shapes = llama_names(2)
    one = write_model(tmp_path / "one", config_of(2), shapes, seed=1)
    same = write_model(tmp_path / "same", config_of(2), shapes, seed=1)
    other = write_model(tmp_path / "other", config_of(2), shapes, seed=2)
    prints = [Checkpoint.open(str(folder)).fingerprint() for folder in (one, same, other)]
    assert prints[0] == prints[1] != prints[2]
