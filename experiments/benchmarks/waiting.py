"""How threads wait for each other: guided sampling alone, and beside other programs that keep every core busy.

    command   python experiments/benchmarks/waiting.py [--ways lanes shared/10000 shared/300000] [--turns 3]
    time      11 minutes for each way on 2 CPU cores, which must be idle; shared/300000 takes longer

Parts of a batch run side by side, one thread for each (``lanes``, nd.generate.lanes), or every operation is shared by
all threads (``shared``), which spin so many times before they sleep: 10000 is nd.threads.SETTING, 300000 OpenMP's own
number (libgomp's manual, GOMP_SPINCOUNT). Each figure is of a process of its own with as many threads as cores, timed
on the clock; the ways take turns.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from statistics import median

from rows import WALL_TIME, Asked, Row

from nd.threads import CHOSEN_BY_USER, SETTING

((NAME, SPINS),) = SETTING.items()
LANES, SHARED, UNSET = "lanes", f"shared/{SPINS}", "shared/300000"
THREADS = [f"{library}_NUM_THREADS" for library in ("OMP", "MKL", "OPENBLAS")]
ALONE, BESIDE = "alone on the machine", "beside a busy loop per core"


def main() -> None:
    """Measure and print a line for every way."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ways", nargs="+", default=[LANES, SHARED, UNSET], help="lanes, or shared/<number of spins>")
    parser.add_argument("--seconds", type=float, default=12.0, help="of sampling, for each figure")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--sample", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.sample:
        print(rate(given.sample, given.seconds))
        return
    for where, rates in measured(given.ways, given.turns, given.seconds).items():
        for way, found in rates.items():
            each = ", ".join(f"{one:.2f}" for one in found)
            print(f"{where:<28} {way:<16} {median(found):5.2f} images/s ({each})", flush=True)


def measure(asked: Asked) -> list[Row]:
    """Return the rows of lanes against operations shared by all threads, in both situations."""
    found = measured([LANES, SHARED], asked.pick(1, 3), asked.pick(0.1, 12.0))
    return [
        Row(case=f"guided sampling on {os.cpu_count()} threads, Scenes models, {where}", unit="images/s", more=True,
            ours=rates[LANES], peer="operations shared by all threads", theirs=rates[SHARED], clock=WALL_TIME)
        for where, rates in found.items()
    ]  # fmt: skip


def measured(ways: Sequence[str], turns: int, seconds: float) -> dict[str, dict[str, list[float]]]:
    """Return images per second, one of each turn, by situation and way."""
    found = {}
    for where, n_loops in ((ALONE, 0), (BESIDE, os.cpu_count() or 1)):
        with busy_loops(n_loops):
            rounds = [{way: in_a_process(way, seconds) for way in ways} for _ in range(turns)]
        found[where] = {way: [rates[way] for rates in rounds] for way in ways}
    return found


@contextmanager
def busy_loops(n: int) -> Iterator[None]:
    """Keep so many other processes busy for the while."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def in_a_process(way: str, seconds: float) -> float:
    """Return the images per second of a new process, which alone can be told how its threads wait."""
    env = {name: value for name, value in os.environ.items() if name not in (*CHOSEN_BY_USER, *THREADS)}
    env[NAME] = way.partition("/")[2] or SPINS
    words = [sys.executable, __file__, "--sample", way, "--seconds", str(seconds)]
    done = subprocess.run(words, env=env, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def rate(way: str, seconds: float) -> float:
    """Return the images per second of one batch sampled again and again, guided as experiment=scenes."""
    import torch
    from sampler import inputs

    from nd.backbone.loading import load_backbone
    from nd.config.application import compose
    from nd.generate.plan import plan_for
    from nd.generate.sampler import GuidedSampler

    cfg = compose(["experiment=scenes"])
    n_images = cfg.trainer.batch_size // cfg.method.repeats
    sampler = GuidedSampler(load_backbone(cfg.backbone), cfg)
    plan = plan_for(sampler, 0.0, [n_images * cfg.method.repeats])
    sampler.use(plan if way == LANES else replace(plan, lanes=1))
    torch.manual_seed(0)
    given = inputs(sampler, n_images, cfg.method.repeats)
    sampler.sample(*given)
    begun, n = time.monotonic(), 0
    while n == 0 or time.monotonic() < begun + seconds:
        sampler.sample(*given)
        n += n_images
    return n / (time.monotonic() - begun)


if __name__ == "__main__":
    main()
