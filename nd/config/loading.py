"""What Hydra composes of conf/ over the schema's defaults: every file read, every choice of groups merged, once."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from functools import cache, lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import hydra
import omegaconf.base
import yaml
from hydra._internal import config_loader_impl, defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.hydra import Hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nd.config.conf_files import conf_dir
from nd.config.known import BASES, FILLED_IN, group_type
from nd.config.schema import Config

HYDRA_VERSION_BASE = "1.3"
# Groups of Hydra's own node, which is laid aside here: reading them took a fifth of a composition.
OF_HYDRA = ("env", "help", "hydra_help", "hydra_logging", "job_logging", "launcher", "output", "sweeper")
WITHOUT = [f"~hydra/{group}" for group in OF_HYDRA]


class ReadOnce(ConfigRepository):
    """Reads a file of conf/ once in a process, and not anew for every row of a table and job of a sweep.

    Copies are made by pickle, here and of what is composed: of OmegaConf's nodes that takes a fifth of a deep copy.
    """

    read: ClassVar[dict[tuple[str, ...], bytes]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> ReadOnce:
        """Return one whose sources can be changed apart; Hydra would copy all it has in store with them."""
        return copy.copy(self)

    def load_config(self, config_path: str) -> Any:
        """Return a copy of what a file holds; Hydra changes what it gets."""
        key = (*(source.path for source in self.sources), config_path)
        if key not in self.read:
            try:
                found = super().load_config(config_path)
            except UnicodeDecodeError as error:
                raise HydraException(f"{config_path} is no UTF-8 text ({error}). Save it again as UTF-8.") from error
            if (pickled := _pickled(found)) is None:
                return found  # which Hydra has copied from what is in store
            self.read[key] = pickled
        return pickle.loads(self.read[key])


def _pickled(value: Any) -> bytes | None:
    """Return a value pickled; None where it holds settings of a class that is not found by its name.

    So it is with a launcher's in the process of a job: Hydra imports plugins anew, and the class is another one then.
    """
    try:
        return pickle.dumps(value)
    except (pickle.PicklingError, AttributeError):
        return None


@contextmanager
def reading_once() -> Iterator[None]:
    """Let a Hydra application that runs meanwhile read so too: it composes anew for each job.

    Nor does it compose everything once more to look for a mode in it: the command line has it, `load_conf` no file.
    """
    get_mode = Hydra.get_mode
    config_loader_impl.ConfigRepository = ReadOnce  # type: ignore[misc]
    Hydra.get_mode = lambda *_, **__: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        config_loader_impl.ConfigRepository = ConfigRepository  # type: ignore[misc]
        Hydra.get_mode = get_mode  # type: ignore[method-assign]


_choices_for_texts = defaults_list._create_interpolation_map


def _choices_where_asked(overrides: Any, defaults: list[Any], self_added: bool) -> Any:
    """Return the choices that a file's list of defaults may name as ${group}; none where it names none.

    Hydra makes them of every file it reads, which was a quarter of a composition.
    """
    if any(one.is_interpolation() for one in defaults):
        return _choices_for_texts(overrides, defaults, self_added)
    return None


defaults_list._create_interpolation_map = _choices_where_asked  # type: ignore[assignment]
_file_by_file = ConfigLoaderImpl._compose_config_from_defaults_list


def _merged_at_once(self: ConfigLoaderImpl, defaults: list[Any], repo: Any) -> DictConfig:
    """Return what all files hold together, merged in one go: Hydra corrects the whole tree's parents after each file.

    Where something does not fit, Hydra goes file by file and says which it is.
    """
    whole = OmegaConf.create(flags={"no_deepcopy_set_nodes": True})
    try:
        whole.merge_with(*(self._load_single_config(one, repo).config for one in defaults))
    except (OmegaConfBaseException, HydraException):
        return _file_by_file(self, defaults, repo)
    whole._set_flag("no_deepcopy_set_nodes", None)
    read: Any = SimpleNamespace(_load_single_config=lambda **_: SimpleNamespace(config=whole))
    return _file_by_file(read, defaults[:1], repo)


def _embedded(result: Any, package: str | None) -> Any:
    """Return what a file holds at its place in the whole, copied by pickle too."""
    place = result.header["package"] if package is None else package
    if not place:
        return result
    whole = OmegaConf.create(flags={"no_deepcopy_set_nodes": True})
    pickled = _pickled(result.config)
    own = copy.deepcopy(result.config) if pickled is None else pickle.loads(pickled)
    OmegaConf.update(whole, place, own, merge=False)
    whole._set_flag("no_deepcopy_set_nodes", None)
    return replace(result, config=whole)


ConfigLoaderImpl._compose_config_from_defaults_list = _merged_at_once  # type: ignore[method-assign]
ConfigLoaderImpl._embed_result_config = staticmethod(_embedded)  # type: ignore[assignment, method-assign]
# What a text of conf/ refers to is parsed once in a process, and not for each configuration that holds it.
omegaconf.base.parse = lru_cache(maxsize=1024)(omegaconf.base.parse)


@cache
def read_yaml(file: Path) -> Any:
    """Return what a file of conf/ holds, read once in a process too; whoever asks must not change it."""
    return yaml.safe_load(file.read_text(encoding="utf-8"))


@lru_cache(maxsize=1024)
def load_conf(
    overrides: tuple[str, ...], further: tuple[Path, ...] = ()
) -> tuple[bytes, dict[str, str], tuple[str, ...]]:
    """Return the composed ``DictConfig``, pickled, every group's chosen option, and problems of composition itself."""
    path = [f"hydra.searchpath=[{','.join(f'file://{folder}' for folder in further)}]"] if further else []
    texts = [text for text in overrides if not text.startswith("hydra.")] + path + WITHOUT
    try:
        with _own_hydra() as own:
            loaded = own.compose_config("config", texts, RunMode.RUN, from_shell=False)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        return pickle.dumps(OmegaConf.create()), {}, (f"conf: {' '.join(str(error).split())}",)
    if loaded.hydra.mode is not None:
        said = f"conf: a file sets hydra.mode={loaded.hydra.mode.name}; take it out. A sweep is run by -m."
        return pickle.dumps(OmegaConf.create()), {}, (said,)
    choices = {str(k): str(v) for k, v in loaded.hydra.runtime.choices.items()}
    OmegaConf.set_struct(loaded, False)
    del loaded["hydra"]
    return pickle.dumps(loaded), choices, ()


@contextmanager
def _own_hydra() -> Iterator[Any]:
    """Yield a Hydra over conf/ without disturbing one that may be running a job."""
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(conf_dir()), version_base=HYDRA_VERSION_BASE):
            own: Any = GlobalHydra.instance().hydra
            own.config_loader.repository = ReadOnce(own.config_loader.config_search_path)
            yield own
    finally:
        GlobalHydra.instance().hydra = outer


def schema_defaults() -> dict[str, Any]:
    """Return the defaults that Hydra merges conf/ into: those of groups whose fields depend on no choice.

    The other groups start empty: what a file or the command line says of them is held against the choice made, whose
    own defaults fill in the rest.
    """
    values, default = dict[str, Any](), Config()
    for one in fields(Config):
        group = group_type(one)
        if one.name in BASES:
            values[one.name] = {}
        elif group is not None:
            values[one.name] = asdict(group())
        elif one.name not in FILLED_IN:
            values[one.name] = getattr(default, one.name)
    return values


ConfigStore.instance().store(name="nd_schema", node=schema_defaults(), provider="nd")
