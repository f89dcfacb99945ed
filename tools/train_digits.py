"""Train a small network on scikit-learn's digits, compress it on the way, and measure its file.

Usage: ``python tools/train_digits.py [-o FILE.dcz] [--recipe RECIPE.toml]``. It takes about 15
seconds on one core. The error is that of the network in the file, read back from disk, on 397 digits that
it was not trained with.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import dcompress
from dcompress.train import Compressor, TrainRecipe

RECIPE = """
[[train]]                       # from step 400 to 1600 ever more weights become zero
pattern = "*.weight"
sparsity = 0.9
scope = "global"
schedule = "cubic"
begin = 400
end = 1600
every = 20

[[train]]                       # from step 2000 on the others share 16 values a layer, which are trained
pattern = "*.weight"
bits = 4
begin = 2000
"""
N_TRAINING = 1400
N_STEPS = 3000
BATCH = 64


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


def train(model: nn.Module, images: Tensor, labels: Tensor, compressor: Compressor | None = None) -> None:
    """Train a model, with a compressor or without."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    shuffle = torch.Generator().manual_seed(1)
    for _ in range(N_STEPS):
        chosen = torch.randint(len(labels), (BATCH,), generator=shuffle)
        loss = cross_entropy(model(images[chosen]), labels[chosen])
        if compressor is not None:
            loss = loss + compressor.regularizer()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if compressor is not None:
            compressor.step()


@click.command()
@click.option("-o", "output", type=click.Path(dir_okay=False, path_type=Path), help="Keep the file here.")
@click.option("--recipe", type=click.Path(exists=True, path_type=Path), help="A recipe of your own.")
@click.option("--seed", default=0, help="Of the random weights.")
def main(output: Path | None, recipe: Path | None, seed: int) -> None:
    """Train twice, dense and compressed, and print the error and the file size of both."""
    torch.set_num_threads(1)
    images, labels = digits()
    seen, unseen = (images[:N_TRAINING], labels[:N_TRAINING]), (images[N_TRAINING:], labels[N_TRAINING:])
    torch.manual_seed(seed)
    dense = network()
    train(dense, *seen)
    torch.manual_seed(seed)
    model = network()
    compressor = Compressor(model, TrainRecipe.from_toml(recipe or RECIPE))
    train(model, *seen, compressor)
    sparsity = compressor.sparsity()
    model = compressor.finish()
    with tempfile.TemporaryDirectory() as folder:
        plain, small = Path(folder) / "digits.pt", output or Path(folder) / "digits.dcz"
        torch.save(dense.state_dict(), plain)
        dcompress.save_model(model, small, recipe=compressor.recipe.encode)
        decoded = network()
        dcompress.load_model(decoded, small)
        sizes = [path.stat().st_size for path in (plain, small)]
    click.echo(f"dense       {sizes[0]:9,} bytes  {error_rate(dense, *unseen):.1f} % wrong")
    click.echo(f"compressed  {sizes[1]:9,} bytes  {error_rate(decoded, *unseen):.1f} % wrong", nl=False)
    click.echo(f"  {100 * sparsity:.0f} % zeros, {sizes[0] / sizes[1]:.0f} times smaller")


if __name__ == "__main__":
    main()
