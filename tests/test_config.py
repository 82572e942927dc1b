"""Composition and its check: what is accepted, what is refused, and that everything wrong is said at once."""

from __future__ import annotations

import pickle
import re
from dataclasses import asdict, dataclass, fields, replace
from itertools import cycle
from pathlib import Path

import hydra
import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from omegaconf import OmegaConf

from nd.config import Config, SubjectConfig, composition
from nd.config.application import check, compose, derive
from nd.config.components import KINDS, found
from nd.config.fields import declared
from nd.config.known import FILLED_IN, group_type, known_fields
from nd.config.loading import ReadOnce, schema_defaults
from nd.config.overrides import group_names, group_options, read
from nd.data.components import PUBLISHED
from nd.errors import UserError
from nd.run import entries_of
from nd.tables.specs import rows_of

ROOT = Path(__file__).parent.parent
CONF = ROOT / "conf"
GROUPS = group_names([CONF])
RIDGE = "method=neuraldiffuser_ridge"
OPTIONS = [
    (group, option)
    for group in GROUPS
    if group != "method"  # each of which PAIRS composes
    for option in group_options(group, [CONF])
]
OF_AREAS = ("takagi", "souldiffuser")  # methods that decode from areas, of which the file of digits69 knows none


def paired(*experiments: str) -> list[tuple[str, str]]:
    """Every method with one experiment or more, and the other way round."""
    pairs = zip(group_options("method", [CONF]), cycle(experiments), strict=False)
    return [(one, "scenes" if other == "digits69" and one.startswith(OF_AREAS) else other) for one, other in pairs]


PAIRS = paired(*group_options("experiment", [CONF]))


def check_rows(verb: str, overrides: list[str]) -> None:
    check(verb, overrides, rows=rows_of)


def message(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        compose(overrides)
    return str(caught.value)


def test_nothing_given_is_scenes_with_neuraldiffuser() -> None:
    cfg = compose()
    assert (cfg.data.name, cfg.method.name, cfg.backbone.name, cfg.protocol.name) == (
        "scenes", "neuraldiffuser", "scenes", "scenes",
    )  # fmt: skip
    assert cfg.overrides == []


NEEDED = {
    ("protocol", "digits69"): ["data=digits69"],
    ("mapper", "cycle"): ["method=nearest_image", "method.targets=[edge]", "target=edge"],  # which decodes maps
    ("training", "released"): ["mapper=two_stage_released"],  # which has a prior to train
    ("training", "released_z"): ["mapper=two_stage_released"],
    ("protocol", "nd"): ["data=nsd"],
    ("protocol", "mindeye2"): ["data=nsd"],
    **{("protocol", name): ["data=nsd", "data.split=nsd982"] for name in PUBLISHED if name != "mindeye2"},
}


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_of_conf_composes(group: str, option: str) -> None:
    needed = NEEDED.get((group, option), [])
    if group == "subject" and option > "subj04":
        needed = ["data=nsd"]
    cfg = compose([*needed, f"{group}={option}"])
    if hasattr(getattr(cfg, group, None), "name") and group not in ("paths", "mapper"):  # a mapper's name is its kind
        assert getattr(cfg, group).name == option


@pytest.mark.parametrize(("method", "experiment"), PAIRS)
def test_every_method_and_experiment_compose_together_and_small(method: str, experiment: str) -> None:
    small = compose([f"experiment={experiment}", f"method={method}", "debug=fast"])
    assert small.method.name == method
    assert small.protocol.n_boot == 50
    assert not small.sampled_steps or (small.method.steps, small.method.repeats) == (4, 2)
    assert small.debug.limit_images == 6
    assert small.paths.runs == "debug-runs/runs"


def test_every_group_of_conf_is_in_the_schema_and_back() -> None:
    nested = {one.name for one in fields(Config) if group_type(one) is not None}
    assert set(GROUPS) == nested - {"tune"} | {"experiment"}  # two fields of one verb: nothing to choose from


def test_every_field_explains_itself() -> None:
    assert [name for name, known in known_fields().items() if len(known.facts.help) < 4] == []
    kinds = [component.settings for kind in KINDS for component in found(kind).components.values() if KINDS[kind].group]
    groups = [kind for one in fields(Config) if (kind := group_type(one)) is not None]
    assert [kind for kind in [*kinds, *groups, Config] if not (kind.__doc__ or "").strip().endswith(".")] == []


def test_defaults_are_among_their_own_choices() -> None:
    groups = [kind for one in fields(Config) if (kind := group_type(one)) is not None]
    for kind in [
        *groups,
        *(one.settings for name in KINDS if KINDS[name].group for one in found(name).components.values()),
    ]:
        for one in fields(kind):
            value, choices = getattr(kind(), one.name), declared(one).choices
            assert not choices or set(value if isinstance(value, list) else [value]) <= set(choices), one.name


def test_debug_wins_over_an_experiment_and_the_command_line_over_debug() -> None:
    cfg = compose(["debug=fast", "experiment=digits69", "method.steps=9"])
    assert cfg.data.name == "digits69"
    assert (cfg.method.steps, cfg.method.repeats) == (9, 2)


def test_an_experiment_wins_over_its_groups_and_the_protocol_follows_the_data() -> None:
    assert compose(["experiment=scenes"]).method.steps != Config().method.steps
    assert compose(["data=digits69"]).protocol.name == "digits69"


def test_paths_follow_the_root() -> None:
    cfg = compose(["paths.root=elsewhere", "paths.data=shared"])
    assert (cfg.paths.data, cfg.paths.cache, cfg.paths.runs) == ("shared", "elsewhere/cache", "elsewhere/runs")


def test_values_get_their_declared_type() -> None:
    cfg = compose([RIDGE, "guidance.kappa=3", "mapper.alphas=[1,2]", "subject.roi=1", "table="])
    assert isinstance(cfg.guidance.kappa, float)
    assert [type(alpha) for alpha in cfg.mapper.alphas] == [float, float]
    assert cfg.subject.roi == "1"
    assert cfg.table == ""


def test_the_home_folder_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "digits.mat").write_bytes(b"")
    cfg = compose(["data=digits69", "data.file=~/digits.mat", "paths.root=~/nd"])
    assert (cfg.data.file, cfg.paths.runs) == (f"{tmp_path}/digits.mat", f"{tmp_path}/nd/runs")


def test_overrides_are_kept_without_signs_and_the_last_wins() -> None:
    cfg = compose(["seed=1", "+guidance.kappa=3", "seed=2"])
    assert cfg.overrides == ["guidance.kappa=3", "seed=2"]
    assert cfg.seed == 2


def test_derive_adds_to_what_was_given() -> None:
    cfg = derive(compose(["seed=5", "target=z"]), "target=g", "guidance.kappa=0")
    assert (cfg.seed, cfg.target.name, cfg.guidance.kappa) == (5, "g", 0.0)
    assert cfg.overrides == ["seed=5", "target=g", "guidance.kappa=0"]


def test_values_are_set_as_hydra_sets_them() -> None:
    given = [
        "experiment=digits69",
        "mapper.alphas=[1,2]",
        "paths.data='${paths.root}/x'",
        "paths.results='a,b'",
        "seed=3",
    ]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        told = [text if text.startswith("experiment") else f"++{text}" for text in given]
        reference = OmegaConf.to_container(hydra.compose("config", told), resolve=True)
    ours = asdict(compose(given))
    assert ours["overrides"] == given

    def holds(node: object, part: object) -> bool:
        return all(holds(node[key], value) for key, value in part.items()) if isinstance(part, dict) else node == part  # type: ignore[index]

    del reference["method"]["targets"]
    assert holds(ours, reference), "what Hydra composes is what the checked configuration holds"


def test_derived_configurations_share_nothing() -> None:
    first, second = compose(["seed=5"]), compose(["seed=5"])
    first.method.targets["pixels"] = {}
    first.decodings["z"].mapper.rescale = "train"
    assert list(second.method.targets) == ["z", "c", "g"]
    assert second.decodings["z"].mapper.rescale == "none"


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    absent = tmp_path / "nope.mat"
    text = message(
        "mapper.alhpa=3",
        "+guidance.kapa=3",
        "++trainr.devices=2",
        "subject=subj09",
        "~data",
        "nonsense",
        f"protocol.weights={absent}",
        "method.steps=many",
        "method.cfg_scale=.5",
        "guidance.eta=1.5",
        "features=orcale",
    )
    for wanted in (
        r"mapper\.alhpa: unknown key\. Did you mean 'mapper\.alphas'\?",
        r"guidance\.kapa: unknown key\. Did you mean 'guidance\.kappa'\?",
        r"trainr\.devices: unknown key\. Did you mean 'trainer\.devices'\?",
        r"subject: subj09 is not a subject of scenes\..* Subjects: subj01, subj02",
        r"~data: nothing can be removed",
        r"nonsense: cannot be read as key=value",
        rf"protocol\.weights: {re.escape(str(absent))} does not exist",
        r"method\.steps: 'many' is text, wanted a whole number",
        r"method\.cfg_scale: 0\.5 is below 1",
        r"guidance\.eta: 1\.5 lies outside \[0, 1\]",
        r"features: 'orcale' is not allowed\. Did you mean 'oracle'\? Allowed: predicted, oracle",
    ):
        assert re.search(wanted, text), f"{wanted} not in:\n{text}"
    assert text.startswith("11 problems:")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("kapa=3", "Did you mean 'guidance.kappa'"),
        ("steps=3", "Did you mean 'method.steps'"),
        ("guidance.kappa.x=3", "guidance.kappa.x: unknown key"),
        ("data@other=scenes", "data@other: unknown key"),
        ("data={n_val:3}", "unknown option"),
        ("data=null", "unknown option"),
        ("overrides=[a]", "overrides: unknown key"),
        ("hydra.searchpath=[file:///no/such/folder]", "no/such/folder is not a folder"),
        ("seed=1,2", "several values need -m"),
        ("guidance.eta=interval(0,1)", r"guidance\.eta=interval\(0,1\): an interval is searched by nd tune"),
        ("method.targets=z,c", r"written method\.targets=\[z,c\]"),
        ("method.targets=[z,q]", r"method\.targets: 'q' is not allowed"),
        ("method.targets=z", "wanted a mapping"),
        ("method.targets=[z,z]", "names a target twice"),
        (
            "method.targets.z.mapper=ridge",
            r"a target's mapper is chosen by its name: method.targets.z.mapper.name=",
        ),
        ("method.targets.z.mapper.alpha=[1]", r"a target of a method holds roi .* Did you mean 'mapper\.alphas'"),
        ("method.targets.q.roi=V1", r"method\.targets: 'q' is not allowed"),
        ("seed=1.5", "seed: 1.5 is a number, wanted a whole number"),
        ("seed=true", "wanted a whole number"),
        ("seed=null", "seed: None is empty"),
        ("guidance.normalise=no", "wanted true or false"),
        ("guidance.layer_weights=[1,x]", r"guidance\.layer_weights\[1\]: 'x' is text, wanted a number"),
        ("guidance.kappa=nan", "wanted a finite number"),
        ("paths.results=[a]", r"\['a'\] is a list, wanted text"),
        ("protocol.weights=~nobody_of_that_name/x", r"protocol\.weights: ~nobody_of_that_name/x does not exist"),
        ("backbone.weights=~nobody_of_that_name/x", r"backbone\.weights: ~nobody_of_that_name/x does not exist"),
        ("paths.root=", r"paths\.root: it is empty, wanted a folder; '\.' is the one you are in"),
        ("paths.runs=''", r"paths\.runs: it is empty"),
        (f"paths.data={__file__}", r"paths\.data: .*test_config\.py is a file, wanted a folder"),
        (
            "guidance.kappa=[0.3,1]",
            r"\[0.3, 1\] is a list, wanted a number. A run for each: guidance.kappa=0.3,1 with -m",
        ),
        ("guidance.kappa=[[1],2]", r"\[\[1\], 2\] is a list, wanted a number\.$"),
        ("data.name=???", r"data\.name: must be given"),
        ("paths.data=${nothing}/x", "nothing"),
        ("guidance.kappa=-1", "kappa: -1.0 is negative"),
        ("guidance.layer_weights=[0,0,0,0,0,0]", "leave nothing to guide by"),
        ("method.strength=0", "lies outside"),
        ("method.strength=1.1", "lies outside"),
        ("method.steps=1", "= 0 steps would be run"),
        ("method.steps=2000", "exceeds the 1000 training steps"),
        ("method.repeats=0", "wanted 1 or more"),
        ("mapper=ridge part=val", r"part: val needs mapper\.refit=false"),
        ("data.subjects=[a,b]", "subject: subj01 is not a subject of scenes"),
        ("protocol=digits69", "protocol: digits69 does not fit data scenes"),
        ("data.split=digits69-cv10", r"data\.split: digits69-cv10 does not cut data scenes"),
        ("data.n_val=1600", "leave fewer than 2 of 1600 training images"),
        ("method.targets=[z,c]", "needs target g"),
        ("method.generator=pixels", r"generator pixels needs \['pixels'\]"),
        ("target.layers=[0,0]", "must be different block numbers"),
        ("target.layers=[0,1]", "6 weights for 2 target.layers"),
        ("mapper=ridge mapper.alphas=[]", "one or more positive numbers"),
        ("backbone.tower_std=[1,1]", "three numbers"),
        ("backbone.weights=./nope", r"backbone\.weights: \./nope does not exist"),
        ("trainer.devices=0", "or -1 for all"),
        ("subject.name=subj9", "is not a subject of scenes. Did you mean 'subj0"),
    ],
)
def test_a_mistake_is_named(given: str, wanted: str) -> None:
    text = message(*given.split(" ") if "mapper=" in given else [given])
    assert re.search(wanted, text), text


def test_oracle_and_a_voxel_control_contradict() -> None:
    assert "features=oracle decodes nothing" in message("features=oracle", "control=shuffled_voxels")
    assert compose(["part=val", "features=oracle"]).part == "val"


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (["subject=subj05"], "subject: subj05 is not a subject of scenes. Did you mean 'subj0"),
        (["data=nsd", "protocol=scenes"], "protocol: scenes does not fit data nsd; choose protocol=nd"),
        (["data=own", "protocol=mindeye2"], "protocol: mindeye2 does not fit data own; choose protocol=nd"),
        (["protocol=mindeye2"], "protocol: mindeye2 does not fit data scenes; choose protocol=scenes"),
        (
            ["data=nsd", "protocol=brain_diffuser"],
            "protocol: brain_diffuser is defined on the 982 test images of split nsd982, but data.split is nsd1000",
        ),
        (
            ["data=nsd", "protocol=mindeye2", "debug.limit_images=6"],
            "protocol: mindeye2 is defined on all 1000 test images, but debug.limit_images=6",
        ),
        (["data=nsd", "protocol=mindeye2", "part=val", "mapper.refit=false"], "test images, but part=val"),
        (["protocol.measures=[swav]"], "protocol.measures: swav is no measure. Did you mean 'swav_224'"),
        (["protocol.measures=[swav_224,swav_224]"], "names a measure twice"),
        (["protocol.resize_arithmetic=bytes", "protocol.resize_antialias=false"], "Pillow (bytes) always low-passes"),
        (["protocol.picture_size=-1"], "protocol.picture_size: -1 was given, wanted 0 or more"),
        (["data=nsd", "data.split=scenes"], "data.split: scenes does not cut data nsd; its split is nsd982 or nsd1000"),
        (["data=nsd", "data.scaling=session"], "data.scaling: session fits statistics on test trials"),
        (["data.test_scaling=own"], "Ask for it with data.variant=released, which marks every result"),
        (
            [RIDGE, "data.test_scaling=own", "data.variant=released", "mapper.voxel_power=1"],
            "data.test_scaling: own leaves no room for voxel weights; it needs mapper.voxel_power=0",
        ),
        (
            [RIDGE, "mapper.intercept=false", "mapper.spread=1.2"],
            "mapper.spread: without an intercept the mean of the training targets",
        ),
        (
            ["data=nsd", "layout=mindeye2"],
            "layout: mindeye2 is a form in which data=scenes is written, but data is nsd",
        ),
        (["data.name=a/b"], "data.name: 'a/b' names a folder; use letters, digits"),
        (["data=nsd", "data.sessions=-1"], "data.sessions: -1 was given, wanted 1 or more, or 0 for all"),
    ],
)
def test_contradictions_about_data(overrides: list[str], wanted: str) -> None:
    assert wanted in message(*overrides)


def test_released_scaling_can_be_asked_for() -> None:
    assert compose(["data=nsd", "data.variant=released", "data.scaling=session"]).data.transductive
    assert compose(["data.variant=released", "data.test_scaling=own"]).data.transductive
    assert not compose(["data=nsd", "data.variant=released"]).data.transductive
    assert "data.scaling: unknown key here: it belongs to data.source=nsd" in message("data.scaling=session")


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (["layout=nsd"], "layout has no effect: only `nd prepare` writes it"),
        (["data=nsd"], "backbone scenes was not made for data nsd"),
        (["data=nsd", "method=vae"], "backbone scenes was not made for data nsd"),
    ],
)
def test_idle_data_fields_are_warned_of(overrides: list[str], wanted: str, capsys: pytest.CaptureFixture[str]) -> None:
    check("train", overrides)
    assert wanted in capsys.readouterr().err


@pytest.mark.parametrize(("verb", "words"), [("prepare", ["data=own"]), ("run", ["data=own", "method=ridge_pixels"])])
def test_a_backbone_that_is_not_read_is_not_warned_of(
    verb: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    check(verb, words)
    assert capsys.readouterr().err == ""


def test_a_missing_file_offers_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "digit69_28x28.mat").write_bytes(b"")
    assert "Did you mean 'digit69_28x28.mat'?" in message("data=digits69", f"data.file={tmp_path}/digit69_28x82.mat")


def test_no_contradictions_are_invented_from_a_mistaken_choice() -> None:
    text, listed = message("data=digts69", "protocol=digits69"), ", ".join(group_options("data", [CONF]))
    assert text == f"data=digts69: unknown option. Did you mean 'digits69'? Options of data: {listed}."


def test_mistakes_in_files_are_found_and_located(tmp_path: Path) -> None:
    (tmp_path / "guidance").mkdir()
    (tmp_path / "guidance" / "mine.yaml").write_text("kapa: 3.0\neta: much\n", encoding="utf-8")
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\nmethod:\n  stepz: 3\nhorizon: 4\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text, encoding="utf-8")
    said = message(f"hydra.searchpath=[file://{tmp_path}]", "guidance=mine", "experiment=mine")
    assert "guidance.kapa: unknown key in" in said
    assert "guidance/mine.yaml. Did you mean 'guidance.kappa'?" in said
    assert "guidance.eta: 'much' is text, wanted a number" in said
    assert re.search(r"method\.stepz: unknown key in .*experiment/mine\.yaml\. Did you mean 'method\.steps'", said)
    assert "horizon: unknown key" in said


def test_fields_of_a_target_need_a_mapping_in_the_recipe(tmp_path: Path) -> None:
    """Shipped recipes have one; a user's list of targets says what to write."""
    assert compose(["method=vae", "method.targets.z.roi=V1"]).decodings["z"].roi == "V1"
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "listed.yaml").write_text("generator: vae\nname: listed\ntargets: [z]\n", encoding="utf-8")
    given = [f"hydra.searchpath=[file://{tmp_path}]", "method=listed"]
    assert list(compose(given).decodings) == ["z"]
    said = message(*given, "method.targets.z.roi=V1")
    assert said == (
        "method.targets.z.roi: the recipe lists its targets, so none has fields to set. Write 'targets: {z: {}}' in it."
    )


@pytest.mark.parametrize("text", ["kappa: [1\n", "defaults:\n  - override /data: scens\n", "defaults:\n  - nothing\n"])
def test_broken_files_are_one_message(text: str, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "broken.yaml").write_text(f"# @package _global_\n{text}", encoding="utf-8")
    assert message(f"hydra.searchpath=[file://{tmp_path}]", "experiment=broken").startswith("conf: ")


def test_a_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "own.yaml").write_bytes("# für mich\nname: own\n".encode("latin-1"))
    said = message(f"hydra.searchpath=[file://{tmp_path}]", "method=own")
    assert re.match(r"conf: method/own(\.yaml)? is no UTF-8 text .* Save it again as UTF-8\.", said)


def test_a_group_replaced_by_a_value_is_found(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\nguidance: 3\n"
    (tmp_path / "experiment" / "flat.yaml").write_text(text, encoding="utf-8")
    assert "guidance: 3 was given, wanted a group of fields" in message(
        f"hydra.searchpath=[file://{tmp_path}]", "experiment=flat"
    )


# ---- checks that know the verb ---------------------------------------------------------------------------------------


def test_every_value_of_a_sweep_is_checked() -> None:
    with pytest.raises(UserError) as caught:
        check(
            "train", ["seed=1,x", "subject=subj01,subj7", "guidance.eta=.1,2", "method.steps=range(1,3)"], multirun=True
        )
    text = str(caught.value)
    for wanted in ("seed: 'x' is text", "subj7 is not a subject", "eta: 2.0 lies outside", "= 0 steps"):
        assert wanted in text
    assert text.count("eta: 2.0") == 1


def test_contradictions_between_swept_values_are_found() -> None:
    with pytest.raises(UserError, match="leave fewer than 2 of 100"):
        check("train", ["data.n_train=100,1000", "data.n_val=50,200"], multirun=True)
    check("train", ["data.n_train=500,1000", "data.n_val=50,200"], multirun=True)


def test_sweeps_expand_to_all_combinations_and_stay_bounded() -> None:
    folders = [CONF]
    rows = read(["seed=1,2", "subject=glob(*)"], folders, multirun=True).combinations()
    assert len(rows) == 2 * 8
    assert ["seed=2", "subject=subj03"] in rows
    many = read(["seed=range(0,50)", "guidance.kappa=range(0,30)"], folders, multirun=True).combinations()
    assert len(many) == 50
    assert {row[1] for row in many} == {f"guidance.kappa={k}" for k in range(30)}


@pytest.mark.parametrize("multirun", [False, True])
@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("seed=range(5,1)", "seed=range(5,1): it stands for no value."),
        ("method=glob(takagy*)", "method=glob(takagy*): it stands for no value. Options of method: brain_diffuser,"),
    ],
)
def test_a_sweep_of_no_value_is_not_passed_over(given: str, wanted: str, multirun: bool) -> None:
    with pytest.raises(UserError, match=re.escape(wanted)):
        check("run", [given], multirun)


def test_of_a_repeated_key_the_last_alone_is_swept() -> None:
    reading = read(["seed=1,2", "guidance.kappa=3", "seed=4"], [CONF], multirun=True)
    assert not reading.sweeps
    assert [one.text for one in reading.given] == ["++guidance.kappa=3", "++seed=4"]
    assert reading.combinations() == [["guidance.kappa=3", "seed=4"]]


def test_several_machines_inside_a_sweep_are_refused() -> None:
    with pytest.raises(UserError, match=r"trainer\.num_nodes=1"):
        check("reconstruct", ["trainer.num_nodes=2", "seed=1,2"], multirun=True)
    check("reconstruct", ["trainer.num_nodes=2"])
    for given in (["trainer=ddp"], ["trainer.devices=2"]):  # whose jobs start processes of their own
        check("reconstruct", [*given, "seed=1,2"], multirun=True)


def test_digits69_has_no_areas_to_decode_from() -> None:
    given = ["experiment=digits69", "table=", "method=takagi"]
    with pytest.raises(UserError, match=r"2 problems:\n.*method\.targets\.z40\.roi: early was asked for") as error:
        compose(given)
    assert "Decode from all of them: method.targets.c.roi=all." in str(error.value)
    compose([*given, "method.targets.z40.roi=all", "method.targets.c.roi=all"])
    compose([*given, "features=oracle"])  # which reads no voxels
    with pytest.raises(UserError, match=r"^subject\.roi: V1 was asked for, but the file of digits69 says of no voxel"):
        compose(["data=digits69", "method=vae", "subject.roi=V1"])


def test_digits69_without_its_file_names_the_source(tmp_path: Path) -> None:
    given = ["experiment=digits69", "table=", f"paths.root={tmp_path}"]
    for name in ("prepare", "run"):
        with pytest.raises(UserError, match=r"DGMM(.|\n)*data\.file="):
            check(name, given)
    check("doctor", given)
    (tmp_path / "data" / "digits69").mkdir(parents=True)
    check("run", given)


def test_an_unknown_table_is_named() -> None:
    with pytest.raises(UserError, match=r"unknown table 'scens'. Did you mean 'scenes'\?"):
        check_rows("run", ["table=scens"])


def test_the_rows_of_a_table_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"data\.file: digits69 is not prepared"):
        check_rows("run", ["table=digits69", f"paths.root={tmp_path}"])
    with pytest.raises(UserError, match=r"kappa: -1\.0 is negative"):
        check_rows("table", ["table=scenes", "guidance.kappa=-1"])
    check_rows("table", ["table=digits69", "protocol=digits69"])  # its rows have the data that fit
    check_rows("run", ["table=scenes", "guidance.eta=.5", "method.steps=10"])  # idle in some rows only
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match=r"data\.file: unknown key here: it belongs to data\.source=digits69"):
        check_rows("run", ["table=scenes", "data.file=" + str(tmp_path)])


def test_mistakes_in_a_table_are_found_before_it_runs(tmp_path: Path) -> None:
    spec = tmp_path / "mine.yaml"
    spec.write_text(
        "title: Mine\nexperiment: scenes\nsubjects: [subj01]\ncolumns: [{metric: pixcorr}]\n"
        "rows:\n  - {label: a, overrides: [method=neuraldifuser]}\n  - {label: b, overrides: [guidance.eta=7]}\n",
        encoding="utf-8",
    )
    with pytest.raises(UserError) as caught:
        check_rows("run", [f"table={spec}"])
    assert "method=neuraldifuser: unknown option. Did you mean 'neuraldiffuser'" in str(caught.value)
    assert "guidance.eta: 7.0 lies outside" in str(caught.value)


@pytest.mark.parametrize(
    ("verb", "given", "wanted"),
    [
        ("run", ["guidance=none", "guidance.eta=.3"], "guidance.eta has no effect: guidance.kappa is 0"),
        ("run", ["method=vae", "guidance.kappa=3"], "guidance.kappa has no effect: generator vae is not guided"),
        ("run", ["guidance.eta=.01"], "guidance has no effect: int(steps run * eta) is 0 guided steps"),
        (
            "train",
            ["target=z", "target.layers=[1,2,3,4,5,6]"],
            "target.layers has no effect: it does not belong to target z",
        ),
        ("run", ["logger.project=mine"], "logger.project has no effect: logger is none"),
        ("run", ["method=mean_image", "control=shuffled_voxels"], "control has no effect"),
        ("run", [RIDGE, "data=digits69"], "backbone scenes was not made for data digits69"),
    ],
)
def test_what_has_no_effect_is_a_warning(
    verb: str, given: list[str], wanted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data" / "digits69").mkdir(parents=True)
    check(verb, [*given, f"paths.root={tmp_path}"])
    assert f"nd {verb}: warning: {wanted}" in capsys.readouterr().err


@pytest.mark.slow
def test_presets_alone_warn_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for method, experiment in paired("scenes", "digits69"):
        check("predict", [f"experiment={experiment}", f"method={method}", "debug=fast"])
    assert capsys.readouterr().err == ""


def test_the_schema_node_holds_every_field_but_the_record_of_overrides() -> None:
    values = schema_defaults()
    assert "overrides" not in values
    assert not set(FILLED_IN) & set(values)
    assert set(values["subject"]) == {one.name for one in fields(SubjectConfig)}


@pytest.mark.parametrize("given", [["experiment=null"], ["experiment=scenes", "experiment=null"]])
def test_no_experiment_is_what_is_composed_without_one(given: list[str]) -> None:
    assert replace(compose(given), overrides=[]) == compose()


def test_no_experiment_can_be_a_value_of_a_sweep() -> None:
    reading = read(["experiment=null,scenes"], [CONF], multirun=True)
    assert reading.problems == []
    assert reading.combinations() == [["experiment=[]"], ["experiment=scenes"]]


def test_a_command_composes_once_what_it_checks_and_then_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = tmp_path / "floors.yaml"
    rows = "".join(f"  - {{label: {one}, role: floor, overrides: [method={one}]}}\n" for one in ("mean_image", "vae"))
    spec.write_text(f"title: T\nexperiment: scenes\nsubjects: [subj01]\nrows:\n{rows}", encoding="utf-8")
    made, plain = list[list[str]](), composition._assemble

    def noted(overrides: list[str]) -> composition.Composed:
        made.append(overrides)
        return plain(overrides)

    monkeypatch.setattr(composition, "_assemble", noted)
    words = [f"table={spec}", "seed=3"]
    with composition.composed_once():
        check("run", words, rows=rows_of)
        assert len(made) == 3  # what is composed, and two rows
        cfg = compose(words)
        entries = entries_of(cfg)
        assert [entry.cfg.method.name for entry in entries] == ["mean_image", "vae"]
        entries[0].cfg.overrides.append("of its own")
        entries[0].cfg.data.n_train = 1
        again = entries_of(cfg)[0].cfg
        assert again.data.n_train > 1
        assert again.overrides == made[1]
        assert len(made) == 3
    assert compose(words) == cfg
    assert len(made) == 4


def test_a_list_of_defaults_may_name_another_choice(tmp_path: Path) -> None:
    """As Hydra has it; the choices are looked up only where a file asks for them."""
    (tmp_path / "config.yaml").write_text("defaults: [{a: x}, {b: '${a}'}]", encoding="utf-8")
    for name in ("a/x", "a/y", "b/x", "b/y"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.yaml").write_text(f"of: {name}", encoding="utf-8")
    with hydra.initialize_config_dir(str(tmp_path), version_base="1.3"):
        for given, wanted in (([], "x"), (["a=y"], "y")):
            composed = OmegaConf.to_container(hydra.compose("config", given))
            assert composed == {"a": {"of": f"a/{wanted}"}, "b": {"of": f"b/{wanted}"}}


def test_files_that_do_not_fit_are_told_apart(tmp_path: Path) -> None:
    """They are merged in one go, and where that fails one by one, so that Hydra can say which it is."""
    (tmp_path / "config.yaml").write_text("defaults: [{a: x}, {b: y}]", encoding="utf-8")
    for name, text in (("a/x", "list: [1]"), ("b/y", "# @package a\nlist: {of: 1}"), ("b/z", "# @package a\nmore: 2")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    with hydra.initialize_config_dir(str(tmp_path), version_base="1.3"):
        assert OmegaConf.to_container(hydra.compose("config", ["b=z"])) == {"a": {"list": [1], "more": 2}}
        with pytest.raises(HydraException, match=r"In 'b/y': .*\nCannot merge DictConfig with ListConfig"):
            hydra.compose("config")


def test_what_one_file_gives_two_places_is_changed_in_one_of_them() -> None:
    """Copies by pickle, where Hydra makes deep ones."""
    given = ConfigResult("main", "x", OmegaConf.create({"a": {"b": 1}}), {"package": "p.q"})
    one, other = (ConfigLoaderImpl._embed_result_config(given, place) for place in (None, "other"))
    assert given.config == {"a": {"b": 1}}
    one.config.p.q.a.b = 2
    assert (one.config, other.config) == ({"p": {"q": {"a": {"b": 2}}}}, {"other": {"a": {"b": 1}}})
    assert ConfigLoaderImpl._embed_result_config(given, "") is given


def test_settings_of_a_plug_in_that_was_imported_anew_are_copied_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their class is not the one of its name then, as in the process of a launcher's job."""

    @dataclass
    class Settings:
        n_jobs: int = 1

    given = ConfigResult("main", "x", OmegaConf.structured(Settings), {"package": "launcher"})
    with pytest.raises((AttributeError, pickle.PicklingError), match="local object"):
        pickle.dumps(given)
    embedded = ConfigLoaderImpl._embed_result_config(given, None)
    embedded.config.launcher.n_jobs = 2
    assert (given.config.n_jobs, embedded.config.launcher.n_jobs) == (1, 2)
    assert OmegaConf.get_type(embedded.config.launcher) is Settings
    monkeypatch.setattr(ConfigRepository, "load_config", lambda *_: given)
    assert ReadOnce(ConfigSearchPathImpl()).load_config("x") is given


@pytest.mark.parametrize("method", ["neuraldiffuser", "neuraldiffuser_ridge", "minddiffuser", "souldiffuser"])
def test_a_field_of_a_targets_mapper_keeps_the_mapper_that_the_recipe_names(method: str) -> None:
    recipe = compose([f"method={method}"])
    for name in recipe.method.targets:
        changed = compose([f"method={method}", f"method.targets.{name}.mapper.spread=1.25"])
        for other, decoding in recipe.decodings.items():
            wanted = replace(decoding.mapper, spread=1.25) if other == name else decoding.mapper
            assert changed.decodings[other].mapper == wanted
    other = compose(
        ["method=neuraldiffuser", "method.targets.z.mapper.spread=1.25", "method.targets.z.mapper.name=ridge"]
    )
    assert (other.decodings["z"].mapper.name, other.decodings["z"].mapper.spread) == ("ridge", 1.25)
