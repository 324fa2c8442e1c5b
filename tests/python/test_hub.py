"""Models by name: ``owner/name`` on a fake hub, through Python and the command line."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import moshi_rs
from fake_hub import COMMIT, REPO, FakeHub, serve
from moshi_rs import errors
from support import DIALOGUE, FRAME, GREEDY, Array, codec_repository, copy_case, edit_config, run

if TYPE_CHECKING:
    from collections.abc import Iterator

CODEC = "tiny/codec"
CARD = """---
license: cc-by-4.0
base_model: [tiny/base, tiny/other]
datasets: [tiny/talk]
---
# Tiny
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub, and an environment that knows it and an empty cache."""
    for name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    with serve({REPO: DIALOGUE}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.chdir(tmp_path)
        yield hub


def test_a_model_from_the_hub_speaks_as_from_its_folder(
    hub: FakeHub, model: moshi_rs.StreamingModel, frames: Array, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "moshi_rs"):
        loaded = moshi_rs.StreamingModel.load(REPO)
    assert f"downloading {REPO}/model.safetensors" in caplog.text
    got, want = (run(m.new_session(seed=1, **GREEDY), frames[:20]) for m in (loaded, model))
    np.testing.assert_array_equal(got[0], want[0])
    assert got[1] == want[1]
    hub.requests.clear()
    moshi_rs.StreamingModel.load(Path(REPO), revision=COMMIT)
    assert hub.requests == []


def test_the_parts_load_from_the_hub(hub: FakeHub) -> None:
    mimi = moshi_rs.Mimi.load(REPO, num_codebooks=4)
    assert not any("/model.safetensors" in request for request in hub.requests)
    assert mimi.sample_rate == moshi_rs.Mimi.load(DIALOGUE, num_codebooks=4).sample_rate
    lm = moshi_rs.LanguageModel.load(REPO)
    assert lm.delays == moshi_rs.LanguageModel.load(DIALOGUE).delays


def test_what_is_missing_is_a_file_not_found_error(hub: FakeHub) -> None:
    with pytest.raises(errors.CheckpointNotFoundError, match="no repository of this name"):
        moshi_rs.StreamingModel.load("tiny/other")
    with pytest.raises(FileNotFoundError, match="tiny/dialogue@v9"):
        moshi_rs.StreamingModel.load(REPO, revision="v9")
    with pytest.raises(errors.InputError, match="branch"):
        moshi_rs.StreamingModel.load(REPO, revision="../v9")
    del hub.repos[REPO]["tokenizer.model"]
    with pytest.raises(errors.CheckpointNotFoundError, match="no such file at revision"):
        moshi_rs.StreamingModel.load(REPO)
    with pytest.raises(errors.CheckpointNotFoundError, match="OWNER/NAME"):
        moshi_rs.StreamingModel.load("no/such/folder")


def test_a_refusal_is_a_checkpoint_error(hub: FakeHub) -> None:
    hub.status = 401
    with pytest.raises(errors.CheckpointError, match="hf auth login"):
        moshi_rs.Mimi.load(REPO)
    hub.status = 403
    with pytest.raises(errors.CheckpointError, match="accept"):
        moshi_rs.LanguageModel.load(REPO)


def test_offline_uses_the_cache(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(errors.CheckpointNotFoundError, match="HF_HUB_OFFLINE"):
        moshi_rs.StreamingModel.load(REPO)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    moshi_rs.StreamingModel.load(REPO)
    hub.requests.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    moshi_rs.StreamingModel.load(REPO)
    assert hub.requests == []


def test_the_cache_stands_in_for_a_hub_that_is_down(
    hub: FakeHub, caplog: pytest.LogCaptureFixture
) -> None:
    moshi_rs.LanguageModel.load(REPO)
    hub.status = 503
    with caplog.at_level(logging.WARNING, "moshi_rs"):
        moshi_rs.LanguageModel.load(REPO)
    assert "from the cache" in caplog.text


@pytest.fixture
def heeds_ctrl_c() -> Iterator[None]:
    """Python's own handler: a process that was started in the background may ignore the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_ctrl_c_stops_a_download_that_is_resumed(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "1")
    hub.stalls = True
    blobs = tmp_path / "hf" / "hub" / "models--tiny--dialogue" / "blobs"
    digest = hashlib.sha256(hub.repos[REPO]["model.safetensors"]).hexdigest()
    partial = blobs / f"{digest}.incomplete"

    def interrupt() -> None:
        while not (partial.exists() and partial.stat().st_size > 0):
            time.sleep(0.05)
        signal.raise_signal(signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        moshi_rs.LanguageModel.load(REPO)
    thread.join()
    assert partial.stat().st_size > 0
    hub.stalls = False
    moshi_rs.LanguageModel.load(REPO)
    assert not partial.exists()


# The command line in a process whose files end at 1 MiB, as on a disk with that much room.
LIMITED = """
import resource, runpy
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
runpy.run_module("moshi_rs", run_name="__main__", alter_sys=True)
"""

if sys.platform != "win32":

    def test_a_file_that_does_not_fit_the_disk_is_resumed_elsewhere(
        hub: FakeHub, tmp_path: Path
    ) -> None:
        encode = ["encode", str(DIALOGUE.parents[1] / "audio" / "hello.wav"), "--model", REPO]
        encode += ["-o", str(tmp_path / "tokens.safetensors")]
        limited = [sys.executable, "-c", LIMITED, *encode]
        done = subprocess.run(limited, capture_output=True, text=True, check=False)
        assert done.returncode == 3, done.stderr
        assert "takes no files of this size" in done.stderr
        assert "HF_HUB_CACHE" in done.stderr
        blobs = tmp_path / "hf" / "hub" / "models--tiny--dialogue" / "blobs"
        content = hub.repos[REPO]["mimi.safetensors"]
        digest = hashlib.sha256(content).hexdigest()
        assert not (blobs / digest).exists()
        assert (blobs / f"{digest}.incomplete").stat().st_size == 1 << 20
        assert command(*encode).returncode == 0
        assert (blobs / digest).read_bytes() == content


def command(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "moshi_rs", *args], capture_output=True, text=True, check=False
    )


def test_info_states_licence_and_origin_without_weights(hub: FakeHub) -> None:
    hub.repos[REPO]["README.md"] = CARD.encode()
    hub.repos[REPO]["LICENSE"] = b"text"
    result = command("info", REPO, "--json")
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts["origin"] == {
        "owner": "tiny",
        "license": "cc-by-4.0",
        "license_name": None,
        "license_link": None,
        "license_file": "LICENSE",
        "base_model": "tiny/base, tiny/other",
        "datasets": "tiny/talk",
        "weights_metadata": None,
    }
    assert facts["language_model"]["present"] is False
    assert not any(".safetensors" in request for request in hub.requests)
    text = command("info", REPO, "--revision", "v1").stdout
    assert "license: cc-by-4.0" in text
    assert "license_name: not stated" in text
    assert command("info", REPO, "--revision", "v9").returncode == 3


def test_nothing_in_a_repository_reaches_the_terminal_as_a_command(tmp_path: Path) -> None:
    folder = copy_case("dialogue_repo", tmp_path / "hostile")
    (folder / "README.md").write_text(
        '---\nlicense: "\\e]0;title\\x07mit"\nbase_model: ["\\e[2J", "\\x9bm"]\n---\n'
    )
    named = {"loud\x07": {"type": "tensor", "tensor": {"dim": 4}}}
    edit_config(folder, conditioners=named, **{"new\x1b[2J": 1})
    done = command("info", str(folder))
    assert done.returncode == 0, done.stderr
    for shown in (
        "\\u{1b}]0;title\\u{7}mit",
        "\\u{1b}[2J, \\u{9b}m",
        "conditions: loud\\u{7}",
    ):
        assert shown in done.stdout
    assert "unknown field `new\\u{1b}[2J` ignored" in done.stderr
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", done.stdout + done.stderr)


def test_a_config_in_toml_warns_of_what_it_does_not_know(tmp_path: Path) -> None:
    folder = copy_case("dialogue_repo", tmp_path / "rust")
    (folder / "config.json").unlink()
    shape = "d_model = 64\nnum_heads = 4\nnum_layers = 1\ndim_feedforward = 256\ncontext = 8"
    kind = 'gating = "silu"\nnorm = "RmsNorm"\npositional_embedding = "Rope"'
    sizes = "text_in_vocab_size = 51\ntext_out_vocab_size = 50\naudio_vocab_size = 17"
    bare = f"{sizes}\naudio_codebooks = 4\nodd = 1\n[transformer]\n{shape}\n{kind}\n"
    files = 'moshi_name = "model.safetensors"\nmimi_name = "mimi.safetensors"\n'
    server = (
        'static_dir = "static"\nport = 1\n[modules.asr]\npath = "/asr"\ntype = "BatchedAsr"\n'
        "batch_size = 64\nasr_delay_in_tokens = 6\nnoise = 1\n[modules.asr.gen]\nloud = true\n"
        f"[modules.asr.model]\n{bare.replace('[transformer]', '[modules.asr.model.transformer]')}"
    )
    at = "modules.asr"
    for text, unknown in [
        (files + bare, ["odd"]),
        (server, ["port", f"{at}.noise", f"{at}.gen.loud", f"{at}.model.odd"]),
    ]:
        (folder / "config.toml").write_text(text)
        done = command("info", str(folder))
        assert done.returncode == 0, done.stderr
        assert sorted(re.findall("unknown field `(.*)` ignored", done.stderr)) == sorted(unknown)


def test_info_describes_a_codec_alone(hub: FakeHub, tmp_path: Path) -> None:
    folder = codec_repository(tmp_path / "mimi")
    hub.repos[CODEC] = {path.name: path.read_bytes() for path in folder.iterdir()}
    here, there = (
        json.loads(command("info", str(name), "--json").stdout) for name in (folder, CODEC)
    )
    assert (here["model_type"], there["folder"]) == ("mimi", CODEC)
    assert there["origin"]["license"] == "cc-by-4.0"
    assert (here["codec"]["present"], there["codec"]["present"]) == (True, False)
    assert not any(".safetensors" in request for request in hub.requests)
    for codec in (here["codec"], there["codec"]):
        assert (codec["frame_samples"], codec["codebooks_stored"]) == (FRAME, 12)
    # Without a config it is the public codec's.
    for name in ("config.json", "README.md"):
        (folder / name).unlink()
    (folder / "model.safetensors").rename(folder / "mimi.safetensors")
    assert "codebooks_stored: 32" in command("info", str(folder)).stdout
    (folder / "mimi.safetensors").unlink()
    assert command("info", str(folder)).returncode == 3


def test_info_of_a_folder_states_what_it_knows() -> None:
    facts = json.loads(command("info", str(DIALOGUE), "--json").stdout)
    assert facts["origin"]["owner"] is None
    assert facts["origin"]["license"] is None


def test_the_command_line_runs_models_from_the_hub(hub: FakeHub, tmp_path: Path) -> None:
    audio = str(DIALOGUE.parents[1] / "audio" / "hello.wav")
    tokens, wav = str(tmp_path / "tokens.safetensors"), str(tmp_path / "back.wav")
    encoded = command("encode", audio, "-o", tokens, "--model", REPO, "--codebooks", "4")
    assert encoded.returncode == 0, encoded.stderr
    decoded = command("decode", tokens, "-o", wav, "--model", REPO, "--revision", COMMIT)
    assert decoded.returncode == 0, decoded.stderr
    spoken = [
        json.loads(command("run", audio, "--seed", "3", "--json", "--model", name).stdout)["text"]
        for name in (REPO, str(DIALOGUE))
    ]
    assert spoken[0] == spoken[1]
    hub.status = 500
    assert command("info", "tiny/other").returncode == 3
