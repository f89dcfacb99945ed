"""``dcz encode``: a model file -> a ``.dcz`` file, and a table of what became of it."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dcompress.cli.options import (
    check_target,
    default_output,
    force_option,
    json_option,
    output_stream,
    print_json,
    print_lines,
    quiet_option,
    terminal_width,
    threads_option,
    verbose_option,
)
from dcompress.cli.recipes import make_recipe, recipe_options
from dcompress.cli.session import Session
from dcompress.cli.targets import (
    asked_effort,
    asked_target,
    effort_option,
    target_line,
    target_options,
    target_to_dict,
    watch_trials,
)

if TYPE_CHECKING:
    from dcompress.encode import EncodedFrame
    from dcompress.recipe import Recipe
    from dcompress.report import FileReport
    from dcompress.stages import Checkpoint
    from dcompress.step_search import Found
    from dcompress.targets import Target

__all__ = ["encode"]

_LARGE_CHANGE = 10.0  # dB, below which a preset has changed a tensor by a lot

_HELP = """Compress MODEL (.safetensors, .npz, .pt, .pth, .th, .tar, .bin, .ckpt) to a .dcz file.

The preset says what is given up for size: lossless changes nothing; balanced, the default, gives large
weight tensors 8-bit codebooks and prunes nothing; paper prunes as Deep Compression does, with 8 bits for
convolutions and 5 for fully connected layers, after which a model needs fine-tuning. --sparsity and --bits
replace its numbers for all weight tensors, those too small for the preset included; --set and --recipe for
some. A weight tensor is one of floats with at least two dimensions larger than 1. Everything else is stored
losslessly.

Instead of numbers for the precision you can give a target: --target-size, --target-ratio, --target-bpw or
--quality. One step for the whole model is then found that meets it, by up to 1 % and never on the wrong side.
Every float tensor is quantised, biases and statistics finer than weights, those of few values too; --exclude
and --set lossless keep what you name, and other rules stay in force. --sparsity prunes before.

With --calibration the outputs of layers are kept instead of their weights, for a file of the same size that
is much better, or a smaller one that is as good. The statistics come from a few hundred samples:
dcompress.calibrate(model, batches).save("stats.safetensors") in Python. The steps of --set and targets, bits,
centroids, sparsity and n_m all make use of them. --quality is still that of the weights, which is then given
up for that of the outputs: ask for a size instead.

The table shows the fraction of weights that are not zero (density), shared values (centroids), and how
far the weights have moved (SQNR, in dB; `exact` if not at all).

\b
Settings for --set:
  prune     sparsity=S, threshold=T, quality=Q (times the standard deviation) or n_m=N:M
            scope=tensor, global or any name: tensors of a scope share a threshold
  share     bits=B or centroids=N; method=kmeans or uniform
            init=linear, density, random or k-means++; seed=N; groups=N
  codebook  codebook=V/V/V; or integer_bits=I,fraction_bits=F (fixed point)
            codebook_dtype=float16
  rate      method=rate, step=X (without it, that of the target)
            slope=L: weight of size against error; states=0, 4, 8, ... 256 (trellis)
  neither   lossless
"""
_EPILOG = """\b
Examples:
  dcz encode model.safetensors
  dcz encode model.pt --preset paper -o small.dcz
  dcz encode model.pt --sparsity 0.9 --bits 5 --exclude '*.norm.*'
  dcz encode model.pt --target-size 500kB
  dcz encode model.pt --quality 25 -9 --exclude 'embed*'
  dcz encode model.pt --target-size 60kB --calibration stats.safetensors
  dcz encode model.pt --set 'fc*.weight:sparsity=0.9,bits=5' --dry-run
  dcz encode model.pt --preset lossless -o - | ssh host 'cat > model.dcz'
"""


@click.command(short_help="Compress a model to a .dcz file.", help=_HELP, epilog=_EPILOG)
@click.argument("model")
@click.option(
    "-o",
    "--output",
    metavar="OUT.dcz",
    help="Output file, - for stdout.  [default: MODEL with its suffix replaced by .dcz, beside it]",
)
@recipe_options
@click.option(
    "--bits",
    type=int,
    metavar="B",
    help="Codebooks of 2^B values for every weight tensor; fewer for small ones.",
)
@target_options
@effort_option
@threads_option
@click.option(
    "--calibration",
    metavar="STATS",
    help="Keep what layers give out, not their weights: statistics that dcompress.calibrate saved.",
)
@click.option("--dry-run", is_flag=True, help="Show plan and sizes; write nothing.")
@json_option
@click.option("--no-receipt", is_flag=True, help="Leave recipe and errors out of the file.")
@click.option("--strip-module-prefix", is_flag=True, help="Strip DataParallel's 'module.' from all names.")
@force_option
@quiet_option
@verbose_option("List every tensor, and say how long it took.")
@click.pass_obj
def encode(
    session: Session,
    model: str,
    output: str | None,
    preset: str | None,
    profile: str | None,
    recipe_file: str | None,
    sets: tuple[str, ...],
    excludes: tuple[str, ...],
    sparsity: float | None,
    bits: int | None,
    threads: int,
    calibration: str | None,
    dry_run: bool,
    as_json: bool,
    no_receipt: bool,
    strip_module_prefix: bool,
    force: bool,
) -> None:
    """Compress a model file."""
    from dcompress.atomic import atomic_writer
    from dcompress.calibration import as_calibration
    from dcompress.model_file import read_checkpoint

    context = click.get_current_context()
    option, goal = asked_target(context)
    if goal is not None and bits is not None:
        raise click.UsageError(
            f"--bits and {option} exclude each other: --bits sets the precision that {option} is to find; "
            "to fix it for some tensors, use --set"
        )
    recipe = make_recipe(recipe_file, preset, sets, excludes, sparsity, bits, profile)
    known = None
    if calibration is not None:
        with session.working_on(calibration):
            known = as_calibration(calibration)
    if model == "-":
        raise click.UsageError("a model cannot be read from standard input: name a file")
    with session.working_on(model):
        Path(model).stat()
    target = output or default_output(model, ".dcz")
    to_stdout = target == "-" and not dry_run
    if to_stdout and as_json:
        raise click.UsageError("--json and -o - would share stdout: name a file with -o")
    stream = output_stream() if to_stdout else None
    if not (dry_run or to_stdout or _is_hopeless(model)):
        check_target(session, model, target, force)
    with session.working_on(model):
        checkpoint = read_checkpoint(model, strip_module_prefix=strip_module_prefix)
        for note in checkpoint.notes:
            session.note(note)
        options: dict[str, Any] = {
            "receipt": not no_receipt,
            "effort": asked_effort(context),
            "threads": threads,
            "calibration": known,
        }
        frame, found = _encode(session, checkpoint, recipe, goal, options)
    if found is not None:
        recipe = found.recipe
    if not dry_run:
        with session.writing_to(target):
            if stream is not None:
                frame.write(stream)
                stream.flush()
            else:
                with atomic_writer(target, overwrite=force) as file:
                    frame.write(file)
    _note_large_changes(session, frame, recipe)
    report = _report(frame, recipe, with_plan=dry_run)
    if as_json:
        reached = None if found is None else target_to_dict(found)
        head = {"model": model, "output": None if dry_run else target, "target": reached}
        print_json({**head, "effort": options["effort"], **report.to_dict()})
    elif not session.quiet:
        more = [] if found is None else [target_line(found)]
        _print_table(session, report, None if dry_run or to_stdout else target, more, to_stdout)
    if dry_run:
        session.note("dry run: nothing was written")


def _is_hopeless(model: str) -> bool:
    """Return whether the model is no model at sight, which its reader tells better than its target."""
    from dcompress.constants import SIGNATURE

    if not Path(model).is_file():
        return True
    with Path(model).open("rb") as stream:
        return stream.read(len(SIGNATURE)) == SIGNATURE


def _encode(
    session: Session, checkpoint: Checkpoint, recipe: Recipe, goal: Target | None, options: dict[str, Any]
) -> tuple[EncodedFrame, Found | None]:
    """Encode, with a progress bar."""
    from dcompress.encode import encode_checkpoint
    from dcompress.read_back import read_back
    from dcompress.stages import tensor_specs
    from dcompress.step_search import describe_miss, encode_to_target

    sizes = 0
    for name, (dtype, shape) in tensor_specs(checkpoint.tensors).items():
        if name not in checkpoint.ties:
            sizes += math.prod(shape) * dtype.element_bytes
    start = time.perf_counter()
    found = None
    if goal is None:
        with session.progress("encoding", sizes) as progress:
            frame = encode_checkpoint(checkpoint, recipe, progress=progress, **options)
    else:
        watch = watch_trials(session, "encoding", sizes)
        found = encode_to_target(checkpoint, recipe, goal, watch=watch, **options)
        frame = found.frame
        if not found.met:
            session.note(describe_miss(found))
    read_back(frame, options["threads"])
    seconds = time.perf_counter() - start
    session.detail(f"encoded {sizes:,} bytes in {seconds:.1f} s on {options['threads']} threads")
    return frame, found


def _report(frame: EncodedFrame, recipe: Recipe, *, with_plan: bool) -> FileReport:
    """Return what became of the model."""
    from dcompress.container.reader import read_directory
    from dcompress.limits import UNLIMITED
    from dcompress.report import Outcome, report_directory

    outcomes = {report.name: Outcome(report.sqnr, report.n_kept) for report in frame.reports}
    return report_directory(
        read_directory(frame.head, UNLIMITED), outcomes, recipe.to_dict(), frame.plan if with_plan else None
    )


def _note_large_changes(session: Session, frame: EncodedFrame, recipe: Recipe) -> None:
    """Say which tensors a preset, not the user, has changed so much that the model may fail."""
    from dcompress.cli.tables import decibels

    if recipe.preset == "balanced":
        return
    changed = {}
    for report in frame.reports:
        planned = frame.plan[report.name]
        asked = planned.explicit if planned.prune is None else planned.explicit_prune
        if report.sqnr < _LARGE_CHANGE and not asked:
            changed[report.name] = report.sqnr
    if changed:
        worst = min(changed, key=changed.__getitem__)
        session.note(
            f"{recipe.preset} changed {len(changed)} tensor{'' if len(changed) == 1 else 's'} by a lot "
            f"(lowest SQNR {decibels(changed[worst])}: {worst}); fine-tune afterwards, or use balanced"
        )


def _print_table(
    session: Session, report: FileReport, target: str | None, more: list[str], to_stderr: bool
) -> None:
    """Print table and totals, and where the frame has gone, if it is in a file."""
    from dcompress.cli.table import printable
    from dcompress.cli.tables import report_lines, summary_lines

    width = None if to_stderr else terminal_width()
    lines = report_lines(report, width, every=session.verbose) + more + summary_lines(report)
    if target is not None:
        lines[-1] += f": {printable(target)}"
    if to_stderr:
        click.echo("\n".join(lines), err=True)
    else:
        print_lines(lines)
