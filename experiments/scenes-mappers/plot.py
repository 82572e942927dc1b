"""Draw what compare.py recorded: scores by sessions of training, and the learning curves. Simulated fMRI.

python experiments/scenes-mappers/plot.py       writes sessions.png and curves.png beside itself
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
COLOURS = {"pretrained": "#1f6fb2", "from chance": "#c27c0e", "ridge": "#7a7f87"}
METRICS = {
    "retrieval": "retrieval among 200",
    "brain_retrieval": "brain retrieval among 200",
    "pattern_correlation": "pattern correlation",
}


def main() -> None:
    """Both images."""
    record = json.loads((HERE / "results.json").read_text(encoding="utf-8"))
    sessions(record["sessions"])
    curves()


def sessions(record: dict[str, Any]) -> None:
    """Scores over the number of sessions, with 95% intervals over images."""
    counts = sorted((name for name in record if name.isdigit()), key=int)
    figure, axes = plt.subplots(1, len(METRICS), figsize=(11, 3.4), constrained_layout=True)
    for axis, (metric, label) in zip(axes, METRICS.items(), strict=True):
        for method, colour in COLOURS.items():
            mean, low, high = zip(*(record[n]["scores"][method][metric] for n in counts), strict=True)
            x = range(len(counts))
            axis.plot(x, mean, "o-", color=colour, label=method)
            axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        axis.set(xticks=range(len(counts)), xticklabels=counts, xlabel="sessions of subj01", ylabel=label, ylim=(0, 1))
    axes[0].legend(frameon=False)
    figure.suptitle("Scenes, simulated fMRI: target c of 200 test images, 95% intervals over images", fontsize=10)
    figure.savefig(HERE / "sessions.png", dpi=110)


def curves() -> None:
    """Loss and validation correlation over epochs, all sessions: the others, then subj01 from them and from chance."""
    figure, axes = plt.subplots(2, 2, figsize=(10, 6), constrained_layout=True, sharex=True)
    styles = {"others": "#2c8a57", "pretrained": "#1f6fb2", "from-chance": "#c27c0e", "from-chance-shuffled": "#b5423c"}
    for (loss, score), target in zip(axes, ("c", "g"), strict=True):
        for how, colour in styles.items():
            file = HERE / f"curve-{target}-all-{how}.jsonl"
            if not file.exists():
                continue
            lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
            held = [line for line in lines if line["val"]]
            loss.plot([line["epoch"] for line in lines], [line["loss"] for line in lines], color=colour, label=how)
            score.plot(
                [x["epoch"] for x in held], [x["val"][target]["correlation"] for x in held], "o-", ms=3, color=colour
            )
        loss.set(ylabel=f"training loss of {target}", yscale="log")
        score.set(ylabel=f"validation correlation of {target}", ylim=(0, 1))
    axes[0][0].legend(frameon=False, fontsize=8)
    for axis in axes[1]:
        axis.set(xlabel="epoch")
    figure.suptitle("Scenes, simulated fMRI: learning curves with all sessions", fontsize=10)
    figure.savefig(HERE / "curves.png", dpi=100)


if __name__ == "__main__":
    main()
