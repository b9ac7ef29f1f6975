import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

from quill import adapters
from quill.errors import InvalidUsage

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


@pytest.fixture
def offer(tmp_path, monkeypatch):
    """Installs a distribution that offers backends: its metadata, and a module with its code."""

    def install(code="", **backends):
        (tmp_path / "backends_for_test.py").write_text(textwrap.dedent(code))
        metadata = tmp_path / "backends_for_test-1.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: backends-for-test\nVersion: 1\n")
        lines = [f"{name} = {value}\n" for name, value in backends.items()]
        (metadata / "entry_points.txt").write_text("[quill.backends]\n" + "".join(lines))
        monkeypatch.syspath_prepend(tmp_path)

    yield install
    sys.modules.pop("backends_for_test", None)


@pytest.fixture
def own(offer):
    """Offers what the project's own metadata declares, whether or not it is installed."""
    offer(**tomllib.loads(PYPROJECT.read_text())["project"]["entry-points"]["quill.backends"])


@pytest.mark.usefixtures("own")
def test_the_embedded_model_loads_by_its_name():
    backend = adapters.load("ngram", token_delay_ms=1)
    assert backend.name == "ngram"
    assert backend.models()[0].name == "ngram-alice"
    assert "ngram" in adapters.names()


@pytest.mark.usefixtures("own")
def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(InvalidUsage, match=r"no backend named 'ngrm'; known: .*ngram"):
        adapters.load("ngrm")


@pytest.mark.usefixtures("own")
def test_an_unknown_option_is_refused_with_the_known_ones():
    with pytest.raises(InvalidUsage, match=r"'ngram' has no option delay; its options: token_delay_ms"):
        adapters.load("ngram", delay=5)


@pytest.mark.usefixtures("own")
def test_a_value_that_does_not_fit_is_refused_by_the_backend():
    with pytest.raises(InvalidUsage, match="token_delay_ms must be finite and at least 0, got -1"):
        adapters.load("ngram", token_delay_ms=-1)


def test_a_foreign_backend_loads_with_its_options(offer):
    offer(
        """
        class Mine:
            def __init__(self, path, *, threads=1):
                self.name, self.path, self.threads = "mine", path, threads
        """,
        mine="backends_for_test:Mine",
    )
    backend = adapters.load("mine", path="weights", threads=4)
    assert (backend.path, backend.threads) == ("weights", 4)
    with pytest.raises(InvalidUsage, match=r"'mine' needs the option path; its options: path, threads"):
        adapters.load("mine")


def test_a_backend_that_takes_any_option_gets_it(offer):
    offer("def make(**options):\n    return options\n", any="backends_for_test:make")
    assert adapters.load("any", anything=1) == {"anything": 1}
    assert adapters.load("any") == {}


def test_a_backend_that_is_not_where_it_is_offered_is_refused(offer):
    offer("", moved="backends_for_test:Moved")
    with pytest.raises(InvalidUsage, match=r"'moved' is offered as 'backends_for_test:Moved', which is not there"):
        adapters.load("moved")


def test_a_backend_without_its_library_says_which_one(offer):
    offer("import a_library_that_nobody_has\n", lacking="backends_for_test:Lacking")
    with pytest.raises(InvalidUsage, match=r"'lacking' needs 'a_library_that_nobody_has', which is not installed"):
        adapters.load("lacking")
