"""Importing the library leaves the program that does so as it is."""

import json
import subprocess
import sys

from conftest import ROOT

# What scripts import, which are programs of their own.
OF_SCRIPTS = {"utils.system.cli", "utils.system.environment", "utils.system.startup", "utils.arguments"}
# What they need, which is imported first: libraries may do as they like.
LIBRARIES = (
    "torch torch.ao.quantization accelerate datasets transformers.modeling_utils onnx onnxruntime "
    "onnxruntime.quantization onnxruntime.transformers.optimizer pyarrow.parquet matplotlib.backends.backend_agg "
    "psutil tqdm safetensors.torch sklearn.linear_model sklearn.pipeline tokenizers"
)

STATE = """
import gc, importlib, json, logging, os, signal, sys, threading, warnings

def state():
    found = {
        "excepthooks": [sys.excepthook is sys.__excepthook__, sys.unraisablehook is sys.__unraisablehook__],
        "signals": [str(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
        "gc": [gc.isenabled(), gc.get_threshold()],
        "threads": threading.active_count(), "environment": dict(os.environ), "path": sys.path, "folder": os.getcwd(),
        "warnings": [str(entry) for entry in warnings.filters],
        "logging": [(logger.name, logger.level, len(logger.handlers), logger.disabled)
                    for logger in [logging.root, *(logging.getLogger(name) for name in LOGGERS)]],
    }
    if "transformers" in sys.modules:
        import datasets, matplotlib, numpy, torch, transformers
        found["torch"] = [torch.get_num_threads(), torch.is_grad_enabled(), str(torch.get_default_dtype())]
        found["seeds"] = [torch.initial_seed(), str(numpy.random.get_state()[1])]
        found["bars"] = [transformers.logging.is_progress_bar_enabled(), datasets.are_progress_bars_disabled()]
        found["matplotlib"] = {name: str(value) for name, value in matplotlib.rcParams.items()}
    return found
"""


def run(code: str) -> dict:
    """The JSON that Python code prints in a process of its own."""
    done = subprocess.run([sys.executable, "-c", STATE + code], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_the_published_import_changes_nothing():
    """And brings nothing that a service has no use for."""
    found = run("""
import numpy, tokenizers  # libraries may do as they like
LOGGERS = []
before = state()
from utils.predictor import Predictor
print(json.dumps({"before": before, "after": state(), "modules": sorted(sys.modules)}))
""")
    assert found["before"] == found["after"]
    # A process that is forked after onnxruntime was imported hangs at its end.
    heavy = {"torch", "transformers", "huggingface_hub", "datasets", "onnx", "onnxruntime", "pyarrow", "accelerate"}
    assert not heavy.intersection(found["modules"])
    parts = ("", ".cpus", ".errors", ".folder", ".model", ".tokens")
    own = {name for name in found["modules"] if name.startswith("utils")}
    assert own == {"utils", *(f"utils.predictor{part}" for part in parts)}


def test_a_cascade_needs_no_pytorch():
    """Nor transformers, which together take most of a script's start."""
    modules = run("import cascade; print(json.dumps(sorted(sys.modules)))")
    assert "utils.measuring.thresholds" in modules and not {"torch", "transformers", "datasets"}.intersection(modules)


def test_no_module_of_the_library_changes_anything():
    paths = [path.relative_to(ROOT).with_suffix("") for path in ROOT.glob("utils/**/*.py")]
    modules = sorted({".".join(path.parts).removesuffix(".__init__") for path in paths} - OF_SCRIPTS)
    assert "utils.training.loop" in modules
    changed = run(f"""
for name in {LIBRARIES.split()}:
    importlib.import_module(name)
LOGGERS = sorted(logging.root.manager.loggerDict)
before, changed = state(), {{}}
for name in {modules}:
    importlib.import_module(name)
    after = state()
    changed |= {{f"{{name}}: {{key}}": 1 for key in before if after[key] != before[key]}}
    before = after
print(json.dumps(changed))
""")
    assert not changed
