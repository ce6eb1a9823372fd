"""The commands by their names, in the order of the help. One more is a function here, its parameters declared with options.py's."""

from __future__ import annotations

from collections.abc import Callable

from vitcli.cli.analysis import attn_distance, attn_rollout, filters, posemb_similarity
from vitcli.cli.bench import bench
from vitcli.cli.convert import export, resize_posemb
from vitcli.cli.data import data
from vitcli.cli.demo import demo
from vitcli.cli.evaluate import eval_
from vitcli.cli.info import info
from vitcli.cli.models import models
from vitcli.cli.predict import predict
from vitcli.cli.probe import probe
from vitcli.cli.runs import compare, runs_
from vitcli.cli.sweep import sweep
from vitcli.cli.train import finetune, pretrain
from vitcli.cli.vtab import vtab

COMMANDS: dict[str, Callable[..., None]] = {
    "pretrain": pretrain,
    "finetune": finetune,
    "eval": eval_,
    "predict": predict,
    "probe": probe,
    "sweep": sweep,
    "vtab": vtab,
    "resize-posemb": resize_posemb,
    "attn-distance": attn_distance,
    "attn-rollout": attn_rollout,
    "posemb-similarity": posemb_similarity,
    "filters": filters,
    "demo": demo,
    "models": models,
    "info": info,
    "export": export,
    "data": data,
    "runs": runs_,
    "compare": compare,
    "bench": bench,
}
