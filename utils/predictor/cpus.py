"""How many CPUs this process may use, which in a container or under taskset is not what the machine has."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def usable_cpus() -> int:
    """The number of CPUs that this process may use, at least 1: by its affinity, and by the quota of its cgroup.

    A quota is rounded down: a thread more would use it up early, and then all of them wait for the next period.
    """
    return max(1, int(min(len(allowed_cores()), cgroup_quota())))


def allowed_cores() -> list[int]:
    """The numbers of the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def cgroup_quota(root: Path = Path("/")) -> float:
    """The CPUs' time that this process's cgroup may use, in CPUs; infinite where nothing limits it.

    Of nested cgroups the tightest counts. Version 2 says "quota period" in cpu.max, version 1 has a file for each
    (https://docs.kernel.org/admin-guide/cgroup-v2.html, https://docs.kernel.org/scheduler/sched-bwc.html).

    Args:
        root: folder that holds proc/ and sys/.
    """
    quotas = [float("inf")]
    for folder in _cgroup_folders(root):
        for names in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
            # Most folders have no such file; without a limit, version 2 says max and version 1 -1.
            with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
                quota, period = " ".join((folder / name).read_text() for name in names).split()
                quotas.append(int(quota) / int(period) if int(quota) > 0 else float("inf"))
    return min(quotas)


def _cgroup_folders(root: Path) -> Iterator[Path]:
    """Folders of the cgroups that may limit this process's CPU time, from its own up; not all of them need be there.

    A container may see the host's paths, but only the part of the tree from its own cgroup on.
    """
    memberships: list[str] = []
    with contextlib.suppress(OSError, ValueError):  # not Linux
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
    for membership in memberships:
        _, controllers, own = membership.split(":", 2)  # version 2 has no controllers
        if not controllers or "cpu" in controllers.split(","):
            top = root / "sys/fs/cgroup" / controllers
            folder = top / own.lstrip("/")
            yield from (each for each in (folder, *folder.parents) if each == top or top in each.parents)
