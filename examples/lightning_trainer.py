"""A `LightningModule` around a model, and Lightning's `Trainer`: processes, checkpoints and logs are Lightning's.

    pip install lightning
    python examples/lightning_trainer.py --epochs 20
    python examples/lightning_trainer.py --epochs 20 --processes 2

The model is any of `pynode.models`; the number of evaluations that its solves took is logged beside the loss.
"""

from __future__ import annotations

import torch
from _shared import arguments, write
from torch import nn
from torch.utils.data import DataLoader

from pynode import data, plot
from pynode.models import ANODE

try:
    import lightning
except ImportError:
    raise SystemExit("This example needs Lightning: pip install lightning") from None


class Classifier(lightning.LightningModule):
    """Tells the points of an annulus from those of the disc within it."""

    def __init__(self, engine: str = "auto", width: int = 32, lr: float = 5e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        field = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 3))
        self.model = ANODE(field, 1, output_network=nn.Linear(3, 1), engine=engine)
        self.losses: list[float] = []

    def training_step(self, batch, index):
        """The mean squared error of a batch."""
        x, y = batch
        loss = nn.functional.mse_loss(self.model(x), y)
        self.log("loss", loss, on_step=False, on_epoch=True, sync_dist=True, prog_bar=True)
        self.log("nfe", float(self.model.stats.nfe), on_step=False, on_epoch=True, sync_dist=True, prog_bar=True)
        return loss

    def on_train_epoch_end(self):
        """Keep the epoch's loss for the figure."""
        self.losses.append(self.trainer.callback_metrics["loss"].item())

    def test_step(self, batch, index):
        """The share of points that are told apart."""
        x, y = batch
        right = ((self.model(x) > 0) == (y > 0)).float().mean()
        self.log("accuracy", right, sync_dist=True)

    def configure_optimizers(self):
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)


def run(out, engine="auto", seed=0, epochs=20, processes=1):
    lightning.seed_everything(seed, verbose=False)
    torch.set_num_threads(1)
    train = DataLoader(data.annuli(960), batch_size=96 // processes, shuffle=True)
    test = DataLoader(data.annuli(300), batch_size=100)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",  # which starts this script once more for each further process
        default_root_dir=out,
        logger=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    module = Classifier(engine)
    trainer.fit(module, train)
    measured = trainer.test(module, test, verbose=False)[0]
    if not trainer.is_global_zero:
        return None
    checkpoint = trainer.checkpoint_callback.best_model_path
    again = Classifier.load_from_checkpoint(checkpoint, weights_only=True)
    x = next(iter(test))[0]
    with torch.no_grad():
        difference = (again.model(x) - module.model(x)).abs().max().item()
    results = {
        "processes": processes,
        "accuracy": measured["accuracy"],
        "losses": module.losses,
        "difference_of_the_checkpoint": difference,
    }
    print(f"accuracy {results['accuracy']:.3f}; checkpoint {checkpoint}")
    write(
        out,
        results,
        lambda: {"training.png": plot.history({"loss": {"ANODE": module.losses}})},
        engine=engine,
        seed=seed,
    )
    return results


if __name__ == "__main__":
    parser = arguments(__doc__, "lightning_trainer", on_torch="half a minute", on_julia="half a minute")
    parser.add_argument("--seed", type=int, default=0, help="of the parameters and the samples")
    parser.add_argument("--epochs", type=int, default=20, help="epochs of the training")
    parser.add_argument("--processes", type=int, default=1, help="processes that share a batch")
    run(**vars(parser.parse_args()))
