"""The `vit` command: parses, calls, prints."""
