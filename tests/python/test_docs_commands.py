"""Every command of the documentation is one that exists; generated pages are current."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from fake_hub import serve
from pages import blocks, prose, workplace
from support import DIALOGUE, REPOSITORY, codec_repository

if TYPE_CHECKING:
    from pathlib import Path

sys.path.insert(0, str(REPOSITORY / "docs" / "tools"))
import cli_reference

SEPARATORS = {"&&", "||", "|", ";", "&"}
# Exit code of what needs a sound device, where the package for these is missing.
NO_DEVICE = 4
REGENERATE = "run `make reference` and commit docs/reference/cli.md"


def commands() -> list[tuple[str, list[str]]]:
    """Page names and the words of every command in a block of shell."""
    found: list[tuple[str, list[str]]] = []
    for block in blocks():
        if block.language != "sh":
            continue
        for line in block.code.replace("\\\n", " ").splitlines():
            words: list[str] = []
            for word in [*shlex.split(line, comments=True), ";"]:
                if word not in SEPARATORS:
                    words.append(word)
                elif words:
                    found.append((block.page, words))
                    words = []
    return found


def program_lines(program: str) -> list[tuple[str, list[str]]]:
    """Page names and arguments of the calls of a program."""
    return [(page, words[1:]) for page, words in commands() if words[0] == program]


# Files that pages speak of, and recordings of this repository to take for them.
RECORDINGS = {
    "question.wav": "hello.wav",
    "question.flac": "flac_22050_mono.flac",
    "speech.mp3": "mp3_44100_stereo.mp3",
}
MOSHI = program_lines("moshi-rs")
MOSHI_PAGES = list(dict.fromkeys(page for page, _ in MOSHI))


def make_targets() -> set[str]:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))


def test_pages_have_commands() -> None:
    assert len(MOSHI) >= 10
    assert {"README.md", "docs/guide/quickstart.md"} <= set(MOSHI_PAGES)


@pytest.mark.parametrize("page", MOSHI_PAGES)
def test_moshi_rs_runs_what_the_page_says(page: str, tmp_path: Path) -> None:
    """It succeeds with small models in place of the real ones; only sound devices are missing."""
    workplace(tmp_path)
    for name, audio in RECORDINGS.items():
        shutil.copyfile(REPOSITORY / "tests" / "audio" / audio, tmp_path / name)
    shutil.copytree(DIALOGUE, tmp_path / "moshiko")
    # A model would converse for ever on a machine with sound devices.
    (tmp_path / "sounddevice.py").write_text("raise ImportError")
    codec = codec_repository(tmp_path / "codec")
    with serve({"kyutai/moshiko-pytorch-bf16": DIALOGUE, "kyutai/mimi": codec}) as hub:
        settings = {
            "COLUMNS": "100",
            "HF_ENDPOINT": hub.address,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_OFFLINE": "0",
        }
        for arguments in [arguments for name, arguments in MOSHI if name == page]:
            done = subprocess.run(
                [sys.executable, "-m", "moshi_rs", *arguments],
                capture_output=True,
                check=False,
                cwd=tmp_path,
                encoding="utf-8",
                env=os.environ | settings,
                stdin=subprocess.DEVNULL,
                timeout=300,
            )
            shown = f"moshi-rs {shlex.join(arguments)}\n{done.stdout}{done.stderr}"
            expected = NO_DEVICE if arguments[0] == "chat" else 0
            assert done.returncode == expected, shown


def test_options_of_commands_in_texts_exist() -> None:
    inspected = 0
    for page, text in prose():
        for command in re.findall(r"`moshi-rs ([a-z][^`]*)`", text):
            name, *words = command.split()
            assert name in cli_reference.commands(), f"{page}: {command}"
            options = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", cli_reference.help_of(name)))
            for option in (word.split("=")[0] for word in words if word.startswith("-")):
                assert option in options, f"{page}: {command}"
            inspected += 1
    assert inspected >= 5


def test_targets_of_make_exist() -> None:
    texts = [(page, command.split()) for page, text in prose() for command in quoted(text)]
    lines = program_lines("make") + texts
    assert len(lines) >= 10
    for page, words in lines:
        targets = {word for word in words if "=" not in word}
        assert targets <= make_targets(), f"{page}: make {' '.join(words)}"


def quoted(text: str) -> list[str]:
    """Arguments of calls of make in a text."""
    return re.findall(r"`make ([a-z][^`]*)`", text)


def test_files_of_commands_exist() -> None:
    inspected = 0
    for page, words in commands():
        for word in words:
            if word.startswith(("docs/", "rust/", "tests/")):
                assert list(REPOSITORY.glob(word)), f"{page}: {word}"
                inspected += 1
    assert inspected >= 5


def test_extras_of_pip_exist() -> None:
    manifest = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    section = manifest.split("[project.optional-dependencies]")[1].split("\n[")[0]
    extras = set(re.findall(r"^(\w+) = ", section, re.MULTILINE))
    named = [re.findall(r"\.\[(\w+)\]", " ".join(words)) for _, words in program_lines("pip")]
    used = {extra for extras_of_line in named for extra in extras_of_line}
    assert used
    assert used <= extras


def test_reference_of_the_command_line_is_current() -> None:
    committed = (REPOSITORY / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    assert {"run", "encode", "verify"} <= set(cli_reference.commands())
    assert committed == cli_reference.page(), REGENERATE
