"""Write src/vitcli/tables/models.tsv: the trained weights of the hub that vit reads, from timm's registry and its published results.

python docs/models.py RESULTS.csv     (results/results-imagenet.csv of huggingface/pytorch-image-models)

A model is built by timm without values, written as a file of its keys and shapes beside the config.json of its kind, and described by vit:
what vit does not read, or counts other parameters of, is left out. Needs the development extras.
"""

from __future__ import annotations

import csv
import json
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import torchvision_shim

torchvision_shim.import_torchvision()

import timm  # noqa: E402
import torch  # noqa: E402
from timm.models import get_pretrained_cfg  # noqa: E402

from vitcli.config_values import keys  # noqa: E402
from vitcli.errors import VitError  # noqa: E402
from vitcli.families.pretrained import other_family  # noqa: E402
from vitcli.families.table import FAMILIES, model_config  # noqa: E402
from vitcli.weights.describe import describe  # noqa: E402

PAGE = Path(__file__).parents[1] / "src" / "vitcli" / "tables" / "models.tsv"
PATTERNS = ("vit_*", "deit*", "flexivit_*", "eva*", "beit*", "aimv2*", "resnetv2_*_bit*")

TRANSFORMERS = {
    # hub id: timm's name of the same architecture, outputs, published top-1 of ImageNet (DeiT: facebookresearch/deit README)
    "google/vit-base-patch16-224": ("vit_base_patch16_224", 1000, None),
    "google/vit-base-patch16-384": ("vit_base_patch16_384", 1000, None),
    "google/vit-base-patch32-384": ("vit_base_patch32_384", 1000, None),
    "google/vit-large-patch16-224": ("vit_large_patch16_224", 1000, None),
    "google/vit-large-patch16-384": ("vit_large_patch16_384", 1000, None),
    "google/vit-large-patch32-384": ("vit_large_patch32_384", 1000, None),
    "google/vit-base-patch16-224-in21k": ("vit_base_patch16_224", 0, None),
    "google/vit-base-patch32-224-in21k": ("vit_base_patch32_224", 0, None),
    "google/vit-large-patch16-224-in21k": ("vit_large_patch16_224", 0, None),
    "google/vit-large-patch32-224-in21k": ("vit_large_patch32_224", 0, None),
    "google/vit-huge-patch14-224-in21k": ("vit_huge_patch14_224", 0, None),
    "facebook/deit-tiny-patch16-224": ("deit_tiny_patch16_224", 1000, 0.722),
    "facebook/deit-small-patch16-224": ("deit_small_patch16_224", 1000, 0.799),
    "facebook/deit-base-patch16-224": ("deit_base_patch16_224", 1000, 0.818),
    "facebook/deit-base-patch16-384": ("deit_base_patch16_384", 1000, 0.829),
    "facebook/deit-tiny-distilled-patch16-224": ("deit_tiny_distilled_patch16_224", 1000, 0.745),
    "facebook/deit-small-distilled-patch16-224": ("deit_small_distilled_patch16_224", 1000, 0.812),
    "facebook/deit-base-distilled-patch16-224": ("deit_base_distilled_patch16_224", 1000, 0.834),
    "facebook/deit-base-distilled-patch16-384": ("deit_base_distilled_patch16_384", 1000, 0.852),
    "facebook/dino-vits8": ("vit_small_patch8_224.dino", 0, None),
    "facebook/dino-vits16": ("vit_small_patch16_224.dino", 0, None),
    "facebook/dino-vitb8": ("vit_base_patch8_224.dino", 0, None),
    "facebook/dino-vitb16": ("vit_base_patch16_224.dino", 0, None),
    "facebook/dinov2-small": ("vit_small_patch14_dinov2", 0, None),
    "facebook/dinov2-base": ("vit_base_patch14_dinov2", 0, None),
    "facebook/dinov2-large": ("vit_large_patch14_dinov2", 0, None),
    "facebook/dinov2-with-registers-small": ("vit_small_patch14_reg4_dinov2", 0, None),
    "facebook/dinov2-with-registers-base": ("vit_base_patch14_reg4_dinov2", 0, None),
    "facebook/dinov2-with-registers-large": ("vit_large_patch14_reg4_dinov2", 0, None),
    "facebook/vit-mae-base": ("vit_base_patch16_224.mae", 0, None),
    "facebook/vit-mae-large": ("vit_large_patch16_224.mae", 0, None),
    "facebook/vit-mae-huge": ("vit_huge_patch14_224.mae", 0, None),
    "facebook/vit-msn-small": ("vit_small_patch16_224", 0, None),
    "facebook/vit-msn-base": ("vit_base_patch16_224", 0, None),
    "facebook/vit-msn-large": ("vit_large_patch16_224", 0, None),
}  # fmt: skip

_POOLED, _CLS = {"gelu": "tanh"}, {"pool": "cls"}
TODAY: dict[str, tuple[str, int, int, dict[str, Any]]] = {
    # hub id: timm's name of the same weights, outputs, image size, what differs in transformers' file
    "openai/clip-vit-base-patch32": ("vit_base_patch32_clip_quickgelu_224.openai", 512, 224, {}),
    "openai/clip-vit-base-patch16": ("vit_base_patch16_clip_quickgelu_224.openai", 512, 224, {}),
    "openai/clip-vit-large-patch14": ("vit_large_patch14_clip_quickgelu_224.openai", 768, 224, {}),
    "openai/clip-vit-large-patch14-336": ("vit_large_patch14_clip_quickgelu_336.openai", 768, 336, {}),
    "laion/CLIP-ViT-B-32-laion2B-s34B-b79K": ("vit_base_patch32_clip_224.laion2b", 512, 224, {}),
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": ("vit_huge_patch14_clip_224.laion2b", 1024, 224, {}),
    "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k": ("vit_gigantic_patch14_clip_224.laion2b", 1280, 224, {}),
    "facebook/metaclip-b32-400m": ("vit_base_patch32_clip_quickgelu_224.metaclip_400m", 512, 224, {}),
    "facebook/metaclip-b16-fullcc2.5b": ("vit_base_patch16_clip_quickgelu_224.metaclip_2pt5b", 512, 224, {}),
    "facebook/dinov3-vits16-pretrain-lvd1689m": ("vit_small_patch16_dinov3_qkvb.lvd1689m", 0, 224, _CLS),
    "facebook/dinov3-vits16plus-pretrain-lvd1689m": ("vit_small_plus_patch16_dinov3_qkvb.lvd1689m", 0, 224, _CLS),
    "facebook/dinov3-vitb16-pretrain-lvd1689m": ("vit_base_patch16_dinov3_qkvb.lvd1689m", 0, 224, _CLS),
    "facebook/dinov3-vitl16-pretrain-lvd1689m": ("vit_large_patch16_dinov3_qkvb.lvd1689m", 0, 224, _CLS),
    "facebook/dinov3-vitl16-pretrain-sat493m": ("vit_large_patch16_dinov3_qkvb.sat493m", 0, 224, _CLS),
    "facebook/dinov3-vith16plus-pretrain-lvd1689m": ("vit_huge_plus_patch16_dinov3_qkvb.lvd1689m", 0, 224, _CLS),
    "facebook/dinov3-vit7b16-pretrain-lvd1689m": ("vit_7b_patch16_dinov3.lvd1689m", 0, 224, _CLS),
    "google/siglip-base-patch16-224": ("vit_base_patch16_siglip_224.webli", 0, 224, _POOLED),
    "google/siglip-large-patch16-256": ("vit_large_patch16_siglip_256.webli", 0, 256, _POOLED),
    "google/siglip-so400m-patch14-384": ("vit_so400m_patch14_siglip_384.webli", 0, 384, _POOLED),
    "google/siglip2-base-patch16-224": ("vit_base_patch16_siglip_224.v2_webli", 0, 224, _POOLED),
    "google/siglip2-large-patch16-256": ("vit_large_patch16_siglip_256.v2_webli", 0, 256, _POOLED),
    "google/siglip2-so400m-patch14-384": ("vit_so400m_patch14_siglip_378.v2_webli", 0, 378, _POOLED),
    "google/siglip2-base-patch16-naflex": ("vit_base_patch16_siglip_256.v2_webli", 0, 256, _POOLED),
    "facebook/dinov2-giant": ("vit_giant_patch14_dinov2.lvd142m", 0, 518, {}),
    "facebook/dinov2-with-registers-giant": ("vit_giant_patch14_reg4_dinov2.lvd142m", 0, 518, {}),
    "microsoft/beit-base-patch16-224": ("beit_base_patch16_224.in22k_ft_in22k_in1k", 1000, 224, {"norm_eps": 1e-12}),
    "microsoft/beit-large-patch16-224": ("beit_large_patch16_224.in22k_ft_in22k_in1k", 1000, 224, {"norm_eps": 1e-12}),
    "apple/aimv2-large-patch14-224": ("aimv2_large_patch14_224.apple_pt", 0, 224, {}),
    "apple/aimv2-large-patch14-336": ("aimv2_large_patch14_336.apple_pt", 0, 336, {}),
    "facebook/ijepa_vith14_1k": ("vit_huge_patch14_gap_224.in1k_ijepa", 0, 224, {"norm_eps": 1e-6}),
}  # fmt: skip


def described(name: str) -> Any | None:
    """vit's description of timm's model; None where it reads none, or another."""
    architecture, config = name.partition(".")[0], get_pretrained_cfg(name)
    with torch.device("meta"):
        model = timm.create_model(architecture, pretrained=False, num_classes=config.num_classes, pretrained_cfg=config)
    header: dict[str, Any] = {}
    end = 0
    for key, tensor in model.state_dict().items():
        header[key] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [end, end + 4 * tensor.numel()]}
        end += 4 * tensor.numel()
    blob = json.dumps(header).encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.safetensors")
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(blob)) + blob)
            file.truncate(8 + len(blob) + end)
        said = {key: value for key, value in config.to_dict().items() if value is not None}
        beside = {"architecture": architecture, "num_classes": config.num_classes, "pretrained_cfg": said}
        Path(folder, "config.json").write_text(json.dumps(beside, default=str), encoding="utf-8")
        try:
            found = describe(path)
        except VitError as error:
            print(f"{name}: {error.message}", file=sys.stderr)
            return None
    counted = sum(p.numel() for p in model.parameters())
    if found.model.cost().parameters != counted:
        print(f"{name}: {counted:,} parameters, not {found.model.cost().parameters:,}", file=sys.stderr)
        return None
    return found


def fields_of(model: Any) -> dict[str, Any]:
    """What an architecture has beyond its name."""
    plain = model_config(model.name)
    own = {name for name, about in keys(type(model)) if about.fixed} - {"name", "family", "classes"}
    return {name: getattr(model, name) for name in sorted(own) if getattr(model, name) != getattr(plain, name)}


def main(results: str) -> None:
    with Path(results).open(encoding="utf-8") as file:
        scores = {row["model"]: float(row["top1"]) / 100 for row in csv.DictReader(file)}
    known = sorted({name for pattern in PATTERNS for name in timm.list_models(pattern, pretrained=True)})
    known.sort(key=lambda n: (n.partition(".")[0], get_pretrained_cfg(n.partition(".")[0]).tag != n.partition(".")[2]))
    lines, models = [], {}
    for name in known:
        config = get_pretrained_cfg(name)
        if other_family(f"timm/{name}") or config.hf_hub_id not in ("timm/", f"timm/{name}"):
            continue
        found = described(name)
        if found is None:
            continue
        size = config.input_size[-1]
        models[name] = models[name.partition(".")[0]] = (found.model, size)
        row = (f"timm/{name}", found.model.name, json.dumps(fields_of(found.model), sort_keys=True), found.model.cost().parameters,
               size, found.model.classes, f"{scores[name]:.4f}" if name in scores else "", config.license or "")  # fmt: skip
        lines.append("\t".join(map(str, row)))
    for name, (like, classes, top1) in TRANSFORMERS.items():
        model, size = models[like]
        model = type(model)(**{**vars(model), "classes": classes})
        row = (name, model.name, json.dumps(fields_of(model), sort_keys=True), model.cost().parameters, size, classes,
               top1 or "", "apache-2.0")  # fmt: skip
        lines.append("\t".join(map(str, row)))
    for name, (like, classes, size, changes) in TODAY.items():
        found = models[like][0] if like in models else described(like).model
        model = type(found)(**{**vars(found), **changes, "classes": classes, "img_size": (size, size)})
        row = (name, model.name, json.dumps(fields_of(model), sort_keys=True), model.cost().parameters, size, classes, "",
               get_pretrained_cfg(like).license or "")  # fmt: skip
        lines.append("\t".join(map(str, row)))
    head = "# hub id, model, what it has beyond that name, parameters, image size, outputs, top-1 on ImageNet where published, licence"
    PAGE.write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
    print(f"{len(lines)} models of {', '.join(FAMILIES)}")


if __name__ == "__main__":
    main(sys.argv[1])
