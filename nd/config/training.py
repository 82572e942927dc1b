"""The groups of the mappers that are trained (two_stage, volumetric): their network, and how it is trained."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nd.config.fields import opt


@dataclass(kw_only=True)
class NetworkConfig:
    """two_stage, volumetric: shared space, trunk, and a head for each part of the target (a layer of g is a part)."""

    hidden: int = opt(512, "width of the subject-shared space")
    trunk: str = opt(
        "residual",
        "between subject layer and heads: residual blocks, or the published mixer, which is affine",
        choices=("residual", "mixer"),
    )
    blocks: int = opt(2, "blocks of the trunk")
    subject_dropout: float = opt(0.5, "residual trunk: share of the subject layer's outputs dropped in training")
    dropout: float = opt(0.15, "share of each block's inner activations dropped in training")
    share: str = opt(
        "target",
        "who shares subject layers and trunk: nobody (each part has its own), the parts of a target, or all targets of"
        " the method, trained at once",
        choices=("part", "target", "all"),
    )
    projector: bool = opt(True, "token parts: a contrastive head beside the predicted tokens")
    prior: bool = opt(False, "token parts: a diffusion prior that turns decoded tokens into predicted ones")
    prior_depth: int = opt(2, "layers of the prior")
    prior_heads: int = opt(4, "query heads of the prior's attention; keys and values have one")
    prior_head_width: int = opt(32, "numbers of one attention head of the prior; rotary positions cover up to 32")
    prior_growth: int = opt(4, "inner width of the prior's feed-forward layers, as a multiple of the token's width")
    prior_half_eps: float = opt(
        1e-5, "added to the variance in the norm behind the prior's attention, where that is in half precision"
    )
    prior_timesteps: int = opt(100, "steps of the prior's cosine noise schedule")
    prior_drop: float = opt(0.2, "share of samples whose condition, and of those whose noisy target, is dropped")
    prior_steps: int = opt(20, "noise levels visited when the prior is sampled; one less are network evaluations")
    prior_sampling: str = opt(
        "mean",
        "prediction of the prior: its estimate of the mean in one evaluation; DDIM without added noise, started from"
        " noise that the image id fixes; or the published DDIM with eta 1",
        choices=("mean", "ddim", "released"),
    )
    latent_channels: int = opt(64, "latent parts: channels of the map that is decoded upwards")
    decoder_channels: list[int] = opt(
        [64, 64],
        "latent parts: channels of the decoder, coarsest last; n give 2^(n-1)x. Empty: one linear layer, no decoder",
    )
    predict: str = opt(
        "tokens",
        "token parts: what is predicted, the trunk's tokens or what the prior makes of them",
        choices=("tokens", "prior"),
    )


@dataclass(kw_only=True)
class TrainingConfig:
    """two_stage, volumetric: stages, order, losses and optimiser."""

    stage: str = opt(
        "finetune",
        "finetune: the subject, from what the others taught (trained first where missing); pretrain: the others alone",
        choices=("finetune", "pretrain"),
    )
    pretrain: bool = opt(True, "start from a network trained on the other subjects of the data set; false: from chance")
    pretrained: str = opt(
        "", "run folder of a pretrain stage made elsewhere, used instead of one's own", identity=False, path=True
    )
    trials: str = opt(
        "single",
        "training samples: single trials, the mean of an image's trials, or one random trial of each image",
        choices=("single", "mean", "random"),
    )
    epochs: int = opt(30, "epochs of fine-tuning")
    pretrain_epochs: int = opt(20, "epochs of pretraining")
    batch_size: int = opt(256, "samples of a step over all subjects and processes; contrastive losses compare them")
    least_steps: int = opt(
        10, "least steps of an epoch: batches are made smaller where samples are few; 0: batch_size always"
    )
    epoch_steps: int = opt(
        0, "steps of an epoch whose samples are drawn with replacement, as many of each subject; 0: every sample once"
    )
    accumulate: int = opt(1, "steps whose gradients are added up before the weights move")
    lr: float = opt(1e-3, "largest learning rate of AdamW under one-cycle scheduling")
    finetune_lr: float = opt(3e-4, "largest learning rate of fine-tuning what was pretrained; 0: as lr")
    align: bool = opt(
        True,
        "fine-tuning: start the subject layer from ridge regression onto what the shared space holds for the same"
        " targets; false: from chance",
    )
    warmup: float = opt(0.1, "share of the steps in which the learning rate rises")
    weight_decay: float = opt(0.05, "decay of weights; biases and gains are exempt (variant=released: as published)")
    subject_decay: float = opt(0.3, "decay of the subject layers")
    clip_norm: float = opt(1.0, "largest norm of a gradient; 0: as it is")
    ema: float = opt(0.0, "decay of the running mean of the weights that is validated and kept; 0: the weights")
    precision: str = opt("32-true", "Lightning precision", choices=("32-true", "64-true", "bf16-mixed", "16-mixed"))
    keep: str = opt("best", "weights kept: of the best validation, or the last", choices=("best", "last"))
    validate_every: int = opt(2, "epochs between validations")
    patience: int = opt(0, "validations without progress after which training stops; 0: never")
    # ---- losses
    prior_weight: float = opt(1.0, "weight of the prior's squared error")
    token_weight: float = opt(1.0, "weight of the trunk's squared error on tokens; 0 leaves them to the other losses")
    contrast_weight: float = opt(0.3, "weight of the contrastive loss of the projected tokens")
    mixco_share: float = opt(0.33, "share of the epochs with mixed voxels (MixCo); SoftCLIP in the rest")
    mixco_beta: float = opt(0.15, "both parameters of the beta distribution that mixes")
    mixco_select: float = opt(0.5, "share of the samples that are mixed")
    mixco_temperature: float = opt(0.006, "temperature of the MixCo loss")
    soft_temperatures: list[float] = opt([0.004, 0.0075], "SoftCLIP: temperature at its first and last epoch (cosine)")
    latent_weight: float = opt(1.0, "latent parts: weight of the absolute error")
    aux_weight: float = opt(0.1, "latent parts: weight of the soft contrastive loss")
    aux_temperature: float = opt(0.075, "latent parts: temperature of the soft contrastive loss")
    aux_target: str = opt("", "latent parts: target whose patch tokens teach the auxiliary head; empty: none")


def trained_heads(network: NetworkConfig, training: TrainingConfig) -> NetworkConfig:
    """Leave out the heads that no loss trains: they would wait for a gradient, and cost memory."""
    return replace(
        network,
        prior=network.prior and training.prior_weight > 0,
        projector=network.projector and training.contrast_weight > 0,
    )
