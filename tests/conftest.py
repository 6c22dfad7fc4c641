"""Shared by all tests: environment variables, the sample, trained runs, and `curate` as a subprocess."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from support.argilla_server import LabellingServer
    from support.search_dataset import Searched
    from transformers import PreTrainedTokenizerBase

    from curate.review.argilla.client import Argilla
    from train.tokens.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[1]

# Set before torch or polars is imported: one thread gives the same bits on every machine, and nothing is downloaded.
for name, value in {
    "OMP_NUM_THREADS": "1",
    "POLARS_MAX_THREADS": "2",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "UNSLOTH_AUTO_INSTALL": "0",
    "UNSLOTH_DISABLE_STATISTICS": "1",
    "COLUMNS": "120",
    "NO_COLOR": "1",
}.items():
    os.environ.setdefault(name, value)
os.environ.pop("CURATE_STORE", None)
# A shell that starts the tests in the background ignores Ctrl-C, and every command would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

Ran = subprocess.CompletedProcess[str]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if shutil.which("nvidia-smi") is None:
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def _session_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache for Unsloth's templates and rendered tokens that only this session uses."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CURATE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def sample() -> Path:
    """The folder of the sample: support_tickets.csv, chats.jsonl, the recipe and the tiny model."""
    return ROOT / "data"


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a byte-level tokenizer whose ids are the same on every machine (`support.make_tokenizers`)."""
    from support.make_tokenizers import save_tokenizer

    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def tokenizer(tokenizer_dir: Path) -> "Tokenizer":
    """The tokenizer of `tokenizer_dir`."""
    from train.tokens.tokenizer import Tokenizer

    return Tokenizer.load(tokenizer_dir)


@pytest.fixture(scope="session")
def transformers_tokenizer(tokenizer_dir: Path) -> "PreTrainedTokenizerBase":
    """The same tokenizer, loaded by transformers."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_dir)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose run r1 was trained by Unsloth's CPU backend. Read-only."""
    from support.training import make_project, train

    folder = tmp_path_factory.mktemp("trained")
    make_project(folder)
    train(folder)
    return folder


@pytest.fixture(scope="session")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose run r1 trained all weights. Read-only."""
    from support.training import make_project, train

    folder = tmp_path_factory.mktemp("tuned")
    make_project(folder)
    train(folder, "--set=train.method=full", "--set=train.learning_rate=2e-3", "--set=train.eval_every=8")
    return folder


@pytest.fixture(scope="session")
def argilla_server(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[LabellingServer]":
    """The real labelling server, started once: `.url`, the owner's `.api_key`, `.home`, `.annotator("ann")`."""
    from support.argilla_server import LabellingServer

    server = LabellingServer(tmp_path_factory.mktemp("review") / "home")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def server(argilla_server: "LabellingServer") -> "Iterator[Argilla]":
    """A connection to the labelling server with the owner's key."""
    from curate.review.argilla.client import connect

    with connect(None, argilla_server.home) as connected:
        yield connected


@pytest.fixture
def set_name(request: pytest.FixtureRequest) -> str:
    """A name for the review set of this test, because all tests share one server."""
    return str(request.node.name).replace("_", "-")[:60].lower().strip("-[]")


@pytest.fixture(scope="session")
def searched(argilla_server: "LabellingServer") -> "Searched":
    """A published dataset of 90 records with everything that can be searched, and answers of two annotators."""
    from support.search_dataset import Searched

    return Searched(argilla_server)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of about 48 bytes, so that a short file has several."""
    from curate.ingest.readers import byte_stream

    monkeypatch.setattr(byte_stream, "CHUNK", 48)
    monkeypatch.setattr(byte_stream, "HEAD", 40)


@pytest.fixture(scope="session")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a copy of the trained project, with a merged model and GGUF files in 16 bits and q4_k_m."""
    from support.training import copy_project

    from train.export.gguf import export_gguf

    store = copy_project(trained, tmp_path_factory.mktemp("exported") / "copy")
    export_gguf(store, "r1", ["q4_k_m"], check=False)
    return store


@pytest.fixture
def curate(tmp_path: Path) -> Callable[..., Ran]:
    """`curate(*arguments)` runs the command as a subprocess in `tmp_path`; `input=` is its stdin."""

    def run(*arguments: str, input: str | None = None, cwd: Path = tmp_path, **environment: str) -> Ran:
        command = [sys.executable, "-P", "-m", "curate", *arguments]
        return subprocess.run(
            command, cwd=cwd, env=os.environ | environment, input=input, capture_output=True, text=True, check=False
        )

    return run
