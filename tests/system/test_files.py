"""Outputs are whole: the old one or the new, beside whatever else is there."""

import os
import subprocess
import sys

import pytest

from utils.system.files import atomic_file, atomic_files_into, atomic_folder


def dead_process() -> int:
    return int(subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True).stdout)


def test_an_error_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_file(path) as temporary:
        temporary.write_text("new")
        raise ZeroDivisionError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("atomic", [atomic_folder, atomic_files_into])
def test_folders_are_replaced_whole(tmp_path, atomic):
    folder = tmp_path / "folder"
    (folder / "notes").mkdir(parents=True)
    (folder / "notes/mine").write_text("mine")
    (folder / "notes/link").symlink_to("mine")
    (folder / "config").write_text("old")
    with atomic(folder) as temporary:
        (temporary / "config").write_text("new")
        (temporary / "weights").write_text("new")
        assert (folder / "config").read_text() == "old" and not (folder / "weights").exists()
    assert (folder / "config").read_text() == (folder / "weights").read_text() == "new"
    # Only the one that keeps what else is there keeps it.
    assert (folder / "notes/mine").exists() == (folder / "notes/link").is_symlink() == (atomic is atomic_files_into)
    assert os.listdir(tmp_path) == ["folder"]


def test_a_folder_that_cannot_be_moved(tmp_path, monkeypatch):
    """A mount point, or the current folder, which the user's shell is in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").write_text("mine")
    for atomic in (atomic_folder, atomic_files_into):
        with atomic(".") as temporary:
            (temporary / "config").write_text(atomic.__name__)
        assert sorted(os.listdir(tmp_path)) == ["config", "mine"]
        assert (tmp_path / "config").read_text() == atomic.__name__
    assert os.path.samefile(os.getcwd(), tmp_path)


def test_a_link_to_a_folder_stays_one(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "model").symlink_to("disk")
    with atomic_folder(tmp_path / "model") as temporary:
        (temporary / "config").write_text("new")
    assert (tmp_path / "model").is_symlink() and (tmp_path / "disk/config").read_text() == "new"


def test_what_killed_processes_left_is_removed(tmp_path):
    """And what a running one is writing is not."""
    dead, alive = dead_process(), os.getppid()
    (tmp_path / f".file.{dead}.tmp").write_text("half")
    (tmp_path / f".file.{alive}.tmp").write_text("half")
    (tmp_path / f".folder.{dead}.tmp").mkdir()
    (tmp_path / f".other.{dead}.tmp").write_text("half")
    with atomic_file(tmp_path / "file") as temporary:
        temporary.write_text("new")
    with atomic_folder(tmp_path / "folder"):
        pass
    assert sorted(os.listdir(tmp_path)) == [f".file.{alive}.tmp", f".other.{dead}.tmp", "file", "folder"]


def test_a_killed_exchange_of_folders_is_put_right(tmp_path):
    """Where the system cannot swap two folders at once, there is a moment without either."""
    dead = dead_process()
    for name, there in (("a[1]", False), ("b", True)):
        old = tmp_path / f".{name}.{dead}.tmp.old"
        old.mkdir()
        (old / "config").write_text("old")
        (tmp_path / f".{name}.{dead}.tmp").mkdir()
        if there:
            (tmp_path / name).mkdir()
        with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / name):
            raise ZeroDivisionError
        assert (tmp_path / name / "config").exists() != there
    assert sorted(os.listdir(tmp_path)) == ["a[1]", "b"]


def test_the_limit_of_the_disk(tmp_path):
    from utils.system.errors import UserError

    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(UserError, match="disk is full"), atomic_file(path):
        raise OSError(28, os.strerror(28))
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


@pytest.fixture
def synced_paths(monkeypatch) -> list[str]:
    """The names of what is synced, and `replace` where something gets its name, in their order."""
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def record_sync(handle: int) -> None:
        calls.append(os.path.basename(os.readlink(f"/proc/self/fd/{handle}")).split(".tmp")[0])
        fsync(handle)

    def record_replace(source, target) -> None:
        calls.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "replace", record_replace)
    return calls


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="reads Linux's /proc")
def test_everything_is_synced_before_it_gets_its_name(tmp_path, monkeypatch, synced_paths):
    """And its folder afterwards: a name without its bytes, or none, would be what a power cut leaves."""
    own = f".{{}}.{os.getpid()}"
    with atomic_file(tmp_path / "file") as temporary:
        temporary.write_text("new")
        assert synced_paths == []
    assert synced_paths == [own.format("file"), "replace", tmp_path.name]
    for atomic in (atomic_folder, atomic_files_into):
        folder = tmp_path / atomic.__name__
        synced_paths.clear()
        with atomic(folder) as temporary:
            (temporary / "inner").mkdir()
            (temporary / "inner/deep").write_text("new")
            (temporary / "config").write_text("new")
        before, after = synced_paths[:-2], synced_paths[-2:]
        assert sorted(before) == sorted(["inner", "deep", "config", own.format(folder.name)])
        assert before[-1] == own.format(folder.name) and after == ["replace", tmp_path.name]
    # Where it is replaced file by file.
    monkeypatch.chdir(tmp_path)
    synced_paths.clear()
    with atomic_folder(".") as temporary:
        (temporary / "config").write_text("new")
    assert synced_paths == ["config", own.format(tmp_path.name), "replace", tmp_path.name]


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="reads Linux's /proc")
def test_folders_change_places_at_once(tmp_path, synced_paths):
    """On Linux, there is no moment without either."""
    (tmp_path / "folder").mkdir()
    with atomic_folder(tmp_path / "folder"):
        pass
    assert "replace" not in synced_paths and synced_paths[-1] == tmp_path.name


def test_folders_change_places_by_renames_where_they_must(tmp_path, monkeypatch):
    """On systems that cannot swap two of them at once."""
    monkeypatch.setattr("sys.platform", "other")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/old").write_text("old")
    with atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "new").write_text("new")
    assert os.listdir(tmp_path) == ["folder"] and os.listdir(tmp_path / "folder") == ["new"]


@pytest.mark.parametrize("links", [True, False])
def test_what_else_is_in_a_folder_keeps_its_bytes(tmp_path, monkeypatch, links):
    """As links, without a copy of what may be large, where the file system has them."""
    folder = tmp_path / "folder"
    (folder / "notes").mkdir(parents=True)
    (folder / "notes/mine").write_text("mine")
    (folder / "large").write_text("large")
    (folder / "link").symlink_to("large")
    inodes = [(folder / name).stat().st_ino for name in ("notes/mine", "large")]

    def refuse(*arguments):
        raise OSError(95, "Operation not supported")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    with atomic_files_into(folder) as temporary:
        (temporary / "config").write_text("new")
    assert (folder / "notes/mine").read_text() == "mine" and (folder / "large").read_text() == "large"
    assert os.readlink(folder / "link") == "large"
    assert ([(folder / name).stat().st_ino for name in ("notes/mine", "large")] == inodes) == links
