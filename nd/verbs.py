"""The verbs of the command line, and the text of ``nd --help``, which loads nothing, so that it answers at once."""

from nd import __version__

VERBS = {
    "prepare": "raw data set to the prepared format",
    "extract": "images to one target's features",
    "train": "fit one mapper from voxels to one target",
    "predict": "voxels to predicted targets",
    "reconstruct": "predicted or true targets to images",
    "evaluate": "images to scores; the only verb that compares with test stimuli",
    "run": "the whole chain, doing only what is missing",
    "sweep": "all runs of a table or grid that are missing, here or by a launcher; ends with one table",
    "tune": "settings chosen on validation images",
    "table": "run folders to a table (md, csv, tex)",
    "report": "the table with images and plots, as one HTML page",
    "roi": "images of what a method decodes from each ROI, as one HTML page",
    "doctor": "what is present, what is missing, how large, which terms apply",
    "ls": "the runs there are: what sets them apart, state, scores, size and age",
    "show": "one run: configuration, scores, files; its images as PNG",
    "clean": "what nothing needs any more, with its size; apply=true removes it",
    "log": "finished runs sent to a logger: W&B or TensorBoard",
    "completion": "a script that lets the shell complete verbs, keys and values",
}
# Verbs that look at what has been run; their words are no configuration.
OF_RUNS = {
    "ls": "nd ls [VERB ...] [key=value ...] [scores=name,...] [paths.root=folder]",
    "show": "nd show RUN [image=number] [out=png | file | folder] [paths.root=folder]",
    "clean": "nd clean [apply=true] [paths.root=folder]",
    "log": "nd log [train | evaluate] runs=all | id,name,... [key=value ...] [logger=wandb] [logger.mode=online]",
    "completion": "nd completion bash | zsh | fish",
}
EXAMPLES = """\
examples
  nd run experiment=scenes debug=fast          a whole table in under a minute, on the embedded world
  nd run subject=subj02 guidance.kappa=0       one configuration, no guidance
  nd run -m subject=subj01,subj02 seed=1,2     a sweep: one job for each combination
  nd train target=c --cfg job                  print the configuration, run nothing
  nd doctor experiment=digits69                what that experiment needs"""


def overview() -> str:
    """Return the text of ``nd --help``."""
    verbs = [f"  {name:<12} {text}" for name, text in VERBS.items()]
    return "\n".join(
        [
            f"nd {__version__}: reconstruct seen images from fMRI.",
            "",
            "usage  nd VERB [group=option] [group.field=value] [-m] [--cfg job]",
            "",
            "verbs",
            *verbs,
            "",
            "`nd VERB --help` explains what matters for a verb, `nd VERB --help all` every group and field;",
            "`nd completion bash` prints a script by which the shell completes all of them.",
            "",
            EXAMPLES,
        ]
    )
