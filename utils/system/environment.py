"""Import this before transformers and datasets: they import huggingface_hub, which crashes on a wrong variable."""

import utils.system.startup  # isort: skip  # noqa: F401

import os
import sys

from utils.system.errors import first_line

try:
    import huggingface_hub.constants  # noqa: F401
except ValueError as error:
    names = ", ".join(sorted(name for name in os.environ if name.startswith("HF_")))
    script = os.path.basename(sys.argv[0])
    print(
        f"{script}: error: huggingface_hub cannot read its environment variables ({first_line(error)}): correct or "
        f"unset {names}",
        file=sys.stderr,
    )
    sys.exit(2)
