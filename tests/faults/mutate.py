"""Put a fault into one chosen line at a time, and see that the tests find it.

    PYTHONPATH=tests python tests/faults/mutate.py
    PYTHONPATH=tests python tests/faults/mutate.py --only metrics/ --show

Each of MUTATIONS is a line of nd/ whose wrong variant still runs: another sign, index, axis, order or comparison. In a
copy of the tree the line is exchanged and the named test is run, which must fail; before that it must pass. A fault
that no test finds is one that could be made tomorrow: it wants a test against the plain formula.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import cache_from_source
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
COPIED = ("nd", "tests", "conf", "experiments", "pyproject.toml")
HEAVY = (
    "h5py", "hydra", "hypothesis", "pandas", "pytorch_lightning", "scipy.stats", "skimage.metrics", "open_clip",
    "diffusers.models.unets.unet_2d_condition", "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.schedulers.scheduling_ddim", "transformers.models.clip.modeling_clip",
)  # fmt: skip
LIMIT = 300  # seconds of one test, which then counts as failed
PASSED, FAILED, BROKEN = 0, 1, 3  # exit codes of pytest; any but the first two say that the test could not be run


@dataclass(frozen=True)
class Mutation:
    """A fault: in the file `path` of nd/, `new` in place of `old`; `test` of tests/ must find it."""

    path: str
    test: str
    old: str
    new: str


TABLE = [
    ("generate/guidance.py",
     "test_generate.py::test_engine_equals_plain_algorithm[{'normalise': False, 'kappa': 3000.0}]",
     "return eps + (1 - alpha_bar) ** 0.5", "return eps - (1 - alpha_bar) ** 0.5"),
    ("generate/denoiser.py", "test_generate.py::test_engine_equals_plain_algorithm[{'kappa': 0.0}]",
     "return eps_uncond + self.cfg_scale * (eps_cond", "return eps_cond + self.cfg_scale * (eps_cond"),
    ("generate/sampler.py", "test_generate.py::test_engine_equals_plain_algorithm[{'schedule': 'rising'}]",
     "self.guidance.schedule, step, len(self.schedule))", "self.guidance.schedule, step + 1, len(self.schedule))"),
    ("generate/trajectories.py", "test_generate.py::test_every_step_leads_to_the_level_of_the_next",
     "after = (*alpha_bar[1:], ", "after = (*alpha_bar[:-1], "),
    ("targets/noise.py", "test_generate.py::test_noise_is_standard_normal_and_stays_what_it_is",
     "SeedSequence([seed, image_id, repeat])", "SeedSequence([seed, repeat, image_id])"),
    ("targets/vae_latent.py", "test_targets.py::test_z_is_the_posterior_mode_times_the_scaling_factor",
     "values_BChw * backbone.scaling_factor", "values_BChw / backbone.scaling_factor"),
    ("mappers/ridge_solver.py", "test_mappers.py::test_spread_ratio_equals_explicit_leave_one_out",
     "(targets_NK - fitted_NK) / left_out_NK", "(targets_NK - fitted_NK) * left_out_NK"),
    ("mappers/alpha_selection.py", "test_mappers_ridge.py::test_choice_for_each_column_equals_a_loop",
     "best_K = errors_AK.argmin(0)", "best_K = errors_AK.sum(1).argmin().expand(errors_AK.shape[1])"),
    ("mappers/ridge.py", "test_mappers.py::test_refit_uses_training_and_validation_images",
     "if not self.config.refit:", "if self.config.refit:"),
    ("mappers/normal_equations.py",
     "test_mappers_fastl2lir.py::test_solves_the_equations_of_the_voxels_that_correlate_most",
     "covariance_KV.abs_().mul_(", "covariance_KV.mul_("),
    ("mappers/training/losses.py", "test_losses.py::test_mixco_nce_is_the_plain_formula",
     "similar_BB.log_softmax(0) * labels_BB", "similar_BB.log_softmax(0) * labels_BB.T"),
    ("mappers/network/prior.py", "test_prior.py::test_samples_follow_the_formulas",
     "before = [1.0, *alpha_bar[:-1]]", "before = list(alpha_bar)"),
    ("mappers/volumetric/recurrence.py",
     "test_volumetric.py::test_recurrence_is_that_of_a_plain_loop_in_single_precision",
     "torch.cat([decay[:, 1:], torch.zeros_like(decay[:, :1])], 1)", "decay"),
    ("metrics/correlation.py", "test_metrics_functions.py::test_pixcorr_equals_corrcoef",
     "y - y.mean(1, keepdim=True)", "y - y.mean()"),
    ("metrics/identification.py", "test_metrics_functions.py::test_two_way_of_constant_rows_fails_all_ties",
     "(r_NN < r_NN.diagonal()[None, :])", "(r_NN <= r_NN.diagonal()[None, :])"),
    ("metrics/retrieval.py", "test_metrics_retrieval.py::test_as_plain_loops_do",
     "similarity_NN[np.ix_(chosen, chosen)].T)", "similarity_NN[np.ix_(chosen, chosen)])"),
    ("metrics/intervals.py",
     "test_metrics_statistics.py::test_the_paired_interval_is_the_widened_one_of_the_differences",
     'seed, method="expanded")', 'seed, method="percentile")'),
    ("metrics/noise_ceiling.py", "test_metrics_noise_ceiling.py::test_closed_form",
     "(1 + ratios**2 / share_of_noise)", "(1 + ratios / share_of_noise)"),
    ("metrics/captions.py",
     "test_captions.py::test_rouge_is_the_f_of_shared_words_and_of_the_longest_common_sequence",
     "max(score(text, one) for one in own)", "min(score(text, one) for one in own)"),
    ("scenes/brain.py", "test_scenes_brain.py::test_the_mean_gain_of_the_sessions_is_one",
     "GAIN_SD * (gain - gain.mean())", "GAIN_SD * gain"),
    ("data/nsd/design.py", "test_data_nsd_design.py::test_trials_of_all_subjects_equal_a_plain_loop",
     "return images - 1", "return images"),
    ("data/nsd/betas.py", "test_data_nsd_prepare.py::test_scaling_rules_equal_the_plain_formula",
     "fit = ~shared_T if", "fit = shared_T if"),
    ("digests.py", "test_sealed.py::test_a_change_is_told",
     'f"{values.dtype.str}{values.shape}".encode()', "values.dtype.str.encode()"),
    ("locks.py", "test_locks.py::test_a_kill_frees_the_lock",
     "except Timeout:\n        return True", "except Timeout:\n        return False"),
    ("generate/parts.py", "test_generate_work.py::test_parts_merge_in_canonical_order_and_are_removed",
     "if i not in finished]", "if batch[0] not in finished]"),
    ("backbone/vdvae/halves.py", "test_vdvae.py::test_prior_against_plain_arithmetic",
     "torch.exp(log_std + math.log(temperature))", "torch.exp(log_std / 2 + math.log(temperature))"),
    ("backbone/versatile.py", "test_versatile.py::test_mixing_is_that_of_diffusers",
     "torch.lerp(found[0], found[1], share)", "torch.lerp(found[1], found[0], share)"),
    ("generate/minddiffuser/optimisation.py",
     "test_minddiffuser.py::test_an_image_stops_once_patience_many_iterations_gained_nothing",
     ">= self.method.patience if", "> self.method.patience if"),
    ("generate/souldiffuser/adapters.py", "test_souldiffuser.py::test_shapes_are_those_that_the_unet_adds",
     '"has_cross_attention", False) else below', '"has_cross_attention", True) else below'),
    ("generate/ic_gan/network.py", "test_ic_gan.py::test_a_pass_is_its_plain_statement",
     "self.standardised(x) * (1 + gain) + bias", "self.standardised(x) * gain + bias"),
    ("mappers/folds.py", "test_mappers_columns.py::test_spread_is_a_factor_on_the_distance_to_the_training_mean",
     "np.float32(spread) * (predicted_NP - centre_P)", "np.float32(spread) * predicted_NP"),
    ("evaluation/learned_targets.py",
     "test_results_decoded.py::test_decoded_values_are_held_against_what_was_learned",
     "store_of(cfg, target, recorded) if recorded else", "store_of(cfg, target, recorded) if not recorded else"),
]  # fmt: skip
MUTATIONS = [Mutation(*entry) for entry in TABLE]


def stale(mutations: Sequence[Mutation]) -> list[str]:
    """Say which entries no longer fit: their old text must be in the file, and once only, or nobody knows which."""
    said = []
    for one in mutations:
        path = ROOT / "nd" / one.path
        times = path.read_text(encoding="utf-8").count(one.old) if path.is_file() else 0
        if times != 1:
            said.append(f"nd/{one.path} holds {times} times, wanted once: {one.old!r}")
    return said


def copied(folder: Path) -> Path:
    """Return a copy of what tests need; whatever is done to it, the checkout stays as it is."""
    tree = folder / "tree"
    tree.mkdir()
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, tree / name)
    return tree


def prepare() -> None:
    """Import what tests import beside nd, once: forks have it, and a run takes a second or two instead of ten."""
    # Before anything loads a BLAS, as in tests/conftest.py; and a fork has but one thread of its parent's.
    os.environ.update({f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")})
    for name in HEAVY:
        with suppress(ImportError):  # an extra that is not here: its tests say so
            import_module(name)


def run(tree: Path, test: str) -> tuple[int, str]:
    """Run a test on the code of a tree; return pytest's exit code and what was said."""
    with tempfile.TemporaryFile() as said:
        if not (pid := os.fork()):
            code = BROKEN
            try:
                code = _tested(tree, test, said.fileno())
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        said.seek(0)
        return os.waitstatus_to_exitcode(status), said.read().decode(errors="replace")


def _tested(tree: Path, test: str, output: int) -> int:
    """In the fork: nd and the tests' helpers are those of the tree, in its own processes too."""
    for number in (1, 2):
        os.dup2(output, number)
    os.chdir(tree)
    sys.path[:] = [str(tree), *(path for path in sys.path if path and not Path(path).is_relative_to(ROOT / "tests"))]
    os.environ["PYTHONPATH"] = str(tree)
    code = int(pytest.main(["-x", "-p", "no:cacheprovider", f"--timeout={LIMIT}", f"tests/{test}"]))
    sys.stdout.flush()
    return code


def check_unmutated(tree: Path, tests: Sequence[str]) -> None:
    """Run every test once on the code as it is: one that fails or is skipped there would find nothing."""
    for n, test in enumerate(tests, 1):
        start = time.monotonic()
        code, said = run(tree, test)
        if code != PASSED or not re.search(r"\d+ passed", said):
            raise SystemExit(f"{said[-3000:]}\n{test} does not pass without any mutation.")
        print(f"  {n:3} of {len(tests)}  passes  {time.monotonic() - start:5.1f} s  {test}", flush=True)


def written(path: Path, text: str) -> None:
    """Write a module; one of the same size in the same second would not be compiled again."""
    path.write_text(text, encoding="utf-8")
    Path(cache_from_source(str(path))).unlink(missing_ok=True)


def survives(tree: Path, one: Mutation, show: bool) -> bool:
    """Put the fault in, run its test, and take it out again; return whether the test passed all the same."""
    path = tree / "nd" / one.path
    text = path.read_text(encoding="utf-8")
    written(path, text.replace(one.old, one.new))
    code, said = run(tree, one.test)
    written(path, text)
    if code not in (PASSED, FAILED):
        raise SystemExit(f"{said[-3000:]}\nnd/{one.path}: {one.new!r} cannot be run at all.")
    if show:
        print("\n".join(line for line in said.splitlines() if line.startswith(("E  ", "FAILED"))), flush=True)
    return code == PASSED


def try_all(tree: Path, mutations: Sequence[Mutation], show: bool) -> list[bool]:
    """Try mutations one after another; return which survive."""
    found, begun = [], time.monotonic()
    for n, one in enumerate(mutations, 1):
        found.append(survives(tree, one, show))
        rate, what = 60 * n / (time.monotonic() - begun), "SURVIVED" if found[-1] else "caught"
        print(f"  {n:3} of {len(mutations)}  {what:<8}  {rate:4.1f} a minute  nd/{one.path}", flush=True)
    return found


def table(mutations: Sequence[Mutation], found: Sequence[bool]) -> str:
    """Return a line for each mutation: whether it was caught, what was exchanged, and the test."""
    lines = []
    for one, survived in zip(mutations, found, strict=True):
        old, new = (" ".join(text.split()) for text in (one.old, one.new))
        lines.append(f"  {'survived' if survived else 'caught':<8}  {one.path}: {old}  ->  {new}  ({one.test})")
    return "\n".join(lines)


def main() -> int:
    """Do what the command line says; the exit code is 1 where a mutation survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="part of the paths whose mutations are tried")
    parser.add_argument("--show", action="store_true", help="print what the tests find")
    given = parser.parse_args()
    mutations = [one for one in MUTATIONS if given.only in one.path]
    if said := stale(mutations):
        print("stale entries:", *said, sep="\n  ")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        tree = copied(Path(folder))
        prepare()
        check_unmutated(tree, list(dict.fromkeys(one.test for one in mutations)))
        found = try_all(tree, mutations, given.show)
    print(table(mutations, found))
    print(f"{len(found)} mutations: {len(found) - sum(found)} caught, {sum(found)} survived")
    return int(any(found))


if __name__ == "__main__":
    sys.exit(main())
