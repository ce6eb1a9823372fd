from __future__ import annotations

import base64
import http.client
import io
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from test_inside_commands import write_checkpoint

import browser
from conftest import draw_image, run_vit
from vitcli import api
from vitcli.analysis.demo import MOST_BYTES, Demo, Server


@pytest.fixture(scope="module")
def place(class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    write_checkpoint(folder / "ckpt.safetensors", data=str(class_folders))
    draw_image(1, 1, size=60).resize((90, 60)).save(folder / "wide.png")
    return folder


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Server]:
    planned = api.plan_prediction(str(place / "ckpt.safetensors"), device="cpu", overrides={"eval.top_k": 2})
    with Server(Demo(planned), 0) as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield running
        running.shutdown()


def ask(server: Server, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    return answer.status, answer.headers, answer.read()


def pixels(address: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB"))


def test_an_answer_is_what_predict_and_attn_rollout_say(server: Server, place: Path) -> None:
    status, _, body = ask(server, "POST", "/predict", (place / "wide.png").read_bytes())
    answer = json.loads(body)
    assert status == 200
    said = run_vit("predict", "ckpt.safetensors", "wide.png", "--json", "--top-k", "2", cwd=place).json
    for found, theirs in zip(answer["topk"], said["topk"], strict=True):
        assert found["label"] == theirs["label"] and found["score"] == pytest.approx(theirs["score"], abs=1e-6)
    assert pixels(answer["picture"]).shape == (60, 90, 3)
    done = run_vit("attn-rollout", "ckpt.safetensors", "wide.png", "--out", "looked", cwd=place)
    assert done.code == 0, done.err
    theirs = np.asarray(Image.open(place / "looked" / "wide-rollout.png").convert("RGB")).astype(float)
    assert np.corrcoef(pixels(answer["overlay"]).flatten(), theirs.flatten())[0, 1] > 0.97, "a JPEG of it"


def test_the_page_names_the_model_and_fetches_nothing_from_elsewhere(server: Server) -> None:
    status, headers, body = ask(server, "GET", "/")
    page = body.decode()
    assert status == 200 and "ckpt.safetensors" in page and "$" not in page and "http" not in page
    assert "default-src 'none'" in headers["Content-Security-Policy"] and "img-src data:" in str(headers)
    for name in ("page.css", "demo.css", "demo.js"):
        assert name in page and ask(server, "GET", f"/{name}")[0] == 200
    for path in ("/demo.html", "/../api.py", "/models.tsv", "/%2e%2e/api.py", "//etc/passwd", "/predict"):
        assert ask(server, "GET", path)[0] == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "localhost.evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example:7860"}, 403),
        ({"Host": "["}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost:9000"}, 200),
        ({"Host": "[::1]:7860", "Origin": "http://localhost:7860"}, 200),
    ],
)
def test_requests_of_other_sites_are_refused(server: Server, place: Path, headers: dict[str, str], status: int) -> None:
    body = (place / "wide.png").read_bytes()
    assert ask(server, "POST", "/predict", body, **headers)[0] == status
    assert ask(server, "GET", "/", **headers)[0] == status


@pytest.mark.parametrize(
    ("body", "headers", "status", "why"),
    [
        (b"no image", {}, 422, "not an image"),
        (b"", {}, 422, "not an image"),
        (b"\x89PNG\r\n\x1a\n", {}, 422, ""),
        (None, {"Content-Length": str(MOST_BYTES + 1)}, 413, "64 MiB"),
        (None, {"Content-Length": "9" * 5000}, 413, "64 MiB"),
        (None, {"Content-Length": "-1"}, 411, "length"),
        (None, {"Content-Length": "²"}, 411, "length"),
        (None, {"Transfer-Encoding": "chunked"}, 411, "length"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_refused_and_the_next_is_answered(
    server: Server, place: Path, body: bytes | None, headers: dict[str, str], status: int, why: str
) -> None:
    with socket.create_connection(server.server_address[:2], timeout=30) as raw:
        said = {"Host": "localhost", **({"Content-Length": str(len(body))} if body is not None else {}), **headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in said.items())
        raw.sendall(f"POST /predict HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + (body or b""))
        found = b"".join(iter(lambda: raw.recv(65536), b"")).decode()
    assert f" {status} " in found.splitlines()[0] and why in json.loads(found.partition("\r\n\r\n")[2])["error"]
    assert ask(server, "POST", "/predict", (place / "wide.png").read_bytes())[0] == 200


def test_an_image_that_breaks_off_does_not_hold_the_others(server: Server, place: Path) -> None:
    waiting = [socket.create_connection(server.server_address[:2], timeout=30) for _ in range(8)]
    try:
        for raw in waiting:
            raw.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nhalf")
        for _ in range(100):  # until all eight have been taken
            status = ask(server, "POST", "/predict", b"x")[0]
            if status == 503:
                break
        assert status == 503 and ask(server, "GET", "/")[0] == 200
    finally:
        for raw in waiting:
            raw.close()
    body = (place / "wide.png").read_bytes()
    assert any(ask(server, "POST", "/predict", body)[0] == 200 for _ in range(200))


def test_the_command_says_where_and_ends_by_ctrl_c(place: Path) -> None:
    interruptible = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "  # a shell in the background sees to less
    command = [
        sys.executable,
        "-c",
        f"{interruptible}from vitcli.cli.app import main; main()",
        "demo",
        "ckpt.safetensors",
    ]
    process = subprocess.Popen(
        [*command, "--port", "0", "--json"], cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    url = json.loads(process.stdout.readline())["url"]
    port = urlsplit(url).port
    assert port and url == f"http://127.0.0.1:{port}/"
    taken = run_vit("demo", "ckpt.safetensors", "--port", str(port), cwd=place)
    assert taken.code == 2 and "--port 0" in taken.err
    process.send_signal(signal.SIGINT)
    assert "Traceback" not in process.communicate(timeout=30)[1] and process.returncode == 0


def test_a_model_without_attention_gives_labels_alone(place: Path) -> None:
    folder = place / "resnet"
    values = {
        "data.source": "digits",
        "run.device": "cpu",
        "model.name": "R1-1-1-1x0.25",
        "train.steps": 1,
        "train.batch_size": 8,
    }
    api.run(api.plan(api.Request("pretrain", values)), str(folder))
    answer = Demo(api.plan_prediction(str(folder), device="cpu")).answer((place / "wide.png").read_bytes())
    assert answer["overlay"] is None and len(answer["topk"]) == 5


def test_an_image_dropped_in_a_browser_is_named(server: Server, place: Path, tmp_path: Path) -> None:
    drop = """(() => {
      const bytes = Uint8Array.from(atob("%s"), (c) => c.charCodeAt(0));
      const moved = new DataTransfer();
      moved.items.add(new File([bytes], "%s"));
      document.dispatchEvent(new DragEvent("drop", { dataTransfer: moved }));
    })()"""
    state = "document.getElementById('state').textContent"
    with browser.tab(tmp_path) as tab:
        tab.open(server.address)
        blob = base64.b64encode((place / "wide.png").read_bytes()).decode()
        tab.value(drop % (blob, "wide.png"))
        tab.wait(f"{state} === 'wide.png'")
        said = run_vit("predict", "ckpt.safetensors", "wide.png", "--json", "--top-k", "2", cwd=place).json
        assert tab.value("document.querySelector('#labels td').textContent") == said["label"]
        assert tab.value("document.getElementById('overlay').naturalWidth") == 90
        tab.look(500, 900, tmp_path / "page.png")
        with Image.open(tmp_path / "page.png") as page:
            assert len(np.unique(np.asarray(page.convert("RGB")).reshape(-1, 3), axis=0)) > 500, "pictures are drawn"
        assert not tab.complaints
        tab.value(drop % (base64.b64encode(b"no image").decode(), "text.txt"))
        tab.wait(f"{state}.startsWith('text.txt: not an image')")
        assert tab.value("document.getElementById('answer').hidden"), "not the answer of another image"
