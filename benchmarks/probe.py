"""The linear probe against scikit-learn's softmax regression at every penalty that the probe tries: test accuracy and seconds.

    python benchmarks/probe.py [--images 10000] [--dim 768] [--classes 10] [--seeds 3]

Both see the same standardised features: clouds around random centres, in correlated coordinates, Gaussian or not. The opponent is
fitted once at each penalty and its best test accuracy counts, which it would have to choose by cross-validation.
"""

from __future__ import annotations

import argparse
import time
import warnings

import numpy as np
from sklearn.linear_model import LogisticRegression

from vitcli.evaluate.features import Features
from vitcli.evaluate.linear import L2, SOLVERS, linear_probe


def clouds(images: int, dim: int, classes: int, seed: int, shape: str) -> tuple[Features, Features]:
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(dim, dim)) / dim**0.5 * np.linspace(0.2, 2, dim)
    centres = 0.12 * random.normal(size=(classes * (3 if shape == "groups" else 1), dim))

    def draw(count: int) -> Features:
        where = random.integers(len(centres), size=count)
        noise = random.laplace(size=(count, dim)) if shape == "laplace" else random.normal(size=(count, dim))
        return Features((centres[where] + noise) @ mixing, where % classes)

    return draw(images), draw(4000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("images", 10_000), ("dim", 768), ("classes", 10), ("seeds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    for shape in ("gaussian", "laplace", "groups"):
        for seed in range(asked.seeds):
            train, test = clouds(asked.images, asked.dim, asked.classes, seed, shape)
            started = time.perf_counter()
            probe = linear_probe(train, asked.classes, solvers=SOLVERS)
            ours = time.perf_counter() - started
            started = time.perf_counter()
            mean, scale = train.values.mean(0), train.values.std(0)
            x, z = (train.values - mean) / scale, (test.values - mean) / scale
            scores = [
                LogisticRegression(C=1 / (l2 * len(x)), max_iter=200).fit(x, train.targets).score(z, test.targets)
                for l2 in L2
            ]
            theirs = time.perf_counter() - started
            print(
                f"{shape:<9} seed {seed}  vit {100 * probe.top1_on(test):.2f} % in {ours:.2f} s ({probe.solver}, l2 = {probe.l2:g})"
                f"  scikit-learn's best {100 * max(scores):.2f} % in {theirs:.2f} s  ratio {theirs / ours:.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
