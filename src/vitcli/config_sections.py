"""The sections of a configuration, a line a key: its default, what it is, its bounds (config_values.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vitcli.config_values import MOST_CHANNELS, Range, Seconds, Stats, key

_MOST_THREADS = 1024
"""More than any machine's cores; the system would give no more, or the process would die of them."""
_MOST_PIXEL = 1e4
"""Bound of means and deviations; those of pixels in 0..255 lie within it."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    source: str = key("digits", "DATA: a preset, a hub id, a folder or a file (`--data`)")
    revision: str = key("", "of a hub id: a branch, tag or commit")
    train_split: str = key("", "the split to train on; empty: the one named train")
    image_column: str = key("", "empty: the one column of images")
    label_column: str = key("", "empty: the one column of class labels")
    unlabelled: str = key("", "further DATA for training, whose labels a teacher gives (`--unlabelled`)")
    fraction: float = key(
        1.0,
        "part of the training images that is used, the same of every class; smaller parts lie within larger ones",
        above=0,
        most=1,
    )
    stream: bool = key(
        False,
        "train on Parquet files where they are, local or at an address, in an order that needs no copy on this machine's disk",
    )
    retries: int = key(
        5, "of a read of a stream that fails, after 0.5 s, 1 s, 2 s …", least=0, most=100, compared=False
    )
    balanced: bool = key(False, "draw every class equally often")
    workers: int | None = key(
        None,
        "threads that decode images; empty: as many as prove fastest; 0: nothing is read ahead",
        least=0,
        most=_MOST_THREADS,
        compared=False,
    )
    memory_mb: int = key(512, "bound on the memory of batches that wait, in megabytes", above=0, compared=False)
    on_bad_image: Literal["error", "skip"] = key(
        "error", "an image that cannot be read ends the command, or is left out and counted"
    )
    max_megapixels: float = key(89.0, "the largest image that is decoded, in millions of pixels", above=0)
    images: int = key(0, "number of training images; only with `none`", least=0, most=10**12)
    classes: int = key(0, "number of classes; only with `none`", least=0, most=10**6)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    crop: Literal["none", "pad", "random", "resized"] = key(
        "resized",
        "`resized` is the random resized crop (Inception's), `random` a crop of the size from an image larger by `margin`, `pad` a "
        "shift by up to `pad` of the side with reflected borders, `none` the whole image",
    )
    scale: Range = key((0.08, 1.0), "area of a resized crop, part of the image", above=0, most=1)
    ratio: Range = key((3 / 4, 4 / 3), "width over height of a resized crop", above=0)
    margin: float = key(8 / 7, "side of the image that `random` crops from, over the crop's", least=1, most=10)
    pad: float = key(0.125, "the largest shift of `pad`, part of the side", least=0, most=1)
    ramp: float = key(
        0.0, "epochs in which crop and shift grow from none to these values; 0: full from the start", least=0
    )
    flip: float = key(0.5, "probability of mirroring an image", least=0, most=1)
    jitter: tuple[float, float, float, float] = key(
        (0.0, 0.0, 0.0, 0.0),
        "strength of random brightness, contrast, saturation and hue, in this order; 0.4 is a factor of 0.6 to 1.4, of the hue "
        "a shift by up to 0.4 of a turn",
        least=0,
        most=1,
    )
    jitter_p: float = key(1.0, "probability of this jitter", least=0, most=1)
    gray: float = key(0.0, "probability of removing an image's colours", least=0, most=1)
    blur: float = key(0.0, "probability of a Gaussian blur by 0.1 to 2 pixels of a 224-pixel image", least=0, most=1)
    solarize: float = key(0.0, "probability of inverting the bright half of the values", least=0, most=1)
    three: bool = key(
        False, "DeiT-III's augmentation: each image loses its colours or is solarized or blurred, before the jitter"
    )
    randaugment_layers: int = key(0, "operations of RandAugment on each image; 0 is off", least=0, most=100)
    randaugment_magnitude: float = key(10.0, "their strength, 10 is the paper's scale", least=0)
    mixup: float = key(0.0, "alpha of the Beta distribution by which two images are mixed; 0 is off", least=0)
    cutmix: float = key(0.0, "the same for the area of a box that comes from another image; 0 is off", least=0)
    erase: float = key(0.0, "probability of erasing a box of an image", least=0, most=1)
    views: int = key(1, "augmented copies of an image in a batch", above=0)
    repeats: int = key(
        1,
        "times that an image comes in a row, augmented anew: an epoch then has as many images, fewer of them different",
        least=1,
        most=1000,
    )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    objective: str = key("classify", "what is learned (`--objective`)")
    teacher: str = key("", "the checkpoint that a run learns from (`--teacher`)")
    teacher_digest: str = key("", "sha256 of the teacher's file", settable=False)
    batch_size: int = key(128, "images of one update, over all micro-batches", above=0)
    accumulate: int = key(1, "micro-batches of one update: less memory, the same result", above=0, compared=False)
    epochs: float | None = key(None, "length in passes over the data", above=0, most=1e9)
    steps: int | None = key(None, "length in updates", above=0, most=1e12)
    time_budget: Seconds | None = key(None, "length in wall time from start to exit", above=0, most=1e9)
    loss: Literal["softmax", "sigmoid", "bce"] = key(
        "softmax",
        "cross-entropy over the classes, or of each class by itself: their sum, or with bce their mean, in which both labels of "
        "a mixed image count in full",
    )
    label_smoothing: float = key(
        0.0,
        "part of a label that is spread over all classes",
        least=0,
        below=1,
        why="nothing of the labels would be left",
    )
    class_weights: str = key(
        "",
        "how much a class counts in the loss: `balanced`, one over its images, or a file of a class, a tab and a number a line",
    )
    head_bias: float = key(0.0, "the new head's bias; -10 and -6.9 are big_vision's for sigmoid losses")
    init: Literal["paper", "mimetic"] = key(
        "paper", "random weights: the paper's code's, or attention that begins like trained attention"
    )
    head: Literal["zero", "linear"] = key(
        "zero", "a new head starts at zero, or as a linear probe of the frozen features"
    )
    low_res: float = key(
        0.0,
        "part of the run, from its start, that trains on smaller images: half the size, then 3/4",
        least=0,
        most=1,
    )
    dev: float = key(
        0.0,
        "part of the training images kept back to choose by, at most 2,000",
        least=0,
        below=1,
        why="no image is left to train on",
    )
    keep: Literal["auto", "finetuned", "average", "probe"] = key(
        "auto", "final weights of a run whose head began as a probe; auto: chosen by the dev part"
    )
    report_on: Literal["held-out", "dev"] = key("held-out", "the images that the run's own scores are of")
    freeze: Literal["", "backbone"] = key("", "`backbone` trains the head alone (`--freeze`)")
    tune: str = key(
        "all",
        "which weights of a trained network are trained: all; head, as `--freeze backbone`; bias, every bias and the head; proj, the "
        "output projections of attention and the head; last:K, the last K blocks, the norm after them and the head",
    )
    ema: float = key(
        0.0,
        "decay of the weights' moving average; 0 is off",
        least=0,
        below=1,
        why="the average would stay at the random weights",
    )
    monitor: int = key(
        10,
        "times that a run without labels looks at its embeddings: rank, spread, and what a probe makes of training images; 0: never",
        least=0,
        most=10**4,
        compared=False,
    )
    save_every_steps: int = key(0, "updates between saved steps; 0: by time alone", least=0, compared=False)
    save_every_seconds: float = key(60.0, "time between saved steps; 0: by updates alone", least=0, compared=False)
    log_every_steps: int = key(10, "updates between lines of metrics.jsonl", above=0, compared=False)
    eval_every_steps: int = key(0, "updates between evaluations; 0: by time alone", least=0, compared=False)
    eval_every_seconds: float = key(
        30.0,
        "least time between evaluations on the held-out images while a run goes on, which choose nothing and take at most a twentieth "
        "of the time; 0: by updates alone",
        least=0,
        compared=False,
    )
    keep_state: bool = key(False, "a finished run keeps its last saved steps", compared=False)

    @property
    def tuned(self) -> str:
        """`tune`, whichever way it was said."""
        return "head" if self.freeze == "backbone" else self.tune


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    name: Literal["adamw", "lamb", "sgd", "muon"] = key(
        "adamw", "lamb has the weights' own length for steps; muon takes the matrices of the blocks, AdamW the rest"
    )
    lr: float = key(1e-3, "of AdamW, LAMB or SGD; with Muon, of what is not a matrix in a block", above=0)
    muon_lr: float = key(0.02, "learning rate of Muon", least=0)
    objective_lr: float | None = key(
        None, "of what an objective owns beside the model, such as a decoder; empty: lr", above=0
    )
    weight_decay: float = key(0.0, "decoupled, times the learning rate; on matrices only", least=0)
    betas: Range = key(
        (0.9, 0.999), "of AdamW and LAMB: how much of its two averages stays at an update", least=0, below=1
    )
    momentum: float = key(0.9, "of SGD", least=0, below=1)
    muon_momentum: float = key(0.95, "of Muon", least=0, below=1)
    schedule: Literal["cosine", "linear", "step", "constant"] = key("cosine", "how the learning rate falls")
    milestones: tuple[float, ...] = key(
        (0.3, 0.6, 0.9), "of `step`: parts of the run after which lr is a tenth", least=0, most=1, longest=100
    )
    final_lr: float = key(0.0, "part of lr at which `cosine` and `linear` end", least=0, most=1)
    warmup_steps: int = key(0, "updates in which the learning rate grows to lr", least=0)
    warmup: float = key(0.0, "warm-up as a part of the run, where warmup_steps is 0", least=0, most=1)
    layer_decay: float = key(1.0, "factor of the learning rate from each layer to the one below", least=0, most=1)
    clip: float = key(0.0, "largest norm of the whole gradient; 0 is off", least=0)


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    batch_size: int = key(0, "images at a time; 0: a number that suits the device", least=0, compared=False)
    crop: float = key(1.0, "the centre that is kept after resizing, part of the side", least=1e-3, most=1)
    resize: Literal["short", "square"] = key("short", "the short side to the size, or the whole image squashed to it")
    interpolation: Literal["bilinear", "bicubic"] = key("bicubic", "how images are resized")
    mean: Stats = key(
        (0.5, 0.5, 0.5),
        "subtracted from red, green and blue in 0..1; of images of other channels a number for each, 0.5 where none is said",
        least=-_MOST_PIXEL,
        most=_MOST_PIXEL,
        longest=MOST_CHANNELS,
    )
    std: Stats = key(
        (0.5, 0.5, 0.5), "by which they are divided then", least=1e-4, most=_MOST_PIXEL, longest=MOST_CHANNELS
    )
    top_k: int = key(5, "classes that predictions name", least=1)
    views: int = key(1, "2 adds the mirrored image", least=1, most=2)
    scores: Literal["softmax", "sigmoid"] = key(
        "softmax", "what a score is: of one class among all, or of each by itself, where labels are sets"
    )
    temperature: float = key(
        1.0,
        "by which logits are divided: what makes scores as sure as they are right (`vit eval --calibrate`)",
        least=0.01,
        most=100,
    )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    command: Literal["pretrain", "finetune"] = key("pretrain", "what made the run", settable=False)
    recipe: str = key("small", "what decides all that is not asked for (`--recipe`)")
    init: str = key("", "the checkpoint that finetune starts from", settable=False)
    labels: str = key("", "names for the classes of a checkpoint that has none (`--labels`)")
    seed: int = key(0, "of weights, order and augmentation (`--seed`)", least=0, most=2**63 - 1)
    device: Literal["auto", "cpu", "cuda", "mps"] = key("auto", "where to compute (`--device`)", compared=False)
    precision: Literal["auto", "fp32", "tf32", "bf16"] = key(
        "auto", "fp32 is exact; tf32 is CUDA's; auto: bf16 or fp32 (`--precision`)"
    )
    threads: int = key(0, "0: as many as there are cores", least=0, most=_MOST_THREADS, compared=False)
    attention: Literal["auto", "plain", "recompute", "fused"] = key("auto", "`recompute` needs the least memory")
    checkpointing: bool = key(
        False,
        "keep a block's input alone for the backward pass and compute the block again: a third slower, less memory, the same result",
        compared=False,
    )
    compile: bool | None = key(
        None,
        "torch.compile: half a minute or more at the start, and no faster on the CPUs measured; empty: on a GPU, where the run is long "
        "enough for it to pay",
        compared=False,
    )
    replay: bool | None = key(
        None,
        "an update as one CUDA graph; empty: on a GPU, where launching its operations takes longer than half of it",
        compared=False,
    )
    deterministic: bool = key(
        False, "on a GPU, equal commands give equal bits: slower kernels, and nothing is chosen by a clock"
    )


@dataclass(frozen=True, kw_only=True)
class ScaleConfig:
    """Several devices: how they train together, and the estimate of `--dry-run` for them (train/estimate.py)."""

    shard: bool = key(
        False,
        "each process keeps a part of weights, gradients and moments (FSDP2), where there are several; the result is the same",
        compared=False,
    )
    bench: str = key(
        "",
        "file that `vit bench … --json` printed on the device meant: `--dry-run` estimates time by it",
        compared=False,
    )
    devices: int = key(1, "devices of that kind, for the estimate", least=1, most=10**6, compared=False)
    price: float = key(
        0.0,
        "of a device for an hour, in any currency, for the estimate; 0: not said",
        least=0,
        most=1e9,
        compared=False,
    )


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What `vit bench` measures; no part of a run."""

    modes: tuple[Literal["train", "infer"], ...] = key(("train", "infer"), "train, infer or both")
    seconds: float = key(10.0, "of measurement for each model and mode, after warming up", above=0)


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """How `vit probe` fits; no part of a run."""

    images: int = key(20_000, "most training images that it fits on; a larger set is thinned class by class", least=2)
    balanced: bool = key(False, "every class weighs the same, however many images it has, of method linear")
    solver: Literal["auto", "closed", "softmax"] = key(
        "auto",
        "of method linear: a linear discriminant in closed form, softmax regression by steps, or the better of both by "
        "cross-validation",
    )
    shots: tuple[int, ...] = key((1, 5, 10, 25), "training images of a class, of method fewshot", least=1, longest=100)
    l2: float = key(1024.0, "penalty of method fewshot; the paper names none, this is big_vision's", above=0)
    k: tuple[int, ...] = key((20,), "neighbours that vote, of method knn", least=1, longest=100)
    weights: Literal["softmax", "uniform", "distance"] = key(
        "softmax", "what a neighbour's vote counts, of method knn: exp(cosine / 0.07), one, or 1 / (1 - cosine)"
    )
    patches: bool = key(False, "`--features` holds a row of features for each patch as well")
    cache: bool = key(True, "features are kept on disk for the next probe of the same images and weights")


@dataclass(frozen=True, kw_only=True)
class AnalysisConfig:
    """How vit looks inside a model; no part of a run."""

    images: int = key(
        128, "of the data, for attention distance, every class its share; image files are all taken", least=1
    )
    include_prefix: bool = key(
        False, "class token, distillation token and registers count, at distance 0 from everything"
    )
    renormalise: bool = key(True, "what is left of a row of attention without these tokens sums to one again")
    discard: float = key(
        0.0, "part of a layer's attention weights, the smallest, that rollout leaves out", least=0, below=1
    )
    per_layer: bool = key(False, "rollout up to each layer as well")
    components: int = key(28, "principal components that vit filters shows", least=1)
