"""A CLIP tokenizer for a small closed vocabulary, in which every vocabulary word is one token.

The byte-pair merges are trained to completion on the vocabulary itself: replaying them in training order rebuilds
each word as one symbol. Single characters are tokens too, so other words are spelt out instead of failing.
"""

from __future__ import annotations

import json
import string
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from transformers import CLIPTokenizer

WORD_END = "</w>"
START, END = "<|startoftext|>", "<|endoftext|>"
CHARACTERS = string.ascii_lowercase + string.digits + string.punctuation


def build_tokenizer(words: Iterable[str], folder: Path, max_length: int = 24) -> CLIPTokenizer:
    """Write the tokenizer files into `folder` and return the tokenizer read back from them.

    END is the largest id and also the padding, as in CLIP, where pooling looks for the largest id.
    """
    merges = train_merges(sorted(set(words)))
    symbols = [*CHARACTERS, *(c + WORD_END for c in CHARACTERS), *("".join(pair) for pair in merges), START, END]
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "vocab.json", json.dumps({s: i for i, s in enumerate(symbols)}, indent=0))
    _write(folder / "merges.txt", "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n")
    special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    _write(folder / "special_tokens_map.json", json.dumps(special, indent=2))
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": max_length, "do_lower_case": True, **special}
    _write(folder / "tokenizer_config.json", json.dumps(config, indent=2))
    return CLIPTokenizer.from_pretrained(folder)


def train_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, in order, after which every word is a single symbol."""
    spelt = [[*word[:-1], word[-1] + WORD_END] for word in words]
    merges: list[tuple[str, str]] = []
    while True:
        pairs = Counter(pair for word in spelt for pair in pairwise(word))
        if not pairs:
            return merges
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        spelt = [_merge(word, best) for word in spelt]


def _merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for symbol in word:
        if out and (out[-1], symbol) == pair:
            out[-1] += symbol
        else:
            out.append(symbol)
    return out


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
