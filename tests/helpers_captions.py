"""A tiny WordNet and a tiny sentence model, each in the files of the real one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

LENGTH = 9  # tokens to which the tiny sentence model cuts a text
SAID = "a red green cube ball on the wall in front of sits cat sofa couch feline two people ride horses"
WORDS = SAID.split()


def tiny_wordnet(root: Path, nouns: Sequence[Sequence[str]]) -> Path:
    """Write WordNet's database of some nouns, each group of words synonyms, where NLTK looks for it below ``root``.

    As in Debian's package there are no names of lexicographers' files, and no index of senses.
    """
    folder = root / "corpora" / "wordnet"
    folder.mkdir(parents=True)
    data, places = "  1 WordNet 3.0 Copyright 2006 by nobody: made for a test.\n", {}
    for group in nouns:
        offset = len(data.encode())
        words = " ".join(f"{word} 0" for word in group)
        data += f"{offset:08d} 06 n {len(group):02x} {words} 000 | said of it\n"
        places |= {word: [*places.get(word, []), f"{offset:08d}"] for word in group}
    index = "".join(f"{w} n {len(at)} 0 {len(at)} 0 {' '.join(at)}\n" for w, at in sorted(places.items()))
    for kind in ("noun", "verb", "adj", "adv"):
        noun = kind == "noun"
        (folder / f"data.{kind}").write_text(data if noun else data.splitlines(True)[0], encoding="utf-8")
        (folder / f"index.{kind}").write_text(index if noun else "", encoding="utf-8")
        (folder / f"{kind}.exc").write_text("", encoding="utf-8")
    (folder / "cntlist.rev").write_text("", encoding="utf-8")
    return folder


def tiny_sentence_model(folder: Path, seed: int = 0) -> Path:
    """Write an untrained BERT of two layers in the layout of all-MiniLM-L6-v2; returns its folder."""
    folder.mkdir(parents=True)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(models.WordLevel({w: n for n, w in enumerate([*special, *WORDS, "."])}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(), initializer_range=0.5, max_position_embeddings=32, **sizes
    )
    BertModel(config).save_pretrained(folder)
    parts = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    listed = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate(parts)
    ]
    pooling = {"word_embedding_dimension": 16, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling").mkdir()
    for name, content in {
        "modules.json": listed,
        "1_Pooling/config.json": pooling,
        "sentence_bert_config.json": {"max_seq_length": LENGTH, "do_lower_case": False},
    }.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder
