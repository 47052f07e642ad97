"""One process of one engine: the driver starts it in the engine's virtual environment and tells it what to measure.

    python -m benchmarks.worker '{"mode": "serve", "engine": "pytorch", "path": ..., "rows": ..., ...}'

Answers are JSON lines on standard output; whatever the libraries print goes to standard error. A serving worker takes
commands as JSON lines on standard input and sleeps in between. Little is imported here: cold start is measured too.
"""

import json
import os
import sys
import time
from collections.abc import Callable

WARMUP_ROWS = 10
RSS_FIRST, RSS_EVERY = 10_000, 100_000
LIBRARIES = (
    "torch",
    "transformers",
    "onnxruntime",
    "optimum",
    "optimum-onnx",
    "optimum-intel",
    "openvino",
    "nncf",
    "ctranslate2",
    "torchao",
    "model2vec",
)
GEMM_SHAPES = (
    (128, 384, 1536),
    (256, 384, 1536),
    (1024, 384, 1536),
    (256, 1536, 384),
    (1024, 1536, 384),
    (2048, 2048, 2048),
)
GEMM_SECONDS = 0.2
GEMM_REPEATS = 5


def open_model(settings: dict):
    """The engine's backend."""
    from benchmarks.backends import open_backend

    return open_backend(settings["engine"], settings["path"], settings["num_threads"], settings["n_ctx"])


def milliseconds(run, items: list, warmup: list) -> tuple[list[float], list]:
    """Latency of `run` on each item, and what it returned; `warmup` is run first and not counted."""
    for item in warmup:
        run(item)
    latencies, outputs = [], []
    for item in items:
        start = time.perf_counter()
        output = run(item)
        latencies.append((time.perf_counter() - start) * 1000)
        outputs.append(output)
    return latencies, outputs


def latencies(backend, rows: list[dict], start: int, stop: int) -> dict:
    """Milliseconds of each of rows[start:stop], alone, on every path; and how many labels are right."""
    before, turn = turn_of(rows, start, stop)
    from_ids = graph_latencies(backend, rows, start, stop)
    texts, before = [row["text"] for row in turn], [row["text"] for row in before]
    text, labels = milliseconds(backend.text, texts, before)
    by_hand, labels_by_hand = milliseconds(backend.by_hand, texts, before)
    return {
        "graph": from_ids["graph"],
        "text": text,
        "by_hand": by_hand,
        "right": count_right(labels, turn),
        "right_graph": count_right([scores.index(max(scores)) for scores in from_ids["logits"]], turn, "label_id"),
        "right_by_hand": count_right(labels_by_hand, turn),
    }


def graph_latencies(backend, rows: list[dict], start: int, stop: int) -> dict:
    """Milliseconds of each of rows[start:stop], alone, from token ids to logits; and the logits."""
    before, turn = turn_of(rows, start, stop)
    graph, logits = milliseconds(
        backend.graph, [backend.inputs([row]) for row in turn], [backend.inputs([row]) for row in before]
    )
    return {"graph": graph, "logits": [scores[0].tolist() for scores in logits]}


def turn_of(rows: list[dict], start: int, stop: int) -> tuple[list[dict], list[dict]]:
    """Rows to warm up on, and those to measure."""
    return [rows[i % len(rows)] for i in range(start - WARMUP_ROWS, start)], rows[start:stop]


def throughput(backend, rows: list[dict], batch_size: int, part: int, parts: int) -> dict:
    """Seconds of all rows in batches of about the same length, text in and label out, and the graph alone.

    Args:
        part, parts: this process takes each `parts`-th row, as several of them share the work.
    """
    rows = part_of(rows, part, parts)
    texts = [row["text"] for row in rows]
    backend.texts(texts[: 2 * batch_size], batch_size)
    start = time.perf_counter()
    labels = backend.texts(texts, batch_size)
    text_seconds = time.perf_counter() - start
    return {
        "text_seconds": text_seconds,
        "graph_seconds": graph_seconds(backend, rows, batch_size),
        "num_rows": len(rows),
        "right": count_right(labels, rows),
    }


def graph_throughput(backend, rows: list[dict], batch_size: int, part: int, parts: int) -> dict:
    """As `throughput`, of the graph alone."""
    rows = part_of(rows, part, parts)
    return {"graph_seconds": graph_seconds(backend, rows, batch_size), "num_rows": len(rows)}


def part_of(rows: list[dict], part: int, parts: int) -> list[dict]:
    """Each `parts`-th row, the longest first."""
    return sorted(rows, key=lambda row: -len(row["input_ids"]))[part::parts]


def graph_seconds(backend, rows: list[dict], batch_size: int) -> float:
    """Seconds from token ids to logits of all rows, after two batches that do not count."""
    batches = [backend.inputs(batch) for batch in backend.batches(rows, batch_size)]
    backend.graphs(batches[:2])
    start = time.perf_counter()
    backend.graphs(batches)
    return time.perf_counter() - start


def count_right(labels: list, rows: list[dict], key: str = "label") -> int:
    """How many of these are the rows' labels."""
    return sum(label == row[key] for label, row in zip(labels, rows, strict=True))


def serve(settings: dict, answer) -> None:
    """Measure what the driver asks for, until it closes the pipe."""
    from benchmarks.backends import read_rows

    backend = open_model(settings)
    timed, every = read_rows(settings["rows"]), read_rows(settings["all_rows"])
    if backend.fixed_length:
        every = timed  # all rows take the same time, and a long one
    answer({"versions": versions()})
    commands: dict[str, tuple[Callable[..., dict], list[dict]]] = {
        "latencies": (latencies, timed),
        "graph_latencies": (graph_latencies, timed),
        "throughput": (throughput, every),
        "graph_throughput": (graph_throughput, every),
    }
    for line in sys.stdin:
        command = json.loads(line)
        measure, rows = commands[command.pop("command")]
        answer(measure(backend, rows, **command))


def once(settings: dict, answer) -> None:
    """Cold start: the first answer of a fresh process."""
    answer({"label": open_model(settings).text(settings["text"])})


def memory(settings: dict, answer) -> None:
    """The most memory that a fresh process takes to load the model and to label every row, one by one."""
    backend = open_model(settings)
    num_rows = right = 0
    with open(settings["all_rows"], encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            right += backend.text(row["text"]) == row["label"]
            num_rows += 1
    answer({"peak_rss_mb": rss_mb("VmHWM"), "num_rows": num_rows, "right": right})


def million(settings: dict, answer) -> None:
    """Memory over very many predictions in one process."""
    backend = open_model(settings)
    with open(settings["all_rows"], encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    total = settings["num_predictions"]
    start = time.perf_counter()
    samples = []
    for count in range(1, total + 1):
        backend.text(texts[count % len(texts)])
        if count == RSS_FIRST or count % RSS_EVERY == 0 or count == total:
            samples.append({"predictions": count, "rss_mb": rss_mb("VmRSS")})
            print(samples[-1], file=sys.stderr, flush=True)
    answer({"samples": samples, "seconds": time.perf_counter() - start})


def gemm(settings: dict, answer) -> None:
    """The most int8 operations a second that onnxruntime reaches: unsigned activations, constant signed weights."""
    rates = {}
    for shape in GEMM_SHAPES:
        run = gemm_session(shape, settings["num_threads"])
        best = 0.0
        for _ in range(GEMM_REPEATS):
            count, start = 0, time.perf_counter()
            while (seconds := time.perf_counter() - start) < GEMM_SECONDS:
                run()
                count += 1
            best = max(best, count * 2 * shape[0] * shape[1] * shape[2] / seconds)
        rates["x".join(map(str, shape))] = best
    answer({"operations_per_s": rates})


def gemm_session(shape: tuple[int, int, int], num_threads: int):
    """A function that multiplies matrices of shape [rows, inner] and [inner, columns]."""
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    rows, inner, columns = shape
    generator = np.random.default_rng(0)
    weights = numpy_helper.from_array(generator.integers(-127, 128, (inner, columns)).astype(np.int8), "weights")
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["activations", "weights"], ["product"])],
        "gemm",
        [helper.make_tensor_value_info("activations", TensorProto.UINT8, [rows, inner])],
        [helper.make_tensor_value_info("product", TensorProto.INT32, [rows, columns])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    # Bound once, so that no time goes into allocating the product.
    binding = session.io_binding()
    binding.bind_cpu_input("activations", generator.integers(0, 256, (rows, inner)).astype(np.uint8))
    product = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((rows, columns), np.int32))
    binding.bind_ortvalue_output("product", product)
    session.run_with_iobinding(binding)
    return lambda: session.run_with_iobinding(binding)


def rss_mb(field: str) -> float:
    """This process's memory in MB: VmRSS now, VmHWM at its highest.

    Not getrusage: its maximum starts at that of the process which started this one.
    """
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 / 1e6 for line in file if line.startswith(field))


def versions() -> dict[str, str]:
    """Versions of the libraries in this virtual environment."""
    from importlib.metadata import PackageNotFoundError, version

    installed = {}
    for name in LIBRARIES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed


def main() -> None:
    settings = json.loads(sys.argv[1])
    os.sched_setaffinity(0, settings["cpus"])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(value: dict) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    modes = {"serve": serve, "once": once, "memory": memory, "million": million, "gemm": gemm}
    modes[settings["mode"]](settings, answer)


if __name__ == "__main__":
    main()
