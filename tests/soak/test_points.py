"""Killed, or without a disk, wherever something is written or read, or at any moment: nothing is lost, and a repeated command
completes.

The everyday suite takes a few points of each kind; `make soak` takes every one of them, and a thousand moments.
"""

import errno
import random

import pytest

KILLED, KILLED_HALF_WAY = 0, -1
FAULTS = {
    "create": (errno.ENOSPC, errno.EROFS, errno.EMFILE),
    "open": (errno.EIO, errno.ESTALE, errno.EMFILE),
    "write": (errno.ENOSPC, errno.EIO),
    "sync": (errno.EIO, errno.ENOSPC),
    "rename": (errno.EIO, errno.EROFS),
    "unlink": (errno.EIO,),
    "link": (errno.ENOSPC, errno.EIO),
    "mkdir": (errno.ENOSPC,),
    "read": (errno.EIO, errno.ESTALE),
}
KILLS = {"create": (KILLED,), "write": (KILLED, KILLED_HALF_WAY), "sync": (KILLED,), "rename": (KILLED,)}
KILLS |= {"unlink": (KILLED,), "link": (KILLED,), "mkdir": (KILLED,)}
COMMANDS = ("train", "resume", "sample", "bound", "report", "gradients")
EVERYDAY = ("resume-killed", "sample-failing")
MOMENTS = {"train": 350, "resume": 350, "sample": 90, "bound": 60, "report": 90, "gradients": 30, "compare": 30}


def chosen(counts, faults, every, rng):
    """Points: all of them, or of each kind of fault one."""
    for kind, numbers in faults.items():
        for number in numbers:
            places = range(counts[kind])
            for at in places if every else rng.sample(places, min(1, len(places))):
                yield [kind, at, number]


CASES = {f"{name}-{kind}": (name, faults) for name in COMMANDS for kind, faults in (("killed", KILLS), ("failing", FAULTS))}


@pytest.mark.parametrize("case", [pytest.param(case, marks=() if case in EVERYDAY else pytest.mark.slow) for case in CASES])
def test_every_point(case, served, jobs, request):
    name, faults = CASES[case]
    counts = served({**jobs[name], "points": []})["counts"]
    points = list(chosen(counts, faults, request.config.getoption("--soak"), random.Random(name)))
    found = served({**jobs[name], "points": points})["wrong"]
    print(f"{name}: {len(points)} points of {counts}")
    assert found == {}, f"{len(found)} of {len(points)} points"


@pytest.mark.slow
@pytest.mark.parametrize("name", MOMENTS)
def test_killed_at_any_moment(name, served, jobs, request):
    many, rng = MOMENTS[name] if request.config.getoption("--soak") else 2, random.Random(name)
    found = served({**jobs[name], "points": [["moment", rng.random(), KILLED] for _ in range(many)]})["wrong"]
    print(f"{name}: killed at {many} moments")
    assert found == {}, f"{len(found)} of {many} moments"
