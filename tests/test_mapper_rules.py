"""Rules between fields of the mapper groups: every one against its message, and what is right against none."""

from __future__ import annotations

from pathlib import Path

import pytest

from nd.config import Config
from nd.config.application import compose
from nd.config.rules import contradictions, without_effect
from nd.errors import UserError

TWO_STAGE = ["mapper=two_stage", "data.subjects=[subj01,subj02]"]
RIDGE = "mapper=ridge"


def mapper_contradictions(cfg: Config, verb: str = "") -> list[str]:
    return [text for text in contradictions(cfg, verb) if text.startswith(("mapper", "network", "training", "target"))]


def problems(*overrides: str, verb: str = "") -> list[str]:
    """Of the mapper's rules alone."""
    try:
        cfg = compose(list(overrides))
    except UserError as error:
        return [line for line in str(error).splitlines() if line.strip()]
    return mapper_contradictions(cfg, verb)


LINEAR = [
    ("mapper.alphas=[]", "mapper.alphas: [] must hold one or more positive numbers."),
    ("mapper.alphas=[1,0]", "mapper.alphas: [1.0, 0.0] must hold one or more positive numbers."),
    ("mapper.folds=1", "mapper.folds: 1 must be 0 (choose alpha on the validation images) or at least 2."),
    ("mapper.folds=-2", "mapper.folds: -2 must be 0"),
    ("mapper.voxel_power=-1", "mapper.voxel_power: -1.0 must be at least 0."),
    ("mapper.n_feat=-1", "mapper.n_feat: -1 was given, wanted 1 or more voxels for each column, or 0 (chosen)."),
    ("mapper.penalty=-1", "mapper.penalty: -1.0 must be positive, or 0 (chosen)."),
    ("mapper.keep=0", "mapper.keep: 0.0 lies outside (0, 1]"),
    ("mapper.keep=1.5", "mapper.keep: 1.5 lies outside (0, 1]"),
    ("mapper.keep_folds=1", "mapper.keep_folds: 1 was given, wanted 2 or more."),
    ("mapper.rescale=test", "mapper.rescale: test standardises predictions over the test images"),
]
NETWORK = [
    *((f"network.{name}={value}", f"network.{name}: {float(value)} lies outside [0, 1).")
      for name in ("dropout", "subject_dropout", "prior_drop") for value in (-0.1, 1)),
    *((f"network.{name}=0", f"network.{name}: 0 was given, wanted 1 or more.") for name in
      ("hidden", "prior_depth", "prior_heads", "prior_head_width", "prior_growth", "latent_channels")),
    ("network.blocks=-1", "network.blocks: -1 was given, wanted 0 or more."),
    ("network.decoder_channels=[4,0]", "network.decoder_channels: [4, 0] must hold positive numbers, or none."),
    ("network.prior_steps=1", "network.prior_steps: 1 noise levels of 100 were given, wanted 2"),
    ("network.prior_steps=101", "network.prior_steps: 101 noise levels of 100 were given, wanted 2"),
    ("network.predict=prior", "network.predict: prior needs network.prior=true and training.prior_weight above 0"),
]  # fmt: skip
TRAINING = [
    *((f"training.{name}=0", f"training.{name}: 0 was given, wanted 1 or more.")
      for name in ("epochs", "pretrain_epochs", "batch_size", "accumulate", "validate_every")),
    *((f"training.{name}=-1", f"training.{name}: -1") for name in
      ("least_steps", "epoch_steps", "finetune_lr", "weight_decay", "subject_decay", "clip_norm", "patience",
       "prior_weight", "token_weight", "contrast_weight", "latent_weight", "aux_weight")),
    ("training.lr=0", "training.lr: 0.0 must be positive."),
    ("training.warmup=1", "training.warmup: 1.0 lies outside [0, 1)."),
    ("training.warmup=-0.1", "training.warmup: -0.1 lies outside [0, 1)."),
    ("training.mixco_share=1.1", "training.mixco_share: 1.1 lies outside [0, 1]."),
    ("training.mixco_select=-1", "training.mixco_select: -1.0 lies outside [0, 1]."),
    ("training.ema=1", "training.ema: 1.0 lies outside [0, 0.99999]."),
    ("training.mixco_temperature=0", "training: temperatures and mixco_beta must be positive."),
    ("training.aux_temperature=0", "training: temperatures and mixco_beta must be positive."),
    ("training.soft_temperatures=[0.1,0]", "training: temperatures and mixco_beta must be positive."),
    ("training.mixco_beta=0", "training: temperatures and mixco_beta must be positive."),
    ("training.soft_temperatures=[0.1]", "training.soft_temperatures: [0.1] must hold two, of the first and last"),
    ("training.token_weight=0", "training.token_weight: 0 without a prior leaves nothing that learns the tokens"),
    ("mapper.variant=released", "training.align: published code starts a new subject's layer from chance"),
]  # fmt: skip


@pytest.mark.parametrize(("override", "message"), LINEAR)
def test_rules_of_every_mapper(override: str, message: str) -> None:
    of_columns = override.startswith(("mapper.n_feat", "mapper.penalty"))
    found = problems("mapper=fastl2lir" if of_columns else RIDGE, override)
    assert len(found) == 1
    assert found[0].startswith(message)


@pytest.mark.parametrize(("override", "message"), [*NETWORK, *TRAINING])
def test_rules_of_the_network(override: str, message: str) -> None:
    """One problem each; with another mapper the same field only has no effect."""
    found = problems(*TWO_STAGE, override, verb="run")
    assert len(found) == 1
    assert found[0].startswith(message)
    assert problems(RIDGE, override, verb="run") == []


@pytest.mark.parametrize(
    ("mapper", "chosen", "right"),
    [
        (RIDGE, "alpha", ["mapper.folds=5", "mapper.alphas=[10]", "mapper.keep=1", "mapper.keep_on=train"]),
        ("mapper=fastl2lir", "n_feat or penalty", ["mapper.penalty=1", "mapper.keep_on=train"]),
    ],
)
def test_nothing_is_chosen_on_validation_images_that_are_fitted_on(mapper: str, chosen: str, right: list[str]) -> None:
    wrong = [mapper, "mapper.keep=0.5", "mapper.keep_on=seen", *(["mapper.penalty=0"] if mapper != RIDGE else [])]
    (found,) = problems(*wrong)
    assert found.startswith("mapper.keep_on: seen fits on validation images when columns are judged, and " + chosen)
    for one in right:
        assert problems(*(text for text in wrong if text.split("=")[0] != one.split("=")[0]), one) == []


@pytest.mark.parametrize("target", ["z", "pixels", "colour"])
def test_only_tokens_can_teach(target: str) -> None:
    said = f"training.aux_target: {target} has no patch tokens. Choose g or clip_vision, or leave it empty."
    given = [*TWO_STAGE, "network.decoder_channels=[8,8]"]
    assert problems(*given, f"training.aux_target={target}", verb="run") == [said]
    assert problems(*given, "training.aux_target=clip_vision", verb="run") == []


def test_rescaling_to_the_training_images_is_not_of_every_mapper() -> None:
    said = "mapper.rescale has no effect: train is of ridge and trained networks; fastl2lir has none or (variant="
    assert [text[: len(said)] for text in warnings_of("mapper=fastl2lir", "mapper.rescale=train")] == [said]
    assert warnings_of(RIDGE, "mapper.rescale=train") == []
    assert warnings_of(*TWO_STAGE, "mapper.rescale=train") == []


def test_a_map_without_a_decoder_has_no_auxiliary_head() -> None:
    without = [*TWO_STAGE, "network.decoder_channels=[]"]
    assert problems(*without, verb="run") == []
    assert problems(*without, "training.aux_target=g", verb="run")[0].startswith(
        "training.aux_target: the auxiliary head reads the coarse map of a decoder, and network.decoder_channels=[] has"
    )
    said = "network.latent_channels has no effect: network.decoder_channels is empty"
    assert said in " ".join(warnings_of(*without, "network.latent_channels=8"))


def test_prior_that_no_loss_trains_is_none() -> None:
    with_prior = [*TWO_STAGE, "network.prior=true"]
    assert problems(*with_prior, "network.predict=prior", "training.token_weight=0", verb="run") == []
    lost = problems(*with_prior, "network.predict=prior", "training.prior_weight=0")
    assert lost[0].startswith("network.predict: prior needs network.prior=true and training.prior_weight above 0")
    assert problems(*with_prior, "training.prior_weight=0", "training.token_weight=0", verb="run")[0].startswith(
        "training.token_weight: 0 without a prior"
    )


@pytest.mark.parametrize(("target", "n_problems"), [("z", 0), ("c", 1), ("g", 1)])
def test_latent_maps_need_no_loss_of_tokens(target: str, n_problems: int) -> None:
    """The published settings for z have neither a prior nor a loss of tokens."""
    given = [*TWO_STAGE, "training.token_weight=0", f"target={target}"]
    assert len(problems(*given, verb="train")) == n_problems
    assert problems(*given, "method=vae", verb="predict") == []
    assert len(problems(*given, "network.share=all", verb="train")) == 1, "the others are trained with it"


@pytest.mark.parametrize("target", ["pixels", "colour"])
def test_targets_without_a_head_are_refused(target: str) -> None:
    said = f"mapper: two_stage has no head for target {target}. Give mapper=ridge for it."
    assert problems(*TWO_STAGE, f"target={target}", verb="train") == [said]


def test_published_settings_contradict_nothing() -> None:
    base = ["mapper=two_stage_released", *TWO_STAGE[1:]]
    for target in ("c", "g"):
        assert problems(*base, f"target={target}", verb="train") == []
    z = [*base, "target=z", "network=released_z"]
    assert problems(*z, verb="train") == []
    assert compose(z).network.trunk == "residual"


@pytest.mark.parametrize("verb", ["train", "run"])
def test_pretraining_needs_others(verb: str, tmp_path: Path) -> None:
    lonely = ["mapper=two_stage", "data.subjects=[subj01]"]
    message = "training.pretrain: data scenes has no subject beside subj01 (data.subjects), so there is nobody"
    assert problems(*lonely, verb=verb)[0].startswith(message)
    assert problems(*lonely, verb="predict") == []
    for given in ("training.pretrain=false", f"training.pretrained={tmp_path}"):
        assert problems(*lonely, given, verb=verb) == []
        assert problems(*lonely, given, "training.stage=pretrain", verb=verb)[0].startswith(message)


def test_target_must_be_among_those_trained_together() -> None:
    given = [*TWO_STAGE, "target=edge"]
    found = problems(*given, "network.share=all", verb="train")
    assert found[0].startswith("target: network.share=all trains ['z', 'c', 'g'] (method.targets) at once, edge is not")
    assert problems(*given, "network.share=all", verb="predict") == []
    assert problems(*given, verb="train") == []


# ---- without effect ------------------------------------------------------------------------------------------------


def warnings_of(*overrides: str) -> list[str]:
    keys = [text.split("=")[0] for text in overrides if "." in text.split("=")[0]]
    return [text for text in without_effect(compose(list(overrides)), keys, "train") if not text.startswith("data")]


@pytest.mark.parametrize(
    ("overrides", "warning"),
    [
        ([RIDGE, "network.hidden=8"], "network.hidden has no effect: it belongs to mapper=two_stage, not ridge."),
        ([RIDGE, "training.epochs=3"], "training.epochs has no effect: it belongs to mapper=two_stage, not ridge."),
        ([*TWO_STAGE, "training.pretrain_epochs=3"], ""),
        (
            [*TWO_STAGE, "training.pretrain=false", "training.pretrain_epochs=3"],
            "training.pretrain_epochs has no effect: nothing is pretrained.",
        ),
        ([*TWO_STAGE, "training.align=false"], ""),
        (
            [*TWO_STAGE, "training.pretrain=false", "training.align=false"],
            "training.align has no effect: nothing is pretrained.",
        ),
        (
            [*TWO_STAGE, "training.stage=pretrain", "training.epochs=3"],
            "training.epochs has no effect: training.stage is pretrain.",
        ),
        ([*TWO_STAGE, "network.prior=true", "network.prior_depth=3"], ""),
        (
            [*TWO_STAGE, "network.prior_depth=3"],
            "network.prior_depth has no effect: there is no prior (network.prior).",
        ),
        ([*TWO_STAGE, "training.mixco_share=0.1"], ""),
        ([*TWO_STAGE, "network.projector=false", "training.mixco_share=0.1"], "training.mixco_share has no effect:"),
        ([*TWO_STAGE, "training.contrast_weight=0", "training.soft_temperatures=[1,1]"], "training.soft_temperatures"),
        ([*TWO_STAGE, "training.aux_weight=1"], "training.aux_weight has no effect: training.aux_target is empty."),
        ([*TWO_STAGE, "training.aux_weight=1", "training.aux_target=g", "network.decoder_channels=[8]"], ""),
    ],
)
def test_fields_without_effect_are_named(overrides: list[str], warning: str) -> None:
    found = warnings_of(*overrides)
    assert len(found) == bool(warning)
    assert "".join(found).startswith(warning)


def test_pretrain_epochs_have_no_effect_on_a_network_made_elsewhere(tmp_path: Path) -> None:
    found = warnings_of(*TWO_STAGE, f"training.pretrained={tmp_path}", "training.pretrain_epochs=3")
    assert found == ["training.pretrain_epochs has no effect: training.pretrained is given."]


@pytest.mark.parametrize(
    ("given", "belongs"),
    [
        ([*TWO_STAGE, "mapper.alphas=[1]"], "it belongs to mapper=ridge, and mapper is two_stage"),
        ([*TWO_STAGE, "mapper.keep=0.5"], "it belongs to mapper=ridge or mapper=fastl2lir, and mapper is two_stage"),
        ([RIDGE, "mapper.penalty=1"], "it belongs to mapper=fastl2lir, and mapper is ridge"),
    ],
)
def test_fields_of_another_mapper_are_unknown(given: list[str], belongs: str) -> None:
    with pytest.raises(UserError, match=belongs):
        compose(given)


def test_defaults_of_every_mapper_have_no_problem() -> None:
    for mapper in ("ridge", "fastl2lir", "two_stage"):
        assert problems(f"mapper={mapper}", *TWO_STAGE[1:], verb="train") == []
    assert mapper_contradictions(Config(), "train") == []
