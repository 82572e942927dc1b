"""What early visual cortex takes from an image: oriented energy at several scales, and opponent colours.

Plain signal processing of the pixels; no trained network is involved.
Shapes: N images, H W rows and columns, G output grid side, K channels. Lengths are in image sides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.floating]

GRID = 16  # the smallest receptive field has sigma .065, about one cell
CYCLES = (4.0, 8.0, 16.0)  # per image: .5, 1 and 2 cycles per degree were it 8.4 degrees wide, as in NSD
N_ORIENTATIONS = 6
# Gaussian envelope of a Gabor with a bandwidth of one octave: sigma = .56 wavelengths.
ENVELOPE = 0.56
CHUNK = 128  # images filtered at once; bounds memory

# Linear sRGB to XYZ (IEC 61966-2-1), then to cone responses (Hunt-Pointer-Estevez, normalised to D65).
RGB_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
XYZ_TO_LMS = np.array([[0.4002, 0.7076, -0.0808], [-0.2263, 1.1653, 0.0457], [0.0, 0.0, 0.9182]])
GREY = 0.5  # the screen around the images, in display values, as in NSD
# Cells compare their centre with a surround and hardly answer to an even field (sigma in image sides).
SURROUND = 0.2
# Brings the three signals, which differ in size because cone spectra overlap, to a common footing.
OPPONENT_SCALE = np.array([0.25, 0.10, 0.45], np.float32)


@dataclass(frozen=True)
class Bank:
    """Channel maps of N images: energy (K, N, G*G) with K = scales x orientations, opponent (6, N, G*G); all >= 0."""

    energy: Float
    opponent: Float

    @property
    def n_images(self) -> int:
        """Number of images."""
        return self.energy.shape[1]


def frequencies() -> Float:
    """(K,) cycles per image of each energy channel."""
    return np.repeat(np.array(CYCLES, np.float32), N_ORIENTATIONS)


def orientations() -> Float:
    """(K,) direction of modulation of each energy channel, radians in [0, pi)."""
    return np.tile(np.arange(N_ORIENTATIONS, dtype=np.float32) * np.float32(np.pi / N_ORIENTATIONS), len(CYCLES))


def filter_bank(images: NDArray[np.uint8]) -> Bank:
    """All channel maps of (N, H, W, 3) uint8 images of any square size."""
    parts = [_filter(images[start : start + CHUNK]) for start in range(0, len(images), CHUNK)]
    return Bank(np.concatenate([p[0] for p in parts], axis=1), np.concatenate([p[1] for p in parts], axis=1))


def _filter(images: NDArray[np.uint8]) -> tuple[Float, Float]:
    opponent_3NHW = opponent_colours(images.astype(np.float32) / 255)
    energy = [_energy(opponent_3NHW[0], f, a) for f, a in zip(frequencies(), orientations(), strict=True)]
    pooling = _gaussian_rows(images.shape[1], GRID, 0.5 / GRID)
    surround = _gaussian_rows(images.shape[1], GRID, SURROUND)
    surround /= surround.sum(1, keepdims=True)  # near the border the surround is what there is of the image
    contrast = pooling @ opponent_3NHW @ pooling.T - surround @ opponent_3NHW @ surround.T
    pooled = contrast.reshape(3, len(images), -1)
    # Cells fire for one sign only: lighter and darker, redder and greener, bluer and yellower.
    signed = np.concatenate([np.maximum(pooled, 0), np.maximum(-pooled, 0)])
    return np.stack(energy).astype(np.float32), signed.astype(np.float32)


def opponent_colours(images_NHW3: Float) -> Float:
    """(3, N, H, W): luminance, L-M and S-(L+M) signals of display RGB in [0, 1], relative to the grey surround."""
    cones = ((images_NHW3**2.2) @ (XYZ_TO_LMS @ RGB_TO_XYZ).T).astype(np.float32)
    # Receptors compress: a cube root makes equal steps of the signal equal steps of lightness.
    cones = np.cbrt(np.maximum(cones, 0)) - np.float32(np.cbrt(GREY**2.2))
    long, middle, short = cones[..., 0], cones[..., 1], cones[..., 2]
    signals = np.stack([(long + middle) / 2, (long - middle) * 2, short - (long + middle) / 2])
    return signals / OPPONENT_SCALE[:, None, None, None]


def _energy(luminance_NHW: Float, cycles: float, angle: float) -> Float:
    """(N, G*G): magnitude of a quadrature pair of Gabors, sampled at twice the grid and averaged to it."""
    size = luminance_NHW.shape[1]
    rows, columns = (_gabor_rows(size, cycles, along) for along in (np.sin(angle), np.cos(angle)))
    # A Gabor with a round envelope is a product of a row part and a column part: two small matrix products.
    both = luminance_NHW @ np.concatenate([columns.real, columns.imag]).T
    response = rows @ (both[..., : 2 * GRID] + 1j * both[..., 2 * GRID :])
    return np.abs(response).reshape(-1, GRID, 2, GRID, 2).mean((2, 4)).reshape(len(luminance_NHW), -1)


def _gabor_rows(size: int, cycles: float, along: float) -> NDArray[np.complex64]:
    """(2G, size): one-dimensional complex Gabors at the sampling points; outside the image is grey, that is 0."""
    distance = _distances(size, 2 * GRID)
    wave = np.exp(2j * np.pi * cycles * along * distance)
    return (_gaussian_rows(size, 2 * GRID, ENVELOPE / cycles) * wave).astype(np.complex64)


def _gaussian_rows(size: int, n_points: int, sigma: float) -> Float:
    """(n_points, size): Gaussian weights around evenly spread points; each sums to 1 on an endless row of pixels."""
    weights = np.exp(-(_distances(size, n_points) ** 2) / (2 * sigma**2)) / (size * sigma * np.sqrt(2 * np.pi))
    return weights.astype(np.float32)


def _distances(size: int, n_points: int) -> NDArray[np.float64]:
    """(n_points, size): from each sampling point to each pixel centre."""
    return (np.arange(size) + 0.5)[None] / size - (np.arange(n_points) + 0.5)[:, None] / n_points
