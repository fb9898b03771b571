"""Run folders of tiny models with random weights, for all tasks."""

import hashlib
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from mvlm.__main__ import main
from mvlm.config.load import dump_config
from mvlm.config.schema import Task
from mvlm.data.samples.labelled import ANSWERS, class_names
from mvlm.pretrained.encoders import build_model
from tests.evaluate.tiny import CONFIG, make_tokenizer

GIVEN = ("red", "blue", "2", "no")


def write_run(folder, config, files=1, ema=False):
    """Write those files of `mvlm train` that commands read."""
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    (folder / "tokenizer" / ANSWERS).write_text(json.dumps(list(GIVEN)))
    torch.manual_seed(0)
    model = build_model(config.blueprint, tokenizer, len(class_names(config.task.name, folder / "tokenizer")))
    model.text.settings.save_pretrained(folder / "text_encoder")
    (folder / "config.toml").write_text(dump_config(config))
    versions = {"torch": torch.__version__, "deepspeed": "0"}
    described = {"steps": 9, "rows": 7, "world": 2, "zero_stage": 1, "device": "cpu", "versions": versions}
    (folder / "run.json").write_text(json.dumps(described))
    (folder / "metrics.jsonl").write_text('{"step": 7, "eval/image_to_text_r1": 0.25}\n')
    checkpoint = folder / "checkpoints" / "step_00000007"
    checkpoint.mkdir(parents=True)
    (checkpoint.parent / "latest").write_text(checkpoint.name)
    (checkpoint / "state.json").write_text('{"step": 7, "samples_seen": 28, "seed": 0, "manifest_fingerprint": ""}')
    weights = {name: weight.data.clone() for name, weight in model.named_parameters()}
    kinds = {"weights": weights} | (
        {"ema": {n: w + 1 for n, w in weights.items() if n.startswith("head")}} if ema else {}
    )
    listed = []
    for kind, tensors in kinds.items():
        names = list(tensors)
        for number in range(files):
            path = checkpoint / f"{kind}-{number:05d}-of-{files:05d}.safetensors"
            save_file({name: tensors[name].contiguous() for name in names[number::files]}, path)
            content = path.read_bytes()
            listed.append({"file": path.name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()})
    (checkpoint / "index.json").write_text(json.dumps({"files": listed}))
    return folder


@pytest.fixture(scope="session")
def made_run(tmp_path_factory):
    """made_run(task, ...) -> the folder of a run of that task."""

    def made(task="pretrain", files=1, ema=False, **model):
        config = replace(CONFIG, task=Task(name=task), model=replace(CONFIG.model, **model))
        return write_run(tmp_path_factory.mktemp(task), config, files, ema)

    return made


@pytest.fixture(scope="session")
def run(made_run):
    return made_run()


def export(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "small"
    assert main(["export", str(run), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    return export(run, tmp_path_factory)
