"""Arrays as Google's repositories write them, made by hand."""

from __future__ import annotations

import numpy as np


def google_arrays(linen: bool, pre_logits: bool, class_token: bool = True) -> dict[str, np.ndarray]:
    """A file as google-research/vision_transformer or, with Linen's names, big_vision writes it: D 12, 3 heads, 2 blocks."""
    random = np.random.default_rng(0)

    def array(*shape: int) -> np.ndarray:
        return random.normal(0, 0.3, shape).astype(np.float32)

    norm2, attention, mlp = (
        ("LayerNorm_1", "MultiHeadDotProductAttention_0", "MlpBlock_0")
        if linen
        else ("LayerNorm_2", "MultiHeadDotProductAttention_1", "MlpBlock_3")
    )
    rows = 6 + (class_token and not linen)
    arrays = {
        "embedding/kernel": array(4, 4, 3, 12),
        "embedding/bias": array(12),
        "pos_embedding" if linen else "Transformer/posembed_input/pos_embedding": array(1, rows, 12),
        "Transformer/encoder_norm/scale": array(12),
        "Transformer/encoder_norm/bias": array(12),
        "head/kernel": array(12, 5),
        "head/bias": array(5),
    }
    if class_token:
        arrays["cls"] = array(1, 1, 12)
    if pre_logits:
        arrays |= {"pre_logits/kernel": array(12, 12), "pre_logits/bias": array(12)}
    for i in range(2):
        block = f"Transformer/encoderblock_{i}/"
        for norm in ("LayerNorm_0", norm2):
            arrays |= {f"{block}{norm}/scale": array(12), f"{block}{norm}/bias": array(12)}
        for name in ("query", "key", "value"):
            arrays |= {
                f"{block}{attention}/{name}/kernel": array(12, 3, 4),
                f"{block}{attention}/{name}/bias": array(3, 4),
            }
        arrays |= {f"{block}{attention}/out/kernel": array(3, 4, 12), f"{block}{attention}/out/bias": array(12)}
        arrays |= {f"{block}{mlp}/Dense_0/kernel": array(12, 20), f"{block}{mlp}/Dense_0/bias": array(20)}
        arrays |= {f"{block}{mlp}/Dense_1/kernel": array(20, 12), f"{block}{mlp}/Dense_1/bias": array(12)}
    return arrays
