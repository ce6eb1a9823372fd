"""`python -m vitcli` is the `vit` command."""

from vitcli.cli.app import main

if __name__ == "__main__":
    main()
