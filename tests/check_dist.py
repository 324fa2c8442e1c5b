"""Checks distributions as they would be published: metadata, contents, platform tags, stable ABI.

It needs the tools of the dependency group ``release``; ``make check-dist`` installs them.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

LICENSES = {"LICENSE-APACHE", "LICENSE-MIT", "THIRD-PARTY-LICENSES"}
PACKAGE = {"__init__.py", "__main__.py", "_core.pyi", "cli.py", "errors.py", "py.typed"}
NATIVE = re.compile(r"_core\.(abi3\.so|cp\w+(-\w+)*\.pyd|cpython-\w+(-\w+)*\.so|pyd)")
SDIST = {*LICENSES, "Cargo.lock", "Cargo.toml", "README.md", "pyproject.toml", "python", "rust"}
BOX_LICENSE = "rust/moshi-box/checkpoint/LICENSE"
BOX = Path(__file__).resolve().parents[1] / "rust" / "moshi-box" / "checkpoint"
WHEEL_BYTES = 32_000_000
# Of everything but the model in the box.
SDIST_BYTES = 4 << 20
# Who has the sources can make the model in the box again; a wheel holds nothing of it.
RECIPE = PurePosixPath("python", "recipes", "box", "run.py")


def expect(condition: bool, what: str) -> None:
    """Ends the process with a message unless the condition holds."""
    if not condition:
        sys.exit(f"error: {what}")


def tool(*command: str | Path) -> str:
    """Output of a tool of this environment; ends the process if the tool is not content."""
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
    expect(done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}")
    return done.stdout


def check_wheel(wheel: Path) -> str:
    """Contents, platform and ABI of a wheel; what was found, in words."""
    name, version, _, abi, platforms = wheel.stem.split("-")
    size = wheel.stat().st_size
    expect(size < WHEEL_BYTES, f"{wheel.name} has {size} bytes")
    with zipfile.ZipFile(wheel) as archive:
        members = {PurePosixPath(member) for member in archive.namelist()}
    info = PurePosixPath(f"{name}-{version}.dist-info")
    tops = {member.parts[0] for member in members}
    # Anything else would be a library that was bundled, or a file that strayed in.
    expect(tops == {"moshi_rs", info.name}, f"{wheel.name} holds {sorted(tops)}")
    folder = info / "licenses"
    licenses = {str(m.relative_to(folder)) for m in members if m.is_relative_to(folder)}
    expect(
        licenses == {*LICENSES, BOX_LICENSE}, f"{wheel.name} has the licences {sorted(licenses)}"
    )
    package = {member.name for member in members if member.parts[0] == "moshi_rs"}
    native = {file for file in package if NATIVE.fullmatch(file)}
    expect(len(native) == 1, f"{wheel.name} has the native modules {sorted(native)}")
    expect(package >= PACKAGE, f"{wheel.name} lacks {sorted(PACKAGE - package)}")
    sources = {file for file in package - native if not file.endswith((".py", ".pyi", ".typed"))}
    expect(not sources, f"{wheel.name} holds {sorted(sources)}")

    found = [abi]
    if abi == "abi3":
        report = json.loads(tool("abi3audit", "--strict", "--report", wheel))
        (audit,) = report["specs"].values()
        expect(len(audit["wheel"]) == 1, f"{wheel.name}: abi3audit looked at nothing")
        result = audit["wheel"][0]["result"]
        expect(result["is_abi3_baseline_compatible"], f"{wheel.name}: {result}")
        found.append(f"needs the stable ABI of {result['computed']}, says {result['baseline']}")
    if platforms.startswith("manylinux"):
        audit = json.loads(tool("auditwheel", "show", "--json", wheel))
        expect(audit["overall_tag"] in platforms.split("."), f"fits {audit['overall_tag']} only")
        found.append(f"audited as {audit['overall_tag']}")
    else:
        # musllinux is audited by maturin when it builds, the others have nothing to audit.
        expect(platforms.startswith(("musllinux_", "macosx_", "win_")), f"{wheel.name}: platform")
    return ", ".join([f"{size / 1e6:.1f} MB", *found])


def check_sdist(sdist: Path) -> str:
    """Contents of a source distribution; what was found, in words."""
    with tarfile.open(sdist) as archive:
        sizes = {PurePosixPath(m.name): m.size for m in archive.getmembers() if m.isfile()}
    members = list(sizes)
    in_box = [m for m in members if m.parts[1:-1] == BOX.parts[-3:]]
    carried, committed = {m.name for m in in_box}, {path.name for path in BOX.iterdir()}
    expect(carried == committed, f"{sdist.name} holds {sorted(carried)} of {sorted(committed)}")
    unpacked = sum(sizes.values()) - sum(sizes[member] for member in in_box)
    tops = {member.parts[1] for member in members}
    expect(tops >= SDIST, f"{sdist.name} lacks {sorted(SDIST - tops)}")
    inside = {PurePosixPath(*member.parts[1:]) for member in members}
    expect(RECIPE in inside, f"{sdist.name} lacks {RECIPE}")
    weights = [m for m in members if m.suffix == ".safetensors" and m not in in_box]
    strays = weights + [m for m in members if any(part[0] == "." for part in m.parts)]
    expect(not strays, f"{sdist.name} holds {[str(stray) for stray in strays]}")
    expect(unpacked < SDIST_BYTES, f"{sdist.name} unpacks to {unpacked} bytes")
    return f"{len(members)} files, {unpacked >> 10} KiB unpacked beside the model in the box"


def check_version(files: list[Path], tag: str | None) -> str:
    """The one version of all files, which a tag must name."""
    versions = {file.name.removesuffix(".tar.gz").split("-")[1] for file in files}
    expect(len(versions) == 1, f"the files have the versions {sorted(versions)}")
    (version,) = versions
    expect(tag in {None, f"v{version}"}, f"the tag {tag} is not v{version}, the version built")
    return version


def main() -> None:
    """Checks every file of a folder."""
    parser = argparse.ArgumentParser(description="Check wheels and source distribution.")
    parser.add_argument("dist", type=Path, help="a folder with at least one wheel and one sdist")
    parser.add_argument("--tag", help="the tag of the release, which must be v and the version")
    args = parser.parse_args()
    dist: Path = args.dist
    wheels, sdists = sorted(dist.glob("*.whl")), sorted(dist.glob("*.tar.gz"))
    strays = {*dist.iterdir()} - {*wheels, *sdists}
    expect(bool(wheels), f"no wheel in {dist}; make dist builds one")
    expect(len(sdists) == 1, f"{len(sdists)} source distributions in {dist}, not one")
    expect(not strays, f"{dist} also holds {sorted(stray.name for stray in strays)}")
    print(f"version {check_version([*wheels, *sdists], args.tag)}")
    print(tool("twine", "check", "--strict", *wheels, *sdists))
    for wheel in wheels:
        print(f"{wheel.name}: {check_wheel(wheel)}")
    print(f"{sdists[0].name}: {check_sdist(sdists[0])}")


if __name__ == "__main__":
    main()
