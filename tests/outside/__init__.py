"""What somebody adds to vit without a line changed in it: each module is what docs/extending.md describes, whole."""
