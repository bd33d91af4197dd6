"""`publish`, `list`, `pull` and `verify` as a person types them: answers, one-line errors, exit codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "registry"))

from registry_ground import make_build, make_bundle, make_key, serve, touch_up

from exporter.bundle.manifest import write_manifest

Call = Callable[..., Result]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def build(workplace: Path) -> Path:
    make_build(workplace / "build")
    return workplace / "build"


def answered(result: Result) -> dict[str, object]:
    assert result.exit_code == 0, result.stderr
    document: dict[str, object] = json.loads(result.stdout)
    return document


def refused(result: Result, exit_code: int, *mentions: str) -> None:
    lines = [line for line in result.stderr.splitlines() if line.startswith("error[")]
    assert result.exit_code == exit_code, result.stderr
    assert len(lines) == 1
    assert "; fix: " in lines[0]
    assert "Traceback" not in result.stderr
    for mention in mentions:
        assert mention in lines[0], lines[0]


def test_the_way_of_a_model_to_a_team(call: Call, build: Path) -> None:
    published = answered(call("publish", build, "registry", "--json"))
    assert published["serial"] == 1
    assert published["published"] == [
        f"sample-net 1.0.0 for {name}" for name in ("android", "ios", "raspberry-pi")
    ]
    lines = published["lines"]
    assert isinstance(lines, list)
    assert any("implementation(" in line for line in lines)
    assert any(".package(url:" in line for line in lines)
    assert any("pip install" in line for line in lines)
    assert not any("{registry}" in line for line in lines)
    listed = answered(call("list", "registry", "--json"))
    assert [item["target"] for item in listed["releases"]] == ["android", "ios", "raspberry-pi"]  # type: ignore[attr-defined]
    pulled = answered(call("pull", "sample-net@^1", "--target", "ios", "--from", "registry", "--json"))
    assert pulled["path"] == "edge-pull/sample-net/1.0.0/ios"
    assert answered(call("verify", str(pulled["path"]), "--json"))["kind"] == "pulled bundle"
    assert answered(call("verify", "registry", "--json"))["kind"] == "registry"
    assert answered(call("verify", build / "ios", "--json"))["kind"] == "bundle"


def test_people_read_what_to_paste(call: Call, build: Path) -> None:
    text = call("publish", build, "registry").stdout
    assert "3 published" in text
    assert "what teams paste" in text
    assert "file://" in text
    text = call("list", "registry", "sample-net").stdout
    assert "what teams paste for 1.0.0" in text
    assert "not signed" in text
    text = call("pull", "sample-net", "--target", "android", "--from", "registry").stdout
    assert "edge-export validate edge-pull/sample-net/1.0.0/android" in text
    text = call("verify", "registry").stdout
    assert "are the bytes that were" in text
    assert "digests find damage, not forgery" in text


def test_a_plan_and_the_same_again_write_nothing(call: Call, build: Path) -> None:
    text = call("publish", build, "registry", "--plan").stdout
    assert "3 would be published" in text
    assert not Path("registry").exists()
    call("publish", build, "registry")
    again = answered(call("publish", build, "registry", "--json"))
    assert (again["published"], again["uploaded_bytes"], again["serial"]) == ([], 0, 1)


def test_signed_from_publisher_to_puller_and_rotated(call: Call, build: Path, workplace: Path) -> None:
    private, public = make_key(workplace, "first")
    newer, newer_public = make_key(workplace, "second")
    signed = answered(call("publish", build, "registry", "--sign", private, "--json"))
    fingerprint = signed["signed_by"]
    assert len(str(fingerprint)) == 64
    pulling = ("pull", "sample-net", "--target", "ios", "--from", "registry")
    assert answered(call(*pulling, "--key", public, "--json"))["signed_by"] == [fingerprint]
    bundle = "edge-pull/sample-net/1.0.0/ios"
    assert answered(call("verify", bundle, "--key", public, "--json"))["signed_by"] == [fingerprint]
    assert answered(call("verify", "registry", "--json"))["signed_by"] == [fingerprint]
    refused(call(*pulling, "--key", newer_public), 19, "index.json", "signed by none of the accepted keys")
    refused(call("publish", make_bundle(workplace / "more", name="more"), "registry"), 19, "--sign KEY.pem")
    renewed = answered(call("publish", "--renew", "registry", "--sign", newer, "--json"))
    assert renewed["signed_by"] != fingerprint
    refused(call(*pulling, "--key", public), 19, "signed by none of the accepted keys")
    both = answered(call(*pulling, "--key", public, "--key", newer_public, "--json"))
    assert len(both["signed_by"]) == 2  # type: ignore[arg-type]
    answered(call(*pulling, "--key", newer_public, "--json"))
    answered(call("verify", "registry", "--key", newer_public, "--json"))


def test_what_nobody_signed_is_refused_where_a_key_is_demanded(
    call: Call, build: Path, workplace: Path
) -> None:
    _, public = make_key(workplace)
    call("publish", build, "registry")
    refused(
        call("pull", "sample-net", "--target", "ios", "--from", "registry", "--key", public),
        19,
        "is not signed",
    )
    refused(call("verify", "registry", "--key", public), 19, "is not signed")
    refused(call("verify", build / "ios", "--key", public), 19, "bears no signature")


def test_forged_signatures_and_releases_are_refused(call: Call, build: Path, workplace: Path) -> None:
    private, public = make_key(workplace)
    call("publish", build, "registry", "--sign", private)
    signature = Path("registry/signatures/index-1.sig")
    good = signature.read_bytes()
    signature.write_bytes(good[:-20])
    refused(call("list", "registry", "--key", public), 19, "index.json")
    signature.write_bytes(good)
    signature.unlink()
    refused(call("list", "registry", "--key", public), 19, "index-1.sig is missing")
    refused(call("verify", "registry"), 19, "index-1.sig is missing")
    signature.write_bytes(good)
    stolen = next(Path("registry/signatures").glob("*-*.sig"))
    for other in Path("registry/signatures").glob("[0-9a-f]*.sig"):
        other.write_bytes(stolen.read_bytes())
    refused(call("verify", "registry"), 19, "signatures/")


def test_a_key_that_others_can_read_does_not_sign(call: Call, build: Path, workplace: Path) -> None:
    private, _ = make_key(workplace)
    private.chmod(0o640)
    refused(
        call("publish", build, "registry", "--sign", private), 19, "open to others (mode 640)", "chmod 600"
    )
    assert not (workplace / "registry").exists()


@pytest.mark.parametrize("name", ["../x", "a;b", "$(id)", "a\nb", "x" * 300, "A", "x@../../y", "x@1;2"])
def test_names_and_versions_that_lead_elsewhere_are_refused(call: Call, build: Path, name: str) -> None:
    call("publish", build, "registry")
    refused(call("pull", name, "--from", "registry"), 2)


def test_likely_mistakes_are_told_with_their_mend(call: Call, build: Path, workplace: Path) -> None:
    refused(call("publish", "registry"), 2, "no bundle is named")
    refused(call("publish", "--renew", build, "registry"), 2, "--renew takes the registry alone")
    refused(call("publish", "--renew", "registry"), 10, "is no registry yet")
    refused(call("publish", workplace / "nothing", "registry"), 10, "nothing")
    refused(call("pull", "sample-net", "--from", "nowhere"), 10, "nowhere is no registry")
    refused(call("list", "https://"), 2)
    refused(call("verify", "nowhere"), 10, "is no registry")
    call("publish", build, "registry")
    refused(call("pull", "sample-nett", "--from", "registry"), 10, "did you mean sample-net")
    refused(call("pull", "sample-net@", "--from", "registry", "--target", "ios"), 2, "sample-net@latest")
    refused(call("pull", "sample-net@9", "--from", "registry", "--target", "ios"), 10, "there is 1.0.0")
    refused(
        call("publish", touch_up(make_bundle(workplace / "other")), "registry"), 19, "raise model.version"
    )


def test_places_that_are_taken_are_told(call: Call, build: Path, workplace: Path) -> None:
    (workplace / "file").write_text("x")
    refused(call("publish", build, "file"), 10, "file is a file, and a registry is a folder")
    refused(call("publish", build / "ios", build / "ios" / "registry"), 2, "lies inside the bundle")
    call("publish", build, "registry")
    refused(call("list", "registry", "sample-net@^2"), 10, "that '^2' admits", "there is 1.0.0")
    pull = ("pull", "sample-net", "--target", "ios", "--from", "registry", "--out")
    refused(call(*pull, "registry/here"), 2, "lies inside the registry")
    refused(call(*pull, "file/here"), 2, "--out file/here cannot be a folder: Not a directory")
    place = workplace / "edge-pull" / "sample-net" / "1.0.0"
    place.mkdir(parents=True)
    (place / "ios").symlink_to(workplace)
    refused(call("pull", "sample-net", "--target", "ios", "--from", "registry"), 10, "is a symbolic link")
    assert [path.name for path in place.iterdir()] == ["ios"]


def test_nothing_is_left_of_the_conversation(call: Call, build: Path) -> None:
    call("publish", build, "registry")
    assert not list(Path("registry").rglob(".*"))
    call("pull", "sample-net", "--target", "ios", "--from", "registry")
    assert {path.name for path in Path("edge-pull/sample-net/1.0.0").iterdir()} == {"ios", "ios.release.json"}


def test_a_password_in_a_url_is_not_shown(
    call: Call, build: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call("publish", build, "registry")
    with serve(workplace / "registry") as served:
        url = served.url.replace("//", "//user:S3CRET@")
        results = [call("list", url), call("list", url, "sample-net"), call("list", url, "--json")]
    assert [result.exit_code for result in results] == [0, 0, 0]
    results += [
        call("publish", "--renew", "a", url),
        call("publish", url),
        call("list", f"{served.url}/?t=S3CRET"),
    ]
    results += [call("list", "http://user:S3/CRET@127.0.0.1:1/x")]
    assert not any("S3" in result.output or "CRET" in result.output for result in results)
    assert not any("CRET" in path.read_text() for path in workplace.parent.rglob("*.log"))


def test_a_variable_that_names_no_key_is_a_mistake(
    call: Call, build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call("publish", build, "registry")
    for value, cause in (
        ("", "is set and names no key"),
        (":", "is set and names no key"),
        ("a.pem", "a.pem, which"),
    ):
        monkeypatch.setenv("EDGE_EXPORT_KEYS", value)
        refused(call("list", "registry"), 2, cause)


def test_half_a_build_is_not_published(call: Call, build: Path, workplace: Path) -> None:
    (build / "provenance.json").write_text("{}")
    write_manifest(build, {"name": "sample-net", "version": "1.0.0"})
    refused(call("publish", workplace, "registry"), 10, "holds builds, and is none itself", f"{build}")
    (build / "provenance.json").write_text("{ }")
    refused(
        call("publish", build, "registry"), 19, "build is not as it was made", "provenance.json has SHA-256"
    )
    (build / "provenance.json").write_text("{}")
    (build / "manifest.json").rename(workplace / "aside")
    refused(call("publish", build, "registry"), 19, "build is not as it was made", "manifest.json is missing")
    (workplace / "aside").rename(build / "manifest.json")
    (build / "ios").rename(workplace / "ios")
    refused(call("publish", build, "registry"), 19, "build is not as it was made", "is missing")
    assert not (workplace / "registry").exists()
    assert call("publish", build / "android", "registry").exit_code == 0


def test_a_home_that_cannot_be_and_a_folder_that_is_gone_are_told(
    call: Call, build: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = workplace / "registry"
    call("publish", build, registry)
    pull = ("pull", "sample-net", "--target", "ios", "--from", registry)
    for variable in ("XDG_CACHE_HOME", "XDG_STATE_HOME"):
        with monkeypatch.context() as patch:
            patch.setenv(variable, "/dev/null")
            refused(call(*pull), 10, "/dev/null/edge-exporter cannot be made", f"set {variable} to a folder")
    (workplace / "gone").mkdir()
    monkeypatch.chdir(workplace / "gone")
    (workplace / "gone").rmdir()
    refused(call(*pull), 10, "the folder that this command runs in is gone")
    monkeypatch.chdir(workplace)
