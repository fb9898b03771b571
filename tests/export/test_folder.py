"""Exported folders against the model they were made from."""

import json
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForVisualQuestionAnswering, AutoProcessor

import mvlm
from mvlm.__main__ import main
from mvlm.checkpoint.layout import find_checkpoint
from mvlm.config.load import dump_config, load_config, load_stored_config
from mvlm.data.samples.pictures import Pictures
from mvlm.errors import UserError
from mvlm.export.auto import register
from mvlm.export.card import model_card
from mvlm.export.folder import export_folder, whole_folder, write_weights
from mvlm.pretrained.runs import load_run, load_task_run
from tests.evaluate.tiny import CAPTIONS, CONFIG, make_tokenizer
from tests.export.conftest import write_run
from tests.ranks import run_ranks

register()
SENTENCES = [caption for of_image in CAPTIONS for caption in of_image][:4]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(2)
    Image.fromarray(rng.integers(0, 256, (40, 31, 3), dtype=np.uint8)).save(folder / "a.jpg")
    Image.fromarray(rng.integers(0, 256, (16, 16, 4), dtype=np.uint8)).save(folder / "b.png")
    Image.fromarray(rng.integers(0, 65536, (20, 30), dtype=np.uint16)).save(folder / "c.png")
    turned = Image.fromarray(rng.integers(0, 256, (10, 25, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(folder / "d.jpg", exif=exif)
    return sorted(folder.iterdir())


def equal(found, wanted):
    return torch.equal(found, wanted) and found.dtype == wanted.dtype


def test_the_processor_gives_the_inputs_of_training(exported, pictures):
    ours = Pictures(pictures, SENTENCES, make_tokenizer(), CONFIG.data.text_length, CONFIG.model.image_size)
    processor = AutoProcessor.from_pretrained(exported)
    given = processor(images=[Image.open(path) for path in pictures], text=SENTENCES)
    assert equal(given["pixel_values"], ours.images(range(4)))
    text, valid = ours.texts(range(4))
    assert equal(given["input_ids"], text) and equal(given["attention_mask"].bool(), valid)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"images": []}, "There are no images"),
        ({"text": []}, "There are no sentences"),
        ({"images": [None]}, "of type NoneType, object"),
        ({"images": "a.jpg"}, "of type str"),
        ({"images": np.zeros((3, 8, 9), np.uint8)}, r"of type ndarray, uint8, with shape \(3, 8, 9\)"),
        ({"images": torch.zeros(3, 8, 8)}, r"of type Tensor, float32, with shape \(3, 8, 8\)"),
        ({"images": Image.new("RGB", (0, 3))}, "0 x 3 pixels shows nothing"),
        ({"text": 5}, "A sentence is a string; this is of type int"),
        ({"text": b"a"}, "A sentence is a string; this is of type bytes"),
        ({"text": ["a", None]}, "A sentence is a string; this is of type NoneType"),
    ],
)
def test_the_processor_refuses_unreadable_inputs_in_one_sentence(exported, given, said):
    with pytest.raises(ValueError, match=said) as error:
        AutoProcessor.from_pretrained(exported)(**given)
    assert "\n" not in str(error.value)


def test_the_processor_returns_numpy_arrays_on_request(exported):
    processor, image = AutoProcessor.from_pretrained(exported), np.zeros((8, 9, 3), np.uint8)
    usual = processor(images=image, text="a")
    for name, value in processor(images=image, text="a", return_tensors="np").items():
        assert isinstance(value, np.ndarray) and np.array_equal(value, usual[name])


@torch.no_grad()
def test_every_output_is_equal_to_the_last_bit(exported, run, pictures):
    ours = load_run(run).model
    theirs = AutoModel.from_pretrained(exported).eval()
    given = AutoProcessor.from_pretrained(exported)(images=[Image.open(path) for path in pictures], text=SENTENCES)
    image, text, valid = given["pixel_values"], given["input_ids"], given["attention_mask"].bool()
    image_BSD, text_BLD = ours.encode_image(image), ours.encode_text(text, valid)
    image_BE, text_BE = ours.project_image(image_BSD), ours.project_text(text_BLD)
    output = theirs(**given)
    assert equal(output.image_embeds, image_BE) and equal(output.text_embeds, text_BE)
    assert equal(output.logits_per_image, image_BE @ text_BE.T / ours.temperature())
    assert equal(theirs.match(**given), ours.match(image_BSD, text_BLD, valid))
    words = ours.reconstruct_text(ours.fuse_text(text_BLD, image_BSD, valid))
    assert equal(theirs.restore_words(**given), words)
    hidden = torch.rand(4, 4, generator=torch.Generator().manual_seed(3)) < 0.5
    fused = ours.fuse_image(ours.encode_image(image, hidden), text_BLD, valid)
    restored = ours.unpatchify(ours.reconstruct_image(fused, text_BLD, valid, hidden))
    assert equal(theirs.restore_patches(image, hidden, text, valid), restored)


ROTARY = {"vision": "eva02_tiny_patch14_224", "vision_args": {"embed_dim": 48, "depth": 1, "num_heads": 2}}


@torch.no_grad()
def test_a_run_does_not_need_the_folder_of_its_initial_encoder(tmp_path, monkeypatch, pictures):
    sizes = {"img_size": 48, "embed_dim": 32, "depth": 1, "num_heads": 2, "patch_size": 8}
    pixels = {"mean": (0.3, 0.4, 0.5), "std": (0.2, 0.2, 0.1)}
    theirs = timm.create_model("vit_base_patch16_224", **sizes, pretrained_cfg_overlay=pixels)
    timm.models.save_for_hf(theirs, tmp_path / "vit", model_args=sizes)
    monkeypatch.chdir(tmp_path)
    stored = dump_config(replace(CONFIG, model=replace(CONFIG.model, vision="vit", vision_args={})))
    (tmp_path / "run.toml").write_text(stored)
    run = write_run(tmp_path / "run", load_config("run.toml"))
    wanted = mvlm.load(run, "cpu").encode(pictures).images
    shutil.rmtree(tmp_path / "vit")
    assert main(["export", str(run), "--out", str(tmp_path / "out")]) == 0
    for place in (run, tmp_path / "out"):
        model = mvlm.load(place, "cpu")
        assert model.network.vision.mean == pixels["mean"]
        assert torch.equal(model.encode(pictures).images, wanted)


@pytest.mark.parametrize("kind", ["rotary", "drop"])
@torch.no_grad()
def test_positions_that_are_not_weights_are_exported(kind, made_run, tmp_path):
    if kind == "rotary":
        run = made_run(**ROTARY, image_size=28)
    else:
        config = replace(CONFIG, objectives=replace(CONFIG.objectives, image_masking="drop"))
        run = write_run(tmp_path / "run", config)
    assert main(["export", str(run), "--out", str(tmp_path / "out")]) == 0
    ours, theirs = load_run(run).model, AutoModel.from_pretrained(tmp_path / "out").eval()
    buffers = dict(theirs.network.named_buffers())
    assert any("text" not in name for name in buffers)
    for name, buffer in ours.named_buffers():
        assert equal(buffers[name], buffer), name
    side = 28 if kind == "rotary" else 16
    image = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
    assert equal(theirs.get_image_features(image), ours.project_image(ours.encode_image(image)))


@torch.no_grad()
def test_logits_of_the_sigmoid_loss_have_its_scale_and_bias(tmp_path):
    config = replace(CONFIG, objectives=replace(CONFIG.objectives, contrastive="sigmoid"))
    run = write_run(tmp_path / "run", config)
    assert main(["export", str(run), "--out", str(tmp_path / "out")]) == 0
    theirs = AutoModel.from_pretrained(tmp_path / "out").eval()
    image = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    text = torch.tensor([[0, 7, 2], [0, 9, 2]])
    output = theirs(image, text, torch.ones_like(text), return_loss=True)
    cosine = output.image_embeds @ output.text_embeds.T
    torch.testing.assert_close(output.logits_per_image, 10 * cosine - 10)
    probability = output.logits_per_image.double().sigmoid()
    wanted = -(probability.diagonal().log().sum() + (1 - probability[[0, 1], [1, 0]]).log().sum()) / 2
    torch.testing.assert_close(output.loss.double(), wanted)


@pytest.mark.parametrize("task", ["vqa", "nlvr2", "entailment"])
@torch.no_grad()
def test_models_of_tasks_are_exported_with_their_heads(made_run, task, tmp_path, pictures):
    run = made_run(task, ema=task == "vqa")  # the averaged weights are exported, if there are any
    assert main(["export", str(run), "--out", str(tmp_path / "out")]) == 0
    auto = AutoModelForVisualQuestionAnswering if task == "vqa" else AutoModel
    theirs, ours = auto.from_pretrained(tmp_path / "out").eval(), load_task_run(run, task).model
    given = AutoProcessor.from_pretrained(tmp_path / "out")(
        images=[Image.open(path) for path in pictures], text=SENTENCES[:2]
    )
    image = given["pixel_values"]
    given["pixel_values"] = image.unflatten(0, (2, 2)) if task == "nlvr2" else image[:2]
    views = torch.stack([image[::2], image[1::2]]) if task == "nlvr2" else image[None, :2]
    wanted = ours.logits(views, given["input_ids"], given["attention_mask"].bool())
    torch.testing.assert_close(theirs(**given).logits, wanted, rtol=1e-5, atol=1e-6)  # torch 2.15 rounds differently
    named = {"vqa": ["red", "blue", "2", "no"], "nlvr2": ["False", "True"]}.get(task)
    assert named is None or list(theirs.config.id2label.values()) == named
    with torch.enable_grad():
        labels = torch.rand(2, 4) if task == "vqa" else torch.tensor([0, 1])
        theirs(**given, labels=labels).loss.backward()
    assert all(weight.grad is not None for weight in theirs.network.head.parameters())


def test_weights_in_several_files_can_be_loaded_and_saved_again(made_run, tmp_path):
    run = made_run(files=3)
    export_folder(run, tmp_path / "out", "# card", shard_bytes=20_000)
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 5
    model = AutoModel.from_pretrained(tmp_path / "out")
    model.save_pretrained(tmp_path / "again")
    again = AutoModel.from_pretrained(tmp_path / "again").state_dict()
    ours = dict(load_run(run).model.named_parameters())
    for name, weight in ours.items():
        assert torch.equal(again[f"network.{name}"], weight), name


def test_a_folder_exported_by_an_earlier_version_is_read(exported, tmp_path):
    old = Path(shutil.copytree(exported, tmp_path / "old"))
    stored = load_file(old / "model.safetensors")
    renamed = {name.replace("network.mlm_head.", "network.word_head."): weight for name, weight in stored.items()}
    assert renamed.keys() != stored.keys()
    save_file(renamed, old / "model.safetensors", metadata={"format": "pt"})
    model, report = AutoModel.from_pretrained(old, output_loading_info=True)
    assert not any(report.values()), report
    model.save_pretrained(tmp_path / "again")
    for found in (model.state_dict(), AutoModel.from_pretrained(tmp_path / "again").state_dict()):
        assert all(found[name].equal(weight) for name, weight in stored.items())


def test_a_tied_classifier_stays_tied(made_run, tmp_path):
    run = made_run(tie_classifier=True)
    assert main(["export", str(run), "--out", str(tmp_path / "out")]) == 0
    stored = load_file(tmp_path / "out" / "model.safetensors")
    model, report = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()), report
    network = model.network
    assert network.mlm_head.classifier.weight is network.text.embedding.weight
    assert (
        sum("classifier.weight" in name or "word_embeddings.weight" in name for name in stored) == 2
    )  # one is match_head's


def within_the_size_of_the_weights(checkpoint, folder, how):
    """Export or load with hardly more memory than the weights take; needs a process of its own."""
    lines = Path("/proc/self/status").read_text().splitlines()
    held = next(int(line.split()[1]) for line in lines if line.startswith("VmData")) * 1024
    mapped = sum(file.stat().st_size for file in checkpoint.glob("weights-*"))
    resource.setrlimit(resource.RLIMIT_DATA, (held + mapped + 40_000_000, -1))
    if how == "stream":
        write_weights(checkpoint, folder, 8_000_000)
    else:
        load_run(checkpoint)


@pytest.mark.parametrize(("how", "fits"), [("stream", True), pytest.param("load", False, marks=pytest.mark.campaign)])
def test_exporting_takes_the_memory_of_a_file_and_not_of_the_model(made_run, tmp_path, how, fits):
    run = made_run(text_args=CONFIG.model.text_args | {"num_hidden_layers": 80, "hidden_size": 256})
    checkpoint = run / "checkpoints" / "step_00000007"
    assert sum(file.stat().st_size for file in checkpoint.glob("weights-*")) > 100_000_000
    ended = run_ranks(within_the_size_of_the_weights, checkpoint, tmp_path, how)
    assert (ended.returncode == 0) == fits, ended.stderr[-500:]


ALONE = """
import sys
from importlib.machinery import PathFinder
missing, find = ["timm", "torchvision"], PathFinder.find_spec
PathFinder.find_spec = lambda name, *words: None if name.partition(".")[0] in missing else find(name, *words)
class NoMvlm:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "mvlm":
            raise ImportError(name)
sys.meta_path.insert(0, NoMvlm())
import numpy as np, torch
from PIL import Image
from transformers import AutoModel, AutoProcessor
for missing[:] in (["timm", "torchvision"], ["torchvision"]):
    for auto in AutoModel, AutoProcessor:
        try:
            auto.from_pretrained(sys.argv[1], trust_remote_code=True)
        except ImportError as error:
            print(error)
missing.clear()
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
given = processor(images=[Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3))], text=["a red dog"])
with torch.no_grad():
    torch.save([model(**given).logits_per_image, model.match(**given)], sys.argv[2])
"""


def test_without_mvlm_the_code_in_the_folder_gives_the_same_results(exported, tmp_path):
    words = [sys.executable, "-c", ALONE, str(exported), str(tmp_path / "found.pt")]
    places = {"HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": ""}
    ended = subprocess.run(words, cwd=tmp_path, env=os.environ | places, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ended.stdout.splitlines() == [
        *2 * ["This model needs timm and torchvision: pip install timm torchvision."],
        *2 * ["This model needs torchvision: pip install torchvision."],
    ]
    model = AutoModel.from_pretrained(exported).eval()
    image = Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3))
    given = AutoProcessor.from_pretrained(exported)(images=[image], text=["a red dog"])
    with torch.no_grad():
        wanted = [model(**given).logits_per_image, model.match(**given)]
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    assert all(equal(ours, theirs) for ours, theirs in zip(wanted, found, strict=True))


def test_the_card_describes_the_run(run, exported):
    card = (exported / "README.md").read_text()
    assert card == model_card(run, "small")
    assert "step 7 of 9" in card
    assert "It needs `pip install torch transformers pillow timm torchvision`." in card
    count = sum(weight.numel() for weight in load_run(run).model.parameters())
    assert f"of {count:,} parameters" in card
    assert "| eval/image_to_text_r1 | 0.25 |" in card and "| ranks, ZeRO stage | 2, 1 |" in card


def test_no_card_is_written_if_its_step_is_unknown(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    (find_checkpoint(copy) / "state.json").unlink()
    assert main(["export", str(copy), "--out", str(tmp_path / "out")]) == 1
    assert "state.json is damaged" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_card_has_no_results_of_other_checkpoints(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    with (copy / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 9, "eval/image_to_text_r1": 0.75}\n')
    found = {"image_to_text": {"itc": {"r1": 0.5, "r5": 0.5, "r10": 0.5}}}
    for step, shown in ((9, False), (7, True)):
        (copy / "retrieval.json").write_text(json.dumps(found | {"step": step}))
        card = model_card(copy, "small")
        assert "| eval/image_to_text_r1 | 0.25 |" in card and ("50.0, 50.0, 50.0" in card) == shown


def test_the_card_names_the_data_of_retrieval_and_lists_only_scores_as_results(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    with (copy / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 7, "eval/put_off": 45.3}\n')
    found = {"step": 7, "data": ["/data/shards/other"], "protocol": "5 images. Only the rows where width > 9 are used."}
    (copy / "retrieval.json").write_text(json.dumps(found))
    card = model_card(copy, "small")
    assert "on `shards/other`: 5 images. Only the rows where width > 9 are used.\n" in card and "/data" not in card
    assert "put_off" not in card


def test_the_card_of_a_soup_has_no_results_of_the_run_around_it(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    soup, step = copy / "soups" / "both", find_checkpoint(copy)
    assert main(["average", str(step), str(step), "--out", str(soup)]) == 0
    card = model_card(soup, "small")
    assert "the mean of 2 checkpoints, the newest of step 7 of 9" in card and "None were measured" in card
    found = {"image_to_text": {"itc": {"r1": 0.5, "r5": 0.5, "r10": 0.5}}, "step": 7}
    (soup / "retrieval.json").write_text(json.dumps(found))
    card = model_card(soup, "small")
    assert "50.0, 50.0, 50.0" in card and "eval/image_to_text_r1" not in card


def test_exported_files_contain_no_paths_of_this_machine(run, exported):
    for path in exported.iterdir():
        if path.suffix != ".safetensors":
            assert str(run) not in path.read_text(), path
    assert json.loads((exported / "config.json").read_text())["settings"]["model"]["text"] == "roberta"


def test_the_card_names_an_encoder_from_a_folder_without_its_path(made_run):
    run = made_run()
    config = load_stored_config(run / "config.toml")
    model = replace(config.model, text="/home/somebody/minilm", vision="/home/somebody/vit")
    (run / "config.toml").write_text(dump_config(replace(config, model=model)))
    card = model_card(run, "small")
    assert "| text encoder | minilm |" in card and "| image encoder | vit |" in card and "somebody" not in card


@pytest.mark.parametrize(
    ("init", "named"),
    [("mine/checkpoints/step_00000007", "mine/step_00000007"), ("mine/best", "mine/best"), ("mine", "mine")],
)
def test_the_card_names_the_run_of_the_initial_checkpoint(made_run, init, named):
    run = made_run("vqa")
    config = load_stored_config(run / "config.toml")
    begun = replace(config.checkpoint, init=f"/home/somebody/{init}")
    (run / "config.toml").write_text(dump_config(replace(config, checkpoint=begun)))
    card = model_card(run, "small")
    assert f"the run or checkpoint `{named}`" in card and "somebody" not in card


def test_the_card_of_a_task_without_results_says_that_none_were_measured(made_run):
    run = made_run("vqa")
    (run / "metrics.jsonl").write_text("")
    assert "None were measured.\n" in model_card(run, "small")


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_files_have_the_modes_that_the_umask_gives(run, tmp_path, mask):
    before = os.umask(mask)
    try:
        export_folder(run, tmp_path / "out", "# card", shard_bytes=20_000)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()} == {0o666 & ~mask}
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~mask


def test_a_folder_is_complete_or_absent(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "there").mkdir()
    assert main(["export", str(run), "--out", str(tmp_path / "there")]) == 1
    assert capsys.readouterr().err == (
        f"mvlm: {tmp_path / 'there'} exists: give --out a new folder, or remove that one first.\n"
    )
    full = OSError(28, "No space left on device")

    def fails(*_, **__):
        raise full

    monkeypatch.setattr("mvlm.export.folder.stream_tensors", fails)
    with pytest.raises(UserError, match=r"cannot be written .*No space left.*give --out another place"):
        export_folder(run, tmp_path / "out", "# card")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    with (
        pytest.raises(UserError, match=r"cannot be written .*No space left.*give --out another place"),
        whole_folder(tmp_path / "out") as folder,
    ):
        (folder / "tokenizer.json").symlink_to("/dev/full")
        make_tokenizer().save_pretrained(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
