"""The compiled classes: what is committed is what the sources give, and moving a class changes its package alone."""

from __future__ import annotations

import importlib.util
import re
import struct
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from android_ground import interfaces, needs_java, run
from hypothesis import given, settings
from hypothesis import strategies as st

from targets.android import java_classes, java_properties
from targets.android.java_classes import ALWAYS, ARCHIVE, FOR_TESTS, SOURCES, compiled, relocated, sources

SCRIPT = Path(__file__).parents[3] / "scripts" / "compile_android_classes.py"
EVERY = tuple(sorted((*ALWAYS, *FOR_TESTS, "LiteRtModel", "OnnxModel")))


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compile_android_classes", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def strings(content: bytes) -> list[bytes]:
    """Return the texts of a class file's constant pool; the constants between them are skipped by their sizes."""
    count, at, number, found = struct.unpack_from(">H", content, 8)[0], 10, 1, []
    while number < count:
        tag = content[at]
        if tag == 1:
            length = struct.unpack_from(">H", content, at + 1)[0]
            found.append(content[at + 3 : at + 3 + length])
        at += 3 + length if tag == 1 else 1 + java_classes._SIZES[tag]
        number += 2 if tag in (5, 6) else 1
    return found


@needs_java
def test_the_committed_classes_are_those_of_the_sources() -> None:
    module = script()
    if module.javac_major() != module.JAVAC_MAJOR:
        pytest.skip(f"javac is not version {module.JAVAC_MAJOR}: apt-get install openjdk-17-jdk-headless")
    assert module.compiled(interfaces()) == ARCHIVE.read_bytes(), "run scripts/compile_android_classes.py"


def test_every_source_is_packed_and_runs_on_android_7() -> None:
    """Java 8's format, and nothing of Java's own library that API level 24 lacks."""
    assert tuple(path.stem for path in sorted(SOURCES.glob("*.java"))) == EVERY
    used = set()
    with zipfile.ZipFile(ARCHIVE) as archive:
        for name in archive.namelist():
            content = archive.read(name)
            assert struct.unpack_from(">IHH", content) == (0xCAFEBABE, 0, 52), name
            used |= {text.decode() for text in strings(content) if re.fullmatch(rb"java/[\w/$]+", text)}
    assert sorted(name for name in used if name.split("/")[1] not in {"io", "lang"}) == [
        "java/math/BigDecimal",
        "java/math/RoundingMode",
        "java/nio/ByteBuffer",
        "java/nio/ByteOrder",
        "java/nio/DoubleBuffer",
        "java/nio/FloatBuffer",
        "java/nio/IntBuffer",
        "java/nio/LongBuffer",
        "java/nio/ShortBuffer",
        "java/nio/charset/StandardCharsets",
        "java/security/MessageDigest",
        "java/security/NoSuchAlgorithmException",
        "java/util/ArrayList",
        "java/util/Arrays",
        "java/util/Collection",
        "java/util/Collections",
        "java/util/Comparator",
        "java/util/Iterator",
        "java/util/LinkedHashMap",
        "java/util/List",
        "java/util/Locale",
        "java/util/Map",
        "java/util/Map$Entry",
        "java/util/Optional",
        "java/util/Properties",
        "java/util/Set",
        "java/util/zip/DataFormatException",
        "java/util/zip/Inflater",
    ]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.from_regex(r"[a-zA-Z][a-zA-Z0-9_]{0,30}", fullmatch=True), min_size=1, max_size=6))
def test_moving_a_class_changes_the_package_in_its_strings_alone(parts: list[str]) -> None:
    package, path = ".".join(parts), "/".join(parts)
    with zipfile.ZipFile(ARCHIVE) as archive:
        for name in ("edge_template/OnnxModel.class", "edge_template/ModelInfo.class"):
            before = archive.read(name)
            after = relocated(before, package)
            wanted = [text.replace(b"edge_template/", f"{path}/".encode()) for text in strings(before)]
            assert strings(after) == wanted
            assert before[-200:] == after[-200:]
            if "edge_template" not in package:
                assert b"edge_template" not in after
                if len(path) < 1000:
                    assert relocated(after, package) == after


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_what_is_no_class_file_is_refused(data: st.DataObject) -> None:
    with zipfile.ZipFile(ARCHIVE) as archive:
        whole = archive.read("edge_template/Label.class")
    cut = whole[: data.draw(st.integers(0, 400))]
    with pytest.raises(ValueError, match="not a class file"):
        relocated(cut, "edge.other")
    with pytest.raises(ValueError, match="not a class file"):
        relocated(b"PK" + whole[2:], "edge.other")


def test_the_sources_move_too() -> None:
    text = sources(("ModelInfo",), "edge.models.a.b")["edge/models/a/b/ModelInfo.java"].decode()

    assert text.startswith("package edge.models.a.b;\n")
    assert '"/edge/models/a/b/model.properties"' in text
    assert "edge_template" not in text


@needs_java
def test_the_verifier_takes_moved_classes(tmp_path: Path) -> None:
    files = compiled(EVERY, "edge.models.other.place")
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    said = run("javap", "-p", "-cp", tmp_path, *(f"edge.models.other.place.{name}" for name in EVERY))

    assert "public final class edge.models.other.place.OnnxModel implements java.lang.AutoCloseable {" in said
    listed = "public java.util.List<edge.models.other.place.Label> classify(int[], int, int, int)"
    assert said.count(listed) == 2
    assert "edge_template" not in said


READER = """\
import java.io.*;
import java.util.*;

public final class Reader {
    public static void main(String[] arguments) throws IOException {
        Properties facts = new Properties();
        facts.load(new FileInputStream(arguments[0]));
        PrintStream out = new PrintStream(System.out, true, "UTF-8");
        for (String key : new TreeSet<>(facts.stringPropertyNames())) {
            for (String text : new String[] {key, facts.getProperty(key)}) {
                StringBuilder units = new StringBuilder();
                text.chars().forEach(unit -> units.append(Integer.toHexString(unit)).append(' '));
                out.println(units);
            }
        }
    }
}
"""


@needs_java
def test_java_reads_back_whatever_a_property_holds(tmp_path: Path) -> None:
    texts = ["", " ", "=:#!", "\\u0041\\", "a\nb\r\tc\f", "\x00\x7f", "naïve 🐦", "end ", " start"]
    facts = {f"{text}{number}": text for number, text in enumerate(texts)}
    (tmp_path / "facts").write_bytes(java_properties.properties(facts))
    (tmp_path / "Reader.java").write_text(READER, encoding="utf-8")

    lines = run("java", tmp_path / "Reader.java", tmp_path / "facts").split("\n")[:-1]

    read = [
        bytes.fromhex("".join(unit.zfill(4) for unit in line.split())).decode("utf-16-be") for line in lines
    ]
    assert dict(zip(read[::2], read[1::2], strict=True)) == facts
