"""Decoded captions against those of the stimuli: METEOR, ROUGE, and what they lack to be computed here.

MindEye2 compares the caption it decodes of each image with one of COCO's captions of the stimulus (which of the five is
not said) and averages over images (MedARC-AI/MindEyeV2@c184718:src/final_evaluations.ipynb, "Captions evaluation").
Here the first captions of the stimulus count (``protocol.caption_references``; of several the best, as NLTK and
rouge-score have it). Its second comparison, with captions that GIT writes of the stimulus, is not made.

- ``meteor``: evaluate 0.4.1 calls NLTK's single_meteor_score with alpha .9, beta 3, gamma .5 on the words of
  word_tokenize (huggingface/evaluate@00f2e23:metrics/meteor/meteor.py). Here a text is taken for one sentence, so that
  no model of sentences is needed: in a text of several, the full stops inside stay with their words.
- ``rouge1``, ``rouge_l``: F of rouge-score, unstemmed (huggingface/evaluate@0851219:metrics/rouge/rouge.py). What is
  published is the median of bootstrapped means, which differs from the plain mean that stands here by chance alone.
- Cosines of text embeddings, by CLIP or a sentence model: ``nd.metrics.text_encoders``.

N images.
"""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nd.backbone.weights import local_folder
from nd.errors import UserError
from nd.metrics.measures import CLIP_TEXT, SENTENCES, WORDNET, caption_measures

if TYPE_CHECKING:
    from nd.config import Config

PACKAGES = {"caption_meteor": "nltk", "caption_rouge1": "rouge_score", "caption_rougeL": "rouge_score"}
NO_WORDNET = (
    "caption_meteor matches synonyms by WordNet, which NLTK does not find. Either python -m nltk.downloader wordnet (11"
    " MB, from GitHub), or on Debian and Ubuntu apt-get install wordnet-base; mkdir -p ~/nltk_data/corpora; cp -r"
    " /usr/share/wordnet ~/nltk_data/corpora/. NLTK_DATA names another folder in place of ~/nltk_data. Or leave"
    " caption_meteor out of protocol.measures."
)
LEXNAMES, N_LEXNAMES = "lexnames", 45  # Debian's WordNet has no such file; nothing here reads it
ALPHA, BETA, GAMMA = 0.9, 3.0, 0.5


def meteor(decoded: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """Return METEOR of each text: words matched as they are, by stem and by synonym, with a penalty for their order.

    Args:
        decoded: N texts.
        references: of each, one or more texts, of which the best counts.

    Returns:
        (N,) in [0, 1].

    Raises:
        UserError: WordNet is not here.
    """
    from nltk.tokenize import word_tokenize
    from nltk.translate.meteor_score import single_meteor_score

    words, synonyms = partial(word_tokenize, preserve_line=True), wordnet()

    def one(text: str, reference: str) -> float:
        options = {"wordnet": synonyms, "alpha": ALPHA, "beta": BETA, "gamma": GAMMA}
        return float(single_meteor_score(words(reference), words(text), **options))

    return best(one, decoded, references)


def rouge1(decoded: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """Return ROUGE-1 of each text: F of the words that it shares with a reference, lower case, unstemmed.

    Args:
        decoded: N texts.
        references: of each, one or more texts, of which the best counts.

    Returns:
        (N,) in [0, 1].

    >>> rouge1(["a red cat sleeps"], [["a red dog runs", "the sea"]])
    array([0.5])
    """
    return _rouge("rouge1", decoded, references)


def rouge_l(decoded: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """Return ROUGE-L of each text: F of the longest sequence of words that it shares with a reference.

    Args:
        decoded: N texts.
        references: of each, one or more texts, of which the best counts.

    Returns:
        (N,) in [0, 1].
    """
    return _rouge("rougeL", decoded, references)


def _rouge(kind: str, decoded: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    from absl import logging as of_rouge
    from rouge_score.rouge_scorer import RougeScorer

    # When logging is set up anew, absl closes what stderr was as it was imported: a notebook's, or a redirected one.
    of_rouge.get_absl_handler().python_handler.stream = sys.__stderr__

    scorer = RougeScorer([kind], use_stemmer=False)
    return best(lambda text, reference: float(scorer.score(reference, text)[kind].fmeasure), decoded, references)


def best(
    score: Callable[[str, str], float], decoded: Sequence[str], references: Sequence[Sequence[str]]
) -> NDArray[np.float64]:
    """Return the score (N,) of each text with the one of its references that it is best with.

    Args:
        score: of a text and a reference.
        decoded: N texts.
        references: of each, one or more texts.
    """
    return np.array([max(score(text, one) for one in own) for text, own in zip(decoded, references, strict=True)])


# ---- WordNet


def wordnet() -> Any:
    """Return NLTK's reader of the WordNet among its data. UserError: it is not there, or damaged."""
    from nltk import data

    return _read_wordnet(wordnet_name(), tuple(map(str, data.path)))


def wordnet_name() -> str:
    """Return how NLTK calls the WordNet among its data. UserError: it is not there."""
    from nltk import data

    for name in ("corpora/wordnet", "corpora/wordnet.zip/wordnet/"):
        with suppress(LookupError):
            data.find(name)
            return name
    raise UserError(NO_WORDNET)


@lru_cache(maxsize=1)
def _read_wordnet(name: str, searched: tuple[str, ...]) -> Any:
    """The reader of a WordNet; it is read once as long as the folders that are searched stay the same."""
    from nltk import data
    from nltk.corpus.reader import WordNetCorpusReader

    class Reader(WordNetCorpusReader):
        """Reads English words and synonyms alone: Debian's WordNet lacks what serves other languages and senses."""

        def map_wn(self, version: str = "wordnet") -> None:
            """Return no map from another WordNet."""

        def open(self, file: str) -> Any:
            """Open a file; names of lexicographers' files are made up where there are none."""
            try:
                return super().open(file)
            except OSError:
                if file != LEXNAMES:
                    raise
                return io.StringIO("".join(f"{n:02} unnamed 0\n" for n in range(N_LEXNAMES)))

    try:
        with warnings.catch_warnings(action="ignore"):  # that other languages are not there
            return Reader(data.find(name), None)
    except Exception as error:  # its own assertions, and errors of the system, of decoding and of splitting lines
        raise UserError(f"cannot read NLTK's {name}: {error}. Remove it. {NO_WORDNET}") from error


def wordnet_version() -> str:
    """Return the version of the WordNet that is here, for example ``WordNet 3.0``."""
    return f"WordNet {wordnet().get_version()}"


# ---- what is missing


def lacking(cfg: Config) -> Iterator[str]:
    """Yield what the captions' measures of a protocol need and is not here: packages, WordNet, models on disk.

    Models of a hub are not looked for; they are fetched when they are read.
    """
    named = caption_measures(cfg.protocol)
    packages = {name: package for name, package in PACKAGES.items() if name in named and find_spec(package) is None}
    for name, package in packages.items():
        yield f'protocol.measures: {name} needs the package {package}: pip install "nd[captions]".'
    for judge in dict.fromkeys(one.view.network for name, one in named.items() if name not in packages):
        try:
            _look_for(judge, cfg)
        except UserError as problem:
            yield f"protocol.measures: {problem}"


def _look_for(judge: str, cfg: Config) -> None:
    from nd.metrics.text_encoders import clip_folder, sentence_folder

    if judge == WORDNET:
        wordnet_name()
    elif judge == SENTENCES and local_folder(cfg.protocol.sentence_model or ".") is not None:
        sentence_folder(cfg.protocol.sentence_model)
    elif judge == CLIP_TEXT and local_folder(cfg.protocol.caption_clip or ".") is not None:
        clip_folder(cfg)
