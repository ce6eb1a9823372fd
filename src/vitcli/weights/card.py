"""What goes to the hub beside weights: a model card, and a header that tells nothing of this machine."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from vitcli.runs import WEIGHTS
from vitcli.text import as_json, markdown
from vitcli.weights.describe import Description

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_USES = {
    "timm": """import timm

model = timm.create_model("hf-hub:{name}", pretrained=True)""",
    "transformers": """from transformers import AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained("{name}")""",
}
_TOOLS = {"timm": ("timm", "transformers"), "transformers": ("transformers",), "onnx": ()}
"""What loads a format from the hub; timm's by way of timm in transformers, too."""


def card(description: Description, form: str, repository: str) -> str:
    """README.md: the hub's front matter, what the model is and was trained on, its scores, how to use it."""
    model, data = description.model, description.provenance.get("data") or {}
    trained_on = public(str(data.get("id", "")))
    about = (
        f"A {markdown(model.kind)}, {markdown(model.name)}, for images of {model.img_size[0]} x {model.img_size[1]} px"
    )
    about += f" and {model.classes:,} classes" + (f", trained on {markdown(trained_on)}." if trained_on else ".")
    scores = description.scores
    said = {"top1": "top-1", "top5": "top-5", "loss": "loss (nats)", "ece": "calibration error"}
    rows = [f"| {said[k]} | {scores[k]:.4g} |" for k in said if isinstance(scores.get(k), int | float)]
    measured = [
        "",
        f"On {scores.get('n', 0):,} images of `{scores.get('split', '')}`:",
        "",
        "| | |",
        "|---|---|",
        *rows,
    ]
    uses = [f"```bash\nvit predict {repository} photo.jpg\n```"] if form != "onnx" else []
    uses += [f"```python\n{_USES[tool].format(name=repository)}\n```" for tool in _TOOLS[form]]
    parts = [f"---\n{_front_matter(description, form, trained_on)}\n---", "", f"# {markdown(repository)}", "", about]
    parts += [*(measured if rows else []), "", *(["## Use", ""] if uses else []), "\n\n".join(uses)]
    return "\n".join(parts).rstrip() + "\n"


def _front_matter(description: Description, form: str, trained_on: str) -> str:
    """As the hub reads it. A licence is not known, so none is said."""
    from huggingface_hub import EvalResult, ModelCardData

    scores = description.scores
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=trained_on or "unknown",
            dataset_name=trained_on or "unknown",
            dataset_split=str(scores.get("split", "")),
            metric_type=kind,
            metric_value=scores[name],
            metric_name=said,
        )
        for name, kind, said in (("top1", "accuracy", "top-1"), ("top5", "top-5-accuracy", "top-5"))
        if isinstance(scores.get(name), int | float)
    ]
    data = ModelCardData(
        library_name=form,
        pipeline_tag="image-classification",
        tags=["image-classification", description.model.kind.lower().replace(" ", "-"), "vit"],
        datasets=[trained_on] if _HUB_ID.fullmatch(trained_on) else None,
        metrics=["accuracy"] if results else None,
        model_name=description.model.name,
        eval_results=results or None,
    )
    return data.to_yaml().strip()


def public(value: Any) -> Any:
    """A value of a checkpoint's provenance without this machine's folders: a path is its last name. Names of the hub and of presets stay."""
    if isinstance(value, dict):
        return {key: public(item) for key, item in value.items()}
    if isinstance(value, list):
        return [public(item) for item in value]
    return re.split(r"[/\\]", value.rstrip("/\\"))[-1] if isinstance(value, str) and _is_local(value) else value


def _is_local(text: str) -> bool:
    """Whether a text is a path: absolute, relative with dots, deeper than user/name, or there."""
    if "://" in text or not re.search(r"[/\\]", text):
        return False
    bare = re.split("[@:]", text)[0]
    return not _HUB_ID.fullmatch(bare) or bare.startswith(".") or Path(text).exists()


def stage(out: Path, place: Path, text: str) -> None:
    """What is pushed of an export, into an empty folder: what vit wrote there and nothing else, and the card."""
    if out.is_dir():
        for name in ("config.json", "preprocessor_config.json"):
            if (out / name).exists():
                shutil.copyfile(out / name, place / name)
        _copy_weights(out / WEIGHTS, place / WEIGHTS)
    else:
        for path in (out, out.with_name("model.onnx.data")):
            if path.exists():
                shutil.copyfile(path, place / path.name)
    (place / "README.md").write_text(text, encoding="utf-8")


def _copy_weights(path: Path, copy: Path) -> None:
    """A safetensors file with a public header; the digest in it is of the tensors, and stays true."""
    with path.open("rb") as source, copy.open("wb") as target:
        tree = json.loads(source.read(int.from_bytes(source.read(8), "little")))
        said = tree.get("__metadata__", {})
        if "vit" in said:
            document = json.loads(said["vit"])
            said["vit"] = as_json(document | {"provenance": public(document.get("provenance", {}))})
        head = as_json(tree).encode()
        head += b" " * (-len(head) % 8)
        target.write(len(head).to_bytes(8, "little") + head)
        shutil.copyfileobj(source, target)
