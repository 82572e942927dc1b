"""How a field of the configuration is declared: ``opt``, and the metadata it attaches."""

from __future__ import annotations

from dataclasses import Field, dataclass, field
from typing import Any

# 50 * 0.58 is 28.999999999999996 in floating point; a share that is meant to give a whole number must give it.
ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class Declared:
    """What is declared of one field.

    Attributes:
        help: the text that ``nd VERB --help`` prints.
        identity: whether results depend on the field, so that it is part of a run's identity.
        since: the first verb that reads the field, where that is a later one than the component's own first.
        choices: allowed values; empty for any.
        path: whether a given value must be an existing path.
        weights: whether the value names weights whose content, not whose place, decides results.
        of: of the backbone: the parts whose users depend on the field; empty for all of them.
    """

    help: str
    identity: bool = True
    since: str = ""
    choices: tuple[Any, ...] = ()
    path: bool = False
    weights: bool = False
    of: tuple[str, ...] = ()


def opt(default: Any, text: str, **facts: Any) -> Any:
    """Return a dataclass field with a default, its help text and further facts (``Declared``).

    Args:
        default: value; a list or dictionary is copied for each instance.
        text: what ``nd VERB --help`` says of the field, in lower case, without a full stop.
        facts: of ``Declared``, by name.

    Returns:
        What ``dataclasses.field`` gives.
    """
    metadata = {"nd": Declared(help=text, **facts)}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def declared(one: Field[Any]) -> Declared:
    """Return what is declared of a field; one without ``opt`` is filled in, never set, and no part of an identity."""
    found: Declared = one.metadata.get("nd", Declared(help="", identity=False))
    return found


def share_of(n: int, share: float, *, binary: bool = False) -> int:
    """Return ``int(n * share)`` of the decimal numbers, the rule by which steps are counted.

    Args:
        n: a whole number, at least 0.
        share: in [0, 1].
        binary: as floating-point numbers multiply, which the released code trusts: one less where the product comes out
            just below a whole number.

    >>> share_of(50, 0.58), share_of(50, 0.58, binary=True)
    (29, 28)
    """
    return int(n * share) if binary else int(n * share + ROUNDING)
