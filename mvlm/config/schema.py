"""The run's configuration: every table of the run TOML with its keys and their defaults.

Letters after a default say where it comes from: P stated in the paper (arXiv 2208.02131); R taken from the reference,
ALBEF's code (arXiv 2107.07651), or from memory of the paper; D decided by us. Defaults without one do not affect the
method.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Run:
    dir: str = "runs/mvlm"  # folder to which the run writes everything
    seed: int = 0  # seed for order, masks, augmentation and new weights


@dataclass(frozen=True)
class Data:
    # shard folders, patterns, URLs such as s3://bucket/shards, or other people's tars, Arrow, parquet; concatenated
    train: tuple[str, ...] = ()
    epoch: Literal["pairs", "images"] = "pairs"  # each image once per caption, or once with one caption (D)
    weights: tuple[float, ...] = ()  # how often an epoch goes through each entry of train; empty = once (D)
    # a condition on metadata that selects the rows to train on, or one per entry of train; empty = all rows
    where: tuple[str, ...] = ()
    eval: tuple[str, ...] = ()  # held-out shard folders or URLs; empty = no evaluation
    # "" = the text encoder's own (P); "auto" = BPE trained on data.train; with either, if checkpoint.init names one of
    # your runs, that run's; otherwise a file or folder
    tokenizer: str = ""
    vocabulary: int = 8192  # number of tokens of a tokenizer trained by "auto" (D)
    text_length: int = 30  # maximum number of tokens in a text, special ones included (D)
    caption: Literal["draw", "cycle", "first"] = "draw"  # which caption an epoch of images uses (D)
    shared_view: bool = True  # the masked and the original image are the same augmented view (D)
    crop_scale: tuple[float, float] = (0.5, 1.0)  # area kept by the crop: as in ALBEF's fine-tuning (R); 1, 1 = no crop
    flip: bool = True  # mirror half of the images (R), never if a caption says left or right (D)
    randaugment: tuple[int, int] = (2, 7)  # operations per image, magnitude out of 10; 0, 0 = off (R)
    randaugment_kind: Literal["same_hue", "albef"] = "same_hue"  # same_hue keeps hues; albef: its ten operations (D)
    # all rows of an epoch together, or blocks of rows; "auto": blocks if random reads are slow, as from a store
    shuffle: Literal["auto", "global", "blocks"] = "auto"
    shuffle_block: int = 64  # rows in a block, which are read together
    shuffle_window: int = 64  # blocks shuffled together
    shuffle_shards: int = 0  # shuffle whole shards, this many at a time, for slow or remote stores; 0 = do not
    cache: str = ""  # folder on each node's disk for shards from URLs; "" = your own in TMPDIR
    cache_gb: float = 32.0  # upper bound for the cache; it must have room for twice the shards shuffled together
    patience: float = 10.0  # minutes to wait for a store that does not answer before the run saves and ends
    workers: int = 2  # decoding threads or processes per rank; 0 = one image at a time, on demand
    worker_mode: Literal["threads", "processes"] = "threads"  # use processes if something holds the interpreter's lock
    prefetch: int = 2  # micro-batches prepared ahead
    tolerance: float = 0.001  # bad images replaced before the run stops: a share of those read; 1 or more: a number


@dataclass(frozen=True)
class Model:
    vision: str = "vit_base_patch16_224"  # a timm ViT with CLS, a CNN or "patch_dictionary" (P: ViT-B/16, ImageNet)
    vision_weights: str = "pretrained"  # "pretrained" (timm's, P), "random", a file, folder, run or "hf-hub:owner/name"
    vision_args: dict[str, Any] = field(default_factory=dict)  # passed to timm.create_model (D)
    image_size: int = 224  # side, in pixels, of the images that the encoder sees (P)
    text: str = "FacebookAI/roberta-base"  # (P) any BERT-like transformers name or folder; a model type when random
    text_weights: str = "pretrained"  # "pretrained" (those of `text`, P), "random", a file, folder, run or "hf-hub:..."
    text_args: dict[str, Any] = field(default_factory=dict)  # overrides of the transformers config of the encoder (D)
    text_pool: Literal["cls", "mean"] = "cls"  # what represents a text: its first token, or the mean of all (P: cls)
    cross_depth: int = 3  # blocks of each cross-modality encoder (P)
    decoder_depth: int = 3  # blocks of the image decoder (P)
    cross_heads: int = 12  # attention heads of the cross-modality encoders and the decoder (D)
    cross_norm: Literal["pre", "post"] = "pre"  # layer norm before or after each part of a block (D)
    cross_init_std: float = 0.02  # standard deviation of new linear layers' initial weights (D)
    dropout: float = 0.0  # everywhere; what is dropped depends on the micro-batch, hence on the number of ranks (D)
    contrastive_width: int = 256  # width of the features that ITC compares (R)
    temperature: float = 0.07  # initial value of the temperature that the softmax learns (R)
    temperature_min: float = 0.001  # lower bound of the temperature (R)
    temperature_max: float = 0.5  # upper bound of the temperature (R)
    tie_classifier: bool = False  # the MLM head's weight is the text encoder's embedding (D)
    classifier_init: Literal["auto", "embedding", "random"] = "auto"  # auto: embedding if pretrained and as wide (D)


@dataclass(frozen=True)
class Objectives:
    image: float = 1.0  # weight of masked image modelling; 0 = not computed (P); 0 for tasks without it
    text: float = 1.0  # weight of masked language modelling (P)
    itc: float = 1.0  # weight of image-text contrast (P)
    itm: float = 1.0  # weight of image-text matching (P)
    # weights of additional objectives, by their names in mvlm/model/losses/extra.py (D)
    extra: dict[str, float] = field(default_factory=dict)
    image_mask_ratio: float = 0.6  # share of the blocks that is masked (P)
    image_masking: Literal["token", "drop"] = "token"  # drop: the encoder does not see masked patches, as in MAE (D)
    image_mask_block: int = 2  # side, in patches, of the blocks that are masked: 32 pixels at P = 16 (P)
    image_mask_rounding: Literal["ceil", "floor", "nearest"] = "ceil"  # rounding of ratio x blocks (D)
    text_mask_ratio: float = 0.3  # share of the non-special tokens that is masked (P)
    text_mask_minimum: int = 1  # least number of masked tokens per sentence (D)
    text_mask_token: float = 0.8  # share of masked tokens replaced by the mask token (D)
    text_mask_random: float = 0.1  # share of them replaced by a random token; the rest stays as it is (D)
    hide: Literal["one", "both"] = "one"  # modalities masked at a time (P: one)
    reconstruct_from: Literal["other", "self"] = "other"  # self: each modality without the other (P: other)
    normalized_targets: bool = False  # standardise each patch of the pixel target (D)
    alignment_inputs: Literal["full", "masked"] = "full"  # what ITC and ITM read (D)
    exclude_duplicates: bool = True  # pairs of the same image or caption are not ITC/ITM negatives of each other (D)
    contrastive: Literal["softmax", "sigmoid"] = "softmax"  # ITC's loss: sigmoid as in SigLIP, with scale and bias (D)
    # how ITC's features travel between ranks: in large blocks, or from neighbour to neighbour, which is slower but
    # needs no more memory with more ranks (D)
    itc_exchange: Literal["blocks", "ring"] = "blocks"
    itm_group: int = 64  # positions that share ITM negatives: the largest divisor of the batch up to this (D)
    itm_negatives: Literal["hard", "uniform"] = "hard"  # sampled by similarity, or uniformly (D)

    def group(self, pairs: int) -> int:
        """The size of ITM's groups in a global batch of so many pairs: its largest divisor up to `itm_group`."""
        return next(size for size in range(min(self.itm_group, pairs), 0, -1) if pairs % size == 0)

    def weight(self, loss: str) -> float:
        """The weight of a loss, by its name; a fine-tuning task's own has 1."""
        if loss == "task":
            return 1.0
        return self.extra[loss] if loss in self.extra else getattr(self, loss)

    def total(self, losses: Mapping[str, Any]) -> Any:
        """The weighted sum of numbers or tensors."""
        weights = {name: self.weight(name) for name in losses}
        return sum(loss if weights[name] == 1 else weights[name] * loss for name, loss in losses.items())


@dataclass(frozen=True)
class Task:
    name: Literal["pretrain", "retrieval", "vqa", "nlvr2", "entailment"] = "pretrain"  # what it is trained for (P)
    answer_minimum: int = 9  # vqa: an answer becomes a class if it is the majority answer to this many questions (D)

    @property
    def corpus(self) -> str:
        """The task of the shards that it reads."""
        return "caption" if self.name in OBJECTIVES_OF else self.name

    @property
    def images(self) -> int:
        """Images per sample."""
        return 2 if self.name == "nlvr2" else 1

    @property
    def is_labelled(self) -> bool:
        """Whether it chooses among classes, with a loss of its own in place of `[objectives]`."""
        return self.name not in OBJECTIVES_OF


OBJECTIVES_OF = {"pretrain": ("image", "text", "itc", "itm"), "retrieval": ("itc", "itm")}
"""By task, the objectives that may have a weight; all other tasks have a loss of their own."""


@dataclass(frozen=True)
class Optim:
    # muon: Muon for the matrices of transformer blocks, and AdamW for everything else (P: adamw)
    name: Literal["adamw", "muon"] = "adamw"
    lr: float = 3e-4  # peak learning rate of the new modules (P)
    encoder_lr: float = 1e-5  # peak learning rate of the two encoders (P)
    weight_decay: float = 0.05  # not applied to norms, biases and one-dimensional embeddings (P)
    betas: tuple[float, float] = (0.9, 0.999)  # of AdamW (R)
    eps: float = 1e-8  # of AdamW (R)
    momentum: float = 0.95  # of Muon (D)
    clip: float = 1.0  # global gradient norm to clip to; 0 = off (D)
    # after the warm-up: wsd stays at the peak, then decays; constant has no end; inverse_sqrt decays slowly (P)
    schedule: Literal["cosine", "constant", "wsd", "inverse_sqrt"] = "cosine"
    decay_steps: int = -1  # wsd: updates of the decay at the end; -1 = a tenth (D); 0 = none, for a trunk
    warmup_epochs: float = 5.0  # linear warm-up (P); ignored if warmup_steps is given
    warmup_steps: int = -1  # -1 = warmup_epochs (P)
    floor: float = 0.1  # learning rate at the end of cosine and wsd, as a share of the peak (R)
    layer_decay: float = 1.0  # factor on an encoder's rate per block, top down: 0.65 to 0.75 in BEiT and MAE (D)

    def fall(self, total: int) -> int:
        """The number of updates, of `total`, in which wsd decays: without `decay_steps` a tenth, as in MiniCPM."""
        return self.decay_steps if self.decay_steps >= 0 else round(total * 0.1)


@dataclass(frozen=True)
class Train:
    epochs: float = 50.0  # passes over data.train (R); ignored if steps or pairs are given
    steps: int = 0  # updates of the weights; 0 = given by pairs or epochs (R)
    pairs: int = 0  # pairs to be seen; 0 = given by epochs (R); ignored if steps is given
    global_batch: int = 512  # pairs per step over all ranks and accumulation (P)
    # pairs per rank and forward pass; 0 = the largest without accumulation, "auto" = the largest that fits into memory
    micro_batch: int | Literal["auto"] = 0
    deterministic: bool = False  # bit-identical runs on CUDA, at some cost in speed; a CPU gives them anyway
    time_limit: float = 0.0  # minutes after which a run saves and ends; 0 = none but SLURM's, which is detected
    spike: float = 3.0  # roll back a loss above 1 and this many times the median of the last 64; 0 = only NaN and inf
    max_skipped: int = 10  # batches that may be skipped after roll-backs before the run gives up
    # checksums of weights and moments after each update and before the next: the run rolls back if memory has changed
    checksums: bool = False
    # share of micro-batches computed once more on another rank: the run rolls back if the results differ
    audit: float = 0.0
    hang_minutes: float = 15.0  # minutes without progress after which the run names the rank at fault and ends
    # torch.compile the blocks, which takes minutes at the start; "captured": also replay the passes as CUDA graphs;
    # "auto": on a GPU, but only once a proof kept with the code has shown that compiled steps are equal and faster
    compile: bool | Literal["auto", "captured"] = "auto"
    recompute: float = 0.0  # share of the blocks that save only their input and recompute the rest in backward
    freeze: tuple[str, ...] = ()  # parts that keep their weights, such as "vision", "text.model.embeddings" (P: none)
    ema: float = 0.0  # decay of a moving average of the weights, such as 0.999, evaluated in their place; 0 = off (R)


@dataclass(frozen=True)
class Kernels:
    """Which implementation each operation uses: "auto", or one by the name that `mvlm kernels` gives it."""

    fusion: str = "auto"  # masked and matching streams in the cross encoders
    views: str = "auto"  # the original and the masked view of a modality in its encoder
    attention: str = "auto"  # of padded sequences
    linear: str = "auto"  # product and bias of a layer
    gelu_linear: str = "auto"  # GELU and the linear layer after it
    layer_norm: str = "auto"  # layer norms with nothing added before them
    residual_norm: str = "auto"  # residual addition and the layer norm after it
    packed_attention: str = "auto"  # of texts packed without padding
    patch_l1: str = "auto"  # L1 between reconstructed patches and the image
    log_sum_exps: str = "auto"  # over the similarities of a rank's pairs with all others
    contrastive: str = "auto"  # a micro-batch's share of ITC
    negatives: str = "auto"  # sampling ITM's negatives
    optimizer: str = "auto"  # AdamW


@dataclass(frozen=True)
class Checkpoint:
    every: int = 1000  # steps; the last step is always saved; 0 = only then
    keep: int = 2  # number of newest checkpoints to keep
    keep_every: int = 0  # steps; a checkpoint at each multiple of this is saved and kept for good; 0 = none
    resume: str = ""  # a checkpoint to resume from if the run folder has none of its own
    init: str = ""  # one of your runs or checkpoints, or somebody else's, of which only the weights are taken
    mirror: str = ""  # an fsspec URL, such as s3://bucket/runs/mine, that receives each checkpoint too; "" = none
    peers: int = 0  # 1 = nodes with separate run folders keep each other's files in shared memory; 0 = they do not


@dataclass(frozen=True)
class Log:
    every: int = 10  # steps between lines of metrics.jsonl
    tensorboard: bool = True  # event files in the run folder
    wandb: str = ""  # a project of Weights & Biases, or entity/project; "" = none
    mlflow: str = ""  # MLflow's tracking URI, such as http://host:5000 or a folder; "" = none
    pictures: int = 4  # images reconstructed at each evaluation, to look at; 0 = none


@dataclass(frozen=True)
class Eval:
    every: int = 0  # steps; 0 = only after the last; -1 = never here, but in a job of `mvlm evaluate --follow`
    select: str = ""  # metric, such as "eval/mean_recall", whose best checkpoint is kept too; "" = none
    select_lower: bool = False  # lower values of that metric are better
    patience: int = 0  # the run ends after this many evaluations in a row without improvement; 0 = never
    foils: tuple[str, ...] = ()  # shards of foils, evaluated alongside data.eval
    classes: str = ""  # folder with one folder of pictures per class, classified zero-shot alongside data.eval
    batch: int = 64  # images or texts, or ITM pairs, per forward pass
    rerank: int = 128  # ITC candidates that ITM re-ranks: 256 for COCO, 128 for Flickr30k (R)
    limit: int = 0  # evaluate only the first rows; 0 = all
    memory_gb: float = 4.0  # memory limit on each rank's device besides the weights, in 1e9 bytes
    share: float = 0.1  # of the training time: an evaluation of over half a minute is postponed until it fits


@dataclass(frozen=True)
class Blueprint:
    """What a model is built from.

    Attributes:
        seed: the run's, by which ITM's negatives are chosen.
        text_length: the most tokens in a text.
    """

    model: Model
    objectives: Objectives
    task: Task
    seed: int
    text_length: int


@dataclass(frozen=True)
class Config:
    run: Run = field(default_factory=Run)
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    objectives: Objectives = field(default_factory=Objectives)
    task: Task = field(default_factory=Task)
    optim: Optim = field(default_factory=Optim)
    train: Train = field(default_factory=Train)
    kernels: Kernels = field(default_factory=Kernels)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    log: Log = field(default_factory=Log)
    eval: Eval = field(default_factory=Eval)

    @property
    def blueprint(self) -> Blueprint:
        return Blueprint(self.model, self.objectives, self.task, self.run.seed, self.data.text_length)
