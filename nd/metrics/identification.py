"""Two-way identification: is a reconstruction more like its own stimulus than like another one?

The rule is that of Ozcelik & VanRullen 2023 (evaluate_reconstruction.py:22-38) and MindEye2: with r[i, j] the
correlation of stimulus i and reconstruction j, reconstruction j wins against stimulus i where r[i, j] < r[j, j].
It is column-wise (one reconstruction against all stimuli of the test set), strict (a tie is a failure) and has chance
level 0.5. What follows from the rule:

- Reconstructions that are all the same image score 0.5 on average exactly (each stimulus has one rank among the
  others), as a mean-image floor should; single images score from 0 to 1.
- A constant reconstruction (or feature row) correlates 0 with everything here: all its comparisons are ties, so it
  scores 0, as it does through NaN in the published code. ``evaluate`` reports how many there were.
- Two equal stimuli tie exactly; rounding is kept from deciding between them.

The row-wise rule (Takagi & Nishimoto 2023) asks the other way: is a stimulus more like its own reconstruction than like
another one? It is the column-wise rule with the two sides exchanged; ties fail, and so does a stimulus whose own
reconstruction is constant. The two rules have different values, so their columns have different names.

N items, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nd.errors import UserError, unknown
from nd.metrics.correlation import all_finite, constant_rows, same_shape

CHUNK = 1 << 14  # features centred at a time: 64 MB per side for 1,000 items, instead of copies of everything
RULES = ("column", "row")
SIGNATURE = 64  # features compared first when equal stimuli are looked for


def correlation_matrix(true_ND: Tensor, pred_ND: Tensor) -> Tensor:
    """Return the correlation of every true row with every predicted one.

    Features are centred and multiplied chunk by chunk in float32 and summed in float64: no (2N, D) float64 copy.

    Args:
        true_ND, pred_ND: float features.

    Returns:
        r[i, j] (N, N) float64 of true row i and predicted row j; 0 where a row is constant.

    Raises:
        UserError: values that are not finite.
    """
    sides = (true_ND, pred_ND)
    means = [row_means(true_ND, "stimuli"), row_means(pred_ND, "reconstructions")]
    products = torch.zeros(len(true_ND), len(pred_ND), dtype=torch.float64)
    squares = [torch.zeros(len(rows), dtype=torch.float64) for rows in sides]
    # Filled again for every chunk: fresh memory for each costs a third of the time.
    centred = [torch.empty(len(rows), min(CHUNK, rows.shape[1])) for rows in sides]
    for start in range(0, true_ND.shape[1], CHUNK):
        width = min(CHUNK, true_ND.shape[1] - start)
        true, pred = (
            torch.sub(rows[:, start : start + width], mean, out=room[:, :width])
            for rows, mean, room in zip(sides, means, centred, strict=True)
        )
        products += true @ pred.T
        squares = [
            total + part.norm(dim=1).double().square() for total, part in zip(squares, (true, pred), strict=True)
        ]
    norms = [row_norms(rows, total) for rows, total in zip(sides, squares, strict=True)]
    return products / norms[0][:, None] / norms[1][None, :]


def row_means(rows_ND: Tensor, what: str) -> Tensor:
    """(N, 1) float32 means; UserError where a row holds NaN or infinity, which the mean shows."""
    means = rows_ND.mean(1, keepdim=True, dtype=torch.float32)
    all_finite(means, f"two-way identification ({what})")
    return means


def row_norms(rows_ND: Tensor, squares_N: Tensor) -> Tensor:
    """(N,) lengths of the centred rows; infinite for constant rows, so that their correlations become 0."""
    small = torch.nonzero(squares_N <= squares_N.max() * 1e-6).flatten()  # rounding leaves constant rows a little
    constant = torch.zeros(len(rows_ND), dtype=torch.bool)
    constant[small] = constant_rows(rows_ND[small]) if len(small) else constant[small]
    return squares_N.sqrt().masked_fill(constant, torch.inf)


def equal_rows(rows_ND: Tensor) -> Tensor:
    """(N,) index of the first row that is equal to each row; a row that has no twin gives its own index."""
    _, group = torch.unique(rows_ND[:, :: max(1, rows_ND.shape[1] // SIGNATURE)], dim=0, return_inverse=True)
    first = torch.arange(len(rows_ND))
    for value in torch.nonzero(torch.bincount(group) > 1).flatten():
        members = torch.nonzero(group == value).flatten()
        _, twins = torch.unique(rows_ND[members], dim=0, return_inverse=True)
        for twin in twins.unique():
            same = members[twins == twin]
            first[same] = same.min()
    return first


def two_way_identification(
    pred_ND: Tensor, true_ND: Tensor, groups: Tensor | None = None, rule: str = "column"
) -> Tensor:
    """Return the share of wrong stimuli that each reconstruction is less like than its own.

    Args:
        pred_ND: features (or pixels) of the reconstructions, one per stimulus; further axes are flattened.
        true_ND: those of the stimuli, in the same order.
        groups: (N,) class labels; only stimuli of the same class are then compared, and an item alone in its class
            gives NaN (no comparison was made).
        rule: ``column``, or ``row``: share of wrong reconstructions that each stimulus is less like than its own.

    Returns:
        (N,) float64 in [0, 1]; best 1, chance 0.5.

    Raises:
        UserError: other shapes, values that are not finite, fewer than two items, unknown rule.

    >>> stimuli = torch.eye(4)
    >>> two_way_identification(stimuli, stimuli).tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    if rule not in RULES:
        raise unknown("rule of identification", rule, RULES)
    pred, true = pred_ND.flatten(1), true_ND.flatten(1)
    same_shape(pred, true, "two-way identification")
    if len(pred) < 2:
        raise UserError(f"two-way identification: {len(pred)} image given, at least 2 are needed to compare.")
    if rule == "row":
        wins = wins_over(correlation_matrix(pred, true), equal_rows(pred)) & ~constant_rows(pred)
    else:
        wins = wins_over(correlation_matrix(true, pred), equal_rows(true))
    return share_of_wins(wins, groups)


def wins_over(r_NN: Tensor, first_N: Tensor) -> Tensor:
    """(N, N) bool: reconstruction j (column) is less like stimulus i (row) than its own; equal stimuli tie."""
    twins = first_N[:, None] == first_N[None, :]
    return (r_NN < r_NN.diagonal()[None, :]) & ~twins


def share_of_wins(wins_NN: Tensor, groups: Tensor | None = None) -> Tensor:
    """(N,) mean over the distractors of each column, all the others or those of the same group; NaN without any."""
    n = len(wins_NN)
    allowed = torch.ones(n, n, dtype=torch.bool) if groups is None else groups[:, None] == groups[None, :]
    allowed = allowed & ~torch.eye(n, dtype=torch.bool)
    return (wins_NN & allowed).sum(0).double() / allowed.sum(0)
