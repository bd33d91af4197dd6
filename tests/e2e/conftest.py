"""One real build of each demo model for the test run, through the command line in a process of its own."""

from __future__ import annotations

import pytest
from build_ground import Built, build, read_built
from shared_builds import once


@pytest.fixture(scope="session")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The convolutional demo for all targets, as a newcomer builds it."""
    return read_built(once(tmp_path_factory, "demo-cnn", lambda folder: build(["demo"], folder)))


@pytest.fixture(scope="session")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The transformer demo for two targets: what they share with the third is the convolutional demo's to prove."""
    from exporter.cli.demo import demo_recipe

    options = ["--target", "raspberry-pi", "--target", "ios"]
    arguments = ["build", demo_recipe("vit"), *options]
    return read_built(once(tmp_path_factory, "demo-vit", lambda folder: build(arguments, folder)))


@pytest.fixture(scope="session", params=["cnn", pytest.param("vit", marks=pytest.mark.nightly)])
def built(request: pytest.FixtureRequest) -> Built:
    """Each demo build in turn."""
    found: Built = request.getfixturevalue(request.param)
    return found
