"""From a trained network to a `.dcz` file that NumPy alone reads: the tutorial in one script.

Usage: ``python tools/train_digits.py [-o FILE.dcz] [--recipe RECIPE] [--plot FILE.png]``. It trains a
small network on scikit-learn's digits, compresses it while it trains on, and says after each stage what is
left and how many of 397 digits that it was not trained with it gets wrong; the last figure is that of the
file, read back from disk. About ten seconds on one core. tools/tutorial.md goes through it step by step.
"""

from __future__ import annotations

import copy
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import dcompress
import dcompress.numpy
from dcompress.decode import open_frame
from dcompress.errors import RecipeError
from dcompress.train import Compressor, PruneStage, TrainRecipe

STAGES = """
profile = "baseline"            # what the C decoder reads in the memory of a small device

[[train]]                       # up to step 1000 ever more weights become zero
pattern = "*.weight"
sparsity = 0.95
scope = "global"
schedule = "cubic"
end = 1000
every = 20

[[train]]                       # from step 1500 on the others share 16 values a layer, which are trained
pattern = "*.weight"
bits = 4
begin = 1500
"""
PRICE = """
profile = "baseline"

[[train]]                       # weights are multiples of a step, and what they take has a price
pattern = "*.weight"
step = 0.25
price = 1.0

[[train]]
pattern = "*.bias"
step = 0.05
"""
RECIPES = {"stages": STAGES, "price": PRICE}
N_TRAINING = 1400
N_DENSE_STEPS = 1000
N_STEPS = 2000  # with the recipe
BATCH = 64
LAYERS = ("0", "2", "4")
State = dict[str, Tensor]


def digits() -> tuple[Tensor, Tensor]:
    """Return 1,797 images as rows of 64 numbers from 0 to 1, shuffled, and their labels."""
    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return torch.tensor(pixels / 16, dtype=torch.float32)[order], torch.tensor(labels)[order]


def network() -> nn.Sequential:
    """Return the network with fresh random weights."""
    return nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))


def error_rate(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the percentage of images that a model gets wrong."""
    with torch.no_grad():
        return 100.0 * float((model(images).argmax(1) != labels).float().mean())


def train(
    model: nn.Module, images: Tensor, labels: Tensor, n_steps: int, compressor: Compressor | None = None,
    after_step: Callable[[int], None] = lambda step: None,
) -> None:  # fmt: skip
    """Train a model, with a compressor or without."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    shuffle = torch.Generator().manual_seed(1)
    for step in range(1, n_steps + 1):
        chosen = torch.randint(len(labels), (BATCH,), generator=shuffle)
        loss = cross_entropy(model(images[chosen]), labels[chosen])
        if compressor is not None:
            loss = loss + compressor.regularizer()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if compressor is not None:
            compressor.step()
        after_step(step)


def predict_with_numpy(path: Path, images: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the digits that the network in a file sees; no torch."""
    arrays = dcompress.numpy.load_file(path)
    for layer in LAYERS:
        images = images @ arrays[f"{layer}.weight"].T + arrays[f"{layer}.bias"]
        if layer != LAYERS[-1]:
            images = np.maximum(images, 0)
    return images.argmax(1)


def last_pruning(recipe: TrainRecipe) -> int:
    """Return the step after which the masks no longer change."""
    return max(
        (stage.end or stage.begin for stage in recipe.stages if isinstance(stage, PruneStage)), default=0
    )


def stage_line(name: str, state: State, error: float) -> str:
    """Return what is known of a network: zeros, values, error, and its size in two kinds of file."""
    weights = [state[f"{layer}.weight"] for layer in LAYERS]
    zeros = sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)
    n_values = sum(int(weight[weight != 0].unique().numel()) for weight in weights)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    sizes = buffer.tell(), len(dcompress.save(state, recipe="lossless"))
    return (
        f"{name:8}{100 * zeros:7.0f} %{n_values:9,}{error:9.1f} %{sizes[0]:14,}{sizes[1]:13,}"
        f"{sizes[0] / sizes[1]:8.1f}"
    )


HEADING = "stage      zeros   values     wrong     torch.save   .dcz file   ratio"


@click.command()
@click.option("-o", "output", type=click.Path(dir_okay=False, path_type=Path), help="Keep the file here.")
@click.option("--recipe", default="stages", show_default=True, help="stages, price, or a file of your own.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw the weights: .png, .svg.")
@click.option("--seed", default=0, help="Of the random weights.")
def main(output: Path | None, recipe: str, plot: Path | None, seed: int) -> None:
    """Train, prune, share and code, and say what each stage did."""
    try:
        stages = TrainRecipe.from_toml(RECIPES.get(recipe, Path(recipe)))
    except (OSError, RecipeError) as error:
        raise click.BadParameter(str(error), param_hint="--recipe") from None
    torch.set_num_threads(1)
    images, labels = digits()
    seen, unseen = (images[:N_TRAINING], labels[:N_TRAINING]), (images[N_TRAINING:], labels[N_TRAINING:])
    torch.manual_seed(seed)
    model = network()
    train(model, *seen, N_DENSE_STEPS)
    states = {"dense": copy.deepcopy(model.state_dict())}
    click.echo(HEADING)
    click.echo(stage_line("dense", states["dense"], error_rate(model, *unseen)))

    compressor = Compressor(model, stages)
    starts = [stage.begin for stage in compressor.recipe.stages if not isinstance(stage, PruneStage)]
    pruned_at = min([begin for begin in starts if begin > last_pruning(compressor.recipe)], default=None)

    def look(step: int) -> None:
        if step + 1 == pruned_at:  # the last step before weights are shared
            states["pruned"] = compressor.plain_state_dict()
            click.echo(stage_line("pruned", states["pruned"], error_rate(model, *unseen)))

    train(model, *seen, N_STEPS, compressor, look)
    model = compressor.finish()
    last = "shared" if "pruned" in states else "trained"
    states[last] = model.state_dict()
    click.echo(stage_line(last, states[last], error_rate(model, *unseen)))
    with tempfile.TemporaryDirectory() as folder:
        path = output or Path(folder) / "digits.dcz"
        dcompress.save_model(model, path, recipe=compressor.recipe.encode)
        found = predict_with_numpy(path, unseen[0].numpy())
        error = 100 * (found != unseen[1].numpy()).mean()
        n_bytes = path.stat().st_size
        click.echo(f"the file, {n_bytes:,} bytes, read by NumPy alone: {error:.1f} % wrong")
        if plot is not None:
            draw(plot, states, path)


def draw(plot: Path, states: dict[str, State], path: Path) -> None:
    """Draw the weights of the first layer after each stage, and the bytes that hold them in the file."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    name = f"{LAYERS[0]}.weight"
    with open_frame(path) as reader:
        record = reader.directory.tensors[name]
        frame = path.read_bytes()
    coded = b"".join(frame[chunk.offset : chunk.offset + chunk.n_bytes] for chunk in record.chunks)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "dcompress", "font.size": 9}):
        figure = Figure(figsize=(10, 2.1 * (len(states) + 1)), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(len(states) + 1, 2, width_ratios=[2.6, 1], squeeze=False)
        reach = 1.02 * max(float(state[name].abs().max()) for state in states.values())
        for (left, right), (stage, state) in zip(panels, states.items(), strict=False):
            draw_weights(left, right, stage, state[name].numpy(), reach)
        draw_bytes(panels[-1][0], coded, states["dense"][name].numel())
        draw_sizes(panels[-1][1], states)
        figure.savefig(plot, dpi=90, metadata={"Date": None} if plot.suffix == ".svg" else {})


def draw_weights(left: Any, right: Any, stage: str, weight: NDArray[np.float32], reach: float) -> None:
    """Draw a matrix as a picture, and the histogram of its weights."""
    left.imshow(
        weight.T, cmap="RdBu_r", vmin=-reach / 2, vmax=reach / 2, aspect="auto", interpolation="nearest"
    )
    kept = weight[weight != 0]
    n_values = np.unique(kept).size
    left.set_title(
        f"{stage}: {100 * (1 - kept.size / weight.size):.0f} % zeros, {n_values:,} values",
        loc="left", fontweight="bold", fontsize=10,
    )  # fmt: skip
    left.set(xticks=[], yticks=[], xlabel="300 outputs", ylabel="64 inputs")
    right.hist(kept, bins=151, range=(-reach, reach), color="#1f5fa8")
    right.set_yscale("log")
    right.set_ylim(0.7, 3000)
    right.set_title(f"{kept.size:,} weights that are not zero", loc="left", fontsize=9)
    tidy(right)


def draw_bytes(axes: Any, coded: bytes, n_weights: int) -> None:
    """Draw the bytes of a matrix in the file, to the scale of the pictures above: four bytes a weight."""
    height = 64
    width = 4 * n_weights // height
    values = np.frombuffer(coded, np.uint8)
    columns = -(-values.size // height)
    pixels = np.full(columns * height, np.nan)
    pixels[: values.size] = values
    axes.imshow(
        pixels.reshape(columns, height).T, cmap="Greys", vmin=-80, vmax=255, aspect="auto",
        interpolation="nearest", extent=(0, columns, height, 0),
    )  # fmt: skip
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    axes.set_title("coded, to the same scale", loc="left", fontweight="bold", fontsize=10)
    axes.text(
        columns + width / 60, height / 2, f"{values.size:,} bytes of the file; as float32 {4 * n_weights:,}",
        va="center",
    )  # fmt: skip


def draw_sizes(axes: Any, states: dict[str, State]) -> None:
    """Draw what the whole network takes as float32, and coded after each stage."""
    sizes = [4 * sum(tensor.numel() for tensor in states["dense"].values())]
    sizes += [len(dcompress.save(state, recipe="lossless")) for state in states.values()]
    bars = axes.barh(["float32", *states], sizes, color=["#6b7280"] + ["#1f5fa8"] * len(states), height=0.6)
    axes.bar_label(bars, [f"{size:,}" for size in sizes], padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(1000, 1.5e6)
    axes.set_title("whole network in bytes; blue: as .dcz", loc="left", fontsize=9)
    tidy(axes)


def tidy(axes: Any) -> None:
    """Take away the lines above and to the right."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=8)


if __name__ == "__main__":
    main()
