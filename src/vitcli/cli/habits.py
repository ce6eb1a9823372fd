"""What people type who come from other tools, and what it is called here.

timm's train.py and validate.py, the transformers examples, torchvision's references, `yolo classify`, lightly-train and big_vision.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from pathlib import Path

from vitcli.runs import WEIGHTS

_SAME: dict[str, tuple[str, ...]] = {
    # what stands here: what others call it, without dashes, `_` and `-` alike
    "--data DATA": ("dataset", "data-dir", "data-path", "train-dir", "train-data", "dataset-name", "train-data-dir", "root", "input", "input-dir", "images-dir", "folder"),
    "--out FOLDER": ("output", "output-dir", "save-dir", "project", "name", "run-name", "log-dir", "workdir", "exp-name", "experiment", "o"),
    "--img-size N": ("imgsz", "image-size", "input-size", "resolution", "size", "train-crop-size", "res", "img"),
    "--batch-size N": ("batch", "bs", "b", "per-device-train-batch-size", "train-batch-size", "micro-batch-size"),
    "--lr RATE": ("learning-rate", "lr0", "base-lr", "blr"),
    "--epochs E": ("epoch", "num-epochs", "num-train-epochs", "n-epochs", "max-epochs", "e"),
    "--steps S": ("max-steps", "num-steps", "iterations", "iters", "total-steps"),
    "--time-budget 10m": ("time", "max-time", "budget", "hours", "minutes"),
    "--workers N": ("num-workers", "j", "dataloader-num-workers", "threads", "cpus"),
    "--top-k K": ("topk", "top", "k"),
    "--device cuda": ("gpu", "gpus", "cuda", "use-cuda", "gpu-id"),
    "--device cpu": ("cpu", "no-cuda", "no-gpu"),
    "--precision bf16": ("amp", "fp16", "bf16", "half", "mixed-precision", "amp-dtype", "dtype", "autocast"),
    "--precision fp32": ("no-amp", "float32", "fp32"),
    "--seed N": ("random-seed", "manual-seed", "rng-seed"),
    "--freeze backbone": ("freeze-backbone", "linear-probe", "linear", "head-only", "freeze-encoder"),
    "--labels FILE|imagenet-1k": ("class-map", "class-names", "names", "label-names", "id2label"),
    "--split NAME": ("val-split", "eval-split", "subset", "set-name"),
    "--recipe NAME": ("preset", "hparams"),
    "--config FILE.toml": ("cfg", "c", "config-file", "yaml", "hyp"),
    "--json": ("format-json", "as-json", "output-json"),
    "--quiet": ("silent", "no-progress", "disable-tqdm"),
    "--force": ("overwrite", "overwrite-output-dir", "exist-ok", "y", "yes"),
    "--dry-run": ("plan", "check", "n"),
    "--resume never": ("no-resume", "restart", "from-scratch"),
    "--init CKPT": ("initial-checkpoint", "finetune-from", "load"),
    "--teacher CKPT": ("teacher-model", "teacher-path"),
    "--set optim.name=adamw": ("opt", "optimizer", "optim"),
    "--set optim.weight_decay=0.05": ("weight-decay", "wd"),
    "--set optim.momentum=0.9": ("momentum",),
    "--set optim.schedule=cosine": ("sched", "scheduler", "lr-scheduler", "lr-scheduler-type", "cos-lr"),
    "--set optim.warmup_steps=500": ("warmup", "warmup-epochs", "warmup-steps", "warmup-ratio", "lr-warmup-epochs"),
    "--set optim.layer_decay=0.65": ("layer-decay", "lr-layer-decay"),
    "--set optim.clip=1": ("clip-grad", "max-grad-norm", "grad-clip", "clip", "clip-grad-norm"),
    "--set train.label_smoothing=0.1": ("smoothing", "label-smoothing"),
    "--set augment.mixup=0.8": ("mixup", "mixup-alpha"),
    "--set augment.cutmix=1": ("cutmix", "cutmix-alpha"),
    "--set augment.randaugment_layers=2": ("aa", "auto-augment", "randaugment", "ra"),
    "--set augment.erase=0.25": ("reprob", "random-erase", "erasing"),
    "--set augment.flip=0.5": ("hflip", "fliplr"),
    "--set augment.scale=0.08,1": ("scale", "crop-scale"),
    "--set model.drop_path=0.1": ("drop-path", "drop-path-rate", "stochastic-depth"),
    "--set model.dropout=0.1": ("drop", "dropout", "drop-rate"),
    "--set model.channels=1": ("in-chans", "in-channels", "num-channels", "channels"),
    "--set model.pool=mean": ("gp", "global-pool", "pool"),
    "--set train.ema=0.999": ("ema", "model-ema", "model-ema-decay"),
    "--set train.accumulate=4": ("accumulate", "grad-accum-steps", "gradient-accumulation-steps", "accum-iter", "accum-steps"),
    "--set train.dev=0.1": ("val-ratio", "validation-split", "val-fraction", "train-val-split"),
    "--set train.log_every_steps=10": ("log-interval", "logging-steps", "print-freq", "log-every"),
    "--set train.eval_every_steps=500": ("eval-steps", "val-interval", "eval-every", "evaluation-strategy"),
    "--set train.save_every_steps=500": ("save-steps", "save-interval", "checkpoint-interval", "save-period"),
    "--set train.class_weights=balanced": ("class-weights", "balanced-weights"),
    "--set data.fraction=0.1": ("fraction", "train-fraction", "subset-fraction"),
    "--set data.balanced=true": ("balanced", "balance", "oversample"),
    "--set run.checkpointing=true": ("grad-checkpointing", "gradient-checkpointing", "use-checkpoint"),
    "--set run.compile=true": ("compile", "torchcompile", "torch-compile"),
    "--set run.deterministic=true": ("deterministic", "cudnn-deterministic"),
    "--set eval.crop=0.95": ("crop-pct", "crop"),
    "--set eval.interpolation=bicubic": ("interpolation",),
    "--set eval.mean=0.5,0.5,0.5": ("mean",),
    "--set eval.std=0.5,0.5,0.5": ("std",),
    "--set eval.views=2": ("tta", "augment", "test-time-augmentation"),
}  # fmt: skip
_ADVICE: dict[str, tuple[str, ...]] = {
    "weights that are trained already are what vit finetune starts from: vit finetune deit_tiny_patch16_224 --data DATA": ("pretrained", "use-pretrained"),
    "the checkpoint stands without an option: vit {command} CKPT": ("checkpoint", "ckpt", "weights", "model-path", "checkpoint-path", "model-name-or-path", "load-from", "source-weights"),
    "classes come from the data; leave it out": ("num-classes", "nc", "n-classes", "num-labels"),
    "stopping early is not there; the length is --epochs E, --steps S or --time-budget 10m": ("patience", "early-stopping", "early-stop"),
    "the images stand without an option: vit predict CKPT IMAGE…": ("source", "image", "images", "img-path", "file", "files"),
    "vit pretrain or vit finetune trains, vit eval measures, vit predict names": ("do-train", "do-eval", "do-predict", "mode", "task"),
    "with torchrun; a GPU is found by itself, or say --device cuda": ("distributed", "local-rank", "world-size", "dist-url"),
}  # fmt: skip

COMMANDS: dict[str, tuple[str, ...]] = {
    # what is typed here: what others call it
    "vit pretrain --data DATA, from random weights, or vit finetune CKPT --data DATA, from trained ones,": ("train", "fit", "trainer", "training", "classify", "learn"),
    "vit finetune CKPT --data DATA": ("tune", "fine-tune", "fine_tune", "transfer", "retrain", "ft"),
    "vit eval CKPT --data DATA": ("val", "validate", "validation", "test", "evaluate", "evaluation", "score", "measure"),
    "vit predict CKPT IMAGE…": ("infer", "inference", "detect", "recognise", "recognize", "label", "run"),
    "vit probe CKPT --data DATA": ("linear-probe", "linear", "knn", "embed", "features", "fewshot"),
    "vit bench MODEL": ("benchmark", "speed", "profile", "throughput"),
    "vit export CKPT OUT --format onnx": ("convert", "onnx", "save", "push"),
    "vit info CKPT": ("show", "summary", "describe", "inspect", "params", "model"),
    "vit attn-rollout CKPT IMAGE… --out DIR": ("attention", "attn", "visualize", "visualise", "explain", "gradcam", "rollout"),
    "vit demo CKPT": ("serve", "gradio", "app", "ui", "web", "webui", "gui", "launch"),
    "vit data DATA": ("dataset", "datasets", "stats", "check"),
    "vit runs": ("ls", "list", "status", "history", "log", "logs"),
    "vit models": ("list-models", "list_models", "zoo", "hub", "download", "search"),
    "vit sweep CKPT --grid optim.lr=1e-4,1e-3": ("tune-lr", "grid", "hpo", "search-lr"),
    "vit resize-posemb CKPT OUT --img-size N": ("resize", "interpolate", "resize-pos-embed"),
    "the same command as before, which goes on where it stopped,": ("resume", "continue"),
    "vit --help": ("help", "usage", "man", "?"),
    "vit --version": ("version",),
}  # fmt: skip


def _plain(name: str) -> str:
    return name.lstrip("-").partition("=")[0].lower().replace("_", "-")


def of_option(typed: str, command: str, known: list[str]) -> str:
    """What an option that `command` does not have is called here; empty where nobody calls anything so."""
    name = _plain(typed)
    of_own = next((option for option in known if option.startswith("--") and _plain(option) == name), "")
    if of_own:
        return f"with two dashes, and - for _: {of_own}"
    for here, others in _SAME.items():
        if name in others or name == _plain(here.partition(" ")[0]):
            option, is_set = here.partition(" ")[0], here.startswith("--set ")
            if option in known or (is_set and "--set" in known):
                return f"that is {here} here"
    if name == "model" and command.endswith("finetune"):
        return "the weights to start from stand without an option: vit finetune NAME --data DATA"
    for advice, others in _ADVICE.items():
        if name in others or (name == "model" and "CKPT" in advice):
            return advice.format(command=command.rpartition(" ")[2])
    for here, others in _SAME.items():
        if name in others or name == _plain(here.partition(" ")[0]):
            return f"{here} is an option of other commands, not of {command}; see {command} --help"
    return ""


def of_command(typed: str) -> str:
    """What a command that there is not is called here; empty where nobody calls anything so."""
    return next(
        (f"{here.rstrip(',')} is what does that here" for here, others in COMMANDS.items() if typed.lower() in others),
        "",
    )


def of_blank(arguments: list[str]) -> str:
    """Neighbouring arguments that are the name of a file or folder with blanks in it, typed without quotes; empty where there are none."""
    for start in range(len(arguments)):
        for end in range(start + 2, min(start + 9, len(arguments) + 1)):
            name = " ".join(arguments[start:end])
            with contextlib.suppress(OSError, ValueError):
                if not name.startswith("-") and Path(name).exists():
                    return f"a name with blanks stands in quotes: {shlex.quote(name)}"
    return ""


def of_extra(word: str, command: str, known: list[str], first: str = "") -> str:
    """What an argument that a command does not take was meant to be; empty where nothing tells. `first` is the argument that it took."""
    if first != word and (Path(word).suffix in (".safetensors", ".pth", ".npz") or Path(word, WEIGHTS).is_file()):
        return f"the checkpoint comes first, and data follow --data: {command} {word} --data {first}"
    assigned = re.fullmatch(r"([a-z][\w.-]*)=(.+)", word, re.IGNORECASE)
    if assigned and "." in assigned[1]:
        return f"configuration values follow --set: {command} --set {word}"
    if assigned:
        option = "--" + _plain(assigned[1])
        if option in known:
            return f"options have two dashes: {command} {option} {assigned[2]}"
        return of_option(option, command, known)
    if "--data" in known and word in (
        "cifar10",
        "cifar100",
        "pets",
        "flowers",
        "mnist",
        "fashion-mnist",
        "digits",
        "imagenet",
        "imagenette",
    ):
        return f"data follow --data: {command} --data {word}"
    if "--data" in known and Path(word).exists():
        return f"data follow --data, and a configuration file --config: {command} --data {word}"
    return ""


def of_value(option: str, value: str) -> str:
    """What a value of --device or --precision was meant to be; empty where nothing tells."""
    text = value.lower()
    if option == "--device" and (text in ("gpu", "cuda:0", "nvidia", "auto-gpu") or text.replace(",", "").isdigit()):
        return "that is --device cuda here; CUDA_VISIBLE_DEVICES chooses the card"
    if option == "--precision" and text in (
        "fp16",
        "16",
        "half",
        "float16",
        "amp",
        "mixed",
        "bfloat16",
        "16-mixed",
        "bf16-mixed",
    ):
        return "that is --precision bf16 here"
    if option == "--precision" and text in ("float32", "32", "full", "single"):
        return "that is --precision fp32 here"
    return ""
