"""How many CPUs this process may use, which in a container, a batch job or under taskset is not what the machine has.

Imports nothing heavy: `utils.runtime` uses it.
"""

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
        root: folder that holds proc/ and what is mounted.
    """
    quotas = [float("inf")]
    for folder in _cgroup_folders(root):
        try:
            if (folder / "cpu.max").exists():
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if quota != "max" and int(quota) > 0 and int(period) > 0:  # version 1 says -1 where there is no limit
                quotas.append(int(quota) / int(period))
        except (OSError, ValueError):  # the uppermost has no such file
            continue
    return min(quotas)


def _cgroup_folders(root: Path) -> Iterator[Path]:
    """The folders of the cgroups that limit this process's CPU time, from its own up, of both versions."""
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except (OSError, ValueError):  # not Linux
        return
    paths: dict[str, str] = {}  # controller -> the process's cgroup; that of version 2 has no controller
    for membership in memberships:
        _, controllers, own = membership.split(":", 2)
        paths |= dict.fromkeys(controllers.split(","), own)
    for mount in mounts:
        fields, _, kind = mount.partition(" - ")
        mounted, point = fields.split()[3:5]
        is_first = kind.startswith("cgroup ") and "cpu" in kind.split()[-1].split(",")
        path = paths.get("cpu") if is_first else paths.get("") if kind.startswith("cgroup2 ") else None
        if path is None:
            continue
        top = root / point.lstrip("/")
        # A container sees a part of the tree: its own cgroup where the mount begins.
        inside = os.path.relpath(path, mounted)
        folder = top if inside.startswith("..") else top / inside
        yield from (each for each in (folder, *folder.parents) if each == top or top in each.parents)
