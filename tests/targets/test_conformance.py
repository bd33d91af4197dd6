"""The rules for targets: every registered target keeps them, and each rule notices a target that does not."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import ConfigDict

from exporter.artifacts import ArtifactSpec, Format
from exporter.errors import UnsupportedError
from targets.base import BundleRequest, Capabilities, Exclusion, RuntimeCapability, Target, TargetOptions
from targets.conformance import RULES, breaches, main
from targets.discovery import BUILT_IN, get_target, list_targets

REGISTERED = sorted(listing.name for listing in list_targets() if listing.target is not None)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", REGISTERED)
def test_every_registered_target_conforms(name: str, rule: str, tmp_path: Path) -> None:
    assert breaches(get_target(name), tmp_path, rules={rule: RULES[rule]}) == ()


def test_the_built_in_targets_are_among_those_checked() -> None:
    assert set(BUILT_IN) <= set(REGISTERED)


def test_a_third_party_target_is_checked_by_name(
    register: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source = (
        "from targets.raspberry_pi.target import RaspberryPi\nTARGET = RaspberryPi(name='kiosk', summary='')"
    )
    register("kiosk", "conformance_kiosk", source)

    assert main(["kiosk", "android"]) == 1
    output = capsys.readouterr().out.splitlines()
    assert output[0].startswith("kiosk: summary: the summary is not one line")
    assert output[1] == "2 targets checked, 1 breaches"


RUNTIME = RuntimeCapability("cpu", Format.ONNX, frozenset({"float32"}))
SOUND_DATA = Capabilities("1", (RUNTIME,))


def write_readme(request: BundleRequest) -> None:
    names = [delivery.artifact.path.name for delivery in request.deliveries]
    (request.destination / "README.md").write_text(" ".join([*names, "cpu"]), encoding="utf-8")


@dataclass(frozen=True)
class Sound:
    """The smallest target that keeps every rule."""

    name: str = "kiosk"
    summary: str = "A kiosk"
    options_model: type[TargetOptions] = TargetOptions
    data: Capabilities = SOUND_DATA
    defaults: tuple[str, ...] = ("onnx:float32",)
    write: Callable[[BundleRequest], object] = write_readme

    def capabilities(self, options: TargetOptions) -> Capabilities:
        return self.data

    def default_artifacts(self, options: TargetOptions) -> tuple[ArtifactSpec, ...]:
        return tuple(map(ArtifactSpec.parse, self.defaults))

    def bundle(self, request: BundleRequest) -> None:
        self.write(request)


class Lax(TargetOptions):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Changeable(TargetOptions):
    model_config = ConfigDict(extra="forbid", frozen=False)


class Demanding(TargetOptions):
    board: str


class Changing(Sound):
    versions = map(str, itertools.count())

    def capabilities(self, options: TargetOptions) -> Capabilities:
        return Capabilities(next(self.versions), (RUNTIME,))


def also(extra: Callable[[BundleRequest], object]) -> Callable[[BundleRequest], None]:
    """Return a writer of the README that does something more."""

    def write(request: BundleRequest) -> None:
        write_readme(request)
        extra(request)

    return write


def refuse(request: BundleRequest) -> None:
    raise UnsupportedError("no", fix="none")


counter = itertools.count()
LIST: Any = ["float32"]


def test_a_sound_target_has_no_breach(tmp_path: Path) -> None:
    assert isinstance(Sound(), Target)
    assert breaches(Sound(), tmp_path) == ()


@pytest.mark.parametrize(
    ("target", "rule", "detail"),
    [
        (Sound(name="Kiosk!"), "name", "does not match"),
        (Sound(summary="a\nb"), "summary", "not one line"),
        (Sound(options_model=Lax), "options", "accept the unknown key"),
        (Sound(options_model=Changeable), "options", "can be changed"),
        (Sound(options_model=Demanding), "options", "no defaults"),
        (Changing(), "capabilities", "differ from call to call"),
        (
            Sound(data=Capabilities("1", (RuntimeCapability("cpu", Format.ONNX, LIST),))),
            "capabilities",
            "frozen",
        ),
        (Sound(data=Capabilities("", (RUNTIME,))), "capabilities", "no version"),
        (Sound(data=Capabilities("1", ())), "capabilities", "no runtime"),
        (
            Sound(data=Capabilities("1", (RUNTIME,), (Exclusion(Format.ONNX, frozenset({"int2"}), "why"),))),
            "capabilities",
            "unknown or no schemes: int2",
        ),
        (
            Sound(data=Capabilities("1", (RUNTIME,), (Exclusion(Format.ONNX, frozenset({"float32"}), "x"),))),
            "capabilities",
            "excluded and runs at the same time",
        ),
        (Sound(defaults=()), "defaults", "no default artifacts"),
        (Sound(defaults=("onnx:float32", "onnx:float32")), "defaults", "listed twice"),
        (Sound(defaults=("tflite:float16",)), "defaults", "refused by the target's own capabilities"),
        (
            Sound(data=Capabilities("1", (RUNTIME,), (Exclusion(Format.ORT, frozenset({"float32"}), " "),))),
            "refusals",
            "refusal of ort:float32",
        ),
        (
            Sound(write=also(lambda r: (r.destination.parent / "stray").touch())),
            "bundle stays inside",
            "outside its destination: stray",
        ),
        (Sound(write=also(lambda r: Path("stray").touch())), "bundle stays inside", "cwd/stray"),
        (
            Sound(write=also(lambda r: (r.destination.parent / "canary").write_text("x"))),
            "bundle stays inside",
            "canary",
        ),
        (
            Sound(write=also(lambda r: r.deliveries[0].artifact.path.write_bytes(b"x"))),
            "bundle stays inside",
            "changed or removed models/",
        ),
        (
            Sound(write=also(lambda r: (r.destination / "manifest.json").touch())),
            "bundle stays inside",
            "wrote manifest.json",
        ),
        (
            Sound(write=also(lambda r: (r.destination / "link").symlink_to("/etc/hostname"))),
            "bundle stays inside",
            "symbolic link",
        ),
        (
            Sound(write=also(lambda r: (r.destination / "n").write_text(str(next(counter))))),
            "bundle is deterministic",
            "n differs between two runs",
        ),
        (
            Sound(write=also(lambda r: (r.destination / "here").write_text(str(r.destination)))),
            "bundle is deterministic",
            "here holds the path",
        ),
        (Sound(write=lambda r: None), "readme", "no README.md"),
        (
            Sound(write=lambda r: (r.destination / "README.md").write_text("cpu")),
            "readme",
            "does not mention",
        ),
        (Sound(write=refuse), "readme", "raised UnsupportedError: no; fix: none"),
    ],
)
def test_each_rule_notices_its_breach(target: Target, rule: str, detail: str, tmp_path: Path) -> None:
    before = Path.cwd()

    found = breaches(target, tmp_path, rules={rule: RULES[rule]})

    assert any(breach.rule == rule and detail in breach.detail for breach in found), found
    assert Path.cwd() == before
