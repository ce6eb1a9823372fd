"""report.html: one file, nothing fetched, strangers' names as text, and no place of the machine in it; what pictures can write."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import browser
from conftest import draw_image, run_vit, train_run
from vitcli import pages, plots
from vitcli.lettering import drawable
from vitcli.text import markdown

NAMES = ("<script>alert(1)<", '\u72d7 & "dog"', "plain")
SHORT = {
    "model": "mu/4",
    "batch_size": 8,
    "img_size": 12,
    "steps": 6,
    "precision": "fp32",
    "data__workers": 0,
    "run__threads": 1,
}


class Parsed(HTMLParser):
    """The tags of a page with their attributes, its text, and whether each tag that is opened is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.open = "", list[str]()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "line", "polyline"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pages")
    for colour, name in enumerate(NAMES):
        for split, count in (("train", 8), ("test", 5)):
            folder = root / "colours" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                is_wrong = split == "test" and index == 0  # one of each class is of another's colour
                draw_image((colour + is_wrong) % 3, index + 100 * (split == "test")).save(folder / f"{index}.png")
    return train_run("pretrain", data=str(root / "colours"), out=str(root / "run"), **SHORT)[0]


def test_the_card_says_the_classes_the_next_commands_and_no_place(run: Path) -> None:
    text = (run / "README.md").read_text(encoding="utf-8")
    assert "vit predict model.safetensors photo.jpg" in text and "--config run.toml" in text
    assert str(run.parent) not in text and str(Path.cwd()) not in text and str(Path.home()) not in text
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert f"{100 * report['eval']['top1']:.2f} %" in text
    names = [markdown(name) for name in NAMES]
    rows = [line.split(" | ") for line in text.splitlines() if any(line.startswith(f"| {name} | ") for name in names)]
    assert len(rows) == len(NAMES) and all(row[1] == "5" for row in rows), "a row a class"
    parts = [float(row[2].split()[0]) for row in rows]
    assert parts == sorted(parts) and sum(parts) / len(parts) == pytest.approx(100 * report["eval"]["top1"], abs=0.1)


def test_the_page_is_one_file_that_says_what_the_report_says(run: Path) -> None:
    page = (run / "report.html").read_text(encoding="utf-8")
    found = Parsed(page)
    assert found.open == [] and not {"script", "link", "iframe"} & {tag for tag, _ in found.tags}
    images = [values for tag, values in found.tags if tag == "img"]
    assert all(str(values["src"]).startswith("data:image/") and values["alt"] for values in images)
    assert not any(name in ("href", "srcset") or name.startswith("on") for _, values in found.tags for name in values)
    assert "http://" not in page and "https://" not in page and "url(" not in page
    for name in NAMES:
        assert name in found.text
    for heading in (
        "Curves",
        "Classes, the worst first",
        "Confusion",
        "Worst mistakes",
        "Data",
        "Next",
        "Configuration",
    ):
        assert heading in found.text
    report = json.loads((run / "report.json").read_text())
    assert f"{100 * report['eval']['top1']:.2f} %" in found.text
    wrong = round((1 - report["eval"]["top1"]) * report["eval"]["n"])
    assert len(images) == min(24, wrong) > 0
    assert str(run.parent) not in page and str(Path.home()) + "/" not in page


def test_a_run_without_labels_has_curves_and_no_classes(run: Path, tmp_path: Path) -> None:
    folder, _ = train_run(
        "pretrain", data=str(run.parent / "colours"), out=str(tmp_path / "m"), objective="mae", **SHORT
    )
    found = Parsed((folder / "report.html").read_text(encoding="utf-8"))
    assert "Curves" in found.text and "Reconstructions" in found.text and "Confusion" not in found.text
    assert [values["class"] for tag, values in found.tags if tag == "img"] == ["wide"]


def test_what_cannot_be_drawn_costs_no_run(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("no ink")

    monkeypatch.setattr(plots, "curves", fail)
    monkeypatch.setattr(pages, "write", fail)
    folder, report = train_run("pretrain", data=str(run.parent / "colours"), out=str(tmp_path / "m"), **SHORT)
    assert sum("no ink" in said for said in report["warnings"]) == 2
    assert (folder / "report.json").exists() and not (folder / "report.html").exists()


def test_many_classes_have_their_most_frequent_confusions(tmp_path: Path) -> None:

    from vitcli.train.page import _confusion

    targets = np.repeat(np.arange(50), 3)
    taken = targets.copy()
    taken[:2] = 7
    found = SimpleNamespace(targets=targets, top=taken[:, None])
    (made,) = _confusion(found, [f"c{i}" for i in range(50)])  # type: ignore[arg-type]
    assert "<td>c0</td><td>c7</td>" in made and made.count("<tr>") == 2


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("see /home/me/photos/cat.jpg, row 3", "see …/cat.jpg, row 3"),
        ("init = \"/work of mine/a.bin\"", "init = \"…/a.bin\""),
        ("https://example.org/a/b stays, and a/b", "https://example.org/a/b stays, and a/b"),
        ("C:\\\\Users\\me\\x.png", "…/x.png"),
    ],
)  # fmt: skip
def test_places_of_the_machine_are_left_out(said: str, shown: str) -> None:
    assert pages.without_places(said.replace("\\\\", "\\"), ["/work of mine/a.bin"]) == shown


def test_a_long_line_keeps_its_peaks() -> None:
    y = np.sin(np.arange(5000) / 300)
    y[1234], y[4321] = 9, -9
    xs, ys = pages.thinned(np.arange(5000.0), y)
    assert len(xs) < 450 and {9, -9} <= set(ys) and (np.diff(xs) > 0).all()


def test_the_axis_of_a_loss_neither_cuts_nor_zooms() -> None:
    noise = 2.3 + 0.001 * np.sin(np.arange(50.0))
    low, high = plots.limits_of(noise)
    assert high - low > 0.4
    falling = np.linspace(5, 0.1, 500)
    low, high = plots.limits_of(falling)
    assert low == 0 and high > 5
    falling[300] = 400  # a single peak
    assert plots.limits_of(falling)[1] < 10
    assert plots.smoothed(falling)[[0, -1]] == pytest.approx([5, 0.1])


def test_letters_that_the_font_lacks_are_told_apart() -> None:
    assert drawable("\u72d7 собака ñ") == "\\u72d7 собака ñ" and drawable("\U0001f996x") == "\\U0001f996x"


def test_a_sheet_of_predictions(run: Path, tmp_path: Path) -> None:
    images = sorted((run.parent / "colours" / "test" / "plain").iterdir())[:3]
    (tmp_path / "none.jpg").write_text("no image")
    plain = run_vit("predict", run, *images, "none.jpg", "--json", cwd=tmp_path)
    sheet = tmp_path / "s.png"
    done = run_vit("predict", run, "-", "--json", "--sheet", sheet, cwd=tmp_path,
                   stdin="\n".join(map(str, [*images, "none.jpg"])))  # fmt: skip
    assert done.code == plain.code == 3 and done.out == plain.out and f"wrote {sheet}\n" in done.err
    with Image.open(sheet) as page:
        one_row = np.asarray(page.convert("RGB"))
    assert (
        one_row.shape[0] < 280 and (one_row == [200, 200, 200]).all(2).sum() > 128 * 100
    )  # the one that cannot be read
    assert run_vit("predict", run, images[0], "--sheet", sheet, cwd=tmp_path).code == 2
    table = run_vit("predict", run, *images, "--out", "t.csv", "--sheet", sheet, "--force", cwd=tmp_path)
    assert table.code == 0 and table.out == "t.csv\n"
    with Image.open(sheet) as page:
        assert page.width < one_row.shape[1]
    assert run_vit("predict", run, images[0], "--sheet", "s.svg", cwd=tmp_path).code == 2


@pytest.mark.parametrize("width", [400, 1200])
def test_a_browser_shows_the_page_without_a_complaint(run: Path, tmp_path: Path, width: int) -> None:
    with browser.tab(tmp_path) as tab:
        tab.open((run / "report.html").as_uri())
        tab.look(width, 900, tmp_path / "page.png", "dark")
        assert tab.value("document.documentElement.scrollWidth") == width, "nothing stands out to the side"
        assert "Worst mistakes" in tab.value("document.body.innerText") and not tab.complaints
        assert tab.value("document.querySelectorAll('script').length") == 0
