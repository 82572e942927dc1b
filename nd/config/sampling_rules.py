"""Rules between the fields of sampling: what contradicts, and what was given but has no effect."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nd.config import Config

NEEDS = {  # targets a generator cannot do without
    "guided_diffusion": ("z", "c"),
    "pixels": ("pixels",),
    "vae": ("z",),
    "nearest_image": (),
    "mean_image": (),
    "random_image": (),
}


def method_rules(cfg: Config) -> Iterator[str]:
    """What is wrong with the method group."""
    method = cfg.method
    yield from at_least(1, data=method, names=("steps", "repeats"), key="method")
    if not 0 < method.strength <= 1:
        yield f"method.strength: {method.strength} lies outside (0, 1]."
    elif method.steps >= 1 and cfg.sampled_steps < 1:
        yield (
            f"method.strength: int(steps * strength) = int({method.steps} * {method.strength}) = 0 steps would be run;"
            " give more steps or a larger strength."
        )
    if method.cfg_scale < 1:
        yield f"method.cfg_scale: {method.cfg_scale} is below 1 (1 switches classifier-free guidance off)."
    if method.sag_scale < 0:
        yield f"method.sag_scale: {method.sag_scale} is negative; 0 switches self-attention guidance off."
    if cfg.trainer.compile and method.sag_scale:
        yield (
            "trainer.compile: self-attention guidance listens to the UNet's attention, which a compiled UNet does not"
            " let through; set trainer.compile=false or method.sag_scale=0."
        )
    if method.steps > 1000:
        yield f"method.steps: {method.steps} exceeds the 1000 training steps of the noise schedule."
    missing = [target for target in NEEDS[method.generator] if target not in method.targets]
    if missing:
        yield f"method.targets: generator {method.generator} needs {missing} beside {method.targets}."
    if method.generator == "nearest_image" and not method.targets:
        yield "method.targets: generator nearest_image needs at least one target to compare."
    if len(set(method.targets)) < len(method.targets):
        yield f"method.targets: {method.targets} names a target twice."


def guidance_rules(cfg: Config) -> Iterator[str]:
    """What is wrong with the guidance group."""
    guidance = cfg.guidance
    if guidance.kappa < 0:
        yield f"guidance.kappa: {guidance.kappa} is negative, which would steer away from the features; 0 switches off."
    if not 0 <= guidance.eta <= 1:
        yield f"guidance.eta: {guidance.eta} lies outside [0, 1] (share of the sampled steps that is guided)."
    if not guided(cfg):
        return
    if guidance.decoder == "tiny" and not cfg.backbone.tiny_vae:
        yield (
            "guidance.decoder: tiny needs backbone.tiny_vae=<folder or hub id>, a small autoencoder trained on the"
            " latents of this backbone; choose guidance.decoder=half or full without one."
        )
    if "g" not in cfg.method.targets:
        yield (
            f"guidance.kappa: guidance {guidance.kappa} needs target g, but method.targets is {cfg.method.targets};"
            " add g or choose guidance=none."
        )
    if len(guidance.layer_weights) != len(cfg.target.layers):
        yield (
            f"guidance.layer_weights: {len(guidance.layer_weights)} weights for {len(cfg.target.layers)} target.layers;"
            " give one weight per layer."
        )
    if any(weight < 0 for weight in guidance.layer_weights):
        yield f"guidance.layer_weights: {guidance.layer_weights} holds a negative weight."


def guided(cfg: Config) -> bool:
    """Whether feature guidance takes part in making the images."""
    return cfg.method.generator == "guided_diffusion" and cfg.guidance.kappa > 0 and cfg.guidance.eta > 0


def sampling_idle(cfg: Config) -> list[tuple[tuple[str, ...], str, bool]]:
    """Fields of sampling that may be idle, why, and whether they are in this configuration."""
    sampling = tuple(f"method.{n}" for n in ("steps", "strength", "cfg_scale", "sag_scale", "variant"))
    sampling += tuple(f"trainer.{n}" for n in ("memory_gb", "compile", "previews"))
    steered = ("eta", "layer_weights", "through_unet", "normalise", "schedule", "decoder")
    steering = tuple(f"guidance.{n}" for n in steered)
    generator, kappa, decoder = cfg.method.generator, cfg.guidance.kappa, cfg.guidance.decoder
    no_diffusion = generator != "guided_diffusion"
    return [
        (("guidance.kappa", *steering), f"generator {generator} is not guided", no_diffusion),
        (sampling, f"generator {generator} does not sample", no_diffusion),
        (steering, "guidance.kappa is 0", not no_diffusion and kappa == 0),
        (("backbone.tiny_vae",), f"guidance.decoder is {decoder}", decoder != "tiny"),
    ]


def at_least(low: int, *, data: object, names: Sequence[str], key: str) -> Iterator[str]:
    """Fields of ``data`` that lie below ``low``."""
    for name in names:
        if getattr(data, name) < low:
            yield f"{key}.{name}: {getattr(data, name)} was given, wanted {low} or more."
