"""The stand-in of the hub answers the hub's own client as the hub does."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import HfApi, constants, errors

import hub_server

WEIGHTS = bytes(range(256)) * 40
CARD = "---\nlicense: apache-2.0\ntags:\n- vision\n---\n# A model\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "model"
    (place / "deep").mkdir(parents=True)
    (place / "model.safetensors").write_bytes(WEIGHTS)
    (place / "README.md").write_text(CARD)
    (place / "deep" / "a.json").write_text("{}")
    return place


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


def test_models_are_told_of_and_downloaded_once(folder, tmp_path):
    with hub_server.serve({"google/a-model": folder}) as hub:
        api = HfApi(endpoint=hub.url, token=False)
        info = api.model_info("google/a-model")
        assert {s.rfilename for s in info.siblings or []} == {"model.safetensors", "README.md", "deep/a.json"}
        assert info.card_data and info.card_data.license == "apache-2.0" and info.tags == ["vision"]
        assert api.model_info("google/a-model", revision=info.sha).sha == info.sha
        sizes = {row.path: getattr(row, "size", None) for row in api.list_repo_tree("google/a-model", recursive=True)}
        assert sizes["model.safetensors"] == len(WEIGHTS)
        for _ in range(2):
            got = api.snapshot_download("google/a-model", cache_dir=tmp_path / "cache")
        assert hub_server.files(Path(got)).keys() == sizes.keys()
        assert (Path(got) / "model.safetensors").read_bytes() == WEIGHTS
        assert len(hub.asked(r"^GET .*/model\.safetensors$")) == 1
        assert not (folder / ".cache").exists()


def test_a_download_that_broke_off_goes_on_where_it_ended(folder, tmp_path):
    with hub_server.serve({"google/a-model": folder}) as hub:
        url = f"{hub.url}/google/a-model/resolve/main/model.safetensors"
        with (tmp_path / "part").open("wb") as file:
            file.write(WEIGHTS[:1000])
            huggingface_hub.file_download.http_get(url, file, resume_size=1000, expected_size=len(WEIGHTS))
        assert (tmp_path / "part").read_bytes() == WEIGHTS
        assert hub.requests[-1].status == 206


def test_what_is_missing_or_gated_is_refused_as_the_hub_does(folder, tmp_path):
    with hub_server.serve({"google/a-model": folder, "meta/gated": folder}, gated=("meta/gated",)) as hub:

        def download(name: str, token: str | bool, file: str = "model.safetensors", revision: str = "main") -> str:
            api = HfApi(endpoint=hub.url, token=token)
            return api.hf_hub_download(name, file, revision=revision, cache_dir=tmp_path / f"cache {token}")

        for token in (False, hub_server.TOKEN):
            with pytest.raises(errors.RepositoryNotFoundError):
                download("google/none", token)
            with pytest.raises(errors.RevisionNotFoundError):
                download("google/a-model", token, revision="v9")
            with pytest.raises(errors.EntryNotFoundError):
                download("google/a-model", token, "absent.bin")
        for token, status in ((False, 401), ("hf_other", 403)):
            assert HfApi(endpoint=hub.url, token=token).model_info("meta/gated").gated == "auto"
            with pytest.raises(errors.GatedRepoError):
                download("meta/gated", token)
            assert hub.requests[-1].status == status
        assert Path(download("meta/gated", hub_server.TOKEN)).read_bytes() == WEIGHTS


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own
def test_a_folder_is_pushed_and_served(folder, tmp_path):
    with hub_server.serve({}) as hub:
        api = HfApi(endpoint=hub.url, token=hub_server.TOKEN)
        for name in ("someone/new", "someone/new"):
            api.create_repo(name, exist_ok=True)
        api.upload_folder(repo_id="someone/new", folder_path=folder, commit_message="First")
        assert hub.commits == ["First"]
        assert (hub.models["someone/new"] / "model.safetensors").read_bytes() == WEIGHTS
        assert len(hub.asked("^PUT /objects/")) == 1
        assert Path(api.hf_hub_download("someone/new", "README.md", cache_dir=tmp_path / "c")).read_text() == CARD
        for token in (False, "hf_other"):
            with pytest.raises(errors.HfHubHTTPError):
                HfApi(endpoint=hub.url, token=token).create_repo("someone/theirs")
        (folder / "README.md").write_text("---\na: [\n---\n")
        with pytest.raises(ValueError, match="Invalid metadata"):
            api.upload_folder(repo_id="someone/new", folder_path=folder)


def test_a_push_leaves_the_folder_that_was_served_as_it_was(folder):
    with hub_server.serve({"someone/model": folder}) as hub:
        api = HfApi(endpoint=hub.url, token=hub_server.TOKEN)
        api.upload_file(repo_id="someone/model", path_or_fileobj=b"new", path_in_repo="new.txt")
        assert set(hub_server.files(hub.models["someone/model"])) == {
            "README.md",
            "deep/a.json",
            "model.safetensors",
            "new.txt",
        }
    assert not (folder / "new.txt").exists()
