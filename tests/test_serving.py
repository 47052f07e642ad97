"""What docs/serving.md says of HTTP, other languages and the browser: its programs are run, on a random model."""

import functools
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
import venv
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from browser import Browser
from conftest import ROOT, WORDS, make_encoder
from test_readme import blocks, word_pieces
from transformers import AutoModelForSequenceClassification

from utils.export.fused import build_graph
from utils.export.model_dir import write_model_dir
from utils.predictor.folder import GRAPH, UNPADDED_GRAPH
from utils.predictor.model import Predictor, softmax

PAGE = "docs/serving.md"
NODE_PACKAGES = ("@huggingface/transformers", "@huggingface/tokenizers", "onnxruntime-node", "onnxruntime-web")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
has_packages = shutil.which("node") and all((ROOT / "node_modules" / name).is_dir() for name in NODE_PACKAGES)
needs_node = pytest.mark.skipif(
    not has_packages, reason="needs node, and in the repository's root what docs/serving.md installs with npm"
)
LONG = " ".join(WORDS[:15])  # more tokens than n_ctx
NAME = "runs/sst2/models/pruned-small"  # on the page


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder with a model where the page has one."""
    folder = tmp_path_factory.mktemp("site")
    tokenizer = word_pieces()
    encoder = make_encoder(folder / "encoder", "bert", tokenizer, hidden_size=64, intermediate_size=100)
    model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=3).eval()
    model.config.id2label = dict(enumerate(["bad", "so-so", "good"]))
    graphs = {GRAPH: build_graph(model), UNPADDED_GRAPH: build_graph(model, masked=False)}
    origin = {"n_ctx": 12, "version": "fp32", "machine": {}, "texts": 1}
    write_model_dir(folder / NAME, graphs, tokenizer, model.config, origin, "")
    (folder / "node_modules").symlink_to(ROOT / "node_modules")
    return folder


@pytest.fixture(scope="module")
def predictor(site) -> Predictor:
    return Predictor(site / NAME, 1)


def program(language: str, part: str) -> str:
    """The one block of the page that holds `part`."""
    (text,) = [text for name, text in blocks(PAGE) if name == language and part in text]
    return text


def the_text(code: str) -> str:
    """The text that a program labels."""
    (text,) = re.findall(r'"(a gorgeous [^"]*)"', code)
    return text


def run(command: list, folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def expect_scores(scores: list[dict], probabilities: dict[str, float], tolerance: float = 1e-5) -> None:
    """As text-embeddings-inference and transformers give them, the highest first."""
    assert [each["label"] for each in scores] == sorted(probabilities, key=lambda label: -probabilities[label])
    assert {each["label"]: each["score"] for each in scores} == pytest.approx(probabilities, abs=tolerance)


@needs_node
def test_transformers_js(site, predictor):
    code = program("js", "@huggingface/transformers")
    (site / "label.mjs").write_text(re.sub(r"console\.log\((.*)\);", r"console.log(JSON.stringify(\1));", code))
    expect_scores(json.loads(run(["node", "label.mjs"], site)), predictor.predict(the_text(code)).probabilities)


@needs_node
@pytest.mark.parametrize("library", ["onnxruntime-node", "onnxruntime-web"])
def test_onnxruntime_of_javascript(site, predictor, library):
    code = program("js", "onnxruntime-node")
    if library == "onnxruntime-web":
        first, *others = program("js", "onnxruntime-web").splitlines()
        code = re.sub(r"^import \* as ort .*$", first, code, flags=re.MULTILINE)
        code = re.sub(r"^const session = .*$", "\n".join(others), code, flags=re.MULTILINE)
    (site / "label.mjs").write_text(code)
    logits = np.array([json.loads(run(["node", "label.mjs"], site))])
    expected = predictor.predict(the_text(code)).probabilities
    assert softmax(logits)[0].tolist() == pytest.approx(list(expected.values()), abs=1e-5)


class Files(SimpleHTTPRequestHandler):
    """A web server of a folder, and of docs/try.html with the libraries of node_modules."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | {".mjs": "text/javascript", ".wasm": "application/wasm"}

    def log_message(self, *arguments) -> None:
        pass

    def send_head(self):
        self.server.requests.append(self.path)
        return super().send_head()

    do_POST = do_PUT = SimpleHTTPRequestHandler.do_HEAD


@pytest.fixture
def server(site):
    with ThreadingHTTPServer(("localhost", 0), functools.partial(Files, directory=site)) as server:
        server.requests = []
        address = f"http://localhost:{server.server_address[1]}"
        page = (ROOT / "docs/try.html").read_text(encoding="utf-8")
        library = re.compile(r'from "https://cdn\.jsdelivr\.net/npm/(@?[\w-]+(?:/[\w-]+)?)@[\d.]+/')
        page, count = library.subn(rf'from "{address}/node_modules/\1/', page)
        assert count == 2
        page = page.replace("https://cdn.jsdelivr.net/npm/", f"{address}/node_modules/")
        (site / "try.html").write_text(page, encoding="utf-8")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield address, server.requests
        server.shutdown()
        thread.join()


@pytest.fixture
def browser():
    page = Browser(CHROMIUM)
    yield page
    page.close()


@needs_node
@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")
def test_a_browser(site, predictor, server, browser):
    address, requests = server
    browser.call("Page.navigate", url=f"{address}/try.html?model={NAME}")
    browser.wait("document.querySelectorAll('#answer tr').length > 0")
    loaded = list(requests)
    assert {f"/{NAME}/{name}" for name in ("config.json", "model.unpadded.onnx", "model.weights")} <= set(loaded)
    for text in ("good film", LONG, '<b>schön</b> & "gut"'):
        browser.run("document.getElementById('text').value = ''; document.getElementById('text').focus()")
        browser.run("document.getElementById('answer').replaceChildren()")
        browser.call("Input.insertText", text=text)
        browser.wait("document.querySelectorAll('#answer tr').length > 0")
        rows = browser.run("[...document.querySelectorAll('#answer tr')].map((row) => row.innerText.split('\\t'))")
        scores = [{"label": label, "score": float(score)} for label, score, _ in rows]
        expect_scores(scores, predictor.predict(text).probabilities, 1e-4)
        assert re.fullmatch(r"\d+\.\d ms", browser.run("document.getElementById('status').textContent"))
    assert requests == loaded  # no text went anywhere
    assert browser.run("document.getElementById('error').textContent") == ""


@needs_node
@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")
@pytest.mark.parametrize(
    ("config", "part"),
    [
        (None, "config.json cannot be read (404)"),
        ({"id2label": {}}, "is no folder that quantize.py wrote"),
        ({"fastformers": {"files": {}, "cascade": [{}]}}, "is a cascade: open the folder of one of its stages"),
        ({"fastformers": {"files": {}, "texts": 2}}, "is a model of pairs of texts"),
    ],
)
def test_folders_that_the_page_does_not_open(site, server, browser, config, part):
    folder = site / "other"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    browser.call("Page.navigate", url=f"{server[0]}/try.html?model=other")
    browser.wait("document.getElementById('error')?.textContent")
    assert part in browser.run("document.getElementById('error').textContent")


@pytest.mark.slow
def test_optimum(site, predictor):
    """In the virtual environment of the benchmarks, made where it is not there."""
    folder = ROOT / ".venv-optimum"
    if not (folder / "bin/python").exists():
        venv.create(folder, with_pip=True)
        run([folder / "bin/pip", "install", "-q", "-r", ROOT / "benchmarks/requirements-optimum.txt"], ROOT)
    code = program("python", "optimum")
    for text in (the_text(code), LONG):
        changed = re.sub(r"print\((.*)\)", r"import json; print(json.dumps(\1))", code.replace(the_text(code), text))
        scores = json.loads(run([folder / "bin/python", "-c", changed], site).splitlines()[-1])
        expect_scores(scores[0] if isinstance(scores[0], list) else scores, predictor.predict(text).probabilities)


def container(text: str, context: Path, folder: Path) -> tuple[str, dict]:
    """Do what a Dockerfile says, in a fresh virtual environment for its image: its CMD, and the environment for it."""
    venv.create(folder / "venv", with_pip=True)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment["PATH"] = os.pathsep.join([str(folder / "venv/bin"), os.environ["PATH"]])
    start = ""
    for line in text.splitlines():
        instruction, _, rest = line.partition(" ")
        if instruction == "COPY":
            source, target = (Path(name) for name in rest.split())
            (folder / target).parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (context / source).is_dir() else shutil.copy
            copy(context / source, folder / target, **({"dirs_exist_ok": True} if copy is shutil.copytree else {}))
        elif instruction == "RUN":
            subprocess.run(["bash", "-c", rest], cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
        elif instruction == "CMD":
            start = rest
        else:
            assert instruction in ("FROM", "WORKDIR", "USER", "EXPOSE"), line
    return start, environment


@pytest.mark.slow
def test_the_container_answers_10000_requests(site, predictor, tmp_path, capsys):
    dockerfile, application = program("dockerfile", "FROM"), program("python", "fastapi")
    assert dockerfile.count("\n") <= 12 and application.count("\n") <= 30
    context, image = tmp_path / "context", tmp_path / "image"
    shutil.copytree(site / NAME, context / "model")
    (context / "app.py").write_text(application)
    image.mkdir()
    start, environment = container(dockerfile, context, image)
    where = [image / "venv/bin/python", "-c", "import onnxruntime; print(onnxruntime.__file__)"]
    assert run(where, image).startswith(str(image / "venv"))
    client = ROOT / "tests/requirements-serving.txt"
    subprocess.run([image / "venv/bin/pip", "install", "-q", "-r", client], check=True, stdout=subprocess.DEVNULL)

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    assert start.count("--port 8000") == 1
    command = ["bash", "-c", f"exec {start.replace('--port 8000', f'--port {port}')} --log-level warning"]
    texts = [" ".join(WORDS[i % 20 :] + WORDS[: i % 7])[: 5 + i % 60] for i in range(10_000)]
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    with subprocess.Popen(command, cwd=image, env=environment, stderr=subprocess.PIPE, text=True) as service:
        try:
            end = time.monotonic() + 60
            while socket.socket().connect_ex(("localhost", port)):
                assert service.poll() is None and time.monotonic() < end
                time.sleep(0.1)
            client = [image / "venv/bin/python", ROOT / "tests/serving_client.py", tmp_path / "texts.json"]
            results = json.loads(run([*client, f"http://localhost:{port}", "32"], tmp_path))
            bad = post(port, {"inputs": ["one text", "another"]})
            batch = post(port, {"inputs": [[texts[0]], [texts[1]]]})
        finally:
            service.terminate()
    assert len(results) == 10_000
    for (answer, _), expected in zip(results, predictor.predict_batch(texts), strict=True):
        expect_scores(answer, expected.probabilities)
    assert batch[0] == 200
    for answer, (alone, _) in zip(batch[1], results[:2], strict=True):
        expect_scores(answer, {each["label"]: each["score"] for each in alone}, tolerance=1e-6)  # a rounding
    assert bad[0] == 422 and "is a pair but the model was trained on rows of one text" in bad[1]["detail"]
    milliseconds = np.percentile([1000 * seconds for _, seconds in results], [50, 99])
    with capsys.disabled():
        print("\n10,000 requests from 32 connections: p50 {:.1f} ms, p99 {:.1f} ms".format(*milliseconds))


def post(port: int, value: dict) -> tuple[int, object]:
    """Status and answer of a request."""
    connection = http.client.HTTPConnection("localhost", port, timeout=30)
    connection.request("POST", "/predict", json.dumps(value), {"content-type": "application/json"})
    response = connection.getresponse()
    return response.status, json.loads(response.read())
