"""Options of ``dcz`` that say what the file shall come to, and how hard to try; and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dcompress.settings import DEFAULT_EFFORT, MAX_EFFORT

if TYPE_CHECKING:
    from dcompress.cli.session import Session
    from dcompress.step_search import Found
    from dcompress.targets import Target

__all__ = [
    "asked_effort",
    "asked_target",
    "effort_option",
    "target_line",
    "target_options",
    "target_to_dict",
    "watch_trials",
]

Command = TypeVar("Command", bound=Callable[..., Any])

_EFFORT, _TARGET = "dcompress.effort", "dcompress.target"  # in the context's meta
_OPTIONS = {  # option -> kind of target, metavar, help
    "--target-size": (
        "target_size",
        "SIZE",
        "Size of the file, such as 500kB, 1.5MiB or 300000 (kB = 1000).",
    ),
    "--target-ratio": ("target_ratio", "R", "Decoded bytes over bytes of the file."),
    "--target-bpw": ("target_bpw", "B", "Bits of the file per weight of matrices and kernels."),
    "--quality": ("quality", "DB", "SQNR of all matrices and kernels together, in dB."),
}


class _EffortOption(click.Option):
    """``--effort N``, which stands for ``-1`` to ``-9`` too in the help."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the line of the help."""
        text = "How hard to try: 1 is fast, 9 gives the smallest file."
        return f"-1 ... -{MAX_EFFORT}, --effort N", f"{text}  [default: {DEFAULT_EFFORT}]"


def effort_option(command: Command) -> Command:
    """Add ``-1`` to ``-9`` and ``--effort``; see `asked_effort`."""

    def take(context: click.Context, effort: int) -> None:
        if context.meta.setdefault(_EFFORT, effort) != effort:
            raise click.UsageError(
                f"-{context.meta[_EFFORT]} and -{effort} exclude each other: an effort is one number, "
                f"1 to {MAX_EFFORT}"
            )

    def take_flag(context: click.Context, parameter: click.Parameter, given: bool) -> None:
        if given:
            take(context, int(parameter.opts[0][1:]))

    def take_number(context: click.Context, _: click.Parameter, value: int | None) -> None:
        if value is not None:
            take(context, value)

    for effort in range(1, MAX_EFFORT + 1):
        flag = click.option(
            f"-{effort}",
            f"effort_{effort}",
            is_flag=True,
            hidden=True,
            expose_value=False,
            callback=take_flag,
        )
        command = flag(command)
    number = click.IntRange(1, MAX_EFFORT)
    return click.option("--effort", cls=_EffortOption, type=number, expose_value=False, callback=take_number)(
        command
    )


def asked_effort(context: click.Context) -> int:
    """Return the effort that the options of `effort_option` ask for."""
    effort: int = context.meta.get(_EFFORT, DEFAULT_EFFORT)
    return effort


def target_options(command: Command) -> Command:
    """Add an option for each kind of target; see `asked_target`."""

    def take(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
        if value is None:
            return
        from dcompress.errors import RecipeError
        from dcompress.targets import make_target

        option = parameter.opts[0]
        before, _ = context.meta.get(_TARGET, ("", None))
        if before:
            raise click.UsageError(f"{before} and {option} exclude each other: give one target")
        kind = _OPTIONS[option][0]
        try:
            target = make_target(**{kind: value if kind == "target_size" else float(value)})
        except RecipeError as error:
            raise click.BadParameter(str(error)) from None
        except ValueError:
            raise click.BadParameter(f"{value!r} is not a number") from None
        context.meta[_TARGET] = option, target

    for option, (kind, metavar, text) in reversed(_OPTIONS.items()):
        command = click.option(option, kind, metavar=metavar, expose_value=False, callback=take, help=text)(
            command
        )
    return command


def asked_target(context: click.Context) -> tuple[str, Target | None]:
    """Return the option that asks for a target, and the target; an empty name and None without one."""
    target: tuple[str, Target | None] = context.meta.get(_TARGET, ("", None))
    return target


def watch_trials(
    session: Session, label: str, n_bytes: int
) -> Callable[[int], AbstractContextManager[Callable[[int], None] | None]]:
    """Return what shows a progress bar for each trial of a search."""

    @contextmanager
    def watch(number: int) -> Iterator[Callable[[int], None] | None]:
        with session.progress(f"{label}, trial {number}", n_bytes) as progress:
            yield progress

    return watch


def target_line(found: Found) -> str:
    """Return what was asked and what it came to, in one line."""
    from dcompress.targets import Target

    figures = found.figures
    reached = Target(found.target.kind, figures.of(found.target.kind))
    words = f"target {found.target}: {reached}, step {figures.step:g}"
    if found.target.kind != "quality":
        words += f", quality {figures.sqnr:.2f} dB"
    return f"{words}, {found.n_trials} trial{'' if found.n_trials == 1 else 's'}"


def target_to_dict(found: Found) -> dict[str, Any]:
    """Return what was asked and what it came to as plain JSON values."""
    from dcompress.report import finite

    kind, figures = found.target.kind, found.figures
    return {
        "kind": kind,
        "asked": found.target.value,
        "reached": finite(figures.of(kind)),
        "met": found.met,
        "step": figures.step,
        "sqnr_db": finite(figures.sqnr),
        "bits_per_matrix_weight": finite(figures.bits_per_weight),
        "trials": found.n_trials,
    }
