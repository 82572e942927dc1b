"""How much memory and time `nd prepare data=nsd` takes on a simulated tree with NSD's grid and sessions.

    command   python experiments/benchmarks/nsd_prepare.py --sessions 4 --form nii.gz
    time      2 minutes on 2 CPU cores, most of it for writing the tree
    memory    2.5 GB (writing the tree; preparing takes the printed amount)
    disk      1 GB in a temporary folder (nii.gz), 5 GB (hdf5)

Voxels are noise: only sizes matter here. Peak memory is that of a process of its own, less that of a process which only
loads the same modules.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rows import MEASURED, WALL_TIME, Asked, Row

from nd.data.nsd.facts import PEOPLE, TRIALS_PER_SESSION
from nd.data.prepared import Stimuli, Subject, write_stimuli, write_subject
from nd.scenes.as_nsd import write_nsd

SIDE = 16  # of the images, which this is not about
N_REPEATS = 3
LOAD = "import nibabel, h5py, scipy.io, tqdm, nd.prepare, nd.data.nsd.prepare, nd.data.nsd.volumes"


def main() -> None:
    """Write the tree, prepare it in a process of its own, and print what that took."""
    found(parsed())


def measure(asked: Asked) -> list[Row]:
    """Return the rows of preparing two numbers of sessions: time grows with them, memory does not."""
    small = ["--trials", "60", "--voxels", "200", "--grid", "20", "20", "20"] if asked.quick else []
    rows = []
    for sessions in ("1", "3"):
        seconds, added_mb = found(parsed(["--sessions", sessions, *small]))
        case = f"nd prepare data=nsd, {sessions} session{'s' * (sessions != '1')} of NSD's size"
        rows += [Row(case=f"{case}: a session", unit="s", ours=[seconds / int(sessions)], clock=WALL_TIME),
                 Row(case=f"{case}: memory beyond modules", unit="MB", ours=[added_mb], clock=MEASURED)]  # fmt: skip
    return rows


def found(arguments: argparse.Namespace) -> tuple[float, float]:
    """Return the seconds that preparing took and the MB it added, printed."""
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        root = Path(folder)
        n_trials = write_tree(root, arguments)
        base_mb, _ = peak_mb([sys.executable, "-c", LOAD])
        overrides = [
            "data=nsd", f"data.root={root / 'tree'}", "data.subjects=[subj01]", f"data.image_size={SIDE}",
            "data.simulated=true", "protocol=scenes", "data.n_val=5", f"paths.data={root / 'data'}",
        ]  # fmt: skip
        used_mb, seconds = peak_mb([sys.executable, "-m", "nd.prepare", *overrides])
        written = (root / "data" / "nsd" / "subj01.h5").stat().st_size
    sessions, each = arguments.sessions, seconds / arguments.sessions
    print(f"simulated tree ({arguments.form}): {n_trials} trials in {sessions} sessions, {arguments.voxels} voxels")
    print(f"prepared in {seconds:.1f} s, {each:.1f} s per session; {written / 1e6:.0f} MB written")
    print(f"peak memory {used_mb:.0f} MB, {used_mb - base_mb:.0f} MB beyond the loaded modules ({base_mb:.0f} MB)")
    return seconds, used_mb - base_mb


def parsed(given: list[str] | None = None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=int, default=4)
    parser.add_argument("--trials", type=int, default=TRIALS_PER_SESSION, help="per session")
    parser.add_argument("--voxels", type=int, default=PEOPLE["subj01"].voxels)
    parser.add_argument("--grid", type=int, nargs=3, default=PEOPLE["subj01"].grid)
    parser.add_argument("--form", choices=("nii.gz", "hdf5"), default="nii.gz")
    parser.add_argument("--folder", default=None, help="where the temporary folder is made")
    return parser.parse_args(given)


def write_tree(root: Path, arguments: argparse.Namespace) -> int:
    """Write a subject of noise as a tree of NSD; returns the number of trials."""
    rng = np.random.default_rng(0)
    n_trials = arguments.sessions * arguments.trials
    n_images = n_trials // N_REPEATS
    image_id = rng.permutation(np.arange(n_trials) % n_images)
    inside = np.argwhere(np.ones([side - 4 for side in arguments.grid], bool)) + 2
    chosen = np.sort(rng.permutation(len(inside))[: arguments.voxels])
    rois = {name: rng.random(arguments.voxels) < 0.1 for name in ("V1", "V2", "V3", "hV4", "ventral", "lateral")}
    rois |= {name: rng.random(arguments.voxels) < 0.05 for name in ("parietal", "face_like", "place_like")}
    write_subject(
        root / "subj01.h5",
        voxels=rng.standard_normal((n_trials, arguments.voxels), dtype=np.float32),
        image_id=image_id,
        session=np.arange(n_trials) // arguments.trials,
        repeat=np.zeros(n_trials, int),
        trial=np.arange(n_trials),
        rois={**exclusive(rois), "nsdgeneral": np.ones(arguments.voxels, bool)},
        ijk=inside[chosen].astype(np.int16),
        ncsnr=np.ones(arguments.voxels, np.float32),
        attributes={"name": "subj01", "source": "noise", "simulated": True},
    )
    images = rng.integers(0, 256, (n_images, SIDE, SIDE, 3), dtype=np.uint8)
    write_stimuli(root / "stimuli.h5", images=images, captions=[["noise"]] * n_images, image_id=np.arange(n_images))
    test_ids = np.arange(n_images - n_images // 10, n_images)
    grid = (arguments.grid[0], arguments.grid[1], arguments.grid[2])
    subject, stimuli = Subject(root / "subj01.h5"), Stimuli(root / "stimuli.h5")
    write_nsd(root / "tree", subject, stimuli, test_ids, forms=[arguments.form], grid=grid)
    return n_trials


def exclusive(rois: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The areas without overlaps: a voxel belongs to the first that has it."""
    taken = np.zeros(len(next(iter(rois.values()))), bool)
    out = {}
    for name, mask in rois.items():
        out[name] = mask & ~taken
        taken |= mask
    return out


def peak_mb(command: list[str]) -> tuple[float, float]:
    """Largest resident set (MB) of a process, and its seconds."""
    measure = (
        "import resource, subprocess, sys; code = subprocess.run(sys.argv[1:]).returncode; "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr); sys.exit(code)"
    )
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", measure, *command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return int(done.stderr.split()[-1]) / unit, time.monotonic() - begun


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
