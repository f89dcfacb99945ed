"""Schedules: how much is pruned after which step. Pure functions of numbers."""

from __future__ import annotations

import math

from dcompress.train.settings import PenaltyStage, PruneStage

__all__ = ["is_active", "is_due", "level", "progress", "regrow_fraction"]


def is_active(stage: PenaltyStage, step: int) -> bool:
    """Return whether a penalty counts in the pass after a step."""
    return stage.begin <= step and (stage.end is None or step < stage.end)


def is_due(stage: PruneStage, step: int) -> bool:
    """Return whether a stage changes its masks at a step: at begin, then every so many, and at its end."""
    if stage.schedule == "one_shot" or stage.end is None:
        return step == stage.begin
    if not stage.begin <= step <= stage.end:
        return False
    return (step - stage.begin) % stage.every == 0 or step == stage.end


def progress(stage: PruneStage, step: int) -> float:
    """Return how far a schedule is at a step: 0 at the start, 1 from its end on.

    Notes
    -----
    The cubic one is Zhu and Gupta (2017), "To prune, or not to prune": 1 - (1 - t)**3 with t running from 0
    at ``begin`` to 1 at ``end``.
    """
    if stage.end is None or stage.schedule in ("one_shot", "regrow") or step >= stage.end:
        return 1.0
    elapsed = max(0, step - stage.begin)
    if stage.schedule == "cubic":
        return 1.0 - (1.0 - elapsed / (stage.end - stage.begin)) ** 3
    return (elapsed // stage.every + 1) / (stage.rounds + 1)


def level(stage: PruneStage, step: int) -> float | int:
    """Return what a stage asks for at a step: of its sparsity, count, quality, threshold, or N of N:M.

    An iterative sparsity prunes the same fraction of what is left in every round (as in Han et al. 2015 and
    Frankle and Carbin 2019); everything else grows in equal steps there.
    """
    done = progress(stage, step)
    if stage.sparsity is not None:
        start = stage.initial_sparsity
        if stage.schedule == "iterative" and done < 1 and stage.sparsity < 1:
            left: float = ((1.0 - stage.sparsity) / (1.0 - start)) ** done
            return 1.0 - (1.0 - start) * left
        return start + (stage.sparsity - start) * done if done < 1 else float(stage.sparsity)
    if stage.n_pruned is not None:
        return round(stage.n_pruned * done)
    if stage.grains.kind == "n:m":
        n_kept, group = stage.grains.size
        return group - round((group - n_kept) * done)
    full: float = stage.quality if stage.quality is not None else stage.threshold or 0.0
    return full * done


def regrow_fraction(stage: PruneStage, step: int) -> float:
    """Return the fraction of the kept units that RigL replaces at a step.

    Notes
    -----
    Evci et al. (2020), "Rigging the lottery": half the first fraction times 1 + cos(pi * t), t running from
    0 at ``begin`` to 1 at ``end``; at both ends nothing is replaced here.
    """
    if stage.schedule != "regrow" or stage.end is None or not stage.begin < step < stage.end:
        return 0.0
    elapsed = (step - stage.begin) / (stage.end - stage.begin)
    return stage.regrow / 2 * (1.0 + math.cos(math.pi * elapsed))
