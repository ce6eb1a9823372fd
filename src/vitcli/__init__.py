"""vit: the Vision Transformer of *An Image is Worth 16x16 Words* as a command line.

`vitcli.api` is the Python door; the `vit` command is `vitcli.cli.app`.
Importing this package imports neither torch nor datasets.
"""

__version__ = "0.1.0"
