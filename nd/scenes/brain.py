"""A simulated brain: noise-free responses of one subject's voxels to images and scenes, and the noise of its trials.

Early voxels (V1-hV4) see a Gaussian window of the image through oriented-energy and opponent-colour channels and
compress the sum (the compressive spatial summation model of Kay et al. 2013 on a filter bank). The other areas respond
to what the scene holds, through rectified and conjunctive features of its attributes, with some drive by the image.
Their noise is as strong as NSD's (nd.scenes.noise_ceilings). No trained network takes part. Subjects differ in voxels,
noise and areas; the laws of their tuning are shared.

Shapes: N images, V voxels, T trials, K channels, G output grid side, A attributes, M features.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nd.scenes.attributes import attribute_names
from nd.scenes.cortex import AREAS, Cortex, grow_cortex
from nd.scenes.filters import GRID, Bank, frequencies, orientations
from nd.scenes.noise_ceilings import draw_ncsnr

Float = NDArray[np.floating]

# Shares of the trial-noise variance. The rest is independent in every trial and voxel.
NOISE_SHARED, NOISE_DRIFT = 0.30, 0.10
N_NOISE_SOURCES, NOISE_REACH = 60, 0.15  # smooth spatial patterns; their sigma in units of the brain's length
GAIN_SD = 0.10  # response gain from session to session

# Beta law of the weight of opponent colours, light and dark among them, against oriented energy. Our choice: mostly
# energy, in some voxels colour. Energy alone tells edges, not which side of them is light.
OPPONENT_SHARE = (1.0, 4.0)
IMAGE_DRIVE = 0.30  # share of the image's drive (variance) in areas that respond to content
N_FEATURES = 32  # rectified and conjunctive features shared by all voxels of an area, in every subject
CONTENT_OF = {
    "ventral": ("shape", "colour", "texture", "background"),
    "lateral": ("shape", "size", "place"),
    "parietal": ("place", "layout", "size"),
    "face_like": ("shape",),
    "place_like": ("background", "layout"),
}


@dataclass(frozen=True)
class Brain:
    """One subject. weights (V, K) of all channels; mixture (V, areas * M) of content features; ncsnr (V,)."""

    name: str
    cortex: Cortex
    weights: Float
    mixture: Float
    ncsnr: Float
    world_seed: int

    @property
    def n_voxels(self) -> int:
        """V."""
        return len(self.ncsnr)

    def responses(self, bank: Bank, attributes_NA: Float) -> Float:
        """(N, V) noise-free responses, each voxel with mean 0 and variance 1 over these images."""
        image_NV = standardise(self.image_drive(bank))
        content_NV = standardise(content_features(self.world_seed, attributes_NA) @ self.mixture.T)
        share_V = np.array([1.0 if a.early else IMAGE_DRIVE for a in AREAS], np.float32)[self.cortex.area]
        return standardise(np.sqrt(share_V) * image_NV + np.sqrt(1 - share_V) * content_NV)

    def image_drive(self, bank: Bank) -> Float:
        """(N, V) compressed sum of all channels inside each voxel's window, before standardising."""
        window_VP = windows(self.cortex.field)
        drive_NV = np.zeros((bank.n_images, self.n_voxels), np.float32)
        for k, map_NP in enumerate([*bank.energy, *bank.opponent]):
            drive_NV += (map_NP @ window_VP.T) * self.weights[:, k]
        exponents = np.array([a.exponent for a in AREAS], np.float32)[self.cortex.area]
        return drive_NV**exponents

    def trials(
        self, rng: np.random.Generator, responses_NV: Float, image: NDArray[np.integer], session: NDArray[np.integer]
    ) -> Float:
        """(T, V) single-trial betas of the images ``image`` (T,), seen in ``session`` (T,); not yet z-scored."""
        n_sessions = session.max() + 1
        gain = rng.standard_normal((n_sessions, 1)).astype(np.float32)
        gain = 1 + GAIN_SD * (gain - gain.mean())  # ncsnr speaks of the mean gain
        offset = rng.standard_normal((n_sessions, self.n_voxels)).astype(np.float32)
        noise_TV = self._noise(rng, session)
        noise_TV /= self.ncsnr
        noise_TV += gain[session] * responses_NV[image]
        noise_TV += offset[session]
        return noise_TV

    def _noise(self, rng: np.random.Generator, session: NDArray[np.integer]) -> Float:
        """(T, V) noise of variance 1: independent, spatially smooth, and a slow drift inside each session."""
        n_trials = len(session)
        noise_TV = rng.standard_normal((n_trials, self.n_voxels), dtype=np.float32)
        noise_TV *= np.float32(np.sqrt(1 - NOISE_SHARED - NOISE_DRIFT))
        pattern_SV = _smooth_patterns(rng, self.cortex.ijk)
        sources_TS = rng.standard_normal((n_trials, len(pattern_SV)), dtype=np.float32) * np.float32(
            np.sqrt(NOISE_SHARED)
        )
        for s in np.unique(session):
            rows = session == s
            drift_TS = _drift(rng, int(rows.sum()), len(pattern_SV)) * np.float32(np.sqrt(NOISE_DRIFT))
            noise_TV[rows] += (sources_TS[rows] + drift_TS) @ pattern_SV
        return noise_TV


def build_brain(world_seed: int, name: str, n_voxels: int) -> Brain:
    """The brain of subject ``name`` in the world ``world_seed``, with about ``n_voxels`` voxels. Always the same."""
    rng = subject_rng(world_seed, name, "brain")
    cortex = grow_cortex(rng, n_voxels)
    ncsnr = draw_ncsnr(rng, name, np.array([area.name for area in AREAS])[cortex.area])
    weights = _channel_weights(rng, cortex)
    return Brain(name, cortex, weights, _mixture(rng, cortex), ncsnr, world_seed)


def subject_rng(world_seed: int, name: str, purpose: str) -> np.random.Generator:
    """A stream of its own for each (world, subject, purpose): other subjects never change it."""
    digest = hashlib.sha256(f"{name}/{purpose}".encode()).digest()
    return np.random.default_rng([world_seed, *np.frombuffer(digest[:16], np.uint32).tolist()])


def standardise(values: Float) -> Float:
    """Mean 0 and variance 1 down each column; a constant column becomes 0."""
    centred = values - values.mean(0)
    spread = centred.std(0)
    return (centred / np.where(spread > 1e-6, spread, 1)).astype(np.float32)


def windows(field_V3: Float) -> Float:
    """(V, G*G) Gaussian windows that sum to 1 inside the image."""
    centres = (np.arange(GRID, dtype=np.float32) + 0.5) / GRID - 0.5
    x, y, sigma = (field_V3[:, k, None] for k in range(3))
    across, down = (np.exp(-((centres - c) ** 2) / (2 * sigma**2)) for c in (x, y))
    window_VP = (down[:, :, None] * across[:, None, :]).reshape(len(field_V3), -1)
    return window_VP / np.maximum(window_VP.sum(1, keepdims=True), 1e-12)


def _channel_weights(rng: np.random.Generator, cortex: Cortex) -> Float:
    """(V, K) non-negative weights: shallow tuning to one orientation and scale, and a few opponent colours."""
    n = len(cortex.area)
    preferred, sharpness = rng.uniform(0, np.pi, (n, 1)), rng.uniform(0.5, 2.0, (n, 1))
    # Finer scales are preferred near the centre of gaze and in earlier areas, that is by smaller fields.
    octave = np.log2(0.8 / cortex.field[:, 2:]).clip(2, 4) + rng.normal(0, 0.5, (n, 1))
    turning = np.exp(sharpness * (np.cos(2 * (orientations() - preferred)) - 1))
    energy = turning * np.exp(-((np.log2(frequencies()) - octave) ** 2) / (2 * 0.8**2))
    colour = rng.dirichlet(np.full(6, 0.4), n)
    share = rng.beta(*OPPONENT_SHARE, (n, 1))
    return np.concatenate([(1 - share) * energy / energy.sum(1, keepdims=True), share * colour], 1).astype(np.float32)


def content_features(world_seed: int, attributes_NA: Float) -> Float:
    """(N, areas * M) features of the scene that content areas combine; the same for every subject of a world.

    Half are one-sided responses to a sum of a few attributes, half respond to two such sums together.
    """
    spread = attributes_NA.std(0)
    known_NA = (attributes_NA - attributes_NA.mean(0)) / np.where(spread > 0, spread, 1)
    rng = np.random.default_rng([world_seed, N_FEATURES])
    parts = []
    for area in AREAS:
        first, second = (known_NA @ _sparse(rng, CONTENT_OF.get(area.name, ())) for _ in range(2))
        both = np.sqrt(np.maximum(first, 0) * np.maximum(second, 0))
        parts.append(np.where(np.arange(N_FEATURES) % 2, both, np.maximum(first, 0)))
    return standardise(np.concatenate(parts, 1))


def _sparse(rng: np.random.Generator, groups: tuple[str, ...]) -> Float:
    """(A, M) weights: each feature reads three attributes of the area's groups."""
    allowed = np.flatnonzero([name.split(":")[0] in groups for name in attribute_names()])
    out = np.zeros((len(attribute_names()), N_FEATURES), np.float32)
    for m in range(N_FEATURES if len(allowed) else 0):
        out[rng.choice(allowed, 3, replace=False), m] = rng.normal(0, 1, 3)
    return out


def _mixture(rng: np.random.Generator, cortex: Cortex) -> Float:
    """(V, areas * M): each content voxel mixes a few features of its own area; early voxels none."""
    out = np.zeros((len(cortex.area), len(AREAS), N_FEATURES), np.float32)
    for k, area in enumerate(AREAS):
        rows = np.flatnonzero(cortex.area == k)
        if not area.early:
            out[rows, k] = rng.dirichlet(np.full(N_FEATURES, 0.15), len(rows))
    return out.reshape(len(out), -1)


def _smooth_patterns(rng: np.random.Generator, ijk: NDArray[np.int16]) -> Float:
    """(S, V) smooth patterns on the voxel grid; over the sources every voxel has variance 1."""
    place = ijk.astype(np.float32)
    centres = place[rng.integers(len(place), size=N_NOISE_SOURCES)]
    reach = NOISE_REACH * max(float(np.ptp(place, axis=0).max()), 1.0)
    distance_SV = ((centres[:, None] - place[None]) ** 2).sum(2)
    pattern_SV = np.exp(-distance_SV / (2 * reach**2)) * rng.choice([-1.0, 1.0], (N_NOISE_SOURCES, 1))
    return (pattern_SV / np.sqrt((pattern_SV**2).sum(0)).clip(1e-12)).astype(np.float32)


def _drift(rng: np.random.Generator, n_trials: int, n_sources: int) -> Float:
    """(n_trials, S) slow random waves of variance about 1 and at most two cycles per session."""
    time = np.arange(n_trials)[:, None] / max(n_trials, 1)
    cycles, phase = rng.uniform(0.5, 2, (1, n_sources)), rng.uniform(0, 2 * np.pi, (1, n_sources))
    return (np.sqrt(2) * np.sin(2 * np.pi * (cycles * time + phase))).astype(np.float32)
