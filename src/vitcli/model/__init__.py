"""The Vision Transformer in plain torch."""
