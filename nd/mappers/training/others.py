"""Whom a pretrain stage sees: the other subjects of the data set, without what the left-out subject is judged on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nd.config import Config
from nd.data.prepared import open_subject, split_of, with_doubles
from nd.data.splits import NSD_SPLITS, Fold
from nd.data.subject import Subject
from nd.errors import UserError

Seen = list[tuple[Subject, Fold]]


def others_of(cfg: Config, fold: int) -> Seen:
    """The data set's other subjects with one fold of each, without what the left-out subject's fold holds out.

    Subjects of NSD give all their sessions, of which some have fewer than a named split is about; no image that all
    subjects share is ever trained on.

    UserError: there are none, or their splits have other folds.
    """
    # What is held out does not depend on how many sessions fine-tuning may use.
    own, found = split_of(replace(cfg, subject=replace(cfg.subject, sessions=0))).folds[fold], []
    own = Fold(own.train, with_doubles(cfg, own.val), with_doubles(cfg, own.test))  # by whatever id others saw them
    data = replace(cfg.data, split="nsd_partial") if cfg.data.split in NSD_SPLITS else cfg.data
    for name in cfg.data.subjects:
        if name == cfg.subject.name:
            continue
        other = replace(cfg, data=data, subject=replace(cfg.subject, name=name, sessions=0))
        subject, folds = open_subject(other), split_of(other).folds
        if len(folds) <= fold:
            raise UserError(f"{name} has {len(folds)} folds in split {cfg.data.split}: none answers to fold {fold}.")
        found.append((subject, _without(folds[fold], own, subject)))
    if not found:
        raise UserError(f"data {cfg.data.name} has no subject beside {cfg.subject.name}; give training.pretrain=false.")
    return found


def _without(theirs: Fold, own: Fold, subject: Subject) -> Fold:
    """Another subject's fold with the held-out images of one's own moved to the test, as far as they were shown."""
    test = np.intersect1d(np.union1d(theirs.test, own.test), subject.image_id).astype(np.int32)
    train = np.setdiff1d(theirs.train, np.union1d(own.val, own.test))
    return Fold(train, np.setdiff1d(theirs.val, own.test), test)
