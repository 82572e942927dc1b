"""A table whose raw data are not there is answered with what ``nd doctor`` says, before anything is tried."""

from __future__ import annotations

from collections.abc import Sequence

from nd.config import Config
from nd.config.components import component
from nd.data.prepared import data_folder
from nd.doctor.data import RELEASES, data_needs
from nd.errors import UserError


def refuse_absent(cfgs: Sequence[Config]) -> None:
    """Print the doctor's report of the first configuration whose raw files are not there, and refuse.

    Args:
        cfgs: of rows that are to be run; only those on a public release of NSD are looked at, each person once.

    Raises:
        UserError: saying how to go on.
    """
    people = {(data_folder(cfg), cfg.subject.name): cfg for cfg in cfgs if cfg.data.source in RELEASES}
    for cfg in people.values():
        needs = data_needs(cfg, component("source", cfg.data.source).pieces(cfg)).needs
        if any(need.state in ("missing", "wrong") for need in needs):
            from nd.doctor.report import doctor  # reads PyTorch, which a table that is there does without

            doctor(cfg)
            raise UserError(
                f"the table's rows read {cfg.data.name} of {cfg.subject.name}, which is not there; what is missing and "
                "how it is fetched stands above. Then give data.root=<folder of the downloaded files>."
            )
